"""An audit on a terminal, and as a picture: error over bound, law by law and level by level."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from testbed.audit.driver import PARTS, Audit

VARIANT = re.compile(r": [\w, ]+$")
"""The end of a law's name that says for which kind, form or sampler it was tried."""


def lines(audit: Audit) -> Iterator[RenderableType]:
    """The table of laws, each where it is nearest to breaking, effects, findings and notes."""
    found = audit.laws()
    if len(found):
        yield _laws(found.assign(shown=found["law"].str.replace(VARIANT, "", regex=True)))
    if audit.effects:
        yield Text("")
        yield _effects(audit.effects_table())
    failed = int((~audit.table()["passed"]).sum())
    checks, laws = len(audit.rows), found["law"].nunique() if len(found) else 0
    yield Text("")
    if failed:
        broken = found[~found["passed"]]["law"].nunique()
        yield f"[bold red]{broken} of {laws} laws broken[/] ({failed} of {checks} checks)."
    elif laws:
        worst = found["ratio"].max()
        yield (
            f"[bold green]All {laws} laws hold[/] ({checks} checks; the largest error is "
            f"{worst:.2g} of its bound)."
        )
    for text in audit.findings:
        yield f"[bold]Probably:[/] {escape(text)}"
    if failed and not audit.findings:
        yield "No known mistake explains its output; the first level that fails is where to look."
    for text in audit.notes:
        yield f"Note: {escape(text)}"


def _laws(found: pd.DataFrame) -> Table:
    table = Table("level", "law", box=None, pad_edge=False)
    for head in ("error", "bound", "error/bound"):
        table.add_column(head, justify="right")
    table.add_column("")
    table.add_column("worst where")
    order = {name: i for i, name in enumerate(PARTS)}
    ranked = found.sort_values("ratio", ascending=False, kind="stable")
    groups = ranked.groupby(["level", "shown", "passed"], sort=False)
    worst = groups.head(1).assign(rank=lambda t: t["level"].map(order))
    worst = worst.sort_values(["rank", "shown", "passed"], kind="stable")
    shown = ""
    for _, row in worst.iterrows():
        name = row["shown"] if row["passed"] else row["law"]
        numbers = [_number(row[key]) for key in ("error", "bound", "ratio")]
        mark = "[green]holds[/]" if row["passed"] else "[bold red]broken[/]"
        where = [row["data"], row["dtype"]]
        where += [] if math.isnan(row["sigma"]) else [f"sigma = {row['sigma']:.3g}"]
        if row["reason"]:
            mark, where = "[yellow]not checked[/]", [row["reason"]]
        elif not row["passed"] and math.isinf(row["ratio"]):
            numbers[2] = ""
        level, shown = ("" if row["level"] == shown else row["level"]), row["level"]
        table.add_row(level, escape(name), *numbers, mark, escape(", ".join(filter(None, where))))
    return table


def _effects(found: pd.DataFrame) -> Table:
    table = Table("learning", "unit", box=None, pad_edge=False)
    for head in ("sigma", "value", "95 % from", "to"):
        table.add_column(head, justify="right")
    for name, rows in found.groupby("name", sort=False):
        for i, (_, row) in enumerate(rows.iterrows()):
            first = (str(name), row["unit"]) if i == 0 else ("", "")
            table.add_row(*first, *(f"{row[key]:.4g}" for key in ("sigma", "value", "low", "high")))
    return table


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def draw(audit: Audit, file: Path) -> None:
    """Error over bound against sigma, one panel a level, one line a law: above 1 it is broken.

    Below, where a trained model was audited, its effects with their intervals.
    """
    table = audit.table()
    table = table[table["sigma"].notna() & table["ratio"].gt(0)]
    table = table.assign(shown=table["law"].str.replace(VARIANT, "", regex=True))
    levels = [level for level in PARTS if level in set(table["level"])]
    effects = audit.effects_table()
    names = list(dict.fromkeys(effects["name"]))
    columns = max(1, len(levels), len(names))
    rows = [row for row in ("laws", "effects") if (row == "laws" and levels) or names]
    figure = Figure(figsize=(3.6 * columns, 4.2 * max(1, len(rows))), layout="constrained")
    grid = figure.subplots(max(1, len(rows)), columns, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    if levels:
        _draw_laws(grid[0], table, levels)
    if names:
        _draw_effects(grid[-1], effects, names)
    figure.suptitle(f"{audit.subject}: a law is broken above 1")
    figure.savefig(file, dpi=150)


def _draw_laws(panels: Any, table: pd.DataFrame, levels: list[str]) -> None:
    for panel, title in zip(panels, levels, strict=False):
        panel.set_axis_on()
        for law, own in table[table["level"] == title].groupby("shown", sort=False):
            # The same level in two dtypes differs by a rounding.
            level = own["sigma"].map(lambda sigma: float(f"{sigma:.6g}"))
            worst = own["ratio"].clip(upper=1e20).groupby(level).max()
            panel.loglog(worst.index, worst.to_numpy(), marker=".", label=law)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=title, xlabel="σ")
        panel.legend(frameon=False, fontsize=6, loc="lower left")
    panels[0].set_ylabel("largest error / bound")
    limits = [panel.get_ylim() for panel, _ in zip(panels, levels, strict=False)]
    for panel, _ in zip(panels, levels, strict=False):
        panel.set_ylim(min(low for low, _ in limits) / 30, max(high for _, high in limits))


def _draw_effects(panels: Any, effects: pd.DataFrame, names: list[str]) -> None:
    for panel, name in zip(panels, names, strict=False):
        panel.set_axis_on()
        own = effects[effects["name"] == name]
        panel.loglog(own["sigma"], own["value"], marker=".", color="black")
        # A t interval may reach below zero, where a logarithm has nothing to show.
        floor = own["low"].clip(lower=own["value"] / 100)
        panel.fill_between(own["sigma"], floor, own["high"], alpha=0.3)
        panel.set(title=name, xlabel="σ", ylabel=own["unit"].iloc[0])
