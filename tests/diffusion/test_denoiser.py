"""Laws of the preconditioned denoiser D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, log
from helpers.strategies import WIDE, Case, case, cases, column, draws, fixed, float64
from hypothesis import given
from laws.denoiser import (
    Condition,
    Recorder,
    law_denoiser_is_its_algebra,
    law_network_sees_its_scales,
    law_score_is_tweedie,
)
from laws.parameterizations import K_COEFFICIENT, TABLE
from torch import Tensor, nn

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry


class Linear(nn.Module):
    """A network with weights, over the last axis."""

    def __init__(self, d: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layer = nn.Linear(d, d, dtype=dtype)

    def forward(self, y: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        found: Tensor = self.layer(y)
        return found


def denoiser(name: str, sigma_data: float = 0.5, **choices: Any) -> testbed.Denoiser:
    p = default_registry().parameterization(name)
    return testbed.Denoiser(Recorder(), p, sigma_data, **choices)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
@given(c=cases(dtypes=WIDE))
def test_denoiser_is_its_algebra(name: str, c: Case) -> None:
    d = denoiser(name, c.sigma_data)
    law_denoiser_is_its_algebra(d, d.output(c.x, c.sigma), name, c)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
@given(c=cases(dtypes=WIDE))
def test_score_is_tweedie(name: str, c: Case) -> None:
    d = denoiser(name, c.sigma_data)
    law_score_is_tweedie(d.score, d, d.output(c.x, c.sigma), name, c)


def test_score_keeps_the_digits_of_F() -> None:
    """float32 at sigma = 1e-3: an eps network's score is -F/sigma to some u."""
    c = case((64, 4), torch.tensor(1e-3), dtype=torch.float32)
    d = denoiser("eps")
    wanted = -exact(d.output(c.x, c.sigma)) / c.S
    assert_within(d.score(c.x, c.sigma), wanted, wanted, 8, torch.float32)


def shared(c: Case) -> tuple[Any, Any]:
    return 1 / (c.S**2 + c.SD**2) ** 0.5, log(c.S) / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
@given(c=cases(dtypes=WIDE))
def test_native_scales(name: str, c: Case) -> None:
    _, _, c_in, c_noise = TABLE[name](c.S, c.SD)
    law_network_sees_its_scales(denoiser(name, c.sigma_data), c, c_in, c_noise)
    choices = {"c_in": "native", "c_noise": "native"}
    law_network_sees_its_scales(denoiser(name, c.sigma_data, **choices), c, c_in, c_noise)


@pytest.mark.parametrize("name", TABLE)
def test_shared_scales(name: str) -> None:
    """Each on its own and both together."""
    c = fixed()
    _, _, c_in, c_noise = TABLE[name](c.S, c.SD)
    in_, noise = shared(c)
    law_network_sees_its_scales(denoiser(name, c_in="shared"), c, in_, c_noise)
    law_network_sees_its_scales(denoiser(name, c_noise="shared"), c, c_in, noise)
    law_network_sees_its_scales(denoiser(name, c_in="shared", c_noise="shared"), c, in_, noise)


@pytest.mark.slow
@given(c=cases(dtypes=WIDE))
def test_shared_scales_know_sigma_data(c: Case) -> None:
    """At sigma_data = 1/2 its square is its half: other values tell them apart."""
    d = denoiser("v", c.sigma_data, c_in="shared", c_noise="shared")
    law_network_sees_its_scales(d, c, *shared(c))


def test_scales_of_ones_own() -> None:
    c = fixed()
    d = denoiser("v", c_in=lambda s, sd: 1 / (sd + s), c_noise=lambda s, sd: s / sd)
    law_network_sees_its_scales(d, c, 1 / (c.SD + c.S), c.S / c.SD)


def test_shared_scales_change_only_what_the_network_sees() -> None:
    c = fixed()
    for name in TABLE:
        d = denoiser(name, c_in="shared", c_noise="shared")
        law_denoiser_is_its_algebra(d, d.output(c.x, c.sigma), name, c)


