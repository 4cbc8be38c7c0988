"""Where trials run: worker processes, or this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from testbed.trial import worker
from testbed.trial.config import TrialConfig
from testbed.trial.folders import GroupFolder, TrainingFolder, TrialFolder

if TYPE_CHECKING:
    from testbed.study.engines import ExecutionPlan

_stop: Any = None
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Work(Protocol[_T_co]):
    """What an executor runs; it is pickled on its way to a worker."""

    def run(self, stop: Callable[[], bool]) -> _T_co:
        """Does it; `stop` says whether it is asked to end early."""
        ...


class Job(NamedTuple):
    """Trials that train as one: each one's configuration and directory, and the group's own."""

    configs: list[TrialConfig]
    trial_dirs: list[Path]
    group: Path
    plugins: Sequence[str]
    plugin_dirs: Sequence[str]
    device: str
    compiled: bool

    @property
    def training(self) -> TrainingFolder:
        """The folder of the checkpoint that it resumes from."""
        if len(self.trial_dirs) == 1:
            return TrialFolder.at(self.trial_dirs[0])
        return GroupFolder.at(self.group)

    def run(self, stop: Callable[[], bool]) -> list[str]:
        """The statuses of the trials."""
        sources = self.plugins, self.plugin_dirs, self.device, stop
        if len(self.configs) == 1:
            return [worker.run(self.configs[0], self.trial_dirs[0], *sources)]
        return worker.run_together(
            self.configs, self.trial_dirs, self.group, *sources, compiled=self.compiled
        )


class Executor(Protocol):
    """Takes jobs; the runner's loop is the same for all of them."""

    slots: int

    def submit(self, job: Work[_T]) -> Future[_T]:
        """Starts a job on a free slot; the result is what it returns."""
        ...

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end."""
        ...

    def close(self, kill: bool = False) -> None:
        """Ends the workers, at once with `kill`."""
        ...


def _begin(stop: Any, threads: int) -> None:
    """Runs first in a worker: one place for threads, signals, and the end of the driver."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)

    def watch() -> None:
        driver = multiprocessing.parent_process()
        assert driver is not None
        driver.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Work[_T]) -> _T:
    return job.run(_stop.is_set)


def prepare(device: str) -> None:
    """Starts the server that workers are forked from: it imports while the study is planned."""
    if not device.startswith("cuda"):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["testbed.trial.worker"])
        forkserver.ensure_running()


def of(engine: ExecutionPlan, device: str) -> Executor:
    """The processes that an engine trains on, or this one where it has none."""
    if engine.slots == 0:
        return InProcessExecutor()
    return ProcessExecutor(engine.slots, device, engine.threads)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the script that runs, which a new process would run again.

    No job needs anything of it, and one that calls `testbed.run` at its top would start a study in
    each worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class ProcessExecutor:
    """Slots of one process each: a crash breaks one slot and nothing else.

    Args:
        slots: how many jobs run at a time.
        device: forked from a server that has imported torch once on cpu, spawned with cuda.
        threads: torch's threads in each worker.
    """

    def __init__(self, slots: int, device: str, threads: int = 1) -> None:
        self.slots = slots
        method = "spawn" if device.startswith("cuda") else "forkserver"
        self._context = multiprocessing.get_context(method)
        self._device = device
        self._stop = self._context.Event()
        self._threads = threads
        self._pools: list[ProcessPoolExecutor | None] = [None] * slots
        self._busy: dict[int, Future[Any]] = {}

    def submit(self, job: Work[_T]) -> Future[_T]:
        """Starts a job on a free slot."""
        slot = next(i for i in range(self.slots) if i not in self._busy or self._busy[i].done())
        pool = self._pools[slot] or self._worker(slot)
        with _without_main():
            try:
                future = pool.submit(_work, job)
            except BrokenProcessPool:  # killed, in its last job or since
                future = self._worker(slot).submit(_work, job)
        self._busy[slot] = future
        return future

    def _worker(self, slot: int) -> ProcessPoolExecutor:
        """A new process for a slot."""
        prepare(self._device)
        pool = self._pools[slot] = ProcessPoolExecutor(
            1, self._context, _begin, (self._stop, self._threads)
        )
        return pool

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end."""
        self._stop.set()

    def close(self, kill: bool = False) -> None:
        """Ends the workers, at once with `kill`."""
        for pool in self._pools:
            if pool is None:
                continue
            if kill:
                for process in list((pool._processes or {}).values()):
                    process.kill()
            pool.shutdown(wait=not kill, cancel_futures=True)


class InProcessExecutor:
    """This process, one trial at a time: for a debugger, and for machines without processes."""

    slots = 1

    def __init__(self) -> None:
        self._stopped = False

    def submit(self, job: Work[_T]) -> Future[_T]:
        """Runs the job and returns its finished future."""
        future: Future[_T] = Future()
        try:
            future.set_result(job.run(lambda: self._stopped))
        except Exception as problem:
            future.set_exception(problem)
        return future

    def stop(self) -> None:
        """Asks the running trial to write a checkpoint and end."""
        self._stopped = True

    def close(self, kill: bool = False) -> None:
        """Nothing to end."""
