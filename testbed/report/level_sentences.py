"""The sentences of a finding on noise levels: where the metric lies, and what is said by band."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from testbed.metrics.comparison import Comparison
from testbed.metrics.curves import RELATIVE
from testbed.report import ranges
from testbed.report.comparisons import Comparisons, Versus
from testbed.report.learning import linear_levels
from testbed.report.ranges import CommonLevels, NoiseBand
from testbed.report.results import LABEL, Results
from testbed.report.robustness import LeaveOneOut
from testbed.report.standing import Standing, hanging
from testbed.report.words import LESS, capital, effect_text, listed, portion, title

NOISE = " noise"
"""The word that is said once of several bands."""
MOST = 0.5
"""A band that holds more than this share of a metric is said to hold most of it."""


def by_level(left: LeaveOneOut, comparisons: Comparisons, place: Standing) -> Iterator[str]:
    """The sentences on where in the noise levels the metric of a case and arm lies."""
    if place.subject is not None:
        yield from _concentration(left.results, place)
        yield from _by_band(left, comparisons, place.subject, place)


def rarely_drawn(results: Results, place: Standing) -> Iterator[str]:
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
    results = left.results
    baseline = (place.case, place.arm, place.baseline)
    whole = "the levels" if subject.metric == RELATIVE else f"that of {place.baseline}"
    for band, one, c, levels in _judged(results, comparisons, subject, place):
        share = ranges.share(results, baseline, one.metric, levels, band)
        words = [effect_text(c.ratio, c.low, c.high)]
        words += [f"hangs on {listed(found)}"] if (found := hanging(left, one)) else []
        if not math.isnan(share):
            words.insert(0, f"{portion(share)} of {whole}")
        said = "; ".join(words)
        verdict = f"different by {LESS}" if one.small else one.verdict
        parts.append(f"{verdict} at {band.name} ({said})")
    if parts:
        what = f"the {title(subject.metric)} of {subject.variant} against {place.baseline}"
        yield f"by noise level, {what}: {', '.join(parts)}."


def _judged(
    results: Results, comparisons: Comparisons, subject: Versus, place: Standing
) -> Iterator[tuple[NoiseBand, Versus, Comparison, CommonLevels]]:
    """The bands in which the subject has a verdict, each with its comparison and levels."""
    for band in ranges.bands(results):
        one = comparisons.to_baseline(place.case, place.arm, subject.variant, band.name)
        if one is None or one.comparison is None or one.levels is None or one.reason:
            continue
        yield band, one, one.comparison, one.levels


def linear_is_better(
    results: Results, comparisons: Comparisons, places: Sequence[Standing]
) -> Iterator[str]:
    """Where the linear denoiser is better than the baseline of a case, which no claim is about.

    Arms in which it is better than the same one in the same bands share a sentence.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for place in places:
        subject, baseline = place.subject, (place.case, place.arm, place.baseline)
        if subject is None:
            continue
        where = [
            band.name
            for band, one, _, levels in _judged(results, comparisons, subject, place)
            if ranges.linear_is_better(results, baseline, one.metric, levels, band)
        ]
        if where:
            key = place.baseline, _bands(where)
            found.setdefault(key, {})[place.arm] = _linear_over_all(results, place)
    known = places and results.primary(places[0].case) == RELATIVE  # it is over Wiener's loss
    linear = "Wiener" if known else "the linear denoiser fitted to the training split"
    for (name, at), shared in found.items():
        apart = listed([f"“{arm}”" for arm in shared]) if len(shared) < len(places) else ""
        whole = [f"with {names} in “{arm}”" for arm, names in shared.items() if names]
        if len({*shared.values()}) == 1:
            whole = [f"with {names}" for names in {*shared.values()} if names]
        over = f", and over all levels shared {listed(whole)}" if whole else ""
        yield capital(
            f"{f'in {apart}, ' if apart else ''}{linear} is better than {name} at {at}{over} "
            "(not tested; also without any one seed)."
        )


def _linear_over_all(results: Results, place: Standing) -> str:
    """The variants over whose levels the linear denoiser is better than the baseline in all."""
    baseline = (place.case, place.arm, place.baseline)
    known = [(one.variant, one.metric, one.levels) for one in place.versus if one.levels]
    names = [
        variant
        for variant, metric, levels in known
        if ranges.linear_is_better(results, baseline, metric, levels)
    ]
    return "every variant" if len(names) == len(known) > 1 else listed(names)


def _bands(names: Sequence[str]) -> str:
    """`high and very high noise`; bands of other edges are numbers."""
    short = [name.removesuffix(NOISE) for name in names]
    alike = all(name.endswith(NOISE) for name in names)
    return listed(short) + NOISE if alike else listed(names)


def linear_baseline(results: Results, case: str) -> Iterator[str]:
    """Where the linear denoiser is no good reference: D = x, which is linear too, does better."""
    trials = results.trials[results.trials["case"] == case]
    labels = dict.fromkeys(trials[LABEL].itertuples(index=False, name=None))
    known = [one for label in labels if (one := linear_levels(results, label)) is not None]
    levels, worse = known[0] if known else (np.empty(0), np.empty(0, dtype=bool))
    if worse.any():
        lost = levels[worse]
        at = f"{lost[0]:.2g}" + (f" to {lost[-1]:.2g}" if len(lost) > 1 else "")
        name = "Wiener" if results.primary(case) == RELATIVE else "The fitted linear denoiser"
        yield (
            f"{name} is not the best linear denoiser: the noisy input itself has less held-out "
            f"loss at {len(lost)} of {len(levels)} levels, σ = {at}."
        )
