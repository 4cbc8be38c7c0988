"""The finding of a study in words: each sentence is computed from a corrected comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from testbed.metrics.statistics import ALPHA, MIN_SEEDS, POWER, Comparison
from testbed.study.comparisons import (
    Comparisons,
    Versus,
    are_twins,
    baseline_of,
    geometric,
    interval,
    per_level,
    spread,
)
from testbed.study.results import Results

METRICS = {
    "loss_vs_wiener": (
        "loss / Wiener loss",
        "the geometric mean over noise levels of the loss over that of the best linear denoiser; "
        "below 1 beats it",
    ),
    "excess_nats": (
        "excess risk in nats",
        "the part of the bound KL(data ‖ model) ≤ ∫ excess(σ)/σ³ dσ that lies in the range of noise "
        "levels: what learning missed, 0 for the exact denoiser",
    ),
    "energy": ("energy distance", "energy distance of samples to held-out data"),
    "mmd": ("MMD²", "unbiased multi-bandwidth MMD² of samples to held-out data"),
    "off_plane": ("off-plane energy", "energy per dimension of samples outside the data's plane"),
    "nearest_train": ("distance to train", "mean distance of samples to the nearest training one"),
    "nearest_test": ("distance to test", "mean distance of samples to the nearest held-out one"),
}


def title(metric: str) -> str:
    """A metric's name for a table."""
    return METRICS.get(metric, (metric, ""))[0]


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    size = abs(value)
    if value and not 1e-3 <= size < 9999.5:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits}e{int(power)}"
    return f"{value:.3g}" if size < 999.5 else f"{value:.0f}"


