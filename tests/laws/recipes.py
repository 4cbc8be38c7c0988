"""Laws of the recipes: weight, density, levels and inputs against the papers' own coordinates.

A paper has x_t = alpha(t) x0 + s(t) eps, a network that sees it and is asked for q, a weight on
|q_hat - q|^2 and a distribution of t. What that says of |D - x0|^2 over log sigma, sigma = s/alpha,
is worked out here with 50 digits from the paper's formulas in t, by numeric inverses, derivatives
and integrals, and from none of ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mpmath as mp
import torch
from helpers.bounds import gamma
from torch import Tensor, nn

import testbed
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.parameterization import Parameterization
from testbed.registry import default_registry
from testbed.training.objective import Objective
from testbed.trial import recipes

F = Callable[..., Any]
REGISTRY = default_registry()
SIGMA_DATAS = (0.5, 1.7)
"""That for which the papers' numbers are made, and another one."""
K = 2**13
"""Roundings times the condition of a pdf: its exponent is up to 40, and a table's levels are sums
of up to 1000 terms. Mistakes are of per cents."""


@dataclass(frozen=True)
class Paper:
    """A paper's training in its own words; numbers are of mpmath.

    alpha, s: of t. q: (a, b) of the target a x0 + b eps, of t. weight: on |q_hat - q|^2, of t.
    p: the density of t, up to a factor, on [first, last]. sees: the factor on x_t with which it
    enters the network. tells: what the network is told of t. levels: the t of a discrete one.
    """

    alpha: F
    s: F
    q: F
    weight: F
    tells: F
    p: F | None = None
    first: Any = 0
    last: Any = 1
    sees: F = lambda t: mp.mpf(1)
    levels: tuple[Any, ...] = ()
    unit: Any = 1
    """Our sigma and data are this many of the paper's."""

    @functools.cache  # noqa: B019  there is a paper a recipe, as long as the tests run
    def time(self, sigma: Any) -> Any:
        """The t of one of our sigmas, by bisection of the rising s/alpha."""
        low, high = mp.mpf(self.first), mp.mpf(self.last)
        for _ in range(170):
            t = (low + high) / 2
            low, high = (t, high) if self.s(t) < self.alpha(t) * sigma / self.unit else (low, t)
        return (low + high) / 2

    def sigma(self, t: Any) -> Any:
        """The level of t in our units."""
        return self.unit * self.s(t) / self.alpha(t)

    def lambda_(self, t: Any) -> Any:
        """The factor on |D - x0|^2 in our units: the weight times (dq/dD)^2.

        Of x_t = alpha x0 + s eps and q = a x0 + b eps: eps_hat = (x_t - alpha D)/s at fixed x_t.
        """
        a, b = self.q(t)
        return self.weight(t) * (a - b * self.alpha(t) / self.s(t)) ** 2 / self.unit**2

    def density(self, t: Any, low: Any, high: Any) -> Any:
        """p(log sigma) within two of our levels: p(t)/(d log sigma/dt), of mass one."""
        assert self.p is not None
        rate = mp.diff(lambda t: mp.log(self.sigma(t)), t, h=mp.mpf(10) ** -18)
        return self.p(t) / rate / self.mass(low, high)

    @functools.cache  # noqa: B019
    def mass(self, low: Any, high: Any) -> Any:
        """That of p within two of our levels."""
        ends = [max(self.time(low), self.first), min(self.time(high), self.last)]
        middle = [ends[0] + (ends[1] - ends[0]) * mp.mpf(i) / 8 for i in range(9)]
        return mp.quad(self.p, middle)


def vp_of_snr(log_snr: F) -> tuple[F, F]:
    """alpha and s of alpha^2 + s^2 = 1 and alpha^2/s^2 = exp(log_snr(t))."""
    return (
        lambda t: mp.sqrt(1 / (1 + mp.exp(-log_snr(t)))),
        lambda t: mp.sqrt(1 / (1 + mp.exp(log_snr(t)))),
    )


def one(t: Any) -> Any:
    return mp.mpf(1)


