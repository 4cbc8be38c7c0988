"""Laws of the oracles. A law is a function of a case (an oracle and the numbers it was made from);
tests/mutants/test_oracle_mutants.py shows for each law an oracle that it rejects.

Where tolerances come from. `truth` answers with 40 digits, every oracle being a mixture
sum_k pi_k N(m_k, S_k), and bounds the rounding of a float64 computation of it to first order, with
gamma_k = k u/(1 - k u), u = 2^-53:

    q_k = x - m_k, C_k = S_k + sigma^2 I, whose smallest eigenvalue c_k the data may make small;
    g_k = gamma growth (1 + d |S_k|/c_k): LAPACK's eigenvalues are off by d u |S|, relative to c_k;
    delta_k = g_k (|q_k|^2/c_k + d + |log det C_k| + |log pi_k|): error of the k-th logit;
    what passes the softmax moves by sum_k r_k delta_k |value_k - mean|, each value_k by g_k times
    the absolute values of the terms added.

growth is 1, but 32 for Empirical, whose squared distances may lose a factor 16 by cancellation.
Autograd of a logsumexp has weights exp(logit - log p), which sum to 1 to gamma |log p| only.
An answer in float32 carries 2^-24 of its size on top.
"""

import itertools
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.published import SGM
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.oracles import (
    ANSWERS,
    Case,
    agree,
    empirical,
    full,
    gamma,
    gaussian,
    isotropic,
    law_exact,
    law_immse,
    law_jacobian,
    law_leave_one_out,
    law_mmse,
    law_mmse_of_dimensions,
    law_n_eff,
    law_quadrature,
    law_sample,
    law_stein,
    law_trace,
    law_tweedie,
    m,
    one,
    queries,
    random,
    truth,
)
from mpmath import mp
from scipy import stats
from torch import Tensor

from testbed.oracles import Empirical, Estimate, Gaussian, Mixture, Oracle, mixture

# ---------------------------------------------------------------------------------------- laws


# --------------------------------------------------------------------------------------- tests

SIGMAS = st.floats(-4, 4).map(lambda t: 10.0**t)
SEEDS = st.integers(0, 10**6)
FAR = st.sampled_from([0.0, 1.0, 50.0])
DTYPES = st.sampled_from([torch.float64, torch.float32])
CASES = {
    "gaussian": lambda seed, d: gaussian(seed, d),
    "singular gaussian": lambda seed, d: gaussian(seed, d, rank=max(1, d - 1)),
    "isotropic": lambda seed, d: isotropic(seed, d, K=3),
    "full": lambda seed, d: full(seed, d, K=3),
    "singular full": lambda seed, d: full(seed, d, K=2, rank=max(1, d - 1)),
    "empirical": lambda seed, d: empirical(seed, d, N=9),
}
every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
fast = settings(max_examples=40, deadline=None)


@pytest.mark.slow
@every_case
@fast
@given(seed=SEEDS, d=st.integers(1, 3), sigma=SIGMAS, far=FAR, dtype=DTYPES)
def test_exact(make, seed, d, sigma, far, dtype):
    case = make(seed, d)
    law_exact(case, queries(case, seed, sigma, far).to(dtype), sigma)


@pytest.mark.slow
@every_case
@fast
@given(seed=SEEDS, d=st.integers(1, 3), sigma=SIGMAS, far=FAR)
def test_derivatives(make, seed, d, sigma, far):
    case = make(seed, d)
    x = queries(case, seed, sigma, far)
    law_tweedie(case, x, sigma)
    law_jacobian(case, x, sigma)
    law_trace(case, x, sigma)


