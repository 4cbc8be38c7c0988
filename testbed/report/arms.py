"""What the arms of a study are, in words, from its file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from testbed.report.results import Results
from testbed.report.words import listed
from testbed.trial.specs import ComponentSpec

RECIPE = ("recipe", "weighting", "loss", "density", "c_in", "c_noise")
"""The settings that a recipe has."""


def sentences(results: Results) -> list[str]:
    """Returns a sentence on the arms; none where there are fewer than two, or the file is lost."""
    try:
        file = tomllib.loads(str(results.study.get("file", "")))
    except tomllib.TOMLDecodeError:
        return []
    arms, base = file.get("arms"), file.get("base")
    if not isinstance(arms, Mapping) or len(arms) < 2:
        return []
    base = base if isinstance(base, Mapping) else {}
    said = [f"“{name}” {_stated(own, base)}" for name, own in arms.items()]
    return [f"Arms: {'; '.join(said)}."]


def _stated(own: Any, base: Mapping[str, Any]) -> str:
    """What an arm states, and whether that leaves every variant its own recipe."""
    if not isinstance(own, Mapping) or not own:
        if any(name in base for name in RECIPE):
            return "has what all trials have"
        return "leaves every variant its own recipe"
    return f"gives all variants {listed([f'{name} {_value(one)}' for name, one in own.items()])}"


def _value(value: Any) -> str:
    """A setting as a reader writes it: `lognormal (mean -1.2, std 1.2)`."""
    if isinstance(value, Mapping) and "name" in value:
        return str(ComponentSpec.model_validate(value))
    if isinstance(value, Mapping):
        return listed([f"{name} {_value(one)}" for name, one in value.items()])
    return str(value)
