"""Mistakes in the DDPM chain, in its bound, in a learned variance, and in reading a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from helpers.strategies import fixed
from laws import ddpm as chains
from laws import outputs as readings
from mutants.registry import FAMILIES, Family, tests, wrong
from torch import Tensor, nn

import testbed
from testbed.diffusion import ddpm, noise_levels, outputs
from testbed.diffusion.ddpm import Chain, Normal
from testbed.diffusion.predictions import PREDICTION_TYPES, convert
from testbed.tensors import per_sample, scaled
from testbed.training.objective import Objective
from testbed.training.variational import Variational

# --- the chain and its bound ---------------------------------------------------------------------

STEPS, PRINTED = "tests.steps_give_the_marginal", "tests.marginal_is_printed"
DRAWN, BAYES = "tests.draws_have_the_marginal", "tests.posterior_is_bayes"
STATIONARY = "tests.bound_is_exact_on_the_stationary_chain"
ENTROPY = "tests.bound_with_the_exact_reverse_is_the_entropy"
ABOVE, TORCH = "tests.bound_is_above_and_closes_in", "tests.kl_and_density_are_torch_s"


def of_chain(made: chains.Made) -> set[str]:
    laws = (
        chains.law_steps_give_the_marginal,
        chains.law_marginal_is_printed,
        chains.law_draws_have_the_marginal,
        chains.law_posterior_is_bayes,
        *chains.BOUND_LAWS,
    )
    named = {law.__name__.removeprefix("law_"): law for law in laws}
    return tests(**{name: lambda law=law: law(made) for name, law in named.items()})  # type: ignore[misc]


FAMILIES["chain"] = Family(
    "the DDPM chain, its posterior, and the terms of the evidence lower bound",
    of_chain,
    {"right": Chain},
)


def chain(mistake: str, kind: type[Chain], meant: str, *also: str) -> None:
    wrong("chain", mistake, kind, meant, *also)


class NotShrunk(Chain):
    """x_t = x_{t-1} + sqrt(beta) z."""

    def step(self, x: Tensor, t: Any) -> Normal:
        return Normal(x, super().step(x, t).variance)


class RootOfBeta(Chain):
    """The deviation for the variance of a step."""

    def step(self, x: Tensor, t: Any) -> Normal:
        found = super().step(x, t)
        return Normal(found.mean, found.variance.sqrt())


class BarForItsRoot(Chain):
    def marginal(self, x0: Tensor, t: Any) -> Normal:
        return Normal(scaled(x0, self.abar[t]), super().marginal(x0, t).variance)


class RootInTheVariance(Chain):
    def marginal(self, x0: Tensor, t: Any) -> Normal:
        found = super().marginal(x0, t)
        return Normal(found.mean, per_sample(1 - self.abar[t].sqrt(), x0))


class OneStepOff(Chain):
    """beta_t of the step before."""

    @property
    def beta(self) -> Tensor:
        own = super().beta
        return torch.cat([own[:1], own[:-1]])


class BetaForTilde(Chain):
    def posterior(self, x_t: Tensor, x0: Tensor, t: Any) -> Normal:
        return Normal(super().posterior(x_t, x0, t).mean, per_sample(self.beta[t], x0))


class Exchanged(Chain):
    """x0 and x_t exchanged in the posterior's mean."""

    def posterior(self, x_t: Tensor, x0: Tensor, t: Any) -> Normal:
        return super().posterior(x0, x_t, t)


class EulerMean(Chain):
    """The mean of Euler's step, D + (sigma'/sigma)(x - D)."""

    def reverse(self, denoiser: Any, x: Tensor, t: int, variance: str = "small") -> Normal:
        found = super().reverse(denoiser, x, t, variance)
        q = self.before[t] / self.sigmas[t]
        D = (found.mean - q**2 * x) / (1 - q**2)
        return Normal(D + q * (x - D), found.variance)


class DeviationForVariance(Chain):
    def reverse(self, denoiser: Any, x: Tensor, t: int, variance: str = "small") -> Normal:
        found = super().reverse(denoiser, x, t, variance)
        return Normal(found.mean, found.variance.sqrt())


class BackwardsKl(Chain):
    """KL(p || q) for KL(q || p)."""

    def elbo(self, *given: Any) -> ddpm.Elbo:
        right = Normal.kl
        with mock.patch.object(Normal, "kl", lambda one, other: right(other, one)):
            return super().elbo(*given)


class NoMeanInThePrior(Chain):
    def _prior(self, x0: Tensor) -> Tensor:
        return super()._prior(0 * x0)


class AtSigmaOfTheEnd(Chain):
    """The prior's variance sigma^2 for 1 - abar."""

    def _prior(self, x0: Tensor) -> Tensor:
        abar, s2 = self.abar[-1], self.sigmas[-1] ** 2
        return ((abar * x0**2 + s2 - 1 - torch.log(s2)) / 2).flatten(1).sum(1)