@functools.cache
def alpha_bar() -> tuple[Any, ...]:
    """abar_1 ... abar_1000 of beta from 1e-4 to 0.02 (Ho et al. 2020)."""
    betas = [mp.mpf("1e-4") + mp.mpf(i) / 999 * (mp.mpf("0.02") - mp.mpf("1e-4"))
             for i in range(1000)]  # fmt: skip
    found, product = [], mp.mpf(1)
    for beta in betas:
        product *= 1 - beta
        found.append(product)
    return tuple(found)


def normal(x: Any, mean: str, std: str) -> Any:
    return mp.exp(-(((x - mp.mpf(mean)) / mp.mpf(std)) ** 2) / 2)


def of_log_normal(mean: str, std: str, sigma_data: float) -> Paper:
    """EDM in t = log sigma, F = (D - c_skip x)/c_out, lambda = 1/c_out^2 (table 1)."""
    sd = mp.mpf(sigma_data)

    def q(t: Any) -> tuple[Any, Any]:
        s2 = mp.exp(2 * t)
        skip, out = sd**2 / (s2 + sd**2), mp.exp(t) * sd / mp.sqrt(s2 + sd**2)
        return (1 - skip) / out, -skip * mp.exp(t) / out

    return Paper(
        one, mp.exp, q, one, lambda t: t / 4, lambda t: normal(t, mean, std), -12, 12,
        sees=lambda t: 1 / mp.sqrt(mp.exp(2 * t) + sd**2),
    )  # fmt: skip


def progressive(weight: F, q: F) -> Paper:
    """alpha = cos(pi t/2), t uniform, told the log SNR (Salimans and Ho 2022)."""
    alpha, s = (lambda t: mp.cos(mp.pi * t / 2)), (lambda t: mp.sin(mp.pi * t / 2))
    return Paper(alpha, s, q, weight, lambda t: mp.log(alpha(t) ** 2 / s(t) ** 2), one)


def snr(t: Any) -> Any:
    return mp.cot(mp.pi * t / 2) ** 2


def of_flow(weight: F, tells: F, p: F, q: F) -> Paper:
    """x_t = (1 - t) x0 + t eps."""
    return Paper(lambda t: 1 - t, lambda t: t, q, weight, tells, p, mp.mpf(10) ** -12,
                 1 - mp.mpf(10) ** -12)  # fmt: skip


def logit_normal(t: Any, mean: str, std: str) -> Any:
    return normal(mp.log(t / (1 - t)), mean, std) / (t * (1 - t))


def pixels(sigma_data: float) -> Any:
    """Our units of data in [0, 1], whose deviation is taken to be a quarter."""
    return mp.mpf(sigma_data) / mp.mpf("0.25")


def ncsn_level(i: int) -> Any:
    """The levels 0.01 to 1, geometric, i = 0 ... 9."""
    return mp.mpf("0.01") * mp.mpf(100) ** (mp.mpf(i) / 9)


def geometric(low: str, high: str) -> F:
    return lambda t: mp.mpf(low) * (mp.mpf(high) / mp.mpf(low)) ** t


def vp_exponent(t: Any) -> Any:
    return mp.mpf("19.9") * t**2 / 2 + mp.mpf("0.1") * t


def vp_sigma(t: Any) -> Any:
    return mp.sqrt(mp.exp(vp_exponent(t)) - 1)


def v_of(alpha: F, s: F) -> F:
    return lambda t: (-s(t), alpha(t))


def raw_score(s: F) -> F:
    """grad log p(x|x0) = -eps/sigma."""
    return lambda t: (mp.mpf(0), -1 / s(t))


NOISE = (mp.mpf(0), mp.mpf(1))
CLEAN = (mp.mpf(1), mp.mpf(0))
VELOCITY = (mp.mpf(-1), mp.mpf(1))


