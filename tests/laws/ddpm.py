"""Laws of the DDPM chain, of its evidence lower bound and of a learned variance."""

import itertools
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma, u
from helpers.published import DIFFUSERS
from helpers.strategies import draws, float64
from scipy import stats
from torch import Tensor, nn

import testbed
from testbed.diffusion import ddpm
from testbed.diffusion.ddpm import Chain, Normal
from testbed.diffusion.noise_tables import NoiseTable
from testbed.oracles import Gaussian
from testbed.random import stream
from testbed.registry import default_registry
from testbed.training.objective import Objective
from testbed.training.variational import Variational

Made = Callable[[Tensor], Chain]
sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)
LEVELS = {
    "ddpm": default_registry().table("ddpm", n=60).sigmas,
    "cosine": default_registry().table("cosine", n=30).sigmas,
    "karras": default_registry().table("karras", n=20).sigmas,
    "coarse": float64([0.1, 0.5, 1.0, 4.0]),
}


def law_steps_give_the_marginal(made: Made) -> None:
    """Step by step from x0, mean and variance are those of q(x_t | x0).

    A step multiplies the mean by a root with 6 roundings and the variance by its square, and adds
    beta, of 6: all terms of the variance are positive.
    """
    for levels in LEVELS.values():
        chain = made(levels)
        mean, one, variance = draws((3, 2), 1), torch.ones(1, 1).double(), exact(0)
        x0 = mean
        for t in range(len(levels)):
            factor = exact(chain.step(one, t).mean).item()
            mean = chain.step(mean, t).mean
            variance = factor**2 * variance + exact(chain.step(one, t).variance)
            wanted = chain.marginal(x0, t)
            assert_within(mean, exact(wanted.mean), exact(wanted.mean), 8 * t + 16)
            assert_within(wanted.variance, variance, variance, 16 * t + 16)


