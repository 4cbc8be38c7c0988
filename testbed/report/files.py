"""Reads single files of a study's folder as tables; a file that cannot be read is named."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from testbed.report.results import LABEL, Results
from testbed.trial import records
from testbed.trial.folders import Folder

PLACE = "place"
"""The column of `numbers` with the place of a row's file."""
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
    except (OSError, ValueError, RecursionError) as problem:
        missing.append(f"{short(folder, name)} cannot be read: {problem}.")
    return None


def read_json(folder: Folder, name: str, missing: list[str]) -> dict[str, Any] | None:
    """Returns what a file of JSON holds; None with a line in `missing` where it cannot be read."""
    return _read(folder, name, missing, partial(records.parsed, name))


def stored_table(folder: Folder, name: str, missing: list[str]) -> pd.DataFrame | None:
    """Returns a table; None with a line in `missing` where it cannot be read."""
    return _read(folder, name, missing, csv_table)


class StoredNumbers(NamedTuple):
    """The content of a file of numbers, and what it is called in a report."""

    name: str
    content: bytes


def stored_numbers(folder: Folder, name: str, missing: list[str]) -> StoredNumbers | None:
    """Returns what `numbers` parses; None with a line in `missing` where there is no such file."""
    return _read(folder, name, missing, lambda content: StoredNumbers(short(folder, name), content))


def numbers(
    files: Sequence[tuple[Mapping[str, Any], StoredNumbers]], missing: list[str]
) -> pd.DataFrame | None:
    """Returns the rows of all files, each with what it is keyed by; None without any file.

    Files of the same columns are parsed as one: by itself, each takes milliseconds. Where that does
    not give numbers throughout, each is parsed alone, and one that cannot be read is in `missing`.
    """
    of_header: dict[bytes, list[int]] = {}
    for place, (_, file) in enumerate(files):
        of_header.setdefault(file.content.partition(b"\n")[0], []).append(place)
    parsed: list[pd.DataFrame] = []
    for header, places in of_header.items():
        bodies = [files[place][1].content.partition(b"\n")[2] for place in places]
        lengths = [sum(map(bool, body.splitlines())) for body in bodies]
        table = _numeric(header + b"\n" + b"\n".join(bodies), sum(lengths))
        if table is not None:
            parsed.append(table.assign(**{PLACE: np.repeat(places, lengths)}))
            continue
        for place in places:
            file = files[place][1]
            try:
                parsed.append(pd.read_csv(io.BytesIO(file.content)).assign(**{PLACE: place}))
            except ValueError as problem:
                missing.append(f"{file.name} cannot be read: {problem}.")
    if not parsed:
        return None
    table = pd.concat(parsed, ignore_index=True).sort_values(PLACE, kind="stable")
    keys = pd.DataFrame([key for key, _ in files])
    own = keys.iloc[table.pop(PLACE).to_numpy()].set_axis(table.index)
    return pd.concat([table, own], axis=1).reset_index(drop=True)


def _numeric(content: bytes, rows: int) -> pd.DataFrame | None:
    """A table of numbers of so many rows; None where it is not one."""
    try:
        table = pd.read_csv(io.BytesIO(content))
    except ValueError:
        return None
    numeric = len(table.select_dtypes("number").columns) == len(table.columns)
    return table if numeric and len(table) == rows else None


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
    levels: list[tuple[Mapping[str, Any], StoredNumbers]] = field(default_factory=list)

    def add(
        self, key: Mapping[str, Any], ended: Mapping[str, Any], levels: StoredNumbers | None
    ) -> None:
        """Adds a trial's metrics and its losses by level under a label and a seed, `key`."""
        self.metrics += [{**key, **metric} for metric in metric_rows(ended)]
        if levels is not None:
            self.levels.append((key, levels))

    @property
    def metric_table(self) -> pd.DataFrame:
        """`Results.metrics`, still without the trials that diverged."""
        values = table_of(self.metrics, [*LABEL, "seed", "metric", "value", "error"])
        return values.astype({"value": float, "error": float})

    def level_table(self, missing: list[str]) -> pd.DataFrame:
        """`Results.levels`; a file that cannot be read is in `missing`."""
        table = numbers(self.levels, missing)
        if table is None:
            return table_of([], [*LABEL, "seed", "level", "sigma", "loss", "wiener"])
        # Where no level was drawn from a table, the grid's is the one that was measured at.
        grid = table["level"].fillna(table["sigma"]) if "level" in table else table["sigma"]
        return table.assign(level=grid)


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
