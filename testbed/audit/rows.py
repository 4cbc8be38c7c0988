"""One row of the Tweedie table, and the unit of rounding it is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """The largest error of one law for one subject at one noise level, beside its bound.

    `sigma` is the last level for a law over a whole trajectory. `ratio` is the largest of
    error/bound over samples and dimensions; the law holds where it is at most 1. A law that could
    not be checked has the `reason` and a ratio of nan.
    """

    law: str
    subject: str
    sigma: float
    dtype: str
    error: float
    bound: float
    ratio: float
    reason: str = ""
    level: str = ""
    data: str = ""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Row:
        """A row from JSON, where a number that is not finite is null."""
        filled: dict[str, Any] = {
            key: float("nan") if value is None else value for key, value in stored.items()
        }
        return cls(**filled)

    @property
    def passed(self) -> bool:
        """Whether the law holds, or could not be checked for a stated reason."""
        return bool(self.reason) or self.ratio <= 1


def gamma(k: int, dtype: torch.dtype) -> float:
    """gamma_k = k u/(1 - k u), u the unit roundoff of dtype (Higham 2002, eq. 3.1)."""
    u = torch.finfo(dtype).eps / 2
    return k * u / (1 - k * u)


def rows(
    law: str,
    subject: str,
    sigma: Tensor,
    first: Tensor,
    second: Tensor,
    bound: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Row]:
    """One row for each level of sigma (B,), the worst of |first - second|/bound at that level.

    first, second, bound: (B, ...). A non-finite error counts as a failure. `dtype` is the one that
    was computed in, by default that of `first`.
    """
    error = (first.double() - second.double()).abs().flatten(1)
    limit = bound.double().expand_as(first).flatten(1)
    ratio = torch.where(error == 0, torch.zeros_like(error), error / limit)
    ratio = ratio.nan_to_num(nan=float("inf"))
    found = []
    for level in torch.unique(sigma):
        chosen = sigma == level
        worst = int(ratio[chosen].argmax())
        found.append(
            Row(
                law=law,
                subject=subject,
                sigma=float(level),
                dtype=str(dtype or first.dtype).removeprefix("torch."),
                error=float(error[chosen].flatten()[worst]),
                bound=float(limit[chosen].flatten()[worst]),
                ratio=float(ratio[chosen].flatten()[worst]),
            )
        )
    return found


def verdict(law: str, subject: str, held: bool, dtype: str = "") -> Row:
    """A law that holds or does not, without a size: its ratio is 0 or infinite."""
    nan = float("nan")
    return Row(law, subject, nan, dtype, nan, nan, 0.0 if held else float("inf"))


def at_level(level: str, found: Iterable[Row], data: str = "") -> list[Row]:
    """The rows, marked with their level and their data."""
    return [replace(row, level=level, data=data) for row in found]


def skipped(law: str, subject: str, reason: str) -> Row:
    """A row that says why a law was not checked."""
    nan = float("nan")
    return Row(law, subject, nan, "", nan, nan, nan, reason)


def table(found: Iterable[Row]) -> pd.DataFrame:
    """All rows as a table, with a column `passed`."""
    columns = [*Row.__dataclass_fields__, "passed"]
    return pd.DataFrame([{**asdict(row), "passed": row.passed} for row in found], columns=columns)
