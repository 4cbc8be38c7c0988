"""Assignments: what a worker on a cluster is told, in a file, and what it answers.

The folder of an assignment is `executor/<id>` in the study's folder, with the id of the group:

assignment.json    the trials' folders, the plugins, and what the driver computes with
stop               the driver asks for a checkpoint and an end
outcome.json       the worker has ended: `raised` and `message` where no trial is to blame

The trials themselves come from their trial.json, and what became of them is read from their
folders: nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from errno import EIO
from pathlib import Path

import torch

from testbed.errors import InputError, one_line
from testbed.study.executors.base import Job, WorkerLost
from testbed.trial import environment
from testbed.trial.build import registry_of
from testbed.trial.config import TrialConfig
from testbed.trial.folders import Folder, TrialFolder
from testbed.trial.specs import Model
from testbed.trial.storage import Busy, StoreAway, answering

FOLDER = "executor"
INTERRUPTED = "interrupted"


class Assignment(Model):
    """A job by its trials' folders, and what the worker that takes it must have."""

    trials: tuple[Path, ...]
    group: Path
    plugins: tuple[str, ...]
    plugin_dirs: tuple[str, ...]
    device: str
    compiled: bool
    half: bool
    threads: int
    environment: dict[str, str]

    @classmethod
    def of(cls, job: Job, threads: int) -> Assignment:
        """The assignment for a job, in words that another machine understands."""
        registry = registry_of(tuple(job.plugins), tuple(job.plugin_dirs))
        return cls(
            trials=tuple(path.resolve() for path in job.trial_dirs),
            group=job.group.resolve(),
            plugins=tuple(job.plugins),
            plugin_dirs=tuple(job.plugin_dirs),
            device=job.device,
            compiled=job.compiled,
            half=job.half,
            threads=threads,
            environment=environment.record(registry),
        )

    def job(self) -> Job:
        """The job, with the trials' configurations from their folders.

        Raises:
            InputError: a trial's description is missing, or is that of another trial.
        """
        configs = [_config(TrialFolder.at(path)) for path in self.trials]
        sources = self.plugins, self.plugin_dirs
        return Job(
            configs, [*self.trials], self.group, *sources, self.device, self.compiled, self.half
        )


def _config(trial: TrialFolder) -> TrialConfig:
    try:
        config = TrialConfig.model_validate(trial.json("trial.json")["config"])
    except (KeyError, ValueError) as problem:
        raise InputError(f"{trial.path / 'trial.json'}: {one_line(problem)}") from None
    if config.identity != trial.name:
        raise InputError(
            f"{trial.path / 'trial.json'}: has the settings of trial {config.identity}."
        )
    return config


class AssignmentFolder(Folder):
    """The folder of an assignment."""

    @classmethod
    def of(cls, study: Path, job: Job) -> AssignmentFolder:
        """That of a job, below a folder that its owner alone can read."""
        folder = study.resolve() / FOLDER
        with answering(folder):
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o700)
        return cls.at(folder / job.group.name)

    def begin(self, job: Job, threads: int) -> None:
        """Writes the assignment; what an earlier worker answered is deleted."""
        self.store.remove("stop", "outcome.json")
        self.put_json("assignment.json", Assignment.of(job, threads).model_dump(mode="json"))

    def ask_to_stop(self) -> None:
        """Asks the worker to write a checkpoint and to end."""
        self.store.put("stop", b"")

    def follow(self, warned: Callable[[], bool] = lambda: False) -> dict[str, str] | None:
        """Does what the assignment says, in the worker.

        Args:
            warned: whether the worker's time is about to be over.

        Returns:
            What is to be answered; None where the trials have stopped at a checkpoint since the
            worker was warned, and the assignment is to be taken up again.
        """
        if self.has("stop"):
            return {}
        try:
            assignment = Assignment.model_validate(self.json("assignment.json"))
            torch.set_num_threads(assignment.threads)
            job = assignment.job()
            registry = registry_of(assignment.plugins, assignment.plugin_dirs)
            environment.check(assignment.environment, job.configs, registry)
        except InputError as problem:
            return {"raised": "refused", "message": str(problem)}
        try:
            statuses = job.run(lambda: warned() or self.has("stop"))
        except Busy as problem:
            return {"raised": "busy", "message": str(problem)}
        except torch.OutOfMemoryError as problem:
            return {"raised": "memory", "message": one_line(problem)}
        except OSError as problem:
            return {
                "raised": "away" if isinstance(problem, StoreAway) else "disk",
                "message": one_line(problem),
                "errno": str(problem.errno or EIO),
            }
        if INTERRUPTED in statuses and warned() and not self.has("stop"):
            return None
        return {}

    def answer(self, outcome: dict[str, str]) -> None:
        """Says that the worker has ended."""
        self.put_json("outcome.json", outcome)

    def settle(self, future: Future[list[str]], job: Job, lost: WorkerLost) -> None:
        """Ends the future of a job: by the worker's answer, or where it left none by `lost`.

        Raises:
            InputError: the worker refused the assignment.
        """
        outcome = self.json_or_empty("outcome.json") if self.has("outcome.json") else None
        if outcome is None:
            future.set_exception(lost)
            return
        message = outcome.get("message", "")
        raised = outcome.get("raised")
        if raised == "refused":
            raise InputError(message)
        if raised == "busy":
            future.set_exception(Busy(message))
        elif raised == "memory":
            future.set_exception(torch.OutOfMemoryError(message))
        elif raised in ("away", "disk"):
            kind = StoreAway if raised == "away" else OSError
            future.set_exception(kind(int(outcome["errno"]), message))
        else:
            trials = [TrialFolder.at(path) for path in job.trial_dirs]
            statuses = [
                str(one.result().get("status", "cancelled" if one.cancelled else INTERRUPTED))
                for one in trials
            ]
            if INTERRUPTED in statuses and not self.has("stop"):
                future.set_exception(WorkerLost("an earlier driver had asked the worker to stop"))
            else:
                future.set_result(statuses)
