"""The section of the report on models that were not trained here: they are in no comparison.

They have no seeds: nothing is known of how far another training of the same would differ, so that
no difference from them can be tested. Their numbers stand beside the means of the trained variants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from testbed.notebook import Cell
from testbed.report.page_tables import PageTable, page_table
from testbed.report.results import LABEL, Results, Rows
from testbed.report.words import number, title, with_error

COLUMNS = [*LABEL, "id", "status", "metric", "value", "error", "trained_low", "trained_high"]
LEVELS = [*LABEL, "sigma", "loss", "trained_low", "trained_high"]


@dataclass(frozen=True)
class FixedPart:
    """The part of the section on a case: its metrics, its losses at a few noise levels, notes."""

    metrics: PageTable
    levels: PageTable
    notes: tuple[str, ...]


def table(results: Results) -> pd.DataFrame:
    """Returns fixed.csv: each metric of each model, and the range of the trained variants' means.

    `error` is that of the model's own samples, nan where the metric is not of samples. The range is
    nan where a model of latents of its own has no number in common with them.
    """
    rows = []
    for trial, values in _models(results):
        common = _of_samples(results, trial) if _apart(results, trial) else set(values)
        for metric, (value, error) in values.items():
            means = metric in common and _means(results, trial["case"], trial["arm"], metric)
            span = (min(means), max(means)) if means else (math.nan, math.nan)
            rows.append([*(trial[key] for key in (*LABEL, "id", "status")), metric, value, error,
                         *span])  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def level_table(results: Results) -> pd.DataFrame:
    """Returns fixed_levels.csv: the loss of each model by level, and that of trained variants.

    The range is that of their means over seeds at the same level; nan where none is measured there,
    or where those are losses of other data.
    """
    rows = []
    for trial, _ in _models(results):
        assert results.fixed is not None
        case, arm, name = (trial[key] for key in LABEL)
        here = results.levels[(results.levels["case"] == case) & (results.levels["arm"] == arm)]
        own = results.fixed.levels_of((case, arm, name))
        for sigma, loss in zip(own["sigma"], own["loss"], strict=True):
            at = here[np.isclose(here["sigma"], sigma, rtol=1e-9) & (not _apart(results, trial))]
            means = at.groupby("variant")["loss"].mean()
            span = (means.min(), means.max()) if len(means) else (math.nan, math.nan)
            rows.append([case, arm, name, sigma, loss, *span])
    return pd.DataFrame(rows, columns=LEVELS)


def parts(results: Results) -> dict[str, FixedPart]:
    """Returns the parts of each case that has such models, by the name of the case on the page."""
    metrics, levels = table(results), level_table(results)
    apart = {(one["case"], one["variant"]) for one, _ in _models(results) if _apart(results, one)}
    found = {}
    for case in dict.fromkeys(metrics["case"]):
        here = metrics[metrics["case"] == case]
        found[case or "all data"] = FixedPart(
            _metrics(results, case, here),
            _levels(levels[levels["case"] == case]),
            tuple(f"{name} {OTHER_DATA}" for of, name in sorted(apart) if of == case),
        )
    return found


OTHER_DATA = (
    "denoises other data than the trained variants, such as latents of its own: its metrics of "
    "samples, which are of decoded images, can be set beside theirs, its losses cannot."
)


def _apart(results: Results, trial: dict[str, str]) -> bool:
    """Whether a model is measured on other data than the trained variants of its case and arm."""
    of, own = results.trials, results.configs.get(trial["id"])
    here = of[(of["case"] == trial["case"]) & (of["arm"] == trial["arm"])]
    known = (results.configs.get(str(id_)) for id_ in here["id"])
    others = {one.data_digest for one in known if one is not None}
    return own is not None and bool(others - {own.data_digest})


def _of_samples(results: Results, trial: dict[str, str]) -> set[str]:
    """The metrics of its samples."""
    return {spec.name for spec in results.configs[trial["id"]].evaluation.metrics}


def _models(results: Results) -> list[tuple[dict[str, str], dict[str, tuple[float, float]]]]:
    """Each model's trial and its metrics with their errors."""
    if results.fixed is None:
        return []
    found, metrics = [], Rows(results.fixed.metrics)
    for row in results.fixed.trials.to_dict("records"):
        own = metrics[row["case"], row["arm"], row["variant"]]
        values = {
            str(one["metric"]): (float(one["value"]), float(one["error"]))
            for one in own.to_dict("records")
        }
        found.append(({str(key): str(value) for key, value in row.items()}, values))
    return found


def _means(results: Results, case: str, arm: str, metric: str) -> list[float]:
    """The mean of a metric over seeds of every trained variant that has it."""
    found = []
    for variant in results.variants(case, arm):
        values = results.values(case, arm, variant, metric)
        if len(values) and np.isfinite(values).all():
            found.append(float(values.mean()))
    return found


def _metrics(results: Results, case: str, here: pd.DataFrame) -> PageTable:
    """A row per model and arm: the primary metric, then the others, with the trained range below.

    A case's metrics are those of its trained variants.
    """
    names = results.metric_names(case)
    rows: list[list[Cell | str]] = []
    for key, own in here.groupby(["arm", "variant"], sort=False):
        arm, model = map(str, key)
        by = own.set_index("metric")
        cells = [_value(by, name) for name in names]
        rows.append([arm, model, "not trained here", *cells])
    for arm in dict.fromkeys(here["arm"]):
        spans = []
        for name in names:
            means = _means(results, case, arm, name)
            spans.append(Cell(_span(means), "quiet"))
        rows.append([Cell(arm, "quiet"), Cell("trained variants", "quiet"), "", *spans])
    return page_table(["arm", "model", "", *map(title, names)], rows)


def _value(by: pd.DataFrame, name: str) -> str:
    if name not in by.index:
        return "–"
    value, error = (float(by[column][name]) for column in ("value", "error"))
    return with_error(value, error)


def _span(means: list[float]) -> str:
    return f"{number(min(means))} to {number(max(means))}" if means else "–"


SHOWN = 6
"""Noise levels in the table of the page."""


def _levels(here: pd.DataFrame) -> PageTable:
    """A row per model and arm: its loss at a few levels, and the trained variants' range."""
    sigmas = np.unique(here["sigma"].to_numpy(dtype=float))
    few = sigmas[np.unique(np.linspace(0, len(sigmas) - 1, SHOWN).round().astype(int))].tolist()
    rows = []
    for key, own in here.groupby(["arm", "variant"], sort=False):
        at = own.set_index("sigma")
        cells = []
        for sigma in few:
            if sigma not in at.index:
                cells.append("–")
                continue
            row = at.loc[sigma]
            low, high = float(row["trained_low"]), float(row["trained_high"])
            beside = "" if math.isnan(low) else f" ({number(low)} to {number(high)})"
            cells.append(f"{number(float(row['loss']))}{beside}")
        rows.append([*map(str, key), *cells])
    return page_table(["arm", "model", *(f"σ = {sigma:.3g}" for sigma in few)], rows)
