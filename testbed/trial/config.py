"""`TrialConfig`: everything that one trial is made of, from the study file to the worker and back.

`TrialSettings` is what a study file says of a trial; names may be "recipe" there and options may be
left out. `TrialConfig` is the same model resolved (`trial.resolve`), with every option written out
and what was measured of its data. Each field carries a `Setting`, from which the identity, the
batches, the comparison of objectives, the report's settings and the reference page are derived.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from testbed import settings
from testbed.components import multiples
from testbed.settings import Setting
from testbed.trial.fields import TrialFields
from testbed.trial.identity import identified, plain
from testbed.trial.specs import (
    Assumed,
    Limit,
    canonical,
    noise_level,
)

SCHEMA = 3
OWN = "own"
"""The recipe of a study that names none: the parameterization's own."""
MOST_SEEDS = 10_000
ROUNDING = 1e-6
"""How far, relatively, an end of a range may lie inside of it: the ends are quantiles."""


def _ordered(value: Any, info: ValidationInfo) -> Any:
    """A highest level above the lowest, where both are numbers or both multiples of sigma_data."""
    low = info.data.get("sigma_min")
    if low is None or value is None or isinstance(low, str) is not isinstance(value, str):
        return value
    lowest, highest = (x if (k := multiples.factor(x)) is None else k for x in (low, value))
    if not lowest < highest:
        raise ValueError(f"must be above sigma_min, which is {low}")
    return value


class TrialSettings(TrialFields):
    """What a study file says of a trial. "recipe" means that of the recipe."""

    recipe: Annotated[
        str,
        Setting(
            'The recipe from which all comes that the study leaves out; "own" is that with which '
            "the parameterization was published."
        ),
    ] = OWN

    sigma_min: Annotated[
        float | str | None,
        Setting(
            'The lowest noise level of training; "0.004 * sigma_data" is that multiple of the '
            "data's sigma_data. Where it is left out it is that of the recipe, the lowest of the "
            "table, or 0.002.",
            objective=True,
            from_recipe=True,
            recipe_with=("density",),
        ),
    ] = None
    sigma_max: Annotated[
        Annotated[float, Field(allow_inf_nan=True)] | str | None,
        Setting(
            'The highest noise level of training; "160 * sigma_data" is that multiple of the '
            "data's sigma_data. Where it is left out it is that of the recipe, the highest of the "
            "table, or 80.",
            objective=True,
            from_recipe=True,
            recipe_with=("density",),
        ),
    ] = None
    sigma_data: Annotated[
        float | Assumed | None,
        Setting(
            "sqrt(E|x0|^2/d) of the data; it is measured where this is left out. A number that "
            "the data lack is written { assumed = number }."
        ),
    ] = None
    seeds: Annotated[
        tuple[int, ...],
        Setting(
            "The seeds of each variant: a number of them, or a list.",
        ),
    ] = (0, 1, 2)

    @field_validator("sigma_max")
    @classmethod
    def _above_sigma_min(cls, value: Any, info: ValidationInfo) -> Any:
        return _ordered(value, info)

    @field_validator("sigma_min", "sigma_max", mode="before")
    @classmethod
    def _limit(cls, value: Any, info: ValidationInfo) -> Any:
        return noise_level(value, infinite=info.field_name == "sigma_max")

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= MOST_SEEDS:
                raise ValueError(f"must be at least 1 and at most {MOST_SEEDS}")
            return tuple(range(value))
        if not isinstance(value, list | tuple):
            raise ValueError("must be a number, or a list of different seeds")
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("must be a number, or a list of different seeds")
        return value

    @field_validator("sigma_data", mode="before")
    @classmethod
    def _stated(cls, value: Any) -> Any:
        number = value.get("assumed") if isinstance(value, Mapping) else value
        known = value is None or (isinstance(value, Mapping) and set(value) == {"assumed"})
        if isinstance(number, bool) or not (known or isinstance(value, int | float)):
            raise ValueError("must be a number, or { assumed = number } for one the data lack")
        if number is not None and not (isinstance(number, int | float) and 0 < number < math.inf):
            raise ValueError("must be a positive finite number")
        return value


