"""MLflow, the only place that imports it: a view of the trial directories.

The driver alone writes to it, from what the folders hold, so it can be away and be caught up with
later. A row sent twice is stored once: MLflow drops an identical (key, timestamp, step, value).
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from testbed.study import tracking_content as content
from testbed.study import tracking_pictures, tracking_runs, tracking_store
from testbed.study.plan import Plan, Trial
from testbed.trial.folders import ENDED, TrialFolder
from testbed.trial.pictures import DENOISED, FACTS
from testbed.trial.storage import LeaseLost

BATCH, PARAMS, AGAIN = 1000, 100, 30.0
SAVE, SAMPLE = 5.0, 10.0
"""Seconds between two notes of what was sent, and between two readings of the machine."""
FINDING = "finding.md"
"""Of the report's tables: its first sentences."""


class Tracker:
    """Sends a study to MLflow: a parent run for the study, a nested run for each trial.

    `uri` is the address of the store. `seconds` is the CPU time it took, a new store's creation
    included: what it takes from training, which goes on meanwhile in other processes.

    The first failure is told once through `warn`, with what is to blame and what follows from it.
    It is tried again every AGAIN seconds and at the end; then, or by the next run of the study,
    what is missing is sent.

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
        self._born = time.time()
        self._parent_began = self._born
        self._parent_ended = 0.0
        self._monitors: list[Any] = []
        self._sampled = 0.0
        self._saved = 0.0

    @property
    def sent(self) -> bool:
        """Whether it has told MLflow of a trial that ended."""
        return bool(self._told)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        start = time.thread_time()
        try:
            yield
        except LeaseLost:  # which ends the driver, with its message: the runs are another one's
            self.away, self._again = True, math.inf
        except Exception as problem:
            self.away = True
            self._again = time.monotonic() + AGAIN
            if not self._warned:
                why = tracking_store.why_untold(problem, self._plan.folder)
                self._warn(f"MLflow at {self.uri} {why}; {self._otherwise}.")
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
            experiment = tracking_runs.experiment(
                self._client, self.uri, self._plan.study.header.name
            )
            self._adopt(experiment)
            title = self._plan.study.header.title or self._plan.study.header.name
            kinds = {"testbed.kind": "study"}
            if found := self._plan.data_notes:
                lines = (f"{case or 'data'}: {n}" for case, notes in found.items() for n in notes)
                kinds["testbed.data_notes"] = content.cut("\n".join(lines), content.LONGEST_TAG)
            self._parent = self._parent or self._create(title, kinds, self._began())
            self._sent["study"] = self._parent
            info = self._client.get_run(self._parent).info
            self._parent_began = info.start_time / 1000
            self._parent_ended = max(self._parent_ended, (info.end_time or 0) / 1000)
            self._client.update_run(self._parent, status="RUNNING")
            self._save()
            self._watch()
            if self.away:
                self._warn(f"MLflow at {self.uri} answers again.")
            self.away = False

    def _adopt(self, experiment: str) -> None:
        """Takes over the runs that MLflow has, with what is known to have been sent of each."""
        # What this driver has sent is newer than its note, which is written now and then.
        note = self._sent or self._plan.files.json_or_empty("mlflow.json")
        known = note.get("trials", {})
        runs = tracking_runs.of_study(self._client, experiment, self._key, note)
        self._parent = runs.pop("", "")
        self._sent = {"uri": self.uri, "key": self._key, "experiment": experiment}
        self._sent["trials"] = {
            id_: entry
            if (entry := known.get(id_, {})).get("run") == run
            else {"run": run, "step": 0, "ended": ""}
            for id_, run in runs.items()
        }

    def _began(self) -> float:
        """When the study began: before this driver, where a trial has rows from then."""
        times = [content.began(self._plan.files.trial(trial.id)) for trial in self._plan.trials]
        return min([self._born, *(one for one in times if one is not None)])

    def _watch(self) -> None:
        """Begins to watch the machine, with MLflow's own monitors."""
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

        if self._monitors:
            return
        self._monitors = [CPUMonitor()]  # type: ignore[no-untyped-call]
        if self._plan.device.startswith("cuda"):
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            try:
                self._monitors.append(GPUMonitor())  # type: ignore[no-untyped-call]
            except Exception as problem:
                self._warn(f"MLflow gets no metrics of the accelerator ({problem}).")
        for monitor in self._monitors:  # the processor's use is that since the reading before
            monitor.collect_metrics()
            monitor.clear_metrics()

    def _sample(self) -> None:
        """Sends what the machine does, with the seconds since the study began as its step."""
        from mlflow.entities import Metric

        now, self._sampled = time.time(), time.monotonic()
        found: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        step = int(now - self._parent_began)
        metrics = [
            Metric(content.SYSTEM + key, float(value), content.milliseconds(now), step)
            for key, value in found.items()
        ]
        self._client.log_batch(self._parent, metrics=metrics)

    def _create(self, name: str, tags: Mapping[str, str], start: float) -> str:
        own = {tracking_runs.STUDY: self._key, **tags}
        began = content.milliseconds(start)
        run = tracking_runs.create(self._client, self._sent["experiment"], name, own, began)
        self._own.add(run)
        return run

    def _save(self, at_once: bool = True) -> None:
        """Notes what was sent; one note for each trial would be quadratic in their number."""
        if at_once or time.monotonic() - self._saved > SAVE:
            self._plan.files.put_json("mlflow.json", self._sent)
            self._saved = time.monotonic()

    def update(self, trial: Trial) -> None:
        """Sends the rows since the last call; that of the first row creates the nested run.

        MLflow keeps the beginning that a run is created with, which the first row tells.
        """
        self.open()
        if self.away:
            return
        with self._guarded():
            if self._plan.files.trial(trial.id).rows():
                run = self._send(trial, {}, {})
                entry = self._sent["trials"][trial.id]
                if entry["ended"]:  # it goes on, or is trained again
                    self._client.update_run(run, status="RUNNING")
                    entry["ended"] = ""
                    self._told = {one for one in self._told if one[0] != trial.id}
                    self._save()
            if time.monotonic() - self._sampled > SAMPLE:
                self._sample()

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial, its tables and weights, and closes its run."""
        self.open()
        if self.away:
            return
        with self._guarded():
            if not self._due(trial, status):
                return
            folder = self._plan.files.trial(trial.id)
            result = folder.result()
            tags = {"testbed.status": status, "testbed.device": result.get("device", "")}
            if why := content.cut(content.reason(trial, result), content.LONGEST_TAG):
                tags |= {content.REASON: why, content.NOTE: why}
            final = content.final(result) if status in ENDED else {}
            if final and folder.has("levels.csv"):
                tags |= content.TABLES
            run = self._send(trial, final, tags)
            if not why and run not in self._own:
                self._forget(run, content.REASON, content.NOTE)
            if folder.has("rows.jsonl"):
                import pandas as pd

                folder.put_parquet("rows.parquet", pd.DataFrame(folder.rows()))
            self._store(run, folder)
            self._client.set_terminated(
                run,
                status=content.RUN_STATUS.get(status, "FINISHED"),
                end_time=content.milliseconds(content.ended(folder)),
            )
            self._sent["trials"][trial.id]["ended"] = status
            self._told.add((trial.id, status))
            self._save(at_once=False)

    def _store(self, run: str, folder: TrialFolder) -> None:
        """Sends the files of a trial as one folder: a call for each costs several times as much."""
        with tempfile.TemporaryDirectory() as name:
            for file in filter(folder.has, content.ARTIFACTS):
                Path(name, file).write_bytes(folder.store.get(file) or b"")
            if folder.has("levels.csv"):
                Path(name, content.LEVELS).write_text(content.level_table(folder))
            self._client.log_artifacts(run, name)

    def _forget(self, run: str, *keys: str) -> None:
        """Removes the reason that an earlier training of a trial left, which has ended well now."""
        stored = self._client.get_run(run).data.tags
        for key in keys:
            if key in stored:
                self._client.delete_tag(run, key)

    def _due(self, trial: Trial, status: str) -> bool:
        """Whether MLflow has still to be told that a trial ended so."""
        ended = self._sent["trials"].get(trial.id, {}).get("ended", "")
        if (trial.id, status) in self._told or (status in ENDED and ended == status):
            return False
        # Without a row its beginning is still to come.
        begun = status not in ("interrupted", "cancelled")
        return begun or bool(self._plan.files.trial(trial.id).rows())

    def _unsent(self, run: str, metrics: list[Any]) -> list[Any]:
        """Without what a killed driver has sent and not noted; with another time it would count."""
        if run in self._own:
            return metrics
        stored = {
            key: {(one.step, one.value) for one in self._client.get_metric_history(run, key)}
            for key in {one.key for one in metrics}
        }
        return [one for one in metrics if (one.step, one.value) not in stored[one.key]]

    def _send(self, trial: Trial, final: Mapping[str, float], tags: Mapping[str, str]) -> str:
        """New rows of the curve, final metrics and tags in as few calls as MLflow allows.

        What was sent is noted when the trial ends: until then a run is found by its tags, and what
        it has by asking.
        """
        from mlflow.entities import Metric, Param, RunTag

        folder = self._plan.files.trial(trial.id)
        entry = self._sent["trials"].get(trial.id)
        params: list[Param] = []
        if entry is None:
            own = {"mlflow.parentRunId": self._parent, **content.tags(trial), **tags}
            run = self._create(trial.title, own, content.began(folder) or content.ended(folder))
            entry = self._sent["trials"][trial.id] = {"run": run, "step": 0, "ended": ""}
            tags = {}
        if entry["step"] == 0:
            params = [Param(key, text) for key, text in content.flat(trial.config.record())]
        # By step, not by place in the file: a resumed trial cuts its curve and writes it again.
        fresh = [row for row in folder.rows() if row["step"] > entry["step"]]
        metrics = [
            Metric(key, value, content.milliseconds(row["time"]), row["step"])
            for row in fresh
            for key, value in content.curve(row).items()
        ]
        used = [one for one in folder.samples() if one["time"] > entry.get("sampled", 0.0)]
        metrics += [Metric(*point) for point in content.system(used, self._parent_began)]
        if final:
            end, last = content.milliseconds(content.ended(folder)), trial.config.training.steps
            metrics += [Metric(key, value, end, last) for key, value in final.items()]
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
        entry["sampled"] = max([entry.get("sampled", 0.0), *(one["time"] for one in used)])
        return str(entry["run"])

    def tables(self) -> None:
        """Sends each run its data set, and a picture of a trial's samples, framed by real ones."""
        self.open()
        if not self.away:
            with self._guarded():
                self._send_data()

    def close(self, status: str, plugin_files: Mapping[str, Path]) -> None:
        """Sends what is missing, the report, plugin files and totals, and closes every run.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
            plugin_files: the loaded plugins' files by name.
        """
        with self._guarded():
            self._plan.files.confirm()
            if self._sent:  # a write is refused where another driver leads the study by now
                self._save()
        if self._again == math.inf:
            return
        self._again = 0.0
        states = (*ENDED, "failed", "interrupted", "cancelled")
        due = [trial for trial in self._plan.trials if trial.state in states]
        self.open()
        # What was passed over while MLflow was away for a moment is sent now that it is back.
        while due and not self.away:
            for one in due:
                self.end(one, one.state)
            with self._guarded():
                due = [one for one in due if self._due(one, one.state)]
        if self.away:
            return
        with self._guarded():
            # A request that was repeated since has left a second run.
            tracking_runs.of_study(self._client, self._sent["experiment"], self._key, self._sent)
            for entry in self._sent["trials"].values():
                if not entry["ended"]:  # of a trial that another one has replaced
                    self._client.set_terminated(entry["run"], status="KILLED")
            ends = [
                content.ended(self._plan.files.trial(trial.id))
                for trial in self._plan.trials
                if trial.state in (*ENDED, "failed")
            ]
            trained = any(end > self._born for end in ends)
            if trained:
                self._sample()
            if status != "KILLED":
                self._describe()
            self._send_data()
            self._send_files(plugin_files)
            # A command that trained nothing does not make the study longer.
            end = time.time() if trained or not ends else max(self._parent_ended, *ends)
            self._client.set_terminated(
                self._parent, status=status, end_time=content.milliseconds(end)
            )

    def _describe(self) -> None:
        """Sends how many trials ended how, and the study's note and finding as its description."""
        from mlflow.entities import Metric, RunTag

        states = [trial.state for trial in self._plan.trials]
        counts = {state: states.count(state) for state in ("finished", "diverged", "failed")}
        now = content.milliseconds(time.time())
        metrics = [Metric(f"trials_{s}", float(n), now, 0) for s, n in counts.items()]
        finding = (self._plan.files.report.store.folder("tables").get(FINDING) or b"").decode()
        parts = [finding, self._plan.study.header.note]
        text = content.cut("\n\n".join(filter(None, parts)), content.LONGEST_TAG)
        tags = [RunTag(content.NOTE, text)] if text else []
        self._client.log_batch(self._parent, metrics=self._unsent(self._parent, metrics), tags=tags)

    def _send_data(self) -> None:
        """Sends each run its data set, and a picture of a trial's samples, framed by real ones."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        kind, sets = [InputTag("mlflow.data.context", "training")], content.data_sets(self._plan)
        known = {case: DatasetInput(Dataset(**words), kind) for case, words in sets.items()}
        if known:
            self._client.log_inputs(self._parent, datasets=list(known.values()))
        for trial in self._plan.trials:
            entry, case = self._sent["trials"].get(trial.id), trial.labels[0]["case"]
            if entry is None or entry.get("data") or case not in known:
                continue
            self._client.log_inputs(entry["run"], datasets=[known[case]])
            folder = self._plan.files.trial(trial.id)
            if trial.state == "finished" and folder.has("samples.safetensors"):
                self._picture(trial, entry["run"], case)
            if trial.state in ENDED:
                entry["data"] = True
        self._save()

    def _picture(self, trial: Trial, run: str, case: str) -> None:
        """Sends pictures of a trial unless they are there: samples, and the images it denoised.

        The latter are those of its points too, each at its step.
        """
        if run not in self._own and self._client.list_artifacts(run, "images"):
            return
        files = self._plan.files
        folder, steps = files.trial(trial.id), trial.config.training.steps
        samples = folder.tensors("samples.safetensors")["samples"]
        real = files.data.tensors(f"{case or 'data'}.safetensors")["real"].numpy()
        pixels = tracking_pictures.picture(samples.numpy(), real)
        self._client.log_image(run, pixels, key="samples", step=steps, synchronous=True)
        for step, at in folder.measured().items():
            if at.has(DENOISED):
                pairs, sigma = at.tensors(DENOISED)["denoised"], at.json(FACTS)["sigmas"]
                pixels = tracking_pictures.by_level(pairs.numpy(), np.asarray(sigma), real)
                self._client.log_image(run, pixels, key="denoised", step=step, synchronous=True)

    def _send_files(self, plugin_files: Mapping[str, Path]) -> None:
        """Sends the study's own record, the report, its tables and figures, and plugins' files."""
        files = self._plan.files
        own = "study.json", "coefficients.csv", "drawn.csv", "tweedie.json"
        with tempfile.TemporaryDirectory() as at:
            for folder, name in (*((files, name) for name in own), (files.report, "report.html")):
                if (found := folder.store.get(name)) is not None:
                    Path(at, name).write_bytes(found)
            self._client.log_artifacts(self._parent, at)
        for name in ("tables", "figures"):
            written = files.report.store.folder(name)
            if written.names():
                self._client.log_artifacts(self._parent, str(written.path()), name)
        for file in plugin_files.values():
            self._client.log_artifact(self._parent, str(file), "plugins")
