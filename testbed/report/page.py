"""The report of a study: one HTML page, tables and figures, from the study's folder alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from testbed.metrics.paired_tests import ALPHA
from testbed.notebook import Cell
from testbed.report import (
    claims,
    comparisons,
    contents,
    effects,
    equal_objectives,
    figures,
    finding,
    fixed_models,
    image_pictures,
    length_section,
    lengths,
    ranges,
    result_tables,
    sample_metrics,
    seeds,
    spaces,
    summaries,
    tables,
)
from testbed.report.claims import Finding
from testbed.report.comparisons import Comparisons, baseline_of
from testbed.report.drawing import Picture, styled
from testbed.report.galleries import gallery
from testbed.report.page_tables import PageTable, page_table
from testbed.report.reading import read
from testbed.report.results import Results, Rows
from testbed.report.words import (
    BELOW_ONE,
    between,
    floor,
    number,
    portion,
    title,
)
from testbed.study import looks
from testbed.trial.study_folder import StudyFolder

FEW = 6
"""Noise levels shown in the table of learning."""


@dataclass
class CaseView:
    """The part of the page that is about one case."""

    name: str
    primary: str
    table: PageTable
    arms: PageTable | None
    others: list[tuple[str, PageTable]] = field(default_factory=list)
    effects: list[Picture] = field(default_factory=list)
    bands: PageTable | None = None
    pictures: list[Picture] = field(default_factory=list)
    decades: PageTable | None = None
    lengths: list[Picture] = field(default_factory=list)

    @property
    def every_picture(self) -> list[Picture]:
        """All figures of the case, in the order of the page."""
        return [*self.effects, *self.pictures, *self.lengths]


def write(
    folder: Path, say: Callable[[str], None] = lambda line: None, out: Path | None = None
) -> Path:
    """Builds report.html, tables/ and figures/ from what lies in a study's folder.

    Trials that failed, diverged or have not run are shown as such. The same folder gives the same
    bytes. That results were looked at is written into the study's folder before the page is.

    Args:
        folder: The study's folder.
        say: It is called with a line for each phase.
        out: The folder to write to; the study's own by default.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder holds no study.
        OSError: A folder cannot be written to.
    """
    say("reading the trials")
    results = read(folder)
    looks.record(StudyFolder.at(folder), results.ended)
    say("comparing over seeds")
    compared = comparisons.make(results)
    made = tables.make(results, compared)
    out = out or folder
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for name, table in made.items():
        table.to_csv(out / "tables" / f"{name}.csv", index=False)
        table.to_parquet(out / "tables" / f"{name}.parquet", index=False)
    findings = finding.make(results, compared)
    claims.write(findings, out / "tables")
    say("drawing")
    views = [case_view(results, compared, made, case) for case in results.cases]
    with styled():
        of_spaces = spaces.parts(results)
    pictures = [one for view in views for one in view.every_picture]
    pictures += [one.picture for one in of_spaces if one.picture is not None]
    (out / "figures").mkdir(exist_ok=True)
    for picture in pictures:
        (out / "figures" / f"{picture.name}.svg").write_text(picture.svg)
    page = out / "report.html"
    html = contents.numbered(_page(results, compared, made, views, findings, of_spaces))
    page.write_text(html, encoding="utf-8")
    return page


def _page(
    results: Results,
    compared: Comparisons,
    made: dict[str, pd.DataFrame],
    views: list[CaseView],
    findings: list[Finding],
    of_spaces: list[spaces.SpacesPart],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    study, extent = results.study, summaries.extent(results)
    title = study.get("title") or study.get("name") or "Study"
    if extent and "study.title" not in summaries.changed(results):
        title = f"{title} ({extent})"
    return environment.get_template("report.html.j2").render(
        title=title,
        name=study.get("name", ""),
        note=study.get("note", ""),
        extent="" if "study.note" in summaries.changed(results) else extent,
        findings=findings,
        notes=finding.notes(results, compared),
        look=seeds.sentence(results.look),
        intervals=seeds.INTERVALS[results.look.design],
        tests={**compared.tests, "sample": sample_metrics.tests(sample_metrics.make(results))},
        fewest=ranges.FEWEST_DRAWS,
        varies=portion(ranges.FEWEST_DRAWS**-0.5),
        alpha=f"{ALPHA:g}",
        smallest=finding.smallest(results),
        level=f"{results.level:.0%}",
        chance=f"{1 - results.level:.2g}",
        setup=summaries.setup(results),
        data_notes=results.data_notes(),
        recipes=page_table(
            ["arm", "variants", *summaries.RECIPE_COLUMNS], summaries.recipes(results)
        ),
        views=views,
        spaces=of_spaces,
        lengths=length_section.of_cases(results, lengths.make(results, compared)),
        fixed=fixed_models.parts(results),
        laws=_laws(made["tweedie"]),
        learning=[
            (case, _learning(results, made["learning"], case))
            for case in results.cases
            if (made["learning"]["case"] == case).any()
        ],
        equal_objectives=_equal_objectives(results),
        failures=summaries.failures(results),
        plugin_failures=study.get("failures") or [],
        missing=results.missing,
        provenance=summaries.provenance(results),
        machine=summaries.machine(results),
        file=study.get("file", ""),
        command=summaries.command(results),
        overrides=summaries.overrides(results),
        example=str(results.trials["id"].iloc[0]),
    )


def _equal_objectives(results: Results) -> list[tuple[str, str]] | None:
    """(case and arm, sentence) of every group; None where equal objectives were not looked for."""
    groups = results.study.get("equal_objectives")
    return groups and [
        (
            ", ".join(filter(None, (group["case"], group["arm"]))),
            equal_objectives.sentence(results, group),
        )
        for group in groups
    ]


def case_view(
    results: Results,
    compared: Comparisons,
    made: dict[str, pd.DataFrame],
    case: str,
    column: float | None = None,
) -> CaseView:
    """Returns the part of the page that is about one case.

    Args:
        results: What was read of the study.
        compared: Its comparisons.
        made: Its tables.
        case: The case's name.
        column: The width of every figure in inches, for a paper; None for the page.
    """
    with styled(column):
        first = effects.pictures(results, compared, case)
        pictures = list(figures.of_case(results, case))
        pictures += _gallery(results, made["results"], case)
        pictures += image_pictures.of_case(results, case)
        over_steps = length_section.pictures(results, case)
    primary = results.primary(case)
    return CaseView(
        name=case or "all data",
        primary=f"{title(primary)}."
        + (f" {BELOW_ONE[results.sound(case)]}" if primary == "loss_vs_wiener" else ""),
        table=result_tables.primary(results, compared, made["results"], case),
        others=list(result_tables.others(results, made["results"], case)),
        arms=_arms(compared, case),
        effects=first,
        bands=_bands(results, compared, case),
        pictures=pictures,
        decades=_decades(results, made["decades"], case),
        lengths=over_steps,
    )


def _bands(results: Results, compared: Comparisons, case: str) -> PageTable | None:
    """A row per variant and arm: of each band the share of the metric, the effect and verdict."""
    bands, metric = ranges.bands(results), results.primary(case)
    rows: list[list[Cell | str]] = []
    for arm in results.arms(case):
        for variant in results.variants(case, arm):
            label = (case, arm, variant)
            levels = ranges.common(results, label, (case, arm, baseline_of(results, case, arm)))
            if levels is None or not len(levels.levels):
                continue
            if not ranges.of_levels(results, label, metric):
                continue
            cells: list[Cell | str] = [arm, variant]
            for band in bands:
                share = portion(ranges.share(results, label, metric, levels, band))
                one = compared.to_baseline(case, arm, variant, band.name)
                effect, _, verdict = result_tables.versus(one)
                said = f": {effect.text}, {one.short}" if one else ""
                cells.append(Cell(f"{share}{said}", verdict.style))
            rows.append(cells)
    return page_table(["arm", "variant", *(band.title for band in bands)], rows) if rows else None


def _arms(compared: Comparisons, case: str) -> PageTable | None:
    """A row for every variant in a later arm over itself in the first; None for no such row."""
    members = compared.between_arms(case)
    rows: list[list[Cell | str]] = [
        [one.variant, f"{one.arm} / {one.against_arm}", *result_tables.versus(one)]
        for one in members
    ]
    return page_table(["variant", "arms", "effect", "p (Holm)", "verdict"], rows) if rows else None


def _decades(results: Results, table: pd.DataFrame, case: str) -> PageTable:
    """A row per variant: the decades of target and output by arm, of equal targets once."""
    here = table[table["case"] == case]
    arms, variants = results.arms(case), results.variants(case)
    columns: dict[str, list[str]] = {}
    for quantity in ("target", "output"):
        spans = here.pivot_table(quantity, "variant", "arm", "first", dropna=False)
        texts = {
            arm: ["–" if math.isnan(span) else f"{span:.2f}" for span in own]
            for arm, own in spans.reindex(index=variants, columns=arms).items()
        }
        if quantity == "target":
            found = [{*row} - {"–"} for row in zip(*texts.values(), strict=True)]
            if all(len(row) < 2 for row in found):
                texts = {"": ["".join(row) or "–" for row in found]}
        columns |= {f"{quantity}, {arm}".removesuffix(", "): own for arm, own in texts.items()}
    return page_table(["variant", *columns], zip(variants, *columns.values(), strict=True))


def _gallery(results: Results, table: pd.DataFrame, case: str) -> list[Picture]:
    """The picture of the samples, each with its distance to real data where the case has one."""
    names = results.metric_names(case)
    distance = next((name for name in ("energy", "mmd") if name in names), None)
    records = table[(table["case"] == case) & (table["metric"] == distance)].to_dict("records")
    means = {(row["arm"], row["variant"]): number(row["value"]) for row in records}
    picture = gallery(results, case, means)
    if picture is None or distance is None:
        return [picture] if picture else []
    real = floor(results.facts.get(case, {}).get("floors", {}).get(distance))
    under = f" Below each panel: {title(distance)}, mean over seeds; real data: {real}."
    return [replace(picture, caption=picture.caption + under)]


def _laws(table: pd.DataFrame) -> PageTable | None:
    head = ["law", "subject", "dtype", "checks", "worst error", "its bound", "error / bound", ""]
    rows: list[list[Cell | str]] = []
    for row in table.to_dict("records"):
        state = "holds" if row["passed"] else f"FAILED at {row['failed']} of {row['levels']}"
        if row["reason"]:
            state = f"not checked: {row['reason']}"
        texts = [row["law"], row["subject"], row["dtype"], str(row["levels"])]
        texts += [*(number(row[name]) for name in ("error", "bound", "ratio")), state]
        rows.append([Cell(text, "" if row["passed"] else "bad") for text in texts])
    return page_table(head, rows) if rows else None


def _learning(results: Results, table: pd.DataFrame, case: str) -> PageTable:
    """A row per variant and arm: the error of the predicted noise at a few noise levels."""
    here = table[table["case"] == case]
    of_label = Rows(here)
    every = np.unique(here["sigma"].to_numpy(dtype=float))
    sigmas = every[np.unique(np.linspace(0, len(every) - 1, FEW).round().astype(int))].tolist()
    rows: list[list[Cell | str]] = []
    for arm in results.arms(case):
        for variant in results.variants(case, arm):
            trained = ranges.inside(results, (case, arm, variant), every)
            cells = {
                row["sigma"]: between(row["eps_rms"], row["low"], row["high"])
                for row in of_label[case, arm, variant].to_dict("records")
            }
            untrained = every[~trained].tolist()
            cells |= {at: f"{cells[at]} †" for at in untrained if at in cells}
            rows.append([arm, variant, *(cells.get(sigma, "–") for sigma in sigmas)])
    return page_table(["arm", "variant", *(f"σ = {sigma:.3g}" for sigma in sigmas)], rows)
