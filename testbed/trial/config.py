"""`TrialConfig`: everything that one trial is made of, from the study file to the worker and back.

`TrialSettings` is what a study file says of a trial; names may be "recipe" there and options may be
left out. `TrialConfig` is the same model resolved (`trial.resolve`), with every option written out
and what was measured of its data. Each field carries a `Setting`, from which the identity, the
batches, the comparison of objectives, the report's settings and the reference page are derived.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from testbed import settings
from testbed.settings import Setting
from testbed.training.settings import Training
from testbed.trial.identity import identified, plain
from testbed.trial.specs import (
    Assumed,
    ComponentSpec,
    Evaluation,
    Limit,
    Model,
    OfSigmaData,
    Variance,
    canonical,
    noise_level,
)

SCHEMA = 3
MOST_SEEDS = 10_000
ROUNDING = 1e-6
"""How far, relatively, an end of a range may lie inside of it: the ends are quantiles."""


class TrialFields(Model):
    """The settings of a trial that a study file names and a resolved trial has."""

    parameterization: Annotated[
        ComponentSpec,
        Setting(
            "What the network is asked for.",
            objective=True,
            axis="parameterization",
        ),
    ]
    dataset: Annotated[
        ComponentSpec,
        Setting(
            "The data that are trained on.",
            batch=True,
            report="data",
            axis="dataset",
        ),
    ]
    network: Annotated[
        ComponentSpec,
        Setting(
            "The network F.",
            batch=True,
            report="network",
            axis="network",
        ),
    ] = ComponentSpec(name="mlp")
    weighting: Annotated[
        ComponentSpec | None,
        Setting(
            'lambda(sigma), multiplying |D - x0|^2; "none" leaves the loss unweighted in its own '
            "space.",
            objective=True,
            report="recipe",
            axis="weighting",
        ),
    ] = ComponentSpec(name="recipe")
    loss: Annotated[
        ComponentSpec,
        Setting(
            "The discrepancy, and the space in which it is taken.",
            objective=True,
            report="recipe",
            axis="loss",
        ),
    ] = ComponentSpec(name="recipe")
    density: Annotated[
        ComponentSpec,
        Setting(
            "The distribution of the noise levels that training draws.",
            objective=True,
            report="recipe",
            axis="density",
        ),
    ] = ComponentSpec(name="recipe")
    c_in: Annotated[
        Literal["recipe", "native", "shared"],
        Setting(
            "The scale of the network's input: the parameterization's own, or "
            "1/sqrt(sigma^2 + sigma_data^2) for all.",
            objective=True,
            report="recipe",
        ),
    ] = "recipe"
    c_noise: Annotated[
        Literal["recipe", "native", "shared", "index"],
        Setting(
            "The noise level as the network gets it: the parameterization's own, log(sigma)/4 for "
            "all, or the index in the table.",
            objective=True,
            report="recipe",
        ),
    ] = "recipe"
    table: Annotated[
        ComponentSpec | None,
        Setting(
            "The finitely many levels of a discrete denoiser.",
            axis="table",
        ),
    ] = None
    noise: Annotated[
        ComponentSpec,
        Setting(
            "What is added to eps in training.",
            batch=True,
            report="noise",
            axis="noise",
        ),
    ] = ComponentSpec(name="white")
    output: Annotated[
        Literal["F", "x0", "eps", "score", "v", "flow"],
        Setting(
            "The prediction type that the network returns, where that is not the "
            "parameterization's own F.",
            objective=True,
        ),
    ] = "F"
    variance: Annotated[
        Variance,
        Setting(
            "Whether the variance of a reverse step is fixed or learned.",
        ),
    ] = Variance()
    conditions: Annotated[
        dict[str, float],
        Setting(
            "The conditions of the model by name, each with its rate of dropout.",
        ),
    ] = Field(default_factory=dict)
    training: Annotated[Training, Setting("How the trial is trained.")] = Training()
    evaluation: Annotated[
        Evaluation,
        Setting(
            "How the trained model is measured.",
            evaluation=True,
            report="evaluation",
        ),
    ] = Evaluation()

    @field_validator("weighting", "table", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return (
            None if value in ("none", {"name": "none"}, {"name": "none", "options": {}}) else value
        )

    @field_validator("conditions", mode="before")
    @classmethod
    def _dropout(cls, value: Any) -> Any:
        if value == "none":
            return {}
        rates: Iterable[Any] = value.values() if isinstance(value, Mapping) else [None]
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float):
                raise ValueError('must be "none", or a table { label = 0.1 } of dropout rates')
            if not 0 <= rate <= 1:
                raise ValueError("must have dropout rates from 0 to 1")
        return value


def _ordered(value: Any, info: ValidationInfo) -> Any:
    """A highest level above the lowest, where both are of one kind."""
    low = info.data.get("sigma_min")
    if low is None or type(low) is not type(value):
        return value
    lowest, highest = (x.sigma_data if isinstance(x, OfSigmaData) else x for x in (low, value))
    if not lowest < highest:
        raise ValueError(f"must be above sigma_min, which is {lowest!r}")
    return value


class TrialSettings(TrialFields):
    """What a study file says of a trial. "recipe" means the parameterization's own."""

    sigma_min: Annotated[
        float | OfSigmaData | None,
        Setting(
            "The lowest noise level of training; { sigma_data = 0.004 } is that multiple of the "
            "data's sigma_data. Where it is left out it is the lowest of the table, or 0.002.",
            objective=True,
        ),
    ] = None
    sigma_max: Annotated[
        Annotated[float, Field(allow_inf_nan=True)] | OfSigmaData | None,
        Setting(
            "The highest noise level of training; { sigma_data = 160 } is that multiple of the "
            "data's sigma_data. Where it is left out it is the highest of the table, or 80.",
            objective=True,
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
        if not isinstance(table, Mapping) or not isinstance(table.get("density"), Mapping):
            return table
        options = table["density"].get("options", {})
        levels = {key: options[key] for key in ("sigma_min", "sigma_max") if key in options}
        return {**levels, **table}

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
    assert not isinstance(limit, OfSigmaData)
    return default if limit is None else limit
