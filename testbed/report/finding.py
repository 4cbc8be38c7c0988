"""The finding of a study in words: every claim is the verdict of a corrected comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from testbed.metrics.statistics import ALPHA, MIN_SEEDS, POWER, Comparison
from testbed.report.comparisons import (
    Comparisons,
    Versus,
    baseline_note,
    baseline_of,
    geometric,
    in_both,
    interval,
    per_level,
    spread,
)
from testbed.report.equal_objectives import distinct, equal_to, sentences_of
from testbed.report.results import Results
from testbed.report.words import between, capital, listed, number, p_value, title

SIGNIFICANT = f"p < {ALPHA:g} after Holm’s correction and an interval without 1"
SPREAD = "the spread between parameterizations (worst over best within a seed)"


@dataclass(frozen=True)
class Standing:
    """Where the variants of one case and arm stand: what every sentence on them is made of."""

    case: str
    arm: str
    baseline: str
    ranked: list[str]
    """The variants with a mean over all seeds, the best first; of equal objectives the first."""
    equals: list[str]
    """The variants whose objective equals that of the best."""
    undecided: list[Versus]
    """The comparisons of the best with the other ranked variants that do not show it better."""
    objectives: str
    """What is said of equal objectives here, or nothing."""
    diverged: str
    """`d in 1 of 5 seeds`, or nothing."""

    @property
    def best(self) -> str:
        """The variant of the lowest mean."""
        return self.ranked[0]

    @property
    def named(self) -> str:
        """The best by name, with the variants that are the same objective."""
        return self.best + (f" (and {listed(self.equals)}, of equal objective)" * bool(self.equals))

    @property
    def winner(self) -> str | None:
        """The variant shown to be better than every other ranked one, or None."""
        return self.best if len(self.ranked) > 1 and not self.undecided else None

    @property
    def leads_as_baseline(self) -> bool:
        """Whether the best is the baseline, or has an objective equal to the baseline's."""
        return self.baseline in (self.best, *self.equals)

    @property
    def rival(self) -> str:
        """The variant that the best is stated against: the baseline, or the next in rank."""
        return self.ranked[1] if self.leads_as_baseline else self.baseline


def standing(results: Results, comparisons: Comparisons, case: str, arm: str) -> Standing:
    """Returns where the variants of a case and arm stand on the primary metric."""
    ranked = ranking(results, case, arm)
    against = (comparisons.of(case, arm, ranked[0], name) for name in ranked[1:])
    trials = {v: results.of(case, arm, v)["status"] for v in results.variants(case, arm)}
    return Standing(
        case=case,
        arm=arm,
        baseline=baseline_of(results, case, arm),
        ranked=ranked,
        equals=equal_to(results, case, arm, ranked[0]) if ranked else [],
        undecided=[one for one in against if one and not _is_better(one, ranked[0])],
        objectives=sentences_of(results, case, arm),
        diverged=listed(
            [
                f"{variant} in {count} of {len(status)} seeds"
                for variant, status in trials.items()
                if (count := int((status == "diverged").sum()))
            ]
        ),
    )


def ranking(results: Results, case: str, arm: str) -> list[str]:
    """Returns the variants without divergence by their mean over the seeds that all of them have.

    Of variants with equal objectives only the first is ranked.
    """
    metric = results.primary(case)
    every = {v: results.values(case, arm, v, metric) for v in results.variants(case, arm)}
    table = pd.DataFrame({v: y for v, y in every.items() if len(y) and np.isfinite(y).all()})
    common = table.dropna()
    if common.empty:
        return []
    log = geometric(results, case, metric)
    means = {v: interval(common[v].to_numpy(), results.level, log).value for v in common}
    return distinct(results, case, arm, sorted(map(str, means), key=lambda name: means[name]))


def headline(results: Results, comparisons: Comparisons) -> list[tuple[str, str]]:
    """Returns (case, text): who wins, in a sentence for each case; last what holds for all."""
    texts = []
    for case in results.cases:
        standings = [standing(results, comparisons, case, arm) for arm in results.arms(case)]
        parts = [_short(comparisons, one) for one in standings]
        for one in comparisons.spreads:
            if one.case == case and one.comparison is not None:
                verb = _changes(one)
                change = f"the spread between parameterizations {verb} there"
                parts.append(change if verb else "no change of the spread is shown")
        texts.append((f"{case or 'All data'} {_evidence(results, case)}:", f"{'; '.join(parts)}."))
    compared = (*comparisons.baseline, *comparisons.pairs, *comparisons.arms)
    rates = _rates(results) if any(one.comparison for one in compared) else []
    rest = [*_unfinished(results), *rates, *_identities(results)]
    return [*texts, ("", " ".join(rest))]


