"""The finding of a study in words: every claim is the verdict of a corrected comparison.

The claims on the variants are those of `report.claims`; what else there is to say of a case, and
of all of them, is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from testbed.metrics.paired_tests import ALPHA, POWER
from testbed.report import arms, claims, level_sentences, ranges, sample_metrics
from testbed.report.claims import ArmClaims
from testbed.report.comparisons import LESS, Comparisons, Versus, baseline_note
from testbed.report.equal_objectives import sentences_of
from testbed.report.page_tables import PageTable
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut
from testbed.report.sample_metrics import SampleComparison
from testbed.report.standing import Standing, standing
from testbed.report.words import METRICS, capital, listed, number, per_cent, title
from testbed.study.settings import ReportSettings

FEW_SEEDS = 4
"""The lead says on how many seeds it rests where they are fewer."""


@dataclass(frozen=True)
class Finding:
    """What is said of one case, or of all of them.

    Args:
        title: the case, its metric and its seeds; empty for what holds for all.
        opening: what the claims are about, and what limits them.
        arms: the claims on the variants of each arm.
        detail: where in the noise levels the metric lies, and the samples.
    """

    title: str
    opening: list[str]
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
        """The claims as a table; None where there are none."""
        return claims.table(self.arms) if self.arms else None


def make(results: Results, comparisons: Comparisons) -> list[Finding]:
    """Returns what comes first, the finding of each case, and what is said of all of them."""
    samples = sample_metrics.make(results)
    cases = [_of_case(results, comparisons, samples, case) for case in results.cases]
    first = Finding("", [*_changed(results), *_unfinished(results), *arms.sentences(results)])
    rates = _rates(results) if any(comparisons.tests.values()) else []
    detail = [*sample_metrics.note(samples), *rates]
    last = Finding("", [*_reading(results, comparisons), *_identities(results)], detail=detail)
    return [first, *cases, last]


def _of_case(
    results: Results, comparisons: Comparisons, samples: list[SampleComparison], case: str
) -> Finding:
    left, made, detail = LeaveOneOut(results, case), list[ArmClaims](), list[str]()
    for arm in results.arms(case):
        place = standing(results, comparisons, case, arm)
        made.append(claims.make(left, place))
        for subject in (
            _training(results, place),
            level_sentences.by_level(left, comparisons, place),
            sample_metrics.sentences(left, samples, place.versus),
        ):
            detail += _paragraph(arm, list(subject))
    detail += level_sentences.linear_baseline(results, case)
    return Finding(_evidence(results, case), list(_opening(results, case)), made, detail)


def markdown(findings: Sequence[Finding]) -> str:
    """Returns the findings as paragraphs of Markdown, which MLflow shows of the study."""
    paragraphs: list[str] = []
    for one in findings:
        paragraphs += [f"**{one.title}**"] * bool(one.title) + one.opening
        paragraphs += [*claims.markdown(one.arms), *one.detail]
    return "\n\n".join(paragraphs)


def _paragraph(arm: str, sentences: Sequence[str]) -> list[str]:
    """The sentences on an arm as one paragraph that names it; none without a sentence."""
    if not sentences:
        return []
    first, *rest = sentences
    return [" ".join([f"In “{arm}”, {first}" if arm else capital(first), *map(capital, rest)])]


def _training(results: Results, place: Standing) -> Iterator[str]:
    """The sentences on the training of a case and arm: rare levels and equal objectives."""
    if place.versus:
        yield from level_sentences.rarely_drawn(results, place)
        if text := sentences_of(results, place.case, place.arm):
            yield f"note that {text}."


def notes(results: Results, comparisons: Comparisons) -> list[tuple[str, list[str]]]:
    """Returns (case, sentences): how the baseline was chosen, and what could be detected."""
    texts = []
    for case in results.cases:
        names = results.arms(case)
        said = [*dict.fromkeys(filter(None, (baseline_note(results, case, a) for a in names)))]
        said += _power(one for arm in names for one in comparisons.with_baseline(case, arm))
        texts.append((case or "All data", said))
    return [(case, said) for case, said in texts if said]


def _evidence(results: Results, case: str) -> str:
    """The metric of a case and its direction, and the number of seeds."""
    trials = results.trials[results.trials["case"] == case]
    counts = sorted(set(trials.groupby(["arm", "variant"]).size()))
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    return f"{case or 'All data'}: {title(results.primary(case))}, lower is better; {seeds}"


def _opening(results: Results, case: str) -> Iterator[str]:
    """What the primary metric is, and that the seeds are few."""
    primary = results.primary(case)
    name, meaning = METRICS.get(primary, (primary, "a metric of a plugin"))
    yield f"{capital(name)}: {meaning}."
    seeds = results.trials.loc[results.trials["case"] == case, "seed"].nunique()
    if seeds < FEW_SEEDS:
        yield f"All of this rests on {seeds} {'seed' if seeds == 1 else 'seeds'} only."


def _power(members: Iterable[Versus]) -> list[str]:
    """The smallest ratio that could have been detected, and the limit of the exact test."""
    tested = [c for one in members if (c := one.comparison) and not math.isnan(c.detectable)]
    if not tested:
        return []
    span = sorted({f"{1 + min(c.detectable - 1, 1e6):.4g}" for c in tested}, key=float)
    several = " (depending on the variant)" if len(span) > 1 else ""
    least = max(c.p_signflip_min for c in tested)
    limit = (
        f" The exact sign-flip test, free of the normality that the t test assumes, cannot fall "
        f"below p = {least:g} with so few seeds."
        if least >= ALPHA
        else ""
    )
    return [
        f"Smallest ratio to the baseline that was detectable with power {POWER:g}, uncorrected: "
        f"{' to '.join(dict.fromkeys((span[0], span[-1])))}{several}.{limit}"
    ]


def _reading(results: Results, comparisons: Comparisons) -> list[str]:
    """How the claims are to be read: effects, verdicts, and what they hang on."""
    tests = comparisons.tests["baseline"] + comparisons.tests["band"] + comparisons.tests["arm"]
    if not tests:
        return []
    names = listed([one.name for one in ranges.bands(results)])
    edges = listed([f"{edge:g}" for edge in results.settings.bands])
    return [
        "An effect is the ratio of the metric to the baseline’s, a geometric mean over seeds on "
        "the same held-out data, over the levels of noise that both were trained on; effects over "
        f"different levels cannot be ranked. Intervals ({results.level:.0%}, each by itself) are "
        f"over training seeds; verdicts are corrected for {tests} tests. What matters is an effect "
        f"of {smallest(results)}; one that is {LESS} is shown to differ from 0, and not shown to "
        "be equivalent. A claim hangs on a seed, a variant or a band of noise levels "
        "without which its effect would change sign or cross what matters. The bands, "
        f"{names}, part at σ/σ_data = {edges}."
    ]


def smallest(results: Results) -> str:
    """Returns the smallest effect of interest in both directions: `5.1 % or −4.9 %`."""
    size = results.settings.smallest_effect
    return " or ".join(per_cent(math.exp(sign * size)) for sign in (1, -1))


def _rates(results: Results) -> list[str]:
    training = [config.training for config in results.configs.values()]
    rates = {one.learning_rate for one in training}
    words = ", ".join(f"{rate:g}" for rate in sorted(rates))
    texts = [f"Learning rates: {words}."] if rates else []
    if len(rates) == 1:
        texts = [
            f"One learning rate, {words}, was used for all: a difference may come from how well it "
            "suits each parameterization."
        ]
    if any(one.optimizer == "sgd" for one in training):
        texts.append(
            "Each trial's loss is divided by its value at F = 0: the steps of sgd are proportional "
            "to the loss and feel that, those of Adam are not."
        )
    return texts


def _identities(results: Results) -> list[str]:
    table = results.identities
    checked = table[table["reason"] == ""]
    if checked.empty:
        return ["No Tweedie identity has been checked."]
    failed = checked[~checked["passed"]]
    if len(failed):
        which = dict.fromkeys(failed["law"] + " (" + failed["subject"] + ")")
        return [
            f"{len(failed)} of {len(checked)} Tweedie identity checks FAILED: {'; '.join(which)}."
        ]
    return [
        f"All {len(checked)} Tweedie identity checks hold, the largest error at "
        f"{number(float(checked['ratio'].max()))} of its rounding bound: up to rounding the "
        "parameterizations are one denoiser, written differently."
    ]


def _changed(results: Results) -> Iterator[str]:
    """What the report judges by that was set after the first result."""
    first = ReportSettings.model_validate(results.study.get("first_report", {}) or results.settings)
    for name, value in results.settings:
        if (before := getattr(first, name)) != value:
            yield f"report.{name} was {before!r} until after the first result, and is {value!r}."


def _unfinished(results: Results) -> list[str]:
    counts = results.trials.drop_duplicates("id")["status"].value_counts()
    rest = counts.drop(["finished", "diverged"], errors="ignore").sort_index()
    if rest.empty:
        return []
    words = listed([f"{count} {status}" for status, count in rest.items()])
    return [f"Of {counts.sum()} trials: {words}. Their seeds are missing from the comparisons."]