@pytest.mark.slow
@every_case
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, levels=st.lists(SIGMAS, min_size=3, max_size=3, unique=True))
def test_sigma_per_sample(make, seed, levels):
    case = make(seed, 2)
    law_exact(case, queries(case, seed, 1.0), torch.tensor(levels, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("make", [isotropic, full])
def test_a_mixture_answers_rows_apart_as_it_does_together(make, monkeypatch):
    monkeypatch.setattr(mixture, "TOGETHER", 2 * 3 * 2)  # two rows, and the third by itself
    case = make(0, 2, K=3)
    x = queries(case, 0, 1.0)
    law_exact(case, x, torch.tensor([0.1, 3.0, 40.0], dtype=torch.float64))
    law_tweedie(case, x, 0.5)
    law_jacobian(case, x, 0.5)


@pytest.mark.slow
@fast
@given(
    seed=SEEDS,
    d=st.integers(1, 3),
    N=st.integers(2, 9),
    block=st.integers(1, 10),
    sigma=SIGMAS,
    far=FAR,
)
def test_leave_one_out_and_n_eff(seed, d, N, block, sigma, far):
    case = empirical(seed, d, N, block)
    x = queries(case, seed, sigma, far)
    law_leave_one_out(case, x, sigma)
    law_n_eff(case, x, sigma)


def test_leave_one_out_is_per_sample_and_spares_duplicates():
    y = random(0, 5, 2)
    twice = Empirical(torch.cat([y, y[:1]]))
    out = torch.tensor([0, 3])
    D = twice.denoise(y[out], 1e-3, leave_out=out)
    assert torch.equal(D[0], twice.denoise(y[:1], 1e-3)[0])
    others = y[torch.tensor([0, 1, 2, 4])]
    nearest = others[(others - y[3]).norm(dim=1).argmin()]
    assert float((D[1] - nearest).norm()) <= 4 * gamma(20) * float(y.norm())


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0])
def test_empirical_near_ties_far_from_the_origin(sigma):
    """Points a few sigma apart at 1e3 from the mean: the expanded distance would lose them."""
    cloud = 3 * sigma * random(1, 6, 2)
    y = torch.cat([1e3 + cloud, cloud - 1e3])
    case = Case(Empirical(y, 5), np.full(12, 1 / 12), y.numpy(), np.zeros((12, 2, 2)), 32.0)
    law_exact(case, y[[0, 7]] + sigma * random(2, 2, 2), sigma)


@pytest.mark.slow
@pytest.mark.parametrize("make", [CASES["full"], CASES["gaussian"]], ids=["full", "gaussian"])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_quadrature(make, d, sigma):
    case = make(5, d)
    law_quadrature(case, queries(case, 3, sigma)[:2], sigma)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "isotropic", "full"])
def test_one_dimensional_identities(name):
    case = CASES[name](17, 1)
    law_immse(case)
    for sigma in (0.3, 1.0, 3.0):
        law_mmse(case, sigma)


@pytest.mark.slow
def test_immse_of_points():
    law_immse(empirical(3, 1, N=5, offset=1.0))


@pytest.mark.slow
@every_case
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_monte_carlo(make, sigma):
    case = make(23, 3)
    law_stein(case, sigma)
    law_sample(case)
    law_mmse_of_dimensions(case, sigma)


