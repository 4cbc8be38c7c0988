"""The report's tables of results: the primary metric with its verdicts, and all other metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from testbed.notebook import Cell
from testbed.report.comparisons import Comparisons, Versus
from testbed.report.page_tables import PageTable, page_table
from testbed.report.results import Results
from testbed.report.standing import standing
from testbed.report.words import between, effect_text, floor, probability, title

ACROSS = 5
"""The most variants in a row of a table of metrics, which fits a page of 1100 pixels then."""


def primary(results: Results, compared: Comparisons, table: pd.DataFrame, case: str) -> PageTable:
    """Returns a row per variant and arm: the primary metric and its comparison; last the floor.

    Args:
        results: what was read of the study.
        compared: its comparisons.
        table: results.csv.
        case: the case's name.
    """
    metric = results.primary(case)
    head = ["arm", "variant", "seeds", title(metric), "effect", "p (Holm)", "verdict"]
    rows: list[list[Cell | str]] = []
    records = _records(table, case)
    for arm in results.arms(case):
        winner = standing(results, compared, case, arm).winner
        for variant in results.variants(case, arm):
            style = "best" if variant == winner else ""
            first = records[arm, variant, metric]
            missing = f" (+{first['missing']} missing)" if first["missing"] else ""
            row: list[Cell | str] = [arm, Cell(variant, style), f"{first['n']}{missing}"]
            one = compared.to_baseline(case, arm, variant)
            row += [_metric(first, style), *versus(one), Cell(_whole(one), "quiet")]
            rows.append(row)
    if any(row[-1] != Cell("", "quiet") for row in rows):
        head.append("all levels, not judged")
    else:
        rows = [row[:-1] for row in rows]
    floors = results.facts.get(case, {}).get("floors", {})
    if metric in floors:
        texts = ["", "real data: floor", "", floor(floors[metric])]
        rows.append([Cell(text, "quiet") for text in [*texts, *[""] * (len(head) - len(texts))]])
    return page_table(head, rows)


def others(results: Results, table: pd.DataFrame, case: str) -> Iterator[tuple[str, PageTable]]:
    """Yields the arm and a row per metric, ACROSS variants side by side; last the floors.

    Args:
        results: what was read of the study.
        table: results.csv.
        case: the case's name.
    """
    _, *metrics = results.metric_names(case)
    records = _records(table, case)
    floors = results.facts.get(case, {}).get("floors", {})
    for arm in results.arms(case) if metrics else ():
        variants = results.variants(case, arm)
        for start in range(0, len(variants), ACROSS):
            names = variants[start : start + ACROSS]
            rows: list[list[Cell | str]] = []
            for metric in metrics:
                row: list[Cell | str] = [title(metric)]
                row += [_metric(records[arm, name, metric]) for name in names]
                rows.append([*row, Cell(floor(floors.get(metric)), "quiet")])
            yield arm, page_table(["metric", *names, "real data: floor"], rows)


def _records(table: pd.DataFrame, case: str) -> dict[tuple[str, str, str], dict[Any, Any]]:
    """The rows of results.csv by arm, variant and metric."""
    here = table[table["case"] == case].to_dict("records")
    return {(row["arm"], row["variant"], row["metric"]): row for row in here}


def _metric(row: dict[Any, Any], style: str = "") -> Cell:
    if row["diverged"]:
        return Cell(f"diverged in {row['diverged']} of {row['n']}", "bad")
    return Cell(between(row["value"], row["low"], row["high"]), style)


def versus(one: Versus | None) -> tuple[Cell, Cell, Cell]:
    """Returns the cells of a comparison: effect with interval, corrected p, verdict."""
    if one is None:
        return Cell("0 %", "quiet"), Cell(""), Cell("baseline", "quiet")
    c = one.comparison
    if c is None or c.diverged:
        return Cell("–"), Cell("–"), Cell(one.verdict, "quiet" if c is None else "bad")
    style = {"better": "good", "worse": "bad"}.get(one.verdict, "quiet")
    effect = Cell(effect_text(c.ratio, c.low, c.high))
    return effect, Cell(probability(c.p_holm)), Cell(one.said, style)


def _whole(one: Versus | None) -> str:
    """The effect over all levels where those in common are fewer, and how many these are."""
    if one is None or one.levels is None or one.levels.whole:
        return ""
    c = one.whole
    effect = "–" if c is None or c.diverged else effect_text(c.ratio, c.low, c.high)
    return f"{effect} (common: {one.levels.text})"
