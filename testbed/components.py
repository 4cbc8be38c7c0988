"""What a plugin registers: frozen dataclasses around plain functions, found by name."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from testbed.errors import InputError, UnknownName, unknown
from testbed.formula import Formula, alike, bind, shaped
from testbed.noise import widen

if TYPE_CHECKING:
    from testbed.data.base import Data

Sigma = float | Tensor
State = Callable[..., torch.nn.Module]


@dataclass(frozen=True)
class Component:
    """A named function or set of functions with options, found by name in the registry."""

    axis: ClassVar[str] = ""
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise InputError(f"{type(self).__name__} name {self.name!r} must be an identifier.")
        self.defaults  # noqa: B018  a wrong signature is reported where it is written

    @property
    def label(self) -> str:
        """`weighting 'min_snr'`: the component in a message."""
        return f"{self.axis} {self.name!r}"

    def formulas(self) -> list[Formula]:
        """The functions whose options are this component's options."""
        raise NotImplementedError

    @property
    def defaults(self) -> dict[str, Any]:
        """Every option with its default."""
        found: dict[str, Any] = {}
        for formula in self.formulas():
            for name, value in formula.defaults.items():
                if found.setdefault(name, value) != value:
                    raise InputError(f"{self.label}: option {name!r} has two defaults.")
        return found

    def bound(self, options: Mapping[str, Any]) -> Self:
        """This component with `options` resolved against the defaults.

        Raises:
            InputError: an unknown option or a value of the wrong type.
        """
        twin = copy.copy(self)
        object.__setattr__(twin, "options", bind(self.label, self.defaults, options))
        return twin


C = TypeVar("C", bound=Component)


def built_in(known: Mapping[str, C], axis: str, name: str, options: Mapping[str, Any]) -> C:
    """One of the components that no plugin adds to, with its options bound.

    Raises:
        UnknownName: with the nearest name.
        InputError: an unknown option, or one of the wrong type.
    """
    if name not in known:
        raise UnknownName(unknown(axis, name, known))
    return known[name].bound(options)


@dataclass(frozen=True)
class Weighting(Component):
    """lambda(sigma), multiplying |D - x0|^2: always in denoiser (x0) space.

    Args:
        function: may ask for `sigma`, `sigma_data`, `p`, the density's pdf over log sigma, and
            `state`.
        state: `state([options])` builds the module that a learned weighting trains together with
            the network.
        penalty: `penalty([sigma, state, options])`, added to the loss per sample, (B,): what keeps
            a learned lambda from vanishing.
        sigma_range: the open interval of noise levels where the function is defined.
    """

    axis: ClassVar[str] = "weighting"
    function: Callable[..., Tensor]
    reference: str = ""
    state: State | None = None
    penalty: Callable[..., Tensor] | None = None
    sigma_range: tuple[float, float] = (0.0, math.inf)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.label, self.sigma_range)
        asks = any("state" in formula.wanted for formula in self.formulas())
        check_state(self.label, self.state, asks)
        if self.penalty is not None and self.state is None:
            raise InputError(f"{self.label}: a penalty without a state changes no gradient.")

    def _formula(self, role: str) -> Formula | None:
        function, quantities = {
            "function": (self.function, ("sigma", "sigma_data", "p", "state")),
            "state": (self.state, ()),
            "penalty": (self.penalty, ("sigma", "state")),
        }[role]
        return function and Formula(self.label, function, quantities, role=role)

    def formulas(self) -> list[Formula]:
        found = (self._formula(role) for role in ("function", "state", "penalty"))
        return [formula for formula in found if formula]

    def build(self) -> torch.nn.Module | None:
        """A new state, or None for a weighting that learns nothing."""
        return build_state(self._formula("state"), self.options)

    def __call__(
        self,
        sigma: Sigma,
        *,
        sigma_data: float | None = None,
        density: Density | None = None,
        state: torch.nn.Module | None = None,
    ) -> Tensor:
        """lambda at sigma, shaped like sigma, float32 or wider.

        Raises:
            TypeError: the function names sigma_data, p or state and none was given.
            InputError: it raises, or does not return a tensor shaped like sigma, or a number.
        """
        sigma = widen(sigma)
        p = density.pdf_over_log_sigma(sigma) if density is not None else None
        formula = self.formulas()[0]
        found = formula(options=self.options, sigma=sigma, sigma_data=sigma_data, p=p, state=state)
        return shaped(formula, found, sigma)

    def added(self, sigma: Tensor, state: torch.nn.Module | None) -> Tensor | float:
        """The penalty at sigma (B,), shaped like sigma; 0.0 without one."""
        formula = self._formula("penalty")
        if formula is None:
            return 0.0
        found = formula(options=self.options, sigma=sigma, state=state)
        if not isinstance(found, Tensor | int | float):
            raise formula.wrong(f"a tensor shaped like sigma, {tuple(sigma.shape)}", found)
        return found


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """(prediction - target)^2, elementwise: the loss that training computes on the F side."""
    return (prediction - target) ** 2


