"""Laws of the likelihood: the density that a probability-flow ODE carries, and its bits.

A law is a function of an implementation. It passes for ours, and fails for its mutants
(test_likelihood_mutants.py).
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.bounds import assert_within, exact, u
from helpers.strategies import draws, float64
from hypothesis import given
from hypothesis import strategies as st
from laws.likelihood import (
    BITS,
    CASES,
    GAUSSIAN,
    HIGH,
    LOW,
    MIXTURE,
    Bits,
    Measure,
    law_a_diagonal_is_exact_with_one_probe,
    law_a_plane_adds_only_what_is_outside,
    law_a_point_is_exact,
    law_converges_with_order_two,
    law_default_prior_is_that_of_samples,
    law_exact_divergence_is_the_oracle_s,
    law_hutchinson_has_no_bias,
    law_its_error_is_that_of_the_probes,
    noisy,
    normal_by_scipy,
)
from torch import Tensor

import testbed
from testbed import oracles
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.random import stream
from testbed.registry import default_registry
from testbed.sampling import likelihood
from testbed.sampling.likelihood import bits_per_dim, levels, log_likelihood, traces

PLAIN = [name for name in default_registry().names("parameterization")
         if default_registry().parameterization(name).affine]  # fmt: skip


# --- the density ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law",
    [law_a_point_is_exact, law_a_plane_adds_only_what_is_outside,
     law_default_prior_is_that_of_samples],
)  # fmt: skip
def test_density(law: Callable[[Measure], None]) -> None:
    law(log_likelihood)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_converges_with_order_two(case: str) -> None:
    law_converges_with_order_two(log_likelihood, case)


@pytest.mark.parametrize("case", CASES)
def test_the_oracle_s_own_density_is_scipy_s(case: str) -> None:
    """So that the gap of a study is against the truth."""
    oracle, truth = CASES[case]
    x = noisy(oracle, 6)
    found = oracle.log_density(x, LOW)
    assert_within(found, exact(truth(x, LOW)), exact(found.abs()) + 30, 100)


def test_the_density_integrates_to_one() -> None:
    """Of a D that is nobody's: the flow neither makes nor loses mass. In one dimension, by a sum.

    D = tanh(x)/(1 + sigma^2) is smooth, so the sum over equal cells converges faster than any
    power; what is left is the error of the ODE, a quarter of it at twice the steps.
    """
    x = torch.linspace(-9, 9, 721, dtype=torch.float64)[:, None]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(x) / (1 + sigma[:, None] ** 2)

    off = []
    for n in (64, 128):
        log_p = log_likelihood(denoise, x, levels(n, 0.2, 10.0), sigma_data=1.0).log_p
        off.append(abs(float(log_p.exp().sum() * 18 / 720) - 1))
    assert off[1] < 1e-4
    assert round(math.log2(off[0] / off[1])) == 2


# --- one denoiser in every form ------------------------------------------------------------------


def wrapped(name: str, oracle: Any, sigma_data: float, table: Any = None) -> testbed.Denoiser:
    """The Denoiser whose network gives the F of that parameterization for the oracle's D."""
    p = default_registry().parameterization(name)

    def network(scaled: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        sigma = torch.exp(4 * c_noise)
        x = scaled * torch.sqrt(sigma**2 + sigma_data**2)[:, None]
        return p.output(oracle.denoise(x, sigma), x, sigma, sigma_data=sigma_data)

    return testbed.Denoiser(network, p, sigma_data, "shared", "shared", table)


def condition(x: Tensor, sigmas: Tensor, sd: float) -> Tensor:
    """|dlog p| over the relative change of D or x that makes it, (B,): what rounding multiplies."""
    eta = 2.0**-26

    def moved(a: float, b: float) -> Tensor:
        return log_likelihood(
            lambda x, s: (1 + a) * MIXTURE.denoise((1 + b) * x, s) + a * x,
            x, sigmas, sigma_data=sd,
        ).log_p  # fmt: skip

    base = moved(0, 0)
    return ((moved(eta, 0) - base).abs() + (moved(0, eta) - base).abs()) / eta + base.abs()


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_equal_for_every_parameterization(name: str) -> None:
    sd, sigmas, x = 1.1, levels(24, 0.05, 20.0), noisy(MIXTURE, 4)
    want = log_likelihood(MIXTURE.denoise, x, sigmas, sigma_data=sd).log_p
    found = log_likelihood(wrapped(name, MIXTURE, sd), x, sigmas).log_p
    # F and back take some ten roundings each way; exp(4 c_noise) carries |4 c_noise| more.
    assert_within(found, exact(want), exact(condition(x, sigmas, sd)), 64)


@pytest.mark.slow
def test_a_table_is_never_asked_between_its_levels() -> None:
    table = default_registry().table("karras", n=40, low=0.05, high=20.0)
    sigmas = levels(24, 0.05, 20.0, table)
    assert set(sigmas.tolist()) <= set(table.sigmas.tolist())
    assert bool((sigmas.diff() > 0).all())
    assert sigmas[[0, -1]].tolist() == table.sigmas[[0, -1]].tolist()
    x = noisy(MIXTURE, 4)
    discrete, smooth = (
        log_likelihood(wrapped("v", MIXTURE, 1.1, one), x, sigmas).log_p for one in (table, None)
    )
    assert torch.equal(discrete, smooth)


@given(st.integers(1, 300), st.floats(1e-4, 1.0), st.floats(1.5, 1e4))
def test_levels_ascend_between_their_ends(steps: int, low: float, high: float) -> None:
    found = levels(steps, low, high)
    assert (found.shape, found.dtype) == ((steps + 1,), torch.float64)
    ratio = found.log().diff()
    assert_within(ratio, exact(torch.full_like(ratio, math.log(high / low) / steps)), 60.0, 8)
    # 10^t rounds t, at most 4 in size and multiplied by log 10.
    assert_within(found[[0, -1]], exact(float64([low, high])), exact(float64([low, high])), 16)


# --- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [law_exact_divergence_is_the_oracle_s, law_hutchinson_has_no_bias])
def test_traces(law: Callable[[Any], None]) -> None:
    law(traces)


@pytest.mark.parametrize(
    "law", [law_a_diagonal_is_exact_with_one_probe, law_its_error_is_that_of_the_probes]
)
def test_hutchinson(law: Callable[[Measure], None]) -> None:
    law(log_likelihood)


def test_probes_are_signs_that_the_generator_alone_decides() -> None:
    x = draws((7, 2, 3), 1)
    first, again = (likelihood.rademacher(5, x, stream(0, "v")) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (5, 7, 2, 3)
    assert set(first.flatten().tolist()) == {-1.0, 1.0}
    assert not torch.equal(first[:, 0], first[:, 1])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noisy(GAUSSIAN, 4)
    V = likelihood.rademacher(5, x, stream(0, "v"))
    whole = [traces(GAUSSIAN.denoise, x, 0.4, given) for given in (None, V)]
    monkeypatch.setattr(likelihood, "ROWS", 8)
    split = [traces(GAUSSIAN.denoise, x, 0.4, given) for given in (None, V)]
    for a, b in zip(whole, split, strict=True):
        assert_within(b, exact(a), exact(a.abs()) + 9, 12)


# --- shapes, dtypes, and what is refused ---------------------------------------------------------


def test_images_are_their_rows() -> None:
    x = noisy(oracles.Gaussian(torch.zeros(4).double(), torch.eye(4).double()), 3)
    image = oracles.Gaussian(torch.zeros(1, 2, 2).double(), torch.eye(4).double())
    sigmas = levels(8, LOW, 3.0)
    common = sigmas, image.log_density
    flat = log_likelihood(image.denoise, x, *common)
    shaped = log_likelihood(image.denoise, x.reshape(3, 1, 2, 2), *common)
    assert torch.equal(flat.log_p, shaped.log_p)
    assert shaped.log_p.shape == shaped.error.shape == (3,)


@pytest.mark.slow
def test_float32_is_asked_in_float32_and_summed_in_float64() -> None:
    """The denoiser's rounding enters by the condition of the density, u = 2^-24; nothing else."""
    seen = set()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.add((x.dtype, sigma.dtype))
        return MIXTURE.denoise(x, sigma)

    x, sigmas = noisy(MIXTURE, 4).float(), levels(24, LOW, HIGH)
    found = log_likelihood(denoise, x, sigmas, sigma_data=1.1)
    wanted = log_likelihood(MIXTURE.denoise, x.double(), sigmas, sigma_data=1.1)
    assert seen == {(torch.float32, torch.float64)}
    assert found.log_p.dtype == torch.float64
    bound = exact(condition(x.double(), sigmas, 1.1))
    assert_within(found.log_p, exact(wanted.log_p), bound, 8, torch.float32)
    assert u(torch.float32) == 2.0**-24


@pytest.mark.slow
def test_a_sample_is_measured_as_it_is_alone() -> None:
    x, sigmas = noisy(MIXTURE, 5), levels(10, LOW, HIGH)
    whole = log_likelihood(MIXTURE.denoise, x, sigmas, MIXTURE.log_density).log_p
    alone = [log_likelihood(MIXTURE.denoise, x[i : i + 1], sigmas, MIXTURE.log_density).log_p
             for i in range(5)]  # fmt: skip
    assert_within(whole, exact(torch.cat(alone)), exact(condition(x, sigmas, 1.1)), 20)


def test_neither_x_nor_the_weights_are_touched() -> None:
    network = torch.nn.Linear(2, 2).double()
    x = draws((3, 2), 1)
    before = x.clone()
    log_likelihood(lambda x, s: network(x), x, [0.1, 1.0, 2.0], sigma_data=1.0)
    assert torch.equal(x, before)
    assert x.grad is None
    assert not x.requires_grad
    assert network.weight.grad is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sigmas": [1.0]}, "two or more levels"),
        ({"sigmas": [1.0, 0.5]}, "ascend strictly"),
        ({"sigmas": [0.0, 0.5]}, "from above 0"),
        ({"sigmas": [0.5, math.inf]}, "to a finite one"),
        ({"sigmas": [0.5, math.nan]}, "ascend strictly"),
        ({"sigma_data": None}, "the default prior needs sigma_data"),
        ({"divergence": "hutchison"}, "Did you mean 'hutchinson'"),
        ({"divergence": "hutchinson"}, "generator = None"),
        (
            {"divergence": "hutchinson", "probes": 0, "generator": torch.Generator()},
            "probes = 0",
        ),
        ({"denoiser": lambda x, sigma: x.detach()}, "no gradient with respect to x"),
    ],
)
def test_what_has_no_likelihood_is_refused(given: dict[str, Any], said: str) -> None:
    full = {
        "denoiser": GAUSSIAN.denoise, "x": noisy(GAUSSIAN, 2), "sigmas": [0.1, 1.0],
        "sigma_data": 1.0,
    } | given  # fmt: skip
    with pytest.raises(InputError, match=said):
        log_likelihood(**full)


