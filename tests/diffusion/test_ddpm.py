"""Laws of the DDPM chain, of its evidence lower bound and of a learned variance.

Expectations are exact where a term is quadratic in eps: the mean over eps = -1 and +1 is that over
N(0, 1). The same holds for x0 = m +- sqrt(L) of Gaussian data.
"""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma, u
from helpers.paths import REFERENCE
from helpers.strategies import draws, float64
from scipy import stats
from torch import Tensor, nn

import testbed
from testbed.diffusion import ddpm, noise_levels
from testbed.diffusion.ddpm import Chain, Normal
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError
from testbed.oracles import Gaussian
from testbed.random import stream
from testbed.registry import default_registry
from testbed.study import plan, study_file
from testbed.training import batch
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Trainer, TrainingJob
from testbed.training.variational import Variational
from testbed.trial import restore, worker
from testbed.trial.config import Variance
from testbed.trial.folders import Folder

Made = Callable[[Tensor], Chain]
sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)
LEVELS = {
    "ddpm": default_registry().table("ddpm", n=60).sigmas,
    "cosine": default_registry().table("cosine", n=30).sigmas,
    "karras": default_registry().table("karras", n=20).sigmas,
    "coarse": float64([0.1, 0.5, 1.0, 4.0]),
}


# --- the chain -----------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "law",
    [
        law_steps_give_the_marginal,
        law_marginal_is_printed,
        law_draws_have_the_marginal,
        law_posterior_is_bayes,
    ],
)
def test_chain(law: Callable[[Made], None]) -> None:
    law(Chain)


def test_beta_is_the_table_s() -> None:
    """1 - abar_t/abar_{t-1} of levels that were made from betas; sigma^2 has t + 60 roundings."""
    betas = noise_levels.linear_betas(200)
    chain = Chain(noise_levels.ddpm_sigmas(betas))
    s2, b2 = chain.sigmas**2, chain.before**2
    grown = 1 + (1 + s2) / s2 * torch.log1p(s2)
    assert_within(chain.beta, exact(betas), (s2 + b2) / (1 + s2) * grown, 260)


def test_chain_takes_an_index_for_each_sample() -> None:
    chain, t = Chain(LEVELS["coarse"]), torch.tensor([0, 3, 1])
    x0, x = draws((3, 2, 2), 3), draws((3, 2, 2), 4)
    for i, one in enumerate(t.tolist()):
        for found, alone in (
            (chain.step(x, t), chain.step(x, one)),
            (chain.marginal(x0, t), chain.marginal(x0, one)),
            (chain.posterior(x, x0, t), chain.posterior(x, x0, one)),
        ):
            assert torch.equal(found.mean[i], alone.mean[i])
            assert float(found.variance[i]) == float(alone.variance)


@pytest.mark.parametrize("levels", [[1.0], [1.0, 0.5], [0.0, 1.0], [[1.0, 2.0]], [1.0, math.nan]])
def test_what_is_no_chain_is_refused(levels: Any) -> None:
    with pytest.raises(InputError, match="a chain"):
        Chain(float64(levels))


# --- diffusers -----------------------------------------------------------------------------------


def diffusers(**options: Any) -> Any:
    pytest.importorskip("diffusers")
    from diffusers import DDPMScheduler

    return DDPMScheduler(clip_sample=False, prediction_type="sample", **options)


def lost(t: int, chain: Chain) -> tuple[float, float]:
    """Relative errors of 1 - abar_t and of beta_t in float32: abar is a product of t + 1 factors,
    each with two roundings."""
    e = 2 * (t + 4) * u(torch.float32)
    return e / float((chain.sigmas**2 * chain.abar)[t]), 3 * e / float(chain.beta[t])


