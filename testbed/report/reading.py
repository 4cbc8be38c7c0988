"""Reads what a study left on disk as tables; it needs neither plugins nor a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from testbed.errors import InputError
from testbed.report import stages
from testbed.report.files import (
    Measurements,
    read_json,
    short,
    stored_numbers,
    stored_table,
    table_of,
    with_diverged,
)
from testbed.report.results import LABEL, Results, unique
from testbed.study import looks
from testbed.study.settings import ReportSettings
from testbed.trial.config import TrialConfig
from testbed.trial.folders import TrialFolder
from testbed.trial.study_folder import StudyFolder

IDENTITY = ["law", "subject", "sigma", "dtype", "error", "bound", "ratio", "reason"]
ENDED = {
    "diverged_at": None,
    "error": "",
    "training_seconds": 0.0,
    "sampling_seconds": None,
    "parameters": None,
}
"""What the table of trials has of a result, with what stands where it is missing."""
Model = TypeVar("Model", bound=BaseModel)
CURVE = ["step", "loss", "gradient_norm", "gradient_norm_cv"]


def read(folder: Path) -> Results:
    """Reads a study's folder; what is not there yet is named in `missing`.

    Raises:
        InputError: it holds no trial at all.
    """
    missing: list[str] = []
    files = StudyFolder.at(folder)
    study = read_json(files, "study.json", missing) or {"name": folder.resolve().name}
    for part in ("report", "first_report"):
        if _read(ReportSettings, study.get(part, {}), f"{part!r} of study.json", missing) is None:
            study.pop(part)  # the defaults stand in its place
    listed = study.get("trials") or files.descriptions()
    if not listed:
        raise InputError(f"{folder} holds no study: neither study.json nor trials/*/trial.json.")
    arms = arm_names(listed)
    found = _Trials(missing, arms, _identities(read_json(files, "tweedie.json", missing)))
    for number, entry in enumerate(listed):
        found.add(files, number, entry)
    rows = pd.DataFrame(found.trials)
    coefficients = _labelled(stored_table(files, "coefficients.csv", missing), arms)
    # "twins" is the key's name in the folders of older studies.
    equal = study.get("equal_objectives", study.get("twins"))
    study = {**study, "equal_objectives": equal and _equal_objectives(equal, arms)}
    results = Results(
        folder=folder,
        study=study,
        trials=rows,
        metrics=found.measured.metric_table,
        levels=found.measured.level_table(missing),
        curves=_curves(found.curves),
        coefficients=coefficients,
        identities=_judged(found.identities),
        drawn=_labelled(stored_table(files, "drawn.csv", missing), arms),
        configs=found.configs,
        facts=_facts(files, unique(rows["case"]), missing),
        missing=missing,
        look=looks.read(files).at(looks.ended(files, listed))[0],
        budgets=pd.DataFrame(found.budgets),
    )
    if found.fixed:
        of_models = replace(
            results,
            trials=pd.DataFrame(found.fixed),
            metrics=found.of_fixed.metric_table,
            levels=found.of_fixed.level_table(missing),
        )
        results = replace(results, fixed=of_models)
    results = replace(results, metrics=with_diverged(results))
    return replace(results, stages=stages.read(results))


@dataclass
class _Trials:
    """What the trials of a study add to its tables, in the order in which they are listed.

    Args:
        missing: what cannot be read is named here.
        arms: what each (case, arm) is called.
        identities: the rows of the study's own table of identities.
    """

    missing: list[str]
    arms: Mapping[tuple[str, str], str]
    identities: list[dict[str, Any]]
    trials: list[dict[str, Any]] = field(default_factory=list)
    budgets: list[dict[str, Any]] = field(default_factory=list)
    measured: Measurements = field(default_factory=Measurements)
    fixed: list[dict[str, Any]] = field(default_factory=list)
    of_fixed: Measurements = field(default_factory=Measurements)
    curves: list[tuple[dict[str, Any], list[list[Any]]]] = field(default_factory=list)
    configs: dict[str, TrialConfig] = field(default_factory=dict)

    def add(self, files: StudyFolder, number: int, entry: Mapping[str, Any]) -> None:
        """Reads a trial of study.json, the one of this number, under each of its labels."""
        id_, missing = entry["id"], self.missing
        at, status = files.trial(id_), files.state(id_)
        described = at.json("trial.json") if at.has("trial.json") else None
        config = _config(described, id_, missing)
        if config is not None:
            self.configs[id_] = config
        ended = read_json(at, "result.json", []) or {}
        levels = stored_numbers(at, "levels.csv", missing) if status == "finished" else None
        curve = _curve(at, missing)
        if status == "finished":
            self.identities += _identities(read_json(at, "tweedie.json", missing))
        row = {column: ended.get(column, empty) for column, empty in ENDED.items()}
        for *label, apart in dict.fromkeys(_shown(label, self.arms) for label in entry["labels"]):
            key: dict[str, Any] = dict(zip(LABEL, label, strict=True))
            key["seed"] = number if config is None else config.seed
            trial = {"id": id_, **key, "status": status, **row}
            if apart and apart != looks.NOT_TRAINED:
                self.budgets.append({**trial, "budget": int(apart)})
                continue
            rows, numbers = (self.fixed, self.of_fixed) if apart else (self.trials, self.measured)
            rows.append(trial)
            if status == "finished":
                numbers.add(key, ended, levels)
            if not apart:
                self.curves.append((key, curve))


def _facts(files: StudyFolder, cases: list[str], missing: list[str]) -> dict[str, dict[str, Any]]:
    """What is recorded of each case's data; cases without a record are left out."""
    found = {case: read_json(files.data, f"{case or 'data'}.json", missing) for case in cases}
    return {case: record for case, record in found.items() if record}