def markdown(headline: Sequence[tuple[str, str]]) -> str:
    """Returns the headline as paragraphs of Markdown, which MLflow shows of the study."""
    return "\n\n".join(f"**{case}** {text}".removeprefix("****").strip() for case, text in headline)


def sentences(results: Results, comparisons: Comparisons) -> list[tuple[str, list[str]]]:
    """Returns (case, paragraphs) with every number that the headline stands on."""
    texts = []
    for case in results.cases:
        arms = results.arms(case)
        notes = dict.fromkeys(baseline_note(results, case, arm) for arm in arms)
        paragraphs = [*filter(None, notes)]
        for arm in arms:
            place = standing(results, comparisons, case, arm)
            paragraphs.append(" ".join(_paragraph(results, comparisons, place)))
        for one in comparisons.spreads:
            paragraphs += _shrinks(results, one) if one.case == case else []
        paragraphs += _power(one for one in comparisons.baseline if one.case == case)
        texts.append((case or "All data", paragraphs))
    return texts


def _short(comparisons: Comparisons, place: Standing) -> str:
    """The headline's clause on a case and arm."""
    where = f" in “{place.arm}”" if place.arm else ""
    if len(place.ranked) < 2:
        none = f"there is no winner{where}: {place.objectives}"
        return none if place.equals else f"nothing can be compared{where}"
    one = comparisons.to_baseline(place.case, place.arm, place.best)
    numbers = ""
    if one and (c := one.comparison) and not c.diverged:
        numbers = f" at {between(c.ratio, c.low, c.high)} times the baseline {place.baseline}"
        numbers += f" ({_holm(c)})" if _holm(c) else ""
    numbers += f" (diverged: {place.diverged})" if place.diverged else ""
    name = f"the baseline {place.named}" if place.best == place.baseline else place.named
    if place.winner:
        return f"{name} wins{where}{numbers}"
    return f"no winner is shown{where}, where {name} has the lowest mean{numbers}"


def _paragraph(results: Results, comparisons: Comparisons, place: Standing) -> Iterator[str]:
    """The sentences on a case and arm."""
    where = f"In the arm “{place.arm}”" if place.arm else "Overall"
    variants = results.variants(place.case, place.arm)
    if len(place.ranked) < 2 and place.equals:
        yield f"{where} there is no winner: {place.objectives}."
    elif len(place.ranked) < 2:
        who = f"only {place.best} has" if place.ranked else "no variant has"
        what = "a mean over its seeds" if len(variants) > 1 or not place.ranked else "been run"
        yield f"{where} {who} {what}: nothing is compared."
    else:
        yield f"{where} {_outcome(place)}; {_ratio(comparisons, place)}."
        yield from _levels(results, comparisons, place)
        yield from _worse(comparisons, place)
        if place.objectives:
            yield f"{capital(place.objectives)}."
    if place.diverged:
        yield f"Diverged: {place.diverged}; counted, without a mean or a test."


def _outcome(place: Standing) -> str:
    """Who wins, or why no one does."""
    if place.winner:
        others = "every other ranked one" if place.diverged else "every other"
        return f"{place.named} wins: it is better than {others}"
    if any(one.verdict == "too few seeds" for one in place.undecided):
        why = f"fewer than {MIN_SEEDS} seeds are too few to test"
    else:
        names = [
            one.against if one.variant == place.best else one.variant for one in place.undecided
        ]
        why = f"is not shown to be better than {listed(names)}"
    return f"no winner is shown: {place.named} has the lowest mean, but {why}"


def _is_better(one: Versus, best: str) -> bool:
    return one.verdict == ("better" if one.variant == best else "worse")


def _changes(one: Versus) -> str:
    """`shrinks` or `grows`, of a spread that is shown to change, or nothing."""
    return {"better": "shrinks", "worse": "grows"}.get(one.verdict, "")


def _holm(c: Comparison) -> str:
    """`p = 0.012 after Holm`, or nothing where no test was made."""
    return "" if math.isnan(c.p_holm) else f"{p_value(c.p_holm)} after Holm"


