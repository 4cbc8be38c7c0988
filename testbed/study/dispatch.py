"""Groups of trials between those that wait and those that have ended.

What a driver does with them in a round of its loop, which is `testbed.study.runner.execute`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field

import torch

from testbed.errors import one_line
from testbed.registry import Registry
from testbed.study.engines import DISTRIBUTED, ExecutionPlan, Group
from testbed.study.executors.base import Executor, Job, NodeLost, WorkerLost
from testbed.study.plan import Plan, Trial
from testbed.study.waiting import Waiting
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import Busy, away
from testbed.trial.study_folder import StudyFolder
from testbed.trial.worker import owned, resumable

TRIES = 3
NODES = 20
"""Tries of a group whose nodes are lost, which is seldom the fault of what runs there."""
AGAIN = 5.0
"""Seconds between two looks whether a folder that is away is there again."""
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
        leads: bool,
    ) -> None:
        self._plan, self._registry, self._engine = plan, registry, engine
        self._executor, self._progress, self._leads = executor, progress, leads
        self._start, self._tries = time.monotonic(), Tries()
        self.outcome = Outcome()
        self.waiting = Waiting(plan, engine.groups)
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
        self._tries.begin(group)
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
            self.waiting.again(self._halves(group))
            return
        if isinstance(problem, Busy) and self._plan.files.lease:  # another driver was faster
            self.waiting.later(group)
            return
        # What is stopped before it began is lost too: that is no try.
        stopped = self.outcome.interrupted
        count = 0 if stopped else self._tries.without_progress(group, trials)
        statuses = statuses_of(future, trials, count)
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


class Tries:
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


def statuses_of(
    future: Future[list[str]], trials: list[TrialFolder], tries: int
) -> list[str] | None:
    """The trials' statuses; None for a lost worker: worth two more tries from its checkpoint."""
    try:
        return future.result()
    except BrokenExecutor as problem:
        if tries < (NODES if isinstance(problem, NodeLost) else TRIES):
            return None
        why = str(problem) if isinstance(problem, WorkerLost) else "see the system's log"
        message = f"the worker died {tries} times; {why} (out of memory?)"
    except (Busy, OSError) as problem:  # no trial is to blame
        if away(problem) and tries < TRIES:
            return None
        raise
    except Exception as problem:
        message = one_line(problem)
    for trial in trials:
        if not trial.ended():
            trial.fail(message + "\n", message)
    return [str(trial.result()["status"]) for trial in trials]


class Outage:
    """Waits for the study's folder, where the disk or the server that keeps it goes away.

    Args:
        files: the study's folder.
        progress: told once that it is away, and once that it is there again.
        outcome: whether the driver was interrupted, which then waits no longer.
    """

    def __init__(self, files: StudyFolder, progress: Progress, outcome: Outcome) -> None:
        self._files, self._say, self._outcome = files, progress.say, outcome
        self._rounds = 0

    def outlast(self, problem: OSError) -> None:
        """Waits until the folder answers again.

        Raises:
            OSError: the problem, where it is none of these, or stays while the folder answers.
        """
        self._rounds += 1
        if not away(problem) or self._rounds > TRIES:
            raise problem
        if self._rounds == 1:
            self._say(f"The study's folder is away ({problem}): the study waits for it.")
        while not self._answers():
            if self._outcome.interrupted:
                raise problem
            time.sleep(AGAIN)

    def over(self) -> None:
        """A round of the loop went well."""
        if self._rounds:
            self._say("The study's folder is there again: the study goes on.")
        self._rounds = 0

    def _answers(self) -> bool:
        try:
            return self._files.has("study.json")
        except OSError:
            return False
