"""Mistakes in denoisers of other codebases, and in the one around a trained network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mutants.registry import (
    FAMILIES,
    REGISTRY,
    STEPS,
    TOLD,
    WRONG_D,
    Family,
    audited,
    broken,
    col,
    wrong,
)
from mutants.wrong_parameterizations import r_of
from torch import Tensor

import testbed
from testbed import tensors
from testbed.audit import Adapter, driver, factories, readings, reference, trained
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.oracles import Oracle
from testbed.random import stream


@dataclass(frozen=True)
class Read:
    """A factory of the other codebase, and how the audit is told to read what it makes."""

    factory: Callable[..., Any]
    adapter: Adapter = field(default_factory=Adapter)
    parameterization: str | None = None


def of_denoiser(subject: Read) -> set[str]:
    """On the mixture; around a network the first three levels, on the audit's own data."""
    try:
        found = driver.run(
            subject.factory,
            parts=driver.PARTS[:3],
            adapter=subject.adapter,
            oracle=None if subject.parameterization else reference.mixture(),
            parameterization=subject.parameterization,
            dtypes=(torch.float64, torch.float32),
        )
    except InputError:
        return {"audit.answers"}
    TOLD[id(subject)] = " ".join(found.findings)
    if subject.parameterization:
        return broken(found.rows)
    read = factories.external_denoiser(
        "wrong", subject.factory, reference.mixture(), subject.adapter
    )
    read.leave_out_refused(torch.float64)
    table = subject.adapter.table
    more = ("learning", "sampling", "ode") if table is None else ("learning", "sampling")
    steps = STEPS if table is None else table.flip(0)[::57]
    return broken(found.rows) | audited(read, reference.mixture(), *more, sigmas=steps)


def asked(answer: Callable[[Oracle, Tensor, Tensor], Tensor]) -> Callable[[Oracle], Any]:
    """`answer(oracle, x, sigma)` as a factory."""

    def factory(oracle: Oracle) -> Any:
        return lambda x, sigma: answer(oracle, x, sigma)

    return factory


def eps_of(o: Oracle, x: Tensor, sigma: Tensor) -> Tensor:
    return -col(sigma) * o.score(x, sigma)


def vp_eps(o: Oracle, x_t: Tensor, t: Tensor, power: int = 1) -> Tensor:
    """eps of a state in VP coordinates; `power` of alpha it divides the state by."""
    x, sigma = x_t / col(noise_levels.VP.alpha(t)) ** power, noise_levels.VP.sigma(t)
    return eps_of(o, x, sigma)


def vp_score(
    o: Oracle,
    x_t: Tensor,
    t: Tensor,
    power: int = 1,
    schedule: noise_levels.NoiseSchedule = noise_levels.VP,
) -> Tensor:
    """grad log p(x_t) = grad log p(x)/alpha."""
    a = col(schedule.alpha(t))
    return o.score(x_t / a, schedule.sigma(t)) / a**power


def velocity(o: Oracle, x_t: Tensor, t: Tensor) -> Tensor:
    """u = eps - x0 of x_t = (1 - t) x0 + t eps."""
    x, sigma = noise_levels.FLOW.to_ve(x_t, t)
    return eps_of(o, x, sigma) - o.denoise(x, sigma)


def edm_wrapper(
    skip: Callable[..., Tensor],
    sign: int = 1,
    log: float = 4,
    c_noise: Callable[[Tensor], Tensor] | None = None,
) -> Callable[..., Any]:
    """EDM's preconditioning around a network, with another c_skip, sign of c_out, or c_noise."""

    def factory(network: Any, sigma_data: float) -> Any:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            s, sd = col(sigma), sigma_data
            r = torch.sqrt(s**2 + sd**2)
            F = network(x / r, torch.log(sigma) / log if c_noise is None else c_noise(sigma))
            return skip(s, sd) * x + sign * s * sd / r * F

        return denoise

    return factory


def edm_skip(s: Tensor, sd: float) -> Tensor:
    return sd**2 / (s**2 + sd**2)


class Counter:
    """A denoiser with a state: every call is answered with another number."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle, self.calls = oracle, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return self.oracle.denoise(x, sigma) * (1 + 1e-3 * self.calls)


class Linear(torch.nn.Module):
    """A network with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.4, 0], [0, -1, 0.7]]))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return x @ self.A + torch.tanh(c_noise)[:, None]


