"""Laws of the likelihood: the density that a probability-flow ODE carries, and its bits.

A law is a function of an implementation. It passes for ours, and fails for its mutants
(test_likelihood_mutants.py).
"""

import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, u
from helpers.strategies import draws, float64
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

import testbed
from testbed import oracles
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.random import stream
from testbed.registry import default_registry
from testbed.sampling import likelihood
from testbed.sampling.likelihood import Likelihood, bits_per_dim, levels, log_likelihood, traces

Measure = Callable[..., Likelihood]
Bits = Callable[[Tensor, int, float], Tensor]
MEAN = float64([0.7, -0.4, 0.1])
S = float64([[1.0, 0.3, 0.0], [0.3, 0.5, -0.1], [0.0, -0.1, 0.2]])
GAUSSIAN = oracles.Gaussian(MEAN, S)
MEANS = float64([[-1.0, 0.2], [0.8, -0.5]])
PARTS = float64([[[0.3, 0.1], [0.1, 0.2]], [[0.15, -0.05], [-0.05, 0.4]]])
WEIGHTS = float64([0.3, 0.7])
MIXTURE = oracles.Mixture(MEANS, weights=WEIGHTS, covariances=PARTS)
LOW, HIGH = 0.05, 20.0
PLAIN = [name for name in default_registry().names("parameterization")
         if default_registry().parameterization(name).affine]  # fmt: skip


def normal_by_scipy(x: Tensor, sigma: float) -> Tensor:
    """log N(x; m, S + sigma^2 I)."""
    C = S.numpy() + sigma**2 * np.eye(3)
    return float64(stats.multivariate_normal(MEAN.numpy(), C).logpdf(x.numpy()))


def mixture_by_scipy(x: Tensor, sigma: float) -> Tensor:
    """log sum_k pi_k N(x; m_k, S_k + sigma^2 I)."""
    parts = [
        stats.multivariate_normal(m, C + sigma**2 * np.eye(2)).logpdf(x.numpy())
        for m, C in zip(MEANS.numpy(), PARTS.numpy(), strict=True)
    ]
    return float64(special.logsumexp(np.log(WEIGHTS.numpy()) + np.stack(parts, 1), axis=1))


CASES: dict[str, tuple[Any, Callable[[Tensor, float], Tensor]]] = {
    "gaussian": (GAUSSIAN, normal_by_scipy),
    "mixture": (MIXTURE, mixture_by_scipy),
}


def noisy(oracle: oracles.Oracle, n: int, sigma: float = LOW) -> Tensor:
    return oracle.sample(n, stream(1, "x0")) + sigma * draws((n, oracle.dim), 5)


# --- the density ---------------------------------------------------------------------------------


def law_a_point_is_exact(measure: Measure) -> None:
    """Data of one point y: D = y, x is from N(y, sigma^2 I), and two levels give log p exactly.

    log p(x) = -(|x - y|^2/sigma^2 + d log(2 pi sigma^2))/2, to the rounding of a few sums.
    """
    y, x = draws((1, 3), 3), draws((5, 3), 4)
    point = oracles.Empirical(y)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return y + 0 * x

    found = measure(denoise, x, [0.5, 3.0], point.log_density)
    X, Y, s = exact(x), exact(y), exact(0.5)
    square = ((X - Y) ** 2).sum(1) / s**2
    log = exact(float(np.log(2 * np.pi * 0.25)))
    size = ((np.abs(X) + np.abs(Y)) ** 2).sum(1) / s**2 + 3 * abs(log) + 6 * np.log(6.0)
    assert_within(found.log_p, -(square + 3 * log) / 2, size, 40)
    assert found.error.tolist() == [0.0] * 5


def law_a_plane_adds_only_what_is_outside(measure: Measure) -> None:
    """D the nearest point of a plane of r dimensions: d - tr dD/dx = d - r at every level.

    Then x stays in the plane's coordinates, and log p(x_0) = prior(x_n) + (d - r) log(s_n/s_0).
    """
    q = torch.linalg.qr(draws((5, 2), 6)).Q
    x = draws((4, 5), 7)
    inside = x @ q @ q.T

    def prior(x: Tensor, sigma: float) -> Tensor:
        return -x.square().sum(1)

    found = measure(lambda x, sigma: x @ q @ q.T, x, [0.01, 0.3, 4.0], prior).log_p
    end = inside + 400 * (x - inside)
    wanted = -end.square().sum(1) + 3 * math.log(400)
    # end carries some u 400 (|x| + |inside|), prior twice that times |end|, in each dimension.
    size = (2 * 400 * (x.abs() + inside.abs()) * (1 + end.abs())).sum(1) + 3 * math.log(400)
    assert_within(found, wanted, size, 40)