def between(value: float, low: float, high: float) -> str:
    """`1.02 [0.98, 1.06]`; without bounds where there are none."""
    if math.isnan(low):
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def probability(p: float) -> str:
    """A p value: three decimals, or `< 0.001`."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _p(p: float) -> str:
    return f"p {probability(p)}" if p < 0.001 else f"p = {probability(p)}"


def sentences(results: Results, comparisons: Comparisons) -> list[tuple[str, list[str]]]:
    """(case, sentences) for every case, then ("", ...) with what holds for the whole study."""
    found = []
    for case in results.cases:
        words = [_measured(results, case)]
        for arm in results.arms(case):
            words += _arm(results, comparisons, case, arm)
        words += [
            s for one in comparisons.spreads if one.case == case for s in _shrinks(results, one)
        ]
        words += _detectable(one for one in comparisons.baseline if one.case == case)
        found.append((case or "All data", words))
    found.append(("", [*_rates(results), *_identities(results), *_unfinished(results)]))
    return found


def _measured(results: Results, case: str) -> str:
    counts = sorted({len(results.of(case, a, v)) for a in results.arms(case)
                     for v in results.variants(case, a)})  # fmt: skip
    seeds = " or ".join(map(str, counts))
    exact = "exact oracle" if results.oracle(case) else "no oracle"
    plural = "seed" if counts == [1] else "seeds"
    return f"({title(results.primary(case))}, lower is better; {seeds} {plural}, {exact})"


def ranking(results: Results, case: str, arm: str) -> list[tuple[str, float]]:
    """Variants whose seeds all ended without divergence, by their mean primary metric."""
    metric = results.primary(case)
    log = geometric(results, case, metric)
    means = []
    for variant in results.variants(case, arm):
        values = results.values(case, arm, variant, metric).to_numpy()
        mean = interval(values, results.level, log).value
        if not math.isnan(mean):
            means.append((variant, mean))
    return sorted(means, key=lambda item: item[1])


def rivals(comparisons: Comparisons, case: str, arm: str, best: str) -> dict[str, Versus]:
    """The pair comparisons of `best`, by the other variant, each turned to `best` over the other."""
    found = {}
    for one in comparisons.pairs:
        if (one.case, one.arm) == (case, arm) and best in (one.variant, one.against):
            other = one.against if one.variant == best else one.variant
            found[other] = one
    return found


def is_better(one: Versus, best: str) -> bool:
    """Whether the corrected verdict of a pair says that `best` is lower."""
    return one.verdict == ("better" if one.variant == best else "worse")


def winner(results: Results, comparisons: Comparisons, case: str, arm: str) -> str | None:
    """The variant that is significantly better than every other that finished, twins aside."""
    ranked = ranking(results, case, arm)
    if not ranked:
        return None
    best = ranked[0][0]
    against = rivals(comparisons, case, arm, best)
    compared = [
        against[name] for name, _ in ranked[1:] if not are_twins(results, case, arm, best, name)
    ]
    return best if compared and all(is_better(one, best) for one in compared) else None


def _arm(results: Results, comparisons: Comparisons, case: str, arm: str) -> list[str]:
    where = f"In the arm “{arm}” " if arm else ""
    ranked = ranking(results, case, arm)
    variants = results.variants(case, arm)
    lost = _diverged(results, case, arm)
    if not ranked:
        return [_sentence(f"{where}no variant has a result in every seed.{lost}")]
    best = ranked[0][0]
    if len(ranked) == 1:
        only = "the only variant" if len(variants) == 1 else "the only variant that can be ranked"
        return [_sentence(f"{where}{best} is {only}: nothing is compared.{lost}")]
    ratio = _ratio(results, comparisons, case, arm, best, ranked)
    won = winner(results, comparisons, case, arm)
    twins = [v for v in variants if are_twins(results, case, arm, best, v)]
    alias = f" (and its twin {', '.join(twins)})" if twins else ""
    against = rivals(comparisons, case, arm, best)
    if won:
        ps = [c.p_holm for n, _ in ranked[1:] if (c := against[n].comparison) is not None]
        text = (
            f"{where}{best}{alias} wins: lower than every other that finished (largest {_p(max(ps))}, "
            f"Holm over all pairs); {ratio}."
        )
    else:
        undecided = [
            name
            for name, _ in ranked[1:]
            if not is_better(against[name], best) and not are_twins(results, case, arm, best, name)
        ]
        few = any(against[name].verdict == "too few seeds" for name in undecided)
        why = (
            f"fewer than {MIN_SEEDS} seeds are too few to test"
            if few
            else f"no difference from {_list(undecided)} is shown"
            if undecided
            else "its only rival is its twin"
        )
        text = f"{where}no winner is shown: {best}{alias} has the lowest mean, but {why}; {ratio}."
    return [_sentence(text + _worse(comparisons, case, arm, best) + lost),
            *_levels(results, comparisons, case, arm, ranked)]  # fmt: skip


def _ratio(
    results: Results,
    comparisons: Comparisons,
    case: str,
    arm: str,
    best: str,
    ranked: Sequence[tuple[str, float]],
) -> str:
    """The best against the baseline; where it is the baseline, the runner-up against it."""
    reference = baseline_of(results, case, arm, best)
    second = ranked[1][0]
    subject = best if best != reference else second
    one = comparisons.to_baseline(case, arm, subject)
    lead = "it is" if best != reference else f"it is the baseline; the next, {second}, is at"
    if one is None or one.comparison is None:
        why = one.reason if one is not None else f"{second} has another baseline"
        return f"{lead} without a ratio to the baseline ({why})"
    c = one.comparison
    if c.diverged:
        return f"{lead} without a ratio to the baseline {one.against} ({one.verdict})"
    verdict = {"better": "better", "worse": "worse"}.get(c.verdict, c.verdict)
    tested = "" if math.isnan(c.p_holm) else f", {_p(c.p_holm)} after Holm"
    base = f"the baseline {reference}" if best != reference else "it"
    return f"{lead} {between(c.ratio, c.low, c.high)} times {base} ({verdict}{tested})"


def _worse(comparisons: Comparisons, case: str, arm: str, best: str) -> str:
    worse = [
        f"{one.variant} ({between(c.ratio, c.low, c.high)})"
        for one in comparisons.baseline
        if (one.case, one.arm) == (case, arm) and one.variant != best
        if (c := one.comparison) is not None and c.verdict == "worse"
    ]
    return f" Worse than the baseline: {_list(worse)}." if worse else ""


def _diverged(results: Results, case: str, arm: str) -> str:
    lost = []
    for variant in results.variants(case, arm):
        trials = results.of(case, arm, variant)
        count = int((trials["status"] == "diverged").sum())
        if count:
            lost.append(f"{variant} diverged in {count} of {len(trials)} seeds")
    return f" {_capital(_list(lost))}: counted, and without a mean or a test." if lost else ""


def _levels(
    results: Results,
    comparisons: Comparisons,
    case: str,
    arm: str,
    ranked: Sequence[tuple[str, float]],
) -> list[str]:
    """Where over sigma the best beats the baseline, only after it was shown to beat it at all."""
    best, reference = ranked[0][0], baseline_of(results, case, arm, ranked[0][0])
    if best == reference:
        other = ranked[1][0]
        one = comparisons.to_baseline(case, arm, other)
        shown = one is not None and one.verdict == "worse"
    else:
        other = reference
        one = comparisons.to_baseline(case, arm, best)
        shown = one is not None and one.verdict == "better"
    versus = per_level(results, case, arm, best, other) if shown else {}
    if not versus:
        return []
    lower, higher = _ranges(versus, "better"), _ranges(versus, "worse")
    measure = "excess risk" if results.oracle(case) else "loss"
    if not lower and not higher:
        return [f"Per noise level no difference of {best} from {other} is shown."]
    parts = [f"lower than {other}’s at σ = {_list(lower)}"] if lower else []
    parts += (
        [f"higher{'' if lower else f' than {other}’s'} at σ = {_list(higher)}"] if higher else []
    )
    return [
        f"The {measure} of {best} is {' and '.join(parts)} "
        f"(Holm over {len(versus)} levels; elsewhere no difference is shown)."
    ]


def _ranges(versus: dict[float, Comparison] | object, verdict: str) -> list[str]:
    """Runs of neighbouring levels with that verdict: `0.002–0.07`."""
    assert isinstance(versus, dict)
    runs: list[list[float]] = []
    before = False
    for sigma, c in sorted(versus.items()):
        now = c.verdict == verdict
        if now and before:
            runs[-1].append(sigma)
        elif now:
            runs.append([sigma])
        before = now
    return [number(r[0]) if len(r) == 1 else f"{number(r[0])}–{number(r[-1])}" for r in runs]


def _shrinks(results: Results, one: Versus) -> list[str]:
    c = one.comparison
    if c is None:
        return []
    name = f"the spread between parameterizations (worst over best within a seed) of “{one.arm}”"
    if c.diverged:
        return [
            _sentence(f"{name} is not compared with that of “{one.against_arm}”: {one.verdict}.")
        ]
    both = [v for v in results.variants(one.case, one.arm)
            if v in results.variants(one.case, one.against_arm)]  # fmt: skip
    here, there = (
        number(float(np.exp(np.log(spread(results, one.case, arm, both)).mean())))
        for arm in (one.arm, one.against_arm)
    )
    said = {"better": "shrinks", "worse": "grows"}.get(c.verdict)
    sizes = f"{there} in “{one.against_arm}”, {here} in “{one.arm}”"
    tested = "too few seeds to test" if math.isnan(c.p_holm) else f"{_p(c.p_holm)}, Holm"
    ratio = between(c.ratio, c.low, c.high)
    if said:
        return [
            f"The spread between parameterizations (worst over best within a seed) {said} from "
            f"{sizes}: by a factor of {ratio} ({tested})."
        ]
    return [
        f"No change of the spread between parameterizations (worst over best within a seed) is "
        f"shown: {sizes}; factor {ratio} ({tested})."
    ]


def _detectable(members: Iterable[Versus]) -> list[str]:
    found = [c.detectable for one in members
             if (c := one.comparison) is not None and not math.isnan(c.detectable)]  # fmt: skip
    if not found:
        return []
    low, high = number(min(found)), number(max(found))
    span = low if low == high else f"{low} to {high}, depending on the variant"
    return [
        f"Smallest ratio to the baseline that these seeds could have detected (uncorrected test, "
        f"power {POWER:g}): {span}."
    ]


def _rates(results: Results) -> list[str]:
    rates = sorted({c["training"]["learning_rate"] for c in results.configs.values()
                    if "training" in c})  # fmt: skip
    if len(rates) == 1:
        return [
            f"One learning rate, {rates[0]:g}, was used for all: a difference may be one of the "
            "learning rate that suits each."
        ]
    return [f"Learning rates: {', '.join(f'{r:g}' for r in rates)}."] if rates else []


def _identities(results: Results) -> list[str]:
    table = results.identities
    if table.empty:
        return ["No identity has been checked yet."]
    checked = table[table["reason"].fillna("") == ""]
    failed = checked[~checked["passed"]]
    if len(failed):
        laws = "; ".join(dict.fromkeys(f"{r.law} ({r.subject})" for r in failed.itertuples()))
        return [f"{len(failed)} of {len(checked)} identity checks FAILED: {laws}."]
    if checked.empty:
        return ["No identity could be checked."]
    return [
        f"All {len(checked)} identity checks hold (largest error {number(checked['ratio'].max())} of "
        "its rounding bound): in theory the contestants are the same denoiser."
    ]


def _unfinished(results: Results) -> list[str]:
    counts = results.trials.drop_duplicates("id")["status"].value_counts()
    total = int(counts.sum())
    open_ = {
        name: int(n) for name, n in sorted(counts.items()) if name not in ("finished", "diverged")
    }
    if not open_:
        return []
    words = _list([f"{n} {name}" for name, n in open_.items()])
    return [f"Of {total} trials {words}: their seeds are missing from every comparison."]


def _list(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return _capital(text.strip())


SIGNIFICANT = f"p < {ALPHA:g} after Holm’s correction, with an interval that excludes 1"