@pytest.mark.parametrize("sigma", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5, 0.5]).double()])
def test_a_scalar_sigma_is_one_for_every_sample(sigma: Any) -> None:
    x = draws((3, 2), 0)
    d = denoiser("edm")
    assert torch.equal(d(x, sigma), d(x, float64([0.5, 0.5, 0.5])))


@pytest.mark.slow
def test_each_sample_has_its_sigma() -> None:
    c = fixed()
    for name in TABLE:
        d = denoiser(name)
        whole = d(c.x, c.sigma)
        for i in range(len(whole)):
            alone = d(c.x[i : i + 1], c.sigma[i : i + 1])
            # tanh and log may be vectorised differently: one ulp of F, whose size is below 3.
            out = column(TABLE[name](c.S, c.SD)[1], c.x)
            terms = np.abs(exact(whole)) + 3 * np.abs(np.broadcast_to(out, whole.shape))
            assert_within(alone, exact(whole)[i : i + 1], terms[i : i + 1], 4)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4, 4), (2, 1, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_device_and_shape_are_those_of_x(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = draws(shape, 0, dtype)
    for name in TABLE:
        d = denoiser(name)
        for found in (d(x, 0.5), d.score(x, 0.5), d.output(x, 0.5)):
            assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, x.device)


def test_network_computes_in_its_own_dtype() -> None:
    """float32 weights take float32 input, whatever x is; the result has x's dtype."""
    p = default_registry().parameterization("edm")
    for inside in (torch.float32, torch.float64):
        d = testbed.Denoiser(Linear(3, inside), p, 0.5)
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            assert d(draws((2, 3), 0, dtype), 0.5).dtype == dtype


def test_condition_is_passed_through() -> None:
    d = denoiser("v")
    assert isinstance(d.network, Recorder)
    x, condition = draws((2, 3), 0), {"label": torch.tensor([1, 2])}
    for call in (d, d.score, d.output):
        call(x, 0.5, condition)
        assert d.network.calls[-1][2] is condition
        call(x, 0.5)
        assert d.network.calls[-1][2] is None


@pytest.mark.parametrize("name", TABLE)
def test_gradients_flow_to_the_weights_and_to_x(name: str) -> None:
    """For the weights dD/dW = c_out dF/dW; for the bias exactly c_out, summed over samples."""
    c = case((4, 3), float64([0.1, 0.5, 1.0, 5.0]))
    p = default_registry().parameterization(name)
    network = Linear(3, torch.float64)
    d = testbed.Denoiser(network, p, 0.5)
    x = c.x.requires_grad_()
    d(x, c.sigma).sum().backward()
    _, out, _, _ = TABLE[name](c.S, c.SD)
    out = np.broadcast_to(np.ravel(out), 4)
    wanted = np.broadcast_to(np.sum(out), 3)
    grad = network.layer.bias.grad
    assert grad is not None
    assert_within(grad, wanted, np.broadcast_to(np.sum(np.abs(out)), 3), 4 + K_COEFFICIENT)
    assert x.grad is not None
    assert bool((x.grad != 0).all())


def test_state_dict_holds_the_network_alone() -> None:
    p = default_registry().parameterization("edm")
    keys = testbed.Denoiser(Linear(3), p, 0.5).state_dict().keys()
    assert set(keys) == {"network.layer.weight", "network.layer.bias"}


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan")])
def test_sigma_data_must_be_positive(sigma_data: float) -> None:
    with pytest.raises(InputError, match="sigma_data"):
        denoiser("edm", sigma_data)


@pytest.mark.parametrize("choice", ["natve", 3])
def test_a_scale_is_native_shared_or_a_function(choice: Any) -> None:
    with pytest.raises(
        InputError, match=r"Unknown c_in .*native, shared, unit, vp\. A function may be given too"
    ):
        denoiser("edm", c_in=choice)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        denoiser("edm")(torch.ones(3, 3), torch.ones(2))
    with pytest.raises(ValueError, match="shape"):
        denoiser("edm")(torch.ones(3, 3), torch.ones(3, 1))
