"""What the first screen says of each variant against its baseline: one claim, a row or a sentence.

Each claim is made again without every variant, every seed and every band of noise levels, and says
what it hangs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from testbed.report.comparisons import LESS, MOST_PAIRED, Versus
from testbed.report.page_tables import Cell, PageTable
from testbed.report.robustness import LeaveOneOut, lowest
from testbed.report.standing import Standing, hanging
from testbed.report.words import capital, listed, per_cent

HEAD = ("variant", "effect", "verdict", "hangs on", "levels")
SAID = {
    "better": "is better than {}",
    "equivalent": "is equivalent to {}",
    "undecided": "is undecided against {}",
    LESS: "differs from {} by less than matters, and is not shown to be equivalent",
    "too few seeds": "is untested against {}, on too few seeds",
    "worse": "is worse than {}",
}
"""What is said of a variant with each verdict; the baseline stands in the place of the braces."""


@dataclass(frozen=True)
class Claim:
    """What is said of a variant against the baseline.

    Args:
        variant: its name.
        against: the baseline's.
        verdict: one of SAID, or why there is none.
        effect: in per cent, with its interval; empty without a verdict.
        hangs_on: the variants, seeds and bands of noise levels that it hangs on.
        levels: how many levels it is over; empty where these are all.
    """

    variant: str
    against: str
    verdict: str
    effect: str = ""
    hangs_on: str = ""
    levels: str = ""

    @property
    def cells(self) -> list[Cell]:
        """A row under HEAD."""
        style = {"better": "good", "worse": "bad"}.get(self.verdict, "quiet")
        verdict = Cell(self.verdict.removeprefix(f"{self.variant} "), style)
        levels = self.levels or ("all" if self.effect else "–")
        texts = (self.variant, self.effect or "–", self.hangs_on or "–", levels)
        name, effect, *others = map(Cell, texts)
        return [name, effect, verdict, *others]

    @property
    def sentence(self) -> str:
        """`v is better than edm (−12 % [−15, −8]; hangs on seed 2).`"""
        if self.verdict not in SAID:
            return f"No verdict on {self.variant}: {self.verdict}."
        parts = [self.effect]
        parts += [f"over the {self.levels}, that both were trained on"] if self.levels else []
        parts += [f"hangs on {self.hangs_on}"] if self.hangs_on else []
        return f"{self.variant} {SAID[self.verdict].format(self.against)} ({'; '.join(parts)})."


@dataclass(frozen=True)
class ArmClaims:
    """What is said of the variants of an arm.

    Args:
        best: a sentence on which one is best.
        claims: those on each variant but the baseline, the best first.
    """

    best: str
    claims: list[Claim] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it as a paragraph."""
        return " ".join([self.best, *(one.sentence for one in self.claims)])


def make(left: LeaveOneOut, place: Standing) -> ArmClaims:
    """Returns what is said of a case and arm."""
    where = f"in “{place.arm}”, " if place.arm else ""
    if not place.versus:
        return ArmClaims(capital(f"{where}only {place.baseline} was run: nothing is compared."))
    ranks = {name: number for number, name in enumerate(place.ranked)}
    order = sorted(place.versus, key=lambda one: ranks.get(one.variant, len(ranks)))
    best = capital(f"{where}with {place.baseline} as the baseline, {_best(left, place)}.")
    return ArmClaims(best, [_claim(left, one) for one in order])


def table(arms: Sequence[ArmClaims]) -> PageTable:
    """Returns the claims of a case: above those of each arm a row of one cell, on the best."""
    rows: list[list[Cell]] = []
    number = _columns(arms)
    for arm in arms:
        rows.append([Cell(arm.best, "best")])
        rows += [one.cells[:number] for one in arm.claims]
    return PageTable([*HEAD[:number]], rows)


def markdown(arms: Sequence[ArmClaims]) -> list[str]:
    """Returns the same as paragraphs of Markdown, with a table for each arm."""
    number = _columns(arms)
    paragraphs: list[str] = []
    for arm in arms:
        rows = [[cell.text for cell in one.cells[:number]] for one in arm.claims]
        lines = [HEAD[:number], ["---"] * number, *rows]
        written = "\n".join(f"| {' | '.join(_escaped(line))} |" for line in lines)
        paragraphs += [arm.best, *[written] * bool(rows)]
    return paragraphs


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def _columns(arms: Sequence[ArmClaims]) -> int:
    """How many columns there are: the last, the levels, only where some claim is not over all."""
    return len(HEAD) - (not any(one.levels for arm in arms for one in arm.claims))


def _claim(left: LeaveOneOut, one: Versus) -> Claim:
    c = one.comparison
    if one.reason or c is None:
        return Claim(one.variant, one.against, one.reason)
    levels = one.levels.text if one.levels is not None and not one.levels.whole else ""
    effect = per_cent(c.ratio, c.low, c.high)
    return Claim(one.variant, one.against, one.said, effect, listed(hanging(left, one)), levels)


def _best(left: LeaveOneOut, place: Standing) -> str:
    """Which variant has the lowest metric, and how it stands to the others."""
    if len(place.ranked) < 2:
        return "no variant has a verdict"
    best = place.ranked[0]
    stated = partial(lowest, place.versus, place.baseline, place.ranked)
    found = left.hangs_on(stated(), stated)
    hangs = f" (this hangs on {listed(found)})" if found else ""
    if place.winner:
        rest = " with a verdict" if any(one.reason for one in place.versus) else ""
        others = f"every other{rest}" if len(place.beside) > 1 else "".join(place.beside)
        return f"{best} is lowest{hangs}, and better than {others}"
    close, alike, apart = (
        [name for name, own in place.beside.items() if own == said]
        for said in (LESS, "equivalent", "")
    )
    parts = [f"better than {listed(close)} by {LESS}"] if close else []
    parts += [f"equivalent to {listed(alike)}"] if alike else []
    if apart:
        many = len(place.versus) > MOST_PAIRED and best != place.baseline
        others = "the others, which were not compared with it" if many else listed(apart)
        parts.append(f"not shown to be better than {others}")
    return f"{best} is lowest{hangs}, and {listed(parts)}"
