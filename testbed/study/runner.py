"""Runs a plan: one loop that feeds an executor, reads the curves and tells MLflow."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from testbed.errors import one_line
from testbed.registry import Registry
from testbed.study import invocation
from testbed.study.engines import DISTRIBUTED, ExecutionPlan, Group
from testbed.study.executors.base import Executor, Job, WorkerLost
from testbed.study.identities import Identities
from testbed.study.orders import Orders
from testbed.study.plan import Plan, Trial
from testbed.study.telling import Telling
from testbed.trial import environment
from testbed.trial.folders import ENDED, TrialFolder
from testbed.trial.storage import Busy
from testbed.trial.worker import ORPHANED, device_title, resumable

TRIES = 3
POLL = 0.2
LOOKING = 0.05


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
        "name": plan.study.header.name,
        "title": plan.study.header.title,
        "note": plan.study.header.note,
        "report": report,
        "first_report": first if began else report,
        "file": plan.study.text,
        "asked": invocation.record(plan, registry, tracking_uri),
        "device": device_title(torch.device(plan.main_device)),
        "versions": versions(),
        "plugins": [asdict(source) for source in registry.provenance],
        "failures": [asdict(source) for source in registry.failures],
        "trials": [{"id": trial.id, "labels": trial.labels} for trial in plan.trials],
    }
    plan.files.put_json("study.json", record)
    for trial in plan.trials:
        if plan.chosen is not None and trial.id not in plan.chosen:
            continue
        described = {
            "id": trial.id,
            "config": trial.config.record(),
            "labels": trial.labels,
            "plugins": list(registry.plugins),
            "plugin_dirs": list(registry.plugin_dirs),
        }
        # What a power cut loses of it the same command writes anew: no start waits for a disk.
        plan.files.trial(trial.id).put_json("trial.json", described, durable=False)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    packages = (*environment.NUMBERS, "pandas", "mlflow")
    return {**environment.versions(packages), "os": platform.platform()}


def execute(
    plan: Plan,
    registry: Registry,
    engine: ExecutionPlan,
    executor: Executor,
    tell: Telling,
    progress: Progress,
    identities: Identities,
) -> Outcome:
    """Runs every group; the first Ctrl-C stops at a checkpoint, the second at once.

    The identities are checked on slots that no group waits for.

    Raises:
        Busy: another process is at work on a trial, or has taken the study over.
        InputError: the executor refuses a job.
        OSError: the disk is full.
    """
    outcome = Outcome()
    start = time.monotonic()
    waiting = deque(engine.groups)
    running: dict[Future[list[str]], Group] = {}
    ended = [trial for trial in plan.trials if trial.state in ENDED]
    outcome.statuses = {trial.id: trial.state for trial in ended}
    tries, orders, looks = _Tries(), Orders(plan), _Looks()
    with _interrupts(executor, outcome), orders.heeded():
        for trial in ended:
            tell.end(trial, trial.state)
        while running or ((waiting or identities.pending) and not outcome.interrupted):
            plan.files.confirm()
            taken = len(running) + len(identities.running)
            while waiting and taken < executor.slots and not outcome.interrupted:
                group = waiting.popleft()
                if _cancelled(plan, group, outcome, progress):
                    continue
                taken += 1
                tries.begin(group)
                job = _begin(plan, registry, engine, group, progress)
                running[executor.submit(job)] = group
            executor.advance()
            looks.at(plan, running, progress)
            for future, group in [(one, running[one]) for one in running if one.done()]:
                trials = [plan.files.trial(trial.id) for trial in group.trials]
                del running[future]
                if isinstance(future.exception(), torch.OutOfMemoryError):
                    waiting.extendleft(reversed(_halves(plan, engine, group, progress)))
                    continue
                # What is stopped before it began is lost too: that is no try.
                count = 0 if outcome.interrupted else tries.without_progress(group, trials)
                statuses = _statuses(future, trials, count)
                if statuses is None:
                    waiting.appendleft(group)
                    continue
                outcome.seconds = time.monotonic() - start
                progress.show(group, group.steps, len(trials))
                for trial, status in zip(group.trials, statuses, strict=True):
                    _end(trial, status, outcome, progress)
                    tell.end(trial, status)
            orders.read()
            waiting.extend(Group([again]) for again in orders.retried())
            if orders.stopped and not outcome.interrupted:
                progress.say("testbed cancel: the study stops at a checkpoint.")
                outcome.interrupted = True
                executor.stop()
            tell.update([trial for group in running.values() for trial in group.trials])
            trained = not (waiting or outcome.interrupted)
            identities.advance(executor, executor.slots - len(running) if trained else 0)
            futures: list[Future[Any]] = [*running, *identities.running]
            wait(futures, POLL, FIRST_COMPLETED)
    return outcome


def _begin(
    plan: Plan, registry: Registry, engine: ExecutionPlan, group: Group, progress: Progress
) -> Job:
    """The job of a group whose folders are ready for it to begin, or to go on."""
    _take_over(plan, group)
    job = _job(plan, registry, engine, group)
    trials = [plan.files.trial(trial.id) for trial in group.trials]
    resumable(job.training, trials, progress.say)
    return job


def _job(plan: Plan, registry: Registry, engine: ExecutionPlan, group: Group) -> Job:
    return Job(
        [trial.config for trial in group.trials],
        [plan.files.trial(trial.id).path for trial in group.trials],
        plan.files.group(group.id).path,
        registry.plugins,
        registry.plugin_dirs,
        plan.main_device,
        engine.name == "compiled",
        group.half,
        plan.devices if engine.name == DISTRIBUTED else (),
    )


def _halves(plan: Plan, engine: ExecutionPlan, group: Group, progress: Progress) -> list[Group]:
    """The halves of a group for which the device had too little memory, kept in the plan."""
    halves = engine.split(group)
    engine.write(plan.folder)
    plan.files.group(group.id).remove()
    sizes = " and ".join(str(len(half.trials)) for half in halves)
    progress.say(f"{group.title}: out of memory; they are trained in two groups, of {sizes}.")
    return halves


class _Looks:
    """Looks at how far running groups are, as seldom as takes LOOKING of the driver's time."""

    def __init__(self) -> None:
        self._due = 0.0

    def at(self, plan: Plan, running: Mapping[Future[Any], Group], progress: Progress) -> None:
        """Shows the steps and the measured trials of each group, when it is time to."""
        start = time.monotonic()
        if start < self._due:
            return
        for group in running.values():
            trials = [plan.files.trial(trial.id) for trial in group.trials]
            step, measured = max(trial.last_step() for trial in trials), 0
            if step >= group.steps:
                measured = sum(trial.has("result.json") for trial in trials)
            progress.show(group, step, measured)
        now = time.monotonic()
        self._due = now + max(POLL, (now - start) / LOOKING)


