"""The check of one law at one noise level, and the unit of rounding it is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # half a second to import, which a table alone needs
    import pandas as pd

NAN, INFINITE = float("nan"), float("inf")


@dataclass(frozen=True)
class LawCheck:
    """The largest error of one law for one subject at one noise level, beside its bound.

    `sigma` is the last level for a law over a whole trajectory. `ratio` is the largest of
    error/bound over samples and dimensions; the law holds where it is at most 1. A law that could
    not be checked has the `reason` and a ratio of nan. `part` is the part of the audit that checked
    it, and `data` names the distribution.
    """

    law: str
    subject: str
    sigma: float
    dtype: str
    error: float
    bound: float
    ratio: float
    reason: str = ""
    part: str = ""
    data: str = ""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> LawCheck:
        """Reads a check from JSON, where a number that is not finite is null; other keys are left.

        Raises:
            TypeError: One of the keys that every check has is missing.
        """
        values: dict[str, Any] = {
            name: NAN if stored[name] is None else stored[name]
            for name in cls.__dataclass_fields__
            if name in stored
        }
        return cls(**values)

    @property
    def passed(self) -> bool:
        """Whether the law holds, or could not be checked for a stated reason."""
        return bool(self.reason) or self.ratio <= 1


def gamma(k: int, dtype: torch.dtype) -> float:
    """Returns gamma_k = k u/(1 - k u), u the unit roundoff of dtype (Higham 2002, lemma 3.1)."""
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
) -> list[LawCheck]:
    """Returns a check for each level of sigma (B,), the worst of |first - second|/bound there.

    Args:
        law, subject: The names of the law and of what is audited.
        sigma: The noise level of each sample, (B,).
        first, second: The two sides of the law, (B, ...); an error that is not finite is a failure.
        bound: The largest |first - second| that rounding explains, broadcast to (B, ...).
        dtype: The dtype that the law was computed in; by default that of `first`.
    """
    error = (first.double() - second.double()).abs().flatten(1)
    limit = bound.double().expand_as(first).flatten(1)
    ratio = torch.where(error == 0, torch.zeros_like(error), error / limit)
    ratio = ratio.nan_to_num(nan=INFINITE)
    name = str(dtype or first.dtype).removeprefix("torch.")
    checks = []
    for level in torch.unique(sigma):
        here = sigma == level
        worst = int(ratio[here].argmax())
        e, b, r = (float(each[here].flatten()[worst]) for each in (error, limit, ratio))
        checks.append(LawCheck(law, subject, float(level), name, e, b, r))
    return checks


def verdict(law: str, subject: str, held: bool, dtype: str = "") -> LawCheck:
    """Returns the check of a law that holds or does not, without a size: its ratio is 0 or inf."""
    return LawCheck(law, subject, NAN, dtype, NAN, NAN, 0.0 if held else INFINITE)


def skipped(law: str, subject: str, reason: str) -> LawCheck:
    """Returns a check that says why the law was not checked."""
    return LawCheck(law, subject, NAN, "", NAN, NAN, NAN, reason)


def in_part(part: str, checks: Iterable[LawCheck], data: str = "") -> list[LawCheck]:
    """Returns the checks, marked with the part of the audit that they are of, and their data."""
    return [replace(check, part=part, data=data) for check in checks]


def table(checks: Iterable[LawCheck]) -> pd.DataFrame:
    """Returns all checks as a table, with a column `passed`."""
    import pandas as pd

    columns = [*LawCheck.__dataclass_fields__, "passed"]
    return pd.DataFrame([{**asdict(one), "passed": one.passed} for one in checks], columns=columns)