def test_a_table_without_two_levels_in_the_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"table 'karras' has 1 levels from 0\.04 to 0\.06"):
        levels(8, 0.04, 0.06, default_registry().table("karras", n=20, low=0.05, high=20.0))


# --- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", BITS)
def test_bits(law: Callable[[Bits], None]) -> None:
    law(bits_per_dim)


@pytest.mark.parametrize("quantum", [0.0, -1.0, math.inf, math.nan])
def test_no_bits_without_a_quantum(quantum: float) -> None:
    with pytest.raises(InputError, match="must be positive and finite"):
        bits_per_dim(torch.zeros(1), 2, quantum)


@pytest.mark.slow
def test_the_levels_of_a_sampler_turned_round_serve_too() -> None:
    sigmas = noise_levels.karras_sigmas(65, LOW, HIGH)[:-1].flip(0)
    x = noisy(GAUSSIAN, 4)
    found = log_likelihood(GAUSSIAN.denoise, x, sigmas, GAUSSIAN.log_density).log_p
    half = log_likelihood(GAUSSIAN.denoise, x, sigmas[::2], GAUSSIAN.log_density).log_p
    # The error of a method of second order is a third of what half the steps change; allow twice.
    assert bool(((found - normal_by_scipy(x, LOW)).abs() < 2 / 3 * (found - half).abs()).all())
