"""Equal objectives in a report: which variants are one setting, and how far their trials differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.report.results import Results
from testbed.report.words import listed, number


def groups(results: Results, case: str, arm: str) -> list[dict[str, Any]]:
    """Returns the records of equal objectives, as in study.json, of one case and arm."""
    records = results.study.get("equal_objectives") or []
    return [group for group in records if (group["case"], group["arm"]) == (case, arm)]


def mirrored(group: Mapping[str, Any]) -> bool:
    """Whether the members differ at most by the sign of F."""
    return all(abs(c) == 1 for c in group.get("factors", ()))


def equal_to(results: Results, case: str, arm: str, variant: str) -> list[str]:
    """Returns the variants that are one setting with `variant`, in the order of the case.

    They train as its mirror images and are never compared with it. Those whose F differs by more
    than the sign are compared: Adam's steps do not scale with F.
    """
    members = {
        name
        for group in groups(results, case, arm)
        if mirrored(group) and variant in group["members"]
        for name in group["members"]
    }
    return [v for v in results.variants(case, arm) if v in members and v != variant]


def distinct(results: Results, case: str, arm: str, variants: Iterable[str]) -> list[str]:
    """Returns the variants without those whose objective is equal to that of an earlier one."""
    kept: list[str] = []
    for name in variants:
        if not set(kept) & set(equal_to(results, case, arm, name)):
            kept.append(name)
    return kept


def sentence(results: Results, group: Mapping[str, Any]) -> str:
    """Returns `v and edm are equal objectives (...), and ...`, without a full stop."""
    text = f"{listed(group['members'])} are equal objectives ({group['why']})"
    gap = _gap(results, group)
    if math.isnan(gap) or not mirrored(group):
        return text
    if gap == 0:
        return f"{text}, and every metric of theirs is the same number at every seed"
    if math.isinf(gap):
        return f"{text}, and yet at some seed only one of them diverged"
    return f"{text}, and their metrics differ by at most {number(gap)} of their size at any seed"


def sentences_of(results: Results, case: str, arm: str) -> str:
    """Returns the sentences on all equal objectives of a case and arm, or nothing."""
    return "; ".join(sentence(results, group) for group in groups(results, case, arm))


def _gap(results: Results, group: Mapping[str, Any]) -> float:
    """Returns the largest difference of any metric from the first member's at the same seed.

    It is relative to the larger size; nan where no two have ended at the same seed, and inf where
    only one of them diverged.
    """
    case, arm, (first, *others) = group["case"], group["arm"], group["members"]
    gaps = []
    for metric in results.metric_names(case):
        a = results.values(case, arm, first, metric)
        for name in others:
            b = results.values(case, arm, name, metric)
            gaps += [_difference(a[seed], b[seed]) for seed in a.index.intersection(b.index)]
    return max(gaps, default=math.nan)


def _difference(x: float, y: float) -> float:
    """Returns |x - y| over the larger size; 0 for equal numbers, inf where one is not finite."""
    if x == y:
        return 0.0
    return abs(x - y) / max(abs(x), abs(y)) if math.isfinite(x + y) else math.inf
