"""What MLflow's run of a trial holds, read from the trial's folder: names, values and times."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from testbed.study.plan import NOT_TRAINED, Plan, Trial
from testbed.trial.folders import ENDED, TrialFolder

TRAINING, EVALUATION, SYSTEM = "training/", "evaluation/", "system/"
"""Prefixes of metrics: MLflow shows a section for each, in the order of the alphabet."""
CURVES = ("loss", "gradient_norm", "gradient_norm_cv")
ARTIFACTS = (
    "trial.json",
    "result.json",
    "levels.csv",
    "tweedie.json",
    "rows.parquet",
    "weights.safetensors",
    "schedule.json",
    "samples.safetensors",
    "denoised.safetensors",
    "neighbours.safetensors",
    "pictures.json",
    "error.txt",
)
LEVELS = "levels.json"
"""The per-sigma table as MLflow's pages compare it between runs."""
TABLES = {"mlflow.loggedArtifacts": json.dumps([{"path": LEVELS, "type": "table"}])}
RUN_STATUS = {
    "failed": "FAILED",
    "diverged": "FAILED",
    "interrupted": "KILLED",
    "cancelled": "KILLED",
}
"""MLflow's word for a trial's status where that is not FINISHED."""
NOTE, REASON = "mlflow.note.content", "testbed.reason"
LONGEST_PARAMETER, LONGEST_TAG = 6000, 5000


def cut(text: str, longest: int) -> str:
    """A text of at most `longest` characters; where it was longer its end says so."""
    mark = f" ... [cut: {len(text)} characters in all]"
    return text if len(text) <= longest else text[: longest - len(mark)] + mark


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Parameters by dotted key; a component is its name, its options stand under it."""
    for key, value in config.items():
        if isinstance(value, Mapping) and set(value) == {"name", "options"}:
            yield prefix + key, str(value["name"])
            yield from flat(value["options"], f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield prefix + key, cut(text, LONGEST_PARAMETER)


def tags(trial: Trial) -> dict[str, str]:
    """What names a trial's run; a tag for each arm that the trial stands in, with its name."""
    first = trial.labels[0]
    arms = dict.fromkeys(label["arm"] for label in trial.labels if label["arm"])
    # MLflow takes no other characters in a tag's name.
    keys = {arm: "testbed.arm." + re.sub(r"[^\w.\- ]", "_", arm)[:200] for arm in arms}
    return {
        "testbed.kind": "trial",
        "testbed.trial": trial.id,
        "testbed.case": first["case"],
        "testbed.variant": first["variant"],
        **({"testbed.budget": first["budget"]} if "budget" in first else {}),
        **({"testbed.not_trained": "yes"} if NOT_TRAINED in first else {}),
        **{keys[arm]: arm for arm in arms},
    }


def reason(trial: Trial, result: Mapping[str, Any]) -> str:
    """Why a trial did not finish; empty where it did."""
    if result.get("status") == "failed":
        return str(result.get("error") or "The trial raised an error; see error.txt.")
    if result.get("status") == "diverged":
        return (
            f"The training diverged: at step {result.get('diverged_at')} of "
            f"{trial.config.training.steps} the loss, a gradient or the averaged weights were not "
            "finite."
        )
    return ""


def curve(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a row of the training curve."""
    return {TRAINING + key: row[key] for key in CURVES if row[key] is not None}


def system(
    samples: Iterable[Mapping[str, float | None]], since: float
) -> Iterator[tuple[str, float, int, int]]:
    """What a worker's process used: metric, value, milliseconds, and seconds since `since`."""
    for sample in samples:
        at = sample["time"] or since
        for key, value in sample.items():
            if key != "time" and value is not None:
                yield f"{SYSTEM}worker_{key}", value, milliseconds(at), int(at - since)


def final(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a trained model with their errors and p; only what is finite."""
    if result.get("status") not in ENDED:
        return {}
    errors = {
        f"{name}_{what}": value
        for name, found in (result.get("errors") or {}).items()
        for what, value in found.items()
    }
    every = {**result["metrics"], **errors, "diverged": float(result["status"] == "diverged")}
    return {
        EVALUATION + name: float(value)
        for name, value in every.items()
        if value is not None and math.isfinite(value)
    }


def level_table(folder: TrialFolder) -> str:
    """The per-sigma table as MLflow reads a table: JSON with `columns` and `data`."""
    text = (folder.store.get("levels.csv") or b"").decode()
    columns, *rows = csv.reader(io.StringIO(text))
    return json.dumps({"columns": columns, "data": [[*map(_cell, row)] for row in rows]})


def _cell(text: str) -> float | str | None:
    """A cell of a table; None where it is empty or not finite."""
    try:
        value = float(text)
    except ValueError:
        return text or None
    return value if math.isfinite(value) else None


def began(folder: TrialFolder) -> float | None:
    """When a trial's first steps began, in seconds since 1970; None where it has not come so far.

    A row tells each trial's share of the time that it took its group.
    """
    rows = folder.rows()
    if not rows:
        return None
    facts = [folder.result(), *map(folder.json_or_empty, ("training.json", "group.json"))]
    together = next((n for one in facts if (n := one.get("trained_together"))), 1)
    return float(rows[0]["time"] - together * rows[0]["seconds"])


def ended(folder: TrialFolder) -> float:
    """When a trial ended, or its last row was written, in seconds since 1970; else now."""
    result, rows = folder.result(), folder.rows()
    last = rows[-1]["time"] + (result.get("measuring_seconds") or 0.0) if rows else time.time()
    return float(result.get("ended") or last)


def milliseconds(seconds: float) -> int:
    """A time as MLflow has it."""
    return int(1000 * seconds)


def data_sets(plan: Plan) -> dict[str, dict[str, str]]:
    """The data set of each case as MLflow has one: name, digest, source and profile.

    The digest is of the settings and of what was measured of the data, such as their variance. A
    case whose facts the study has not written yet is left out.
    """
    found = {}
    for trial in plan.trials:
        for label in trial.labels:
            facts = plan.files.data.json_or_empty(f"{label['case'] or 'data'}.json")
            if facts and label["case"] not in found:
                for measured in ("floors", "features"):
                    facts.pop(measured, None)
                spec = trial.config.dataset
                profile = json.dumps(facts, sort_keys=True)
                found[label["case"]] = {
                    "name": spec.name,
                    "digest": hashlib.sha256(profile.encode()).hexdigest()[:16],
                    "source_type": "testbed",
                    "source": cut(json.dumps({"dataset": spec.model_dump(mode="json")}), 60_000),
                    "profile": profile,
                }
    return found
