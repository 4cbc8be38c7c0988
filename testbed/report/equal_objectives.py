"""Twins in a report: which variants are one setting, and how alike their trials came out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.report.results import Results
from testbed.report.words import listed, number


def are_twins(results: Results, case: str, arm: str, one: str, other: str) -> bool:
    """Whether two variants are one setting up to the sign of F, and so never compared.

    Those whose F differs by another factor are: Adam's steps do not scale with it.
    """
    return one != other and any(
        mirrored(twin) and {one, other} <= set(twin["members"])
        for twin in groups(results, case, arm)
    )


def mirrored(twin: Mapping[str, Any]) -> bool:
    """Whether the members differ at most by the sign of F."""
    return all(abs(c) == 1 for c in twin.get("factors", ()))


def groups(results: Results, case: str, arm: str) -> list[dict[str, Any]]:
    """The records of twins, as in study.json, of one case and arm."""
    found = results.study.get("twins") or []
    return [twin for twin in found if (twin["case"], twin["arm"]) == (case, arm)]


def twins_of(results: Results, case: str, arm: str, variant: str) -> list[str]:
    """The twins of a variant, in the order of the case."""
    return [v for v in results.variants(case, arm) if are_twins(results, case, arm, variant, v)]


def distinct(results: Results, case: str, arm: str, variants: Iterable[str]) -> list[str]:
    """The variants without those that are a twin of an earlier one."""
    kept: list[str] = []
    for name in variants:
        if not any(are_twins(results, case, arm, name, other) for other in kept):
            kept.append(name)
    return kept


def sentence(results: Results, twin: Mapping[str, Any]) -> str:
    """`v and edm are twins (the same objective; F differs by the sign), and ...`, unpunctuated."""
    found = f"{listed(twin['members'])} are twins ({twin['why']})"
    gap = _gap(results, twin)
    if math.isnan(gap) or not mirrored(twin):
        return found
    if gap == 0:
        return f"{found}, and every metric of theirs is the same number at every seed"
    if math.isinf(gap):
        return f"{found}, and yet at some seed only one of them diverged"
    return f"{found}, and their metrics differ by at most {number(gap)} of their size at any seed"


def sentences_of(results: Results, case: str, arm: str) -> str:
    """The sentences on all twins of a case and arm, or nothing."""
    return "; ".join(sentence(results, twin) for twin in groups(results, case, arm))


def _gap(results: Results, twin: Mapping[str, Any]) -> float:
    """The largest difference of any metric from the first member's at the same seed, relative.

    nan where no two have ended at the same seed, inf where only one of them diverged.
    """
    case, arm, (first, *others) = twin["case"], twin["arm"], twin["members"]
    gaps = []
    for metric in results.metric_names(case):
        a = results.values(case, arm, first, metric)
        for name in others:
            b = results.values(case, arm, name, metric)
            gaps += [_apart(a[seed], b[seed]) for seed in a.index.intersection(b.index)]
    return max(gaps, default=math.nan)


def _apart(x: float, y: float) -> float:
    """|x - y| over the larger size; 0 for equal numbers, inf where only one is finite."""
    if x == y:
        return 0.0
    return abs(x - y) / max(abs(x), abs(y)) if math.isfinite(x + y) else math.inf