def _labelled(table: pd.DataFrame | None, arms: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """A table with the arms as the report calls them; without rows where there is none."""
    if table is None:
        return table_of([], [*LABEL, "sigma"])
    if set(LABEL) <= set(table):
        shown = [_shown(label, arms)[:3] for label in table[LABEL].to_dict("records")]
        table[LABEL] = pd.DataFrame(shown, columns=LABEL, index=table.index)
        table = table.drop_duplicates(ignore_index=True)
    return table


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


def _shown(label: Mapping[Any, Any], arms: Mapping[tuple[str, str], str]) -> tuple[str, ...]:
    """Case, arm and variant as the report calls them, and the budget, `NOT_TRAINED` or nothing."""
    case, arm, variant = (str(label[name]) for name in LABEL)
    apart = looks.NOT_TRAINED if looks.NOT_TRAINED in label else label.get("budget", "")
    return case, arms.get((case, arm), arm), variant, apart


def _config(described: dict[str, Any] | None, trial: str, missing: list[str]) -> TrialConfig | None:
    if described is None:
        return None
    return _read(TrialConfig, described.get("config"), f"The settings of trial {trial}", missing)


def _read(model: type[Model], value: Any, what: str, missing: list[str]) -> Model | None:
    """A value as this model; None with a line in `missing` where it is no such thing."""
    try:
        return model.model_validate(value)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        missing.append(f"{what} cannot be read: {where}: {first['msg']}.")
        return None


def _curve(folder: TrialFolder, missing: list[str]) -> list[list[Any]]:
    """The values of CURVE in each row of a trial's curve."""
    name = short(folder, "rows.jsonl")
    rows = folder.rows(lambda byte: missing.append(f"{name} cannot be read from byte {byte} on."))
    return [[row.get(column) for column in CURVE] for row in rows]


def _curves(of_trials: list[tuple[dict[str, Any], list[list[Any]]]]) -> pd.DataFrame:
    """`Results.curves`, of the rows of every trial under its label and seed."""
    rows = [row for _, curve in of_trials for row in curve]
    if not rows:
        return table_of([], [*LABEL, "seed", *CURVE])
    keys = pd.DataFrame([key for key, _ in of_trials])
    own = keys.loc[keys.index.repeat([len(curve) for _, curve in of_trials])]
    table = pd.DataFrame(rows, columns=CURVE, dtype=float)
    return pd.concat([table, own.reset_index(drop=True)], axis=1)


def _identities(record: dict[str, Any] | None) -> list[dict[str, Any]]:
    return list((record or {}).get("rows", []))


def _judged(found: list[dict[str, Any]]) -> pd.DataFrame:
    """Each row once: the study's table may already hold the rows of its trials."""
    table = table_of(found, IDENTITY).drop_duplicates(ignore_index=True)
    for column in ("sigma", "error", "bound", "ratio"):
        table[column] = pd.to_numeric(table[column])
    # A ratio that is not a number comes from an error that is not: a failure, unless skipped.
    table = table.fillna({"dtype": "", "reason": ""})
    table["passed"] = (table["reason"] != "") | (table["ratio"] <= 1)
    return table