def law_converges_with_order_two(measure: Measure, case: str) -> None:
    """To scipy's log density: doubling the steps divides the error by 4, in the limit."""
    oracle, truth = CASES[case]
    x = noisy(oracle, 6)
    errors = []
    for n in (64, 128, 256, 512):
        found = measure(oracle.denoise, x, levels(n, LOW, HIGH), oracle.log_density).log_p
        errors.append(float((found - truth(x, LOW)).abs().max()))
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert round(measured[-1]) == 2, measured
    distance = [abs(m - 2) for m in measured]
    assert distance[0] > distance[1] > distance[2], measured


def law_default_prior_is_that_of_samples(measure: Measure) -> None:
    """N(0, sigma_data^2 I): there the default prior is the exact density at every level."""
    own = oracles.Gaussian(torch.zeros(3).double(), 0.49 * torch.eye(3).double())
    x = noisy(own, 4)
    sigmas = levels(16, LOW, 2.0)
    given = measure(own.denoise, x, sigmas, own.log_density).log_p
    default = measure(own.denoise, x, sigmas, sigma_data=0.7).log_p
    assert_within(default, exact(given), exact(given.abs() + x.square().sum(1)) + 10, 60)


@pytest.mark.parametrize(
    "law",
    [law_a_point_is_exact, law_a_plane_adds_only_what_is_outside,
     law_default_prior_is_that_of_samples],
)  # fmt: skip
def test_density(law: Callable[[Measure], None]) -> None:
    law(log_likelihood)


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


@pytest.mark.parametrize("name", PLAIN)
def test_equal_for_every_parameterization(name: str) -> None:
    sd, sigmas, x = 1.1, levels(24, 0.05, 20.0), noisy(MIXTURE, 4)
    want = log_likelihood(MIXTURE.denoise, x, sigmas, sigma_data=sd).log_p
    found = log_likelihood(wrapped(name, MIXTURE, sd), x, sigmas).log_p
    # F and back take some ten roundings each way; exp(4 c_noise) carries |4 c_noise| more.
    assert_within(found, exact(want), exact(condition(x, sigmas, sd)), 64)


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


def law_exact_divergence_is_the_oracle_s(trace: Callable[..., Tensor]) -> None:
    """tr dD/dx = tr Cov[x0|x]/sigma^2, for every sample of its own."""
    x = noisy(MIXTURE, 5, 0.4)
    found = trace(MIXTURE.denoise, x, 0.4, None)
    wanted = MIXTURE.covariance_trace(x, 0.4) / 0.16
    size = MIXTURE.covariance(x, 0.4).abs().sum((1, 2)) / 0.16
    # A logit is a sum of some 10 terms; its rounding is relative to its largest, below 1e3 here.
    assert_within(found[0], exact(wanted), exact(size) * 1e3, 20)


def law_hutchinson_has_no_bias(trace: Callable[..., Tensor]) -> None:
    """The mean over all 2^d probes is the trace."""
    signs = float64(list(itertools.product([-1, 1], repeat=3)))
    x = noisy(GAUSSIAN, 4)
    V = signs[:, None, :].expand(8, 4, 3)
    found = trace(GAUSSIAN.denoise, x, 0.4, V).mean(0)
    wanted = GAUSSIAN.covariance_trace(x, 0.4) / 0.16
    assert_within(found, exact(wanted), exact(GAUSSIAN.covariance(x, 0.4).abs().sum((1, 2))), 500)


def law_a_diagonal_is_exact_with_one_probe(measure: Measure) -> None:
    """v_j^2 = 1: for D without interactions a single probe has the trace, not only on average."""
    own = oracles.Gaussian(MEAN, torch.diag(float64([1.0, 0.3, 0.01])))
    x, sigmas = noisy(own, 5), levels(12, LOW, 3.0)
    common = own.denoise, x, sigmas, own.log_density
    found = measure(*common, divergence="hutchinson", generator=stream(0, "v"))
    wanted = measure(*common).log_p
    assert_within(found.log_p, exact(wanted), exact(wanted.abs()) + 40, 60)
    assert bool(found.error.isnan().all())


