"""The parts of a trial's settings: components by name, the reverse variance, the evaluation."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from testbed import toml
from testbed.components import multiples
from testbed.errors import InputError, unknown
from testbed.settings import Setting, Typed
from testbed.training.settings import WIDEST

MOST_STEPS = 1_000_000
LARGEST = sys.float_info.max
"""Compared with an integer of any length without an overflow, and smaller than no NaN."""
MOST_SHOWN = 16
"""How many members of a list are written out where it is told in words."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class Model(Typed, BaseModel):
    """Unknown keys and values of another type are errors; nothing changes after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _options_of_the_default(cls, table: Any) -> Any:
        """Options without a name are those of the default component."""
        if not isinstance(table, Mapping):
            return table
        filled = dict(table)
        for key, field in cls.model_fields.items():
            value = filled.get(key)
            if isinstance(field.default, ComponentSpec) and isinstance(value, Mapping):
                filled[key] = {"name": field.default.name, **value}
        return filled


class ComponentSpec(Model):
    """A component by name, with options: `"min_snr"` or `{name = "min_snr", gamma = 5}`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and isinstance(value.get("options"), Mapping):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("name", "recipe"), str):
            # Options alone change the recipe's own component.
            options = {key: option for key, option in value.items() if key != "name"}
            return {"name": value.get("name", "recipe"), "options": options}
        raise ValueError('must be a name, or a table {name = "...", option = ...}')

    @classmethod
    def parse(cls, text: str) -> Self:
        """The component that a word of the command line names, as a study file writes it.

        A name, or a table in TOML, `{name = "min_snr", gamma = 5}`.

        Raises:
            InputError: a table that is no TOML, or has no name.
        """
        if not text.lstrip().startswith("{"):
            return cls(name=text)
        expected = 'expected a name, or a table as in a study file: {name = "min_snr", gamma = 5}'
        try:
            table = toml.read(f"component = {text}")["component"]
        except (ValueError, RecursionError) as problem:
            raise InputError(f"{text}: cannot be read as TOML ({problem}): {expected}.") from None
        if not isinstance(table.get("name"), str):
            raise InputError(f"{text}: has no name: {expected}.")
        return cls.model_validate(table)

    @property
    def text(self) -> str:
        """Name and options as JSON: equal components, equal text."""
        return canonical(self.model_dump())

    def __str__(self) -> str:
        """`min_snr (gamma 5)`, without options that are empty."""
        options = ", ".join(
            f"{key} {_brief(value) if isinstance(value, list | tuple | dict) else value}"
            for key, value in self.options.items()
            if value not in ("", [], (), None)
        )
        return f"{self.name} ({options})" if options else self.name


def _brief(value: Any) -> str:
    """A value as JSON; of a long list its ends and how many there are."""
    if isinstance(value, list | tuple) and len(value) > MOST_SHOWN:
        return f"[{value[0]}, {value[1]}, ... {len(value)} in all ..., {value[-1]}]"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)}: {_brief(one)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value)


class Variance(Model):
    """What a reverse step's variance is: fixed, or learned with the factor `vlb` on L_vlb."""

    name: Literal["fixed", "learned"] = "fixed"
    vlb: float | None = Field(default=None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        table: Any = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping):
            raise ValueError('must be "fixed", "learned", or a table {name = "learned", vlb = ...}')
        options: Mapping[str, Any] = table.get("options") or {}
        table = {**{key: one for key, one in table.items() if key != "options"}, **options}
        name, names = table.get("name", "fixed"), ("fixed", "learned")
        if name not in names:
            raise ValueError(unknown("variance", str(name), names))
        if name == "fixed" and table.get("vlb") is not None:
            raise ValueError(f"variance 'fixed': {unknown('option', 'vlb', ())}")
        return {**({"vlb": 0.001} if name == "learned" else {}), **table}


