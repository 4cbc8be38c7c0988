"""Telling an experiment tracker of a study, in a thread that gives way to training."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Protocol

from testbed.study.plan import Trial

TRACK, SHARE = 10.0, 0.01
NICENESS = 15
"""Of the thread, in Linux's scale: where trials train on every core it gets some 3 % of one.

Its first call, which imports MLflow and opens the store, is not held up: a short study has no
other.
"""


class Tracker(Protocol):
    """What a study tells an experiment tracker."""

    def update(self, trial: Trial) -> None:
        """Sends what is new of a running trial."""
        ...

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial that ended with `status`."""
        ...

    def tables(self) -> None:
        """Sends what needs the tables that a study writes at its end."""
        ...


class Telling:
    """Tells a tracker from one thread of its own: a slow store holds up no trial.

    Running trials are told of every TRACK seconds, or as seldom as takes SHARE of the time. What
    the cores have no time for while trials train is told while the report is written, or left.
    """

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._thread = ThreadPoolExecutor(1)
        self._told: Future[None] | None = None
        self._due = time.monotonic() + TRACK

    def update(self, trials: Iterable[Trial]) -> None:
        """Sends new rows when it is time for them and nothing else is being sent."""
        idle = self._told is None or self._told.done()
        if self._tracker is not None and idle and time.monotonic() > self._due:
            self._told = self._thread.submit(_tell, self._update, self._tracker, [*trials])

    def _update(self, tracker: Tracker, trials: Sequence[Trial]) -> None:
        start = time.monotonic()
        for trial in trials:
            tracker.update(trial)
        now = time.monotonic()
        self._due = now + max(TRACK, (now - start) / SHARE)

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial."""
        if self._tracker is not None:
            self._told = self._thread.submit(_tell, self._tracker.end, trial, status)

    def tables(self) -> None:
        """Sends what needs the tables that a study writes at its end."""
        if self._tracker is not None:
            self._told = self._thread.submit(_tell, self._tracker.tables)

    def finish(self) -> None:
        """Ends the thread after its present call; what it has not told is the tracker's to find."""
        self._thread.shutdown(wait=True, cancel_futures=True)


P = ParamSpec("P")


def _tell(call: Callable[P, None], *words: P.args, **named: P.kwargs) -> None:
    """Makes a call, and gives way from then on; on Linux a thread has a priority of its own."""
    call(*words, **named)
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
