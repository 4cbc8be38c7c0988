"""Groups of trials between those that wait and those that have ended.

What a driver does with them in a round of its loop, which is `testbed.study.runner.execute`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from testbed.errors import one_line
from testbed.registry import Registry
from testbed.study.engines import DISTRIBUTED, ExecutionPlan, Group
from testbed.study.executors.base import Executor, Job, NodeLost, WorkerLost
from testbed.study.plan import Plan, Trial
from testbed.study.waiting import Waiting
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import Busy, StoreAway
from testbed.trial.worker import owned, resumable

TRIES = 3
NODES = 20
"""Tries of a group whose nodes are lost, which is seldom the fault of what runs there."""
LOST = NodeLost, BrokenExecutor, StoreAway
"""How a job is lost: with its node, its worker, or the study's folder."""
Tell = Callable[[Trial, str], None]
"""Tells a tracker what remains of a trial that ended, with its status."""


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


class Dispatch:
    """The groups of a plan between those that wait and those that have ended."""

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        engine: ExecutionPlan,
        executor: Executor,
        progress: Progress,
        outcome: Outcome,
        leads: bool,
    ) -> None:
        self._plan, self._registry, self._engine = plan, registry, engine
        self._executor, self._progress, self._leads = executor, progress, leads
        self._start, self._lost = time.monotonic(), LostJobs()
        self.outcome = outcome
        self.waiting = Waiting(plan, engine.groups, self._halves)
        self.running: dict[Future[list[str]], Group] = {}
        # A round of the loop looks at what has ended, and not at all that runs.
        self._done: deque[Future[list[str]]] = deque()

    def fill(self, slots: int) -> None:
        """Submits groups that wait, until as many slots are taken."""
        while len(self.running) < slots and not self.outcome.interrupted:
            group = self.waiting.next()
            if group is None:
                return
            try:
                if self.waiting.split(group):
                    for half in self._halves(group):
                        self.waiting.later(half)
                    continue
                begun = self._cancelled(group) or self._begin(group)
            except OSError:
                self.waiting.again([group])
                raise
            if not begun:
                self.waiting.later(group)
                return

    def _begin(self, group: Group) -> bool:
        """Submits a group; False where another driver was faster."""
        if not take_over(self._plan, group):
            return False
        job = job_of(self._plan, self._registry, self._engine, group)
        resumable(job.training, self._folders(group), self._progress.say)
        future = self._executor.submit(job)
        self.running[future] = group
        future.add_done_callback(self._done.append)
        return True

    def settle(self, tell: Tell) -> None:
        """Takes what the executor is done with: it has ended, or waits again."""
        while self._done:
            future = self._done[0]
            self._settle(future, self.running[future], tell)  # it may raise, and be called again
            del self.running[self._done.popleft()]

    def _settle(self, future: Future[list[str]], group: Group, tell: Tell) -> None:
        problem, trials = future.exception(), self._folders(group)
        if isinstance(problem, torch.OutOfMemoryError):
            with suppress(Busy):  # another driver has taken the whole group since
                own = self._plan.files.group(group.id)
                own.remove()
                if own.lease:  # all drivers read it, and the plan is written by one
                    own.put_json("split.json", {"reason": one_line(problem)})
            self.waiting.again(self._halves(group))
            return
        if isinstance(problem, Busy) and self._plan.files.lease:  # another driver was faster
            self.waiting.later(group)
            return
        # What is stopped before it began is lost too: that does not count.
        stopped = self.outcome.interrupted
        lost = 0 if stopped else self._lost.without_progress(group, trials, future)
        statuses = statuses_of(future, trials, lost)
        if statuses is None:
            self.waiting.again([group])
            return
        self.outcome.seconds = time.monotonic() - self._start
        self.ended(group, statuses, tell)

    def ended(self, group: Group, statuses: Sequence[str], tell: Tell) -> None:
        """Keeps how the trials of a group ended, here or with another driver, and tells it."""
        self._progress.show(group, group.steps, len(group.trials))
        for trial, status in zip(group.trials, statuses, strict=True):
            self.outcome.statuses[trial.id] = trial.state = status
            self._progress.ended(trial, status)
            tell(trial, status)

    def _cancelled(self, group: Group) -> bool:
        """Whether no trial of a group is to go on."""
        if not all(trial.cancelled for trial in self._folders(group)):
            return False
        for trial in group.trials:
            self.outcome.statuses[trial.id] = trial.state = "cancelled"
            self._progress.ended(trial, "cancelled")
        return True

    def _halves(self, group: Group) -> list[Group]:
        """The halves of a group for which a device had too little memory.

        The driver that leads keeps them in the plan.
        """
        halves = self._engine.split(group)
        if self._leads:
            self._engine.write(self._plan.folder)
        sizes = " and ".join(str(len(half.trials)) for half in halves)
        self._progress.say(
            f"{group.title}: out of memory; they are trained in two groups, of {sizes}."
        )
        return halves

    def _folders(self, group: Group) -> list[TrialFolder]:
        return [self._plan.files.trial(trial.id) for trial in group.trials]


def job_of(plan: Plan, registry: Registry, engine: ExecutionPlan, group: Group) -> Job:
    """What an executor is given to train a group."""
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


def take_over(plan: Plan, group: Group) -> bool:
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


class LostJobs:
    """How often a group was lost in the same way since its training last got further.

    On a cluster whose nodes are lost now and then, a long training may lose many workers. One that
    dies three times without having got further would do so for ever. The nodes that died with it
    are no reason to blame it for a crash of its own.
    """

    def __init__(self) -> None:
        self._of: dict[str, dict[type, set[Future[list[str]]]]] = {}
        self._furthest: dict[str, int] = {}

    def without_progress(
        self, group: Group, trials: list[TrialFolder], future: Future[list[str]]
    ) -> int:
        """How many jobs of a group were lost as this one was since the first that got as far.

        It counts itself, once, and a job that was not lost as none.
        """
        kind = next((one for one in LOST if isinstance(future.exception(), one)), None)
        if kind is None:
            return 0
        step = max(trial.last_step() for trial in trials)
        if step > self._furthest.get(group.id, 0):
            self._furthest[group.id] = step
            self._of.pop(group.id, None)
        alike = self._of.setdefault(group.id, {}).setdefault(kind, set())
        alike.add(future)
        return len(alike)


def statuses_of(
    future: Future[list[str]], trials: list[TrialFolder], lost: int
) -> list[str] | None:
    """The trials' statuses; None where the job was lost, and goes on from its checkpoint.

    Args:
        future: of the job.
        trials: its trials.
        lost: how many of the group's jobs were lost so, this one included.
    """
    try:
        return future.result()
    except BrokenExecutor as problem:
        if lost < (NODES if isinstance(problem, NodeLost) else TRIES):
            return None
        why = str(problem) if isinstance(problem, WorkerLost) else "see the system's log"
        message = f"the worker died {lost} times; {why} (out of memory?)"
    except StoreAway:  # no trial is to blame
        if lost < TRIES:
            return None
        raise
    except (Busy, OSError):
        raise
    except Exception as problem:
        message = one_line(problem)
    for trial in trials:
        if not trial.ended():
            trial.fail(message + "\n", message)
    return [str(trial.result()["status"]) for trial in trials]