@pytest.mark.parametrize("t", [0, 1, 2, 37, 500, 999])
def test_chain_is_diffusers(t: int) -> None:
    """add_noise, the mean of a step and both fixed variances, to its float32."""
    other, chain = diffusers(), Chain(default_registry().table("ddpm").sigmas)
    x0, eps, x_t = (draws((4, 3), i, torch.float32) for i in range(3))
    of_noise, of_beta = lost(t, chain)
    size = exact(x0.abs() + eps.abs() + x_t.abs())
    marginal = chain.marginal(x0, t)
    noised = marginal.mean + marginal.variance.sqrt().float() * eps
    found = other.add_noise(x0, eps, torch.tensor(t))
    bound = size * (of_noise + 2 * (t + 8) * u(torch.float32))
    assert_within(noised, exact(found), 0, 1, plus=bound)
    where = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with mock.patch(where, return_value=0 * x0):
        mean = other.step(x0, t, x_t).prev_sample
    # beta/(1 - abar) and (1 - abar')/(1 - abar), each up to 1.
    share = of_noise + of_beta + (lost(t - 1, chain)[0] if t else 0)
    posterior = chain.posterior(x_t, x0, t)
    assert_within(posterior.mean, exact(mean), 0, 1, plus=size * (2 * share + 1e-6))
    large = float(other._get_variance(t, variance_type="fixed_large"))
    assert large == pytest.approx(float(chain.beta[t]), rel=of_beta)
    if t:
        tilde = float(other._get_variance(t, variance_type="fixed_small"))
        assert tilde == pytest.approx(float(posterior.variance), rel=2 * share)


# --- Gaussians -----------------------------------------------------------------------------------


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


def test_kl_and_density_are_torch_s() -> None:
    law_kl_and_density_are_torch_s(Normal)


# --- the evidence lower bound --------------------------------------------------------------------


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

    def posterior(self, x: Tensor, sigma: Tensor, following: Tensor) -> Normal:
        D, q2 = self(x, sigma), (following / sigma)[:, None] ** 2
        left = self.L * sigma[:, None] ** 2 / (self.L + sigma[:, None] ** 2)
        tilde = following[:, None] ** 2 * (1 - q2)
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
    for variance in ("small", "large"):
        gaps = []
        for n in (200, 400, 800):
            chain = made(default_registry().table("karras", n=n, low=1e-3).sigmas)
            found = expected(chain, oracle.denoise, *signs(m, L), variance)
            assert bool((found.matching.mean(1) > 0).all())
            assert float(found.total.mean()) > entropy
            s2 = float(chain.sigmas[0]) ** 2
            decoder = (math.log(2 * math.pi * L * s2 / (L + s2)) + 1) / 2
            assert float(found.reconstruction.mean()) > decoder
            others = found.total - found.reconstruction
            gaps.append(float(others.mean()) + decoder - entropy)
        assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1), gaps
        assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1), gaps


BOUND_LAWS = [
    law_bound_is_exact_on_the_stationary_chain,
    law_bound_with_the_exact_reverse_is_the_entropy,
    law_bound_is_above_and_closes_in,
]


@pytest.mark.parametrize("law", BOUND_LAWS)
def test_bound(law: Callable[[Made], None]) -> None:
    law(Chain)


def test_bound_of_draws_is_that_in_expectation() -> None:
    """With a generator: 4096 samples of N(0, I) in 3 dimensions, within 5 standard errors."""
    oracle = Gaussian(torch.zeros(3), torch.eye(3))
    x0 = oracle.sample(4096, stream(0, "tests/elbo/data"))
    found = Chain(LEVELS["karras"]).elbo(oracle.denoise, x0, stream(0, "tests/elbo"), "large")
    assert found.reconstruction.shape == found.prior.shape == (4096,)
    assert found.matching.shape == (19, 4096)
    off = found.total + oracle_log_density(x0)
    assert abs(float(off.mean())) < 5 * float(off.std()) / 64


def oracle_log_density(x0: Tensor) -> Tensor:
    return -(x0**2 + math.log(2 * math.pi)).sum(1) / 2


def test_an_unknown_variance_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'small'"):
        Chain(LEVELS["coarse"]).elbo(lambda x, s: x, draws((2, 1), 1), stream(0, "a"), "smal")
    with pytest.raises(InputError, match="from a denoiser that learns one"):
        Chain(LEVELS["coarse"]).elbo(lambda x, s: x, draws((2, 1), 1), stream(0, "a"), "learned")


# --- a learned variance --------------------------------------------------------------------------


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


def test_posterior_is_printed() -> None:
    law_posterior_is_printed(doubled)


def test_posterior_of_a_longer_step() -> None:
    """From 4 to 0.5: beta = 1 - abar_t/abar_prev of the two levels, as for a subsequence."""
    d, x = doubled("v", few()), 2 * draws((3, 4), 11)
    found = d.posterior(x, 4.0, 0.5)
    F, nu = d._halves(x, 4.0, None)
    assert nu is not None
    D = exact(d(x, 4.0))
    wanted = printed(F, nu, exact(x), D, exact(4.0), exact(0.5), exact(1.0))
    assert_within(found.mean, wanted[0], exact(x.abs()) + np.abs(D), 24)
    assert_within(found.variance, wanted[1], wanted[1], 84)


