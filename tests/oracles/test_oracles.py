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
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from helpers.paths import REFERENCE, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor

from testbed.oracles import Empirical, Estimate, Gaussian, Mixture, Oracle

Array = NDArray[np.float64]
U = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
ANSWERS = ("denoise", "score", "covariance", "covariance_trace", "log_density")

# Two-sided normal quantile for the Monte-Carlo laws: at most 1e3 statistics are looked at in this
# file, each with a fixed seed; by Bonferroni all stay below it with probability 0.999.
Z = float(stats.norm.isf(1e-6 / 2))


def gamma(k: int) -> float:
    return k * U[torch.float64] / (1 - k * U[torch.float64])


@dataclass(frozen=True)
class Case:
    """An oracle, and the mixture that it claims to be: pi (K,), m (K, d), S (K, d, d)."""

    oracle: Any
    pi: Array
    m: Array
    S: Array
    growth: float = 1.0

    @property
    def dim(self) -> int:
        return self.m.shape[1]


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def psd(seed: int, d: int, rank: int) -> Tensor:
    """Anisotropic, correlated, singular if rank < d."""
    A = random(seed, d, rank) * torch.logspace(0, -1, rank, dtype=torch.float64)
    return A @ A.mT


def gaussian(
    seed: int, d: int, rank: int | None = None, kind: Callable[..., Any] = Gaussian
) -> Case:
    m, S = 3 + random(seed, d), psd(seed + 1, d, rank or d)
    return Case(kind(m, S), np.ones(1), m.numpy()[None], S.numpy()[None])


def isotropic(seed: int, d: int, K: int, kind: Callable[..., Any] = Mixture) -> Case:
    m = 2 + 2 * random(seed, K, d)
    std, pi = 0.1 + random(seed + 1, K).abs(), 0.2 + random(seed + 2, K).abs()
    S = std[:, None, None] ** 2 * torch.eye(d, dtype=torch.float64)
    return Case(kind(m, std, pi), (pi / pi.sum()).numpy(), m.numpy(), S.numpy())


def full(
    seed: int, d: int, K: int, rank: int | None = None, kind: Callable[..., Any] = Mixture
) -> Case:
    m, pi = 2 + 2 * random(seed, K, d), 0.2 + random(seed + 2, K).abs()
    S = torch.stack([psd(seed + 3 + k, d, rank or d) for k in range(K)])
    oracle = kind(m, weights=pi, covariances=S)
    return Case(oracle, (pi / pi.sum()).numpy(), m.numpy(), S.numpy())


def empirical(
    seed: int,
    d: int,
    N: int,
    block: int = 4,
    offset: float = 10.0,
    kind: Callable[..., Any] = Empirical,
) -> Case:
    y = offset + random(seed, N, d)
    return Case(kind(y, block), np.full(N, 1 / N), y.numpy(), np.zeros((N, d, d)), 32.0)


@dataclass(frozen=True)
class Truth:
    """Answers by name, each (B, ...), and their bounds, (B,)."""

    value: dict[str, Array]
    bound: dict[str, Array]


def truth(case: Case, x: Tensor, sigma: float | Tensor) -> Truth:
    """All answers at x (B, *shape), by dense linear algebra with 40 digits."""
    rows = x.detach().double().reshape(len(x), -1)
    levels = torch.as_tensor(sigma, dtype=torch.float64).expand(len(x))
    with mp.workdps(40):
        found = [_truth(case, row.tolist(), float(s)) for row, s in zip(rows, levels, strict=True)]
    value = {name: np.stack([v[name] for v, _ in found]) for name in found[0][0]}
    bound = {name: np.array([b[name] for _, b in found]) for name in found[0][1]}
    return Truth(value, bound)