@dataclass(frozen=True)
class Loss(Component):
    """An elementwise discrepancy, taken in a space.

    `function(prediction, target[, state, options])` returns a tensor shaped like its arguments.
    `space` is an option of every loss: "x0", "eps", "score", "v", "flow" or "F". A function other
    than `testbed.squared` may claim that its minimiser is the mean: `elicits_mean`; without it the
    Tweedie comparison with the score is not valid for a model trained with it, and is left out.
    `state([options])` builds the module of a loss that has one: its parameters are trained with the
    network, its buffers are kept in checkpoints.
    """

    axis: ClassVar[str] = "loss"
    function: Callable[..., Tensor]
    space: str = "x0"
    elicits_mean: bool = False
    reference: str = ""
    state: State | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_state(self.label, self.state, "state" in self.formulas()[0].wanted)
        if self.quadratic:
            object.__setattr__(self, "elicits_mean", True)

    @property
    def quadratic(self) -> bool:
        """Whether this is l2."""
        return self.function is squared

    def formulas(self) -> list[Formula]:
        found = [Formula(self.label, self.function, ("state",), leading=2, role="function")]
        if self.state is not None:
            found.append(Formula(self.label, self.state, (), role="state"))
        return found

    def build(self) -> torch.nn.Module | None:
        """A new state, or None for a loss without one."""
        return build_state(self.formulas()[1] if self.state else None, self.options)

    @property
    def defaults(self) -> dict[str, Any]:
        return {"space": self.space, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound(options)
        object.__setattr__(twin, "space", twin.options["space"])
        return twin

    def __call__(
        self, prediction: Tensor, target: Tensor, state: torch.nn.Module | None = None
    ) -> Tensor:
        """m(q_hat, q), elementwise.

        Raises:
            InputError: the function raises, or does not return a tensor shaped like q_hat.
        """
        formula = self.formulas()[0]
        found = formula(prediction, target, options=self.options, state=state)
        return alike(formula, found, prediction, "prediction")


def check_range(owner: str, sigma_range: tuple[float, float]) -> None:
    """InputError unless 0 <= low < high."""
    low, high = sigma_range
    if not 0 <= low < high:
        raise InputError(f"{owner}: sigma_range = {sigma_range} needs 0 <= low < high.")


def check_state(owner: str, state: State | None, asked: bool) -> None:
    """InputError unless a state is built exactly where a function asks for one."""
    if asked and state is None:
        raise InputError(f"{owner}: asks for a state, and state=... does not say how to build one.")
    if state is not None and not asked:
        raise InputError(f"{owner}: builds a state, and no function asks for it by that name.")


def build_state(formula: Formula | None, options: Mapping[str, Any]) -> torch.nn.Module | None:
    """The module that `formula` builds.

    Raises:
        InputError: what it built is no torch module.
    """
    if formula is None:
        return None
    found = formula(options=options)
    if not isinstance(found, torch.nn.Module):
        raise InputError(f"{formula.title}: must build a torch.nn.Module, got {found!r}.")
    return found


@dataclass(frozen=True)
class Density(Component):
    """The training distribution of sigma, cut to [sigma_min, sigma_max] and renormalised.

    Args:
        icdf: `icdf(u[, options]) -> sigma`, increasing on (0, 1), before the cut.
        pdf: `pdf(sigma[, options])`, over log sigma, before the cut.
    """

    axis: ClassVar[str] = "density"
    icdf: Callable[..., Tensor]
    pdf: Callable[..., Tensor]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Formula]:
        return [
            Formula(self.label, self.icdf, ("u",), role="icdf"),
            Formula(self.label, self.pdf, ("sigma",), role="pdf"),
        ]

    @property
    def defaults(self) -> dict[str, Any]:
        return {"sigma_min": 0.002, "sigma_max": 80.0, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound(options)
        low, high = twin.options["sigma_min"], twin.options["sigma_max"]
        if not 0 < low < high:
            raise InputError(f"{self.label}: needs 0 < sigma_min < sigma_max, got {low}, {high}.")
        c = twin._cdf(low, operator.lt), twin._cdf(high, operator.le)
        if not c[0] < c[1]:
            raise InputError(f"{self.label}: has no mass between {low} and {high}.")
        object.__setattr__(twin, "_cut", c)
        return twin

    def _raw(self, u: Tensor) -> Tensor:
        formula = self.formulas()[0]
        return alike(formula, formula(options=self.options, u=u), u, "u")

    def _cdf(self, edge: float, inside: Callable[[float, float], bool]) -> float:
        """P(inside(sigma, edge)) before the cut: bisection of the increasing inverse, to one ulp.

        Levels with a mass of their own that lie on an edge belong to the range.
        """
        low, high = 0.0, 1.0
        while low < (u := (low + high) / 2) < high:
            below = inside(float(self._raw(torch.tensor(u, dtype=torch.float64))), edge)
            low, high = (u, high) if below else (low, u)
        return (low + high) / 2

    @property
    def cut(self) -> tuple[float, float]:
        """(P(sigma < sigma_min), P(sigma <= sigma_max)) before the cut."""
        found: tuple[float, float] = self.__dict__.get("_cut") or self.bound({}).__dict__["_cut"]
        return found

    def sigma(self, u: Tensor) -> Tensor:
        """The quantile at u in (0, 1): maps uniforms to noise levels; float64, shaped like u."""
        low, high = self.cut
        sigma = self._raw(low + u.double() * (high - low))
        options = {**self.defaults, **self.options}
        return sigma.clamp(options["sigma_min"], options["sigma_max"])

    def pdf_over_log_sigma(self, sigma: Sigma) -> Tensor:
        """p(log sigma) after the cut; 0 outside [sigma_min, sigma_max]; shaped like sigma."""
        sigma = widen(sigma)
        low, high = self.cut
        options = {**self.defaults, **self.options}
        formula = self.formulas()[1]
        found = formula(options=self.options, sigma=sigma)
        if not isinstance(found, Tensor) or found.shape != sigma.shape:
            found = shaped(formula, found, sigma)
        p = found / (high - low)
        inside = (sigma >= options["sigma_min"]) & (sigma <= options["sigma_max"])
        return torch.where(inside, p, torch.zeros_like(p))


@dataclass(frozen=True)
class Dataset(Component):
    """A data set by name: `build(**options) -> Data`. Same options, same data, bit for bit."""

    axis: ClassVar[str] = "dataset"
    build: Callable[..., Data]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Formula]:
        return [Formula(self.label, self.build, (), role="build")]

    def __call__(self) -> Data:
        """The train and test split, sigma_data and, where there is one, the oracle.

        Raises:
            InputError: `build` raises, or does not return Data.
        """
        from testbed.data.base import Data

        formula = self.formulas()[0]
        found = formula(options=self.options)
        if not isinstance(found, Data):
            raise formula.wrong("testbed.Data", found)
        return found