class NoReconstruction(Chain):
    def elbo(self, *given: Any) -> ddpm.Elbo:
        found = super().elbo(*given)
        return found._replace(reconstruction=0 * found.reconstruction)


class NoHalfLogTwoPi(Chain):
    """log(2 pi) left out of the decoder."""

    def elbo(self, *given: Any) -> ddpm.Elbo:
        found = super().elbo(*given)
        return found._replace(reconstruction=found.reconstruction - 0.9189385332046727)


BOUNDS = f"{STATIONARY} {ENTROPY} {ABOVE}"
chain("a step does not shrink its mean", NotShrunk, STEPS, DRAWN)
chain("the deviation for a step's variance", RootOfBeta, STEPS, DRAWN)
chain("abar for its root in the marginal", BarForItsRoot, PRINTED, STEPS)
chain("the root of abar in the marginal's variance", RootInTheVariance, PRINTED, STEPS)
chain("beta of the step before", OneStepOff, STEPS, BAYES)
chain("beta for beta~ in the posterior", BetaForTilde, BAYES)
chain("x0 and x_t exchanged in the posterior", Exchanged, BAYES)
chain("the mean of Euler's step in the bound", EulerMean, STATIONARY, BOUNDS)
chain("the deviation for the reverse variance", DeviationForVariance, STATIONARY, BOUNDS)
chain("the divergence turned round", BackwardsKl, STATIONARY, BOUNDS)
chain("the prior without the mean", NoMeanInThePrior, STATIONARY, ENTROPY)
chain("sigma^2 for 1 - abar in the prior", AtSigmaOfTheEnd, STATIONARY, BOUNDS)
chain("no reconstruction term", NoReconstruction, STATIONARY, ENTROPY)
chain("the decoder without log(2 pi)", NoHalfLogTwoPi, STATIONARY, BOUNDS)

# --- Gaussians -----------------------------------------------------------------------------------


FAMILIES["normal"] = Family(
    "the divergence and the log-density of two Gaussians",
    lambda kind: tests(
        kl_and_density_are_torch_s=lambda: chains.law_kl_and_density_are_torch_s(kind)
    ),
    {"right": Normal},
)


class Turned(Normal):
    def kl(self, other: Normal) -> Tensor:
        return Normal(*other).kl(Normal(*self))


class NoHalf(Normal):
    def kl(self, other: Normal) -> Tensor:
        return 2 * Normal(*self).kl(other)


class NoLog(Normal):
    def log_density(self, x: Tensor) -> Tensor:
        return -((x - self.mean) ** 2 / self.variance).sum(1) / 2


for mistake, kind in (
    ("KL(q || p) for KL(p || q)", Turned),
    ("the half forgotten", NoHalf),
    ("the density without its factor", NoLog),
):
    wrong("normal", mistake, kind, TORCH)

# --- a learned variance --------------------------------------------------------------------------

POSTERIOR, VLB = "tests.posterior_is_printed", "tests.vlb_is_the_bound"
BEST, ALONE = "tests.best_variance_is_the_known_one", "tests.vlb_moves_nu_alone"


@dataclass(frozen=True)
class Learned:
    """What belongs to a learned variance, each wrong or right."""

    build: chains.Build = chains.doubled
    variational: type[Variational] = Variational
    objective: type[Objective] = Objective


def of_learned(subject: Learned) -> set[str]:
    return tests(
        posterior_is_printed=lambda: chains.law_posterior_is_printed(subject.build),
        vlb_is_the_bound=lambda: chains.law_vlb_is_the_bound(subject.variational),
        best_variance_is_the_known_one=lambda: chains.law_best_variance_is_the_known_one(
            subject.variational
        ),
        vlb_moves_nu_alone=lambda: chains.law_vlb_moves_nu_alone(subject.objective),
    )


FAMILIES["learned variance"] = Family(
    "the variance that a network's second half gives, and its loss",
    of_learned,
    {"right": Learned()},
)


def built(changed: Callable[..., Normal]) -> Learned:
    """A denoiser whose posterior goes through `changed(denoiser, right, x, sigma, sigma_next)`."""

    class Wrong(testbed.Denoiser):
        def posterior(self, x: Tensor, sigma: Any, sigma_next: Any = None, c: Any = None) -> Normal:
            return changed(self, super().posterior, x, sigma, sigma_next)

    def build(name: str, t: Any) -> testbed.Denoiser:
        right = chains.doubled(name, t)
        return Wrong(
            right.network, right.parameterization, 0.5, c_noise="index", table=t,
            learned_variance=True,
        )  # fmt: skip

    return Learned(build)


