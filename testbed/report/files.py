"""Reads single files of a study's folder as tables; a file that cannot be read is named."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pandas as pd

from testbed.report.results import LABEL, Results
from testbed.trial.folders import Folder

Parsed = TypeVar("Parsed")


def _read(
    folder: Folder, name: str, missing: list[str], parse: Callable[[bytes], Parsed]
) -> Parsed | None:
    """What a file holds; None where it is not there or cannot be read, which `missing` tells."""
    try:
        content = folder.store.get(name)
        if content is not None:
            return parse(content)
        missing.append(f"{short(folder, name)} is not there.")
    except (OSError, ValueError) as problem:
        missing.append(f"{short(folder, name)} cannot be read: {problem}.")
    return None


def read_json(folder: Folder, name: str, missing: list[str]) -> dict[str, Any] | None:
    """Returns what a file of JSON holds; None with a line in `missing` where it cannot be read."""

    def parse(content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(content.decode())
        return found

    return _read(folder, name, missing, parse)


def stored_table(folder: Folder, name: str, missing: list[str]) -> pd.DataFrame | None:
    """Returns a table; None with a line in `missing` where it cannot be read."""
    return _read(folder, name, missing, csv_table)


def csv_table(content: bytes) -> pd.DataFrame:
    """Returns a table of comma-separated values whose labels are text: an arm may be empty."""
    table = pd.read_csv(io.BytesIO(content))
    if present := [name for name in LABEL if name in table]:
        text = pd.read_csv(io.BytesIO(content), usecols=present, dtype=str, na_filter=False)
        table[present] = text[present]
    return table


def short(folder: Folder, name: str) -> str:
    """The part of a path that means something in the report."""
    return f"{folder.path.name}/{name}"


def metric_rows(ended: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Metric, value and error of each metric in a trial's result."""
    errors = ended.get("errors") or {}
    for name, value in (ended.get("metrics") or {}).items():
        error = errors.get(name, {}).get("error")
        error = math.nan if error is None else float(error)
        yield {"metric": name, "value": _number(value), "error": error}


@dataclass
class Measurements:
    """What was measured of several trials, collected as rows of tables."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    levels: list[pd.DataFrame] = field(default_factory=list)

    def add(
        self, key: Mapping[str, Any], ended: Mapping[str, Any], levels: pd.DataFrame | None
    ) -> None:
        """Adds a trial's metrics and its losses by level under a label and a seed, `key`."""
        self.metrics += [{**key, **metric} for metric in metric_rows(ended)]
        if levels is not None:
            grid = levels.get("level", levels["sigma"])
            self.levels.append(levels.assign(**key, level=grid))

    @property
    def metric_table(self) -> pd.DataFrame:
        """`Results.metrics`, still without the trials that diverged."""
        values = table_of(self.metrics, [*LABEL, "seed", "metric", "value", "error"])
        return values.astype({"value": float, "error": float})

    @property
    def level_table(self) -> pd.DataFrame:
        """`Results.levels`."""
        empty = [*LABEL, "seed", "level", "sigma", "loss", "wiener"]
        return pd.concat(self.levels) if self.levels else table_of([], empty)


def with_diverged(results: Results) -> pd.DataFrame:
    """The metrics with inf for those of a diverged trial: it is a result and stays in the count.

    A metric that is finite for no trial of a case (one that its data does not have) is dropped.
    """
    table = results.metrics
    for case in results.cases:
        names = results.metric_names(case)
        table = table[(table["case"] != case) | table["metric"].isin(names)]
        lost = results.trials[
            (results.trials["case"] == case) & (results.trials["status"] == "diverged")
        ]
        more = [
            {**{k: row[k] for k in (*LABEL, "seed")}, "metric": name, "value": math.inf}
            for row in lost.to_dict("records")
            for name in names
        ]
        if more:
            table = pd.concat([table, pd.DataFrame(more)], ignore_index=True)
    return table


def _number(value: Any) -> float:
    return math.inf if value is None or not math.isfinite(value) else float(value)


def table_of(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Returns a table that has its columns even without a row."""
    return pd.DataFrame(rows, columns=columns)