LEVELS = torch.logspace(-2, 2, 400, dtype=torch.float64)
VP_EPS, VP_SCORE = Adapter("eps", "vp", "time"), Adapter("score", "vp", "time")
FLOW_TIME = Adapter("flow", "flow", "time")
INDEX = Adapter("x0", "ve", "index", LEVELS)
FAMILIES["denoiser"] = Family(
    "a denoiser of another codebase, read through an adapter",
    of_denoiser,
    {
        "x0": Read(asked(lambda o, x, s: o.denoise(x, s))),
        "eps": Read(asked(eps_of), Adapter("eps")),
        "score in VP": Read(asked(vp_score), VP_SCORE),
        "eps in VP": Read(asked(vp_eps), VP_EPS),
        "velocity": Read(asked(velocity), FLOW_TIME),
        "index": Read(asked(lambda o, x, i: o.denoise(x, LEVELS[i])), INDEX),
        "around EDM's network": Read(edm_wrapper(edm_skip), parameterization="edm"),
    },
)


def denoiser(
    mistake: str, answer: Any, adapter: Adapter, told: str, meant: str, *also: str
) -> None:
    wrong("denoiser", mistake, Read(asked(answer), adapter), meant, *also, told=told)


def wrapper(mistake: str, factory: Callable[..., Any], told: str, meant: str, *also: str) -> None:
    wrong("denoiser", mistake, Read(factory, parameterization="edm"), meant, *also, told=told)


