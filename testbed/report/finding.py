"""The finding of a study in words: every claim is the verdict of a corrected comparison.

A verdict is one of a variant against the baseline of its case and arm. Each sentence of the lead is
made again without every variant, every seed and every band of noise levels, and says what it hangs
on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from testbed.metrics.curves import RELATIVE
from testbed.metrics.paired_tests import ALPHA, POWER
from testbed.report import arms, ranges, sample_metrics
from testbed.report.comparisons import MOST_PAIRED, Comparisons, Versus, baseline_note, baseline_of
from testbed.report.equal_objectives import distinct, equal_to, sentences_of
from testbed.report.learning import linear_levels
from testbed.report.results import LABEL, Results
from testbed.report.robustness import LeaveOneOut, effect, lowest
from testbed.report.words import capital, listed, number, per_cent, portion, title
from testbed.study.settings import ReportSettings

FEW_SEEDS = 4
"""The lead says on how many seeds it rests where they are fewer."""
MOST = 0.5
"""A band that holds more than this share of a metric is said to hold most of it."""
SMALL = "small"
"""Of an undecided effect: shown to differ from zero, and its estimate is too small to matter."""
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
class Standing:
    """Where the variants of one case and arm stand against its baseline."""

    case: str
    arm: str
    baseline: str
    ranked: list[str]
    """The variants in the running, the baseline among them, by their effect, the best first."""
    versus: list[Versus]
    """The comparisons with the baseline over all common levels."""
    unseparated: list[str]
    """The variants in the running that the best is not shown to be better than."""
    close: list[str]
    """Those of them from which it is shown to differ, by less than matters."""

    @property
    def subject(self) -> Versus | None:
        """The comparison to state first: that of the best, or of the next if it is the baseline."""
        first = next((name for name in self.ranked if name != self.baseline), "")
        return next((one for one in self.versus if one.variant == first), None)

    @property
    def winner(self) -> str | None:
        """The variant shown to be better than every other in the running, or None."""
        return self.ranked[0] if len(self.ranked) > 1 and not self.unseparated else None


def standing(results: Results, comparisons: Comparisons, case: str, arm: str) -> Standing:
    """Returns where the variants of a case and arm stand on the primary metric."""
    reference = baseline_of(results, case, arm)
    versus = comparisons.with_baseline(case, arm)
    ranked = ranking(results, versus, reference)
    against = [(name, comparisons.of(case, arm, ranked[0], name)) for name in ranked[1:]]
    unseparated = [n for n, one in against if one is None or not _is_better(one, ranked[0])]
    close = [name for name, one in against if one and _said_of(one) == SMALL]
    return Standing(case, arm, reference, ranked, versus, unseparated, close)


def ranking(results: Results, versus: list[Versus], reference: str) -> list[str]:
    """Returns the variants in the running by their effect, the baseline's being 0, best first.

    A variant that diverged or learnt nothing is not in the running, nor one without a verdict; of
    equal objectives only the first is. Where the baseline is not in the running, nothing is ranked.
    """
    if not versus or any(reference in one.lost for one in versus):
        return []
    effects = {
        one.variant: one.comparison.ratio for one in versus if one.comparison and not one.reason
    }
    order = sorted({reference: 1.0, **effects}.items(), key=lambda pair: pair[1])
    return distinct(results, versus[0].case, versus[0].arm, [name for name, _ in order])


def _is_better(one: Versus, best: str) -> bool:
    return one.verdict == ("better" if one.variant == best else "worse")


def headline(results: Results, comparisons: Comparisons) -> list[tuple[str, list[str]]]:
    """Returns (case, paragraphs) of each case, arm by arm; last what holds for all."""
    texts, samples = [], sample_metrics.make(results)
    for case in results.cases:
        said: list[str] = []
        left = LeaveOneOut(results, case)
        for arm in results.arms(case):
            place = standing(results, comparisons, case, arm)
            for subject in (
                _of_arm(left, place),
                _by_level(left, comparisons, place),
                sample_metrics.sentences(left, samples, place.versus),
            ):
                said += _paragraph(arm, list(subject))
        said += _linear_baseline(results, case)
        seeds = results.trials.loc[results.trials["case"] == case, "seed"].nunique()
        if seeds < FEW_SEEDS:
            said.append(f"All of this rests on {seeds} {'seed' if seeds == 1 else 'seeds'} only.")
        texts.append((f"{case or 'All data'} {_evidence(results, case)}:", said))
    rates = _rates(results) if any(comparisons.tests.values()) else []
    judged = _intervals(results, comparisons)
    rest = [*_changed(results), *_unfinished(results), *arms.sentences(results), *judged]
    rest += [*sample_metrics.note(samples), *rates, *_identities(results)]
    return [*texts, ("", rest)]


def markdown(headline: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns the headline as paragraphs of Markdown, which MLflow shows of the study."""
    paragraphs: list[str] = []
    for case, said in headline:
        paragraphs += [f"**{case}**"] * bool(case) + list(said)
    return "\n\n".join(paragraphs)


