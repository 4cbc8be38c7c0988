"""The section of the report on the length of training and of averages: words, tables, figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from testbed.metrics.crossings import CUBIC, Crossing, Crossings
from testbed.notebook import Cell
from testbed.report import lengths
from testbed.report.comparisons import Versus
from testbed.report.drawing import Band, Picture, band, by_arm
from testbed.report.lengths import BEST, KINDS, OWN, Averages, Curves, Kind, Lengths
from testbed.report.page_tables import PageTable, page_table
from testbed.report.results import Results, Rows
from testbed.report.words import between, effect_text, listed, number, title

TITLES: dict[Kind, str] = {
    "points": "At points of training",
    "budgets": "Trained at each budget on its own",
}
WITHIN = "Within one training, not budgets"
"""The title of the points where the learning rate depends on how long the training is."""


@dataclass(frozen=True)
class LengthPart:
    """A part of the section: its title, a text, a table, and a sentence for each pair."""

    title: str
    text: str
    table: PageTable
    sentences: list[str]


def parts(results: Results, found: Lengths, case: str) -> list[LengthPart]:
    """Returns the parts of the section on a case; none where it has no lengths."""
    made = []
    for kind in KINDS:
        if curves := [one for one in found.curves if (one.kind, one.case) == (kind, case)]:
            made.append(_of_curves(results, kind, curves))
    if averages := [one for one in found.averages if one.main.case == case]:
        made.append(_of_averages(averages, found))
    return made


def of_cases(results: Results, found: Lengths) -> dict[str, list[LengthPart]]:
    """Returns the parts of each case that has lengths, by the name of the case on the page."""
    made = {case or "all data": parts(results, found, case) for case in results.cases}
    return {name: own for name, own in made.items() if own}


def pictures(results: Results, case: str) -> list[Picture]:
    """Draws the primary metric over the steps of training, one figure for each kind of curve."""
    made = []
    metric = results.primary(case)
    for kind in KINDS:
        stages = lengths.stages_of(results, kind)
        stages = {at: found for at, found in stages.items() if case in found.cases}
        if len(stages) < 2:  # another case of the study has points or budgets
            continue

        measured = pd.concat([found.metrics.assign(step=at) for at, found in stages.items()])
        of_label = Rows(measured[measured["metric"] == metric])

        def line(arm: str, variant: str, of_label: Rows = of_label) -> Band:
            table = of_label[case, arm, variant]
            return band(table, "step", "value", results.level) if len(table) else table

        note = (
            f"Lines: geometric mean over seeds; bands: {results.level:.0%} t interval; a line has "
            "no point where a trial diverged."
        )
        picture = by_arm(
            results, case, kind, line, title(metric), note, xlabel="steps of training", keep="low"
        )
        made += [picture] if picture else []
    return made


def _of_curves(results: Results, kind: Kind, curves: list[Curves]) -> LengthPart:
    within = kind == "points" and lengths.decays(results, curves[0].case)
    steps = sorted({step for one in curves for step in one.effects})
    rows: list[list[Cell | str]] = []
    for one in curves:
        effects = (_effect(one.effects.get(step)) for step in steps)
        rows.append([one.arm, one.variant, *effects])
    text = (
        "The learning rate at a step depends on how long the training is: a point is a stage of "
        "one training, and a training that ends there would be another one. "
        if within
        else ""
    )
    text += "Effects against the baseline after each number of steps, with intervals and no test."
    head = ["arm", "variant", *(f"{step} steps" for step in steps)]
    return LengthPart(
        WITHIN if within else TITLES[kind],
        text,
        page_table(head, rows),
        list(map(sentence, curves)),
    )


def sentence(one: Curves) -> str:
    """Returns where two curves cross, in words."""
    arm = f" ({one.arm})" if one.arm else ""
    names = f"{one.variant} and {one.against}{arm}"
    if one.found is None:
        return f"{names}: {one.reason}."
    return f"{names} {_verdict(one, one.found)}."


def _verdict(one: Curves, found: Crossings) -> str:
    names = {True: one.variant, False: one.against}
    if found.verdict == "cross":
        texts = [_crossing(at, len(found.steps) >= CUBIC, names) for at in found.crossings]
        return f"cross {', and '.join(texts)}"
    if found.verdict == "do not cross":
        whole = _steps(found.steps[0], found.steps[-1])
        return f"do not cross between {whole}: {names[bool(found.a_leads)]} is ahead"
    if found.verdict == "diverged":
        counts = {one.variant: found.diverged_a, one.against: found.diverged_b}
        said = [f"{name} diverged in {count}" for name, count in counts.items() if count]
        return f"are undecided: {listed(said)} of {found.seeds} seeds"
    if found.open is None:
        return f"are undecided: {found.verdict} ({found.seeds} seeds, {len(found.steps)} in common)"
    steps = _steps(*found.open)
    if found.open == (found.steps[0], found.steps[-1]):
        return f"are undecided between {steps}"
    return f"are undecided: if they cross once, then between {steps}"


def _crossing(at: Crossing, smooth: bool, names: dict[bool, str]) -> str:
    after = f"{names[at.a_leads]} is ahead afterwards"
    if not smooth:
        return f"between {_steps(at.low, at.high)}: {after}"
    measured = f"measured between {_steps(at.after, at.before)}"
    return f"at {between(at.step, at.low, at.high)} steps ({measured}): {after}"


def _steps(low: float, high: float) -> str:
    first, last = (f"{x:.0f}" if x == round(x) else number(x) for x in (low, high))
    return f"{first} and {last} steps"


def _effect(one: Versus | None) -> Cell:
    """The cell of an effect that is not judged."""
    c = one.comparison if one else None
    if one is None or c is None:
        return Cell("–" if one is None else one.verdict, "quiet")
    return Cell(one.verdict, "bad") if c.diverged else Cell(effect_text(c.ratio, c.low, c.high))


def _of_averages(averages: list[Averages], found: Lengths) -> LengthPart:
    names = list(dict.fromkeys(name for one in averages for name in one.at if name != BEST))
    rows: list[list[Cell | str]] = []
    for one in averages:
        cells = (_judged(versus) for versus in (one.main, *map(one.at.get, (*names, BEST))))
        rows.append([one.main.arm, one.main.variant, *cells])
    tests = sum(v.comparison is not None for one in found.averages for v in one.at.values())
    text = (
        "Effect against the baseline and verdict, with the average that training names (that of "
        "the first screen) and with power-function averages of other widths, the same for both; "
        "last each side at its best length. That of a seed is chosen by the other seeds, which "
        "removes the optimism of choosing the best of several. All of them but the first column "
        f"are a family of {tests} tests of their own, corrected by Holm’s method; its intervals "
        "are not corrected."
    )
    head = ["arm", "variant", "training’s", *names, "each at its best"]
    return LengthPart(
        "Averages of other lengths", text, page_table(head, rows), list(_best(averages))
    )


def _best(averages: list[Averages]) -> Iterator[str]:
    """A sentence for each variant that has a best length."""
    said: dict[tuple[str, str], str] = {}
    for one in averages:
        for variant, length in one.best.items():
            said.setdefault((one.main.arm, variant), length)
    for (arm, variant), length in said.items():
        where = f" ({arm})" if arm else ""
        what = "training’s own average" if length == OWN else f"the average of width {length}"
        yield f"Over all seeds {variant}{where} is best with {what}."


def _judged(one: Versus | None) -> Cell:
    """The cell of an effect with its verdict."""
    if one is None:
        return Cell("–", "quiet")
    c = one.comparison
    if c is None or c.diverged or one.reason:
        return Cell(one.verdict, "quiet")
    style = {"better": "good", "worse": "bad"}.get(one.verdict, "quiet")
    return Cell(f"{effect_text(c.ratio, c.low, c.high)}: {one.verdict}", style)