@functools.cache
def papers(sigma_data: float) -> dict[str, Paper]:
    """The paper of each recipe."""
    ddpm_sees = (
        (lambda i: mp.sqrt(alpha_bar()[int(i)])),
        (lambda i: mp.sqrt(1 - alpha_bar()[int(i)])),
    )
    cosine = (lambda t: mp.cos(mp.pi * t / 2)), (lambda t: mp.sin(mp.pi * t / 2))
    unit = pixels(sigma_data)
    ve = geometric("0.01", "50")
    karras = geometric("0.02", "100")
    sd = mp.mpf(sigma_data)

    def trig(t: Any) -> tuple[Any, Any]:
        """F = (cos(t) z - sin(t) x0)/sigma_data with z = sigma_data eps."""
        return -mp.sin(t) / sd, mp.cos(t)

    return {
        "ddpm": Paper(*ddpm_sees, lambda i: NOISE, one, lambda i: i, levels=tuple(range(1000))),
        "progressive_v": progressive(one, v_of(*cosine)),
        "progressive_x0": progressive(lambda t: max(snr(t), mp.mpf(1)), lambda t: CLEAN),
        "edm": of_log_normal("-1.2", "1.2", sigma_data),
        "edm2": of_log_normal("-0.4", "1", sigma_data),
        "ncsn": Paper(
            one, ncsn_level, raw_score(ncsn_level), lambda i: ncsn_level(i) ** 2, lambda i: i,
            levels=tuple(range(10)), unit=unit,
        ),
        # sigma^2 |s - grad log p|^2 with s = F/sigma.
        "ve": Paper(
            one, ve, raw_score(ve), lambda t: ve(t) ** 2, lambda t: mp.log(unit * ve(t)), one,
            unit=unit,
        ),
        "ve_karras": Paper(
            one, karras, lambda t: CLEAN, lambda t: 1 / karras(t) ** 2,
            lambda t: mp.log(karras(t) / 2), one,
        ),
        "vp_karras": Paper(
            lambda t: mp.exp(-vp_exponent(t) / 2),
            lambda t: mp.sqrt(1 - mp.exp(-vp_exponent(t))),
            lambda t: NOISE, one, lambda t: 999 * t, one, mp.mpf("1e-5"),
        ),
        "rectified_flow": of_flow(
            one, lambda t: t, lambda t: logit_normal(t, "0", "1"), lambda t: VELOCITY
        ),
        # Its t is 1 - t: v = x - eps over (1 - t) clipped, t with logit ~ N(-0.8, 0.8^2).
        "jit": of_flow(
            lambda t: 1 / max(t, mp.mpf("0.05")) ** 2, lambda t: 1 - t,
            lambda t: logit_normal(1 - t, "-0.8", "0.8"), lambda t: CLEAN,
        ),
        "trigflow": Paper(
            mp.cos, lambda t: sd * mp.sin(t) , trig, lambda t: sd**2,
            lambda t: 2 * t / mp.pi,
            lambda t: normal(mp.log(sd * mp.tan(t)), "-0.8", "1.6") / (mp.sin(t) * mp.cos(t)),
            mp.mpf(10) ** -9, mp.pi / 2 - mp.mpf(10) ** -9, sees=lambda t: 1 / sd,
        ),
    }  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """What a trial of a recipe trains: its objective, and what the network gets of a sigma."""

    name: str
    sigma_data: float
    recipe: testbed.Recipe
    p: Parameterization
    objective: Objective
    inputs: Callable[[Tensor], tuple[Tensor, Tensor]]


def trained(recipe: testbed.Recipe, sigma_data: float) -> Trained:
    """The recipe at work, for data of that sigma_data."""
    p = REGISTRY.parameterization(recipe.parameterization)
    objective = recipes.objective(recipe, p, REGISTRY, sigma_data).with_states(0)
    denoiser = Denoiser(
        nn.Identity(),
        objective.parameterization,
        sigma_data,
        recipe.c_in,
        recipe.c_noise,
        objective.table,
    )
    return Trained(recipe.name, sigma_data, recipe, p, objective, denoiser.inputs)


def changed(name: str, sigma_data: float, **change: Any) -> Trained:
    """A bundled recipe with other choices, under its own name."""
    return trained(replace(REGISTRY.recipe(name), **change), sigma_data)