def _paragraph(arm: str, sentences: Sequence[str]) -> list[str]:
    """The sentences on an arm as one paragraph that names it; none without a sentence."""
    if not sentences:
        return []
    first, *rest = sentences
    return [" ".join([f"In “{arm}”, {first}" if arm else capital(first), *map(capital, rest)])]


def _of_arm(left: LeaveOneOut, place: Standing) -> Iterator[str]:
    """The sentences on a case and arm: the verdicts, what has none, and the best."""
    if not place.versus:
        yield f"only {place.baseline} was run: nothing is compared."
        return
    parts, usual = [], _usual_levels(place)
    for verdict, said in SAID.items():
        claims = [_claim(left, one, usual) for one in place.versus if _said_of(one) == verdict]
        if claims:
            parts.append(f"{listed(claims)} {'is' if len(claims) == 1 else 'are'} {said}")
    if parts:
        over = f", over the {usual}, that both sides were trained on" if usual else ""
        yield f"against the baseline {place.baseline}{over}: {'; '.join(parts)}."
    yield from _without_verdict(left.results, place)
    yield from _rarely_drawn(left.results, place)
    if text := sentences_of(left.results, place.case, place.arm):
        yield f"note that {text}."
    if len(place.ranked) > 1:
        yield _best(left, place)


def _by_level(left: LeaveOneOut, comparisons: Comparisons, place: Standing) -> Iterator[str]:
    """The sentences on where in the noise levels the metric of a case and arm lies."""
    if place.subject is not None:
        yield from _concentration(left.results, place)
        yield from _by_band(left, comparisons, place.subject, place)


def _usual_levels(place: Standing) -> str:
    """The levels of most comparisons that are told, where those are not all; else empty."""
    told = [one.levels for one in place.versus if _said_of(one) in SAID and one.levels is not None]
    counts = Counter(levels.text for levels in told if not levels.whole)
    text, count = counts.most_common(1)[0] if counts else ("", 0)
    return text if count > 1 else ""


def _said_of(one: Versus) -> str:
    """The verdict, or SMALL."""
    return SMALL if one.small else one.verdict


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
    return f"{one.variant} ({'; '.join([*parts, *_hanging(left, one)])})"


def _hanging(left: LeaveOneOut, one: Versus) -> list[str]:
    """`hangs on seed 2`, of a comparison whose sign or side of the smallest effect does."""
    c = one.comparison
    if c is None or _said_of(one) not in ("better", "equivalent", "worse", SMALL):
        return []
    signed = one.verdict != "equivalent" or not c.low <= 1 <= c.high
    of_levels = None if one.band else partial(effect, one, signed)
    found = left.hangs_on(effect(one, signed), of_levels)
    return [f"hangs on {listed(found)}"] if found else []


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


