"""What a study file says of the study itself: `[study]` and `[report]`, no part of a trial."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from testbed.metrics.looks import Design
from testbed.settings import Setting
from testbed.trial.specs import Model, steps_or_fractions

LONGEST = 100
"""Of names that become names of files."""


class Header(Model):
    """`[study]`: the study's name, and what its report says of it."""

    name: Annotated[
        str,
        Setting("Name of the study, and of its folder in runs/ where --out names no other."),
    ]
    title: Annotated[str, Setting("Heading of the report; without one it is the name.")] = ""
    note: Annotated[str, Setting("Text below the heading of the report.")] = ""
    budgets: Annotated[
        tuple[int | float, ...],
        Setting(
            "Other lengths at which every variant is trained on its own, besides training.steps: "
            "numbers of steps, such as 500, or fractions of training.steps, such as 0.25."
        ),
    ] = ()

    @field_validator("name")
    @classmethod
    def _of_a_folder(cls, value: str) -> str:
        if len(value) > LONGEST or not re.fullmatch(r"(?!\.*$)[A-Za-z0-9_.-]+", value):
            raise ValueError(
                f"becomes the name of a folder: expected up to {LONGEST} letters, digits, _, - "
                "and dots, and not dots alone"
            )
        return value

    @field_validator("budgets", mode="before")
    @classmethod
    def _steps_or_fractions(cls, value: Any) -> Any:
        return steps_or_fractions(value)


class ReportSettings(Model):
    """`[report]`: what is compared with what, and how often it may be looked at."""

    baseline: Annotated[
        str,
        Setting(
            "Variant, or parameterization, that the others are compared with; without one it is "
            "the first variant of the case and arm."
        ),
    ] = ""
    primary: Annotated[
        str,
        Setting(
            "Metric that decides which variant is better; without one it is excess_nats where "
            "the data have an oracle, and loss_vs_wiener otherwise."
        ),
    ] = ""
    level: Annotated[
        float,
        Field(gt=0, lt=1),
        Setting("Confidence level of the intervals and of the comparisons."),
    ] = 0.95
    looks: Annotated[
        Design,
        Setting(
            '"fixed": one t test at a number of seeds fixed before; "sequential": a test that '
            "holds however often results are looked at and seeds are added. It cannot be changed "
            "once there are results."
        ),
    ] = "fixed"
    smallest_effect: Annotated[
        float,
        Field(gt=0),
        Setting(
            "Smallest effect of interest, as the logarithm of a ratio: what is shown to be smaller "
            "is equivalent."
        ),
    ] = 0.05
    bands: Annotated[
        tuple[float, ...],
        Field(min_length=1),
        Setting(
            "Edges of the bands of noise levels, in units of sigma_data, ascending; each band has "
            "its own verdict."
        ),
    ] = (0.1, 1.0, 10.0)

    @field_validator("bands")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted({edge for edge in value if edge > 0}):
            raise ValueError("must be positive numbers that ascend, for example [0.1, 1, 10]")
        return value