def _evidence(results: Results, case: str) -> str:
    """The metric of a case and its direction, the number of seeds, and whether an oracle exists."""
    trials = results.trials[results.trials["case"] == case]
    counts = sorted(set(trials.groupby(["arm", "variant"]).size()))
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    exact = "exact oracle" if results.oracle(case) else "no oracle"
    return f"({title(results.primary(case))}, lower is better; {seeds}; {exact})"


def _ratio(comparisons: Comparisons, place: Standing) -> str:
    """The best against the baseline; where it leads as the baseline, the next against it."""
    base = "it" if place.best == place.baseline else f"the baseline {place.baseline}"
    lead = "it is"
    if place.leads_as_baseline:
        is_baseline = place.best == place.baseline
        what = "it is the baseline" if is_baseline else "it has the baseline’s objective"
        lead = f"{what}, and the next, {place.rival}, is at"
    leader = place.rival if place.leads_as_baseline else place.best
    one = comparisons.to_baseline(place.case, place.arm, leader)
    if one is None or one.comparison is None or one.comparison.diverged:
        return f"{lead} without a ratio to {base} ({one.verdict if one else 'another baseline'})"
    c = one.comparison
    verdict = ", ".join(filter(None, (c.verdict, _holm(c))))
    return f"{lead} {between(c.ratio, c.low, c.high)} times {base} ({verdict})"


def _worse(comparisons: Comparisons, place: Standing) -> Iterator[str]:
    worse = [
        f"{one.variant} {between(c.ratio, c.low, c.high)}"
        for one in comparisons.baseline
        if (one.case, one.arm) == (place.case, place.arm)
        if (c := one.comparison) is not None and one.verdict == "worse"
    ]
    if worse:
        yield f"Worse than the baseline, as multiples of it: {listed(worse)}."


def _levels(results: Results, comparisons: Comparisons, place: Standing) -> Iterator[str]:
    """Where over sigma the best is lower, only after it was shown to be better at all."""
    case, arm, best, rival = place.case, place.arm, place.best, place.rival
    one = comparisons.of(case, arm, best, rival)
    versus = per_level(results, case, arm, best, rival) if one and _is_better(one, best) else {}
    if not versus:
        return
    ranges = {"lower": _ranges(versus, "better"), "higher": _ranges(versus, "worse")}
    parts = [f"{word} at σ = {listed(sigmas)}" for word, sigmas in ranges.items() if sigmas]
    measure = "excess risk" if results.oracle(case) else "loss"
    if parts:
        yield (
            f"Against {rival}, the {measure} of {best} is {' and '.join(parts)} (Holm over "
            f"{len(versus)} noise levels; elsewhere no difference is shown)."
        )
    else:
        yield f"At no single noise level is a difference of {best} from {rival} shown."


def _ranges(versus: Mapping[float, Comparison], verdict: str) -> list[str]:
    """Runs of neighbouring levels with that verdict: `0.002–0.07`."""
    ranges = []
    levels = sorted(versus)
    for same, run in itertools.groupby(levels, key=lambda sigma: versus[sigma].verdict == verdict):
        sigmas = [f"{sigma:.3g}" for sigma in run]
        if same:
            ranges.append("–".join(dict.fromkeys((sigmas[0], sigmas[-1]))))
    return ranges


def _shrinks(results: Results, one: Versus) -> list[str]:
    """Whether the variants lie closer together in a later arm than in the first."""
    c = one.comparison
    if c is None:
        return []
    if c.diverged:
        return [f"{capital(SPREAD)} is not compared between arms ({one.verdict})."]
    both = in_both(results, one.case, one.arm, one.against_arm)
    sides = [spread(results, one.case, arm, both) for arm in (one.against_arm, one.arm)]
    common = sides[0].index.intersection(sides[1].index)
    there, here = (number(float(np.exp(np.log(side[common]).mean()))) for side in sides)
    change = f"from {there} in “{one.against_arm}” to {here} in “{one.arm}”"
    factor = f"a factor of {between(c.ratio, c.low, c.high)}, {_holm(c) or 'too few seeds to test'}"
    if verb := _changes(one):
        return [f"{capital(SPREAD)} {verb} {change} ({factor})."]
    return [f"No change of {SPREAD} is shown: {change} ({factor})."]


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


def _unfinished(results: Results) -> list[str]:
    counts = results.trials.drop_duplicates("id")["status"].value_counts()
    rest = counts.drop(["finished", "diverged"], errors="ignore").sort_index()
    if rest.empty:
        return []
    words = listed([f"{count} {status}" for status, count in rest.items()])
    return [f"Of {counts.sum()} trials: {words}. Their seeds are missing from the comparisons."]
