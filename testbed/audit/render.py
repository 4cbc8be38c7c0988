"""An audit on a terminal and as a picture: error over bound, law by law and part by part."""

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

from testbed.audit.result import PARTS, Audit, ordered

VARIANT = re.compile(r": [\w, ]+$")
"""The end of a law's name that says for which prediction type, schedule or sampler it is."""


def lines(audit: Audit) -> Iterator[RenderableType]:
    """Yields the table of laws, each at its largest ratio, then effects, findings and notes."""
    checked = audit.laws()
    if len(checked):
        families = checked["law"].str.replace(VARIANT, "", regex=True)
        yield _laws(checked.assign(family=families))
    if audit.effects:
        yield Text("")
        yield _effects(audit.effects_table())
    failed = not audit.passed
    yield Text("")
    if len(checked):
        style = "bold red" if failed else "bold green"
        head, opening, rest = audit.summary.partition(" (")
        yield f"[{style}]{head}[/]{opening}{rest}."
    for text in audit.findings:
        yield f"[bold]Probably:[/] {escape(text)}"
    if not all(row.passed for row in audit.rows) and not audit.findings:
        yield "No known mistake explains its output; look at the first part that fails."
    for text in audit.notes:
        yield f"Note: {escape(text)}"


def _laws(checked: pd.DataFrame) -> Table:
    table = Table("part", "law", box=None, pad_edge=False)
    for head in ("error", "bound", "error/bound"):
        table.add_column(head, justify="right")
    table.add_column("")
    table.add_column("worst where")
    keys = ["part", "family", "passed"]
    ranked = checked.sort_values("ratio", ascending=False, kind="stable")
    worst = ranked.drop_duplicates(keys).sort_values(keys, key=ordered)
    previous = ""
    for _, row in worst.iterrows():
        name = row["family"] if row["passed"] else row["law"]
        numbers = [_number(row[key]) for key in ("error", "bound", "ratio")]
        mark = "[green]holds[/]" if row["passed"] else "[bold red]broken[/]"
        _, between, options = row["subject"].partition(" with ")
        where = [f"{between.strip()} {options}".strip(), row["data"], row["dtype"]]
        where += [] if math.isnan(row["sigma"]) else [f"sigma = {row['sigma']:.3g}"]
        if row["reason"]:
            mark, where = "[yellow]not checked[/]", [row["reason"]]
        elif not row["passed"] and math.isinf(row["ratio"]):
            numbers[2] = ""
        part, previous = ("" if row["part"] == previous else row["part"]), row["part"]
        table.add_row(part, escape(name), *numbers, mark, escape(", ".join(filter(None, where))))
    return table


def _effects(effects: pd.DataFrame) -> Table:
    table = Table("learning", "unit", box=None, pad_edge=False)
    for head in ("sigma", "value", "95 % from", "to"):
        table.add_column(head, justify="right")
    for name, rows in effects.groupby("name", sort=False):
        for i, (_, row) in enumerate(rows.iterrows()):
            first = (str(name), row["unit"]) if i == 0 else ("", "")
            table.add_row(*first, *(f"{row[key]:.4g}" for key in ("sigma", "value", "low", "high")))
    return table


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def draw(audit: Audit, file: Path) -> None:
    """Draws error over bound against sigma, a panel for each part and a line for each law.

    A law is broken above 1. A second row of panels has the effects of a trained model with their
    intervals. The format of the picture follows the suffix of `file`.
    """
    table = audit.table()
    table = table[table["sigma"].notna() & table["ratio"].gt(0)]
    table = table.assign(family=table["law"].str.replace(VARIANT, "", regex=True))
    parts = [part for part in PARTS if part in set(table["part"])]
    effects = audit.effects_table()
    names = list(dict.fromkeys(effects["name"]))
    columns, rows = max(1, len(parts), len(names)), max(1, bool(parts) + bool(names))
    figure = Figure(figsize=(3.6 * columns, 4.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    if parts:
        _draw_laws(grid[0], table, parts)
    if names:
        _draw_effects(grid[-1], effects, names)
    figure.suptitle(f"{audit.subject}: a law is broken above 1")
    figure.savefig(file, dpi=150)


def _draw_laws(panels: Any, table: pd.DataFrame, parts: list[str]) -> None:
    panels = panels[: len(parts)]
    for panel, title in zip(panels, parts, strict=True):
        panel.set_axis_on()
        for law, own in table[table["part"] == title].groupby("family", sort=False):
            # The same noise level in two dtypes differs by a rounding.
            sigma = own["sigma"].map(lambda sigma: float(f"{sigma:.6g}"))
            worst = own["ratio"].clip(upper=1e20).groupby(sigma).max()
            panel.loglog(worst.index, worst.to_numpy(), marker=".", label=law)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=title, xlabel="σ")
        panel.legend(frameon=False, fontsize=6, loc="lower left")
    panels[0].set_ylabel("largest error / bound")
    lows, highs = zip(*(panel.get_ylim() for panel in panels), strict=True)
    for panel in panels:
        panel.set_ylim(min(lows) / 30, max(highs))


def _draw_effects(panels: Any, effects: pd.DataFrame, names: list[str]) -> None:
    for panel, name in zip(panels, names, strict=False):
        panel.set_axis_on()
        own = effects[effects["name"] == name]
        panel.loglog(own["sigma"], own["value"], marker=".", color="black")
        # A t interval may reach below zero, where a logarithm has nothing to show.
        floor = own["low"].clip(lower=own["value"] / 100)
        panel.fill_between(own["sigma"], floor, own["high"], alpha=0.3)
        panel.set(title=name, xlabel="σ", ylabel=own["unit"].iloc[0])