def _truth(case: Case, row: list[float], sigma: float) -> tuple[dict[str, Array], dict[str, float]]:
    d, K, s2 = case.dim, len(case.pi), mpmath.mpf(sigma) ** 2
    x, one = mpmath.matrix(row), mpmath.eye(d)
    solved: dict[bytes, tuple[Any, Any, Any]] = {}
    q, pull, mu, V, log_dets, logit = [], [], [], [], [], []
    for pi, m, S in zip(case.pi, case.m, case.S, strict=True):
        key = S.tobytes()
        if key not in solved:
            S_k = mpmath.matrix(S.tolist())
            C = S_k + s2 * one
            solved[key] = S_k, mpmath.inverse(C), mpmath.log(mpmath.det(C))
        S_k, P, log_det = solved[key]
        q.append(x - mpmath.matrix(m.tolist()))
        pull.append(P * q[-1])
        mu.append(mpmath.matrix(m.tolist()) + S_k * pull[-1])
        V.append(s2 * S_k * P)
        log_dets.append(log_det)
        square = (q[-1].T * pull[-1])[0]
        logit.append(mpmath.log(pi) - (square + log_det + d * mpmath.log(2 * mp.pi)) / 2)
    top = max(logit)
    log_p = top + mpmath.log(mpmath.fsum(mpmath.exp(t - top) for t in logit))
    r = [mpmath.exp(t - log_p) for t in logit]

    def mean(terms: list[Any]) -> Any:
        result = r[0] * terms[0]
        for weight, term in zip(r[1:], terms[1:], strict=True):
            result += weight * term
        return result

    D, score, V_bar = mean(mu), -mean(pull), mean(V)
    cov = mean([v + (m - D) * (m - D).T for v, m in zip(V, mu, strict=True)])
    value = {
        "denoise": _array(D)[:, 0],
        "score": _array(score)[:, 0],
        "covariance": _array(cov),
        "covariance_trace": np.array(float(sum(cov[i, i] for i in range(d)))),
        "log_density": np.array(float(log_p)),
        "n_eff": np.array(float(1 / mpmath.fsum(w**2 for w in r))),
    }

    R = np.array([float(w) for w in r])
    norm, pulls, mus = _norms(q), _norms(pull), _norms(mu)
    spread, swing = _norms([v - D for v in mu]), _norms([v + score for v in pull])
    log_det = np.abs(np.array([float(t) for t in log_dets]))
    eigenvalues = np.linalg.eigvalsh(case.S).clip(0)
    size, c = eigenvalues[:, -1], eigenvalues[:, 0] + sigma**2
    reach = float(np.linalg.norm(case.m, axis=1).max())

    k = gamma(4 * d + K + 12) * case.growth
    g = k * (1 + d * size / c)
    delta = g * (norm**2 / c + d + log_det + np.abs(np.log(case.pi)))
    shrink = size / (size + sigma**2) + d * (size / c) * (sigma**2 / c)
    d_mu = k * (mus + 2 * reach + shrink * norm)
    d_D = float(R @ (d_mu + delta * spread))
    d_V = k * size * (d * (sigma**2 / c) ** 2 + sigma**2 / (size + sigma**2))
    both, other = d_mu + d_D, _norms([v - V_bar for v in V])
    d_cov = float(R @ (d_V + 2 * both * spread + both**2 + g * spread**2))
    d_cov += float(R @ (delta * (spread**2 + other)))
    logs = abs(float(log_p)) + d * (abs(math.log(sigma)) + 1) + math.log(K)
    bound = {
        "denoise": d_D,
        "score": float(R @ (g * norm / c + delta * swing)),
        "covariance": d_cov,
        "covariance_trace": d * d_cov,
        "log_density": float(R @ delta) + k * logs,
        "n_eff": 4 * float(R**2 @ (delta + R @ delta)) * float(value["n_eff"]) ** 2,
        "autograd score": k * (float(mpmath.norm(x)) + float(R @ mus)) / sigma**2
        + gamma(8) * logs * float(R @ pulls),
        "autograd jacobian": float(
            R @ (k * shrink + (g + delta) * (mus + reach) * (swing + pulls))
        ),
    }
    return value, bound