def of_x0(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Any:
    """`answer(D, x, sigma)` with D exact."""
    return lambda o, x, s: answer(o.denoise(x, s), x, s)


denoiser(
    "eps of the other sign",
    lambda o, x, s: -eps_of(o, x, s),
    Adapter("eps"),
    "minus the eps",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive",
)
denoiser(
    "sigma eps for eps",
    lambda o, x, s: col(s) * eps_of(o, x, s),
    Adapter("eps"),
    "the noise sigma eps",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive second_order.symmetric",
)
denoiser(
    "eps for v",
    eps_of,
    Adapter("v"),
    "it returns the eps, read as v",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive",
)
denoiser(
    "v with a plus",
    lambda o, x, s: (eps_of(o, x, s) + col(s) * o.denoise(x, s)) / r_of(col(s)),
    Adapter("v"),
    "v with a plus",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive",
)
denoiser(
    "the score without 1/sigma^2",
    lambda o, x, s: o.denoise(x, s) - x,
    Adapter("score"),
    "the score without 1/sigma^2",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive second_order.symmetric",
)
denoiser(
    "1/sigma for 1/sigma^2 in the score",
    lambda o, x, s: (o.denoise(x, s) - x) / col(s),
    Adapter("score"),
    "minus the eps",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive",
)
denoiser(
    "the score in VP coordinates, not divided by alpha",
    lambda o, x, t: vp_score(o, x, t, 0),
    VP_SCORE,
    "1/alpha is missing",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
denoiser(
    "the state in VP coordinates not divided by alpha",
    lambda o, x, t: vp_eps(o, x, t, 0),
    VP_EPS,
    "multiplied by alpha",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
denoiser(
    "abar for sqrt(abar)",
    lambda o, x, t: vp_eps(o, x, t, 2),
    VP_EPS,
    "divided by alpha",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive second_order.symmetric",
)
denoiser(
    "the flow's time turned",
    lambda o, x, t: velocity(o, x, 1 - t),
    FLOW_TIME,
    "the direction of time is turned",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
denoiser(
    "the velocity of the other sign",
    lambda o, x, t: -velocity(o, x, t),
    FLOW_TIME,
    "minus the flow",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive",
)
denoiser(
    "sigma^2 for sigma",
    lambda o, x, s: o.denoise(x, s**2),
    Adapter(),
    "the noise level is taken as sigma^2",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
denoiser(
    "the next index of the table",
    lambda o, x, i: o.denoise(x, LEVELS[(i + 1).clamp(max=399)]),
    INDEX,
    "",
    "oracle.target",
    "oracle.score oracle.tweedie sampling.derivative sampling.trajectory",
    "second_order.covariance",
)
denoiser(
    "the first sample's sigma for all",
    lambda o, x, s: o.denoise(x, s[:1].expand_as(s)),
    Adapter(),
    "first sample",
    "algebra.single",
    "algebra.square",
    "learning.split oracle.score oracle.target oracle.tweedie sampling.derivative",
    "second_order.covariance",
)
denoiser(
    "normalised over the batch",
    of_x0(lambda D, x, s: D - 1e-3 * D.mean(0)),
    Adapter(),
    "mixes the samples",
    "algebra.single",
    "algebra.square",
    WRONG_D,
    "learning.split",
)
denoiser(
    "sigma along the last axis",
    lambda o, x, s: x + s**2 * o.score(x, s),
    Adapter(),
    "",
    "audit.answers",
)
denoiser(
    "the gradient is detached",
    of_x0(lambda D, x, s: D.detach()),
    Adapter(),
    "gradient",
    "second_order.attached",
)
denoiser(
    "a draw from the global random state",
    of_x0(lambda D, x, s: D + 0 * torch.rand_like(D)),
    Adapter(),
    "random",
    "algebra.steady",
)
denoiser(
    "x overwritten",
    lambda o, x, s: (
        o.denoise(x.mul_(1 + 2**-20).clone(), s) if not x.requires_grad else o.denoise(x, s)
    ),
    Adapter(),
    "",
    "algebra.pure",
    "algebra.single algebra.square sampling.ode sampling.trajectory",
)
denoiser(
    "float32 inside",
    lambda o, x, s: o.denoise(x.float(), s.float()).to(x.dtype),
    Adapter(),
    "rounded to float32",
    "oracle.target",
    WRONG_D,
)
denoiser(
    "float64 whatever x is",
    lambda o, x, s: o.denoise(x.double(), s.double()),
    Adapter(),
    "another shape or dtype",
    "algebra.shape",
)
denoiser(
    "NaN above sigma = 1e3",
    of_x0(lambda D, x, s: torch.where(col(s) > 1e3, math.nan, D)),
    Adapter(),
    "not finite",
    "algebra.finite",
    "algebra.single learning.split oracle.score oracle.target",
    "oracle.tweedie sampling.derivative second_order.covariance",
)
denoiser(
    "guidance of 1.1 left on",
    of_x0(lambda D, x, s: x + 1.1 * (D - x)),
    Adapter(),
    "1.1 times the way from x to D",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive",
)
denoiser(
    "right for centred, isotropic, Gaussian data alone",
    lambda o, x, s: x * 0.25 / (0.25 + col(s) ** 2),
    Adapter(),
    "",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
denoiser(
    "D clipped to [-1, 1]",
    of_x0(lambda D, x, s: D.clamp(-1, 1)),
    Adapter(),
    "",
    "oracle.target",
    WRONG_D,
    "learning.split second_order.positive second_order.symmetric",
)
denoiser(
    "off by one part in a million",
    of_x0(lambda D, x, s: D * (1 + 1e-6)),
    Adapter(),
    "",
    "oracle.target",
    WRONG_D,
)
denoiser(
    "sigma rounded to a table",
    lambda o, x, s: o.denoise(x, LEVELS[(s[:, None] - LEVELS).abs().argmin(1)].to(s.dtype)),
    Adapter(),
    "snapped to a table",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
denoiser(
    "VP's beta without the 1/2",
    lambda o, x, t: vp_score(o, x, t, schedule=noise_levels.vp(0.1, 39.9)),
    VP_SCORE,
    "other noise levels",
    "oracle.target",
    WRONG_D,
    "learning.split",
)
wrong(
    "denoiser",
    "another answer at every call",
    Read(Counter),
    "algebra.steady",
    WRONG_D,
    "algebra.single algebra.square learning.split",
    told="another answer each time",
)
wrapper(
    "EDM's c_skip with alpha for alpha^2",
    edm_wrapper(lambda s, sd: sd / torch.sqrt(s**2 + sd**2)),
    "c_skip",
    "oracle.target",
    "oracle.score oracle.tweedie second_order.covariance",
)
wrapper(
    "EDM's c_skip without sigma_data",
    edm_wrapper(lambda s, sd: 1 / (s**2 + 1)),
    "c_skip",
    "oracle.target",
    "oracle.score oracle.tweedie second_order.covariance",
)
wrapper(
    "EDM's c_out of the other sign",
    edm_wrapper(edm_skip, -1),
    "c_out has the wrong sign",
    "oracle.target",
    "oracle.score oracle.tweedie second_order.covariance second_order.positive",
)
wrapper(
    "log(sigma) for log(sigma)/4",
    edm_wrapper(edm_skip, log=1),
    "c_noise is log(sigma) and must be log(sigma)/4",
    "oracle.target",
    "oracle.score oracle.tweedie second_order.covariance second_order.positive",
    "second_order.symmetric",
)

wrapper(
    "an index for log(sigma)/4",
    edm_wrapper(edm_skip, c_noise=lambda s: (1000 * s).round()),
    "c_noise is",
    "oracle.target",
    "oracle.score oracle.tweedie second_order.covariance",
)
wrapper(
    "log(sigma) for log(sigma)/4, and c_skip without sigma_data",
    edm_wrapper(lambda s, sd: 1 / (s**2 + 1), log=1),
    "and c_skip is",
    "oracle.target",
    "oracle.score oracle.tweedie second_order.covariance second_order.positive",
    "second_order.symmetric",
)
denoiser(
    "the noise level clamped to [0.005, 90]",
    lambda o, x, s: o.denoise(x, s.clamp(0.005, 90)),
    Adapter(),
    "below 0.005 are clamped to it and noise levels above 90",
    "oracle.target",
    WRONG_D.replace("sampling.ode", ""),
    "learning.split",
)
denoiser(
    "the flow's time rounded to bfloat16, where it reaches 1",
    lambda o, x, t: velocity(o, x, t.bfloat16().to(x.dtype)),
    FLOW_TIME,
    "rounded to bfloat16",
    "oracle.target",
    "algebra.answers",
    WRONG_D,
    "second_order.positive",
)
denoiser(
    "another answer where the batch is as large as a dimension",
    of_x0(lambda D, x, s: D * (1 + 1e-3 * (x.shape[0] == x.shape[1]))),
    Adapter(),
    "as large as a dimension",
    "algebra.square",
)
denoiser(
    "sigma^2 for sigma, in another dtype",
    lambda o, x, s: o.denoise(x, s**2).double(),
    Adapter(),
    "the noise level is taken as sigma^2. its output has another shape or dtype",
    "oracle.target",
    "algebra.shape",
    WRONG_D,
    "learning.split",
)

# --- trained networks of other codebases, by data -------------------------------------------------


def of_reading(subject: Read) -> set[str]:
    """On draws from the audit's mixture."""
    o = reference.mixture()
    read = factories.external_denoiser("trained", subject.factory, o, subject.adapter, trained=True)
    found, told = readings.check(read, o.sample(128, stream(0, "mutants/read")).float(), o)
    TOLD[id(subject)] = " ".join(told)
    return broken(found)


def nearly(answer: Callable[[Oracle, Tensor, Tensor], Tensor]) -> Callable[[Oracle], Any]:
    """A network that learnt its target to a tenth: another function of the input is added."""
    return asked(lambda o, x, t: answer(o, x, t) + 0.1 * torch.sin(3 * x))


def unloaded() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Linear()


FAMILIES["reading"] = Family(
    "a trained network of another codebase, and how its output is read",
    of_reading,
    {
        "eps in VP": Read(nearly(vp_eps), VP_EPS),
        "score in VP": Read(nearly(vp_score), VP_SCORE),
        "velocity": Read(nearly(velocity), FLOW_TIME),
        "x0": Read(nearly(lambda o, x, s: o.denoise(x, s))),
    },
)
for type_, told in (("v", "eps"), ("-eps", "eps"), ("x0", "eps"), ("score", "eps")):
    wrong(
        "reading",
        f"eps read as {type_}",
        Read(nearly(vp_eps), Adapter(type_, "vp", "time")),
        "learning.stated",
        told=f"--prediction-type {told} it fits",
    )
wrong(
    "reading",
    "a state in VP coordinates read as one in VE coordinates",
    Read(nearly(lambda o, x, s: eps_of(o, x * r_of(col(s)), s)), Adapter("eps", "ve", "sigma")),
    "learning.stated",
    told="--prediction-type eps --schedule vp",
)
wrong(
    "reading",
    "weights that were not loaded",
    Read(unloaded, Adapter("eps")),
    "learning.beyond_linear",
    told="are its weights loaded?",
)

# --- trained models -------------------------------------------------------------------------------


class ScoreOverSigma(testbed.Denoiser):
    def score(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        return (self(x, sigma) - x) / tensors.per_sample(sigma, x)


class MinusScore(testbed.Denoiser):
    def score(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        return -super().score(x, sigma, condition)


class SkipsScaledX(testbed.Denoiser):
    """c_skip multiplies c_in x, what the network sees."""

    def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        F = self.output(x, sigma, condition)
        scaled = tensors.per_sample(self.inputs(tensors.widen(sigma))[0].to(x.dtype), x) * x
        return self.parameterization.denoise(F, scaled, sigma, sigma_data=self.sigma_data)


class WithoutSigmaData(testbed.Denoiser):
    def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        F = self.output(x, sigma, condition)
        return self.parameterization.denoise(F, x, sigma, sigma_data=1.0)


def model(kind: type[testbed.Denoiser] = testbed.Denoiser) -> testbed.Denoiser:
    return kind(Linear(), REGISTRY.parameterization("edm"), 0.5)


def of_model(denoise: testbed.Denoiser) -> set[str]:
    x0, eps, sigma = reference.noisy(reference.mixture(), reference.LEVELS, 4)
    found = trained.check_model(denoise, x0.float(), eps.float(), sigma.float())
    return broken(found)


FAMILIES["trained model"] = Family(
    "the denoiser around a network with weights, under EDM", of_model, {"edm": model()}
)
wrong("trained model", "1/sigma for 1/sigma^2 in the score", model(ScoreOverSigma), "model.score")
wrong("trained model", "the score of the other sign", model(MinusScore), "model.score")
wrong("trained model", "c_skip multiplies c_in x", model(SkipsScaledX), "model.score")
wrong("trained model", "sigma_data missing", model(WithoutSigmaData), "model.score")
