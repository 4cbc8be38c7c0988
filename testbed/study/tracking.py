"""MLflow, the only place that imports it: a view of the trial directories.

The driver alone writes to it, from what the journals hold, so it can be away and be caught up with
later. A row sent twice is stored once: MLflow drops an identical (key, timestamp, step, value).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.study import journal
from testbed.study.plan import Plan, Trial

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
CURVES = ("loss", "gradient_norm", "gradient_norm_cv")
ARTIFACTS = (
    "trial.json",
    "result.json",
    "levels.csv",
    "tweedie.json",
    "rows.parquet",
    "weights.safetensors",
    "samples.safetensors",
    "error.txt",
)
BATCH, PARAMS = 1000, 100
LONGEST = 6000
CREATE = """
import sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore("sqlite:///" + sys.argv[1], sys.argv[2])
"""


def silence() -> None:
    """Sets MLflow's switches, before it is imported: no telemetry, no noise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite file mlflow.db in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


def prepare(address: str) -> None:
    """Creates a SQLite store that does not exist yet, whole or not at all.

    Its 65 tables are migrated in a process of their own, in a temporary file that is then renamed;
    a lock keeps several studies on a fresh file from doing it at once.

    Raises:
        InputError: the store could not be created.
    """
    if not address.startswith("sqlite:///"):
        return
    file = Path(address.removeprefix("sqlite:///")).absolute()
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            return
        temporary = file.with_name(f"{file.name}.new")
        temporary.unlink(missing_ok=True)
        command = [sys.executable, "-c", CREATE, str(temporary), str(_artifacts(file))]
        made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if made.returncode:
            last = made.stderr.strip().splitlines()[-1:] or ["no message"]
            raise InputError(f"MLflow could not create {file}: {last[0]}")
        with sqlite3.connect(temporary) as database:
            database.execute("PRAGMA journal_mode=WAL")
        database.close()
        os.replace(temporary, file)


def _artifacts(database: Path) -> Path:
    return database.with_name("mlartifacts")


