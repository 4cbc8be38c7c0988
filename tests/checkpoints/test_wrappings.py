"""Wrappers of other codebases by name, against what those codebases return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.bounds import assert_within, exact, u
from laws.wrappings import Probe, check_wrapping, sgm
from torch import Tensor, nn

import testbed
from testbed.checkpoints.networks import ForeignNetwork
from testbed.checkpoints.wrappings import WRAPPINGS, wrap, wrapping
from testbed.errors import InputError, UnknownName
from testbed.oracles import Mixture


@pytest.mark.parametrize("name", WRAPPINGS)
def test_it_returns_what_its_codebase_returned(name: str) -> None:
    check_wrapping(WRAPPINGS[name])


def test_a_discrete_denoiser_of_sgm_snaps_to_its_table() -> None:
    """Its published code has sigma = sqrt((1 - abar)/abar) of an abar that is rounded to float32.

    That is off by u/(1 - abar) at most, relative, and D = x - sigma F with it, as is c_in x in F.
    """
    found = sgm()["discrete_denoiser"]
    loss = sgm()["loss"]
    table = testbed.Registry().table("scaled_linear", start=0.00085, end=0.012)
    A, b = (torch.tensor(sgm()["network"][key], dtype=torch.float64) for key in ("A", "b"))

    class Linear(nn.Module):
        def forward(self, y: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            return y @ A.T + torch.tanh(t / 100)[:, None] * b

    x0, noise, sigma = (
        torch.tensor(loss[key], dtype=torch.float64) for key in ("x0", "noise", "sigma")
    )
    denoise = WRAPPINGS["sgm.EpsScaling"].around(Linear(), table=table)
    index = table.index(sigma)
    assert index.tolist() == found["idx"]
    x = x0 + sigma[:, None] * noise
    wanted = torch.tensor(found["denoised"], dtype=torch.float64)
    s = table.sigmas[index][:, None]
    y = x / torch.sqrt(1 + s**2)
    moved = s * (Linear()(y, index).abs() + y.abs() @ A.abs().T)
    lost = u(torch.float32) * (1 + s**2) / s**2
    size = exact(x.abs() + moved)
    assert_within(denoise(x, sigma), exact(wanted), size, 8, torch.float32, exact(lost * moved))


def test_a_position_is_between_two_levels(bundled: testbed.Registry) -> None:
    table = bundled.table("ddpm")
    levels = table.sigmas
    at = table.position(levels, 1.0)
    assert torch.allclose(at, torch.arange(1000, dtype=torch.float64), atol=1e-9)
    middle = (levels[:-1] * levels[1:]).sqrt()
    assert torch.allclose(table.position(middle, 1.0) % 1, torch.full((999,), 0.5).double())
    assert table.position(torch.tensor([1e-6, 1e6]), 1.0).tolist() == [0.0, 999.0]


def test_what_does_not_fit_is_refused(bundled: testbed.Registry) -> None:
    network, table = nn.Identity(), bundled.table("ddpm")
    with pytest.raises(UnknownName, match=r"Did you mean 'edm.EDMPrecond'\?"):
        wrapping("edm.EDMPrecon")
    with pytest.raises(InputError, match="any noise level: it has no table"):
        wrap(network, "edm.VPPrecond", table=table)
    with pytest.raises(InputError, match='say of which table, for example table = "ddpm"'):
        wrap(network, "edm.iDDPMPrecond")
    with pytest.raises(InputError, match="its sigma_data is that of the model"):
        wrap(network, "edm.EDMPrecond")


class Recorder(nn.Module):
    """Keeps what it is called with."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.output = output
        self.calls: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []

    def forward(self, x: Tensor, t: Tensor, **given: Tensor) -> Any:
        self.calls.append((x, t, given))
        return x if self.output is None else self.output(x)


def test_a_foreign_network_is_called_as_theirs_are() -> None:
    x, t, label = torch.randn(3, 1, 2, 2), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1, -1, 0])
    inner = Recorder()
    text = torch.randn(3, 4, 5)
    ForeignNetwork(inner, time_scale=1000, null=7)(x, t, {"label": label, "context": text})
    _, time, given = inner.calls[-1]
    assert torch.equal(time, 1000 * t)
    assert given["class_labels"].tolist() == [1, 7, 0]
    assert given["context"] is text
    ForeignNetwork(inner, null=7)(x, t)
    assert inner.calls[-1][2]["class_labels"].tolist() == [7, 7, 7]
    rows = ForeignNetwork(inner, null=2, classes=2, keywords={"label": "y"})
    rows(x, t, {"label": label})
    assert inner.calls[-1][2]["y"].tolist() == [[0, 1], [0, 0], [1, 0]]
    with pytest.raises(InputError, match="no class for none"):
        ForeignNetwork(inner)(x, t, {"label": label})


class Output:
    def __init__(self, x: Tensor) -> None:
        self.sample = 2 * x


@pytest.mark.parametrize("make", [Output, lambda x: (2 * x, 0), lambda x: 2 * x])
def test_outputs_of_all_kinds_are_taken(make: Any) -> None:
    x, t = torch.randn(3, 1, 2, 2), torch.zeros(3)
    assert torch.equal(ForeignNetwork(Recorder(make), sign=-1)(x, t), -2 * x)
    with pytest.raises(InputError, match="returned dict, expected a tensor"):
        ForeignNetwork(Recorder(lambda x: {}))(x, t)


def test_a_variance_that_is_not_used_is_dropped(bundled: testbed.Registry) -> None:
    """iDDPM's network of EDM returns twice the channels, and its wrapper takes the first half."""

    class Twice(Probe):
        def forward(self, y: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            F = super().forward(y, t)
            return torch.cat([F, 9 + F], dim=1)

    x, sigma = torch.randn(4, 1, 2, 2).double(), torch.tensor([0.1, 0.5, 2.0, 9.0]).double()
    iddpm, table = wrapping("edm.iDDPMPrecond"), bundled.table("cosine")
    twice = iddpm.around(Twice(), table=table, learned_variance=True)
    assert torch.equal(twice(x, sigma), iddpm.around(Probe(), table=table)(x, sigma))


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_wrapping_is_the_exact_denoiser_around_the_exact_network(
    name: str, bundled: testbed.Registry
) -> None:
    """Around F* of a mixture it is E[x0|x]: c_skip, c_out and the target are of one formula."""
    one = WRAPPINGS[name]
    table = bundled.table("ddpm") if one.table == "needed" else None
    means = torch.tensor([[1.0, -0.5], [-1.5, 0.4]]).double()
    oracle = Mixture(means, torch.tensor([0.3, 0.7]).double(), torch.tensor([0.4, 0.6]).double())
    sigma = table.sigmas[::111] if table is not None else torch.logspace(-2, 2, 9).double()
    x = oracle.sample(len(sigma), torch.Generator().manual_seed(0)).double() + sigma[:, None]

    class Exact(nn.Module):
        def forward(self, y: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            p = around.parameterization
            return p.output(oracle.denoise(x, sigma), x, sigma, sigma_data=around.sigma_data)

    around = one.around(Exact(), 0.6 if one.sigma_data is None else None, table)
    D = oracle.denoise(x, sigma)
    c = around.parameterization.coefficients(sigma, sigma_data=around.sigma_data)
    terms = (c.skip[:, None] * x).abs() + (D - c.skip[:, None] * x).abs()
    assert_within(around(x, sigma), exact(D), exact(terms), 16)
