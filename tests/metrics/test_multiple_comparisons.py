"""Holm's correction and the family that it is made over."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.statistics import (
    closed_testing,
    paired,
)

from testbed.metrics.comparison import compare
from testbed.metrics.multiple_comparisons import correct, holm


@pytest.mark.slow
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_holm_properties(p: list[float], data: st.DataObject) -> None:
    adjusted = holm(p)
    order = data.draw(st.permutations(range(len(p))))
    assert adjusted == closed_testing(p)
    assert all(raw <= q <= 1 for raw, q in zip(p, adjusted, strict=True))
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


def test_holm_at_the_edges() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert math.isnan(holm([math.nan])[0])
    for bad in (-0.1, 1.1, math.inf):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            holm([0.5, bad])


def test_correct_fills_the_declared_family() -> None:
    clear = compare(*paired(6, effect=0.2, seed=1))
    weak = compare(*paired(6, effect=0.05, seed=2))
    few = compare([1.0, 2.0], [2.0, 3.0])
    gone = compare([1.0, math.inf, 1.0], [1.0, 1.0, 1.0])
    corrected = correct([weak, few, clear])
    assert [c.p_holm for c in corrected[::2]] == holm([weak.p, clear.p])
    assert math.isnan(corrected[1].p_holm)
    changed = {"p_holm": 0.0, "p_equivalent_holm": 0.0}
    assert replace(corrected[2], **changed) == replace(clear, **changed)
    # The divergence was declared too: three comparisons, not two.
    assert [c.p_holm for c in correct(iter([weak, gone, clear]))[::2]] == holm(
        [weak.p, 1.0, clear.p]
    )[::2]
    assert clear.p * 3 == correct([weak, gone, clear])[2].p_holm != corrected[2].p_holm
    assert correct([]) == []
