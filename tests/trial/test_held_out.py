"""The likelihood of held-out data in a study: dequantised data, metrics, and what is refused."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import studies
from helpers.bounds import assert_within, exact
from helpers.strategies import float64
from helpers.studies import SMALL
from scipy import stats
from torch import Tensor

import testbed
from testbed import oracles
from testbed.components import quantisation
from testbed.components.dataset import Data
from testbed.data import files
from testbed.errors import InputError
from testbed.metrics import likelihood
from testbed.random import stream
from testbed.registry import default_registry
from testbed.sampling.likelihood import bits_per_dim, levels, log_likelihood
from testbed.trial import worker
from testbed.trial.specs import Likelihood

# --- dequantisation ------------------------------------------------------------------------------


def law_cells_keep_their_values(dequantise: Callable[..., Tensor]) -> None:
    """Uniform over the cell around each value: rounding to the grid gives the value back.

    Kolmogorov and Smirnov's test of 60,000 offsets; its p is fixed by the stream.
    """
    values = torch.randint(17, (60_000, 1), generator=stream(0, "values")) / 8 - 1
    found = dequantise(values, 1 / 8, stream(1, "noise"))
    assert found.dtype == values.dtype
    offsets = ((found - values).double() * 8).flatten()
    # float32 rounds x of size 1 to 2^-24, half a millionth of a cell.
    assert float(offsets.abs().max()) <= 0.5 + 2.0**-20
    assert stats.kstest(offsets.numpy() + 0.5, "uniform").pvalue > 1e-3
    assert torch.equal(dequantise(values, 1 / 8, stream(1, "noise")), found)


def wrong_width(x: Tensor, quantum: float, generator: torch.Generator) -> Tensor:
    return x + (torch.rand(x.shape, generator=generator) - 0.5)


def wrong_place(x: Tensor, quantum: float, generator: torch.Generator) -> Tensor:
    return x + quantum * torch.rand(x.shape, generator=generator)


def wrong_shape(x: Tensor, quantum: float, generator: torch.Generator) -> Tensor:
    return x + quantum / math.sqrt(12) * torch.randn(x.shape, generator=generator)


def one_for_all(x: Tensor, quantum: float, generator: torch.Generator) -> Tensor:
    return x + quantum * (torch.rand(1, generator=generator) - 0.5)


def test_dequantisation() -> None:
    law_cells_keep_their_values(quantisation.dequantise)


@pytest.mark.parametrize("wrong", [wrong_width, wrong_place, wrong_shape, one_for_all])
def test_wrong_noise_is_rejected(wrong: Callable[..., Tensor]) -> None:
    with pytest.raises(AssertionError):
        law_cells_keep_their_values(wrong)


@pytest.mark.slow
def test_digits_have_a_quantum_and_may_be_dequantised() -> None:
    plain, smooth = files.digits(), files.digits(dequantised=True)
    assert (plain.quantum, plain.dequantised) == (1 / 8, False)
    assert (smooth.quantum, smooth.dequantised) == (1 / 8, True)
    for split in ("train", "test"):
        before, after = getattr(plain, split), getattr(smooth, split)
        assert after.dtype == torch.float32
        assert torch.equal(((after + 1) * 8).round() / 8 - 1, before)
        assert torch.equal(getattr(plain, f"{split}_labels"), getattr(smooth, f"{split}_labels"))
    # The noise adds quantum^2/12 to E|x0|^2/d, within five of its standard errors.
    added = smooth.train.double().square() - plain.train.double().square()
    error = float(added.std()) / math.sqrt(added.numel())
    assert abs(float(added.mean()) - 1 / 64 / 12) < 5 * error
    assert torch.equal(smooth.train, files.digits(dequantised=True).train)


def test_your_own_8_bit_numbers(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 3, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", image)
    common = {"path": str(tmp_path / "x.npy"), "scale": 1 / 127.5, "shift": -127.5}
    assert files.array(**common).quantum is None
    del common["scale"], common["shift"]
    assert files.array(**common).quantum == 2 / 255
    plain, smooth = files.array(**common), files.array(**common, dequantised=True)
    there, here = ((one.test.double() * 127.5 + 127.5).round() for one in (smooth, plain))
    assert torch.equal(there, here)
    assert not torch.equal(smooth.test, plain.test)
    with pytest.raises(InputError, match=r"quantum = 2, but the values are 1 apart"):
        files.array(**common, quantum=2.0)
    with pytest.raises(InputError, match="the data need their quantum"):
        files.array(**common, range="as_stored", dequantised=True)


@pytest.mark.parametrize("quantum", [0.0, -0.125, math.nan, math.inf])
def test_a_quantum_is_a_width(quantum: float) -> None:
    with pytest.raises(InputError, match="must be positive and finite"):
        Data(torch.ones(4, 2), torch.ones(2, 2), quantum=quantum)
    with pytest.raises(InputError, match="dequantised data need their quantum"):
        Data(torch.ones(4, 2), torch.ones(2, 2), dequantised=True)


# --- what is measured ----------------------------------------------------------------------------


def test_points_are_draws_of_the_density_that_is_measured() -> None:
    data = default_registry().dataset("mixture", dim=2)()
    x = likelihood.points(data, 50, 0.3)
    order = torch.randperm(len(data.test), generator=stream(0, "likelihood"))
    off = (x - data.test[order[:50]].double()) / 0.3
    assert stats.kstest(off.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(x, likelihood.points(data, 50, 0.3))


def test_quantised_points_are_dequantised_once() -> None:
    plain, smooth = files.digits(), files.digits(dequantised=True)
    x = likelihood.points(plain, 20, 0.3)
    off = (x + 1) * 8 - ((x + 1) * 8).round()
    assert off.abs().max() <= 0.5
    assert stats.kstest(off.flatten().numpy() + 0.5, "uniform").pvalue > 1e-3
    x = likelihood.points(smooth, 20, 0.3)
    rows = {row.numpy().tobytes() for row in smooth.test.double()}
    assert all(row.numpy().tobytes() in rows for row in x)


def exact_denoiser(oracle: Any, sigma_data: float, table: Any = None) -> testbed.Denoiser:
    """A Denoiser whose D is the oracle's."""
    p = default_registry().parameterization("x0")

    def network(scaled: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        sigma = torch.exp(4 * c_noise)
        return oracle.denoise(scaled * torch.sqrt(sigma**2 + sigma_data**2)[:, None], sigma)

    return testbed.Denoiser(network, p, sigma_data, "shared", "shared", table)


def measured(denoiser: testbed.Denoiser, data: Data, **changes: Any) -> Any:
    settings = {"samples": 400, "steps": 96, "divergence": "exact", "probes": 1} | changes
    return likelihood.held_out(denoiser, data, 0.02, 60.0, torch.device("cpu"), **settings)


def normals() -> tuple[Data, oracles.Gaussian]:
    """Data of one normal distribution, and another one."""
    data = default_registry().dataset("gaussian", dim=2)()
    other = oracles.Gaussian(float64([0.3, 0.0]), float64([[0.8, 0.2], [0.2, 0.5]]))
    return data, other


@pytest.mark.slow
def test_the_gap_of_a_wrong_gaussian_is_its_kl() -> None:
    """(tr(B^-1 A) - d + delta B^-1 delta + log det B/A)/2 over d, A and B noised at sigma_min."""
    data, other = normals()
    found = measured(exact_denoiser(other, data.sigma_data), data, samples=2000)
    p, noise = data.oracle, 0.02**2 * torch.eye(2, dtype=torch.float64)
    assert isinstance(p, oracles.Gaussian)
    A, B = ((g.Q * g.L) @ g.Q.mT + noise for g in (p, other))
    delta = other.m - p.m
    kl = (torch.trace(torch.linalg.solve(B, A)) - 2 + delta @ torch.linalg.solve(B, delta)
          + torch.logdet(B) - torch.logdet(A)) / 2  # fmt: skip
    gap, nll = found["nll_gap"], found["nll"]
    # Of the default prior and of the steps: below one error here, which the next test separates.
    assert abs(gap.value - float(kl) / 2) < 5 * gap.error
    h = (2 * math.log(2 * math.pi * math.e) + float(torch.logdet(A))) / 2
    assert abs(nll.value - (h + float(kl)) / 2) < 5 * nll.error
    assert gap.error < nll.error
    assert found.keys() == {"nll", "nll_gap"}


@pytest.mark.slow
def test_the_numbers_are_those_of_the_likelihood() -> None:
    data, other = normals()
    denoiser = exact_denoiser(other, data.sigma_data)
    found = measured(denoiser, data, samples=30)
    x, sigmas = likelihood.points(data, 30, 0.02), levels(96, 0.02, 60.0)
    assert float(sigmas[0]) == pytest.approx(0.02, rel=1e-14)
    log_p = log_likelihood(denoiser, x, sigmas).log_p
    gap = (data.oracle.log_density(x, float(sigmas[0])) - log_p) / 2
    for name, values in (("nll", -log_p / 2), ("nll_gap", gap)):
        assert found[name].value == pytest.approx(float(values.mean()), rel=1e-9)
        assert found[name].error == pytest.approx(float(stats.sem(values.numpy())), rel=1e-9)


@pytest.mark.slow
def test_quantised_data_have_bits_and_no_gap() -> None:
    """A Gaussian fitted to the digits, in bits: the closed form of its density at sigma_min."""
    data = files.digits()
    fit = oracles.Gaussian.fit(data.train.flatten(1))
    flat = dataclasses.replace(data, train=data.train.flatten(1), test=data.test.flatten(1),
                               oracle=fit)  # fmt: skip
    found = measured(exact_denoiser(fit, data.sigma_data), flat, samples=20, steps=48,
                     divergence="hutchinson", probes=2)  # fmt: skip
    x = likelihood.points(flat, 20, 0.02)
    bits = bits_per_dim(fit.log_density(x, float(levels(48, 0.02, 60.0)[0])), 64, 1 / 8)
    assert found.keys() == {"nll", "bits_per_dim"}
    both = math.hypot(found["bits_per_dim"].error, float(bits.std()) / math.sqrt(20))
    assert abs(found["bits_per_dim"].value - float(bits.mean())) < 5 * both
    nll = found["nll"]
    assert_within(
        float64(found["bits_per_dim"].value),
        exact((nll.value + math.log(8)) / math.log(2)), exact(abs(nll.value) + 3), 500,
    )  # fmt: skip


@pytest.mark.slow
def test_a_table_is_measured_at_its_own_levels() -> None:
    """A denoiser that is exact at its levels has no gap, though its D is constant between them."""
    data, _ = normals()
    assert data.oracle is not None
    table = default_registry().table("karras", n=200, low=0.0199, high=60.0)
    found = measured(exact_denoiser(data.oracle, data.sigma_data, table), data, samples=50)
    smooth = measured(exact_denoiser(data.oracle, data.sigma_data), data, samples=50)
    assert found["nll_gap"].value == pytest.approx(smooth["nll_gap"].value, abs=0.02)
    seen = []
    denoiser = exact_denoiser(data.oracle, data.sigma_data, table)
    denoiser.register_forward_pre_hook(lambda module, given: seen.append(float(given[1][0])))
    measured(denoiser, data, samples=4, steps=8)
    assert set(seen) <= set(table.sigmas.tolist())


# --- in a study ----------------------------------------------------------------------------------


planned = partial(studies.config, SMALL)


def test_nothing_is_measured_that_is_not_asked_for(tmp_path: Path) -> None:
    assert planned(tmp_path).evaluation.likelihood is None
    full = Likelihood(samples=64, steps=128, divergence="exact", probes=1)
    assert planned(tmp_path, "evaluation.likelihood={}").evaluation.likelihood == full
    some = planned(tmp_path, "evaluation.likelihood.samples=8").evaluation.likelihood
    assert some == full.model_copy(update={"samples": 8})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ('{name="mixture", dim=2}', {"nll", "nll_gap"}),
        ('"moons"', {"nll"}),
        ('"digits"', {"nll", "bits_per_dim"}),
        ('{name="digits", dequantised=true}', {"nll", "bits_per_dim"}),
    ],
)
def test_a_trial_has_its_likelihood_beside_the_rest(
    tmp_path: Path, dataset: str, names: set[str]
) -> None:
    few = {"steps": 2, "samples": 8, "draws": 8, "levels": 3}
    changes = ["training.steps=2", "training.points=1", f"dataset={dataset}"]
    changes += [f"evaluation.{key}={value}" for key, value in few.items()]
    found = {}
    for asked in ([], ['evaluation.likelihood={samples=4, steps=3, divergence="hutchinson"}']):
        config = planned(tmp_path, *changes, *asked)
        at = tmp_path / f"trial{len(asked)}"
        at.mkdir()
        assert worker.run(config, at) == "finished", (at / "error.txt").read_text()
        found[len(asked)] = json.loads((at / "result.json").read_text())
    without, beside = found[0], found[1]
    assert set(beside["metrics"]) - set(without["metrics"]) == names
    assert {k: v for k, v in beside["metrics"].items() if k not in names} == without["metrics"]
    for name in names:
        assert math.isfinite(beside["metrics"][name])
        assert beside["errors"][name]["error"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["samples=1"], "must be at least 2"),
        (["steps=1"], "must be at least 2"),
        (["probes=4"], 'are those of divergence = "hutchinson"'),
        (["probes=0"], "must be at least 1"),
        (['divergence="exakt"'], "must be 'exact' or 'hutchinson'"),
        (["samplez=3"], "unknown key. Did you mean 'samples'? Known: divergence, probes, samples"),
        (["samples=4001"], "evaluation.likelihood.samples = 4001: there are 4000 held-out samples"),
        (["samples=8", "dataset.dim=257"], 'takes 257 reverse passes a level, one for each'),
        (
            ["samples=8", 'table={name="ddpm", zero_terminal_snr=true}', "sigma_max=inf",
             'c_noise="index"', 'network="mlp_index"', 'density="table"',
             'evaluation.sampler="ddim"', 'evaluation.schedule="table"'],
            "evaluation.likelihood at sigma_max = infinity",
        ),
        (
            ["samples=8", 'table={name="karras", n=8}', "sigma_min=0.03", "sigma_max=0.2"],
            "table 'karras' has 1 levels from 0.03 to 0.2: a likelihood needs two",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_training(
    tmp_path: Path, changes: list[str], said: str
) -> None:
    own = {"samples", "steps", "probes", "divergence", "samplez"}
    words = [f"evaluation.likelihood.{c}" if c.partition("=")[0] in own else c for c in changes]
    (line,) = studies.refusal(SMALL, tmp_path, *words).splitlines()
    assert said in line


@pytest.mark.slow
def test_many_dimensions_go_by_hutchinson(tmp_path: Path) -> None:
    changes = "dataset.dim=257", 'evaluation.likelihood={divergence="hutchinson", probes=4}'
    likelihood = planned(tmp_path, *changes).evaluation.likelihood
    assert likelihood is not None
    assert likelihood.probes == 4