def test_mmse_shapes_and_reproducibility():
    oracle = isotropic(1, 2, 3).oracle
    levels = torch.tensor([[0.1, 1.0, 10.0], [0.2, 2.0, 20.0]])
    estimate = oracle.mmse(levels, draws=64)
    assert isinstance(estimate, Estimate)
    assert estimate.value.shape == estimate.error.shape == levels.shape
    assert estimate.value.dtype == estimate.error.dtype == torch.float64
    assert torch.equal(estimate.value, oracle.mmse(levels, draws=64).value)
    other = oracle.mmse(levels, draws=64, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(estimate.value, other.value)
    assert float(oracle.mmse(1.0, draws=64)) == float(estimate.value[0, 1])
    assert bool((gaussian(1, 3).oracle.mmse(levels).value.diff(dim=1) > 0).all())
    for each in (oracle, gaussian(1, 3).oracle):
        assert torch.equal(each.mmse(sigma=levels, draws=64).value, each.mmse(levels, draws=64)[0])
        with pytest.raises(TypeError, match="positional"):
            each.mmse(levels, 64)


@pytest.mark.parametrize("sigma", [1e-4, 1.0, 1e4])
def test_scipy_logpdf(sigma):
    """scipy works by an eigendecomposition of its own: the same conditioning, once more."""
    case = full(31, 4, 3, rank=2)
    x = queries(case, 2, sigma, far=3.0)
    cov = case.S + sigma**2 * np.eye(4)
    logs = [
        np.log(pi) + stats.multivariate_normal(m, C, allow_singular=False).logpdf(x.numpy())
        for pi, m, C in zip(case.pi, case.m, cov, strict=True)
    ]
    bound = 2 * truth(case, x, sigma).bound["log_density"]
    agree("scipy", case.oracle.log_density(x, sigma), np.logaddexp.reduce(logs), bound)


def test_fit_is_the_wiener_denoiser():
    """Least-squares affine denoiser of the data's own second moments, by the normal equations."""
    y, sigma = 5 + random(4, 40, 1, 2, 2) * torch.tensor([[1.0, 0.1], [3.0, 0.5]]), 0.7
    oracle = Gaussian.fit(y)
    assert oracle.shape == y.shape[1:]
    assert oracle.dim == 4
    flat = y.flatten(1).numpy()
    S = np.cov(flat.T, bias=True)
    case = Case(oracle, np.ones(1), flat.mean(0)[None], S[None])
    law_exact(case, y[:3] + sigma * random(5, 3, 1, 2, 2), sigma, ("covariance", "log_density"))
    x = y[:3] + sigma * random(5, 3, 1, 2, 2)
    W = np.linalg.solve(S + sigma**2 * np.eye(4), S).T
    D = flat.mean(0) + (x.flatten(1).numpy() - flat.mean(0)) @ W.T
    bound = 2 * truth(case, x, sigma).bound["denoise"]
    agree("Wiener", oracle.denoise(x, sigma).flatten(1), D, bound)


def test_fit_of_single_numbers():
    """Samples of shape (): mean 2 and variance (1 + 0 + 1)/3, to a rounding of each step."""
    oracle = Gaussian.fit(torch.tensor([1.0, 2.0, 3.0]))
    assert (oracle.shape, oracle.dim) == ((), 1)
    assert abs(float(oracle.m) - 2) <= gamma(4) * 2
    assert abs(float(oracle.L) - 2 / 3) <= gamma(8)


def test_a_mixture_of_single_numbers():
    """Points 0 and 1, std 0: D is the logistic function of the log-odds (2 x - 1)/(2 sigma^2)."""
    oracle = Mixture(torch.tensor([0.0, 1.0]), torch.zeros(2))
    assert (oracle.shape, oracle.dim) == ((), 1)
    x = torch.tensor([0.5, 0.9, -0.3], dtype=torch.float64)
    D = oracle.denoise(x, 0.7)
    # Some 32 roundings of logits below 8.
    for found, odds in zip(D.tolist(), ((2 * x - 1) / (2 * 0.7**2)).tolist(), strict=True):
        assert abs(found - 1 / (1 + math.exp(-odds))) <= gamma(32) * 8


def test_fit_keeps_digits_far_from_the_origin():
    """At 1e8 the mean is off by delta <= gamma_N max|y|, the covariance by delta^2: differences are
    taken before products. The rest is rounding: N + 4 of the sum and some d^2 of the eigenbasis."""
    y = 1e8 + random(4, 40, 3)
    oracle = Gaussian.fit(y)
    exact = np.frompyfunc(mp.mpf, 1, 1)(y.numpy())
    centred = exact - exact.sum(0) / len(y)
    S = (centred.T @ centred / len(y)).astype(float)
    found = ((oracle.Q * oracle.L) @ oracle.Q.mT).numpy()
    delta = gamma(len(y)) * float(y.abs().max())
    allowed = gamma(len(y) + 4 + 8 * 3**2) * np.trace(S) + delta**2
    assert np.abs(found - S).max() <= allowed < 1e-9


@pytest.mark.parametrize("make", [gaussian, lambda seed, d: full(seed, d, 3)], ids=["one", "three"])
def test_sample_has_the_distribution(make):
    """Kolmogorov and Smirnov's test of projections: a z-score of moments is blind to heavy tails,
    which widen the error with the value. Chance of a false alarm 1e-6 a projection."""
    case = make(29, 3)
    x0 = case.oracle.sample(20_000, torch.Generator().manual_seed(17)).numpy()
    for w in random(6, 4, 3).numpy():
        centre, std = case.m @ w, np.sqrt(np.einsum("i,kij,j->k", w, case.S, w))

        def cdf(t, centre=centre, std=std):
            return stats.norm.cdf((t[:, None] - centre) / std) @ case.pi

        assert stats.kstest(x0 @ w, cdf).pvalue > 1e-6


def test_an_oracle_keeps_its_own_numbers_and_answers_everything():
    """What is refused first: a parameter changed behind its back, an oracle without an answer."""
    mean = torch.zeros(2, dtype=torch.float64)
    oracle = Gaussian(mean, torch.eye(2))
    mean.fill_(9.0)
    assert torch.equal(oracle.m, torch.zeros(2, dtype=torch.float64))
    assert Oracle.__abstractmethods__ == {*ANSWERS, "sample"}


def test_error_of_a_sampled_mmse_is_the_standard_error():
    """scipy's, of the same draws; where nothing varies, one component, gamma_(d+8) of the value."""
    oracle = isotropic(1, 2, 3).oracle
    for draws in (2, 64):
        source = torch.Generator().manual_seed(5)
        x = oracle.sample(draws, source)
        x = x + torch.randn(x.shape, generator=source, dtype=torch.float64)
        error = stats.sem(oracle.covariance_trace(x, 1.0).numpy() / 2)
        found = oracle.mmse(1.0, draws=draws, generator=torch.Generator().manual_seed(5))
        assert abs(float(found.error) - error) <= gamma(64) * (error + float(found.value))
    single = Mixture(torch.ones(1, 3), torch.full((1,), 0.5))
    value = 0.5**2 / (1 + 0.5**2)
    # The mean of 64 equal numbers is off by gamma_64 at most, and so is their deviation.
    found = float(single.mmse(1.0, draws=64).error)
    assert gamma(3 + 8) * value * (1 - 1e-9) <= found <= gamma(3 + 8 + 64) * value


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_error_of_a_gaussian_mmse_is_its_rounding(sigma):
    """gamma_(d+8) of the value, and of max L through the derivative in each eigenvalue."""
    oracle = gaussian(3, 4).oracle
    L = oracle.L.clone().requires_grad_()
    value = (L * sigma**2 / (L + sigma**2)).mean()
    (slopes,) = torch.autograd.grad(value, L)
    wanted = gamma(4 + 8) * float((value + L.max() * slopes.sum()).detach())
    assert abs(float(oracle.mmse(sigma).error) - wanted) <= gamma(32) * wanted


@pytest.mark.slow
@every_case
def test_layout(make):
    """Any layout of x, any way to give sigma, the same bits; answers have x's shape and dtype."""
    case = make(41, 16)
    flat = queries(case, 6, 0.5).float()
    image, sigma = flat.reshape(3, 1, 4, 4), torch.full((3,), 0.5)
    for name in ANSWERS:
        answer = getattr(case.oracle, name)
        want = answer(flat, 0.5)
        assert want.dtype == torch.float32
        for s in (0.5, torch.tensor(0.5), sigma, sigma.double()):
            got = answer(image, s)
            assert got.shape == (image.shape if name in ("denoise", "score") else want.shape)
            assert torch.equal(got.reshape(want.shape), want)
    law_exact(case, flat, 0.5)


@every_case
def test_empty_batch(make):
    oracle = make(1, 3).oracle
    for sigma in (1.0, torch.ones(0)):
        shapes = [tuple(getattr(oracle, name)(torch.zeros(0, 3), sigma).shape) for name in ANSWERS]
        assert shapes == [(0, 3), (0, 3), (0, 3, 3), (0,), (0,)]


@pytest.mark.slow
@every_case
def test_image_shaped_parameters(make):
    case = make(2, 4)
    oracle = case.oracle
    if isinstance(oracle, Gaussian):
        shaped: Oracle = Gaussian(oracle.m.reshape(1, 2, 2), torch.from_numpy(case.S[0]))
    elif isinstance(oracle, Mixture):
        means, pi = torch.from_numpy(case.m).reshape(-1, 1, 2, 2), torch.from_numpy(case.pi)
        shaped = Mixture(means, weights=pi, covariances=torch.from_numpy(case.S))
    else:
        shaped = Empirical(torch.from_numpy(case.m).reshape(-1, 1, 2, 2))
    assert shaped.shape == (1, 2, 2)
    assert shaped.dim == 4
    draws = shaped.sample(7, torch.Generator().manual_seed(0))
    assert draws.shape == (7, 1, 2, 2)
    assert draws.dtype == torch.float64
    names = ("covariance", "covariance_trace", "log_density")
    law_exact(replace(case, oracle=shaped), draws, 0.3, names)
    flat = draws.flatten(1)
    for name in ("denoise", "score"):
        got, want = getattr(shaped, name)(draws, 0.3), getattr(shaped, name)(flat, 0.3)
        assert got.shape == draws.shape
        assert torch.equal(got.flatten(1), want)
    law_exact(replace(case, oracle=shaped), flat, 0.3)


@every_case
def test_to_moves_a_copy(make):
    oracle = make(1, 2).oracle
    moved = oracle.to("meta")
    assert moved is not oracle
    assert type(moved) is type(oracle)
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    assert tensors
    assert all(value.device.type == "meta" for value in tensors)
    assert moved.device.type == "meta"
    assert oracle.device.type == "cpu"
    with pytest.raises(ValueError, match=r"x: got .* on cpu, expected .* on meta"):
        moved.denoise(torch.zeros(1, 2), 1.0)


@every_case
def test_low_precision_settings_change_nothing(make):
    """float64 throughout: neither TF32/bf16 products nor autocast reach an oracle."""
    case = make(3, 16)
    x, before = queries(case, 4, 0.5).float(), torch.get_float32_matmul_precision()
    want = [getattr(case.oracle, name)(x, 0.5) for name in ANSWERS]
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            got = [getattr(case.oracle, name)(x, 0.5) for name in ANSWERS]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.slow
def test_second_derivatives_of_the_density():
    """Cov = sigma^2 (I + sigma^2 grad^2 log p), through the recomputed blocks of Empirical too."""
    for case in (full(3, 2, 3), empirical(3, 2, 9, offset=1.0)):
        x, sigma = queries(case, 8, 0.8), 0.8
        for row in x:

            def log_p(point: Tensor, oracle: Oracle = case.oracle) -> Tensor:
                return oracle.log_density(point[None], 0.8)[0]

            hessian = torch.autograd.functional.hessian(log_p, row)
            cov = sigma**2 * (torch.eye(2, dtype=torch.float64) + sigma**2 * hessian)
            bound = truth(case, row[None], sigma).bound
            allowed = bound["covariance"] + sigma**2 * bound["autograd jacobian"]
            allowed += sigma**2 * bound["autograd score"] * (1 + float(row.norm()))
            agree("hessian", cov[None], case.oracle.covariance(row[None], sigma), allowed)


BAD = {
    "mean": lambda: Gaussian(torch.tensor([0.0, math.nan]), torch.eye(2)),
    "covariance: got shape": lambda: Gaussian(m, torch.eye(3)),
    "covariance: got an asym": lambda: Gaussian(m, torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
    "covariance: got an eigen": lambda: Gaussian(m, torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
    "means": lambda: Mixture(torch.full((1, 2), math.inf), one),
    "means: got shape": lambda: Mixture(torch.tensor(1.0), one),
    "stds: got shape": lambda: Mixture(m[None], torch.ones(2)),
    "stds: got .*below 0": lambda: Mixture(m[None], -one),
    "stds, covariances: got neither": lambda: Mixture(m[None]),
    "stds, covariances: got both": lambda: Mixture(m[None], one, covariances=torch.eye(2)[None]),
    "weights: got .*above 0": lambda: Mixture(m[None], one, 0 * one),
    r"weights: got \[-1.0\], expected all above 0": lambda: Mixture(m[None], one, -one),
    "weights: got shape": lambda: Mixture(m[None], one, torch.ones(2)),
    "covariances: got shape": lambda: Mixture(m[None], covariances=torch.eye(2)),
    r"data: got shape \(\), expected at least 1": lambda: Gaussian.fit(torch.tensor(1.0)),
    "data: got torch.int64": lambda: Empirical(torch.ones(3, 2, dtype=torch.int64)),
    "data: got shape": lambda: Empirical(torch.ones(0, 2)),
    r"data: got shape \(\), expected \(N": lambda: Empirical(torch.tensor(1.0)),
    "data": lambda: Empirical(torch.tensor([[math.nan]])),
    "block": lambda: Empirical(torch.ones(3, 2), block=0),
    "x: got torch.int64": lambda: Gaussian(m, torch.eye(2)).score(torch.ones(1, 2).long(), 1.0),
    "x: got shape": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 3), 1.0),
    "sigma: got shape": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 2), torch.ones(2)),
    "sigma: got 0,": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 2), 0.0),
    r"x: got shape \(1, 1\)": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 1), 1.0),
    r"covariance: got shape \(1, 1\)": lambda: Gaussian(m, torch.eye(1)),
    "sigma: got -1,": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 2), -1.0),
    "mean: got shape": lambda: Gaussian(torch.ones(0), torch.ones(0, 0)),
    "sigma: got nan": lambda: Gaussian(m, torch.eye(2)).mmse(math.nan),
    "sigma: got none": lambda: Mixture(m[None], one).mmse(torch.ones(0)),
    "draws": lambda: Mixture(m[None], one).mmse(1.0, draws=1),
    "leave_out: got torch.int32": lambda: Empirical(torch.ones(3, 2)).score(
        torch.ones(1, 2), 1.0, torch.zeros(1, dtype=torch.int32)
    ),
    "leave_out: got .3.": lambda: Empirical(torch.ones(3, 2)).n_eff(
        torch.ones(1, 2), 1.0, torch.tensor([3])
    ),
    "leave_out: .* 1 point": lambda: Empirical(torch.ones(1, 2)).denoise(
        torch.ones(1, 2), 1.0, torch.tensor([0])
    ),
}


