"""What a report says first, as data: the finding of each case, and its claims on the variants.

`finding.make` makes it of a study's comparisons. The report's page, the terminal and a notebook
show it, and `tables/finding.json` holds it for what does not compare anew.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from testbed.notebook import Cell
from testbed.report.page_tables import PageTable
from testbed.report.words import LESS, effect_text, listed

FILE = "finding.json"
"""The file of a report's folder `tables` with its findings."""
HEAD = ("variant", "effect", "verdict", "hangs on", "other σ")
SAID = {
    "better": "is better than {}",
    "equivalent": "is equivalent to {}",
    "undecided": "is undecided against {}",
    LESS: "differs from {} by less than matters, and is not shown to be equivalent",
    "too few seeds": "is untested against {}, on too few seeds",
    "worse": "is worse than {}",
}
"""What is said of a variant with each verdict; the baseline stands in the place of the braces."""
BEYOND = re.compile(r"(?<=learnt nothing) beyond ([^;]*)")
"""In the reason why there is no verdict: what it is that a variant learnt nothing beyond."""
COUNTED = {LESS: "different by less than matters", "too few seeds": "untested"}
"""What a verdict is called where verdicts are counted, if not by its own name."""
MOST_COUNTED = 4
"""How many variants, or groups of them with the same verdicts, are counted at most."""


@dataclass(frozen=True)
class Effect:
    """The ratio of a variant's metric to the baseline's, with its interval where there is one."""

    ratio: float
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """`−12 % [−15, −8]`, or `61 times [37, 101]`."""
        bounds = (math.nan if bound is None else bound for bound in (self.low, self.high))
        return effect_text(self.ratio, *bounds)


@dataclass(frozen=True)
class Claim:
    """What is said of a variant against the baseline.

    Args:
        variant: its name.
        against: the baseline's.
        verdict: one of SAID, or why there is none.
        effect: None without a verdict.
        hangs_on: the variants, seeds and bands of noise levels that it hangs on.
        levels: how many levels it is over; empty where these are all.
        sigma: the lowest and the highest of these; None where they are all.
        unjudged: the effect where there is one and no verdict.
        survivors: the ratios at the seeds that are left where others diverged.
    """

    variant: str
    against: str
    verdict: str
    effect: Effect | None = None
    hangs_on: list[str] = field(default_factory=list)
    levels: str = ""
    sigma: tuple[float, float] | None = None
    unjudged: Effect | None = None
    survivors: list[float] = field(default_factory=list)

    def cells(self, usual: str) -> list[Cell]:
        """A row under HEAD; `usual` are the levels that need no word."""
        style = {"better": "good", "worse": "bad"}.get(self.verdict, "quiet")
        texts = (
            self.variant,
            effect.text if (effect := self.effect or self.unjudged) else "",
            BEYOND.sub("", self.verdict).removeprefix(f"{self.variant} "),
            listed(self.hangs_on) or "–",
            "–" if self.levels == usual else self._range.replace(" to ", "–"),
        )
        return [
            Cell(text, style if name == "verdict" else "")
            for name, text in zip(HEAD, texts, strict=True)
        ]

    @property
    def sentence(self) -> str:
        """`v is better than edm (−12 % [−15, −8]; hangs on seed 2).`, of one with an effect."""
        parts = [self.effect.text] if self.effect else []
        parts += [f"over the {self.levels}, that both were trained on"] if self.levels else []
        parts += [f"hangs on {listed(self.hangs_on)}"] if self.hangs_on else []
        return f"{self.variant} {SAID[self.verdict].format(self.against)} ({'; '.join(parts)})."

    @property
    def learnt_nothing(self) -> bool:
        """Whether it has no verdict since it, or the baseline, learnt nothing beyond something."""
        return self.unjudged is not None and BEYOND.search(self.verdict) is not None

    def size(self, usual: str) -> str:
        """What is known of one without a verdict: `3.9 times [3.6, 4.2]`; empty for nothing."""
        if self.survivors:
            least, most = (effect_text(end(self.survivors)) for end in (min, max))
            seeds = f"{len(self.survivors)} other {'seeds' if self.survivors[1:] else 'seed'}"
            return f"{least} to {most} in the {seeds}"
        if self.unjudged is None:
            return ""
        at = "" if self.levels == usual else f" at σ = {self._range}"
        return f"{self.unjudged.text}{at}"

    @property
    def _range(self) -> str:
        return "{:.2g} to {:.2g}".format(*self.sigma) if self.sigma else "all"


