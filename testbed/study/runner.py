"""Runs a plan: one loop that feeds an executor, reads the curves and tells MLflow."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict
from typing import Any

import torch

from testbed.registry import Registry
from testbed.study import invocation
from testbed.study.dispatch import Dispatch
from testbed.study.dispatch import Outcome as Outcome
from testbed.study.dispatch import Progress as Progress
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.executors.base import Executor
from testbed.study.orders import Orders
from testbed.study.outage import Outage
from testbed.study.plan import Plan
from testbed.study.spare_work import SpareWork
from testbed.study.telling import Telling
from testbed.trial import environment
from testbed.trial.folders import ENDED
from testbed.trial.storage import Busy
from testbed.trial.worker import device_title

POLL = 0.2
LOOKING = 0.05


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
    tell: Telling,
    progress: Progress,
    spare: Sequence[SpareWork] = (),
    leads: bool = True,
) -> Outcome:
    """Runs every group; the first Ctrl-C stops at a checkpoint, the second at once.

    Groups that another driver has taken are left to it, and what becomes of them counts as if they
    had run here. Where the disk or the server of the folder goes away, the driver waits for it.

    Args:
        plan: the trials.
        registry: the plugins.
        engine: the groups.
        executor: where they run.
        tell: told of the trials.
        progress: told of every step.
        spare: what is done besides, the first of it first.
        leads: whether this driver owns the study's folder, or helps the one that does.

    Raises:
        Busy: another process is at work on a trial, or has taken the study over.
        InputError: the executor refuses a job.
        OSError: the disk is full, or a file stays unreadable.
    """
    ended = [trial for trial in plan.trials if trial.state in ENDED]
    outcome = Outcome({trial.id: trial.state for trial in ended})
    outage, looks = Outage(plan, progress.say, outcome), _Looks()
    orders = outage.through(lambda: Orders(plan, leads))
    parts = executor, progress, outcome, leads
    loop = outage.through(lambda: Dispatch(plan, registry, engine, *parts))
    waiting = loop.waiting

    def advance() -> None:
        plan.files.confirm()
        for group, statuses in waiting.ended():
            loop.ended(group, statuses, tell.end)
        loop.fill(executor.slots - sum(len(one.running) for one in spare))
        executor.advance()
        looks.at(plan, loop.running, progress)
        loop.settle(tell.end)
        orders.read()

    with _interrupts(executor, outcome), orders.heeded(outage.through):
        for trial in ended:
            tell.end(trial, trial.state)
        while loop.running or (
            (waiting or any(one.pending for one in spare)) and not outcome.interrupted
        ):
            outage.through(advance)
            for again in orders.retried():
                waiting.later(Group([again]))
            if orders.stopped and not outcome.interrupted:
                progress.say("testbed cancel: the study stops at a checkpoint.")
                outcome.interrupted = True
                executor.stop()
            groups = itertools.chain(loop.running.values(), waiting.elsewhere)
            trials = itertools.chain.from_iterable(group.trials for group in groups)
            # A group that is resumed may have trials that were measured before it was interrupted.
            tell.update(trial for trial in trials if trial.state not in ENDED)
            trained = not (waiting.free or outcome.interrupted)
            free = executor.slots - len(loop.running) if trained else 0
            wait([*loop.running, *_beside(spare, executor, free)], POLL, FIRST_COMPLETED)
    return outcome


def _beside(spare: Sequence[SpareWork], executor: Executor, free: int) -> list[Future[Any]]:
    """Gives spare work the free slots, the first of it first; all of it that runs then."""
    running: list[Future[Any]] = []
    for one in spare:
        one.advance(executor, free - len(running))
        running += one.running
    return running


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
