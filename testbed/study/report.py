"""The report of a study: one HTML page, tables and figures, from the study's folder alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from testbed.metrics.statistics import Interval
from testbed.study import comparisons, figures, finding, results, summaries
from testbed.study.comparisons import Comparisons, Versus
from testbed.study.drawing import Picture, styled
from testbed.study.finding import between, number, probability
from testbed.study.galleries import gallery
from testbed.study.results import Results

FEW = 6


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell with a class of the style sheet: "good", "bad", "best", "quiet"."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page; cells are text or `Cell`."""

    head: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass
class CaseView:
    """What the page shows of one case."""

    name: str
    primary: str
    table: Table
    arms: Table | None
    pictures: list[Picture] = field(default_factory=list)
    decades: Table | None = None


def write(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Builds report.html, tables/ and figures/ in a study's folder, from what lies there.

    Trials that failed, diverged or have not run are shown as such. The same folder gives the same
    bytes.

    Args:
        folder: the study's.
        say: given one line for each phase.

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
    (folder / "tables").mkdir(exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
        table.to_parquet(folder / "tables" / f"{name}.parquet", index=False)
    say("drawing")
    views = [_case(read, compared, tables, case) for case in read.cases]
    (folder / "figures").mkdir(exist_ok=True)
    for view in views:
        for picture in view.pictures:
            (folder / "figures" / f"{picture.name}.svg").write_text(picture.svg)
    page = folder / "report.html"
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
    study = read.study
    return environment.get_template("report.html.j2").render(
        title=study.get("title") or study.get("name") or "Study",
        name=study.get("name", ""),
        note=study.get("note", ""),
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
        twins=study.get("twins"),
        failures=summaries.failures(read),
        plugin_failures=study.get("failures") or [],
        missing=read.missing,
        provenance=summaries.provenance(read),
        machine=summaries.machine(read),
        file=study.get("file", ""),
        example=str(read.trials["id"].iloc[0]),
    )


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
    meaning = finding.METRICS.get(primary, ("", "a metric of a plugin"))[1]
    return CaseView(
        name=case or "all data",
        primary=f"{finding.title(primary)}: {meaning}.",
        table=_results(read, compared, tables["results"], case),
        arms=_arms(compared, case),
        pictures=pictures,
        decades=_decades(tables["decades"], case),
    )


def _results(read: Results, compared: Comparisons, table: pd.DataFrame, case: str) -> Table:
    """A row for every variant and arm: primary metric, comparison, the other metrics, the floor."""
    names = read.metric_names(case)
    head = ["arm", "variant", "seeds", finding.title(names[0]), "ratio to baseline", "p (Holm)",
            "verdict", *map(finding.title, names[1:])]  # fmt: skip
    here = table[table["case"] == case].set_index(["arm", "variant", "metric"])
    rows: list[list[Any]] = []
    for arm in read.arms(case):
        won = finding.winner(read, compared, case, arm)
        for variant in read.variants(case, arm):
            first = here.loc[(arm, variant, names[0])]
            seeds = f"{first['n']}" + (
                f" (+{first['missing']} missing)" if first["missing"] else ""
            )
            style = "best" if variant == won else ""
            row = [arm, Cell(variant, style), seeds, _cell(first, style)]
            row += _versus(compared.to_baseline(case, arm, variant))
            row += [_cell(here.loc[(arm, variant, name)]) for name in names[1:]]
            rows.append(row)
    floors = read.facts.get(case, {}).get("floors", {})
    if floors:
        floor = [Cell(_floor(floors.get(name)), "quiet") for name in names[1:]]
        empty: list[Any] = [Cell("", "quiet")] * 4
        rows.append(
            [Cell("", "quiet"), Cell("real data", "quiet"), *empty, Cell("floor", "quiet"), *floor]
        )
        rows[-1][3] = Cell(_floor(floors.get(names[0])), "quiet")
    return Table(head, rows)


def _cell(row: pd.Series[Any], style: str = "") -> Cell:
    if row["diverged"]:
        return Cell(f"diverged in {row['diverged']} of {row['n']}", "bad")
    return Cell(between(row["value"], row["low"], row["high"]), style)


def _floor(floor: dict[str, float | None] | None) -> str:
    if not floor or floor.get("mean") is None:
        return "–"
    return f"{number(floor['mean'])} ± {number(floor.get('sd'))}"


def _versus(one: Versus | None) -> list[Any]:
    """Ratio with interval, corrected p, verdict."""
    if one is None:
        return [Cell("1", "quiet"), Cell("", "quiet"), Cell("baseline", "quiet")]
    c = one.comparison
    if c is None or c.diverged:
        return ["–", "–", Cell(one.verdict, "bad" if c is not None else "quiet")]
    style = {"better": "good", "worse": "bad"}.get(one.verdict, "quiet")
    return [between(c.ratio, c.low, c.high), probability(c.p_holm), Cell(one.verdict, style)]


def _arms(compared: Comparisons, case: str) -> Table | None:
    """Every variant in a later arm over itself in the first."""
    members = [one for one in compared.arms if one.case == case]
    if not members:
        return None
    rows = [[one.variant, f"{one.arm} / {one.against_arm}", *_versus(one)] for one in members]
    return Table(["variant", "arms", "ratio", "p (Holm)", "verdict"], rows)


def _decades(table: pd.DataFrame, case: str) -> Table | None:
    found = table[table["case"] == case]
    if found.empty:
        return None
    rows = [[r.arm, r.variant, number(r.target), number(r.output)] for r in found.itertuples()]
    return Table(["arm", "variant", "target (exact)", "output (trained)"], rows)


def _gallery(read: Results, table: pd.DataFrame, case: str) -> list[Picture]:
    """Samples, with the first distance that the case has under each panel."""
    names = read.metric_names(case)
    distance = next((n for n in ("energy", "mmd") if n in names), None)
    found = table[(table["case"] == case) & (table["metric"] == distance)]
    means = {(r.arm, r.variant): Interval(r.value, r.low, r.high) for r in found.itertuples()}
    picture = gallery(read, case, means)
    if picture is None:
        return []
    caption = (
        "Samples of the first seed that finished, from one and the same noise. Look for shapes that "
        "the real data have and samples lack, and for noise that was left in. Images: values cut to "
        "the real data’s range. Vectors: the first two principal axes of the real data."
    )
    if distance:
        floor = _floor(read.facts.get(case, {}).get("floors", {}).get(distance))
        caption += f" Under each panel: {finding.title(distance)}, mean over seeds; real against real {floor}."
    return [Picture(picture.name, picture.svg, caption)]


def _laws(table: pd.DataFrame) -> Table | None:
    if table.empty:
        return None
    rows = []
    for r in table.itertuples():
        style = "" if r.passed else "bad"
        state = "holds" if r.passed else f"FAILED at {r.failed} of {r.levels}"
        if r.reason:
            state = f"not checked: {r.reason}"
        rows.append(
            [Cell(str(text), style) for text in
             (r.law, r.subject, r.dtype, r.levels, number(r.error), number(r.bound),
              number(r.ratio), state)]
        )  # fmt: skip
    head = ["law", "subject", "dtype", "checks", "worst error", "its bound", "error / bound", ""]
    return Table(head, rows)


def _learning(read: Results, table: pd.DataFrame, case: str) -> Table:
    """Relative error of the predicted noise at a handful of levels."""
    found = table[table["case"] == case]
    sigmas: Sequence[float] = np.unique(found["sigma"]).tolist()
    picked = [
        sigmas[i] for i in np.unique(np.linspace(0, len(sigmas) - 1, FEW).round().astype(int))
    ]
    rows: list[list[Any]] = []
    for arm in read.arms(case):
        for variant in read.variants(case, arm):
            here = results.chosen(found, case, arm, variant).set_index("sigma")
            cells = [
                between(*here.loc[s, ["eps_rms", "low", "high"]]) if s in here.index else "–"
                for s in picked
            ]
            rows.append([arm, variant, *cells])
    return Table(["arm", "variant", *(f"σ = {number(s)}" for s in picked)], rows)


def finite(value: float) -> bool:
    """Whether a number can be shown as one."""
    return math.isfinite(value)
