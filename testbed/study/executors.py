"""Where trials run: worker processes, or this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

_stop: Any = None


class Executor(Protocol):
    """Takes trials; the runner's loop is the same for all of them."""

    slots: int

    def submit(self, config: dict[str, Any], at: Path, sources: Sources) -> Future[str]:
        """Starts a trial on a free slot; the result is its status."""
        ...

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end."""
        ...

    def close(self, kill: bool = False) -> None:
        """Ends the workers, at once with `kill`."""
        ...


Sources = tuple[Sequence[str], Sequence[str], str]
"""plugin words, plugin folders, device"""


def _begin(stop: Any, threads: int, driver: int) -> None:
    """Runs first in a worker: one place for threads, signals, and the end of the driver."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)

    def watch() -> None:
        while True:
            time.sleep(1.0)
            try:
                os.kill(driver, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(config: dict[str, Any], at: Path, sources: Sources) -> str:
    from testbed.study.trial import run

    plugins, folders, device = sources
    return run(config, at, plugins, folders, device, _stop.is_set)


class Workers:
    """Slots of one process each: a crash breaks one slot and nothing else.

    Args:
        slots: how many trials run at a time.
        device: forked from a server that has imported torch once on cpu, spawned with cuda.
        threads: torch's threads in each worker.
    """

    def __init__(self, slots: int, device: str, threads: int = 1) -> None:
        self.slots = slots
        method = "spawn" if device.startswith("cuda") else "forkserver"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["testbed.study.trial"])
        self._stop = self._context.Event()
        self._threads = threads
        self._pools: list[ProcessPoolExecutor | None] = [None] * slots
        self._busy: dict[int, Future[str]] = {}

    def submit(self, config: dict[str, Any], at: Path, sources: Sources) -> Future[str]:
        """Starts a trial on a free slot."""
        slot = next(i for i in range(self.slots) if i not in self._busy or self._busy[i].done())
        last = self._busy.get(slot)
        pool = self._pools[slot]
        if pool is None or (last is not None and not last.cancelled() and last.exception()):
            pool = self._pools[slot] = ProcessPoolExecutor(
                1, self._context, _begin, (self._stop, self._threads, os.getpid())
            )
        future: Future[str] = pool.submit(_work, config, at, sources)
        self._busy[slot] = future
        return future

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


class Here:
    """This process, one trial at a time: for a debugger, and for machines without processes."""

    slots = 1

    def __init__(self) -> None:
        self._stopped = False

    def submit(self, config: dict[str, Any], at: Path, sources: Sources) -> Future[str]:
        """Runs the trial and returns its finished future."""
        from testbed.study.trial import run

        future: Future[str] = Future()
        plugins, folders, device = sources
        stopped: Callable[[], bool] = lambda: self._stopped  # noqa: E731
        future.set_result(run(config, at, plugins, folders, device, stopped))
        return future

    def stop(self) -> None:
        """Asks the running trial to write a checkpoint and end."""
        self._stopped = True

    def close(self, kill: bool = False) -> None:
        """Nothing to end."""
