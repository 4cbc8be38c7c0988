"""Holds a study's folder and its MLflow store against an undisturbed one; says what differs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.study import tracking_content, tracking_store
from testbed.trial.folders import Folder, TrialFolder
from testbed.trial.study_folder import StudyFolder

CLOCKS = ("time", "seconds")
TIMES = ("training_seconds", "sampling_seconds", "measuring_seconds", "ended", "curve")
BITS = ("weights.safetensors", "states.safetensors", "samples.safetensors", "levels.csv")
STRAYS = ("*.tmp", "checkpoint*", "group.json", "*.new*", "groups/*", "error.txt")


@dataclass(frozen=True)
class Kept:
    """What of a trial has to be the same."""

    result: dict[str, Any]
    curve: list[dict[str, Any]]
    files: dict[str, bytes]


def kept(at: Path) -> Kept:
    """A trial's result and curve without what the clock says, and its files."""
    result = Folder.at(at).json("result.json")
    curve = [{k: v for k, v in row.items() if k not in CLOCKS} for row in TrialFolder.at(at).rows()]
    files = {name: (at / name).read_bytes() for name in BITS if (at / name).is_file()}
    return Kept({k: v for k, v in result.items() if k not in TIMES}, curve, files)


def trials(folder: Path) -> dict[str, Kept]:
    """Every trial of a study's folder that has a result."""
    found = sorted((folder / "trials").iterdir())
    return {at.name: kept(at) for at in found if (at / "result.json").is_file()}


def differences(folder: Path, reference: dict[str, Kept]) -> list[str]:
    """What a study's folder has that the reference has not, or the other way round."""
    found, said = trials(folder), []
    for id_ in sorted(reference.keys() | found.keys()):
        if id_ not in found or id_ not in reference:
            said.append(f"trial {id_} is {'missing' if id_ not in found else 'one too many'}")
            continue
        one, other = found[id_], reference[id_]
        if one.result != other.result:
            said.append(f"trial {id_}: another result: {one.result} for {other.result}")
        if one.curve != other.curve:
            said.append(f"trial {id_}: another curve, {len(one.curve)} for {len(other.curve)} rows")
        said += [
            f"trial {id_}: {name} differs"
            for name in BITS
            if one.files.get(name) != other.files.get(name)
        ]
    return said


def strays(folder: Path) -> list[str]:
    """Temporary files and states to resume from, where everything has ended."""
    found = [file for pattern in STRAYS for file in folder.rglob(pattern)]
    said = [f"{file.relative_to(folder)} is left" for file in sorted(found)]
    if not (folder / "report.html").is_file():
        said.append("there is no report")
    return said


def logged(folder: Path, address: str) -> list[str]:
    """What MLflow holds twice, has not, or holds otherwise than the trials' directories."""
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(f"testbed/{folder.name}")
    runs = [
        run
        for run in client.search_runs([experiment.experiment_id], max_results=1000)
        if run.data.tags["testbed.study"] == StudyFolder.at(folder).key()
    ]
    said = [
        f"a {run.data.tags['testbed.kind']}'s run is {run.info.status}"
        for run in runs
        if run.info.status != "FINISHED"
    ]
    parents = [run for run in runs if run.data.tags["testbed.kind"] == "study"]
    if len(parents) != 1:
        said.append(f"{len(parents)} runs of the study")
    for parent in parents:
        states = Counter(one.result["status"] for one in trials(folder).values())
        counts = {f"trials_{s}": float(states[s]) for s in ("finished", "diverged", "failed")}
        said += _history(client, parent, {key: [(0, value)] for key, value in counts.items()})
        if "report.html" not in {one.path for one in client.list_artifacts(parent.info.run_id)}:
            said.append("the report is not in MLflow")
    nested = [run for run in runs if run.data.tags["testbed.kind"] == "trial"]
    known = Counter(run.data.tags["testbed.trial"] for run in nested)
    for id_ in sorted(known.keys() | {at.name for at in (folder / "trials").iterdir()}):
        if known[id_] != 1:
            said.append(f"trial {id_} has {known[id_]} runs")
    for run in nested:
        at = folder / "trials" / run.data.tags["testbed.trial"]
        said += _of_trial(client, run, at) if at.is_dir() else [f"{at.name} has a run alone"]
    return said


def statuses(address: str, study: str) -> list[str]:
    """Of every run of a study."""
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(f"testbed/{study}")
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def _of_trial(client: Any, run: Any, at: Path) -> list[str]:
    result = Folder.at(at).json("result.json")
    config = Folder.at(at).json("trial.json")["config"]
    expected = {
        f"training/{key}": [
            (row["step"], row[key]) for row in TrialFolder.at(at).rows() if row[key] is not None
        ]
        for key in tracking_content.CURVES
    }
    final = result["metrics"] | {"diverged": float(result["status"] == "diverged")}
    for name, found in result.get("errors", {}).items():
        final |= {f"{name}_error": found["error"], f"{name}_p": found["p"]}
    last = config["training"]["steps"]
    expected |= {
        f"evaluation/{key}": [(last, value)] for key, value in final.items() if value is not None
    }
    said = _history(client, run, expected)
    if run.data.params != {key: text for key, text in tracking_content.flat(config)}:
        said.append("other parameters")
    names = {one.path for one in client.list_artifacts(run.info.run_id)}
    missing = {name for name in tracking_content.ARTIFACTS if (at / name).is_file()} - names
    if missing:
        said.append(f"{', '.join(sorted(missing))} is not in MLflow")
    return [f"run of trial {at.name}: {one}" for one in said]


def _history(client: Any, run: Any, expected: dict[str, list[tuple[int, float]]]) -> list[str]:
    """Metrics whose points are others, in number or value."""
    said = []
    stored = {key for key in run.data.metrics if not key.startswith("system/")}
    for key in sorted(expected.keys() | stored):
        points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)]
        wanted = expected.get(key, [])
        if sorted(points) != sorted(wanted):
            twice = len(points) - len(set(points))
            said.append(f"{key} has {len(points)} points for {len(wanted)}, {twice} of them twice")
    return said


def everything(folder: Path, reference: dict[str, Kept], address: str) -> list[str]:
    """All of it."""
    return [*differences(folder, reference), *strays(folder), *logged(folder, address)]