class Tracker:
    """Sends a study to MLflow: a parent run for the study, a nested run for each trial.

    `seconds` is the CPU time it took, a new store's creation included: what it takes from training,
    which goes on meanwhile in other processes.

    The first failure to reach MLflow is told once through `warn`; training goes on, and the next
    run of the study sends what is missing.
    """

    def __init__(self, plan: Plan, warn: Callable[[str], None]) -> None:
        self.seconds = 0.0
        self.away = False
        self._warn = warn
        self._plan = plan
        self._file = plan.folder / "mlflow.json"
        self._sent: dict[str, Any] = {}
        self._client: Any = None
        self._parent = ""

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        except Exception as problem:
            self.away = True
            what = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            self._warn(f"MLflow at {uri()} does not answer ({what}); the study goes on without it.")
        finally:
            self.seconds += time.thread_time() - start

    def open(self) -> None:
        """Connects, and creates or adopts the study's parent run; once."""
        if self._parent or self.away:
            return
        with self._guarded():
            silence()
            before = os.times()
            prepare(uri())
            after = os.times()
            self.seconds += after.children_user - before.children_user
            self.seconds += after.children_system - before.children_system
            from mlflow.tracking import MlflowClient

            address = uri()
            self._client = MlflowClient(tracking_uri=address)
            name = f"testbed/{self._plan.study.header.name}"
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                location = None
                if address.startswith("sqlite:///"):
                    folder = _artifacts(Path(address.removeprefix("sqlite:///")).absolute())
                    location = folder.as_uri()
                identifier = self._client.create_experiment(name, artifact_location=location)
            else:
                identifier = experiment.experiment_id
            stored = journal.read_json(self._file) if self._file.is_file() else {}
            if stored.get("uri") == address and stored.get("experiment") == identifier:
                self._sent = stored
            else:
                self._sent = {"uri": address, "experiment": identifier, "trials": {}}
            title = self._plan.study.header.title or self._plan.study.header.name
            self._parent = self._sent.get("parent") or self._create(
                title, {"testbed.kind": "study"}
            )
            self._sent["parent"] = self._parent
            self._client.update_run(self._parent, status="RUNNING")
            self._save()

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self._client.create_run(
            self._sent["experiment"], run_name=name, tags={"mlflow.runName": name, **tags}
        )
        return str(run.info.run_id)

    def _save(self) -> None:
        journal.write_json(self._file, self._sent)

    def update(self, trial: Trial) -> None:
        """Sends the rows since the last call; the first call creates the nested run."""
        self.open()
        if not self.away:
            with self._guarded():
                self._send(trial, {}, {}, 0)

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial, its tables and weights, and closes its run."""
        self.open()
        if self.away or self._sent["trials"].get(trial.id, {}).get("ended") == status:
            return
        with self._guarded():
            at = journal.folder(self._plan.folder, trial.id)
            result = journal.read_json(at / "result.json") if status in journal.ENDED else {}
            final = {**result.get("metrics", {}), "diverged": float(status == "diverged")}
            tags = {"testbed.status": status, "testbed.device": result.get("device", "")}
            run = self._send(trial, final, tags, trial.config["training"]["steps"])
            if (at / "rows.jsonl").is_file():
                import pandas as pd

                pd.DataFrame(journal.rows(at)[0]).to_parquet(at / "rows.parquet")
            for name in ARTIFACTS:
                if (at / name).is_file():
                    self._client.log_artifact(run, str(at / name))
            ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
            self._client.set_terminated(run, status=ended)
            self._sent["trials"][trial.id]["ended"] = status
            self._save()

    def _send(
        self, trial: Trial, final: Mapping[str, float | None], tags: Mapping[str, str], step: int
    ) -> str:
        """New rows of the curve, final metrics and tags in as few calls as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        at = journal.folder(self._plan.folder, trial.id)
        entry = self._sent["trials"].get(trial.id)
        params: list[Param] = []
        if entry is None:
            own = {
                "mlflow.parentRunId": self._parent,
                "testbed.kind": "trial",
                "testbed.trial": trial.id,
                "testbed.case": trial.labels[0]["case"],
                "testbed.arm": "+".join(label["arm"] for label in trial.labels),
            }
            run = self._create(trial.title, own)
            entry = self._sent["trials"][trial.id] = {"run": run, "step": 0, "ended": ""}
            self._save()
        if entry["step"] == 0:
            params = [Param(key, text[:LONGEST]) for key, text in flat(trial.config)]
        # By step, not by place in the file: a resumed trial cuts its curve and writes it again.
        fresh = [row for row in journal.rows(at)[0] if row["step"] > entry["step"]]
        now = int(1000 * time.time())
        metrics = [
            Metric(key, row[key], int(1000 * row["time"]), row["step"])
            for row in fresh
            for key in CURVES
            if row[key] is not None
        ]
        metrics += [
            Metric(key, float(value), now, step)
            for key, value in final.items()
            if value is not None and math.isfinite(value)
        ]
        own_tags = [RunTag(key, value) for key, value in tags.items()]
        while metrics or params or own_tags:
            room = BATCH - len(params[:PARAMS]) - len(own_tags)
            self._client.log_batch(
                entry["run"], metrics=metrics[:room], params=params[:PARAMS], tags=own_tags
            )
            metrics, params, own_tags = metrics[room:], params[PARAMS:], []
        if fresh:
            entry["step"] = fresh[-1]["step"]
            self._save()
        return str(entry["run"])

    def close(self, status: str, plugin_files: Mapping[str, Path]) -> None:
        """Sends the report, tables, figures, plugin files and totals, and closes the parent run.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            plugin_files: the loaded plugins' files by name.
        """
        self.open()
        if self.away:
            return
        with self._guarded():
            from mlflow.entities import Metric

            folder = self._plan.folder
            states = [trial.state for trial in self._plan.trials]
            counts = {state: states.count(state) for state in ("finished", "diverged", "failed")}
            if counts != self._sent.get("counts"):
                now = int(1000 * time.time())
                metrics = [Metric(f"trials_{s}", float(n), now, 0) for s, n in counts.items()]
                self._client.log_batch(self._parent, metrics=metrics)
                self._sent["counts"] = counts
                self._save()
            for name in ("study.json", "report.html", "coefficients.csv", "tweedie.json"):
                if (folder / name).is_file():
                    self._client.log_artifact(self._parent, str(folder / name))
            for name in ("tables", "figures"):
                if (folder / name).is_dir():
                    self._client.log_artifacts(self._parent, str(folder / name), name)
            for file in plugin_files.values():
                self._client.log_artifact(self._parent, str(file), "plugins")
            self._client.set_terminated(self._parent, status=status)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Parameters by dotted key; a component is its name, its options stand under it."""
    for key, value in config.items():
        if isinstance(value, Mapping) and set(value) == {"name", "options"}:
            yield prefix + key, str(value["name"])
            yield from flat(value["options"], f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)