@dataclass(frozen=True)
class Network(Component):
    """A network by name: `build(shape[, labels, conditions, outputs, options])` gives a module.

    The module is called as `network(x, c_noise, condition)`: x (B, *shape), c_noise (B,),
    condition a mapping of names to classes (B,) int64 or None; it returns (B, *shape). A class of
    -1, or a name left out, switches a condition off. `shape` is that of one sample, `conditions`
    maps the name of every condition to its number of classes, and `labels` is that of "label" (0
    without it). A network that asks for neither takes no condition, and one that asks for `labels`
    alone takes the label alone. A build that asks for `outputs` gives a module that returns
    `outputs` times the channels, (B, outputs C, ...): 2 for a learned variance, else 1. `noise`
    maps each kind of c_noise that it takes to the range it was made for.
    """

    axis: ClassVar[str] = "network"
    build: Callable[..., torch.nn.Module]
    noise: Mapping[str, tuple[float, float]]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Formula]:
        quantities = ("shape", "labels", "conditions", "outputs")
        return [Formula(self.label, self.build, quantities, role="build")]

    @property
    def multiplies(self) -> bool:
        """Whether it can give several times the channels."""
        return "outputs" in self.formulas()[0].wanted

    def takes(self, condition: str) -> bool:
        """Whether the network can be built for a condition of this name."""
        wanted = self.formulas()[0].wanted
        return "conditions" in wanted or ("labels" in wanted and condition == "label")

    def __call__(
        self,
        shape: tuple[int, ...],
        labels: int,
        seed: int,
        further: Mapping[str, int] | None = None,
        outputs: int = 1,
    ) -> torch.nn.Module:
        """A network with weights drawn from `seed`; the global generators are left as they were.

        `labels` is the number of classes of the condition "label", 0 for none; `further` maps the
        names of other conditions to theirs.

        Raises:
            InputError: `build` raises, or does not return a module; more than one output of a
                network whose build does not ask for `outputs`.
        """
        formula = self.formulas()[0]
        if outputs != 1 and not self.multiplies:
            raise InputError(
                f"{self.label}: {outputs} outputs were asked for, and its build does not take "
                "`outputs`."
            )
        conditions = {**({"label": labels} if labels else {}), **(further or {})}
        given = {"shape": shape, "labels": labels, "conditions": conditions, "outputs": outputs}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = formula(options=self.options, **given)
        if not isinstance(found, torch.nn.Module):
            raise formula.wrong("a torch.nn.Module", found)
        return found


