"""Numbers in units of the data's sigma_data: `"0.04 * sigma_data"`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_FORM = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?)\s*\*\s*sigma_data\s*")


def factor(value: Any) -> float | None:
    """4 of "4 * sigma_data"; None for anything else."""
    found = _FORM.fullmatch(value) if isinstance(value, str) else None
    return float(found[1]) if found else None


def has_any(value: Any) -> bool:
    """Whether a value, or one within a table or a list, is a multiple of sigma_data."""
    if isinstance(value, Mapping):
        return any(map(has_any, value.values()))
    if isinstance(value, list | tuple):
        return any(map(has_any, value))
    return factor(value) is not None


def evaluated(value: Any, sigma_data: float) -> Any:
    """The value with a number in the place of each multiple of sigma_data, also within tables."""
    if isinstance(value, Mapping):
        return {key: evaluated(inner, sigma_data) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(evaluated(inner, sigma_data) for inner in value)
    times = factor(value)
    return value if times is None else times * sigma_data
