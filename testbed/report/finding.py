"""The finding of a study in words: every claim is the verdict of a corrected comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from testbed.metrics.statistics import ALPHA, MIN_SEEDS, POWER, Comparison
from testbed.report.comparisons import (
    Comparisons,
    Versus,
    baseline_note,
    baseline_of,
    geometric,
    interval,
    per_level,
    spread,
)
from testbed.report.equal_objectives import distinct, sentences_of, twins_of
from testbed.report.results import Results
from testbed.report.words import between, capital, listed, number, p_value, title

SIGNIFICANT = f"p < {ALPHA:g} after Holm’s correction and an interval without 1"
SPREAD = "the spread between parameterizations (worst over best within a seed)"


def headline(results: Results, comparisons: Comparisons) -> list[tuple[str, str]]:
    """(case, text): who wins where, in a sentence for each case; last what holds for all."""
    found = []
    for case in results.cases:
        parts = [_short(results, comparisons, case, arm) for arm in results.arms(case)]
        for one in comparisons.spreads:
            changed = {"better": "shrinks", "worse": "grows"}.get(one.verdict)
            if one.case == case and one.comparison is not None:
                what = f"the spread between parameterizations {changed} there"
                parts.append(what if changed else "no change of the spread is shown")
        found.append((f"{case or 'All data'} {_measured(results, case)}:", f"{'; '.join(parts)}."))
    compared = (*comparisons.baseline, *comparisons.pairs, *comparisons.arms)
    rates = _rates(results) if any(one.comparison for one in compared) else []
    rest = [*_unfinished(results), *rates, *_identities(results)]
    return [*found, ("", " ".join(rest))]


def _short(results: Results, comparisons: Comparisons, case: str, arm: str) -> str:
    ranked = ranking(results, case, arm)
    where = f" in “{arm}”" if arm else ""
    twins = twins_of(results, case, arm, ranked[0]) if ranked else []
    if len(ranked) < 2 and twins:
        return f"there is no winner{where}: {sentences_of(results, case, arm)}"
    if len(ranked) < 2:
        return f"nothing can be compared{where}"
    best = ranked[0]
    reference = baseline_of(results, case, arm)
    one = comparisons.to_baseline(case, arm, best)
    c = one.comparison if one else None
    name = f"the baseline {best}" if best == reference else best
    name += f" (and its twin {listed(twins)})" if twins else ""
    place = ""
    if c is not None and not c.diverged:
        place = f" at {between(c.ratio, c.low, c.high)} times the baseline {reference}"
        place += "" if math.isnan(c.p_holm) else f" ({p_value(c.p_holm)} after Holm)"
    lost = _diverged(results, case, arm)
    place += f" (diverged: {lost})" if lost else ""
    if winner(results, comparisons, case, arm):
        return f"{name} wins{where}{place}"
    return f"no winner is shown{where}, where {name} has the lowest mean{place}"


def sentences(results: Results, comparisons: Comparisons) -> list[tuple[str, list[str]]]:
    """(case, paragraphs) with every number that the headline stands on."""
    found = []
    for case in results.cases:
        arms = results.arms(case)
        words = [_arm(results, comparisons, case, arm) for arm in arms]
        notes = dict.fromkeys(baseline_note(results, case, arm) for arm in arms)
        words = [*filter(None, notes), *words]
        for one in comparisons.spreads:
            words += _shrinks(results, one) if one.case == case else []
        words += _power(one for one in comparisons.baseline if one.case == case)
        found.append((case or "All data", words))
    return found


def ranking(results: Results, case: str, arm: str) -> list[str]:
    """Variants with results and without divergence, by their mean over the seeds of them all.

    Of twins only the first.
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


def undecided(
    results: Results, comparisons: Comparisons, case: str, arm: str, best: str
) -> list[Versus]:
    """The comparisons of `best` with the other ranked variants that do not show it to be better."""
    others = [name for name in ranking(results, case, arm) if name != best]
    found = [comparisons.of(case, arm, best, name) for name in others]
    return [one for one in found if one and not _is_better(one, best)]


