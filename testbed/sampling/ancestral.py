"""Samplers that draw noise at every step, in the variance exploding form x = x0 + sigma eps.

Where a step from sigma to sigma' takes away more noise than it should, and adds

    up = eta sigma' sqrt(1 - sigma'^2/sigma^2),   down^2 + up^2 = sigma'^2

of fresh noise, the marginals stay those of x0 + sigma' eps. Divided by alpha, DDIM's step with the
same eta is this one (Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16), and at eta = 1 it is
DDPM's with the small variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import Tensor

from testbed.components.sampler import Sampler
from testbed.components.signature import Limits
from testbed.diffusion.ddpm import VARIANCES
from testbed.errors import InputError, unknown
from testbed.hookspecs import hookimpl
from testbed.random import Generators
from testbed.sampling.solvers import ScalarDenoise, fresh, toward

if TYPE_CHECKING:
    from testbed.sampling.loop import StepDenoiser


Eta = Annotated[float, Limits(least=0, most=1)]
Variance = Literal["small", "large", "learned"]
"""What the variance of a step of `ddpm` is."""


def split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(down, up): sigma' = sqrt(down^2 + up^2), up = eta sigma' sqrt(1 - (sigma'/sigma)^2).

    down = sigma' sqrt(1 - eta^2 (1 - (sigma'/sigma)^2)), without the difference of squares.
    """
    q = sigma_next / sigma
    down = math.sqrt((1 - eta) * (1 + eta) + (eta * q) ** 2)
    return sigma_next * down, eta * sigma_next * math.sqrt((1 - q) * (1 + q))


def noisier(x: Tensor, deviation: float, generator: Generators | None) -> Tensor:
    """Returns x + deviation z; nothing is drawn for a deviation of 0."""
    return x + deviation * fresh(x, generator) if deviation else x


def ddim(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: list[Any],
    eta: Eta = 0.0,
) -> Tensor:
    """x' = D + (down/sigma)(x - D) + up z (Song et al. 2021, eqs. 12 and 16, over alpha)."""
    down, up = split(sigma, sigma_next, eta)
    return noisier(toward(denoise(x, sigma), x, down / sigma), up, generator)


def euler_ancestral(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: list[Any],
    eta: Eta = 1.0,
) -> Tensor:
    """Takes Euler's step from sigma to `down`, and adds noise up to sigma': DDIM with eta = 1."""
    return ddim(denoise, x, sigma, sigma_next, generator, history, eta)


def ddpm(
    denoise: StepDenoiser,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: list[Any],
    variance: Variance = "small",
) -> Tensor:
    """x' = D + (sigma'/sigma)^2 (x - D) + s z: the mean of q(x'|x, x0 = D) in x = x_t/alpha.

    s^2 is the variance over alpha'^2 (Ho et al. 2020, arXiv:2006.11239, eq. 7 and sec. 3.2), or
    with "learned" that of the denoiser's `posterior` (Nichol and Dhariwal 2021, arXiv:2102.09672,
    eq. 15). The step to 0 draws nothing.

    Raises:
        InputError: The variance is unknown, or "learned" of a denoiser that learns none.
    """
    if variance == "learned":
        mean, learned = denoise.posterior(x, sigma, sigma_next)
        return mean + learned.sqrt() * fresh(x, generator) if sigma_next else mean
    if variance not in VARIANCES:
        raise InputError(unknown("variance", variance, [*VARIANCES, "learned"]))
    s = math.sqrt(VARIANCES[variance](sigma, sigma_next)) if sigma_next else 0.0
    return noisier(toward(denoise(x, sigma), x, (sigma_next / sigma) ** 2), s, generator)


def dpmpp_2s_ancestral(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: list[Any],
    eta: Eta = 1.0,
) -> Tensor:
    """x' = D_m + (down/sigma)(x - D_m) + up z, D_m = D at the middle of the way in log sigma.

    The middle is sqrt(sigma down), reached by Euler's step (Lu et al. 2022, arXiv:2211.01095,
    algorithm 1 with r = 1/2; ancestral as in k-diffusion). The step to 0 is Euler's.
    """
    D = denoise(x, sigma)
    down, up = split(sigma, sigma_next, eta)
    if sigma_next == 0:
        return toward(D, x, 0.0)
    middle = math.sqrt(sigma * down)
    D_m = denoise(toward(D, x, middle / sigma), middle)
    return noisier(toward(D_m, x, down / sigma), up, generator)


def dpmpp_sde(
    denoise: ScalarDenoise,
    x: Tensor,
    sigma: float,
    sigma_next: float,
    generator: Generators | None,
    history: list[Any],
    eta: Eta = 1.0,
) -> Tensor:
    """The ancestral step of DPM++ with D at the middle m = sqrt(sigma sigma') of a noisy path.

    x_m = D + (down_m/sigma)(x - D) + up_m z_1, and x' = D_m + (down/sigma)(x - D_m) + up z with
    z = (sqrt(sigma - m) z_1 + sqrt(m - sigma') z_2)/sqrt(sigma - sigma'): both noises are
    increments of one Brownian motion in sigma (k-diffusion, DPM-Solver++ SDE with r = 1/2). The
    step to 0 is Euler's.
    """
    D = denoise(x, sigma)
    if sigma_next == 0:
        return toward(D, x, 0.0)
    m = math.sqrt(sigma * sigma_next)
    (down_m, up_m), (down, up) = split(sigma, m, eta), split(sigma, sigma_next, eta)
    z_1, z_2 = (fresh(x, generator) if eta else torch.zeros_like(x) for _ in range(2))
    D_m = denoise(toward(D, x, down_m / sigma) + up_m * z_1, m)
    share = (sigma - m) / (sigma - sigma_next)
    z = math.sqrt(share) * z_1 + math.sqrt(1 - share) * z_2
    return toward(D_m, x, down / sigma) + up * z


@hookimpl
def testbed_samplers() -> Iterable[Sampler]:
    """Yields DDIM, Euler ancestral, DDPM, DPM++ 2S ancestral and DPM++ SDE."""
    song, lu = "Song et al. 2021, arXiv:2010.02502", "Lu et al. 2022, arXiv:2211.01095"
    yield Sampler("ddim", ddim, noise="eta", reference=f"{song}, eqs. 12 and 16")
    yield Sampler("euler_ancestral", euler_ancestral, noise="eta", reference=f"{song}, eq. 12")
    yield Sampler(
        "ddpm", ddpm, deterministic=False, reference="Ho et al. 2020, arXiv:2006.11239, eq. 7"
    )
    yield Sampler(
        "dpmpp_2s_ancestral", dpmpp_2s_ancestral, noise="eta", reference=f"{lu}, algorithm 1"
    )
    yield Sampler("dpmpp_sde", dpmpp_sde, noise="eta", reference=f"k-diffusion; {lu}")