def _rarely_drawn(results: Results, place: Standing) -> Iterator[str]:
    """Which levels the variants' training may draw, and too rarely for a level to count."""
    by_levels: dict[str, list[str]] = {}
    variants = results.variants(place.case, place.arm)
    for variant in variants:
        label = (place.case, place.arm, variant)
        levels = ranges.common(results, label)
        if levels is not None and len(rare := ranges.rarely_drawn(results, label, levels.every)):
            at = listed([f"{sigma:.2g}" for sigma in rare])
            said = f"{len(rare)} of {len(levels.every)} levels (σ = {at})"
            by_levels.setdefault(said, []).append(variant)
    if by_levels:
        parts = [
            f"{said} for {'every variant' if names == variants else listed(names)}"
            for said, names in by_levels.items()
        ]
        yield (
            f"fewer than {ranges.FEWEST_DRAWS} draws of a whole training are expected around "
            f"{'; '.join(parts)}: what is drawn that rarely does not count as trained on."
        )


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


def _concentration(results: Results, place: Standing) -> Iterator[str]:
    """The band that holds most of the metric, of those in the running of whom one does."""
    levels = {one.variant: one.levels for one in place.versus if one.variant in place.ranked}
    subject = place.subject
    if subject is None or subject.levels is None or subject.metric == RELATIVE:
        return
    levels[place.baseline] = subject.levels
    for band in ranges.bands(results):
        shares = {
            name: ranges.share(results, (place.case, place.arm, name), subject.metric, own, band)
            for name in place.ranked
            if (own := levels.get(name)) is not None
        }
        most = {name: share for name, share in shares.items() if share > MOST}
        if most:
            low, high = portion(min(most.values())), portion(max(most.values()))
            said = high if low == high else f"{low.removesuffix(' %')} to {high}"
            yield (
                f"{said} of the {title(subject.metric)} of {listed(list(most))} lies {band.place}."
            )


def _by_band(
    left: LeaveOneOut, comparisons: Comparisons, subject: Versus, place: Standing
) -> Iterator[str]:
    """The verdict of each band of noise levels on the subject, with the band's share."""
    parts: list[str] = []
    lost: list[str] = []
    results = left.results
    baseline = (place.case, place.arm, place.baseline)
    whole = "the levels" if subject.metric == RELATIVE else f"that of {place.baseline}"
    for band in ranges.bands(results):
        one = comparisons.to_baseline(place.case, place.arm, subject.variant, band.name)
        if one is None or one.comparison is None or one.levels is None or one.reason:
            continue
        c, share = one.comparison, ranges.share(results, baseline, one.metric, one.levels, band)
        words = [per_cent(c.ratio, c.low, c.high), *_hanging(left, one)]
        if not math.isnan(share):
            words.insert(0, f"{portion(share)} of {whole}")
        said = "; ".join(words)
        verdict = "different by less than matters" if _said_of(one) == SMALL else one.verdict
        parts.append(f"{verdict} at {band.name} ({said})")
        if ranges.linear_is_better(results, baseline, one.metric, one.levels, band):
            lost.append(band.name)
    if parts:
        what = f"the {title(subject.metric)} of {subject.variant} against {place.baseline}"
        yield f"by noise level, {what}: {', '.join(parts)}."
    if lost:
        where, levels = [f"at {name}" for name in lost], subject.levels
        if levels and ranges.linear_is_better(results, baseline, subject.metric, levels):
            where.append("over all of these levels together")
        yield (
            "the linear denoiser fitted to the training split (Wiener) is better than "
            f"{place.baseline} {listed(where)}; this is said of means over seeds, holds without "
            "any one of them, and is not tested."
        )


def _linear_baseline(results: Results, case: str) -> Iterator[str]:
    """Where the linear denoiser is no good reference: D = x, which is linear too, does better."""
    trials = results.trials[results.trials["case"] == case]
    labels = dict.fromkeys(trials[LABEL].itertuples(index=False, name=None))
    known = [one for label in labels if (one := linear_levels(results, label)) is not None]
    levels, worse = known[0] if known else (np.empty(0), np.empty(0, dtype=bool))
    if worse.any():
        lost = levels[worse]
        at = f"{lost[0]:.2g}" + (f" to {lost[-1]:.2g}" if len(lost) > 1 else "")
        yield (
            "The linear denoiser (Wiener) is that of a Gaussian fitted to the training split, and "
            f"not the best linear one: at {len(lost)} of {len(levels)} levels, σ = {at}, its loss "
            "on held-out data is above that of D = x."
        )


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