def winner(results: Results, comparisons: Comparisons, case: str, arm: str) -> str | None:
    """The variant shown to be better than every other ranked one, twins aside."""
    ranked = ranking(results, case, arm)
    if len(ranked) < 2 or undecided(results, comparisons, case, arm, ranked[0]):
        return None
    return ranked[0]


def _is_better(one: Versus, best: str) -> bool:
    return one.verdict == ("better" if one.variant == best else "worse")


def _measured(results: Results, case: str) -> str:
    counts = sorted(
        {
            len(results.of(case, arm, variant))
            for arm in results.arms(case)
            for variant in results.variants(case, arm)
        }
    )
    seeds = f"{' or '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"
    exact = "exact oracle" if results.oracle(case) else "no oracle"
    return f"({title(results.primary(case))}, lower is better; {seeds}; {exact})"


def _arm(results: Results, comparisons: Comparisons, case: str, arm: str) -> str:
    where = f"In the arm “{arm}”" if arm else "Overall"
    ranked, variants = ranking(results, case, arm), results.variants(case, arm)
    diverged = _diverged(results, case, arm)
    lost = [f"Diverged: {diverged}; counted, without a mean or a test."] if diverged else []
    twins = twins_of(results, case, arm, ranked[0]) if ranked else []
    known = sentences_of(results, case, arm)
    if len(ranked) < 2 and twins:
        return " ".join([f"{where} there is no winner: {known}.", *lost])
    if len(ranked) < 2:
        who = f"only {ranked[0]} has" if ranked else "no variant has"
        what = "a mean over its seeds" if len(variants) > 1 or not ranked else "been run"
        return " ".join([f"{where} {who} {what}: nothing is compared.", *lost])
    best, won = ranked[0], winner(results, comparisons, case, arm)
    named = best + (f" (and its twin {listed(twins)})" if twins else "")
    ratio = _ratio(results, comparisons, case, arm, ranked)
    if won:
        text = f"{where} {named} wins: it is better than every other{' ranked one' if lost else ''}"
    else:
        open_ = undecided(results, comparisons, case, arm, best)
        names = [one.against if one.variant == best else one.variant for one in open_]
        if any(one.verdict == "too few seeds" for one in open_):
            why = f"fewer than {MIN_SEEDS} seeds are too few to test"
        else:
            why = f"is not shown to be better than {listed(names)}"
        text = f"{where} no winner is shown: {named} has the lowest mean, but {why}"
    levels = _levels(results, comparisons, case, arm, ranked)
    worse = _worse(comparisons, case, arm, ranked)
    more = [f"{capital(known)}."] if known else []
    return " ".join([f"{text}; {ratio}.", *levels, *worse, *more, *lost])


def _ratio(
    results: Results, comparisons: Comparisons, case: str, arm: str, ranked: list[str]
) -> str:
    """The best against the baseline; where it is the baseline, the runner-up against it."""
    best, second = ranked[:2]
    reference, twins = baseline_of(results, case, arm), twins_of(results, case, arm, best)
    own = reference in (best, *twins)
    base = "it" if best == reference else f"the baseline {reference}"
    lead = "it is"
    if own:
        what = "the baseline" if best == reference else "a twin of the baseline"
        lead = f"it is {what}, and the next, {second}, is at"
    one = comparisons.to_baseline(case, arm, second if own else best)
    if one is None or one.comparison is None or one.comparison.diverged:
        return f"{lead} without a ratio to {base} ({one.verdict if one else 'another baseline'})"
    c = one.comparison
    tested = "" if math.isnan(c.p_holm) else f", {p_value(c.p_holm)} after Holm"
    return f"{lead} {between(c.ratio, c.low, c.high)} times {base} ({c.verdict}{tested})"


def _worse(comparisons: Comparisons, case: str, arm: str, ranked: list[str]) -> list[str]:
    worse = [
        f"{one.variant} {between(c.ratio, c.low, c.high)}"
        for one in comparisons.baseline
        if (one.case, one.arm) == (case, arm)
        if (c := one.comparison) is not None and one.verdict == "worse"
    ]
    return [f"Worse than the baseline, as multiples of it: {listed(worse)}."] if worse else []