@pytest.mark.parametrize(("message", "call"), BAD.items(), ids=BAD.keys())
def test_what_is_refused(message, call):
    with pytest.raises(ValueError, match="^" + message):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["edm", "legacy_ddpm"])
@pytest.mark.parametrize("order", [1, 2], ids=["euler", "heun"])
def test_reference_trajectories(scheme, order):
    """End points of another library's samplers, run there on its own exact mixture denoiser.

    Each step adds rounding gamma_k (|x| + |D|), which the rest of the way multiplies by at most the
    norm of its Jacobian, here by finite differences.
    """
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in SGM["mixture"].items()}
    oracle = Mixture(tensors["means"], tensors["stds"], tensors["weights"])
    levels = SGM["discretization"][scheme][str(SGM["sampler_steps"])]
    steps = list(itertools.pairwise(levels))

    def step(x: Tensor, s: float, t: float) -> Tensor:
        slope = (x - oracle.denoise(x, s)) / s
        after = x + (t - s) * slope
        if order == 1 or t == 0:
            return after
        return x + (t - s) * (slope + (after - oracle.denoise(after, t)) / t) / 2

    # The legacy_ddpm levels are float32 there, and so is what follows from the first of them.
    top = np.float64(levels[0]) if scheme == "edm" else np.float32(levels[0])
    scale = float(np.sqrt(1 + top**2))
    x = torch.tensor(SGM["x_unit"], dtype=torch.float64) * scale
    path = [x]
    for s, t in steps:
        path.append(step(path[-1], s, t))
    slack = torch.zeros(len(x), dtype=torch.float64)
    for i, start in enumerate(path):
        growth = torch.zeros_like(slack)
        for axis in torch.eye(2, dtype=torch.float64):
            moved = start + 1e-6 * axis
            for s, t in steps[i:]:
                moved = step(moved, s, t)
            growth += (moved - path[-1]).norm(dim=1) / 1e-6
        slack += gamma(40) * growth * (start.norm(dim=1) + 4)
    want = SGM["sampler"][scheme]["euler" if order == 1 else "heun"]
    agree("end point", path[-1], np.array(want), slack.numpy())


@pytest.mark.slow
@pytest.mark.process
def test_memory_of_empirical():
    """60,000 x 784 with 256 queries: within 1 GB in all, torch included, and it does not grow with
    N by what one (256, N) matrix would."""
    program = """
import torch
from pathlib import Path
from testbed.oracles import Empirical
def peak():
    # Not ru_maxrss, which begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(found) * 1024
generator = torch.Generator().manual_seed(0)
y = torch.empty(60_000, 784).uniform_(generator=generator)
x = torch.randn(256, 784, generator=generator)
for n in (15_000, 60_000):
    assert Empirical(y[:n]).denoise(x, 1.0).isfinite().all()
    print(peak())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    small, large = map(int, done.stdout.split())
    assert large < 1e9
    assert large - small < 256 * 45_000 * 8