def _array(matrix: Any) -> Array:
    return np.array([[float(entry) for entry in row] for row in matrix.tolist()])


def _norms(vectors: list[Any]) -> Array:
    return np.array([float(mpmath.norm(v)) for v in vectors])


def agree(name: str, got: Tensor, want: Array | Tensor, bound: Array) -> None:
    """|got - want| <= bound per sample, plus the rounding of got's dtype; NaN never agrees."""
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    rows = got.double().reshape(len(got), -1), want.reshape(len(got), -1)
    error, size = (rows[0] - rows[1]).abs().amax(1), rows[1].abs().amax(1)
    allowed = torch.as_tensor(bound) + U[got.dtype] * size + torch.finfo(got.dtype).tiny
    assert bool((error <= allowed).all()), f"{name}: off by {error}, allowed {allowed}"


def queries(case: Case, seed: int, sigma: float, far: float = 1.0) -> Tensor:
    """A point near each of two modes, `far` standard deviations off, and one midway (a tie)."""
    m = torch.from_numpy(case.m)
    ends = m[[0, -1]]
    std = torch.from_numpy(case.S).diagonal(dim1=1, dim2=2).sum(1).sqrt()[[0, -1], None] + sigma
    return torch.cat([ends + far * std * random(seed, 2, case.dim), ends.mean(0, keepdim=True)])


# ---------------------------------------------------------------------------------------- laws


def law_exact(
    case: Case, x: Tensor, sigma: float | Tensor, names: tuple[str, ...] = ANSWERS
) -> None:
    """Every answer is that of `truth`, to rounding."""
    exact = truth(case, x, sigma)
    for name in names:
        got = getattr(case.oracle, name)(x, sigma)
        assert got.dtype == x.dtype
        agree(name, got, exact.value[name], exact.bound[name])


