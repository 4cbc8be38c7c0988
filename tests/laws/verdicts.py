"""Laws of a report's verdicts: their order, the levels they are taken over, what they hang on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from helpers.planted_studies import SIGMA, noisy, plant
from numpy.typing import NDArray

from testbed.metrics.comparison import Comparison
from testbed.report import comparisons, ranges, reading
from testbed.report.results import Label, Results
from testbed.report.robustness import LeaveOneOut, effect

Array = NDArray[np.float64]
Parts = Callable[[str, Mapping[str, Array], int], Array]


def planted(*arguments: Any, **settings: Any) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        return reading.read(plant(Path(folder), *arguments, **settings))


def compared(ratio: float, half: float, p: float, equivalent: float, **more: Any) -> Comparison:
    """A comparison with these corrected p and an interval of this half width on the log scale."""
    low, high = ratio * math.exp(-half), ratio * math.exp(half)
    one = Comparison(ratio, low, high, p, math.nan, math.nan, 6, math.nan)
    return replace(one, p_holm=p, p_equivalent_holm=equivalent, **more)


def law_order_of_verdicts(verdict: Callable[[Comparison], str]) -> None:
    """Diverged, equivalent even if it differs, better or worse beyond the smallest effect, open."""
    assert verdict(compared(0.5, 0.1, 0.001, 1.0)) == "better"
    assert verdict(compared(2.0, 0.1, 0.001, 1.0)) == "worse"
    assert verdict(compared(1.01, 0.002, 0.001, 0.001)) == "equivalent"
    assert verdict(compared(1.0, 0.02, 1.0, 0.001)) == "equivalent"
    assert verdict(compared(1.03, 0.01, 0.001, 0.2)) == "undecided"
    assert verdict(compared(1.3, 0.5, 0.2, 1.0)) == "undecided"
    assert verdict(compared(0.5, 0.1, 0.001, 1.0, diverged_a=1)).startswith("diverged")
    assert verdict(compared(0.5, 0.1, 0.001, 1.0, seeds=2)) == "too few seeds"


def law_parts_of_a_range(parts: Parts) -> None:
    """Over any run of levels the parts add up to the trapezoid rule over log sigma on that run."""
    rng = np.random.default_rng(0)
    sigma = np.exp(np.cumsum(rng.uniform(0.1, 1.0, 12)))
    excess = rng.uniform(0.1, 1.0, (3, 12)) * sigma**2
    for start, stop in ((0, 12), (3, 12), (0, 5), (4, 9)):
        run = slice(start, stop)
        columns = {"sigma": np.tile(sigma[run], (3, 1)), "excess": excess[:, run]}
        found = parts("excess_nats", columns, 7).sum(-1)
        rate = 7 * columns["excess"] / sigma[run] ** 2
        np.testing.assert_allclose(found, np.trapezoid(rate, np.log(sigma[run]), axis=-1), 1e-12)


def law_learnt_nothing(rule: Callable[[Results, Label, Any], str]) -> None:
    """Said of one stuck at F = 0; not of one that learns one band, may, or has nothing to learn."""

    def said(
        relative: Callable[[int, int], float], optimum: float | None = None, start: bool = True
    ) -> str:
        found = planted({("c", "", "b"): [1.0] * 4})
        levels = found.levels.copy()
        at = [SIGMA.index(sigma) for sigma in levels["sigma"]]
        ratio = [relative(i, seed) for i, seed in zip(at, levels["seed"], strict=True)]
        levels["loss"] = levels["wiener"] * ratio
        if start:
            levels["error_rms"] = levels["target_rms"] * np.sqrt(ratio)
        if optimum is not None:
            levels["optimum"] = levels["wiener"] * optimum
        changed = replace(found, levels=levels)
        label = ("c", "", "b")
        return rule(changed, label, ranges.common(changed, label))

    stuck = "b learnt nothing beyond the linear denoiser"
    assert said(lambda level, seed: 1.0 + 1e-3 * seed) == f"{stuck} (F = 0)"
    assert said(lambda level, seed: 1.0, start=False) == stuck
    assert said(lambda level, seed: 1.0, optimum=0.1) == f"{stuck} (F = 0)"
    assert said(lambda level, seed: 3.0 + 0.1 * seed, start=False) == stuck
    assert said(lambda level, seed: 1.0, optimum=0.99) == ""
    assert said(lambda level, seed: 0.5 if level == 2 else 4.0) == ""
    assert said(lambda level, seed: math.exp(0.6 * (seed - 1.5))) == ""
    assert said(lambda level, seed: 0.2) == ""


def law_a_sentence_hangs(made: Callable[[Results, str], LeaveOneOut]) -> None:
    """A sentence hangs on the seed, variant or band that carries it, and on none if all say so."""
    base = noisy(1.0, seeds=6, stream=1)
    carried = [value * factor for value, factor in zip(base, CARRIED, strict=True)]
    steady = [0.8 * value for value in noisy(1.0, seeds=6, stream=2)]
    by_band = [0.9 * value for value in noisy(1.0, seeds=6, stream=3)]
    values = {"b": base, "a": carried, "d": steady, "e": by_band}
    read = planted({("c", "", name): own for name, own in values.items()}, shape=_very_low)
    left = made(read, "c")
    found = comparisons.make(read)
    hangs = {}
    for name in ("a", "d", "e"):
        one = found.to_baseline("c", "", name)
        assert one is not None
        hangs[name] = left.hangs_on(effect(one, signed=True), partial(effect, one, True))
        assert "seed 3" in hangs[name] or left.hangs_on(effect(one, signed=True)) == []
    assert hangs == {"a": ["seed 3"], "d": [], "e": ["very low noise"]}

    def spread(less: Results) -> bool:
        names = less.variants("c")
        logs = [np.log(less.values("c", "", name, "loss_vs_wiener")).mean() for name in names]
        return bool(max(logs) - min(logs) > 0.2)

    assert left.hangs_on(spread) == ["d"]


def _very_low(variant: str, level: int) -> float:
    """The levels of variant e: 0.9 of the baseline in the mean, and 1.29 without the lowest."""
    return [1 / 3, 1.44, 1.44, 1.44][level] if variant == "e" else 1.0


CARRIED = (1.01, 1.02, 1.0, 0.5, 1.01, 1.02)
"""The ratios of a variant whose effect, -10 %, is that of seed 3."""


def law_common_range(values: Callable[..., Any]) -> None:
    """A pair is compared over the levels that both were trained on, and over no other."""
    read = planted(
        {("c", "", "a"): noisy(1.0, stream=1), ("c", "", "b"): noisy(1.0, stream=2)},
        shape=lambda variant, level: [9.0, 0.5, 0.5, 7.0][level] if variant == "a" else 1.0,
        trained={"a": (0.1, 80.0), "b": (0.002, 1.0)},
    )
    labels = ("c", "", "a"), ("c", "", "b")
    levels = ranges.common(read, *labels)
    assert levels is not None
    assert levels.levels.tolist() == [0.1, 1.0]
    a, b = (values(read, label, "loss_vs_wiener", levels) for label in labels)
    noise = np.log(noisy(1.0, stream=1)) - np.log(noisy(1.0, stream=2))
    np.testing.assert_allclose(np.log(a) - np.log(b), np.log(0.5) + noise, atol=1e-12)