@pytest.mark.parametrize("t", [1, 5, 300, 999])
def test_posterior_is_diffusers(t: int) -> None:
    """variance_type = "learned_range" of a network [F, nu] on the linear table, to its float32."""
    other, d = (
        diffusers(variance_type="learned_range"),
        doubled("x0", default_registry().table("ddpm")),
    )
    assert d.table is not None
    chain = Chain(d.table.sigmas)
    x = 2 * draws((3, 4), 11)
    nu = d._halves(x, d.table.sigmas[t], None)[1]
    assert nu is not None
    log_variance = other._get_variance(t, predicted_variance=nu)
    found = d.posterior(x, d.table.sigmas[t])
    theirs = torch.log(found.variance / (1 + chain.before[t] ** 2))
    # Relative errors of beta and beta~ add, with weights v and 1 - v of size below 3.
    share = lost(t, chain)[0] + lost(t, chain)[1] + lost(t - 1, chain)[0]
    assert float((theirs - log_variance).abs().max()) < 6 * share


def test_a_denoiser_without_one_says_so() -> None:
    p = default_registry().parameterization("v")
    plain = testbed.Denoiser(Doubled(), p, 0.5, table=few())
    with pytest.raises(InputError, match="from a denoiser that learns one"):
        plain.posterior(draws((2, 2), 1), 1.0)
    with pytest.raises(InputError, match="a learned variance is that of a step of a table"):
        testbed.Denoiser(Doubled(), p, 0.5, learned_variance=True)
    same = lambda y, c, k: y  # noqa: E731
    single = testbed.Denoiser(same, p, 0.5, table=few(), learned_variance=True)
    with pytest.raises(InputError, match="twice as many channels"):
        single(draws((2, 2), 1), 1.0)
    for following in (1.0, 2.0, -0.5):
        with pytest.raises(InputError, match="following = "):
            doubled("v", few()).posterior(draws((2, 2), 1), 1.0, following)