def _diverged(results: Results, case: str, arm: str) -> str:
    """`d in 1 of 5 seeds`, or nothing."""
    found = []
    for variant in results.variants(case, arm):
        trials = results.of(case, arm, variant)
        count = int((trials["status"] == "diverged").sum())
        if count:
            found.append(f"{variant} in {count} of {len(trials)} seeds")
    return listed(found)


def _levels(
    results: Results, comparisons: Comparisons, case: str, arm: str, ranked: list[str]
) -> list[str]:
    """Where over sigma the best is lower, only after it was shown to be better at all."""
    best = ranked[0]
    reference = baseline_of(results, case, arm)
    own = reference in (best, *twins_of(results, case, arm, best))
    other = ranked[1] if own else reference
    one = comparisons.of(case, arm, best, other)
    versus = per_level(results, case, arm, best, other) if one and _is_better(one, best) else {}
    if not versus:
        return []
    found = {"lower": _ranges(versus, "better"), "higher": _ranges(versus, "worse")}
    parts = [f"{word} at σ = {listed(sigmas)}" for word, sigmas in found.items() if sigmas]
    measure = "excess risk" if results.oracle(case) else "loss"
    if not parts:
        return [f"At no single noise level is a difference of {best} from {other} shown."]
    return [
        f"Against {other}, the {measure} of {best} is {' and '.join(parts)} (Holm over "
        f"{len(versus)} noise levels; elsewhere no difference is shown)."
    ]


def _ranges(versus: Mapping[float, Comparison], verdict: str) -> list[str]:
    """Runs of neighbouring levels with that verdict: `0.002–0.07`."""
    runs: list[list[float]] = [[]]
    for sigma in sorted(versus):
        if versus[sigma].verdict == verdict:
            runs[-1].append(sigma)
        elif runs[-1]:
            runs.append([])
    ends = [dict.fromkeys(f"{sigma:.3g}" for sigma in (run[0], run[-1])) for run in runs if run]
    return ["–".join(pair) for pair in ends]


def _shrinks(results: Results, one: Versus) -> list[str]:
    """Whether the variants lie closer together in a later arm than in the first."""
    c = one.comparison
    if c is None:
        return []
    if c.diverged:
        return [f"{capital(SPREAD)} is not compared between arms ({one.verdict})."]
    both = [
        name
        for name in results.variants(one.case, one.arm)
        if name in results.variants(one.case, one.against_arm)
    ]
    sides = [spread(results, one.case, arm, both) for arm in (one.against_arm, one.arm)]
    common = sides[0].index.intersection(sides[1].index)
    there, here = (number(float(np.exp(np.log(side[common]).mean()))) for side in sides)
    change = f"from {there} in “{one.against_arm}” to {here} in “{one.arm}”"
    tested = "too few seeds to test" if math.isnan(c.p_holm) else f"{p_value(c.p_holm)} after Holm"
    factor = f"a factor of {between(c.ratio, c.low, c.high)}, {tested}"
    if one.verdict in ("better", "worse"):
        verb = "shrinks" if one.verdict == "better" else "grows"
        return [f"{capital(SPREAD)} {verb} {change} ({factor})."]
    return [f"No change of {SPREAD} is shown: {change} ({factor})."]


def _power(members: Iterable[Versus]) -> list[str]:
    """The smallest ratio that could have been detected, and the limit of the exact test."""
    found = [c for one in members if (c := one.comparison) and not math.isnan(c.detectable)]
    if not found:
        return []
    span = sorted({f"{1 + min(c.detectable - 1, 1e6):.4g}" for c in found}, key=float)
    several = " (depending on the variant)" if len(span) > 1 else ""
    least = max(c.p_signflip_min for c in found)
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
    rates = {config.training.learning_rate for config in results.configs.values()}
    words = ", ".join(f"{rate:g}" for rate in sorted(rates))
    if len(rates) == 1:
        return [
            f"One learning rate, {words}, was used for all: a difference may come from how well it "
            "suits each parameterization."
        ]
    return [f"Learning rates: {words}."] if rates else []


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
    words = [f"{counts[name]} {name}" for name in sorted(counts.index)
             if name not in ("finished", "diverged")]  # fmt: skip
    if not words:
        return []
    return [
        f"Of {counts.sum()} trials: {listed(words)}. Their seeds are missing from the comparisons."
    ]