def law_marginal_is_printed(made: Made) -> None:
    """q(x_t | x0) = N(sqrt(abar) x0, 1 - abar) with abar = 1/(1 + sigma^2), with 50 digits."""
    x0 = draws((4, 3), 2)
    for levels in LEVELS.values():
        chain = made(levels)
        for t in (0, len(levels) // 2, len(levels) - 1):
            abar = 1 / (1 + exact(levels[t]) ** 2)
            found = chain.marginal(x0, t)
            wanted = sqrt(abar) * exact(x0)
            assert_within(found.mean, wanted, wanted, 8)
            assert_within(found.variance, 1 - abar, 1 - abar, 8)


def law_draws_have_the_marginal(made: Made) -> None:
    """Draws through all steps are distributed as the marginal says: Kolmogorov and Smirnov.

    Level: 1e-3 over 4 looks; seeded, so it holds always or never.
    """
    chain, generator = made(LEVELS["karras"][8:]), stream(0, "tests/chain")
    x0 = torch.full((20_000, 1), 0.7).double()
    x, looks = x0, (0, 3, 7, 11)
    for t in range(12):
        x = chain.step(x, t).sample(generator)
        if t in looks:
            # The published closed form, not the chain's own.
            s = float(chain.sigmas[t])
            z = (x - 0.7 / math.sqrt(1 + s * s)) / (s / math.sqrt(1 + s * s))
            assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3 / len(looks), t


def conditioned(mean: Any, covariance: Any, i: int, j: int, value: Any) -> tuple[Any, Any]:
    """Mean and variance of component i given component j of a Gaussian vector."""
    gain = covariance[i, j] / covariance[j, j]
    return mean[i] + gain * (value - mean[j]), covariance[i, i] - gain * covariance[j, i]


def law_posterior_is_bayes(made: Made) -> None:
    """q(x_{t-1} | x_t, x0) by conditioning the joint Gaussian of the whole path, with 50 digits.

    The path is x = A z + mean, one row of A for each step of the printed chain.
    """
    levels = LEVELS["coarse"]
    n, chain = len(levels), made(levels)
    abar = 1 / (1 + exact(levels) ** 2)
    beta = 1 - abar / np.concatenate([exact([1.0]), abar[:-1]])
    x0, x_t = 0.7, -1.3
    A, mean, last = mpmath.zeros(n, n), mpmath.zeros(n, 1), exact(x0)
    for t in range(n):
        kept = sqrt(1 - beta[t])
        for j in range(t):
            A[t, j] = kept * A[t - 1, j]
        A[t, t] = sqrt(beta[t])
        mean[t] = last = kept * last
    covariance = A * A.T
    for t in range(1, n):
        wanted, variance = conditioned(mean, covariance, t - 1, t, exact(x_t))
        for dtype in (torch.float64, torch.float32):
            numbers = (torch.tensor([[one]], dtype=dtype) for one in (x_t, x0))
            found = chain.posterior(*numbers, t)
            assert found.mean.dtype == dtype
            size = np.full((1, 1), exact(abs(x0) + abs(x_t)) * 2)
            assert_within(found.mean, np.full((1, 1), wanted), size, 24, dtype)
        assert_within(found.variance, variance, variance, 24)
    at_zero = chain.posterior(float64([[x_t]]), float64([[x0]]), 0)
    assert (float(at_zero.mean), float(at_zero.variance)) == (x0, 0.0)


def law_kl_and_density_are_torch_s(kind: type[Normal]) -> None:
    """KL and log-density of torch.distributions; variances near each other and far apart."""
    from torch import distributions

    p = kind(draws((5, 3), 1), draws((5, 3), 2).abs() + 0.1)
    for other in (draws((5, 3), 3).abs() + 0.1, 1.01 * p.variance, 30 * p.variance):
        q = kind(draws((5, 3), 4), other)
        theirs = [distributions.Normal(one.mean, one.variance.sqrt()) for one in (p, q)]
        wanted = distributions.kl_divergence(*theirs)
        r = p.variance / other
        size = (r + 1 + r.log().abs() + (p.mean - q.mean) ** 2 / other + wanted).sum(1)
        assert_within(p.kl(q), exact(wanted.sum(1)), exact(size), 32)
        x = draws((5, 3), 5)
        density = theirs[1].log_prob(x)
        size = ((x - q.mean) ** 2 / other + other.log().abs() + 2 + density.abs()).sum(1)
        assert_within(q.log_density(x), exact(density.sum(1)), exact(size), 32)


def signs(mean: float, variance: float) -> tuple[Tensor, Tensor]:
    """(x0, eps), (4, 1): all pairs of m +- sqrt(L) and +-1."""
    pairs = list(itertools.product((-1.0, 1.0), repeat=2))
    x0 = float64([[mean + math.sqrt(variance) * a] for a, _ in pairs])
    return x0, float64([[b] for _, b in pairs])


def expected(chain: Chain, denoiser: Any, x0: Tensor, eps: Tensor, variance: str) -> ddpm.Elbo:
    """The terms with this eps at every level."""
    with mock.patch.object(torch, "randn", return_value=eps):
        return chain.elbo(denoiser, x0, stream(0, "unused"), variance)


def law_bound_is_exact_on_the_stationary_chain(made: Made) -> None:
    """Data N(0, 1) and the large variance: the terms add up to -log N(x0; 0, 1) for every x0.

    The chain is stationary, its reverse steps have the variance beta (Ho et al. 2020, sec. 3.2).
    """
    oracle = Gaussian(torch.zeros(1), torch.eye(1))
    x0, eps = signs(0.3, 2.0)
    for levels in LEVELS.values():
        found = expected(made(levels), oracle.denoise, x0, eps, "large")
        total = found.total.reshape(2, 2).mean(1)
        wanted = (x0**2 + math.log(2 * math.pi)).reshape(2, 2)[:, 0] / 2
        size = sum(part.abs().sum() for part in found)
        # The decoder's error is divided by beta_0, the KL's difference of means by beta~.
        worst = 1 / (1 - float((levels[:-1] / levels[1:]).max()))
        assert_within(total, exact(wanted), exact(size), 64 * len(levels) * worst)


class ExactReverse:
    """D and the variance of p(x'|x) for x0 ~ N(m, L): beta~ + (1 - q^2)^2 Var[x0|x]."""

    def __init__(self, mean: float, variance: float) -> None:
        self.m, self.L = mean, variance

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.m + self.L / (self.L + sigma[:, None] ** 2) * (x - self.m)

    def posterior(self, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Normal:
        D, q2 = self(x, sigma), (sigma_next / sigma)[:, None] ** 2
        left = self.L * sigma[:, None] ** 2 / (self.L + sigma[:, None] ** 2)
        tilde = sigma_next[:, None] ** 2 * (1 - q2)
        return Normal(D + q2 * (x - D), (tilde + (1 - q2) ** 2 * left).expand_as(x))


def law_bound_with_the_exact_reverse_is_the_entropy(made: Made) -> None:
    """E[bound] = h(x0) + KL(p(x_{n-1}) || N(0, 1)) where every reverse step is exact."""
    for (m, L), levels in itertools.product(((0.5, 0.3), (-0.2, 2.5)), LEVELS.values()):
        found = expected(made(levels), ExactReverse(m, L), *signs(m, L), "learned")
        abar = 1 / (1 + float(levels[-1]) ** 2)
        v = abar * L + 1 - abar
        wanted = (math.log(2 * math.pi * L) + 1 + v - 1 - math.log(v) + abar * m * m) / 2
        size = sum(part.abs().sum() for part in found)
        worst = 1 / (1 - float((levels[:-1] / levels[1:]).max()))
        assert_within(found.total.mean(), exact(wanted), exact(size), 64 * len(levels) * worst)


def law_bound_is_above_and_closes_in(made: Made) -> None:
    """-log p < the bound in expectation; with the exact decoder its gap falls as 1/n.

    The decoder's own term does not: with beta~ of the second step it is off by the log of
    1 - sigma_0^2/sigma_1^2, which a finer table makes smaller.
    """
    m, L = 0.5, 0.3
    oracle = Gaussian(float64([m]), float64([[L]]))
    entropy = (math.log(2 * math.pi * L) + 1) / 2
    # Of the small variance the next order is still seen at n = 100, of the large one at no n.
    for variance, sizes in {"small": (200, 400), "large": (50, 100, 200)}.items():
        gaps = []
        for n in sizes:
            chain = made(default_registry().table("karras", n=n, low=1e-3).sigmas)
            found = expected(chain, oracle.denoise, *signs(m, L), variance)
            assert bool((found.matching.mean(1) > 0).all())
            assert float(found.total.mean()) > entropy
            s2 = float(chain.sigmas[0]) ** 2
            decoder = (math.log(2 * math.pi * L * s2 / (L + s2)) + 1) / 2
            assert float(found.reconstruction.mean()) > decoder
            others = found.total - found.reconstruction
            gaps.append(float(others.mean()) + decoder - entropy)
        for one, half in itertools.pairwise(gaps):
            assert one / half == pytest.approx(2, rel=0.1), gaps


BOUND_LAWS = [
    law_bound_is_exact_on_the_stationary_chain,
    law_bound_with_the_exact_reverse_is_the_entropy,
    law_bound_is_above_and_closes_in,
]


class Doubled(nn.Module):
    """[F, nu] with F = tanh(y) and nu = 0.7 cos(3 y) + c_noise/50, twice the channels of y."""

    def forward(self, y: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        shift = c_noise.reshape(-1, *[1] * (y.ndim - 1)).to(y.dtype) / 50
        return torch.cat([torch.tanh(y), 0.7 * torch.cos(3 * y) + shift], dim=1)


def few(*levels: float) -> NoiseTable:
    """A table of these levels."""
    return NoiseTable("few", lambda: float64(levels or (0.1, 0.5, 1.0, 4.0))).bound({})


Build = Callable[..., testbed.Denoiser]


def doubled(name: str, t: NoiseTable, sigma_data: float = 0.5) -> testbed.Denoiser:
    p = default_registry().parameterization(name)
    return testbed.Denoiser(
        Doubled(), p, sigma_data, c_noise="index", table=t, learned_variance=True
    )


def printed(F: Tensor, nu: Tensor, x: Any, D: Any, s: Any, t: Any, second: Any) -> Any:
    """(mean, variance) of x' in x = x_t/alpha, in the paper's words and with 50 digits."""
    abar, before = 1 / (1 + s**2), 1 / (1 + t**2)
    beta = 1 - abar / before
    tilde = beta * (1 - before) / (1 - abar)
    if t == 0:
        abar_2 = 1 / (1 + second**2)
        tilde = (1 - abar_2 / abar) * (1 - abar) / (1 - abar_2)
    mean = (sqrt(before) * beta * D + sqrt(1 - beta) * (1 - before) * sqrt(abar) * x) / (1 - abar)
    v = (exact(nu) + 1) / 2
    log = np.frompyfunc(mpmath.log, 1, 1)
    variance = np.frompyfunc(mpmath.exp, 1, 1)(v * log(beta) + (1 - v) * log(tilde))
    return mean / sqrt(before), variance / before


def law_posterior_is_printed(build: Build) -> None:
    """Mean of q(x'|x, x0 = D) and variance exp(v log beta + (1 - v) log beta~), with 50 digits.

    Nichol and Dhariwal 2021, eq. 15; at the first step beta~ is the second's.
    """
    x = 2 * draws((3, 4), 11)
    for levels in ((0.1, 0.5, 1.0, 4.0), (0.02, 0.025, 3.0)):
        t = few(*levels)
        for name in ("eps", "v", "edm"):
            d = build(name, t)
            for i, s in enumerate(levels):
                before = levels[i - 1] if i else 0.0
                second = levels[i + 1] if i + 1 < len(levels) else 1.0
                found = d.posterior(x, s)
                F, nu = d.network(d.inputs(float64([s] * 3))[0][:, None] * x,
                                  float64([i] * 3)).chunk(2, 1)  # fmt: skip
                D = exact(d.parameterization.denoise(F, x, s, sigma_data=0.5))
                wanted = printed(F, nu, exact(x), D, *map(exact, (s, before, second)))
                # 1 - abar/abar' loses nothing here, where it is a product: 12 roundings; a factor
                # e^(v log beta) has |log beta| of them too, and nu may be off by its own.
                size = exact(x.abs()) + np.abs(D)
                assert_within(found.mean, wanted[0], size, 24)
                assert_within(found.variance, wanted[1], wanted[1], 24 + 60)
                again = d.posterior(x, float64([s] * 3), before)
                assert torch.equal(again.mean, found.mean)
                assert torch.equal(again.variance, found.variance)


def objective(
    name: str = "eps", t: NoiseTable | None = None, vlb: float | None = 0.001, **more: Any
) -> Objective:
    r = default_registry()
    t = t or few()
    density = t.density(float(t.sigmas[0]), float(t.sigmas[-1]))
    parts = {"weighting": r.weighting("eps"), "loss": r.loss("l2"), **more}
    p = r.parameterization(name)
    return Objective(p, density=density, sigma_data=0.5, table=t, vlb=vlb, **parts)


Vlb = type[Variational]


def law_vlb_is_the_bound(kind: Vlb) -> None:
    """L_vlb is n times each term of Chain.elbo by Denoiser.posterior, per dimension.

    The first without log(2 pi beta~)/2, which no gradient sees.
    """
    for name in ("eps", "v", "edm", "x0"):
        d = doubled(name, few())
        assert d.table is not None
        chain, n = Chain(d.table.sigmas), 4
        ours = kind(d.parameterization, d.table.sigmas, 0.5)
        x0, eps = draws((5, 3), 1), draws((5, 3), 2)
        found = expected(chain, d, x0, eps, "learned")
        for t, s in enumerate(chain.sigmas):
            F, nu = d._halves(x0 + s * eps, s, None)
            assert nu is not None
            term = ours(F, nu, x0, eps, s.expand(5))
            wanted = found.matching[t - 1] / 3 if t else found.reconstruction / 3
            if t == 0:
                tilde, _ = ddpm.extremes(s, chain.before[0], chain.after[0])
                wanted = wanted - torch.log(2 * math.pi * tilde) / 2
            # The coefficients are float32, of 8 roundings; the largest, w, multiplies r.
            size = n * (wanted.abs() + 8)
            assert_within(term, exact(n * wanted), exact(size), 64, torch.float32)


def law_best_variance_is_the_known_one(kind: Vlb) -> None:
    """Gaussian data: the gradient with respect to nu vanishes at the variance of p(x'|x).

    That is beta~ + (1 - q^2)^2 Var[x0|x]; near it the gradient does not vanish. The mean over
    eps = +-1 is the expectation. Coefficients are float32: rounding leaves some u of the terms.
    """
    m, L = 0.0, 0.4
    x0, eps = signs(m, L)
    sigmas = few().sigmas
    p = default_registry().parameterization("eps")
    ours, exactly = kind(p, sigmas, 0.5), ExactReverse(m, L)
    chain = Chain(sigmas)
    for t, s in enumerate(sigmas):
        x, level = x0 + s * eps, s.expand(4)
        F = (x - exactly(x, level)) / s
        low, high = ddpm.extremes(s, chain.before[t], chain.after[t])
        known = exactly.posterior(x, level, chain.before[t].expand(4)).variance
        best = 2 * torch.log(known / low) / torch.log(high / low) - 1
        for off in (0.0, 0.3, -0.3):
            nu = (best + off).requires_grad_()
            (g,) = torch.autograd.grad(ours(F, nu, x0, eps, level).mean(), nu)
            scale = len(sigmas) * float(torch.log(high / low)) / 4
            error = 64 * gamma(1, torch.float32) * scale * 4
            total = float(g.sum())
            assert (abs(total) < error) if off == 0 else (total * off > 100 * error * abs(off))


def law_vlb_moves_nu_alone(kind: type[Objective]) -> None:
    """The gradient of L_vlb with respect to F is 0, bit for bit, and to nu it is not."""
    x0, eps = draws((8, 2, 3), 1, torch.float32), draws((8, 2, 3), 2, torch.float32)
    for name in ("eps", "v", "x0"):
        one = objective(name)
        fields = {key: getattr(one, key) for key in one.__dataclass_fields__}
        both, plain = kind(**fields), kind(**fields | {"vlb": None})
        sigma = one.sigma(torch.linspace(0.01, 0.99, 8))
        out = draws((8, 4, 3), 3, torch.float32).requires_grad_()
        F = out.detach().chunk(2, 1)[0].requires_grad_()
        (found,) = torch.autograd.grad(both(out, x0, eps, sigma).sum(), out)
        (wanted,) = torch.autograd.grad(plain(F, x0, eps, sigma).sum(), F)
        by_F, by_nu = found.chunk(2, 1)
        assert torch.equal(by_F, wanted)
        assert bool((by_nu != 0).all())
        # L_simple does not reach nu: without its share nu's gradient is vlb's own.
        nothing = kind(**fields | {"vlb": 0.0})
        (silent,) = torch.autograd.grad(nothing(out, x0, eps, sigma).sum(), out)
        assert not bool(silent.chunk(2, 1)[1].any())


L = 0.4
POSTERIOR = DIFFUSERS["ddpm_posterior"]


def law_posterior(later: int) -> None:
    """beta and beta~ of the linear table, whose betas the reference has in float32.

    beta is off by u of float32 then; beta~ = beta (1 - abar')/(1 - abar) by three times that, since
    1 - abar is a sum of terms with the relative error of their betas.
    """
    chain, t = Chain(default_registry().table("ddpm").sigmas), torch.tensor(POSTERIOR["t"]) - later
    x = torch.zeros(len(t), 1, dtype=torch.float64)
    small = chain.posterior(x, x, t).variance.flatten()
    for found, name, k in ((chain.beta[t], "large", 1), (small, "small", 3)):
        expected = float64(POSTERIOR[f"variance_fixed_{name}"])
        assert bool(((found - expected).abs() <= k * u(torch.float32) * expected).all())