class Likelihood(Model):
    """`evaluation.likelihood`: nll and bits per dimension by the probability-flow ODE."""

    samples: Annotated[int, Setting("Number of held-out points.", evaluation=True)] = Field(
        default=64, ge=2
    )
    steps: Annotated[int, Setting("Number of Heun steps.", evaluation=True)] = Field(
        default=128, ge=2, le=MOST_STEPS
    )
    divergence: Annotated[
        Literal["exact", "hutchinson"],
        Setting(
            "How the divergence is computed.",
            evaluation=True,
        ),
    ] = "exact"
    probes: Annotated[
        int,
        Setting(
            "Number of probes of Hutchinson's estimator for a sample.",
            evaluation=True,
        ),
    ] = Field(default=1, ge=1)

    @field_validator("probes")
    @classmethod
    def _used(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("divergence") == "exact":
            raise ValueError('are those of divergence = "hutchinson"; the exact one has none')
        return value


def noise_level(value: Any, infinite: bool = False) -> Any:
    """A noise level as a study writes it, before it is read: a number, or a multiple of sigma_data.

    Raises:
        ValueError: it is no such thing, not positive, or infinite where it must not be.
    """
    if value is None:
        return value
    number = multiples.factor(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(
            'must be a number, or a multiple of the data\'s sigma_data, "0.04 * sigma_data"'
        )
    finite = not infinite or isinstance(value, str)
    if not abs(number) <= LARGEST and (finite or number != math.inf):
        raise ValueError("must be a finite number")
    if number <= 0:
        raise ValueError("must be above 0")
    return value


Limit = float | str | None
"""An end of a range of noise levels; None where it is left out. A resolved trial has numbers."""


def steps_or_fractions(value: Any) -> Any:
    """The value, where it is a list of numbers of steps, or of fractions of a number of steps.

    Raises:
        ValueError: it is none.
    """
    several: list[Any] = list(value) if isinstance(value, list | tuple) else [None]
    for one in several:
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if not number or not (one >= 1 if isinstance(one, int) else 0 < one < 1):
            raise ValueError(
                "must be a list of whole numbers of steps from 1 on, or of fractions above 0 and "
                "below 1, for example [0.25, 0.5]"
            )
    return value


def numbers_of_steps(several: Sequence[int | float], steps: int) -> tuple[int, ...]:
    """Those numbers and fractions of `steps`, ascending, each once and without `steps` itself."""
    found = {one if isinstance(one, int) else max(1, round(one * steps)) for one in several}
    return tuple(sorted(found - {steps}))


class Point(NamedTuple):
    """Where a trial is measured: after a number of steps, with its own average or another one.

    `width` is that of a power-function average, or None for the average that training names.
    """

    step: int
    width: float | None = None

    @property
    def name(self) -> str:
        """`500`, or `2000-0.1`."""
        return f"{self.step}" if self.width is None else f"{self.step}-{self.width!r}"


class Evaluation(Model):
    """How a trained model is measured; the noise is fixed and shared by every trial."""

    levels: Annotated[
        int | tuple[float, ...],
        Setting(
            "The noise levels that are measured: their number, at equal distances of log sigma "
            "from evaluation.sigma_min to evaluation.sigma_max, or a list of them, ascending.",
            evaluation=True,
        ),
    ] = 16
    draws: Annotated[
        int,
        Setting(
            "Number of held-out pairs (x0, eps) at each level.",
            evaluation=True,
        ),
    ] = Field(default=1024, ge=2)
    samples: Annotated[
        int,
        Setting(
            "Number of samples drawn for the sample metrics.",
            evaluation=True,
        ),
    ] = Field(default=512, ge=4)
    steps: Annotated[int, Setting("Number of sampler steps.", evaluation=True)] = Field(
        default=18, ge=1, le=MOST_STEPS
    )
    sampler: Annotated[
        ComponentSpec,
        Setting(
            "The sampler that draws the samples.",
            evaluation=True,
            axis="sampler",
        ),
    ] = ComponentSpec(name="heun")
    schedule: Annotated[
        ComponentSpec,
        Setting(
            "The noise levels at which the sampler stops.",
            evaluation=True,
            axis="schedule",
        ),
    ] = ComponentSpec(name="karras")
    elbo: Annotated[
        Literal["off", "small", "large", "learned"],
        Setting(
            "The reverse variance with which the evidence lower bound is computed; off computes "
            "none.",
            evaluation=True,
        ),
    ] = "off"
    guidance: Annotated[
        ComponentSpec,
        Setting(
            "How the sampler's denoiser is bent towards a condition.",
            evaluation=True,
            axis="guidance",
        ),
    ] = ComponentSpec(name="none")
    likelihood: Annotated[
        Likelihood | None,
        Setting("How the log-likelihood is computed; it is not where this is left out.",
                evaluation=True),
    ] = None  # fmt: skip
    exact_ends: Annotated[
        int,
        Setting(
            "Number of steps, even, with which the ends of the exact guided ODE are computed, to "
            "compare guided samples with; 0 for none.",
            evaluation=True,
            since=3,
        ),
    ] = Field(default=0, ge=0, le=MOST_STEPS, multiple_of=2)
    metrics: Annotated[
        tuple[ComponentSpec, ...],
        Setting(
            "The metrics of the samples.",
            evaluation=True,
            axis="metric",
        ),
    ] = (
        ComponentSpec(name="energy"),
        ComponentSpec(name="mmd"),
        ComponentSpec(name="off_plane"),
        ComponentSpec(name="nearest_train"),
        ComponentSpec(name="nearest_test"),
    )
    points: Annotated[
        tuple[int | float, ...],
        Setting(
            "Where in its training a trial is measured besides the end: numbers of steps, such as "
            "500, or fractions of training.steps, such as 0.25.",
            evaluation=True,
            since=3,
        ),
    ] = ()
    widths: Annotated[
        tuple[float, ...],
        Setting(
            "Widths of power-function averages with which it is measured at the end, besides its "
            "own average, in the units of training.ema_width.",
            evaluation=True,
            since=3,
        ),
    ] = ()

    sigma_min: Annotated[
        Limit,
        Setting(
            "The lowest noise level that is measured, of all variants of a case. Where it is left "
            "out it is the lowest sigma_min that the case's variants state, or 0.002.",
            evaluation=True,
            since=3,
        ),
    ] = None
    sigma_max: Annotated[
        Limit,
        Setting(
            "The highest noise level that is measured, of all variants of a case. Where it is left "
            "out it is the highest sigma_max that the case's variants state, or 80.",
            evaluation=True,
            since=3,
        ),
    ] = None
    sampling_sigma_min: Annotated[
        Limit,
        Setting(
            "The last noise level above 0 of the samples' path. Where it is left out it is the "
            "lowest level that training draws.",
            evaluation=True,
            since=3,
        ),
    ] = None
    sampling_sigma_max: Annotated[
        Limit,
        Setting(
            "The first noise level of the samples' path. Where it is left out it is the highest "
            "level that training draws.",
            evaluation=True,
            since=3,
        ),
    ] = None

    @field_validator("points", mode="before")
    @classmethod
    def _steps_or_fractions(cls, value: Any) -> Any:
        return steps_or_fractions(value)

    @field_validator("widths")
    @classmethod
    def _different(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value) or not all(0 < one <= WIDEST for one in value):
            raise ValueError(f"must be different numbers above 0 and up to {WIDEST:.3g}")
        return value

    @field_validator("levels", mode="before")
    @classmethod
    def _number_or_list(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError("must be a number of levels, or a list of them")
            if value < 2:
                raise ValueError("must be at least 2")
            return value
        numbers = [one for one in value if isinstance(one, int | float) and abs(one) <= LARGEST]
        rising = all(a < b for a, b in itertools.pairwise([0, *numbers]))
        if not 2 <= len(numbers) == len(value) or bool in map(type, value) or not rising:
            raise ValueError("must be a list of two or more positive numbers, ascending")
        return value

    @field_validator("sigma_min", "sigma_max", "sampling_sigma_min", "sampling_sigma_max",
                     mode="before")  # fmt: skip
    @classmethod
    def _limit(cls, value: Any) -> Any:
        return noise_level(value)

    @model_validator(mode="after")
    def _one_range(self) -> Self:
        stated = [name for name in ("sigma_min", "sigma_max") if getattr(self, name) is not None]
        if stated and not isinstance(self.levels, int):
            raise ValueError(
                f"has a list of levels and {' and '.join(stated)}, which are the ends of a number "
                "of levels: write one or the other"
            )
        return self

    @property
    def count(self) -> int:
        """The number of noise levels that are measured."""
        return self.levels if isinstance(self.levels, int) else len(self.levels)

    def at(self, steps: int) -> tuple[int, ...]:
        """The points of a training of `steps` steps, ascending, without its end."""
        return numbers_of_steps(self.points, steps)

    def __str__(self) -> str:
        """`16 levels × 1024 draws, 512 samples by heun, 18 steps of karras (rho 7.0)`."""
        guided = "" if self.guidance.name == "none" else f", guided by {self.guidance}"
        at = f"; at {', '.join(map(str, self.points))} too" if self.points else ""
        widths = f"; averages of widths {', '.join(map(str, self.widths))}" if self.widths else ""
        return (
            f"{self.count} levels × {self.draws} draws, {self.samples} samples by {self.sampler}, "
            f"{self.steps} steps of {self.schedule}{guided}{at}{widths}"
        )


class Assumed(Model):
    """A sigma_data that the data need not have: recorded, and shown beside the measured one."""

    assumed: float = Field(gt=0)