def law_tweedie(case: Case, x: Tensor, sigma: float) -> None:
    """E[x0|x] = x + sigma^2 grad log p: denoise against autograd of log_density."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.oracle.log_density(x, sigma).sum(), x)
    bound = truth(case, x, sigma).bound
    allowed = bound["score"] + bound["autograd score"]
    agree("autograd of log_density", gradient, case.oracle.score(x, sigma).detach(), allowed)
    residual = (case.oracle.denoise(x, sigma) - x).detach() / sigma**2
    agree("Tweedie", gradient, residual, allowed + bound["denoise"] / sigma**2)


def law_jacobian(case: Case, x: Tensor, sigma: float) -> None:
    """Cov[x0|x] = sigma^2 dD/dx, by autograd of denoise."""
    x = x.clone().requires_grad_()
    D = case.oracle.denoise(x, sigma)
    rows = [torch.autograd.grad(D[:, i].sum(), x, retain_graph=True)[0] for i in range(case.dim)]
    bound = truth(case, x, sigma).bound
    allowed = bound["covariance"] + sigma**2 * bound["autograd jacobian"]
    cov = case.oracle.covariance(x, sigma).detach()
    agree("sigma^2 dD/dx", sigma**2 * torch.stack(rows, 1), cov, allowed)


def law_trace(case: Case, x: Tensor, sigma: float) -> None:
    """covariance_trace is the trace of covariance, which is symmetric and has no eigenvalue < 0."""
    bound = truth(case, x, sigma).bound
    cov = case.oracle.covariance(x, sigma)
    traces = cov.diagonal(dim1=1, dim2=2).sum(1)
    agree("trace", case.oracle.covariance_trace(x, sigma), traces, 2 * bound["covariance_trace"])
    agree("symmetry", cov, cov.mT, 2 * bound["covariance"])
    lowest = torch.linalg.eigvalsh(cov)[:, 0]
    assert bool((lowest >= -case.dim * torch.from_numpy(bound["covariance"])).all())


def law_leave_one_out(case: Case, x: Tensor, sigma: float) -> None:
    """leave_out = i answers as the oracle of all points but i."""
    for i in (0, len(case.m) - 1):
        keep = np.arange(len(case.m)) != i
        rest = replace(case, pi=np.full(keep.sum(), 1 / keep.sum()), m=case.m[keep], S=case.S[keep])
        exact = truth(rest, x, sigma)
        for name in (*ANSWERS, "n_eff"):
            got = getattr(case.oracle, name)(x, sigma, torch.full((len(x),), i))
            agree(f"{name} without {i}", got, exact.value[name], exact.bound[name])


def law_n_eff(case: Case, x: Tensor, sigma: float) -> None:
    """n_eff = 1/sum w^2."""
    exact = truth(case, x, sigma)
    agree("n_eff", case.oracle.n_eff(x, sigma), exact.value["n_eff"], exact.bound["n_eff"])


def law_quadrature(case: Case, x: Tensor, sigma: float) -> None:
    """D, Cov and p against scipy's cubature of p(x0) N(x; x0, sigma^2 I), one x at a time."""
    std = np.sqrt(np.array([np.linalg.eigvalsh(S)[-1] for S in case.S]))[:, None]
    low, high = (case.m - 10 * std).min(0), (case.m + 10 * std).max(0)
    parts = [stats.multivariate_normal(m, S) for m, S in zip(case.m, case.S, strict=True)]
    for row in x:
        noise = stats.multivariate_normal(row.numpy(), sigma**2 * np.eye(case.dim))

        def moments(x0: Array, row: Tensor = row, noise: Any = noise) -> Array:
            p = sum(pi * part.pdf(x0) for pi, part in zip(case.pi, parts, strict=True))
            y = x0 - row.numpy()
            squares = (y[:, :, None] * y[:, None, :]).reshape(len(y), -1)
            terms = np.concatenate([np.ones((len(y), 1)), y, squares], 1)
            return terms * np.reshape(p * noise.pdf(x0), (-1, 1))

        found = integrate.cubature(moments, low, high, rtol=1e-9, atol=1e-14)
        assert found.status == "converged"
        p, error = found.estimate[0], float(np.max(found.error) / found.estimate[0])
        mean = found.estimate[1 : 1 + case.dim] / p
        second = (found.estimate[1 + case.dim :] / p).reshape(case.dim, case.dim)
        reach = 1 + float(np.abs(mean).max())
        bound = {k: float(v[0]) for k, v in truth(case, row[None], sigma).bound.items()}
        bound["log_density"] += error
        bound["denoise"] += 2 * error * reach
        bound["covariance"] += error * (1 + np.abs(second).max()) + 4 * error * reach**2
        want = {
            "log_density": np.log(p),
            "denoise": row.numpy() + mean,
            "covariance": second - np.outer(mean, mean),
        }
        for name, value in want.items():
            got = getattr(case.oracle, name)(row[None], sigma)
            agree(name, got, np.asarray(value)[None], np.array([bound[name]]))


def grid(case: Case, sigma: float, fineness: int) -> Tensor:
    """Points for the trapezoid rule over p_sigma in one dimension, 12 standard deviations wide."""
    std = np.sqrt(case.S[:, 0, 0] + sigma**2)
    low, high = (case.m[:, 0] - 12 * std).min(), (case.m[:, 0] + 12 * std).max()
    n = int((high - low) / std.min() * fineness)
    return torch.linspace(float(low), float(high), n, dtype=torch.float64)[:, None]


