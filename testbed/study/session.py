"""A study from its file to its report: what `testbed study` does, callable from Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.registry import Registry
from testbed.study import looks, runner
from testbed.study.engines import ExecutionPlan
from testbed.study.executors.base import Executor
from testbed.study.identities import Identities
from testbed.study.plan import Plan
from testbed.study.tracking import Tracker
from testbed.trial.folders import ENDED
from testbed.trial.storage import Busy, LeaseLost

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
        write_report: brings the report of a study's folder up to date; returns its page.
        tracking_uri: the MLflow store that is written to; none where it is empty.
        helped: what became of the trials while this driver helped another one, which has ended.

    Raises:
        Led: another process runs this study.
        Busy: another process has taken it over, or is at work on a trial.
        OSError: the disk is full.
    """
    if note := plan.files.lock_note():
        say(note)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(plan.files.own())
        except Busy as busy:
            raise Led(str(busy)) from None
        looks.begin(plan.files, plan.study.report.looks)
        runner.describe(plan, registry, tracking_uri)
        engine.write(plan.folder)
        plan.files.tidy({group.id for group in engine.groups})
        tracker = Tracker(plan, tracking_uri, say, AWAY) if tracking_uri else None
        identities = Identities(plan, registry)
        try:
            try:
                parts = executor, tracker, progress, identities
                outcome = runner.execute(plan, registry, engine, *parts)
            finally:
                executor.close()
        except LeaseLost:  # its runs in MLflow are now the other driver's
            raise
        except BaseException:
            if tracker is not None and not tracker.away:
                tracker.close("KILLED", {})
            raise
        if helped is not None:
            outcome.statuses = helped.statuses | outcome.statuses
        found: list[audit.LawCheck] = []
        page: Path | None = None
        if not outcome.interrupted:
            # What does not depend on the case is checked in each, and counts once.
            rows = identities.rows() + trained(plan)
            found = list({repr(replace(row, data="")): row for row in rows}.values())
            page = conclude(plan, registry, outcome, found, tracker, say, write_report)
        elif tracker is not None and not tracker.away:
            tracker.close("KILLED", {})
    return Ending(
        outcome,
        found,
        page,
        tracker.seconds if tracker else 0.0,
        tracker is not None and not tracker.away,
    )


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


def conclude(
    plan: Plan,
    registry: Registry,
    outcome: runner.Outcome,
    found: list[audit.LawCheck],
    tracker: Tracker | None,
    say: Callable[[str], None],
    write_report: Callable[[Path], Path],
) -> Path:
    """Writes the study's own tables and the report, tells MLflow and the plugins."""
    from testbed.study import reference_tables

    plan.files.put_json("tweedie.json", {"rows": [asdict(row) for row in found]})
    groups = reference_tables.write(plan, registry)
    record = plan.files.json("study.json")
    # A run that only resumes must not forget what the training took.
    taken = {"seconds": outcome.seconds, "logging_seconds": 0.0}
    if tracker is not None and tracker.sent:
        taken["logging_seconds"] = tracker.seconds
    record |= {key: (record.get(key) or 0.0) + seconds for key, seconds in taken.items()}
    record["equal_objectives"] = groups
    plan.files.put_json("study.json", record)
    say("bringing the report up to date")
    page = write_report(plan.folder)
    if tracker is not None:
        failed = "failed" in outcome.statuses.values() or not all(row.passed for row in found)
        tracker.close("FAILED" if failed else "FINISHED", _files(registry))
    try:
        registry.study_finished(plan.study, results(plan))
    except Exception as problem:
        say(f"a plugin's testbed_study_finished raised {type(problem).__name__}: {problem}")
    return page


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