def _cancelled(plan: Plan, group: Group, outcome: Outcome, progress: Progress) -> bool:
    """Whether no trial of a group is to go on. One that trains with others goes on with them."""
    if not all(plan.files.trial(trial.id).cancelled for trial in group.trials):
        return False
    for trial in group.trials:
        _end(trial, "cancelled", outcome, progress)
    return True


def _end(trial: Trial, status: str, outcome: Outcome, progress: Progress) -> None:
    outcome.statuses[trial.id] = trial.state = status
    progress.ended(trial, status)


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


class _Tries:
    """How often a group has begun since its training last got further.

    On a cluster whose nodes are lost now and then, a long training may lose many workers. One that
    dies three times without having got further would do so for ever.
    """

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._furthest: dict[str, int] = {}

    def begin(self, group: Group) -> None:
        """Counts a try."""
        self._count[group.id] = self._count.get(group.id, 0) + 1

    def without_progress(self, group: Group, trials: list[TrialFolder]) -> int:
        """The tries, this one included, since the first that got as far."""
        step = max(trial.last_step() for trial in trials)
        if step > self._furthest.get(group.id, 0):
            self._furthest[group.id], self._count[group.id] = step, 1
        return self._count[group.id]


def _statuses(future: Future[list[str]], trials: list[TrialFolder], tries: int) -> list[str] | None:
    """The trials' statuses; None for a lost worker: worth two more tries from its checkpoint."""
    try:
        return future.result()
    except BrokenExecutor as problem:
        if tries < TRIES:
            return None
        why = str(problem) if isinstance(problem, WorkerLost) else "see the system's log"
        message = f"the worker died {tries} times; {why} (out of memory?)"
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