def law_immse(case: Case, low: float = 0.2, high: float = 5.0) -> None:
    """I(low) - I(high) = int mmse/sigma^3 dsigma, one dimension: log_density against the trace.

    I(sigma) = h(x) - log(2 pi e sigma^2)/2 and dI/dsnr = mmse/2, snr = 1/sigma^2. The tolerance is
    what doubling the trapezoid's points and adding Gauss-Legendre nodes changes, plus rounding.
    """

    def differential_entropy(sigma: float, fineness: int) -> float:
        x = grid(case, sigma, fineness)
        log_p = case.oracle.log_density(x, sigma)
        return float(torch.trapezoid(-log_p * log_p.exp(), x[:, 0]))

    def information(sigma: float, fineness: int) -> float:
        noise = math.log(2 * math.pi * math.e * sigma**2) / 2
        return differential_entropy(sigma, fineness) - noise

    def integral(nodes: int, fineness: int) -> float:
        t, w = np.polynomial.legendre.leggauss(nodes)
        half = math.log(high / low) / 2
        total = 0.0
        for weight, sigma in zip(w, np.exp(math.log(low) + half * (t + 1)), strict=True):
            x = grid(case, float(sigma), fineness)
            p = case.oracle.log_density(x, float(sigma)).exp()
            mmse = torch.trapezoid(p * case.oracle.covariance_trace(x, float(sigma)), x[:, 0])
            total += half * weight * float(mmse) / sigma**2
        return total

    left = [information(low, f) - information(high, f) for f in (16, 32)]
    right = [integral(24, 16), integral(32, 32)]
    slack = abs(left[1] - left[0]) + abs(right[1] - right[0])
    slack += gamma(len(grid(case, low, 32))) * 4 * max(1.0, abs(right[1]))
    assert slack < 1e-6 * abs(right[1]), "the quadrature has not converged"
    assert abs(left[1] - right[1]) <= slack, f"{left[1]} against {right[1]}, allowed {slack}"


def law_mmse(case: Case, sigma: float) -> None:
    """mmse within its error of E x0^2 - E D^2, D and p by trapezoid over scipy's normal density."""

    def irreducible(fineness: int) -> float:
        std = np.sqrt(case.S[:, 0, 0])
        x = grid(case, sigma, fineness).numpy()
        x0 = np.arange(
            (case.m[:, 0] - 12 * std).min(),
            (case.m[:, 0] + 12 * std).max(),
            min(sigma, float(std.min())) / fineness,
        )
        prior = sum(
            pi * stats.norm.pdf(x0, m[0], s) for pi, m, s in zip(case.pi, case.m, std, strict=True)
        )
        joint = stats.norm.pdf(x, x0, sigma) * prior
        p, first = np.trapezoid(joint, x0), np.trapezoid(joint * x0, x0)
        second = np.trapezoid(prior * x0**2, x0)
        D2 = np.divide(first**2, p, out=np.zeros_like(p), where=p > 0)
        return float(second - np.trapezoid(D2, x[:, 0]))

    coarse, fine = irreducible(3), irreducible(6)
    estimate = case.oracle.mmse(sigma)
    slack = abs(fine - coarse) + gamma(2000) * float((case.pi @ (case.m**2 + case.S[:, 0])).sum())
    off = abs(float(estimate) - fine)
    assert off <= Z * float(estimate.error) + slack, f"{estimate} against {fine}"


def z_score(values: Tensor) -> Tensor:
    return values.mean(0) / (values.std(0) / math.sqrt(len(values)))