def through(changed: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Learned:
    """Another way from beta~, beta and nu to the variance."""

    def posterior(d: Any, right: Any, *given: Any) -> Normal:
        def interpolated(low: Tensor, high: Tensor, nu: Tensor) -> Tensor:
            return changed(per_sample(low, nu), per_sample(high, nu), nu)

        with mock.patch.object(ddpm, "interpolated", interpolated):
            found: Normal = right(*given)
        return found

    return built(posterior)


def log_mean(low: Tensor, high: Tensor, v: Tensor) -> Tensor:
    return torch.exp(v * torch.log(high) + (1 - v) * torch.log(low))


def posterior(mistake: str, subject: Learned) -> None:
    wrong("learned variance", mistake, subject, POSTERIOR)


posterior("v is nu", through(lambda low, high, nu: log_mean(low, high, nu)))
posterior("beta and beta~ exchanged", through(lambda a, b, nu: log_mean(b, a, (nu + 1) / 2)))
posterior("between the variances, not their logarithms",
          through(lambda a, b, nu: a + (b - a) * (nu + 1) / 2))  # fmt: skip
posterior("the log variance itself", through(lambda a, b, nu: torch.exp(nu) + 0 * a))


def in_vp(d: Any, right: Any, x: Tensor, sigma: Any, sigma_next: Any) -> Normal:
    mean, variance = right(x, sigma, sigma_next)
    t = d.table.index(torch.as_tensor(sigma, dtype=torch.float64))
    before = ddpm.Chain(d.table.sigmas).before[t]
    return Normal(mean, variance / per_sample(1 + before**2, x))


posterior("in VP coordinates, not divided by abar'", built(in_vp))


def euler_mean(d: Any, right: Any, x: Tensor, sigma: Any, sigma_next: Any) -> Normal:
    return Normal(d(x, sigma), right(x, sigma, sigma_next).variance)


posterior("D for the posterior's mean", built(euler_mean))


def unclipped(d: Any, right: Any, *given: Any) -> Normal:
    """At the first step beta for beta~."""

    def both(sigma: Tensor, sigma_next: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        high = ddpm.large(sigma, sigma_next)
        return torch.where(sigma_next > 0, ddpm.small(sigma, sigma_next), high), high

    with mock.patch.object(ddpm, "extremes", both):
        found: Normal = right(*given)
    return found


posterior("the first step's beta~ is beta", built(unclipped))


class OneTerm(Variational):
    """E_t without the n."""

    def __call__(self, *given: Any) -> Tensor:
        return super().__call__(*given) / len(self.terms)


class AsDrawn(Variational):
    """L_t with another factor on |D - x0|^2."""

    power = 1.0

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        s = given[1]
        q = torch.cat([torch.zeros(1).double(), s[:-1]]) / s
        self.terms[:, 1] *= ((1 - q**2) ** self.power).float()


class Half(AsDrawn):
    power = -1.0


class OutForItsSquare(Variational):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        out = given[0].coefficients(given[1], sigma_data=given[2]).out
        self.terms[:, 1] /= out.abs().float()


class ReverseSign(Variational):
    """v from 1 to 0."""

    def __call__(self, F: Tensor, nu: Tensor, *rest: Any) -> Tensor:
        return super().__call__(F, -nu, *rest)


class NoKlInTheFirst(Variational):
    """The first term as a divergence."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.terms[0, 2] = 1.0


class LevelBelow(Variational):
    """The terms of the level below."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.terms = torch.cat([self.terms[:1], self.terms[:-1]])


for mistake, variational, also in (
    ("E_t of L_t without n", OneTerm, ""),
    ("another 1 - q^2 on the error", AsDrawn, BEST),
    ("a 1 - q^2 missing from the error", Half, BEST),
    ("|c_out| for its square", OutForItsSquare, BEST),
    ("v from 1 to 0", ReverseSign, BEST),
    ("the first term as a divergence", NoKlInTheFirst, BEST),
    ("the terms of the level below", LevelBelow, BEST),
):
    wrong("learned variance", mistake, Learned(variational=variational), VLB, also)


class Attached(Objective):
    """The mean gets the gradient of L_vlb too."""

    def __call__(self, F: Tensor, *rest: Any) -> Tensor:
        with mock.patch.object(Tensor, "detach", lambda one: one):
            return super().__call__(F, *rest)


class Swapped(Objective):
    """[nu, F]."""

    def __call__(self, F: Tensor, *rest: Any) -> Tensor:
        if self.vlb is not None:
            F = torch.cat(F.chunk(2, 1)[::-1], 1)
        return super().__call__(F, *rest)


class Unused(Objective):
    """L_vlb left out."""

    def __call__(self, F: Tensor, *rest: Any) -> Tensor:
        return super().__call__(F, *rest) - (0 if self.vlb is None else self.vlb) * (
            self.variational(*F.chunk(2, 1), *rest) if self.vlb is not None else 0
        )


for mistake, objective in (
    ("L_vlb reaches the mean", Attached),
    ("[nu, F] for [F, nu]", Swapped),
    ("L_vlb left out", Unused),
):
    wrong("learned variance", mistake, Learned(objective=objective), ALONE)

# --- reading a score -----------------------------------------------------------------------------

TWEEDIE, KIND, VP = (
    f"tests.{name}"
    for name in ("all_ways_are_tweedie", "reading_is_the_kind", "vp_score_is_brought_in")
)


@dataclass(frozen=True)
class Reading:
    """A way to bring in a score, a reading of any kind, and the border of VP."""

    way: readings.Way = readings.by_wrapper
    read: Callable[..., testbed.Parameterization] = outputs.with_output
    to_ve: Callable[..., Tensor] = noise_levels.VP.score_to_ve


def of_reading(subject: Reading) -> set[str]:
    return tests(
        all_ways_are_tweedie=lambda: readings.law_all_ways_are_tweedie(subject.way, "v", fixed()),
        reading_is_the_kind=lambda: readings.law_reading_is_the_kind(subject.read, fixed()),
        vp_score_is_brought_in=lambda: readings.law_vp_score_is_brought_in(subject.to_ve),
    )


FAMILIES["score"] = Family(
    "a network that outputs a score, or another kind, as a denoiser",
    of_reading,
    {
        "scaling": Reading(readings.by_scaling),
        "wrapper": Reading(readings.by_wrapper),
        "flag": Reading(readings.by_flag),
    },
)


def wrapped(forward: Callable[..., Tensor], **inputs: Any) -> Reading:
    """The wrapper with F = forward(s, x, sigma, p, sigma_data)."""

    class Wrong(outputs.OutputAsF):
        def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
            s = self.network(x, sigma, condition).to(x.dtype)
            return forward(s, x, sigma, self.parameterization, self.sigma_data)

    def way(network: nn.Module, name: str, sigma_data: Any) -> readings.Denoise:
        p = readings.default_registry().parameterization(name)
        own = {"c_in": "unit", "c_noise": "sigma", **inputs}
        return testbed.Denoiser(Wrong(network, "score", p, sigma_data), p, sigma_data, **own)

    return Reading(way)


def F_of(s: Tensor, x: Tensor, sigma: Tensor, p: Any, sd: Any, kind: str = "score") -> Tensor:
    return convert(s, kind, p, x=x, sigma=sigma, sigma_data=sd)


wrong("score", "the score of the other sign", wrapped(lambda s, *rest: F_of(-s, *rest)), TWEEDIE)
wrong("score", "the score taken for -eps", wrapped(lambda s, *rest: F_of(-s, *rest, "eps")),
      TWEEDIE)  # fmt: skip
wrong("score", "sigma for sigma^2",
      wrapped(lambda s, x, sigma, *rest: F_of(s / sigma[:, None], x, sigma, *rest)),
      TWEEDIE)  # fmt: skip
wrong("score", "the score given out for F", wrapped(lambda s, *rest: s), TWEEDIE)
wrong("score", "c_in x for x", wrapped(F_of, c_in=None), TWEEDIE)
wrong("score", "c_noise of log sigma for sigma", wrapped(F_of, c_noise="shared"), TWEEDIE)


def read(skip: Callable[..., Tensor], out: Callable[..., Tensor]) -> Reading:
    """A reading with c_skip(b, n) and c_out(sigma, n), n = b - sigma a."""

    def reading(p: testbed.Parameterization, output: str) -> testbed.Parameterization:
        q = PREDICTION_TYPES[output]

        def scaling(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
            own, s = p.coefficients(sigma, sigma_data=sigma_data), sigma.double()
            b, n = q.b(s), q.b(s) - s * q.a(s)
            return testbed.Coefficients(skip(b, n), out(s, n), own.in_, own.noise)

        return testbed.Parameterization("wrong", scaling, target=outputs.OutputTarget(output))

    return Reading(read=reading)


wrong("score", "c_out of the other sign", read(lambda b, n: b / n, lambda s, n: s / n), KIND)
wrong("score", "c_skip is 1", read(lambda b, n: torch.ones_like(b), lambda s, n: -s / n), KIND)
wrong("score", "c_out without sigma", read(lambda b, n: b / n, lambda s, n: -1 / n), KIND)
wrong("score", "the VP score without alpha", Reading(to_ve=lambda s, t: s), VP)
wrong("score", "the VP score over alpha",
      Reading(to_ve=lambda s, t: scaled(s, 1 / noise_levels.VP.alpha(t))), VP)  # fmt: skip
wrong("score", "the VP score times alpha^2",
      Reading(to_ve=lambda s, t: scaled(s, noise_levels.VP.alpha(t) ** 2)), VP)  # fmt: skip
