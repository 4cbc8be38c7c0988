"""Runs a plan: one loop that feeds an executor, reads the curves and tells MLflow."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from testbed.errors import one_line
from testbed.registry import Registry
from testbed.study import invocation
from testbed.study.engines import DISTRIBUTED, ExecutionPlan, Group
from testbed.study.executors.base import Executor, Job, WorkerLost
from testbed.study.identities import Identities
from testbed.study.orders import Orders
from testbed.study.plan import Plan, Trial
from testbed.study.waiting import Waiting
from testbed.trial import environment
from testbed.trial.folders import ENDED, TrialFolder
from testbed.trial.storage import Busy
from testbed.trial.worker import device_title, owned, resumable

TRIES = 3
POLL = 0.2
TRACK, SHARE = 10.0, 0.01
LOOKING = 0.05


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
        with contextlib.suppress(Busy):  # another driver trains it, by the description that it has
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
    tracker: Tracker | None,
    progress: Progress,
    identities: Identities,
    leads: bool = True,
) -> Outcome:
    """Runs every group; the first Ctrl-C stops at a checkpoint, the second at once.

    The identities are checked on slots that no group waits for. Groups that another driver has
    taken are left to it, and what becomes of them counts as if they had run here.

    Raises:
        Busy: another process is at work on a trial, or has taken the study over.
        InputError: the executor refuses a job.
        OSError: the disk is full.
    """
    loop = _Loop(plan, registry, engine, executor, progress, leads)
    outcome, waiting, orders, looks = loop.outcome, loop.waiting, Orders(plan, leads), _Looks()
    ended = [trial for trial in plan.trials if trial.state in ENDED]
    outcome.statuses = {trial.id: trial.state for trial in ended}
    with _interrupts(executor, outcome), orders.heeded(), _Telling(tracker) as tell:
        for trial in ended:
            tell.end(trial, trial.state)
        while loop.running or ((waiting or identities.pending) and not outcome.interrupted):
            plan.files.confirm()
            for group, statuses in waiting.ended():
                loop.ended(group, statuses, tell)
            loop.fill(executor.slots - len(identities.running))
            executor.advance()
            looks.at(plan, loop.running, progress)
            loop.settle(tell)
            orders.read()
            for again in orders.retried():
                waiting.later(Group([again]))
            if orders.stopped and not outcome.interrupted:
                progress.say("testbed cancel: the study stops at a checkpoint.")
                outcome.interrupted = True
                executor.stop()
            groups = *loop.running.values(), *waiting.elsewhere
            tell.update([trial for group in groups for trial in group.trials])
            trained = not (waiting.free or outcome.interrupted)
            identities.advance(executor, executor.slots - len(loop.running) if trained else 0)
            futures: list[Future[Any]] = [*loop.running, *identities.running]
            wait(futures, POLL, FIRST_COMPLETED)
    return outcome


class _Loop:
    """The groups of a plan between those that wait and those that have ended."""

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        engine: ExecutionPlan,
        executor: Executor,
        progress: Progress,
        leads: bool,
    ) -> None:
        self._plan, self._registry, self._engine = plan, registry, engine
        self._executor, self._progress, self._leads = executor, progress, leads
        self._start, self._tries = time.monotonic(), _Tries()
        self.outcome = Outcome()
        self.waiting = Waiting(plan, engine.groups)
        self.running: dict[Future[list[str]], Group] = {}

    def fill(self, slots: int) -> None:
        """Submits groups that wait, until as many slots are taken."""
        while len(self.running) < slots and not self.outcome.interrupted:
            group = self.waiting.next()
            if group is None:
                return
            if self._cancelled(group):
                continue
            if not _take_over(self._plan, group):
                self.waiting.later(group)
                return
            self._tries.begin(group)
            job = _job(self._plan, self._registry, self._engine, group)
            resumable(job.training, self._folders(group), self._progress.say)
            self.running[self._executor.submit(job)] = group

    def settle(self, tell: _Telling) -> None:
        """Takes what the executor is done with: it has ended, or waits again."""
        for future, group in [(one, self.running[one]) for one in self.running if one.done()]:
            del self.running[future]
            problem, trials = future.exception(), self._folders(group)
            if isinstance(problem, torch.OutOfMemoryError):
                self.waiting.again(self._halves(group))
                continue
            if isinstance(problem, Busy) and self._plan.files.lease:  # another driver was faster
                self.waiting.later(group)
                continue
            # What is stopped before it began is lost too: that is no try.
            stopped = self.outcome.interrupted
            count = 0 if stopped else self._tries.without_progress(group, trials)
            statuses = _statuses(future, trials, count)
            if statuses is None:
                self.waiting.again([group])
                continue
            self.outcome.seconds = time.monotonic() - self._start
            self.ended(group, statuses, tell)

    def ended(self, group: Group, statuses: Sequence[str], tell: _Telling) -> None:
        """Keeps how the trials of a group ended, here or with another driver, and tells it."""
        self._progress.show(group, group.steps, len(group.trials))
        for trial, status in zip(group.trials, statuses, strict=True):
            self.outcome.statuses[trial.id] = trial.state = status
            self._progress.ended(trial, status)
            tell.end(trial, status)

    def _cancelled(self, group: Group) -> bool:
        """Whether no trial of a group is to go on."""
        if not all(trial.cancelled for trial in self._folders(group)):
            return False
        for trial in group.trials:
            self.outcome.statuses[trial.id] = trial.state = "cancelled"
            self._progress.ended(trial, "cancelled")
        return True

    def _halves(self, group: Group) -> list[Group]:
        """The halves of a group for which the device had too little memory.

        The driver that leads keeps them in the plan.
        """
        halves = self._engine.split(group)
        if self._leads:
            self._engine.write(self._plan.folder)
        self._plan.files.group(group.id).remove()
        sizes = " and ".join(str(len(half.trials)) for half in halves)
        self._progress.say(
            f"{group.title}: out of memory; they are trained in two groups, of {sizes}."
        )
        return halves

    def _folders(self, group: Group) -> list[TrialFolder]:
        return [self._plan.files.trial(trial.id) for trial in group.trials]


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


def _take_over(plan: Plan, group: Group) -> bool:
    """Makes trials ready that are to be measured, and those that are chosen to run anew.

    It copies the trainings that the group's trials take over; a fixed model has none. False where
    another driver was faster.
    """
    for trial in group.trials:
        fixed = trial.config.fixed is not None
        anew = plan.chosen is not None and trial.id in plan.chosen
        if not (fixed or trial.training or anew):
            continue
        folder = plan.files.trial(trial.id)
        try:
            with owned(folder):
                if anew:
                    folder.forget()
                if folder.ended():
                    continue
                if fixed:
                    folder.take_as_it_is()
                elif trial.training:
                    folder.take_over(plan.files.trial(trial.training))
        except Busy:
            if not folder.lease:
                raise
            return False
    return True


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
