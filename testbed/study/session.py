"""A study from its file to its report: what `testbed study` does, callable from Python."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from testbed.registry import Registry
from testbed.study import looks, runner
from testbed.study.engines import ExecutionPlan
from testbed.study.executors.base import Executor
from testbed.study.identities import Identities
from testbed.study.outage import Outage
from testbed.study.plan import Plan
from testbed.study.spare_work import TablesAhead
from testbed.study.telling import Telling
from testbed.study.tracking import Tracker
from testbed.trial.folders import ENDED
from testbed.trial.storage import Busy, LeaseLost, answering

if TYPE_CHECKING:  # they take a second to import, which training need not wait for
    import pandas as pd

    from testbed import audit


AWAY = "the study goes on without it, and testbed sync sends what is missing"
ONCE_BACK = "nothing is lost: once it does, testbed sync sends all"


class Led(Busy):
    """Another driver runs the study: nothing was done."""


@dataclass
class Ending:
    """What became of a study."""

    outcome: runner.Outcome
    identities: list[audit.LawCheck]
    report: Path | None
    logging_seconds: float
    tracked: bool

    @property
    def exit_code(self) -> int:
        """0 done, 1 a trial failed, 3 an identity failed, 130 interrupted."""
        if self.outcome.interrupted:
            return 130
        if "failed" in self.outcome.statuses.values():
            return 1
        return 0 if all(row.passed for row in self.identities) else 3


def run(
    plan: Plan,
    registry: Registry,
    engine: ExecutionPlan,
    executor: Executor,
    progress: runner.Progress,
    say: Callable[[str], None],
    write_report: Callable[[Path], Path],
    tracking_uri: str = "",
    helped: runner.Outcome | None = None,
) -> Ending:
    """Runs what is pending, checks the identities, writes the report and tells MLflow.

    Args:
        plan: from `plan.make`.
        registry: the plugins.
        engine: from `engines.choose`.
        executor: where trials run; closed at the end.
        progress: told of every step.
        say: given one line for each phase and warning.
        write_report: brings the report of a study's folder up to date and returns its page; a
            worker calls it, unless it cannot be pickled.
        tracking_uri: the MLflow store that is written to; none where it is empty.
        helped: what became of the trials while this driver helped another one, which has ended.

    Raises:
        Led: another process runs this study.
        Busy: another process has taken it over, or is at work on a trial.
        OSError: the disk is full.
    """
    through = Outage(plan, say, runner.Outcome()).through
    if note := through(lambda: plan.files.lock_note()):
        say(note)
    with contextlib.ExitStack() as leading:
        through(lambda: _lead(plan, leading))
        through(lambda: _describe(plan, registry, engine, tracking_uri))
        identities = through(lambda: Identities(plan, registry))
        tracker = through(lambda: Tracker(plan, tracking_uri, say, AWAY)) if tracking_uri else None
        tell = Telling(tracker)
        found: list[audit.LawCheck] = []
        page: Path | None = None
        try:
            try:
                spare = identities, TablesAhead(plan, registry)
                parts = executor, tell, progress, spare
                outcome = runner.execute(plan, registry, engine, *parts)
                if helped is not None:
                    outcome.statuses = helped.statuses | outcome.statuses
                if not outcome.interrupted:
                    found = through(lambda: _checked(plan, identities))
                    record = through(lambda: plan.files.json("study.json"))
                    through(lambda: _write_tables(plan, registry, record, outcome, found))
                    tell.tables()
                    say("bringing the report up to date")
                    page = through(lambda: _report(plan, executor, outcome, write_report))
            finally:
                executor.close()
                tell.finish()
        except LeaseLost:  # its runs in MLflow are now the other driver's
            raise
        except BaseException:
            if tracker is not None and not tracker.away:
                tracker.close("KILLED", {})
            raise
        if tracker is not None and not (page is None and tracker.away):
            tracker.close(_status(outcome, found), _files(registry) if page else {})
        if page is not None:
            _tell_plugins(plan, registry, through(lambda: results(plan)), say)
    told = tracker is not None and not tracker.away
    return Ending(outcome, found, page, tracker.seconds if tracker else 0.0, told)


def _lead(plan: Plan, leading: contextlib.ExitStack) -> None:
    """Owns the study's folder until the end of `leading`, as the one driver that leads.

    Raises:
        Led: another process owns it.
    """
    try:
        leading.enter_context(plan.files.own())
    except Busy as busy:
        raise Led(str(busy)) from None


def _describe(plan: Plan, registry: Registry, engine: ExecutionPlan, tracking_uri: str) -> None:
    """Writes what is to run, and clears away what an earlier plan has left."""
    looks.begin(plan.files, plan.study.report.looks)
    runner.describe(plan, registry, tracking_uri)
    engine.write(plan.folder)
    plan.files.tidy({group.id for group in engine.groups})


def _checked(plan: Plan, identities: Identities) -> list[audit.LawCheck]:
    """The identities of components and of trained models.

    What does not depend on the case is checked in each, and counts once.
    """
    rows = identities.rows() + trained(plan)
    return list({repr(replace(row, data="")): row for row in rows}.values())


def _tell_plugins(
    plan: Plan, registry: Registry, table: pd.DataFrame, say: Callable[[str], None]
) -> None:
    """Calls the hook of a finished study; a plugin that raises there is told of, and no more."""
    try:
        registry.study_finished(plan.study, table)
    except Exception as problem:
        what = f"{type(problem).__name__}: {problem}"
        say(f"a plugin's testbed_study_finished raised {what}")


def _status(outcome: runner.Outcome, found: list[audit.LawCheck]) -> str:
    """What MLflow calls the end of a study."""
    if outcome.interrupted:
        return "KILLED"
    failed = "failed" in outcome.statuses.values() or not all(row.passed for row in found)
    return "FAILED" if failed else "FINISHED"


def sync(plan: Plan, registry: Registry, tracking_uri: str, say: Callable[[str], None]) -> bool:
    """Brings an MLflow store up to date from the trial directories alone; whether it answered.

    Raises:
        Busy: the study is running, and tells MLflow itself.
    """
    with plan.files.own():
        tracker = Tracker(plan, tracking_uri, say, ONCE_BACK)
        states = {trial.state for trial in plan.trials}
        whole = "FINISHED" if states <= set(ENDED) else "KILLED"
        tracker.close("FAILED" if "failed" in states else whole, _files(registry))
    return not tracker.away


def _files(registry: Registry) -> dict[str, Path]:
    """The plugins' own files by name."""
    return {s.plugin: Path(s.origin) for s in registry.provenance if s.kind == "file"}