def test_the_first_half_is_F() -> None:
    """D and score are those of the same network without nu."""

    class First(Doubled):
        def forward(self, y: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
            return super().forward(y, c_noise).chunk(2, 1)[0]

    d, x = doubled("v", few()), draws((3, 2, 4, 4), 12)
    p = default_registry().parameterization("v")
    plain = testbed.Denoiser(First(), p, 0.5, c_noise="index", table=few())
    assert torch.equal(d(x, 0.5), plain(x, 0.5))
    assert torch.equal(d.score(x, 0.5), plain.score(x, 0.5))
    assert d.posterior(x, 0.5).variance.shape == x.shape


# --- L_vlb ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("law", [law_vlb_is_the_bound, law_best_variance_is_the_known_one])
def test_vlb(law: Callable[[Vlb], None]) -> None:
    law(Variational)


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


def test_vlb_moves_nu_alone() -> None:
    law_vlb_moves_nu_alone(Objective)


@pytest.mark.parametrize("name", ["eps", "v", "x0", "edm"])
def test_simple_is_the_eps_loss_over_uniform_t(name: str) -> None:
    """lambda = 1/sigma^2 with sigma from the table, uniform: E_t |eps_hat - eps|^2 per dimension
    (Ho et al. 2020, eq. 14), whatever the network is asked for; stratified u has every t equally
    often."""
    t = default_registry().table("ddpm", n=20)
    one = objective(name, t, None)
    sigma = one.sigma((torch.arange(40, dtype=torch.float64) + 0.5) / 40)
    assert torch.equal(sigma, t.sigmas.repeat_interleave(2))
    x0, eps, F = (draws((40, 3), i) for i in range(3))
    x = x0 + sigma[:, None] * eps
    p = one.parameterization
    hat = testbed.convert(F, p, "eps", x=x, sigma=sigma, sigma_data=0.5)
    wanted = ((hat - eps) ** 2).mean(1)
    found = one(F, x0, eps, sigma)
    # k in float32; the residual's terms |a x0| + |b eps| + |F|, times |c_out|/sigma.
    a, b = p.pair_weights(sigma, sigma_data=0.5)
    out = p.coefficients(sigma, sigma_data=0.5).out / sigma
    size = (a[:, None] * x0).abs() + (b[:, None] * eps).abs() + F.abs()
    assert_within(found, exact(wanted), exact((out[:, None] * size).square().mean(1)), 24,
                  torch.float32)  # fmt: skip


def test_the_levels_are_those_of_the_density() -> None:
    """A table cut by sigma_max is a chain of what is left."""
    t = default_registry().table("ddpm")
    one = replace(objective("eps", t), density=t.density(0.02, 80.0))
    assert float(one.levels.max()) < 80 < float(t.sigmas.max())
    assert len(one.variational.rows) == len(one.levels) < 1000


# --- training ------------------------------------------------------------------------------------


def test_two_outputs_start_as_one() -> None:
    """Same seed, same weights in every layer but the last, which is zero."""
    n = default_registry().network("mlp_index", width=8, depth=1)
    one, two = n((3, 2), 0, 5), n((3, 2), 0, 5, outputs=2)
    for name, weights in one.state_dict().items():
        if name.startswith("last."):
            assert two.state_dict()[name].shape[0] == 2 * weights.shape[0]
            assert not bool(two.state_dict()[name].any())
        else:
            assert torch.equal(weights, two.state_dict()[name])
    found = two(draws((4, 3, 2), 0, torch.float32), torch.arange(4.0), None)
    assert found.shape == (4, 6, 2)
    other = testbed.Network("other", lambda shape, labels: nn.Identity(), noise={})
    with pytest.raises(InputError, match="its build does not take `outputs`"):
        other((2,), 0, 0, outputs=2)


L = 0.4


def isotropic() -> testbed.Data:
    """N(0, 0.4 I) in two dimensions."""
    generator = stream(0, "tests/isotropic")
    train, test = (L**0.5 * torch.randn(n, 2, generator=generator) for n in (8192, 512))
    return testbed.Data(train, test)


def contestant(steps: int, vlb: float | None, name: str = "eps", **more: Any) -> TrainingJob:
    """A small network on eight levels."""
    t = few(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    one = objective(name, t, vlb, **more)
    network = default_registry().network("mlp_index", width=24, depth=1, frequencies=(0.05, 3.0))
    d = testbed.Denoiser(
        network((2,), 0, 1, outputs=1 if vlb is None else 2),
        one.parameterization,
        one.sigma_data,
        c_in="shared",
        c_noise="index",
        table=t,
        learned_variance=vlb is not None,
    )
    settings = Training(steps=steps, batch=256, points=2, learning_rate=3e-3, ema=0.99)
    return TrainingJob(d, one, settings, 0)


def trainer(one: TrainingJob) -> Trainer:
    cpu = torch.device("cpu")
    return Trainer(one.denoiser, one.objective, isotropic(), one.training, one.seed, cpu)


def test_a_learned_variance_approaches_the_known_one() -> None:
    """Gaussian data: v of exp(v log beta + (1 - v) log beta~) at every level but the first, where
    log beta - log beta~ is the largest. Before training v = 1/2; afterwards its distance from the
    known one, weighted by what the distance costs, is at most a tenth of that. The mean is held
    against what the network's own mean asks for, beta~ + (1 - q^2)^2 E|x0 - D|^2."""
    one = trainer(contestant(1500, 0.001))
    list(one)
    d = one.averaged()
    assert d.table is not None
    chain = Chain(d.table.sigmas)
    x0 = isotropic().test
    eps = torch.randn(x0.shape, generator=stream(1, "tests/isotropic"))
    costs = []
    for t, s in enumerate(chain.sigmas):
        x = x0 + s.float() * eps
        with torch.no_grad():
            found = d.posterior(x, s)
        low, high = ddpm.extremes(s, chain.before[t], chain.after[t])
        delta = torch.log(high / low)
        q2 = (chain.before[t] / s) ** 2
        left = L * s**2 / (L + s**2)
        known = torch.log(((1 - q2) * chain.before[t] ** 2 + (1 - q2) ** 2 * left) / low) / delta
        v = torch.log(found.variance.double() / low) / delta
        # A nat is (delta (v - known))^2/4 of it, to second order.
        costs.append([float((delta * (v - known)).square().mean()),
                      float((delta * (0.5 - known)) ** 2)])  # fmt: skip
    learned, start = np.array(costs).sum(0)
    assert learned < 0.1 * start, costs


def test_the_bound_of_a_trained_model_is_above_the_oracle_s() -> None:
    """Paired over the same draws: 5 standard errors."""
    one = trainer(contestant(200, 0.001))
    list(one)
    d = one.averaged()
    assert d.table is not None
    chain, x0 = Chain(d.table.sigmas), isotropic().train
    exactly = ExactReverse(0.0, L)
    with torch.no_grad():
        found, best = (
            chain.elbo(one, x0, stream(0, "tests/bounds"), "learned") for one in (d, exactly)
        )
    for part in ("reconstruction", "prior", "matching"):
        assert getattr(found, part).shape == getattr(best, part).shape
    off = found.total - best.total
    assert float(off.mean()) > 5 * float(off.std()) / len(x0) ** 0.5
    entropy = 2 * (math.log(2 * math.pi * L) + 1) / 2
    assert float(best.total.mean()) > entropy - 5 * float(best.total.std()) / len(x0) ** 0.5


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_the_mean_does_not_see_the_last_layer_s_second_half(name: str) -> None:
    """One step of training: the first half of the last layer moves as without L_vlb."""
    plain, learned = trainer(contestant(1, 0.0, name)), trainer(contestant(1, 0.001, name))
    for one in (plain, learned):
        list(one)
    first = plain.denoiser.network.last  # type: ignore[union-attr]
    both = learned.denoiser.network.last  # type: ignore[union-attr]
    assert torch.equal(first.weight[:2], both.weight[:2])  # type: ignore[union-attr,index]
    assert bool(both.weight[2:].any()) > bool(first.weight[2:].any())  # type: ignore[union-attr,index]


def test_a_constant_in_the_weight_changes_nothing() -> None:
    """L_vlb stands beside a loss that is 1 at F = 0: a power of two times the weight gives the
    same bits."""
    r = default_registry()
    fours = testbed.Weighting("fours", lambda sigma: 4 / sigma**2).bound({})
    one, two = (trainer(contestant(20, 0.001, weighting=w)) for w in (r.weighting("eps"), fours))
    for each in (one, two):
        list(each)
    assert torch.equal(one.weights.W, two.weights.W)


def test_it_trains_one_by_one() -> None:
    assert batch.unbatchable([contestant(1, 0.001)]) == "a variance is learned"
    assert batch.unbatchable([contestant(1, None)]) == ""


# --- sampling ------------------------------------------------------------------------------------


def test_ddpm_takes_the_learned_variance() -> None:
    """A run of the sampler is the posterior's mean and sqrt(variance) z, step by step; the last
    step draws nothing."""
    d, x = doubled("v", few()), 2 * draws((3, 4), 13)
    sampler = default_registry().sampler("ddpm", variance="learned")
    found = testbed.sample(d, x, [4.0, 1.0, 0.1, 0.0], sampler, stream(0, "tests/learned"))
    generator = stream(0, "tests/learned")
    for s, t in ((4.0, 1.0), (1.0, 0.1), (0.1, 0.0)):
        mean, variance = d.posterior(x, s, t)
        x = mean
        if t:
            x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    assert torch.equal(found, x)


def test_samples_with_the_exact_variance_have_the_data_s() -> None:
    """Four steps, where small and large variances are far off: variance of 40 000 samples within
    5 standard errors of L + the last level's."""
    exactly, levels = ExactReverse(0.0, L), [4.0, 1.0, 0.5, 0.1]
    generator = stream(0, "tests/variance")
    x = (L + 16) ** 0.5 * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    wanted, off = L + 0.01, {}
    for variance in ("learned", "small", "large"):
        sampler = default_registry().sampler("ddpm", variance=variance)
        end = testbed.sample(SampledExact(exactly), x, levels, sampler, generator)
        off[variance] = float(end.var() / wanted - 1) / (2 / len(x)) ** 0.5
    assert abs(off["learned"]) < 5 < min(-off["small"], off["large"]), off


class SampledExact:
    """ExactReverse for the sampler's floats."""

    def __init__(self, exactly: ExactReverse) -> None:
        self.exactly = exactly

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.exactly(x, sigma)

    def posterior(self, x: Tensor, sigma: float, following: float) -> Normal:
        each = (torch.full((len(x),), s, dtype=x.dtype) for s in (sigma, following))
        return self.exactly.posterior(x, *each)


# --- studies -------------------------------------------------------------------------------------

LEARNED = """
table = { name = "ddpm", n = 20, start = 0.01, end = 0.5 }
density = "table"
c_noise = "index"
variance = "learned"
network = { name = "mlp_index", width = 8, depth = 1 }
evaluation = { levels = 2, draws = 8, samples = 8, steps = 4, metrics = [], elbo = "learned", \
sampler = { name = "ddpm", variance = "learned" }, schedule = "table" }
""".replace("\\\n", "")


def planned(folder: Path, *sets: str, text: str = LEARNED) -> plan.Plan:
    file = folder / "learned.toml"
    file.write_text(STUDY_OF.replace("[base]\n", f"[base]\n{text}"))
    return plan.make(
        study_file.read(file, sets, seeds=1), testbed.Registry(), folder / "out", "cpu"
    )


PLAIN = ("density=lognormal", "c_noise=shared", "network=mlp", "evaluation.schedule=karras")
STUDY_OF = """
[study]
name = "learned"
[base]
dataset = { name = "gaussian", dim = 2, n = 256, test = 64 }
weighting = "eps"
loss = "l2"
parameterization = "v"
training = { steps = 50, batch = 16, points = 1 }
"""


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["variance=fixed"], "the variance from a denoiser that learns one, and this one does not"),
        (["variance=fixed"], 'evaluation.elbo = "learned" needs variance = "learned".'),
        (["variance=learnt"], "Unknown variance 'learnt'. Did you mean 'learned'?"),
        (["variance.vbl=0.1"], "variance.vbl = 0.1: unknown key. Did you mean 'vlb'?"),
        (["variance.vlb=-1.0"], "variance.vlb = -1.0: Input should be greater than or equal to 0"),
        (["table=none", *PLAIN], 'variance = "learned" is of steps between levels of a table'),
        (["density=lognormal"], "L_vlb is a sum over the levels of the table"),
        (["sigma_min=0.09", "sigma_max=0.11"], "has 1 level in the density's range"),
        (["noise=perturbed"], "L_vlb is of a chain whose noise is white, and noise 'perturbed'"),
        (["evaluation.elbo=medium"], "evaluation.elbo"),
        (["output=scores"], "output"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, sets: list[str], said: str) -> None:
    with pytest.raises(InputError) as refused:
        planned(tmp_path, *sets)
    assert said in str(refused.value)


def test_a_network_with_one_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(
        "import testbed\n\n\ndef build(shape, labels):\n"
        "    return testbed.Registry().network('mlp')(shape, labels, 0)\n\n\n"
        "@testbed.hookimpl\ndef testbed_networks():\n"
        "    yield testbed.Network('single', build, noise={'index': (0, 999)})\n"
    )
    file = tmp_path / "learned.toml"
    file.write_text(STUDY_OF.replace("[base]\n", f"[base]\n{LEARNED}"))
    study = study_file.read(file, ["network=single"], seeds=1)
    registry = testbed.Registry([str(tmp_path / "single.py")])
    with pytest.raises(InputError, match="the build of network 'single' does not take `outputs`"):
        plan.make(study, registry, tmp_path / "out", "cpu")


def test_the_defaults_are_in_the_identity(tmp_path: Path) -> None:
    (one,) = planned(tmp_path).trials
    assert one.config.variance == Variance(name="learned", vlb=0.001)
    assert one.config.output == "F"
    fixed = planned(tmp_path, "variance=fixed", "evaluation.elbo=off", "evaluation.sampler=ddim")
    assert fixed.trials[0].config.variance == Variance()
    assert fixed.trials[0].config.evaluation.elbo == "off"


def test_a_trial_trains_measures_and_is_restored(tmp_path: Path) -> None:
    """The bound per dimension with its error; the restored denoiser has its posterior."""
    (one,) = planned(tmp_path).trials
    at = tmp_path / "out" / "trials" / one.id
    at.mkdir(parents=True)
    described = {"id": one.id, "config": one.config.record(), "labels": []}
    Folder.at(at).put_json("trial.json", {**described, "plugins": [], "plugin_dirs": []})
    assert worker.run(one.config, at) == "finished", (at / "error.txt").read_text()
    result = Folder.at(at).json("result.json")
    assert math.isfinite(result["metrics"]["elbo"])
    terms = [result["metrics"][f"elbo_{t}"] for t in ("reconstruction", "matching", "prior")]
    assert sum(terms) == pytest.approx(result["metrics"]["elbo"], rel=1e-12)
    assert 0 < result["errors"]["elbo"]["error"] < 10
    d = restore.load(at)
    assert d.posterior(draws((3, 2), 1, torch.float32), 1.0).variance.shape == (3, 2)


# --- reference outputs --------------------------------------------------------------------------

POSTERIOR = json.loads((REFERENCE / "diffusers_reference.json").read_text())["ddpm_posterior"]


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


def test_the_variances_are_the_reference_s() -> None:
    law_posterior(0)
    with pytest.raises(AssertionError):
        law_posterior(1)
