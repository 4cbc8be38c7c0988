"""The report of a study: one HTML page, tables and figures, from the study's folder alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from testbed.report import comparisons, equal_objectives, figures, finding, results, summaries
from testbed.report.comparisons import Comparisons, Versus
from testbed.report.drawing import Picture, styled
from testbed.report.galleries import gallery
from testbed.report.results import Results
from testbed.report.words import METRICS, between, number, probability, title

FEW = 6


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell with a class of the style sheet: "good", "bad", "best", "quiet"."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    head: list[str]
    rows: list[list[Cell]]


def table_of(head: Sequence[str], rows: Iterable[Sequence[Cell | str]]) -> Table:
    """A table in which bare text stands for a plain cell."""
    return Table(list(head), [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows])


@dataclass
class CaseView:
    """What the page shows of one case."""

    name: str
    primary: str
    table: Table
    arms: Table | None
    pictures: list[Picture] = field(default_factory=list)
    decades: Table | None = None


def write(
    folder: Path, say: Callable[[str], None] = lambda line: None, out: Path | None = None
) -> Path:
    """Builds report.html, tables/ and figures/ from what lies in a study's folder.

    Trials that failed, diverged or have not run are shown as such. The same folder gives the same
    bytes.

    Args:
        folder: the study's.
        say: given one line for each phase.
        out: the folder to write to; the study's own by default.

    Returns:
        The page.

    Raises:
        InputError: the folder holds no study.
    """
    say("reading the trials")
    read = results.read(folder)
    say("comparing over seeds")
    compared = comparisons.make(read)
    tables = {
        "results": comparisons.result_table(read),
        "comparisons": compared.table(),
        "levels": comparisons.level_table(read),
        "tweedie": summaries.laws(read),
        "learning": summaries.learning(read),
        "decades": summaries.decades(read),
    }
    out = out or folder
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(out / "tables" / f"{name}.csv", index=False)
        table.to_parquet(out / "tables" / f"{name}.parquet", index=False)
    say("drawing")
    views = [_case(read, compared, tables, case) for case in read.cases]
    (out / "figures").mkdir(exist_ok=True)
    for view in views:
        for picture in view.pictures:
            (out / "figures" / f"{picture.name}.svg").write_text(picture.svg)
    page = out / "report.html"
    page.write_text(_page(read, compared, tables, views), encoding="utf-8")
    return page


def _page(
    read: Results, compared: Comparisons, tables: dict[str, pd.DataFrame], views: list[CaseView]
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    study, extent = read.study, summaries.extent(read)
    title = study.get("title") or study.get("name") or "Study"
    if extent and "study.title" not in summaries.changed(read):
        title = f"{title} ({extent})"
    return environment.get_template("report.html.j2").render(
        title=title,
        name=study.get("name", ""),
        note=study.get("note", ""),
        extent="" if "study.note" in summaries.changed(read) else extent,
        headline=finding.headline(read, compared),
        finding=finding.sentences(read, compared),
        significant=finding.SIGNIFICANT,
        families={
            "baseline": _size(compared.baseline),
            "pair": _size(compared.pairs),
            "arm": _size(compared.arms),
            "spread": _size(compared.spreads),
        },
        level=f"{read.level:.0%}",
        setup=summaries.setup(read),
        recipes=summaries.recipes(read),
        views=views,
        laws=_laws(tables["tweedie"]),
        learning=[
            (case, _learning(read, tables["learning"], case))
            for case in read.cases
            if (tables["learning"]["case"] == case).any()
        ],
        twins=_twins(read),
        failures=summaries.failures(read),
        plugin_failures=study.get("failures") or [],
        missing=read.missing,
        provenance=summaries.provenance(read),
        machine=summaries.machine(read),
        file=study.get("file", ""),
        command=summaries.command(read),
        overrides=summaries.overrides(read),
        example=str(read.trials["id"].iloc[0]),
    )


def _twins(read: Results) -> list[tuple[str, str]] | None:
    """(case and arm, sentence) of every group of twins; None where they were not looked for."""
    found = read.study.get("twins")
    return found and [
        (
            ", ".join(filter(None, (twin["case"], twin["arm"]))),
            equal_objectives.sentence(read, twin),
        )
        for twin in found
    ]


def _size(members: Iterable[Versus]) -> int:
    """Comparisons that count in a family."""
    return sum(one.comparison is not None for one in members)


def _case(
    read: Results, compared: Comparisons, tables: dict[str, pd.DataFrame], case: str
) -> CaseView:
    with styled():
        pictures = list(figures.of_case(read, case))
        pictures += _gallery(read, tables["results"], case)
    primary = read.primary(case)
    meaning = METRICS.get(primary, ("", "a metric of a plugin"))[1]
    return CaseView(
        name=case or "all data",
        primary=f"{title(primary)}: {meaning}.",
        table=_results(read, compared, tables["results"], case),
        arms=_arms(compared, case),
        pictures=pictures,
        decades=_decades(read, tables["decades"], case),
    )


def _results(read: Results, compared: Comparisons, table: pd.DataFrame, case: str) -> Table:
    """A row per variant and arm: primary metric, comparison, other metrics; last the floors."""
    primary, *others = read.metric_names(case)
    head = ["arm", "variant", "seeds", title(primary), "ratio to baseline", "p (Holm)",
            "verdict", *map(title, others)]  # fmt: skip
    rows: list[list[Cell | str]] = []
    for arm in read.arms(case):
        won = finding.winner(read, compared, case, arm)
        for variant in read.variants(case, arm):
            style = "best" if variant == won else ""
            mine = results.chosen(table, case, arm, variant).to_dict("records")
            found = {row["metric"]: row for row in mine}
            first = found[primary]
            lost = f" (+{first['missing']} missing)" if first["missing"] else ""
            row: list[Cell | str] = [arm, Cell(variant, style), f"{first['n']}{lost}"]
            row += [_cell(first, style), *_versus(compared.to_baseline(case, arm, variant))]
            rows.append([*row, *(_cell(found[name]) for name in others)])
    floors = read.facts.get(case, {}).get("floors", {})
    if floors:
        texts = ["", "real data: floor", "", _floor(floors.get(primary)), "", "", ""]
        texts += [_floor(floors.get(name)) for name in others]
        rows.append([Cell(text, "quiet") for text in texts])
    return table_of(head, rows)


def _cell(row: dict[Any, Any], style: str = "") -> Cell:
    if row["diverged"]:
        return Cell(f"diverged in {row['diverged']} of {row['n']}", "bad")
    return Cell(between(row["value"], row["low"], row["high"]), style)


def _floor(floor: dict[str, float | None] | None) -> str:
    if not floor or floor.get("mean") is None:
        return "–"
    return f"{number(floor['mean'])} ± {number(floor.get('sd'))}"


def _versus(one: Versus | None) -> list[Cell | str]:
    """Ratio with interval, corrected p, verdict."""
    if one is None:
        return [Cell("1", "quiet"), "", Cell("baseline", "quiet")]
    c = one.comparison
    if c is None or c.diverged:
        return ["–", "–", Cell(one.verdict, "quiet" if c is None else "bad")]
    style = {"better": "good", "worse": "bad"}.get(one.verdict, "quiet")
    return [between(c.ratio, c.low, c.high), probability(c.p_holm), Cell(one.verdict, style)]


def _arms(compared: Comparisons, case: str) -> Table | None:
    """Every variant in a later arm over itself in the first."""
    members = [one for one in compared.arms if one.case == case]
    rows = [[one.variant, f"{one.arm} / {one.against_arm}", *_versus(one)] for one in members]
    return table_of(["variant", "arms", "ratio", "p (Holm)", "verdict"], rows) if rows else None


def _decades(read: Results, table: pd.DataFrame, case: str) -> Table:
    """A row per variant: the target's decades, then the output's in every arm."""
    here = table[table["case"] == case]
    rows: list[list[Cell | str]] = []
    for variant in read.variants(case):
        mine = here[here["variant"] == variant]
        spans = [mine["target"].iloc[0], *(mine.loc[mine["arm"] == arm, "output"].max()
                                           for arm in read.arms(case))]  # fmt: skip
        rows.append([variant, *map(_decimals, spans)])
    outputs = [f"output, {arm}" if arm else "output" for arm in read.arms(case)]
    return table_of(["variant", "target", *outputs], rows)


def _decimals(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _gallery(read: Results, table: pd.DataFrame, case: str) -> list[Picture]:
    """Samples, with the first distance that the case has under each panel."""
    names = read.metric_names(case)
    distance = next((name for name in ("energy", "mmd") if name in names), None)
    found = table[(table["case"] == case) & (table["metric"] == distance)]
    means = {(row["arm"], row["variant"]): number(row["value"]) for row in found.to_dict("records")}
    picture = gallery(read, case, means)
    if picture is None or distance is None:
        return [picture] if picture else []
    floor = _floor(read.facts.get(case, {}).get("floors", {}).get(distance))
    under = f" Below each panel: {title(distance)}, mean over seeds; real data: {floor}."
    return [replace(picture, caption=picture.caption + under)]


def _laws(table: pd.DataFrame) -> Table | None:
    head = ["law", "subject", "dtype", "checks", "worst error", "its bound", "error / bound", ""]
    rows: list[list[Cell | str]] = []
    for row in table.to_dict("records"):
        state = "holds" if row["passed"] else f"FAILED at {row['failed']} of {row['levels']}"
        if row["reason"]:
            state = f"not checked: {row['reason']}"
        texts = [row["law"], row["subject"], row["dtype"], str(row["levels"])]
        texts += [*(number(row[name]) for name in ("error", "bound", "ratio")), state]
        rows.append([Cell(text, "" if row["passed"] else "bad") for text in texts])
    return table_of(head, rows) if rows else None


def _learning(read: Results, table: pd.DataFrame, case: str) -> Table:
    """Error of the predicted noise at a handful of levels."""
    found = table[table["case"] == case]
    every = np.unique(found["sigma"].to_numpy(dtype=float))
    picked = every[np.unique(np.linspace(0, len(every) - 1, FEW).round().astype(int))].tolist()
    rows: list[list[Cell | str]] = []
    for arm in read.arms(case):
        for variant in read.variants(case, arm):
            here = results.chosen(found, case, arm, variant)
            cells = {
                row["sigma"]: between(row["eps_rms"], row["low"], row["high"])
                for row in here.to_dict("records")
            }
            rows.append([arm, variant, *(cells.get(sigma, "–") for sigma in picked)])
    return table_of(["arm", "variant", *(f"σ = {sigma:.3g}" for sigma in picked)], rows)
