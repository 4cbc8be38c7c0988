"""The result of an audit: laws that hold or not, sizes of errors, and what is probably wrong."""

from __future__ import annotations

import html
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from testbed.audit.learning import Effect
from testbed.audit.rows import LawCheck, table

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("algebra", "oracle", "second order", "learning", "sampling")
"""The parts of an audit, in their order."""


@dataclass(frozen=True, repr=False)
class Audit:
    """The result of an audit: `rows` are laws that can fail, `effects` are sizes that cannot.

    Its repr is a summary; a notebook shows the laws as a table.
    """

    subject: str
    rows: tuple[LawCheck, ...]
    effects: tuple[Effect, ...] = ()
    findings: tuple[str, ...] = ()
    """What is probably wrong, in words."""
    notes: tuple[str, ...] = ()
    """What is worth knowing and not wrong: equal objectives, parts that were left out."""

    @property
    def passed(self) -> bool:
        """Whether every law that could be checked holds, and at least one could."""
        return all(row.passed for row in self.rows) and any(not row.reason for row in self.rows)

    @property
    def summary(self) -> str:
        """How many laws hold, and how near to its bound the largest error is."""
        laws = self.laws()
        laws = laws[laws["reason"] == ""]
        names = laws["law"].nunique()
        failed = sum(not row.passed for row in self.rows)
        if failed:
            broken = laws[~laws["passed"]]["law"].nunique()
            return f"{broken} of {names} laws broken ({failed} of {len(self.rows)} checks)"
        if not names:
            return "no law could be checked"
        return (
            f"All {names} laws hold ({len(self.rows)} checks; the largest error is "
            f"{laws['ratio'].max():.2g} of its bound)"
        )

    def __repr__(self) -> str:
        said = [f"probably: {text}" for text in self.findings]
        return " ".join([f"<Audit of {self.subject}: {self.summary}>", *said])

    def _repr_html_(self) -> str:
        """The summary, what is probably wrong, and the laws as a table."""
        said = [f"Audit of {self.subject}: {self.summary}.", *self.findings, *self.notes]
        shown = self.laws().drop(columns="subject")
        table: str = shown.to_html(index=False, float_format=lambda value: f"{value:.3g}")
        return "".join(f"<p>{html.escape(text)}</p>" for text in said) + table

    def table(self) -> pd.DataFrame:
        """Returns every check: part, law, subject, data, sigma, dtype, error, bound, ratio, passed.

        The errors and bounds are in the units of the law's two sides.
        """
        checks = table(self.rows)
        first = ["part", "law", "subject", "data", "sigma", "dtype"]
        return checks[[*first, *(name for name in checks if name not in first)]]

    def laws(self) -> pd.DataFrame:
        """Returns the worst check of each part, law, data and dtype, a part's failures first."""
        checks = self.table()
        keys = ["part", "law", "data", "dtype"]
        worst = checks.sort_values("ratio", ascending=False, kind="stable").drop_duplicates(keys)
        counts = checks.groupby(keys)["passed"].agg(checks="size", held="sum").reset_index()
        return worst.merge(counts, on=keys).sort_values(["part", "passed", "law"], key=ordered)

    def json(self) -> str:
        """Returns all of it as JSON; a number that is not finite is null."""
        parts = {
            "subject": self.subject,
            "passed": self.passed,
            "rows": [{**asdict(row), "passed": row.passed} for row in self.rows],
            "effects": [asdict(effect) for effect in self.effects],
            "findings": self.findings,
            "notes": self.notes,
        }
        return json.dumps(_finite(parts), indent=1)

    def effects_table(self) -> pd.DataFrame:
        """Returns every effect: name, subject, sigma, value, low, high, unit, data."""
        import pandas as pd

        columns = list(Effect.__dataclass_fields__)
        return pd.DataFrame([asdict(effect) for effect in self.effects], columns=columns)


def ordered(column: pd.Series[Any]) -> pd.Series[Any]:
    """A key for sorting: parts in the order of `PARTS`, any other column as it is."""
    order = {part: i for i, part in enumerate(PARTS)}
    return column.map(order) if column.name == "part" else column


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
