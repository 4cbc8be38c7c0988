"""Runs a plan: one loop that feeds an executor, reads the curves and tells MLflow."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from testbed import __version__
from testbed.errors import one_line
from testbed.registry import Registry
from testbed.study import invocation
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.executors import Executor, Job
from testbed.study.identities import Identities
from testbed.study.plan import Plan, Trial
from testbed.trial.folders import ENDED, TrialFolder
from testbed.trial.storage import Busy
from testbed.trial.worker import ORPHANED, device_title, resumable

TRIES = 3
POLL = 0.2
TRACK, SHARE = 10.0, 0.01


class Tracker(Protocol):
    """What the runner tells an experiment tracker."""

    def update(self, trial: Trial) -> None:
        """Sends what is new of a running trial."""
        ...

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial that ended with `status`."""
        ...


@dataclass
class Progress:
    """What a terminal shows: a group's steps and measured trials, the status of a trial, a line."""

    show: Callable[[Group, int, int], None] = lambda group, step, measured: None
    ended: Callable[[Trial, str], None] = lambda trial, status: None
    say: Callable[[str], None] = lambda line: None


@dataclass
class Outcome:
    """How a run of a plan ended, and the seconds until the last training did."""

    statuses: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0


def describe(plan: Plan, registry: Registry, tracking_uri: str = "") -> None:
    """Writes the study's own record: what was asked for, versions, device, plugins."""
    before = plan.files.json_or_empty("study.json")
    report = plan.study.report.model_dump()
    # What a report judges by is fixed when the first result is there.
    first = before.get("first_report", before.get("report", report))
    began = any(trial.state in ENDED for trial in plan.trials)
    record = {
        "key": plan.files.key(),
        "seconds": before.get("seconds", 0.0),
        "logging_seconds": before.get("logging_seconds", 0.0),
        "name": plan.study.header.name,
        "title": plan.study.header.title,
        "note": plan.study.header.note,
        "report": report,
        "first_report": first if began else report,
        "file": plan.study.text,
        "asked": invocation.record(plan, registry, tracking_uri),
        "device": device_title(torch.device(plan.device)),
        "versions": versions(),
        "plugins": [asdict(source) for source in registry.provenance],
        "failures": [asdict(source) for source in registry.failures],
        "trials": [{"id": trial.id, "labels": trial.labels} for trial in plan.trials],
    }
    plan.files.put_json("study.json", record)
    for trial in plan.trials:
        if plan.chosen is not None and trial.id not in plan.chosen:
            continue
        plan.files.trial(trial.id).put_json(
            "trial.json",
            {
                "id": trial.id,
                "config": trial.config.record(),
                "labels": trial.labels,
                "plugins": list(registry.plugins),
                "plugin_dirs": list(registry.plugin_dirs),
            },
        )


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"testbed": __version__, "python": platform.python_version(), "os": platform.platform()}
    for name in ("torch", "numpy", "scipy", "scikit-learn", "pandas", "mlflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def execute(
    plan: Plan,
    registry: Registry,
    engine: ExecutionPlan,
    executor: Executor,
    tracker: Tracker | None,
    progress: Progress,
    identities: Identities,
) -> Outcome:
    """Runs every group; the first Ctrl-C stops at a checkpoint, the second at once.

    The identities are checked on slots that no group waits for.

    Raises:
        Busy: another process is at work on a trial, or has taken the study over.
        OSError: the disk is full.
    """
    outcome = Outcome()
    start = time.monotonic()
    waiting = list(engine.groups)
    running: dict[Future[list[str]], Group] = {}
    ended = [trial for trial in plan.trials if trial.state in ENDED]
    outcome.statuses = {trial.id: trial.state for trial in ended}
    tries: dict[str, int] = {}
    with _interrupts(executor, outcome), _Telling(tracker) as tell:
        for trial in ended:
            tell.end(trial, trial.state)
        while running or ((waiting or identities.pending) and not outcome.interrupted):
            plan.files.confirm()
            taken = len(running) + len(identities.running)
            while waiting and taken < executor.slots and not outcome.interrupted:
                taken += 1
                group = waiting.pop(0)
                tries[group.id] = tries.get(group.id, 0) + 1
                _take_over(plan, group)
                job = _job(plan, registry, engine, group)
                trials = [plan.files.trial(trial.id) for trial in group.trials]
                resumable(job.training, trials, progress.say)
                running[executor.submit(job)] = group
            for future, group in list(running.items()):
                trials = [plan.files.trial(trial.id) for trial in group.trials]
                if not future.done():
                    step, measured = max(trial.last_step() for trial in trials), 0
                    if step >= group.steps:
                        measured = sum(trial.has("result.json") for trial in trials)
                    progress.show(group, step, measured)
                    continue
                del running[future]
                statuses = _statuses(future, trials, tries[group.id])
                if statuses is None:
                    waiting.insert(0, group)
                    continue
                outcome.seconds = time.monotonic() - start
                progress.show(group, group.steps, len(trials))
                for trial, status in zip(group.trials, statuses, strict=True):
                    outcome.statuses[trial.id] = trial.state = status
                    progress.ended(trial, status)
                    tell.end(trial, status)
            tell.update([trial for group in running.values() for trial in group.trials])
            trained = not (waiting or outcome.interrupted)
            identities.advance(executor, executor.slots - len(running) if trained else 0)
            futures: list[Future[Any]] = [*running, *identities.running]
            wait(futures, POLL, FIRST_COMPLETED)
    return outcome