def law_its_error_is_that_of_the_probes(measure: Measure) -> None:
    """z = (estimate - exact)/error of 400 samples with 24 probes each has Student's deviation.

    Its square has the mean nu/(nu - 2), nu = 23, up to 5 deviations of the mean; Rademacher sums
    have lighter tails than a normal, so that of a normal bounds it.
    """
    x, sigmas = noisy(GAUSSIAN, 400), levels(6, LOW, 3.0)
    common = GAUSSIAN.denoise, x, sigmas, GAUSSIAN.log_density
    found = measure(*common, divergence="hutchinson", probes=24, generator=stream(3, "v"))
    z = (found.log_p - measure(*common).log_p) / found.error
    nu = 23
    variance = nu / (nu - 2)
    spread = variance * math.sqrt((2 * (nu - 1) / (nu - 4) + 2) / 400)
    assert abs(float(z.square().mean()) - variance) < 5 * spread
    assert abs(float(z.mean())) < 5 * math.sqrt(variance / 400)


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


def law_equal_cells_take_log2_of_their_number(bits: Bits) -> None:
    """The uniform density over 16 cells of width q is (16 q)^-d: 4 bits a dimension."""
    for q, d in ((1 / 8, 64), (1.0, 3), (2.0, 1)):
        log_p = float64([-d * math.log(16 * q)])
        assert_within(bits(log_p, d, q), exact(float64([4.0])), 8 + abs(math.log2(q)) * 4, 8)


def law_bits_do_not_depend_on_the_unit(bits: Bits) -> None:
    """Values times a: the spacing is a q and the density loses d log a."""
    log_p = draws((5,), 1) * 30
    for a in (1e-3, 0.7, 255.0):
        moved = bits(log_p - 4 * math.log(a), 4, a / 8)
        size = exact(log_p.abs()) + 4 * abs(math.log(a)) * 2 + 4 * math.log(8)
        assert_within(moved, exact(bits(log_p, 4, 1 / 8)), size, 12)


def law_bits_bound_the_mass_of_a_cell(bits: Bits) -> None:
    """Mean bits over a cell are no less than -log2 of its mass, and close to it for small cells.

    For a normal density f and a cell of width q, the gap is q^2 Var/(2 log 2) of the slope, that
    is x^2 q^2/24/log 2 to leading order; the mass is scipy's.
    """
    q, middle = 1 / 16, 1.5
    points, weights = np.polynomial.legendre.leggauss(20)
    log_p = float64(stats.norm.logpdf(middle + q / 2 * points))[:, None].sum(1)
    mean = float((bits(log_p, 1, q) * float64(weights / 2)).sum())
    mass = stats.norm.cdf(middle + q / 2) - stats.norm.cdf(middle - q / 2)
    gap = mean + math.log2(mass)
    assert gap == pytest.approx(middle**2 * q**2 / 24 / math.log(2), rel=q)


BITS = [law_equal_cells_take_log2_of_their_number, law_bits_do_not_depend_on_the_unit,
        law_bits_bound_the_mass_of_a_cell]  # fmt: skip


@pytest.mark.parametrize("law", BITS)
def test_bits(law: Callable[[Bits], None]) -> None:
    law(bits_per_dim)


@pytest.mark.parametrize("quantum", [0.0, -1.0, math.inf, math.nan])
def test_no_bits_without_a_quantum(quantum: float) -> None:
    with pytest.raises(InputError, match="must be positive and finite"):
        bits_per_dim(torch.zeros(1), 2, quantum)


def test_the_levels_of_a_sampler_turned_round_serve_too() -> None:
    sigmas = noise_levels.karras_sigmas(65, LOW, HIGH)[:-1].flip(0)
    x = noisy(GAUSSIAN, 4)
    found = log_likelihood(GAUSSIAN.denoise, x, sigmas, GAUSSIAN.log_density).log_p
    half = log_likelihood(GAUSSIAN.denoise, x, sigmas[::2], GAUSSIAN.log_density).log_p
    # The error of a method of second order is a third of what half the steps change; allow twice.
    assert bool(((found - normal_by_scipy(x, LOW)).abs() < 2 / 3 * (found - half).abs()).all())
