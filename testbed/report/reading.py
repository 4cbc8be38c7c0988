"""Reads what a study left on disk as tables; it needs neither plugins nor a network."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError

from testbed.errors import InputError
from testbed.report.results import LABEL, Results, unique
from testbed.study import looks
from testbed.trial.config import TrialConfig
from testbed.trial.folders import Folder, StudyFolder, TrialFolder

IDENTITY = ["law", "subject", "sigma", "dtype", "error", "bound", "ratio", "reason"]
ENDED = {"diverged_at": None, "error": "", "training_seconds": 0.0, "parameters": None}
"""What the table of trials has of a result, with what stands where it is missing."""
CURVE = ["step", "loss", "gradient_norm", "gradient_norm_cv"]
Parsed = TypeVar("Parsed")


def read(folder: Path) -> Results:
    """Reads a study's folder; what is not there yet is named in `missing`.

    Raises:
        InputError: it holds no trial at all.
    """
    missing: list[str] = []
    files = StudyFolder.at(folder)
    study = _json(files, "study.json", missing) or {"name": folder.resolve().name}
    listed = study.get("trials") or files.descriptions()
    if not listed:
        raise InputError(f"{folder} holds no study: neither study.json nor trials/*/trial.json.")
    folders = {one["id"]: files.trial(one["id"]) for one in listed}
    described = {id_: at.json("trial.json") for id_, at in folders.items() if at.has("trial.json")}
    arms = arm_names(listed)
    trials: list[dict[str, Any]] = []
    metrics: list[dict[str, Any]] = []
    levels: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    identities = _identities(_json(files, "tweedie.json", missing))
    configs: dict[str, TrialConfig] = {}
    for number, entry in enumerate(listed):
        at = folders[entry["id"]]
        config = _config(described.get(entry["id"]), entry["id"], missing)
        if config is not None:
            configs[entry["id"]] = config
        status = files.state(entry["id"])
        ended = _json(at, "result.json", []) or {}
        level_table = _csv(at, "levels.csv", missing) if status == "finished" else None
        curve = _curve(at, missing)
        if status == "finished":
            identities += _identities(_json(at, "tweedie.json", missing))
        for label in dict.fromkeys(_shown(label, arms) for label in entry["labels"]):
            key: dict[str, Any] = dict(zip(LABEL, label, strict=True))
            key["seed"] = number if config is None else config.seed
            row = {column: ended.get(column, empty) for column, empty in ENDED.items()}
            trials.append({"id": entry["id"], **key, "status": status, **row})
            if status == "finished":
                metrics += [{**key, **metric} for metric in _metrics(ended)]
            if level_table is not None:
                grid = level_table.get("level", level_table["sigma"])
                levels.append(level_table.assign(**key, level=grid))
            if curve is not None:
                curves.append(curve.assign(**key))
    rows = pd.DataFrame(trials)
    coefficients = _coefficients(_csv(files, "coefficients.csv", missing), arms)
    # "twins" is the key's name in the folders of older studies.
    equal = study.get("equal_objectives", study.get("twins"))
    study = {**study, "equal_objectives": equal and _equal_objectives(equal, arms)}
    values = _table(metrics, [*LABEL, "seed", "metric", "value", "error"])
    values = values.astype({"value": float, "error": float})
    empty = [*LABEL, "seed", "level", "sigma", "loss", "wiener"]
    results = Results(
        folder=folder,
        study=study,
        trials=rows,
        metrics=values,
        levels=pd.concat(levels) if levels else _table([], empty),
        curves=pd.concat(curves) if curves else _table([], [*LABEL, "seed", *CURVE]),
        coefficients=coefficients,
        identities=_judged(identities),
        configs=configs,
        facts=_facts(files, unique(rows["case"]), missing),
        missing=missing,
        look=looks.read(files).at(looks.ended(files, listed))[0],
    )
    return replace(results, metrics=_with_diverged(results))


def _facts(files: StudyFolder, cases: list[str], missing: list[str]) -> dict[str, dict[str, Any]]:
    """What is recorded of each case's data; cases without a record are left out."""
    found = {case: _json(files.data, f"{case or 'data'}.json", missing) for case in cases}
    return {case: record for case, record in found.items() if record}


