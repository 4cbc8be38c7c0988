"""Studies that were run to their end, and what they left on disk and in MLflow."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.command_line import Done

from testbed.study import tracking_store
from testbed.trial.folders import Folder, TrialFolder
from testbed.trial.study_folder import StudyFolder

ONE = """
[study]
name = "one"
[base]
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 200, batch = 16, points = 4 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 3, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["v"]
"""

ONE_BY_ONE = ("--engine", "sequential")
"""Bit for bit on CPU whatever else is in the study; see test_batch.py for the batched engine."""


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def trials(folder: Path) -> dict[tuple[str, str, int], Path]:
    """The folder of every trial by (case, variant, seed) and arms."""
    found = {}
    for described in StudyFolder.at(folder).descriptions():
        first = described["labels"][0]
        arms = "+".join(label["arm"] for label in described["labels"])
        key = (f"{first['case']}/{arms}", first["variant"], described["config"]["seed"])
        found[key] = folder / "trials" / described["id"]
    return found


def the_trial(folder: Path) -> Path:
    (found,) = (folder / "trials").iterdir()
    return found


def result(at: Path) -> dict[str, Any]:
    return Folder.at(at).json("result.json")


def weights(at: Path) -> bytes:
    return (at / "weights.safetensors").read_bytes()


def curve(at: Path) -> list[dict[str, Any]]:
    """The rows of a trial without what the clock says."""
    clocks = ("time", "seconds")
    return [{k: v for k, v in row.items() if k not in clocks} for row in TrialFolder.at(at).rows()]


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and digest of every file."""
    return {
        str(file.relative_to(folder)): (
            file.stat().st_mtime_ns,
            hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@dataclass(frozen=True)
class Run:
    """An MLflow run as it is stored."""

    id: str
    experiment: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    artifacts: set[str]
    seconds: tuple[float, float]
    data: list[tuple[str, str, str]]


def stored(address: str, study: str) -> list[Run]:
    """Everything that MLflow holds of a study."""
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(f"testbed/{study}")
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        id_ = run.info.run_id
        metrics = {
            name: [(m.step, m.value) for m in client.get_metric_history(id_, name)]
            for name in run.data.metrics
        }
        artifacts = set()
        for one in client.list_artifacts(id_):
            inside = client.list_artifacts(id_, one.path) if one.is_dir else [one]
            artifacts |= {artifact.path for artifact in inside}
        info, tags = run.info, dict(run.data.tags)
        seconds = info.start_time / 1000, info.end_time / 1000
        inputs = [one.dataset for one in run.inputs.dataset_inputs]
        data = sorted((one.name, one.digest, one.profile) for one in inputs)
        found.append(
            Run(
                id_,
                info.experiment_id,
                info.status,
                tags,
                dict(run.data.params),
                metrics,
                artifacts,
                seconds,
                data,
            )
        )
    return found


def is_in(run: Run, arm: str) -> bool:
    return run.tags.get(f"testbed.arm.{arm}") == arm


def totals(parent: Run) -> dict[str, list[tuple[int, float]]]:
    """A study's own metrics, without those of its machine."""
    return {k: points for k, points in parent.metrics.items() if not k.startswith("system/")}


def of_kind(runs: list[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.tags["testbed.kind"] == kind]


def status_of(folder: Path) -> dict[str, str]:
    return {place.strip("/"): result(at)["status"] for (place, _, _), at in trials(folder).items()}


@dataclass(frozen=True)
class Finished:
    """A study that was run by `python -m testbed`, and once more by the same command."""

    root: Path
    address: str
    first: Done
    second: Done
    before: dict[str, tuple[int, str]]
    after: dict[str, tuple[int, str]]
    logged: list[Run]
    logged_again: list[Run]

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "tiny"


@dataclass(frozen=True)
class Troubled:
    """A study with a calm, a diverging and three failing trials; then without those three."""

    folder: Path
    done: Done
    page: str
    runs: list[Run]
    without: Done
    page_without: str
