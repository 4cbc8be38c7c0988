"""What the executors of clusters have in common: assignments in the study's folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from testbed.study.executors.assignments import AssignmentFolder
from testbed.study.executors.base import Job, T, Work
from testbed.study.executors.local import ProcessExecutor


class ClusterExecutor(ABC):
    """Gives groups of trials to a cluster, an assignment each; all other work is done beside it.

    Identities take a second each and no cluster: one worker process of this machine checks them.

    Args:
        study: the study's folder, on a disk that the workers share.
        slots: how many assignments are in the cluster's hands at a time.
        threads: torch's threads in each worker.
    """

    def __init__(self, study: Path, slots: int, threads: int) -> None:
        self.slots = slots
        self._study, self._threads = study, threads
        self._beside = ProcessExecutor(1)
        self._stopped = False

    def submit(self, job: Work[T]) -> Future[T]:
        """Writes the assignment of a job, and takes it up with the next `advance`."""
        if not isinstance(job, Job):
            return self._beside.submit(job)
        future: Future[list[str]] = Future()
        self.take(AssignmentFolder.of(self._study, job), job, future)
        return cast(Future[Any], future)

    @abstractmethod
    def take(self, assignment: AssignmentFolder, job: Job, future: Future[list[str]]) -> None:
        """Takes up the assignment of a job."""

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end."""
        self._stopped = True
        self._beside.stop()

    def close(self, kill: bool = False) -> None:
        """Ends the workers, at once with `kill`."""
        self._beside.close(kill)