def trained(plan: Plan) -> list[audit.LawCheck]:
    """The identity rows that the trials wrote of their trained models."""
    from testbed import audit

    found = []
    for trial in plan.trials:
        folder = plan.files.trial(trial.id)
        if trial.state in ENDED and folder.has("tweedie.json"):
            for row in folder.json("tweedie.json")["rows"]:
                found.append(audit.LawCheck.read(row))
    return found


def _write_tables(
    plan: Plan,
    registry: Registry,
    record: Mapping[str, Any],
    outcome: runner.Outcome,
    found: list[audit.LawCheck],
) -> None:
    """Writes the study's own tables, and adds to its record, of which the report is made."""
    from testbed.study import reference_tables

    plan.files.put_json("tweedie.json", {"rows": [asdict(row) for row in found]})
    groups = reference_tables.write(plan, registry)
    # A run that only resumes must not forget what the training took.
    seconds = (record.get("seconds") or 0.0) + outcome.seconds
    more = {"seconds": seconds, "equal_objectives": groups}
    plan.files.put_json("study.json", {**record, **more})


class _Report(NamedTuple):
    """The report of a study's folder, to be written by a worker."""

    folder: Path
    write: Callable[[Path], Path]

    def on(self, device: str) -> _Report:
        """Itself: it needs no device."""
        return self

    def run(self, stop: Callable[[], bool]) -> Path:
        """Writes it; it takes seconds, and does not ask `stop`."""
        with answering(self.folder):
            return self.write(self.folder)

    @property
    def sendable(self) -> bool:
        """Whether a worker can be given it, which a function within another one cannot."""
        try:
            pickle.dumps(self)
        except Exception:  # whatever the function holds raises there
            return False
        return True


def _report(
    plan: Plan, executor: Executor, outcome: runner.Outcome, write: Callable[[Path], Path]
) -> Path:
    """Writes the report, in a worker where there is one: the tracker's thread is at work here.

    A report notes in the study's folder that it was made. With leases only the driver may.
    """
    work = _Report(plan.folder, write)
    if outcome.seconds and not plan.files.lease and work.sendable:
        with contextlib.suppress(BrokenExecutor):  # the worker was killed
            return executor.submit(work).result()
    return work.run(lambda: False)


def results(plan: Plan) -> pd.DataFrame:
    """One row per trial and label, without other budgets and fixed models.

    It has identity, status and final metrics.
    """
    import pandas as pd

    table = []
    for trial in plan.trials:
        metrics = {}
        if trial.state in ENDED:
            metrics = plan.files.trial(trial.id).json("result.json")["metrics"]
        for label in (one for one in trial.labels if looks.APART.isdisjoint(one)):
            seed = trial.config.seed
            table.append({"id": trial.id, **label, "seed": seed, "status": trial.state, **metrics})
    return pd.DataFrame(table)
