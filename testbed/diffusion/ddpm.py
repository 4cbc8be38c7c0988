"""The DDPM chain: its steps, its posterior, and the evidence lower bound on log p(x0).

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I),   abar_t = prod_{i<=t} (1 - beta_i)

(Ho et al. 2020, arXiv:2006.11239, sec. 2). Index t = 0..n-1 stands for the level sigma_t of a
table, sigma_t^2 = (1 - abar_t)/abar_t, and x_{-1} is the data x0. A `Chain` is written in the
papers' coordinates; what networks and samplers see is x = x_t/sqrt(abar_t) = x0 + sigma_t eps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from testbed.diffusion.parameterization import combine
from testbed.errors import InputError, unknown
from testbed.tensors import per_sample, scaled

Level = TypeVar("Level", float, Tensor)


class NoPosterior(InputError):
    """A learned variance is needed, and the denoiser has none."""

    def __init__(self) -> None:
        super().__init__(
            'variance = "learned" takes the variance from a denoiser that learns one, and this one '
            'does not: train with variance = "learned" and sample without guidance, or take '
            '"small" or "large".'
        )


def small(sigma: Level, sigma_next: Level) -> Level:
    """beta~/abar' = sigma'^2 (1 - sigma'^2/sigma^2), beta~ = beta (1 - abar')/(1 - abar).

    The variance of x' = x_{t-1}/sqrt(abar') given x and x0; sigma' is the level of x'.
    """
    q = sigma_next / sigma
    return sigma_next**2 * (1 - q) * (1 + q)


def large(sigma: Level, sigma_next: Level) -> Level:
    """beta/abar' = (sigma^2 - sigma'^2)(1 + sigma'^2)/(1 + sigma^2)."""
    return (sigma - sigma_next) * (sigma + sigma_next) * (1 + sigma_next**2) / (1 + sigma**2)


VARIANCES: dict[str, Callable[[Any, Any], Any]] = {"small": small, "large": large}
"""The fixed variances of a reverse step in x = x_t/sqrt(abar_t), by name."""


def extremes(sigma: Tensor, sigma_next: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """(beta~, beta)/abar' of the step from sigma to `sigma_next`, float64, shaped like sigma.

    In the step to 0 beta~ vanishes and takes the second step's value, that from `second` to sigma:
    beta (1 - sigma^2/second^2), as in the code of Nichol and Dhariwal 2021
    (openai/improved-diffusion, gaussian_diffusion.py).
    """
    sigma, sigma_next, second = sigma.double(), sigma_next.double(), second.double()
    high, q = large(sigma, sigma_next), sigma / second
    return torch.where(sigma_next > 0, small(sigma, sigma_next), high * (1 - q) * (1 + q)), high


def interpolated(low: Tensor, high: Tensor, nu: Tensor) -> Tensor:
    """exp(v log beta + (1 - v) log beta~), v = (nu + 1)/2; (B, ...) like nu, in its dtype.

    Nichol and Dhariwal 2021, eq. 15, with nu the network's second half. `low` and `high` are a
    scalar or (B,).
    """
    a, b = torch.log(low), torch.log(high)
    wide = torch.promote_types(nu.dtype, torch.float32)
    v = (nu.to(wide) + 1) / 2
    a, b = per_sample(a, nu).to(wide), per_sample(b, nu).to(wide)
    return torch.exp(v * b + (1 - v) * a).to(nu.dtype)


class Normal(NamedTuple):
    """N(mean, variance) with independent dimensions: mean (B, ...), variance broadcast to it."""

    mean: Tensor
    variance: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A draw, (B, ...), dtype of the mean, made on the generator's device."""
        z = torch.randn(
            self.mean.shape, generator=generator, dtype=self.mean.dtype, device=generator.device
        )
        return self.mean + self.variance.sqrt().to(z.dtype) * z.to(self.mean.device)

    def log_density(self, x: Tensor) -> Tensor:
        """log N(x) = -sum [(x - mean)^2/variance + log(2 pi variance)]/2 in nats, (B,)."""
        terms = (x - self.mean) ** 2 / self.variance + torch.log(2 * math.pi * self.variance)
        return -terms.flatten(1).sum(1) / 2

    def kl(self, other: Normal) -> Tensor:
        """KL(self || other) = sum [r - 1 - log r + (mean - mean')^2/variance']/2 in nats, (B,).

        r = variance/variance'; both variances are positive.
        """
        r = self.variance / other.variance
        terms = r - 1 - torch.log(r) + (self.mean - other.mean) ** 2 / other.variance
        return terms.flatten(1).sum(1) / 2


def posterior_of(denoiser: Any) -> Callable[..., Normal]:
    """`denoiser.posterior(x, sigma, sigma_next)`.

    Raises:
        NoPosterior: the denoiser has no such method.
    """
    posterior: Callable[..., Normal] | None = getattr(denoiser, "posterior", None)
    if posterior is None:
        raise NoPosterior
    return posterior


class Elbo(NamedTuple):
    """-log p(x0) <= reconstruction + sum_t matching_t + prior, in nats per sample.

    Ho et al. 2020, eq. 5, estimated by one draw of x_t at each t: an upper bound in expectation.
    """

    reconstruction: Tensor
    """(B,) -log p(x0 | x at the first level)"""
    matching: Tensor
    """(n - 1, B) KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), t = 1..n-1"""
    prior: Tensor
    """(B,) KL(q(x_{n-1} | x0) || N(0, I))"""

    @property
    def total(self) -> Tensor:
        """The bound, (B,)."""
        return self.reconstruction + self.matching.sum(0) + self.prior


@dataclass(frozen=True, eq=False)
class Chain:
    """The forward chain whose x_t has the noise level sigma_t.

    Args:
        sigmas: (n,) ascending and positive, n >= 2, as `NoiseTable.sigmas`; kept in float64. They
            hold the digits of 1 - abar = sigma^2/(1 + sigma^2), which abar near 1 does not.

    `t` is an index, or (B,) of them. Coefficients are float64, results have the dtype of x.

    Raises:
        InputError: fewer than two levels, or levels that do not ascend.
    """

    sigmas: Tensor

    def __post_init__(self) -> None:
        levels = self.sigmas.double()
        if levels.ndim != 1 or len(levels) < 2 or not bool((levels.diff() > 0).all()):
            raise InputError(
                f"a chain needs 2 or more ascending levels, got {tuple(levels.shape)}: "
                f"{levels.flatten()[:4].tolist()} ..."
            )
        if not float(levels[0]) > 0:
            raise InputError(f"a chain's first level is {float(levels[0])!r}, expected above 0.")
        object.__setattr__(self, "sigmas", levels)

    @property
    def before(self) -> Tensor:
        """The level of x_{t-1}, (n,); 0 for the data."""
        return torch.cat([torch.zeros_like(self.sigmas[:1]), self.sigmas[:-1]])

    @property
    def after(self) -> Tensor:
        """The level of x_{t+1}, (n,); infinity for the last, where beta~ then is beta."""
        return torch.cat([self.sigmas[1:], torch.full_like(self.sigmas[:1], torch.inf)])

    @property
    def beta(self) -> Tensor:
        """beta_t = 1 - abar_t/abar_{t-1} = (sigma_t^2 - sigma_{t-1}^2)/(1 + sigma_t^2), (n,)."""
        s, b = self.sigmas, self.before
        return (s - b) * (s + b) / (1 + s**2)

    @property
    def abar(self) -> Tensor:
        """abar_t = 1/(1 + sigma_t^2), (n,)."""
        return 1 / (1 + self.sigmas**2)

    def step(self, x: Tensor, t: int | Tensor) -> Normal:
        """q(x_t | x_{t-1}) at x = x_{t-1} (B, ...): N(sqrt(1 - beta_t) x, beta_t)."""
        decay = torch.sqrt((1 + self.before**2) * self.abar)
        return Normal(scaled(x, decay[t]), per_sample(self.beta[t], x))

    def marginal(self, x0: Tensor, t: int | Tensor) -> Normal:
        """q(x_t | x0) = N(sqrt(abar_t) x0, 1 - abar_t) (Ho et al. 2020, eq. 4)."""
        abar = self.abar
        return Normal(scaled(x0, torch.sqrt(abar[t])), per_sample((self.sigmas**2 * abar)[t], x0))

    def posterior(self, x_t: Tensor, x0: Tensor, t: int | Tensor) -> Normal:
        """q(x_{t-1} | x_t, x0) (Ho et al. 2020, eqs. 6 and 7); at t = 0 the mean is x0 itself.

        mean = (sqrt(abar_{t-1}) beta_t x0 + sqrt(1 - beta_t) (1 - abar_{t-1}) x_t)/(1 - abar_t),
        variance beta~_t = beta_t (1 - abar_{t-1})/(1 - abar_t).
        """
        beta, abar, variance = self.beta, self.abar, self.sigmas**2 * self.abar
        abar_before = 1 / (1 + self.before**2)
        variance_before = self.before**2 * abar_before
        by_x0 = torch.sqrt(abar_before) * beta / variance
        by_x = torch.sqrt(abar / abar_before) * variance_before / variance
        mean = combine(by_x0[t], x0, by_x[t], x_t)
        return Normal(mean, per_sample((beta * variance_before / variance)[t], x0))

    def reverse(
        self, denoiser: Callable[..., Tensor], x: Tensor, t: int, variance: str = "small"
    ) -> Normal:
        """p(x'|x) of the level before, in x = x0 + sigma_t eps, float64.

        The mean is that of q(x'|x, x0 = D). At t = 0 it is the decoder p(x0|x) = N(D, variance),
        with beta~ that of the second step.

        Args:
            denoiser: (x, sigma) -> x0; with "learned" it has `posterior(x, sigma, sigma_next)`.
            x: (B, ...) at the level sigma_t.
            t: the index of the level, from 0 to n - 1.
            variance: "small", "large" or "learned".

        Raises:
            InputError: an unknown variance, or a learned one of a denoiser that has none.
        """
        sigma = self.sigmas[t].expand(len(x)).to(x.device)
        sigma_next = self.before[t].expand(len(x)).to(x.device)
        if variance == "learned":
            return Normal(*(part.double() for part in posterior_of(denoiser)(x, sigma, sigma_next)))
        if variance not in VARIANCES:
            raise InputError(unknown("variance", variance, [*VARIANCES, "learned"]))
        D = denoiser(x, sigma).double()
        bounds = extremes(self.sigmas[t], self.before[t], self.after[t])
        fixed = dict(zip(VARIANCES, bounds, strict=True))
        q = self.before[t] / self.sigmas[t]
        return Normal(D + q.to(x.device) ** 2 * (x.double() - D), fixed[variance].to(x.device))

    def elbo(
        self,
        denoiser: Callable[..., Tensor],
        x0: Tensor,
        generator: torch.Generator,
        variance: str = "small",
    ) -> Elbo:
        """The terms of the bound on -log p(x0), each with a draw of its own.

        The denoiser is called n times. The data are continuous: the decoder is the Gaussian of
        `reverse` at t = 0, not its integral over a bin. The prior is N(0, I) for
        x_{n-1} = sqrt(abar) x, as published.

        Args:
            denoiser, variance: as for `reverse`.
            x0: (B, ...) data; the denoiser sees x0 + sigma eps in its dtype.
            generator: the generator that the noise is drawn from.

        Raises:
            InputError: an unknown variance.
        """
        reconstruction, matching = torch.zeros(len(x0)), []
        wide = x0.double()
        for t, (sigma, sigma_next) in enumerate(zip(self.sigmas, self.before, strict=True)):
            eps = torch.randn(
                x0.shape, generator=generator, dtype=x0.dtype, device=generator.device
            ).to(x0.device)
            x = x0 + scaled(eps, sigma)
            p = self.reverse(denoiser, x, t, variance)
            if t == 0:
                reconstruction = -p.log_density(wide)
                continue
            q = (sigma_next / sigma).to(x0.device) ** 2
            beta_tilde = small(sigma, sigma_next).to(x0.device)
            matching.append(Normal(wide + q * (x.double() - wide), beta_tilde).kl(p))
        return Elbo(reconstruction, torch.stack(matching), self._prior(wide))

    def _prior(self, x0: Tensor) -> Tensor:
        """KL(N(sqrt(abar) x0, 1 - abar) || N(0, I)), (B,): -log(1 - abar) = log1p(1/sigma^2)."""
        abar, s = self.abar[-1].to(x0.device), self.sigmas[-1].to(x0.device)
        return ((abar * (x0**2 - 1) + torch.log1p(1 / s**2)) / 2).flatten(1).sum(1)
