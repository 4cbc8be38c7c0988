"""An experiment tracker is told beside training, and the report is written beside it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from testbed.study import session, telling
from testbed.study.executors.local import InProcessExecutor, ProcessExecutor
from testbed.study.telling import Telling
from testbed.trial.study_folder import StudyFolder


class Recorder:
    """A tracker that notes what it is told of, and by a thread of what priority."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.niceness: list[int] = []
        self.wait = threading.Event()

    def _note(self, what: str) -> None:
        self.wait.wait()
        self.told.append(what)
        if sys.platform == "linux":
            self.niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    def update(self, trial: Any) -> None:
        self._note(f"update {trial}")

    def end(self, trial: Any, status: str) -> None:
        self._note(f"{trial} {status}")

    def tables(self) -> None:
        self._note("tables")


@pytest.fixture
def told() -> Iterator[tuple[Telling, Any]]:
    recorder: Any = Recorder()
    tell = Telling(recorder)
    yield tell, recorder
    recorder.wait.set()
    tell.finish()


def done(tell: Telling) -> None:
    """Waits until all has been told."""
    assert tell._told is not None
    tell._told.result(10)


def test_a_slow_tracker_holds_up_nothing_and_is_told_in_order(
    told: tuple[Telling, Any],
) -> None:
    tell, slow = told
    tell._due = 0.0
    trials: Any = ["a", "b"]
    tell.update(trials)
    tell.end(trials[0], "finished")
    tell.update(trials)  # something is being sent: it is left out
    tell.tables()
    assert slow.told == []
    slow.wait.set()
    done(tell)
    assert slow.told == ["update a", "update b", "a finished", "tables"]


def test_what_is_not_told_by_the_end_is_left_to_the_tracker(told: tuple[Telling, Any]) -> None:
    """The thread has a low priority: on a machine that is full nobody waits for its queue."""
    tell, slow = told
    trials: Any = ["a", "b", "c"]
    for one in trials:
        tell.end(one, "finished")
    threading.Timer(0.05, slow.wait.set).start()
    tell.finish()
    assert slow.told == ["a finished"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_the_thread_gives_way_to_training_and_the_driver_does_not(
    told: tuple[Telling, Any],
) -> None:
    tell, recorder = told
    recorder.wait.set()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    for _ in range(3):
        tell.tables()
    done(tell)
    # The first call opens the store.
    assert recorder.niceness == [before, *[before + telling.NICENESS] * 2]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_without_a_tracker_nobody_is_told() -> None:
    tell, trial = Telling(None), Any
    tell.end(trial, "finished")  # type: ignore[arg-type]
    tell.tables()
    tell.finish()


def page(folder: Path) -> Path:
    """A report that holds the process that wrote it."""
    (folder / "report.html").write_text(str(os.getpid()))
    return folder / "report.html"


def page_once(folder: Path) -> Path:
    """The same of a process that is killed at its first try."""
    tried = folder / "tried"
    if not tried.exists():
        tried.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return page(folder)


def written(folder: Path, executor: Any, seconds: float, write: Any = page) -> int:
    """The process that wrote the report of a study that trained for so many seconds."""
    plan: Any = SimpleNamespace(folder=folder, files=StudyFolder.at(folder))
    outcome: Any = SimpleNamespace(seconds=seconds)
    try:
        found = session._report(plan, executor, outcome, write)
    finally:
        executor.close()
    assert found == folder / "report.html"
    return int(found.read_text())


@pytest.mark.slow
@pytest.mark.process
def test_the_report_is_written_by_a_worker_where_trials_were_trained(tmp_path: Path) -> None:
    assert written(tmp_path, ProcessExecutor(1), 1.0) != os.getpid()


def test_the_report_is_written_here_where_there_is_no_worker(tmp_path: Path) -> None:
    assert written(tmp_path, InProcessExecutor(), 1.0) == os.getpid()
    assert written(tmp_path, ProcessExecutor(1), 0.0) == os.getpid()


def test_a_report_that_no_worker_can_be_given_is_written_here(tmp_path: Path) -> None:
    """A function within another one has no name by which a worker could import it."""
    assert written(tmp_path, ProcessExecutor(1), 1.0, lambda folder: page(folder)) == os.getpid()


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_is_killed_leaves_the_report_to_the_driver(tmp_path: Path) -> None:
    assert written(tmp_path, ProcessExecutor(1), 1.0, page_once) == os.getpid()
