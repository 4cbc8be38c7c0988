"""The finding of a study in words: every claim is the verdict of a corrected comparison.

What is made here is of the classes of `report.claims`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from testbed.metrics.paired_tests import ALPHA, POWER
from testbed.report import arms, level_sentences, sample_metrics
from testbed.report.claims import BEYOND, ArmClaims, Claim, Effect, Finding, counted, usual_levels
from testbed.report.comparisons import (
    MOST_PAIRED,
    Comparisons,
    Versus,
    baseline_note,
    baseline_of,
    paired,
)
from testbed.report.equal_objectives import sentences_of
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut, lowest
from testbed.report.sample_metrics import SampleComparison
from testbed.report.standing import HIGHER, Standing, hanging, standing
from testbed.report.words import LESS, METRICS, capital, effect_text, listed, number, title
from testbed.study.settings import ReportSettings

FEW_SEEDS = 4
"""The title says "only" of fewer seeds."""


def make(results: Results, comparisons: Comparisons) -> list[Finding]:
    """Returns what comes first, the finding of each case, and what is said of all of them."""
    samples = sample_metrics.make(results)
    baselines = [
        baseline_of(results, case, arm)
        for case in results.cases
        for arm in results.arms(case)
        if comparisons.with_baseline(case, arm)
    ]
    once = len(baselines) > 1 and len({*baselines}) == 1
    cases = [_of_case(results, comparisons, samples, case, once) for case in results.cases]
    incomplete = [*_changed(results), *_unfinished(results)]
    summary = counted(cases) or [f"The baseline is {name}." for name in {*baselines} if once]
    first = Finding("", [*incomplete, *summary, *arms.sentences(results)])
    tested = any(comparisons.tests.values())
    opening = [*_reading(results, comparisons, cases), *_nothing(results, cases)]
    opening += _rates(results) if tested else []
    last = Finding("", [*opening, *_identities(results)], detail=sample_metrics.note(samples))
    return [first, *cases, last]


def _of_case(
    results: Results,
    comparisons: Comparisons,
    samples: list[SampleComparison],
    case: str,
    baseline_is_said: bool,
) -> Finding:
    """The finding of a case, which names its baseline unless that is said of all cases.

    Where the arms have several, each names its own.
    """
    left, detail = LeaveOneOut(results, case), list[str]()
    places = [standing(results, comparisons, case, arm) for arm in results.arms(case)]
    for place in places:
        for subject in (
            _training(results, place),
            level_sentences.by_level(left, comparisons, place),
            sample_metrics.sentences(left, samples, place.versus),
        ):
            detail += _paragraph(place.arm, list(subject))
    baselines = {place.baseline for place in places if place.versus}
    made = [_of_arm(left, place, len(baselines) > 1) for place in places]
    opening = [_metric(results, case)]
    opening += level_sentences.linear_is_better(results, comparisons, places)
    opening += level_sentences.linear_baseline(results, case)
    named = baselines if len(baselines) == 1 and not baseline_is_said else ()
    opening += _levels(made, "".join(named))
    return Finding(_evidence(results, case), opening, case, made, detail)


def _of_arm(left: LeaveOneOut, place: Standing, names_baseline: bool) -> ArmClaims:
    """What is said of the variants of a case and arm."""
    where = f"in “{place.arm}”, " if place.arm else ""
    if not place.versus:
        said = f"{where}only {place.baseline} was run: nothing is compared."
        return ArmClaims(place.arm, capital(said))
    ranks = {name: number for number, name in enumerate(place.ranked)}
    order = sorted(place.versus, key=lambda one: (ranks.get(one.variant, len(ranks)), _ratio(one)))
    where += f"with {place.baseline} as the baseline, " if names_baseline else ""
    best = f"{capital(where)}{_best(left, place)}."
    best = capital(best) if len(place.ranked) < 2 else best  # else it may begin with a name
    return ArmClaims(place.arm, best, [_claim(left, one) for one in order])


def _claim(left: LeaveOneOut, one: Versus) -> Claim:
    c = one.comparison
    claim = Claim(one.variant, one.against, one.said)
    if c is None:
        return claim
    if c.diverged:
        pairs = paired(left.results, *one.labels, one.metric, one.levels)
        left_over = pairs[np.isfinite(pairs).all(axis=1)]
        claim = replace(claim, survivors=(left_over["a"] / left_over["b"]).tolist())
    else:
        low, high = (None if math.isnan(bound) else bound for bound in (c.low, c.high))
        effect = Effect(c.ratio, low, high)
        if one.reason:
            claim = replace(claim, unjudged=effect)
        else:
            claim = replace(claim, effect=effect, hangs_on=hanging(left, one))
    if one.levels is None or one.levels.whole:
        return claim
    sigma = float(one.levels.levels[0]), float(one.levels.levels[-1])
    return replace(claim, levels=one.levels.text, sigma=sigma)


def _ratio(one: Versus) -> float:
    """The ratio of a comparison, by which those without a verdict are sorted; inf for none."""
    c = one.comparison
    return math.inf if c is None or c.diverged else c.ratio


def _best(left: LeaveOneOut, place: Standing) -> str:
    """Which variant has the lowest metric, and how it stands to the others.

    To which others it is better is in the table of claims where it is the baseline.
    """
    if len(place.ranked) < 2:
        return "no variant has a verdict"
    best = place.ranked[0]
    stated = partial(lowest, place.versus, place.baseline, place.ranked)
    first = f"{best} is lowest{_unless(left.hangs_on(stated(), stated))}"
    named = {name: f"{name}{_hangs(left, one)}" for name, one in place.against.items()}
    if place.winner:
        every = "every other with a verdict" if any(one.reason for one in place.versus) else ""
        alone = len(named) == 1 or any(text != name for name, text in named.items())
        others = listed([*named.values()]) if alone else every or "every other"
        return f"{first}, and better than {others}"
    better, close, alike, apart, higher = (
        [named[name] for name, own in place.beside.items() if own == said]
        for said in ("better", LESS, "equivalent", "", HIGHER)
    )
    parts = [f"better than {listed(better)}"] if better and best != place.baseline else []
    parts += [f"better than {listed(close)} by {LESS}"] if close else []
    parts += [f"equivalent to {listed(alike)}"] if alike else []
    shown = len(parts)
    if apart:
        many = len(place.versus) > MOST_PAIRED and best != place.baseline
        others = "the others, which were not compared with it" if many else listed(apart, "or")
        parts.append(f"not shown to be better than {others}")
    if higher:
        parts.append(f"not below {listed(higher, 'or')} over the levels of the two")
    *before, last = parts
    end = f"{'and' if shown == len(parts) else 'but'} {last}"
    return f"{first}: {', '.join(before)}, {end}" if before else f"{first}, {end}"


def _unless(found: Sequence[str]) -> str:
    """Without what a statement would not hold, in brackets."""
    return f" (not without {listed(found, 'or')})" if found else ""


def _hangs(left: LeaveOneOut, one: Versus | None) -> str:
    """What the comparison of two variants hangs on; the table of claims has it of the baseline."""
    return _unless(hanging(left, one)) if one is not None and one.kind == "pair" else ""


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


def _levels(made: Sequence[ArmClaims], baseline: str) -> Iterator[str]:
    """The levels of the claims of a case, where some are not over all, and what they are against.

    The baseline is empty where it is named elsewhere.
    """
    usual, others = usual_levels(made)
    against = f" against the baseline, {baseline}" if baseline else ""
    if usual or others:
        rest = ", where no other σ is named" if others else ""
        trained = f"{usual}, that both sides were trained on" if usual else "all levels"
        yield f"Effects are{against and f'{against},'} over {trained}{rest}."
    elif against:
        yield f"Effects are{against}."


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


def _reading(results: Results, comparisons: Comparisons, cases: Sequence[Finding]) -> list[str]:
    """How the claims are to be read: effects, verdicts, and what they hang on."""
    counts = comparisons.tests
    tests = counts["baseline"] + counts["band"] + counts["arm"]
    if not tests:
        return []
    pairs = f", between two other variants for {counts['pair']}" * bool(counts["pair"])
    several = any(others for _, others in (usual_levels(case.arms) for case in cases))
    ranked = "; effects over different levels cannot be ranked" * several
    edges = listed([f"{edge:g}" for edge in results.settings.bands])
    return [
        "An effect is the metric’s ratio to the baseline’s, paired by seed, with an uncorrected "
        f"{results.level:.0%} interval over seeds{ranked}. Verdicts are corrected for {tests} "
        f"tests{pairs} (Holm); an effect of {smallest(results)} matters. A claim hangs on a seed, "
        "variant or noise band without which its effect changes sign or crosses what matters; "
        f"bands part at σ/σ_data = {edges}."
    ]


def _nothing(results: Results, cases: Sequence[Finding]) -> list[str]:
    """What it means that a variant learnt nothing, where one did."""
    lost = [one for case in cases for arm in case.arms for one in arm.claims if one.learnt_nothing]
    beyond = dict.fromkeys(match for one in lost for match in BEYOND.findall(one.verdict))
    if not beyond:
        return []
    limit = effect_text(math.exp(-results.settings.smallest_effect)).removeprefix("−")
    return [
        "“Learnt nothing” is no verdict: the loss is shown to be in no noise band "
        f"{limit} below that of {listed([*beyond], 'or')}."
    ]


def smallest(results: Results) -> str:
    """Returns the smallest effect of interest in both directions: `5.1 % or −4.9 %`."""
    size = results.settings.smallest_effect
    return " or ".join(effect_text(math.exp(sign * size)) for sign in (1, -1))


def _rates(results: Results) -> list[str]:
    training = [config.training for config in results.configs.values()]
    rates = {one.learning_rate for one in training}
    words = ", ".join(f"{rate:g}" for rate in sorted(rates))
    texts = [f"Learning rates: {words}."] if rates else []
    if len(rates) == 1:
        texts = [
            f"All trained at one learning rate, {words}, which need not suit every "
            "parameterization."
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
        f"All {len(checked)} Tweedie identity checks, that the parameterizations are one denoiser, "
        f"hold within {number(float(checked['ratio'].max()))} of their rounding bounds."
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