def grid(subject: Trained, paper: Paper) -> tuple[list[Any], Tensor]:
    """Times of the paper and our sigmas: all levels of a discrete one, eight of another."""
    if paper.levels:
        t = list(paper.levels)
    else:
        low, high = subject.objective.density.range
        ends = max(paper.time(low), paper.first), min(paper.time(high), paper.last)
        t = [ends[0] + (ends[1] - ends[0]) * mp.mpf(i) / 80 for i in (2, 5, 10, 20, 35, 50, 65, 75)]
    return t, torch.tensor([float(paper.sigma(one)) for one in t], dtype=torch.float64)


def close(found: Tensor, wanted: list[Any], what: str, scale: float = 0.0) -> None:
    """Equal to the bound for their sizes, or for `scale` where they may cancel."""
    assert found.shape == (len(wanted),), f"{what}: {tuple(found.shape)}"
    truth = torch.tensor([float(one) for one in wanted], dtype=torch.float64)
    error = (found - truth).abs() / (truth.abs() + scale)
    worst = int(error.nan_to_num(torch.inf).argmax())
    assert float(error[worst]) <= gamma(K), (
        f"{what}: {float(found[worst]):.10g}, and the paper has {float(truth[worst]):.10g}"
    )


def law_weight_and_density_are_the_paper_s(subject: Trained, paper: Paper) -> None:
    """lambda(sigma) p(log sigma), and of a table lambda at each level and its mass."""
    t, sigma = grid(subject, paper)
    if not paper.levels:
        weight = subject.objective.effective_weight(sigma)
        low, high = map(mp.mpf, subject.objective.density.range)
        wanted = [paper.lambda_(one) * paper.density(one, low, high) for one in t]
        close(weight, wanted, f"{subject.name}: lambda p")
        return
    n = len(t)
    drawn = subject.objective.sigma((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    close(drawn, [paper.sigma(one) for one in t], f"{subject.name}: levels")
    weight = subject.objective.effective_weight(drawn)
    lambda_ = weight / subject.objective.density.pdf_over_log_sigma(drawn)
    close(lambda_, [paper.lambda_(one) for one in t], f"{subject.name}: lambda")


def law_inputs_are_the_paper_s(subject: Trained, paper: Paper) -> None:
    """c_in x is what the paper's network sees, c_noise what it is told."""
    t, sigma = grid(subject, paper)
    c_in, c_noise = subject.inputs(sigma)
    seen = [paper.alpha(one) * paper.sees(one) for one in t]
    close(c_in, seen, f"{subject.name}: c_in")
    close(c_noise, [mp.mpf(paper.tells(one)) for one in t], f"{subject.name}: c_noise", scale=1)


def law_network_is_asked_for_what_the_paper_asks(subject: Trained, paper: Paper) -> None:
    """F* is the paper's target, and where its output is divided by sigma, what is divided."""
    t, sigma = grid(subject, paper)
    a, b = subject.objective.parameterization.pair_weights(sigma, sigma_data=subject.sigma_data)
    before = {"ve": (0, -1), "ve_karras": (0, -1)}
    wanted = [before.get(subject.name) or paper.q(one) for one in t]
    # A target of data in our units; eps has none.
    data = {"ncsn": 1 / paper.unit}.get(subject.name, 1)
    close(a, [one[0] for one in wanted], f"{subject.name}: F* of x0", scale=1)
    close(b, [one[1] * data for one in wanted], f"{subject.name}: F* of eps", scale=1)


def law_levels_are_the_paper_s(subject: Trained, paper: Paper) -> None:
    """A continuous recipe that states its levels draws from the paper's first t to its last."""
    low, high = subject.objective.density.support
    ends = [paper.sigma(mp.mpf(paper.first)), paper.sigma(mp.mpf(paper.last))]
    # The outermost uniform numbers are 2^-53 from 0 and 1.
    assert abs(low / float(ends[0]) - 1) < 1e-9, f"{low} for {float(ends[0])}"
    assert abs(high / float(ends[1]) - 1) < 1e-9, f"{high} for {float(ends[1])}"
