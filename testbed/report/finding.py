"""The finding of a study in words: every claim is the verdict of a corrected comparison.

What is made here is of the classes of `report.claims`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from testbed.metrics.paired_tests import ALPHA, POWER
from testbed.report import arms, level_sentences, sample_metrics
from testbed.report.claims import ArmClaims, Claim, Effect, Finding, counted, usual_levels
from testbed.report.comparisons import MOST_PAIRED, Comparisons, Versus, baseline_note
from testbed.report.equal_objectives import sentences_of
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut, lowest
from testbed.report.sample_metrics import SampleComparison
from testbed.report.standing import Standing, hanging, standing
from testbed.report.words import LESS, METRICS, capital, listed, number, per_cent, title
from testbed.study.settings import ReportSettings

FEW_SEEDS = 4
"""The title says "only" of fewer seeds."""


def make(results: Results, comparisons: Comparisons) -> list[Finding]:
    """Returns what comes first, the finding of each case, and what is said of all of them."""
    samples = sample_metrics.make(results)
    cases = [_of_case(results, comparisons, samples, case) for case in results.cases]
    incomplete = [*_changed(results), *_unfinished(results)]
    first = Finding("", [*incomplete, *counted(cases), *arms.sentences(results)])
    tested = any(comparisons.tests.values())
    opening = [*_reading(results, comparisons), *(_rates(results) if tested else [])]
    last = Finding("", [*opening, *_identities(results)], detail=sample_metrics.note(samples))
    return [first, *cases, last]


def _of_case(
    results: Results, comparisons: Comparisons, samples: list[SampleComparison], case: str
) -> Finding:
    left, detail = LeaveOneOut(results, case), list[str]()
    places = [standing(results, comparisons, case, arm) for arm in results.arms(case)]
    for place in places:
        for subject in (
            _training(results, place),
            level_sentences.by_level(left, comparisons, place),
            sample_metrics.sentences(left, samples, place.versus),
        ):
            detail += _paragraph(place.arm, list(subject))
    made = [_of_arm(left, place) for place in places]
    opening = [_metric(results, case), *_of_linear(results, comparisons, case, places)]
    opening += _levels(made)
    return Finding(_evidence(results, case), opening, case, made, detail)


def _of_linear(
    results: Results, comparisons: Comparisons, case: str, places: Sequence[Standing]
) -> Iterator[str]:
    """What the linear denoiser limits in the claims of a case, once where the arms agree on it."""
    found = {
        place.arm: [*level_sentences.linear_is_better(results, comparisons, place)]
        for place in places
    }
    first, *rest = found.values()
    said = {"": first} if all(one == first for one in rest) else found
    for arm, sentences in said.items():
        yield from _paragraph(arm, sentences)
    yield from level_sentences.linear_baseline(results, case)


def _of_arm(left: LeaveOneOut, place: Standing) -> ArmClaims:
    """What is said of the variants of a case and arm."""
    where = f"in “{place.arm}”, " if place.arm else ""
    if not place.versus:
        said = f"{where}only {place.baseline} was run: nothing is compared."
        return ArmClaims(place.arm, capital(said))
    ranks = {name: number for number, name in enumerate(place.ranked)}
    order = sorted(place.versus, key=lambda one: ranks.get(one.variant, len(ranks)))
    best = capital(f"{where}with {place.baseline} as the baseline, {_best(left, place)}.")
    return ArmClaims(place.arm, best, [_claim(left, one) for one in order])


def _claim(left: LeaveOneOut, one: Versus) -> Claim:
    c = one.comparison
    if one.reason or c is None:
        return Claim(one.variant, one.against, one.reason)
    low, high = (None if math.isnan(bound) else bound for bound in (c.low, c.high))
    effect = Effect(c.ratio, low, high)
    claim = Claim(one.variant, one.against, one.said, effect, hanging(left, one))
    if one.levels is None or one.levels.whole:
        return claim
    sigma = float(one.levels.levels[0]), float(one.levels.levels[-1])
    return replace(claim, levels=one.levels.text, sigma=sigma)


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
    """The metric of a case and its direction, whether it is exact, and the number of seeds."""
    trials = results.trials[results.trials["case"] == case]
    counts = sorted(set(trials.groupby(["arm", "variant"]).size()))
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    only = "only " if trials["seed"].nunique() < FEW_SEEDS else ""
    metric = f"{title(results.primary(case))}{_exact(results, case)}"
    return f"{case or 'All data'}: {metric}; lower is better; {only}{seeds}"


def _exact(results: Results, case: str) -> str:
    """Whether a case has an exact denoiser, and the metric is an error against it."""
    if not results.oracle(case):
        return " (no exact denoiser)"
    over = results.primary(case) == "excess_nats"
    return " over the exact denoiser" if over else " (the exact denoiser is known)"


def _metric(results: Results, case: str) -> str:
    """What the primary metric is."""
    primary = results.primary(case)
    name, meaning = METRICS.get(primary, (primary, "a metric of a plugin"))
    return f"{capital(name)}: {meaning}."


def _levels(made: Sequence[ArmClaims]) -> Iterator[str]:
    """The levels of the claims of a case, where some are not over all."""
    usual, others = usual_levels(made)
    if usual or others:
        rest = ", where no other σ is named" if others else ""
        yield f"Effects are over the levels both sides were trained on: {usual or 'all'}{rest}."


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
    edges = listed([f"{edge:g}" for edge in results.settings.bands])
    return [
        "An effect is the ratio of the metric to the baseline’s, paired by seed, with an "
        f"uncorrected {results.level:.0%} interval over seeds; effects over different levels "
        f"cannot be ranked. Verdicts are corrected for {tests} tests (Holm); an effect of "
        f"{smallest(results)} matters. A claim hangs on a seed, variant or noise band without "
        "which its effect changes sign or crosses what matters; bands part at σ/σ_data = "
        f"{edges}."
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
            f"All trained at one learning rate, {words}, which need not suit every "
            "parameterization alike."
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
        f"All {len(checked)} Tweedie identity checks hold (largest error: "
        f"{number(float(checked['ratio'].max()))} of its rounding bound): up to rounding the "
        "parameterizations are one denoiser."
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