def law_mmse_of_dimensions(case: Case, sigma: float) -> None:
    """mmse = E|x0 - D|^2/d: a direct Monte-Carlo loss, draws of its own, any dimension."""
    generator = torch.Generator().manual_seed(7)
    x0 = case.oracle.sample(20_000, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    loss = (case.oracle.denoise(x0 + sigma * eps, sigma) - x0).square().mean(1)
    estimate = case.oracle.mmse(sigma)
    error = math.hypot(float(estimate.error), float(loss.std()) / math.sqrt(len(loss)))
    assert abs(float(estimate) - float(loss.mean())) <= Z * error


def law_stein(case: Case, sigma: float) -> None:
    """E[score] = 0 and E[x . score] = -d over x = x0 + sigma eps."""
    generator = torch.Generator().manual_seed(11)
    x0 = case.oracle.sample(20_000, generator)
    x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    score = case.oracle.score(x, sigma)
    assert bool((z_score(score).abs() <= Z).all())
    assert abs(float(z_score((x * score).sum(1) + case.dim))) <= Z


def law_sample(case: Case) -> None:
    """Mean and covariance of the draws, each entry within its standard error."""
    x0 = case.oracle.sample(20_000, torch.Generator().manual_seed(13))
    mean = case.pi @ case.m
    centred = case.m - mean
    cov = np.einsum("k,kij->ij", case.pi, case.S + centred[:, :, None] * centred[:, None, :])
    y = x0 - torch.from_numpy(mean)
    assert bool((z_score(y).abs() <= Z).all())
    assert bool((z_score(y[:, :, None] * y[:, None, :] - torch.from_numpy(cov)).abs() <= Z).all())


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


@every_case
@fast
@given(seed=SEEDS, d=st.integers(1, 3), sigma=SIGMAS, far=FAR, dtype=DTYPES)
def test_exact(make, seed, d, sigma, far, dtype):
    case = make(seed, d)
    law_exact(case, queries(case, seed, sigma, far).to(dtype), sigma)


@every_case
@fast
@given(seed=SEEDS, d=st.integers(1, 3), sigma=SIGMAS, far=FAR)
def test_derivatives(make, seed, d, sigma, far):
    case = make(seed, d)
    x = queries(case, seed, sigma, far)
    law_tweedie(case, x, sigma)
    law_jacobian(case, x, sigma)
    law_trace(case, x, sigma)


@every_case
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, levels=st.lists(SIGMAS, min_size=3, max_size=3, unique=True))
def test_sigma_per_sample(make, seed, levels):
    case = make(seed, 2)
    law_exact(case, queries(case, seed, 1.0), torch.tensor(levels, dtype=torch.float64))


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


@pytest.mark.parametrize("make", [CASES["full"], CASES["gaussian"]], ids=["full", "gaussian"])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_quadrature(make, d, sigma):
    case = make(5, d)
    law_quadrature(case, queries(case, 3, sigma)[:2], sigma)


@pytest.mark.parametrize("name", ["gaussian", "isotropic", "full"])
def test_one_dimensional_identities(name):
    case = CASES[name](17, 1)
    law_immse(case)
    for sigma in (0.3, 1.0, 3.0):
        law_mmse(case, sigma)


def test_immse_of_points():
    law_immse(empirical(3, 1, N=5, offset=1.0))


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


m, one = torch.zeros(2), torch.ones(1)
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
    "sigma: got 0.0": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 2), 0.0),
    r"x: got shape \(1, 1\)": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 1), 1.0),
    r"covariance: got shape \(1, 1\)": lambda: Gaussian(m, torch.eye(1)),
    "sigma: got -1.0": lambda: Gaussian(m, torch.eye(2)).denoise(torch.ones(1, 2), -1.0),
    "mean: got shape": lambda: Gaussian(torch.ones(0), torch.ones(0, 0)),
    "sigma: got nan": lambda: Gaussian(m, torch.eye(2)).mmse(math.nan),
    "sigma: got tensor": lambda: Mixture(m[None], one).mmse(torch.ones(0)),
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


@pytest.mark.parametrize("scheme", ["edm", "legacy_ddpm"])
@pytest.mark.parametrize("order", [1, 2], ids=["euler", "heun"])
def test_reference_trajectories(scheme, order):
    """End points of another library's samplers, run there on its own exact mixture denoiser.

    Each step adds rounding gamma_k (|x| + |D|), which the rest of the way multiplies by at most the
    norm of its Jacobian, here by finite differences.
    """
    stored = json.loads((REFERENCE / "sgm_reference.json").read_text())
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in stored["mixture"].items()}
    oracle = Mixture(tensors["means"], tensors["stds"], tensors["weights"])
    levels = stored["discretization"][scheme][str(stored["sampler_steps"])]
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
    x = torch.tensor(stored["x_unit"], dtype=torch.float64) * scale
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
    want = stored["sampler"][scheme]["euler" if order == 1 else "heun"]
    agree("end point", path[-1], np.array(want), slack.numpy())


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
