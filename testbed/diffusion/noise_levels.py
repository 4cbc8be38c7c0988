"""Noise levels: schedules, conversions to VP and flow coordinates, and discretisations.

The testbed has x = x0 + sigma eps (variance exploding) throughout. In other coordinates
x_t = alpha_t x0 + s_t eps; then sigma = s_t/alpha_t and x = x_t/alpha_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from testbed.errors import InputError, unknown
from testbed.tensors import scaled, widen


@dataclass(frozen=True)
class NoiseSchedule:
    """Coordinates x_t = alpha(t) x0 + s(t) eps and their conversion to and from x = x0 + sigma eps.

    Args:
        name: the name of the schedule.
        alpha, s: functions of t, shaped like t.
        time: t as a function of sigma, the inverse of s/alpha.
        sigma_rate: d sigma/dt as a function of t.
    """

    name: str
    alpha: Callable[[Tensor], Tensor]
    s: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    sigma_rate: Callable[[Tensor], Tensor]

    def sigma(self, t: float | Tensor) -> Tensor:
        """sigma = s_t/alpha_t, shaped like t."""
        t = widen(t)
        return self.s(t) / self.alpha(t)

    def to_ve(self, x_t: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """(x, sigma) = (x_t/alpha_t, s_t/alpha_t); x (B, ...) in x_t's dtype, sigma like t."""
        t = widen(t)
        return scaled(x_t, 1 / self.alpha(t)), self.sigma(t)

    def from_ve(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, t) with x_t = alpha_t x; the inverse of `to_ve`."""
        t = self.time(widen(sigma))
        return scaled(x, self.alpha(t)), t

    def score_to_ve(self, score: Tensor, t: float | Tensor) -> Tensor:
        """grad log p(x) = alpha_t grad log p(x_t): the chain rule through x_t = alpha_t x."""
        return scaled(score, self.alpha(widen(t)))


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """Variance preserving with linear beta(t), t in (0, 1] (Song et al. 2021, eqs. 32 and 33).

    1 + sigma^2 = exp(int beta) with int beta = beta_min t + (beta_max - beta_min) t^2/2, and
    alpha = 1/sqrt(1 + sigma^2), s = sigma alpha.
    """
    slope = beta_max - beta_min

    def integral(t: Tensor) -> Tensor:
        return beta_min * t + slope * t**2 / 2

    def time(sigma: Tensor) -> Tensor:
        # The root of slope t^2/2 + beta_min t = y in the form that does not cancel at small y.
        y = torch.log1p(sigma**2)
        return 2 * y / (beta_min + torch.sqrt(beta_min**2 + 2 * slope * y))

    def rate(t: Tensor) -> Tensor:
        growth = torch.expm1(integral(t))
        return (1 + growth) * (beta_min + slope * t) / (2 * torch.sqrt(growth))

    return NoiseSchedule(
        name="vp",
        alpha=lambda t: torch.exp(-integral(t) / 2),
        s=lambda t: torch.sqrt(-torch.expm1(-integral(t))),
        time=time,
        sigma_rate=rate,
    )


VE = NoiseSchedule(
    name="ve",
    alpha=torch.ones_like,
    s=lambda t: t,
    time=lambda sigma: sigma,
    sigma_rate=torch.ones_like,
)


VP = vp()


COSINE = NoiseSchedule(
    name="cosine",
    alpha=lambda t: torch.cos(math.pi / 2 * t),
    s=lambda t: torch.sin(math.pi / 2 * t),
    time=lambda sigma: 2 / math.pi * torch.atan(sigma),
    sigma_rate=lambda t: math.pi / 2 / torch.cos(math.pi / 2 * t) ** 2,
)


FLOW = NoiseSchedule(
    name="flow",
    alpha=lambda t: 1 - t,
    s=lambda t: t,
    time=lambda sigma: sigma / (1 + sigma),
    sigma_rate=lambda t: 1 / (1 - t) ** 2,
)


def karras_sigmas(
    n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """n descending levels and a final 0, (n + 1,) float64 (Karras et al. 2022, eq. 5).

    sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho
    """
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.cat([(top + ramp * (bottom - top)) ** rho, torch.zeros(1, dtype=torch.float64)])


def exponential_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Tensor:
    """n descending levels at equal steps of log sigma and a final 0, (n + 1,) float64.

    sigma_i = sigma_max (sigma_min/sigma_max)^(i/(n-1)) (k-diffusion, get_sigmas_exponential)
    """
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    levels = sigma_max * (sigma_min / sigma_max) ** ramp
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


MOST_LEVELS = 1_000_000
"""The largest number of levels in a table."""


def linear_betas(n: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """beta_i from start to end in equal steps, (n,) float64 (Ho et al. 2020, sec. 4).

    Raises:
        InputError: n is not positive or too large, or not 0 < start <= end < 1.
    """
    _check_betas(n, start, end)
    return torch.linspace(start, end, n, dtype=torch.float64)


def scaled_linear_betas(n: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """sqrt(beta_i) in equal steps, (n,) float64 (latent diffusion, Rombach et al. 2022).

    Raises:
        InputError: as `linear_betas`.
    """
    _check_betas(n, start, end)
    return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2


def cosine_betas(n: int = 1000, offset: float = 0.008, most: float = 0.999) -> Tensor:
    """beta_i = min(1 - f((i+1)/n)/f(i/n), most), f(t) = cos^2(pi/2 (t + offset)/(1 + offset)).

    (n,) float64 (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17); the difference as
    cos^2 a - cos^2 b = sin(b - a) sin(b + a), which keeps its digits.

    Raises:
        InputError: n is not positive or too large, the offset is negative, or not 0 < most < 1.
    """
    if not 1 <= n <= MOST_LEVELS or not offset >= 0 or not 0 < most < 1:
        raise InputError(
            f"n = {n}, offset = {offset:g}, most = {most:g}: expected n from 1 to {MOST_LEVELS}, "
            "offset >= 0 and 0 < most < 1."
        )
    t = torch.arange(n, dtype=torch.float64) / n
    a, step = math.pi / 2 * (t + offset) / (1 + offset), math.pi / 2 / n / (1 + offset)
    return (math.sin(step) * torch.sin(2 * a + step) / torch.cos(a) ** 2).clamp(max=most)


def _check_betas(n: int, start: float, end: float) -> None:
    if not 1 <= n <= MOST_LEVELS or not 0 < start <= end < 1:
        raise InputError(
            f"n = {n}, start = {start:g}, end = {end:g}: expected n from 1 to {MOST_LEVELS} and "
            "0 < start <= end < 1."
        )


def ddpm_sigmas(betas: Tensor) -> Tensor:
    """sigma_i = sqrt((1 - abar_i)/abar_i), abar_i = prod_{j<=i} (1 - beta_j), ascending like betas.

    Through log abar, so that 1 - abar keeps its digits at the first steps.
    """
    log_abar = torch.cumsum(torch.log1p(-betas.double()), dim=0)
    return torch.sqrt(torch.expm1(-log_abar))


CONTENTS = {
    "sigmas": "(n,) ascending positive noise levels",
    "betas": "(n,) betas between 0 and 1",
    "alpha_bars": "(n,) descending alpha-bars between 0 and 1",
}
"""What the numbers of a table may be: noise levels, beta_t, or abar_t = prod(1 - beta)."""


def sigmas_of(values: Tensor, contents: str) -> Tensor:
    """The noise levels (n,) float64, ascending, of sigmas, betas or alpha-bars (n,).

    sigma^2 = (1 - abar)/abar (Ho et al. 2020, eq. 4).

    Raises:
        InputError: the numbers cannot be these; the message has the first that cannot.
    """
    expected = CONTENTS[contents]
    if values.ndim != 1 or not 2 <= len(values) <= MOST_LEVELS:
        shape = tuple(values.shape)
        raise InputError(f"shape {shape}: expected {expected}, n from 2 to {MOST_LEVELS}.")
    values = values.double()
    fits = (values > 0) & (values < (math.inf if contents == "sigmas" else 1))
    if contents != "betas":
        fits[1:] &= values.diff() > 0 if contents == "sigmas" else values.diff() < 0
    if not bool(fits.all()):
        i = int(fits.long().argmin())
        after = f" after {float(values[i - 1]):.6g}" if i and contents != "betas" else ""
        raise InputError(f"number {i} is {float(values[i]):.6g}{after}: expected {expected}.")
    if contents == "sigmas":
        return values
    sigmas = ddpm_sigmas(values) if contents == "betas" else torch.sqrt((1 - values) / values)
    if not bool(sigmas.isfinite().all() and (sigmas.diff() > 0).all()):
        raise InputError(f"expected {contents} whose noise levels ascend to a finite one.")
    return sigmas


TERMINAL = 2.0**40
"""Sigma of zero SNR, which is infinite. Here alpha = 2^-40: in float32 c_in x is eps to the last
bit, in float64 1/(1 + sigma^2) is 0 to the last bit of 1, and no number overflows."""


def flow_sigmas(n: int = 1000, shift: float = 1.0) -> Tensor:
    """sigma = t'/(1 - t') at t = 1/n, 2/n, ..., 1, ascending; (n,) float64.

    t' = shift t/(1 + (shift - 1) t) (Esser et al. 2024, arXiv:2403.03206, eq. 23), by which
    sigma = shift t/(1 - t). At t = 1 there is no signal: the last level is TERMINAL.

    Raises:
        InputError: n is not from 2 to MOST_LEVELS, or not 1/TERMINAL < shift < TERMINAL/n.
    """
    if not 2 <= n <= MOST_LEVELS or not 1 / TERMINAL < shift < TERMINAL / n:
        raise InputError(
            f"n = {n}, shift = {shift:g}: expected n from 2 to {MOST_LEVELS} and shift above "
            f"{1 / TERMINAL:.2g} and below {TERMINAL:.2g}/n."
        )
    i = torch.arange(1, n, dtype=torch.float64)
    return torch.cat([shift * i / (n - i), torch.full((1,), TERMINAL, dtype=torch.float64)])


def zero_terminal(sigmas: Tensor) -> Tensor:
    """The levels with sqrt(abar) moved and stretched so that the last is 0; (n,) float64.

    sqrt(abar)' = sqrt(abar_1) (sqrt(abar) - sqrt(abar_n))/(sqrt(abar_1) - sqrt(abar_n)), with
    sqrt(abar) = 1/sqrt(1 + sigma^2) (Lin et al. 2024, arXiv:2305.08891, algorithm 1). The last
    level is TERMINAL, which stands for infinity.
    """
    root = 1 / torch.sqrt(1 + sigmas.double() ** 2)
    first, last = root[0], root[-1]
    root = first * (root - last) / (first - last)
    levels = torch.sqrt((1 - root) * (1 + root)) / root
    levels[-1] = TERMINAL
    return levels


def table_quantile(table: Tensor, u: Tensor) -> Tensor:
    """The levels of a table (n,) with equal mass, at u in (0, 1); shaped like u."""
    table = table.to(u.device)
    return table[(u * len(table)).long().clamp(0, len(table) - 1)]


def table_pdf(table: Tensor, sigma: Tensor) -> Tensor:
    """Mass 1/n over the log-spacing around each level of a table (n,); 0 outside; like sigma."""
    n, middle = len(table), torch.log(table.to(sigma.device))
    inner = (middle[1:] + middle[:-1]) / 2
    edges = torch.cat([2 * middle[:1] - inner[:1], inner, 2 * middle[-1:] - inner[-1:]])
    cell = torch.searchsorted(edges, torch.log(sigma).double().contiguous()) - 1
    inside = (cell >= 0) & (cell < n)
    width = torch.diff(edges)[cell.clamp(0, n - 1)]
    return (inside / (n * width)).to(sigma.dtype)


def _latent(size: int, n: int) -> Tensor:
    return _leading(size, n) + 1


def _leading(size: int, n: int) -> Tensor:
    return torch.arange(n - 1, -1, -1) * (size // n)


def _linspace(size: int, n: int) -> Tensor:
    return torch.linspace(size - 1, 0, n, dtype=torch.float64).round()


def _stability(size: int, n: int) -> Tensor:
    return torch.linspace(size - 1, 0, n if n == size else n + 1, dtype=torch.float64).floor()[:n]


def _trailing(size: int, n: int) -> Tensor:
    return (size - torch.arange(n, dtype=torch.float64) * (size / n)).round() - 1


Spacing = Literal["latent", "leading", "linspace", "stability", "trailing"]
SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "latent": _latent,
    "leading": _leading,
    "linspace": _linspace,
    "stability": _stability,
    "trailing": _trailing,
}
"""The indices of n out of `size` levels, descending (Lin et al. 2024, arXiv:2305.08891, table 2).
`latent` is that of latent diffusion's published sampler (Rombach et al. 2022, make_ddim_timesteps):
"leading", and one level up; where n does not divide `size`, that code takes more than n levels.
`stability` is that of Stability's generative-models (legacy_ddpm), which leaves out the smallest
level for n < size."""


def table_sigmas(
    table: Tensor, n: int, spacing: str = "stability", steps_offset: int = 0
) -> Tensor:
    """n levels of an ascending table, descending, with a final 0; (n + 1,) float64.

    Args:
        table: (size,) ascending.
        n: the number of levels that are taken.
        spacing: one of `SPACINGS`.
        steps_offset: what is added to every index; 1 with "leading" is Stable Diffusion 1.

    Raises:
        InputError: n is not between 1 and the table's length, an unknown spacing, or an index that
            the table does not have.
    """
    size = len(table)
    if spacing not in SPACINGS:
        raise InputError(unknown("spacing", spacing, SPACINGS))
    if not 1 <= n <= size:
        raise InputError(f"n = {n} levels of a table with {size}: expected 1 to {size}.")
    index = SPACINGS[spacing](size, n).long() + steps_offset
    first, last = int(index[0]), int(index[-1])
    if first >= size or last < 0:
        moved = f" with steps_offset = {steps_offset}" if steps_offset else ""
        raise InputError(
            f"spacing {spacing!r}{moved} takes {n} levels from index {first} to {last}, and the "
            f"indices of the table are {size - 1} to 0: take fewer, or another spacing or offset."
        )
    return torch.cat([table.double()[index], torch.zeros(1, dtype=torch.float64)])
