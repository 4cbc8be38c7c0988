"""The executors of this machine: worker processes, or this process."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from types import ModuleType
from typing import Any

from testbed.study.executors.base import T, Work

_stop: Any = None


def _begin(stop: Any, threads: int) -> None:
    """Runs first in a worker: one place for threads, signals, and the end of the driver."""
    global _stop
    _stop = stop
    gc.freeze()  # what is imported stays: the collector need not look at it again and again
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from testbed.trial.process_group import end_with_parent

    torch.set_num_threads(threads)
    end_with_parent()


def _work(job: Work[T]) -> T:
    return job.run(_stop.is_set)


def prepare(device: str, *modules: str) -> None:
    """Starts the server that workers are forked from: it imports while the study is planned.

    Args:
        device: that of the workers; with cuda they are not forked.
        modules: what a worker needs besides its trials, by name.
    """
    if not device.startswith("cuda"):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["testbed.trial.worker", *modules])
        forkserver.ensure_running()


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
        devices: those of the slots in turn: with as many GPUs as slots each has its own. Workers
            are spawned with cuda, and forked on cpu from a server that has imported torch once.
        threads: torch's threads in each worker.
    """

    def __init__(self, slots: int, devices: Sequence[str] = ("cpu",), threads: int = 1) -> None:
        self.slots = slots
        method = "spawn" if devices[0].startswith("cuda") else "forkserver"
        self._context = multiprocessing.get_context(method)
        self._devices = devices
        self._stop = self._context.Event()
        self._threads = threads
        self._pools: list[ProcessPoolExecutor | None] = [None] * slots
        self._busy: dict[int, Future[Any]] = {}

    def submit(self, job: Work[T]) -> Future[T]:
        """Starts a job on a free slot; without one it waits for the first."""
        free = (i for i in range(self.slots) if i not in self._busy or self._busy[i].done())
        slot = next(free, 0)
        pool = self._pools[slot] or self._worker(slot)
        job = job.on(self._devices[slot % len(self._devices)])
        with _without_main():
            try:
                future = pool.submit(_work, job)
            except BrokenProcessPool:  # killed, in its last job or since
                future = self._worker(slot).submit(_work, job)
        self._busy[slot] = future
        return future

    def advance(self) -> None:
        """Nothing to do: a job starts when it is submitted."""

    def _worker(self, slot: int) -> ProcessPoolExecutor:
        """A new process for a slot."""
        prepare(self._devices[0])
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

    def submit(self, job: Work[T]) -> Future[T]:
        """Runs the job and returns its finished future."""
        future: Future[T] = Future()
        try:
            future.set_result(job.run(lambda: self._stopped))
        except Exception as problem:
            future.set_exception(problem)
        return future

    def advance(self) -> None:
        """Nothing to do: a job has ended when it is submitted."""

    def stop(self) -> None:
        """Asks the running trial to write a checkpoint and end."""
        self._stopped = True

    def close(self, kill: bool = False) -> None:
        """Nothing to end."""
