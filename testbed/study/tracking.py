"""MLflow, the only place that imports it: a view of the trial directories.

The driver alone writes to it, from what the folders hold, so it can be away and be caught up with
later. A row sent twice is stored once: MLflow drops an identical (key, timestamp, step, value).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.study import tracking_store
from testbed.study.plan import Plan, Trial
from testbed.trial.folders import ENDED

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
AGAIN = 30.0
LONGEST = 6000


class Tracker:
    """Sends a study to MLflow: a parent run for the study, a nested run for each trial.

    `uri` is the address of the store. `seconds` is the CPU time it took, a new store's creation
    included: what it takes from training, which goes on meanwhile in other processes.

    The first failure to reach MLflow is told once through `warn`, with what follows from it. It is
    tried again every AGAIN seconds and at the end; then, or by the next run of the study, what is
    missing is sent.

    Every run bears the study's key: what a killed driver has begun is found by it, not begun again.
    """

    def __init__(self, plan: Plan, uri: str, warn: Callable[[str], None], otherwise: str) -> None:
        self.uri = uri
        self.seconds = 0.0
        self.away = False
        self._warn = warn
        self._otherwise = otherwise
        self._warned = False
        self._again = 0.0
        self._plan = plan
        self._key = plan.files.key()
        self._sent: dict[str, Any] = {}
        self._told: set[tuple[str, str]] = set()
        self._own: set[str] = set()
        self._client: Any = None
        self._parent = ""

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        except Exception as problem:
            self.away = True
            self._again = time.monotonic() + AGAIN
            if not self._warned:
                what = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
                self._warn(f"MLflow at {self.uri} does not answer ({what}); {self._otherwise}.")
                self._warned = True
        finally:
            self.seconds += time.thread_time() - start

    def open(self) -> None:
        """Connects, and creates or adopts the study's runs; again after MLflow was away."""
        if (self._parent and not self.away) or time.monotonic() < self._again:
            return
        with self._guarded():
            tracking_store.silence()
            before = os.times()
            tracking_store.prepare(self.uri)
            after = os.times()
            self.seconds += after.children_user - before.children_user
            self.seconds += after.children_system - before.children_system
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(tracking_uri=self.uri)
            experiment = self._experiment()
            known = self._plan.files.json_or_empty("mlflow.json").get("trials", {})
            self._sent = {"uri": self.uri, "key": self._key, "experiment": experiment, "trials": {}}
            self._parent = ""
            for run in self._runs(experiment):
                tags, id_ = run.data.tags, run.info.run_id
                if tags["testbed.kind"] == "study":
                    self._parent = id_
                    continue
                entry = known.get(tags["testbed.trial"], {})
                if entry.get("run") != id_:
                    entry = {"run": id_, "step": 0, "ended": ""}
                self._sent["trials"][tags["testbed.trial"]] = entry
            title = self._plan.study.header.title or self._plan.study.header.name
            kinds = {"testbed.kind": "study"}
            if found := self._plan.data_notes:
                lines = (f"{case or 'data'}: {n}" for case, notes in found.items() for n in notes)
                kinds["testbed.data_notes"] = "\n".join(lines)[:LONGEST]
            self._parent = self._parent or self._create(title, kinds)
            self._client.update_run(self._parent, status="RUNNING")
            self._save()
            if self.away:
                self._warn(f"MLflow at {self.uri} answers again.")
            self.away = False

    def _experiment(self) -> str:
        """The study's experiment, whoever creates it first."""
        from mlflow.exceptions import MlflowException

        name, location = f"testbed/{self._plan.study.header.name}", None
        found = self._client.get_experiment_by_name(name)
        if found is None:
            if self.uri.startswith(tracking_store.SQLITE):
                file = Path(self.uri.removeprefix(tracking_store.SQLITE)).absolute()
                location = tracking_store.artifacts(file).as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _runs(self, experiment: str) -> Iterator[Any]:
        """The runs of this study."""
        token = None
        while True:
            page = self._client.search_runs(
                [experiment], f"tags.`testbed.study` = '{self._key}'", page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        own = {"mlflow.runName": name, "testbed.study": self._key, **tags}
        run = self._client.create_run(self._sent["experiment"], run_name=name, tags=own)
        self._own.add(run.info.run_id)
        return str(run.info.run_id)

    def _save(self) -> None:
        self._plan.files.put_json("mlflow.json", self._sent)

    def update(self, trial: Trial) -> None:
        """Sends the rows since the last call; the first call creates the nested run."""
        self.open()
        if not self.away:
            with self._guarded():
                self._send(trial, {}, {}, 0)

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial, its tables and weights, and closes its run."""
        self.open()
        if self.away or (trial.id, status) in self._told:
            return
        if status in ENDED and self._ended(trial) == status:
            return
        with self._guarded():
            folder = self._plan.files.trial(trial.id)
            result, final = {}, {}
            if status in ENDED:
                result = folder.json("result.json")
                final = {
                    **result["metrics"],
                    **{
                        f"{name}_{what}": value
                        for name, found in (result.get("errors") or {}).items()
                        for what, value in found.items()
                    },
                    "diverged": float(status == "diverged"),
                }
            tags = {"testbed.status": status, "testbed.device": result.get("device", "")}
            run = self._send(trial, final, tags, trial.config.training.steps)
            if folder.has("rows.jsonl"):
                import pandas as pd

                folder.put_parquet("rows.parquet", pd.DataFrame(folder.rows()))
            for name in ARTIFACTS:
                if folder.has(name):
                    self._client.log_artifact(run, str(folder.path / name))
            ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
            self._client.set_terminated(run, status=ended)
            self._sent["trials"][trial.id]["ended"] = status
            self._told.add((trial.id, status))
            self._save()

    def _ended(self, trial: Trial) -> str:
        """The status that MLflow was told."""
        return str(self._sent["trials"].get(trial.id, {}).get("ended", ""))

    def _unsent(self, run: str, metrics: list[Any]) -> list[Any]:
        """Without what a killed driver has sent and not noted; with another time it would count."""
        if run in self._own:
            return metrics
        stored = {
            key: {(one.step, one.value) for one in self._client.get_metric_history(run, key)}
            for key in {one.key for one in metrics}
        }
        return [one for one in metrics if (one.step, one.value) not in stored[one.key]]

    def _send(
        self, trial: Trial, final: Mapping[str, float | None], tags: Mapping[str, str], step: int
    ) -> str:
        """New rows of the curve, final metrics and tags in as few calls as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

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
            params = [Param(key, text[:LONGEST]) for key, text in flat(trial.config.record())]
        # By step, not by place in the file: a resumed trial cuts its curve and writes it again.
        rows = self._plan.files.trial(trial.id).rows()
        fresh = [row for row in rows if row["step"] > entry["step"]]
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
        metrics = self._unsent(entry["run"], metrics)
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
        """Sends what is missing, the report, plugin files and totals, and closes every run.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            plugin_files: the loaded plugins' files by name.
        """
        self._again = 0.0
        for trial in self._plan.trials:
            if trial.state in (*ENDED, "failed", "interrupted"):
                self.end(trial, trial.state)
        self.open()
        if self.away:
            return
        with self._guarded():
            from mlflow.entities import Metric

            for entry in self._sent["trials"].values():
                if not entry["ended"]:  # of a trial that another one has replaced
                    self._client.set_terminated(entry["run"], status="KILLED")
            files = self._plan.files
            states = [trial.state for trial in self._plan.trials]
            counts = {state: states.count(state) for state in ("finished", "diverged", "failed")}
            now = int(1000 * time.time())
            metrics = [Metric(f"trials_{s}", float(n), now, 0) for s, n in counts.items()]
            self._client.log_batch(self._parent, metrics=self._unsent(self._parent, metrics))
            for name in ("study.json", "report.html", "coefficients.csv", "tweedie.json"):
                if files.has(name):
                    self._client.log_artifact(self._parent, str(files.path / name))
            for name in ("tables", "figures"):
                if files.store.folder(name).names():
                    self._client.log_artifacts(self._parent, str(files.path / name), name)
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
