"""What an executor is: it takes jobs, and the runner's loop is the same for all executors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypeVar

from testbed.trial import worker
from testbed.trial.config import TrialConfig
from testbed.trial.folders import GroupFolder, TrainingFolder, TrialFolder

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class WorkerLost(BrokenExecutor):
    """The process, the node or the cluster's job that ran a job ended before the job did."""


class NodeLost(WorkerLost):
    """The node that ran a job ended, which the job is seldom to blame for."""


class Work(Protocol[T_co]):
    """What an executor runs; it is pickled on its way to a worker process of this machine."""

    def on(self, device: str) -> Self:
        """The same work on another device."""
        ...

    def run(self, stop: Callable[[], bool]) -> T_co:
        """Does it; `stop` says whether it is asked to end early."""
        ...


class Job(NamedTuple):
    """Trials that train as one: each one's configuration and directory, and the group's own.

    `half` says that they are a part of a group for which there was too little memory, and `devices`
    are those that a trial alone trains on together, if it does.
    """

    configs: list[TrialConfig]
    trial_dirs: list[Path]
    group: Path
    plugins: Sequence[str]
    plugin_dirs: Sequence[str]
    device: str
    compiled: bool
    half: bool = False
    devices: Sequence[str] = ()

    @property
    def training(self) -> TrainingFolder:
        """The folder of the checkpoint that it resumes from."""
        if len(self.trial_dirs) == 1:
            return TrialFolder.at(self.trial_dirs[0])
        return GroupFolder.at(self.group)

    def on(self, device: str) -> Job:
        """The same trials on another device."""
        return self._replace(device=device)

    def run(self, stop: Callable[[], bool]) -> list[str]:
        """The statuses of the trials."""
        sources = self.plugins, self.plugin_dirs, self.device, stop
        if len(self.configs) == 1:
            return [worker.run(self.configs[0], self.trial_dirs[0], *sources, self.devices)]
        return worker.run_together(
            self.configs,
            self.trial_dirs,
            self.group,
            *sources,
            compiled=self.compiled,
            half=self.half,
        )


class Executor(Protocol):
    """Takes jobs; the runner's loop is the same for all of them."""

    slots: int

    def submit(self, job: Work[T]) -> Future[T]:
        """Takes a job for a free slot; the future's result is what the job returns.

        Where the worker is lost the future's exception is a `BrokenExecutor`.
        """
        ...

    def advance(self) -> None:
        """Hands over what was submitted, and looks for what has ended; called every moment.

        Raises:
            InputError: the jobs are refused, for example since a partition does not exist.
        """
        ...

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end."""
        ...

    def close(self, kill: bool = False) -> None:
        """Ends the workers, at once with `kill`."""
        ...