class TrialConfig(TrialFields):
    """A resolved trial: every name and option written out, and what was measured of its data.

    `sigma_min` and `sigma_max` are those of the density, whose options may have changed them.
    """

    sigma_min: Annotated[float, Setting("The lowest noise level.", objective=True)] = Field(
        0.002, gt=0
    )
    sigma_max: Annotated[float, Setting("The highest noise level.", objective=True)] = Field(
        80.0, gt=0, validate_default=True, allow_inf_nan=True
    )
    seed: Annotated[int, Setting("The seed of all its draws.", objective=False)] = 0
    device: Annotated[
        str,
        Setting(
            'The class of device that it trains on, "cpu" or "cuda".',
            batch=True,
        ),
    ] = "cpu"
    sigma_data: Annotated[
        float,
        Setting(
            "The sigma_data that training uses.",
            objective=True,
        ),
    ]
    sigma_data_measured: Annotated[
        float,
        Setting(
            "The sigma_data of the training split.",
            objective=True,
        ),
    ]
    sigma_data_channels: Annotated[
        tuple[float, ...] | None,
        Setting(
            "The sigma_data of each channel of the training split, where the parameterization asks "
            "for them.",
            objective=True,
            since=3,
        ),
    ] = None
    training_range: Annotated[
        tuple[float, float] | None,
        Setting(
            "The lowest and the highest noise level that training can draw: those of the density, "
            "or of the table.",
            identity=False,
        ),
    ] = None
    table_levels: Annotated[
        tuple[int, int] | None,
        Setting(
            "How many of the table's levels training can draw, and how many the table has.",
            identity=False,
        ),
    ] = None
    blind: Annotated[
        bool,
        Setting(
            "Whether the network sees no noise level, as it declares.",
            identity=False,
            report="network",
            since=3,
        ),
    ] = False
    asked_levels: Annotated[
        tuple[float, ...] | None,
        Setting(
            "The noise levels that the case asks for, where the trial or one that it is compared "
            "with has a table: evaluation.levels then has the nearest levels of the table.",
            evaluation=True,
            since=3,
        ),
    ] = None
    data_digest: Annotated[str, Setting("Digest of the data.", batch=True)] = ""
    sources: Annotated[
        str,
        Setting(
            "Digest of the core's sources that the trial's numbers come from.",
            evaluation=True,
        ),
    ] = ""
    plugins: Annotated[
        dict[str, str],
        Setting(
            "The version or digest of each plugin that it uses.",
            evaluation=True,
            objective=True,
        ),
    ] = Field(default_factory=dict)
    training_sources: Annotated[
        str,
        Setting(
            "Digest of the sources and plugins that training uses, apart from those that only "
            "measure; trials that share it and all settings of training are one training.",
            identity=False,
            objective=True,
        ),
    ] = ""
    schema_: Annotated[int, Setting("The schema of this record.", identity=False)] = Field(
        SCHEMA, alias="schema"
    )

    model_config = ConfigDict(populate_by_name=True)

    @field_validator("sigma_max")
    @classmethod
    def _above_sigma_min(cls, value: Any, info: ValidationInfo) -> Any:
        return _ordered(value, info)

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, table: Any) -> Any:
        """A record of schema 1 had its range of levels in the density's options alone."""
        if not isinstance(table, Mapping):
            return table
        density = table.get("density")
        options = density.get("options") if isinstance(density, Mapping) else None
        found = options if isinstance(options, Mapping) else {}
        levels = {key: found[key] for key in ("sigma_min", "sigma_max") if key in found}
        return {"table": None, "output": "F", **levels, **table}

    def record(self) -> dict[str, Any]:
        """The configuration as JSON has it, for a trial's folder; read by `model_validate`."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def trained(self) -> tuple[float, float]:
        """`training_range`; of a record that lacks it, the range that its density is cut to."""
        return self.training_range or (self.sigma_min, self.sigma_max)

    @property
    def measured(self) -> tuple[float, float]:
        """The lowest and the highest noise level that it is asked to be measured at."""
        evaluation = self.evaluation
        listed = self.asked_levels or evaluation.levels
        if not isinstance(listed, int):
            return listed[0], listed[-1]
        return (
            _number(evaluation.sigma_min, self.sigma_min),
            _number(evaluation.sigma_max, self.sigma_max),
        )

    @property
    def sampled(self) -> tuple[float, float]:
        """The last noise level above 0 and the first one of the samples' path."""
        ends = self.evaluation.sampling_sigma_min, self.evaluation.sampling_sigma_max
        limits, drawn = (self.sigma_min, self.sigma_max), self.trained
        # An end of training's range is the limit itself where the two differ by a rounding.
        own = [
            limit if math.isclose(level, limit, rel_tol=ROUNDING) else level
            for limit, level in zip(limits, drawn, strict=True)
        ]
        return _number(ends[0], own[0]), _number(ends[1], own[1])

    @property
    def cut_table(self) -> str:
        """`930 of 1000 levels`, of a table that training draws a part of; else empty."""
        drawn, had = self.table_levels or (0, 0)
        return f"{drawn} of {had} levels" if drawn < had else ""

    @property
    def identity(self) -> str:
        """The trial's id: of all settings that are part of it, whatever order they stand in."""
        return hashlib.sha256(canonical(identified(self)).encode()).hexdigest()[:12]

    def of_seeds(self, seeds: Iterable[int]) -> Iterator[tuple[str, Self]]:
        """The same trial with other seeds, each with its id, whose text is made once for all."""
        known = identified(self)
        for seed in seeds:
            text = canonical({**known, "seed": seed})
            yield hashlib.sha256(text.encode()).hexdigest()[:12], self.of_seed(seed)

    @property
    def training_text(self) -> str:
        """Equal for trials that are one training, and differ in how it is measured.

        Without the digests of sources, which differ with the sampler's module: trials that are
        compared here are of one process, whose sources are the same.
        """
        return canonical(identified(self, evaluation=False))

    @property
    def training_identity(self) -> str:
        """As the training text, but of trials of any process; empty where a record lacks it."""
        return self.training_sources and f"{self.training_sources} {self.training_text}"

    def text(self, **wanted: bool) -> str:
        """The settings whose `Setting` has these values, as JSON; see `settings.names`."""
        return canonical({name: plain(getattr(self, name)) for name in self._names(**wanted)})

    @classmethod
    def _names(cls, **wanted: bool) -> Iterable[str]:
        return settings.names(cls, **wanted)

    def of_seed(self, seed: int) -> Self:
        """The same trial with another seed."""
        return self.model_copy(update={"seed": seed})


def _number(limit: Limit, default: float) -> float:
    """A limit of a resolved trial, or the default where it is left out."""
    assert not isinstance(limit, str)
    return default if limit is None else limit