@dataclass(frozen=True)
class ArmClaims:
    """What is said of the variants of an arm.

    Args:
        arm: its name; empty where the study names none.
        best: a sentence on which variant is best.
        claims: those on each variant but the baseline, the best first.
    """

    arm: str
    best: str
    claims: list[Claim] = field(default_factory=list)

    @property
    def judged(self) -> list[Claim]:
        """The claims that have an effect, and so a verdict."""
        return [one for one in self.claims if one.effect is not None]

    @property
    def rows(self) -> list[Claim]:
        """The claims that have a row in a table: the others take a sentence."""
        return [*self.judged, *(one for one in self.claims if one.learnt_nothing)]

    @property
    def text(self) -> str:
        """All of it as a paragraph."""
        lost = [one for one in self.claims if one.effect is None]
        return " ".join([self.best, *(one.sentence for one in self.judged), *reasons(lost)])

    def below(self, usual: str) -> list[str]:
        """The sentences below the rows; `usual` are the levels that need no word."""
        rows = self.rows
        return reasons([one for one in self.claims if one not in rows], usual)


def reasons(claims: Sequence[Claim], usual: str = "") -> list[str]:
    """Returns a sentence for each reason why claims have no verdict, with what is known of them.

    Args:
        claims: Claims without a verdict.
        usual: The levels that need no word.
    """
    found: dict[tuple[str, str], list[Claim]] = {}
    for one in claims:
        reason = one.verdict.removeprefix(f"{one.variant} ")
        ways = (" on ", ": ") if reason == one.verdict else (": ", " ")
        found.setdefault((ways[0], ways[1] + reason), []).append(one)
    return [
        f"No verdict{on}{listed([one.variant for one in own])}{why}{_sizes(own, usual)}."
        for (on, why), own in found.items()
    ]


def _sizes(claims: Sequence[Claim], usual: str) -> str:
    """The effects of claims without a verdict, in brackets: of many the first and the last."""
    named, what = len(claims) > 1, "effects" if len(claims) > 1 else "effect"
    sizes = [(one.variant, size) for one in claims if (size := one.size(usual))]
    texts = [f"{variant} {size}" if named else size for variant, size in sizes]
    if len(texts) > MOST_COUNTED:
        texts = [f"{texts[0]} to {texts[-1]}"]
    return f" ({what} not judged: {', '.join(texts)})" if texts else ""


@dataclass(frozen=True)
class Finding:
    """What is said of one case, or of all of them.

    Args:
        title: the case, its metric, whether that is exact, and its seeds; empty for what holds for
            all.
        opening: what the claims are about, and what limits them.
        case: its name; empty where the study names none, and for what holds for all.
        arms: the claims on the variants of each arm.
        detail: where in the noise levels the metric lies, and the samples.
    """

    title: str
    opening: list[str]
    case: str = ""
    arms: list[ArmClaims] = field(default_factory=list)
    detail: list[str] = field(default_factory=list)

    @property
    def lead(self) -> list[str]:
        """What the first screen says: the opening, and a paragraph an arm."""
        return [*self.opening, *(one.text for one in self.arms)]

    @property
    def sentences(self) -> list[str]:
        """The lead and then the detail."""
        return [*self.lead, *self.detail]

    @property
    def claims(self) -> PageTable | None:
        """The claims as a table, with rows of one cell for the best and for what has no row.

        None without any.
        """
        if not self.arms:
            return None
        rows: list[list[Cell]] = []
        usual, head, rows_of = _columns(self.arms)
        for arm, judged in zip(self.arms, rows_of, strict=True):
            rows += [[Cell(arm.best, "best")], *judged]
            rows += [[Cell(text, "quiet")] for text in arm.below(usual)]
        return PageTable(head, rows)