def _coefficients(table: pd.DataFrame | None, arms: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """coefficients.csv with the arms as the report calls them; without rows where there is none."""
    if table is None:
        return _table([], [*LABEL, "sigma"])
    if set(LABEL) <= set(table):
        shown = [_shown(label, arms) for label in table[LABEL].to_dict("records")]
        table[LABEL] = pd.DataFrame(shown, columns=LABEL, index=table.index)
        table = table.drop_duplicates(ignore_index=True)
    return table


def _metrics(ended: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Metric, value and error of each metric in a trial's result."""
    errors = ended.get("errors") or {}
    for name, value in (ended.get("metrics") or {}).items():
        error = errors.get(name, {}).get("error")
        error = math.nan if error is None else float(error)
        yield {"metric": name, "value": _number(value), "error": error}


def _equal_objectives(
    stored: list[dict[str, Any]], arms: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """The equal objectives with the arms as the report calls them, each once."""
    once: list[dict[str, Any]] = []
    for group in stored:
        arm = arms.get((group["case"], group["arm"]), group["arm"])
        one = {**group, "arm": arm}
        once += [] if one in once else [one]
    return once


def arm_names(listed: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """Returns what each (case, arm) is called: arms with the same trials all `first = second`.

    Args:
        listed: `trials` of study.json.
    """
    held: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for entry in listed:
        for label in entry["labels"]:
            case, arm, variant = (str(label[name]) for name in LABEL)
            held.setdefault((case, arm), set()).add((entry["id"], variant))
    return {
        (case, arm): " = ".join(a for (c, a), other in held.items() if c == case and other == mine)
        for (case, arm), mine in held.items()
    }


def _shown(label: Mapping[Any, Any], arms: Mapping[tuple[str, str], str]) -> tuple[str, str, str]:
    """Case, arm and variant as the report calls them."""
    case, arm, variant = (str(label[name]) for name in LABEL)
    return case, arms.get((case, arm), arm), variant


def _with_diverged(results: Results) -> pd.DataFrame:
    """The metrics with inf for those of a diverged trial: it is a result and stays in the count.

    A metric that is finite for no trial of a case (one that its data does not have) is dropped.
    """
    table = results.metrics
    for case in results.cases:
        names = results.metric_names(case)
        table = table[(table["case"] != case) | table["metric"].isin(names)]
        lost = results.trials[
            (results.trials["case"] == case) & (results.trials["status"] == "diverged")
        ]
        more = [
            {**{k: row[k] for k in (*LABEL, "seed")}, "metric": name, "value": math.inf}
            for row in lost.to_dict("records")
            for name in names
        ]
        if more:
            table = pd.concat([table, pd.DataFrame(more)], ignore_index=True)
    return table


def _number(value: Any) -> float:
    return math.inf if value is None or not math.isfinite(value) else float(value)


def _table(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=columns)


def _read(
    folder: Folder, name: str, missing: list[str], parse: Callable[[bytes], Parsed]
) -> Parsed | None:
    """What a file holds; None where it is not there or cannot be read, which `missing` tells."""
    try:
        content = folder.store.get(name)
        if content is not None:
            return parse(content)
        missing.append(f"{_short(folder, name)} is not there.")
    except (OSError, ValueError) as problem:
        missing.append(f"{_short(folder, name)} cannot be read: {problem}.")
    return None


def _json(folder: Folder, name: str, missing: list[str]) -> dict[str, Any] | None:
    def parse(content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(content.decode())
        return found

    return _read(folder, name, missing, parse)


def _config(described: dict[str, Any] | None, trial: str, missing: list[str]) -> TrialConfig | None:
    if described is None:
        return None
    try:
        return TrialConfig.model_validate(described.get("config"))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        missing.append(f"The settings of trial {trial} cannot be read: {where}: {first['msg']}.")
        return None


def _csv(folder: Folder, name: str, missing: list[str]) -> pd.DataFrame | None:
    return _read(folder, name, missing, csv_table)


def csv_table(content: bytes) -> pd.DataFrame:
    """Returns a table of comma-separated values whose labels are text: an arm may be empty."""
    table = pd.read_csv(io.BytesIO(content))
    if present := [name for name in LABEL if name in table]:
        text = pd.read_csv(io.BytesIO(content), usecols=present, dtype=str, na_filter=False)
        table[present] = text[present]
    return table


def _curve(folder: TrialFolder, missing: list[str]) -> pd.DataFrame | None:
    name = _short(folder, "rows.jsonl")
    rows = folder.rows(lambda byte: missing.append(f"{name} cannot be read from byte {byte} on."))
    return pd.DataFrame(rows).reindex(columns=CURVE).astype(float) if rows else None


def _short(folder: Folder, name: str) -> str:
    """The part of a path that means something in the report."""
    return f"{folder.path.name}/{name}"


def _identities(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    return list((record or {}).get("rows", []))


def _judged(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Each row once: the study's table may already hold the rows of its trials."""
    table = _table(found, IDENTITY).drop_duplicates(ignore_index=True)
    for column in ("sigma", "error", "bound", "ratio"):
        table[column] = pd.to_numeric(table[column])
    # A ratio that is not a number comes from an error that is not: a failure, unless skipped.
    table = table.fillna({"dtype": "", "reason": ""})
    table["passed"] = (table["reason"] != "") | (table["ratio"] <= 1)
    return table
