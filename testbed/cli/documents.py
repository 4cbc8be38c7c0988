"""The documents that `--json` prints: their keys stay, and further ones may come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.study.engines import ExecutionPlan
from testbed.study.plan import Plan, Trial, notes
from testbed.study.session import Ending
from testbed.study.watching import STATES, Watched

if TYPE_CHECKING:  # they import the report, which a plan has no need of
    from testbed.report.claims import Finding
    from testbed.report.seeds import Detectable
    from testbed.workflow.verification import Verification


def plan(
    made: Plan, engine: ExecutionPlan, tracking_uri: str, shown: list[Detectable]
) -> dict[str, Any]:
    """What `testbed plan --json` prints."""
    trials = [
        {**_trial(one), "state": one.state, "changed": list(one.changed)} for one in made.trials
    ]
    chosen = {
        "name": engine.name,
        "workers": engine.workers,
        "threads": engine.threads,
        "groups": [[one.id for one in group.trials] for group in engine.groups],
        "seconds": engine.seconds() or None,
    }
    return {
        **_study(made, tracking_uri),
        "trials": trials,
        "engine": chosen,
        "detectable": [_detectable(one) for one in shown],
        "notes": notes(made),
    }


def study(made: Plan, ending: Ending, tracking_uri: str, seconds: float) -> dict[str, Any]:
    """What `testbed study --json` prints; `tracking_uri` is empty where nothing is logged."""
    from testbed.report.claims import stored

    trials = []
    for one in made.trials:
        error = made.files.trial(one.id).result().get("error")
        trials.append({**_trial(one), "status": one.state, "error": error})
    checked = [row for row in ending.identities if not row.reason]
    failed = sum(not row.passed for row in checked)
    return {
        **_study(made, tracking_uri),
        "exit_code": ending.exit_code,
        "interrupted": ending.outcome.interrupted,
        "seconds": round(seconds, 3),
        "trials": trials,
        "identities": {"held": len(checked) - failed, "failed": failed},
        "report": None if ending.report is None else str(ending.report),
        "claims": [] if ending.report is None else _claims(stored(ending.report)),
    }


def status(found: Watched) -> dict[str, Any]:
    """What `testbed status --json` prints."""
    variants = [
        {
            **dict(zip(("case", "arm", "variant"), one.label, strict=True)),
            "states": dict(one.states),
            "training_seconds": one.training,
            "evaluation_seconds": one.evaluation,
        }
        for one in found.costs()
    ]
    kept = ("id", "title", "state", "step", "steps", "owner", "error")
    return {
        "study": found.name,
        "driven": found.driven,
        "counts": {state: found.count(state) for state in STATES},
        "steps_per_second": found.rate,
        "seconds_left": found.seconds_left,
        "variants": variants,
        "trials": [{name: getattr(one, name) for name in kept} for one in found.trials],
    }


def report(
    folder: Path, page: Path, paper: Sequence[Path], findings: Sequence[Finding]
) -> dict[str, Any]:
    """What `testbed report --json` prints."""
    tables = sorted(str(file) for file in (page.parent / "tables").iterdir())
    files = sorted(map(str, paper))
    return {
        "folder": str(folder),
        "page": str(page),
        "tables": tables,
        "paper": files,
        "claims": _claims(findings),
    }


def verification(found: Verification) -> dict[str, Any]:
    """What `testbed verify --json` prints."""
    return {"same": found.same, "summary": found.summary(), **asdict(found)}


def _claims(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Those of every case and arm, as `testbed report --help` says."""
    return [
        {"case": one.case, "arm": arm.arm, **asdict(claim)}
        for one in findings
        for arm in one.arms
        for claim in arm.claims
    ]


def _detectable(one: Detectable) -> dict[str, Any]:
    ratios = [
        {"arm": spread.arm, "variant": spread.variant, "ratio": one.ratio(spread)}
        for spread in one.spreads
        if math.isfinite(one.effect)
    ]
    return {
        "case": one.case,
        "seeds": one.seeds,
        "comparisons": one.comparisons,
        "effect": one.effect if math.isfinite(one.effect) else None,
        "ratios": ratios,
    }


def _study(made: Plan, tracking_uri: str) -> dict[str, Any]:
    return {
        "study": made.study.header.name,
        "folder": str(made.folder),
        "tracking_uri": tracking_uri or None,
        "device": made.device,
    }


def _trial(one: Trial) -> dict[str, Any]:
    return {"id": one.id, "title": one.title, "labels": one.labels, "seed": one.config.seed}
