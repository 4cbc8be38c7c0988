"""Laws of the oracles, each a function of a case: an oracle, and the numbers it was made from."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import mp
from numpy.typing import NDArray
from scipy import integrate, stats
from torch import Tensor

from testbed.oracles import Empirical, Gaussian, Mixture

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
    """leave_out = i answers as the oracle of all points but i.

    A product below the smallest normal number is lost, and the score divides it by sigma^2.
    """
    lost = torch.finfo(x.dtype).tiny / min(sigma**2, 1)
    for i in (0, len(case.m) - 1):
        keep = np.arange(len(case.m)) != i
        rest = replace(case, pi=np.full(keep.sum(), 1 / keep.sum()), m=case.m[keep], S=case.S[keep])
        exact = truth(rest, x, sigma)
        for name in (*ANSWERS, "n_eff"):
            got = getattr(case.oracle, name)(x, sigma, torch.full((len(x),), i))
            agree(f"{name} without {i}", got, exact.value[name], exact.bound[name] + lost)


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


m, one = torch.zeros(2), torch.ones(1)
