"""Reads what was measured at points of training, at other budgets, and with other averages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd

from testbed.report.files import Measurements, read_json, stored_numbers, with_diverged
from testbed.report.results import LABEL, Results, Stage
from testbed.trial.folders import Folder, TrialFolder
from testbed.trial.study_folder import StudyFolder

Row = dict[str, Any]


def read(results: Results) -> dict[Stage, Results]:
    """Returns the results at every stage, in order; none of a kind that the study did not ask for.

    A trial that diverged has what was measured of it at the points before, and inf at the others
    that it was to be measured at. What was measured is not read of one that failed.

    Args:
        results: those of the study, whose folder is read.
    """
    found: dict[Stage, list[tuple[Row, Folder]]] = {}
    asked: set[str] = set()
    files = StudyFolder.at(results.folder)
    for row, budget in _rows(results):
        trial = files.trial(row["id"])
        places = list(_elsewhere(results, trial, row, budget))
        asked |= {stage.kind for stage, _, _ in places}
        for stage, there, folder in (*places, *_end(results, trial, row, budget)):
            found.setdefault(stage, []).append((there, folder))
    return {stage: _at(results, found[stage]) for stage in sorted(found) if stage.kind in asked}


def _rows(results: Results) -> Iterator[tuple[Row, int | None]]:
    """Every trial that ended, and its budget where that is not the study's own."""
    for table in (results.trials, results.budgets):
        for row in table.to_dict("records"):
            if row["status"] in ("finished", "diverged"):
                named: Row = {str(name): value for name, value in row.items()}
                yield named, named.pop("budget", None)


def _elsewhere(
    results: Results, trial: TrialFolder, row: Row, budget: int | None
) -> Iterator[tuple[Stage, Row, Folder]]:
    """The stages of a trial besides `_end`.

    Each has the trial's row as it was there, finished where it was measured, and the folder of what
    was measured.
    """
    config = results.configs.get(row["id"])
    if budget is not None:
        yield Stage("budgets", budget), row, trial
        return
    measured: set[Stage] = set()
    for point in trial.points():
        if record := read_json(point, "result.json", results.missing):
            width = record["width"]
            stage = Stage("widths", width) if width else Stage("points", record["step"])
            measured.add(stage)
            yield stage, {**row, "status": "finished"}, point
    if row["status"] == "diverged" and config is not None:
        evaluation = config.evaluation
        lost = [Stage("points", step) for step in evaluation.at(config.training.steps)]
        lost += [Stage("widths", width) for width in evaluation.widths]
        yield from ((stage, row, trial) for stage in lost if stage not in measured)


def _end(
    results: Results, trial: TrialFolder, row: Row, budget: int | None
) -> Iterator[tuple[Stage, Row, Folder]]:
    """The end of a training of the study's own budget, which is a point and a budget as well."""
    config = results.configs.get(row["id"])
    if budget is None and config is not None:
        yield Stage("points", config.training.steps), row, trial
        yield Stage("budgets", config.training.steps), row, trial


def _at(results: Results, members: list[tuple[Row, Folder]]) -> Results:
    """The results of these trials, each as it was measured in a folder."""
    measured = Measurements()
    for row, folder in members:
        if row["status"] == "finished":
            ended = read_json(folder, "result.json", results.missing) or {}
            levels = stored_numbers(folder, "levels.csv", results.missing)
            measured.add({name: row[name] for name in (*LABEL, "seed")}, ended, levels)
    found = replace(
        results,
        trials=pd.DataFrame([row for row, _ in members]),
        metrics=measured.metric_table,
        levels=measured.level_table(results.missing),
    )
    return replace(found, metrics=with_diverged(found))
