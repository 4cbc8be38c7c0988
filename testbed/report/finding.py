"""The finding of a study in words: every claim is the verdict of a corrected comparison.

A verdict is one of a variant against the baseline of its case and arm. Each sentence on one is made
again without every variant, every seed and every band of noise levels, and says what it hangs on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from testbed.metrics.paired_tests import ALPHA, POWER
from testbed.report import arms, level_sentences, sample_metrics
from testbed.report.comparisons import MOST_PAIRED, Comparisons, Versus, baseline_note
from testbed.report.equal_objectives import equal_to, sentences_of
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut, lowest
from testbed.report.sample_metrics import SampleComparison
from testbed.report.standing import SMALL, Standing, hanging, said_of, standing
from testbed.report.words import capital, listed, number, per_cent, title
from testbed.study.settings import ReportSettings

FEW_SEEDS = 4
"""The lead says on how many seeds it rests where they are fewer."""
SAID = {
    "better": "better",
    "equivalent": "equivalent",
    "undecided": "undecided",
    SMALL: "different, by less than matters, and not shown to be equivalent",
    "too few seeds": "untested, on too few seeds",
    "worse": "worse",
}
"""What is said of each verdict, in the order of the sentences."""


@dataclass(frozen=True)
class Finding:
    """What is said of one case, or of all of them.

    Args:
        title: the case, its metric and its seeds; empty for what holds for all.
        lead: the verdicts, what has none and the best, a paragraph an arm, and what limits them.
        detail: where in the noise levels the metric lies, the samples, and how it was judged.
    """

    title: str
    lead: list[str]
    detail: list[str]

    @property
    def sentences(self) -> list[str]:
        """The lead and then the detail."""
        return [*self.lead, *self.detail]


def make(results: Results, comparisons: Comparisons) -> list[Finding]:
    """Returns the finding of each case, arm by arm; last what holds for all."""
    samples = sample_metrics.make(results)
    cases = [_of_case(results, comparisons, samples, case) for case in results.cases]
    lead = [*_changed(results), *_unfinished(results), *arms.sentences(results)]
    rates = _rates(results) if any(comparisons.tests.values()) else []
    detail = [*_intervals(results, comparisons), *sample_metrics.note(samples), *rates]
    return [*cases, Finding("", [*lead, *_identities(results)], detail)]


def _of_case(
    results: Results, comparisons: Comparisons, samples: list[SampleComparison], case: str
) -> Finding:
    left, lead, detail = LeaveOneOut(results, case), list[str](), list[str]()
    for arm in results.arms(case):
        place = standing(results, comparisons, case, arm)
        lead += _paragraph(arm, list(_verdicts(left, place)))
        for subject in (
            _training(results, place),
            level_sentences.by_level(left, comparisons, place),
            sample_metrics.sentences(left, samples, place.versus),
        ):
            detail += _paragraph(arm, list(subject))
    detail += level_sentences.linear_baseline(results, case)
    seeds = results.trials.loc[results.trials["case"] == case, "seed"].nunique()
    if seeds < FEW_SEEDS:
        lead.append(f"All of this rests on {seeds} {'seed' if seeds == 1 else 'seeds'} only.")
    return Finding(f"{case or 'All data'} {_evidence(results, case)}:", lead, detail)


def markdown(findings: Sequence[Finding]) -> str:
    """Returns the findings as paragraphs of Markdown, which MLflow shows of the study."""
    paragraphs: list[str] = []
    for one in findings:
        paragraphs += [f"**{one.title}**"] * bool(one.title) + one.sentences
    return "\n\n".join(paragraphs)


def _paragraph(arm: str, sentences: Sequence[str]) -> list[str]:
    """The sentences on an arm as one paragraph that names it; none without a sentence."""
    if not sentences:
        return []
    first, *rest = sentences
    return [" ".join([f"In “{arm}”, {first}" if arm else capital(first), *map(capital, rest)])]


def _verdicts(left: LeaveOneOut, place: Standing) -> Iterator[str]:
    """The sentences on a case and arm: the verdicts, what has none, and the best."""
    if not place.versus:
        yield f"only {place.baseline} was run: nothing is compared."
        return
    parts, usual = [], _usual_levels(place)
    for verdict, said in SAID.items():
        claims = [_claim(left, one, usual) for one in place.versus if said_of(one) == verdict]
        if claims:
            parts.append(f"{listed(claims)} {'is' if len(claims) == 1 else 'are'} {said}")
    if parts:
        over = f", over the {usual}, that both sides were trained on" if usual else ""
        yield f"against the baseline {place.baseline}{over}: {'; '.join(parts)}."
    yield from _without_verdict(left.results, place)
    if len(place.ranked) > 1:
        yield _best(left, place)


def _training(results: Results, place: Standing) -> Iterator[str]:
    """The sentences on the training of a case and arm: rare levels and equal objectives."""
    if place.versus:
        yield from level_sentences.rarely_drawn(results, place)
        if text := sentences_of(results, place.case, place.arm):
            yield f"note that {text}."


def _usual_levels(place: Standing) -> str:
    """The levels of most comparisons that are told, where those are not all; else empty."""
    told = [one.levels for one in place.versus if said_of(one) in SAID and one.levels is not None]
    counts = Counter(levels.text for levels in told if not levels.whole)
    text, count = counts.most_common(1)[0] if counts else ("", 0)
    return text if count > 1 else ""


def _claim(left: LeaveOneOut, one: Versus, usual: str) -> str:
    """`v (−12 % [−15, −8])`, with the levels where not the usual ones, and what it hangs on."""
    c = one.comparison
    assert c is not None
    parts = [per_cent(c.ratio, c.low, c.high)]
    if one.levels is not None and one.levels.text != usual:
        if not one.levels.whole:
            parts.append(f"over the {one.levels.text}, that both were trained on")
        elif usual:
            parts.append("over all levels")
    return f"{one.variant} ({'; '.join([*parts, *hanging(left, one)])})"


def _without_verdict(results: Results, place: Standing) -> Iterator[str]:
    """Of whom nothing can be said, and why: a sentence for each reason."""
    by_reason: dict[str, list[str]] = {}
    lost: dict[str, list[str]] = {}
    for one in place.versus:
        if one.lost:
            lost.setdefault(one.reason, []).append(one.variant)
        elif one.reason and place.baseline not in equal_to(results, *one.labels[0]):
            by_reason.setdefault(one.reason, []).append(one.variant)
    if lost:
        names = [name for members in lost.values() for name in members]
        by_reason["; ".join(lost)] = names
    for reason, names in by_reason.items():
        yield f"no verdict on {listed(names)}: {reason}."


def _best(left: LeaveOneOut, place: Standing) -> str:
    """Which variant has the lowest metric, and which ones it is not shown to be better than."""
    best = place.ranked[0]
    stated = partial(lowest, place.versus, place.baseline, place.ranked)
    found = left.hangs_on(stated(), stated)
    hanging = f" (this hangs on {listed(found)})" if found else ""
    others = "which is better than every other"
    if not place.winner:
        apart = [name for name in place.unseparated if name not in place.close]
        many = len(place.versus) > MOST_PAIRED and best != place.baseline
        names = "the others, which were not compared with it" if many else listed(apart)
        said = [f"not shown to be better than {names}"] if apart else []
        if place.close:
            said.append(f"better than {listed(place.close)} by less than matters")
        others = f"which is {' and '.join(said)}"
    metric = title(place.versus[0].metric)
    return f"the lowest {metric} is that of {best}{hanging}, {others}."


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
    """The metric of a case and its direction, the number of seeds, and whether an oracle exists."""
    trials = results.trials[results.trials["case"] == case]
    counts = sorted(set(trials.groupby(["arm", "variant"]).size()))
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    exact = "exact oracle" if results.oracle(case) else "no oracle"
    return f"({title(results.primary(case))}, lower is better; {seeds}; {exact})"


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


def _intervals(results: Results, comparisons: Comparisons) -> list[str]:
    """What the intervals of the lead are, and its verdicts."""
    tests = comparisons.tests["baseline"] + comparisons.tests["band"] + comparisons.tests["arm"]
    if not tests:
        return []
    return [
        f"Intervals ({results.level:.0%}, each by itself) are over training seeds, on held-out "
        f"data that all trials share; verdicts are corrected for {tests} tests."
    ]


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