def _job(plan: Plan, registry: Registry, engine: ExecutionPlan, group: Group) -> Job:
    return Job(
        [trial.config for trial in group.trials],
        [plan.files.trial(trial.id).path for trial in group.trials],
        plan.files.group(group.id).path,
        registry.plugins,
        registry.plugin_dirs,
        plan.device,
        engine.name == "compiled",
    )


def _take_over(plan: Plan, group: Group) -> None:
    """Copies the trainings that the group's trials take over; a fixed model has none."""
    for trial in group.trials:
        if trial.config.fixed is None and not trial.training:
            continue
        folder = plan.files.trial(trial.id)
        with folder.own(ORPHANED):
            if trial.config.fixed is not None:
                folder.take_as_it_is()
            else:
                folder.take_over(plan.files.trial(trial.training))


class _Telling:
    """Tells the tracker from one thread of its own: a slow store holds up no trial.

    Running trials are told of every TRACK seconds, or as seldom as takes SHARE of the time.
    """

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._thread = ThreadPoolExecutor(1)
        self._told: Future[None] | None = None
        self._due = time.monotonic() + TRACK

    def __enter__(self) -> _Telling:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True)

    def update(self, trials: list[Trial]) -> None:
        """Sends new rows when it is time for them and nothing else is being sent."""
        idle = self._told is None or self._told.done()
        if self._tracker is not None and idle and time.monotonic() > self._due:
            self._told = self._thread.submit(self._update, self._tracker, trials)

    def _update(self, tracker: Tracker, trials: list[Trial]) -> None:
        start = time.monotonic()
        for trial in trials:
            tracker.update(trial)
        now = time.monotonic()
        self._due = now + max(TRACK, (now - start) / SHARE)

    def end(self, trial: Trial, status: str) -> None:
        """Sends what remains of a trial."""
        if self._tracker is not None:
            self._told = self._thread.submit(self._tracker.end, trial, status)


def _statuses(future: Future[list[str]], trials: list[TrialFolder], tries: int) -> list[str] | None:
    """The trials' statuses; None for a killed worker: worth two more tries from its checkpoint."""
    try:
        return future.result()
    except BrokenProcessPool:
        if tries < TRIES:
            return None
        message = f"the worker died {tries} times; see the system's log (out of memory?)"
    except (Busy, OSError):  # no trial is to blame
        raise
    except Exception as problem:
        message = one_line(problem)
    for trial in trials:
        if not trial.ended():
            trial.fail(message + "\n", message)
    return [str(trial.result()["status"]) for trial in trials]


@contextlib.contextmanager
def _interrupts(executor: Executor, outcome: Outcome) -> Iterator[None]:
    def handle(signum: int, frame: Any) -> None:
        if outcome.interrupted:
            executor.close(kill=True)
            sys.stderr.write("\nStopped at once. The same command resumes from the checkpoints.\n")
            sys.stderr.flush()
            os._exit(130)
        outcome.interrupted = True
        executor.stop()

    try:
        before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: no signals to catch
        before = {}
    try:
        yield
    except BaseException:
        executor.stop()
        raise
    finally:
        for number, old in before.items():
            signal.signal(number, old)