_FINDINGS = TypeAdapter(list[Finding])


def write(findings: Sequence[Finding], folder: Path) -> None:
    """Writes the findings into a report's folder `tables`, as data and as Markdown."""
    (folder / FILE).write_bytes(_FINDINGS.dump_json([*findings], indent=1))
    (folder / "finding.md").write_text(markdown(findings), encoding="utf-8")


def stored(page: Path) -> list[Finding]:
    """Returns what was written with a report's page; nothing where none can be read."""
    try:
        return _FINDINGS.validate_json((page.parent / "tables" / FILE).read_bytes())
    except (OSError, ValueError):  # of another version, damaged, or taken away: the page is there
        return []


def markdown(findings: Sequence[Finding]) -> str:
    """Returns the findings as paragraphs of Markdown, which MLflow shows of the study."""
    paragraphs: list[str] = []
    for one in findings:
        paragraphs += [f"**{one.title}**"] * bool(one.title) + one.opening
        paragraphs += [*_tables(one.arms), *one.detail]
    return "\n\n".join(paragraphs)


def _tables(arms: Sequence[ArmClaims]) -> list[str]:
    """The claims of a case in Markdown: a paragraph on the best of each arm, and its table."""
    usual, head, rows_of = _columns(arms)
    paragraphs: list[str] = []
    for arm, judged in zip(arms, rows_of, strict=True):
        rows = [[cell.text for cell in row] for row in judged]
        lines = [head, ["---"] * len(head), *rows]
        written = "\n".join(f"| {' | '.join(_escaped(line))} |" for line in lines)
        paragraphs += [arm.best, *[written] * bool(rows), *arm.below(usual)]
    return paragraphs


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def counted(findings: Sequence[Finding]) -> list[str]:
    """Returns sentences on what becomes of each variant in all cases and arms together.

    There are none for one arm of one case, for several baselines, and for too much to be said.
    """
    arms = [arm for one in findings for arm in one.arms if arm.claims]
    claims = [one for arm in arms for one in arm.claims]
    verdicts: dict[str, list[str]] = {}
    for one in claims:
        word = "without a verdict" if one.effect is None else COUNTED.get(one.verdict, one.verdict)
        verdicts.setdefault(one.variant, []).append(word)
    said: dict[str, list[str]] = {}
    for variant, words in verdicts.items():
        found = Counter(sorted(words, reverse=True)).most_common()
        each = [f"{word} in {'all ' * (n == len(arms))}{n}" for word, n in found]
        said.setdefault(listed(each), []).append(variant)
    if len(arms) < 2 or len({one.against for one in claims}) > 1 or len(said) > MOST_COUNTED:
        return []
    parts = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {what}"
        for what, names in said.items()
    ]
    cases = sum(any(arm.claims for arm in one.arms) for one in findings)
    where = f"{len(arms)} combinations of case and arm"
    where = {1: f"{len(arms)} arms", len(arms): f"{cases} cases"}.get(cases, where)
    first = f"Against the baseline, {claims[0].against}, in {where}: {'; '.join(parts)}."
    hanging = sum(bool(one.hangs_on) for one in claims)
    judged = sum(one.effect is not None for one in claims)
    limits = f"Verdicts that hang on one seed, variant or noise band: {hanging} of {judged}."
    return [first, *[limits] * bool(hanging)]


def usual_levels(arms: Sequence[ArmClaims]) -> tuple[str, bool]:
    """Returns the levels that most claims are over, empty for all, and whether some have others."""
    found = Counter(one.levels for arm in arms for one in arm.rows)
    return found.most_common(1)[0][0] if found else "", len(found) > 1


def _columns(arms: Sequence[ArmClaims]) -> tuple[str, list[str], list[list[list[Cell]]]]:
    """The usual levels, HEAD, and the rows of each arm; the last column only for other levels."""
    usual, others = usual_levels(arms)
    number = len(HEAD) - (not others)
    rows = [[one.cells(usual)[:number] for one in arm.rows] for arm in arms]
    return usual, [*HEAD[:number]], rows
