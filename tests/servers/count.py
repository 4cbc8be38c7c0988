"""What PostgreSQL holds of the studies of a folder, counted by SQL against the trials' folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from testbed.study import tracking_content
from testbed.trial.study_folder import StudyFolder

Point = tuple[str, int, float]
RUNS = """
SELECT r.run_uuid, r.status, r.artifact_uri, t.value FROM runs r
JOIN tags s ON s.run_uuid = r.run_uuid AND s.key = 'testbed.study' AND s.value = %s
LEFT JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'testbed.trial'
WHERE r.lifecycle_stage = 'active'
"""
POINTS = """
SELECT key, step, value FROM metrics WHERE run_uuid = %s AND key NOT LIKE 'system/%%'
"""


@dataclass
class Count:
    """What was counted, and what is missing or there twice."""

    runs: int = 0
    points: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)


def of_studies(
    connection: psycopg.Connection[Any], studies: Sequence[Path], stored: Callable[[str], set[str]]
) -> Count:
    """Holds each study against the database and the folder of artifacts.

    Each trial and each study has to have one run, which is finished; each metric of a row or of a
    result has to be there once; each file of a trial has to be among the artifacts.

    Args:
        connection: to MLflow's database.
        studies: their folders.
        stored: the names of the files that are stored under a path, such as 1/RUN/artifacts.
    """
    found = Count()
    for at in studies:
        folder = StudyFolder.at(at)
        runs = connection.execute(RUNS, [folder.key()]).fetchall()
        found.runs += len(runs)
        known = Counter(trial or "" for *_, trial in runs)
        wanted = {"", *(one.name for one in folder.trials())}
        for trial in sorted(known.keys() | wanted):
            if known[trial] != (trial in wanted):
                found.problems.append(f"{at.name}: {trial or 'the study'} has {known[trial]} runs")
        for run, status, uri, trial in runs:
            name = f"{at.name}: the run of {trial or 'the study'}"
            if status != "FINISHED":
                found.problems.append(f"{name} is {status}")
            points = Counter(connection.execute(POINTS, [run]).fetchall())
            found.points += points.total()
            expected = Counter(of_trial(folder, trial) if trial else of_study(folder))
            for point in sorted(points.keys() | expected.keys()):
                if points[point] != expected[point]:
                    has = f"{points[point]} times for {expected[point]}"
                    found.problems.append(f"{name} has {point} {has}")
            files = stored(uri.partition(":/")[2])
            found.files += len(files)
            own = tracking_content.ARTIFACTS if trial else ("study.json",)
            there = folder.trial(trial) if trial else folder
            if lost := [one for one in own if there.has(one) and one not in files]:
                found.problems.append(f"{name} lacks {', '.join(lost)}")
    return found


def of_trial(folder: StudyFolder, trial: str) -> list[Point]:
    """The points that a trial's folder has."""
    at = folder.trial(trial)
    points = [
        (key, int(row["step"]), value)
        for row in at.rows()
        for key, value in tracking_content.curve(row).items()
    ]
    last = at.json("trial.json")["config"]["training"]["steps"]
    return points + [(k, last, v) for k, v in tracking_content.final(at.result()).items()]


def of_study(folder: StudyFolder) -> list[Point]:
    """The totals of a study."""
    states = Counter(str(one.result()["status"]) for one in folder.trials())
    return [(f"trials_{s}", 0, float(states[s])) for s in ("finished", "diverged", "failed")]