@dataclass(frozen=True)
class Sampler(Component):
    """A sampler by name: `step(denoise, x, sigma, following, generator, history[, options])`.

    One step from `sigma` to `following` < sigma, floats; `denoise(x, sigma) -> x0` is never called
    at 0; `history` is a list that belongs to the run, for multistep methods. A step may ask for
    `steps`, the number of steps of the whole run. `noise` names the option that all fresh noise is
    multiplied by: the sampler is deterministic where it is 0, and `deterministic` says so.
    """

    axis: ClassVar[str] = "sampler"
    step: Callable[..., Tensor]
    deterministic: bool = True
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    noise: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise and self.noise not in self.defaults:
            raise InputError(f"{self.label}: noise: {unknown('option', self.noise, self.defaults)}")
        self._settle(self.defaults)

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound(options)
        twin._settle(twin.options)
        return twin

    def _settle(self, options: Mapping[str, Any]) -> None:
        if self.noise:
            object.__setattr__(self, "deterministic", not options[self.noise])

    def formulas(self) -> list[Formula]:
        return [Formula(self.label, self.step, ("steps",), leading=6)]


class Estimate(NamedTuple):
    """A number from samples, with what chance alone would do to it.

    Args:
        value: the number.
        error: its standard error; nan where none is known.
        p: of the hypothesis that the samples are from the distribution of the data; nan where the
            metric is no test.
    """

    value: float
    error: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Metric(Component):
    """A number about samples by name: `measure(samples, data, generator[, options])`.

    Args:
        measure: samples (N, *shape) and the Data they should resemble; a float or an `Estimate`,
            nan where it has no meaning. It grows as samples get worse.
        against: the split, "test" or "train", that samples are compared with: real samples of the
            other one give the metric's floor.
        most: the largest value, where it has one: the worst samples need not differ there.
    """

    axis: ClassVar[str] = "metric"
    measure: Callable[..., float | Estimate]
    against: str = "test"
    reference: str = ""
    most: float = math.inf
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Formula]:
        return [Formula(self.label, self.measure, (), leading=3, role="measure")]

    def __call__(self, samples: Tensor, data: Data, generator: torch.Generator) -> float:
        """The metric of `samples` against a split of `data`; see `estimate`."""
        return self.estimate(samples, data, generator).value

    def estimate(self, samples: Tensor, data: Data, generator: torch.Generator) -> Estimate:
        """The metric of `samples` with its error and its p, nan where `measure` states none.

        Raises:
            InputError: `measure` raises, or does not return a number or an Estimate.
        """
        formula = self.formulas()[0]
        found = formula(samples, data, generator, options=self.options)
        try:
            if isinstance(found, Estimate):
                return Estimate(*map(float, found))
            return Estimate(float(found))
        except (TypeError, ValueError, RuntimeError):
            raise formula.wrong("a number or an Estimate", found) from None
