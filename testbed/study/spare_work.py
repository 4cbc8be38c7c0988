"""What a study does besides its trials, on slots that no group waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from testbed.registry import Registry
from testbed.study.executors.base import Executor
from testbed.study.plan import Plan
from testbed.trial.build import registry_of


class SpareWork(Protocol):
    """Work that waits until no group does; the runner calls `advance` in each of its rounds."""

    @property
    def pending(self) -> bool:
        """Whether something is still to be done."""
        ...

    @property
    def running(self) -> Sequence[Future[Any]]:
        """What occupies a slot each."""
        ...

    def advance(self, executor: Executor, free: int) -> None:
        """Takes what is done, and starts on `free` slots."""
        ...


class _Tables(NamedTuple):
    """The reference tables of a plan, to be written by a worker."""

    plan: Plan
    plugins: Sequence[str]
    plugin_dirs: Sequence[str]

    def on(self, device: str) -> _Tables:
        """Itself: they are made on the CPU."""
        return self

    def run(self, stop: Callable[[], bool]) -> None:
        """Writes them; it takes seconds, and does not ask `stop`."""
        from testbed.study import reference_tables  # pandas, which the driver does without

        reference_tables.write(self.plan, registry_of(tuple(self.plugins), tuple(self.plugin_dirs)))


class TablesAhead:
    """Has the reference tables written before the last training has ended, where a slot is free.

    What goes wrong there is met again when the driver writes them in the end, which finds all else
    done. With leases only the driver may write into the study's folder.

    Args:
        plan: the study's, before it trains.
        registry: its plugins.
    """

    def __init__(self, plan: Plan, registry: Registry) -> None:
        self._tables = _Tables(plan, registry.plugins, registry.plugin_dirs)
        self._waits = bool(plan.pending()) and not plan.files.lease
        self._future: Future[None] | None = None

    @property
    def running(self) -> list[Future[None]]:
        """What occupies a slot."""
        return [] if self._future is None or self._future.done() else [self._future]

    @property
    def pending(self) -> bool:
        """Whether they are still to be written."""
        return self._waits or bool(self.running)

    def advance(self, executor: Executor, free: int) -> None:
        """Starts on a free slot."""
        if self._waits and free > 0:
            self._waits = False
            self._future = executor.submit(self._tables)
