"""A training that diverges: the step is known, and the average is that of the row before."""

import dataclasses
import itertools
import math

import pytest
from helpers.training import same, trainer
from torch import Tensor

import testbed
from testbed.training.trainer import BLOCK

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


def fragile(step: int, value: float = math.nan) -> testbed.Loss:
    """A loss that is `value` at the given step; its first call is the scale's."""
    calls = itertools.count(-1)

    def function(prediction: Tensor, target: Tensor) -> Tensor:
        good = (prediction - target).square()
        return good * value if next(calls) == step else good

    return testbed.Loss("fragile", function)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 1, BLOCK - 1, BLOCK, BLOCK + 23, 2 * BLOCK - 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_the_step_of_the_first_loss_that_is_not_finite(
    step: int, value: float
) -> None:
    one = trainer(loss=fragile(step, value), steps=3 * BLOCK)
    rows = list(one)
    assert one.diverged_at == step
    assert [row.step for row in rows] == [BLOCK] * (step >= BLOCK)


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, BLOCK + 23])
def test_after_divergence_the_average_is_that_of_the_row_before(step: int) -> None:
    one = trainer(loss=fragile(step), steps=3 * BLOCK)
    list(one)
    before = trainer(loss=fragile(-9), steps=max(1, step // BLOCK * BLOCK))
    start = before.ema.clone()
    if step >= BLOCK:
        list(before)
        start = before.ema
    assert all(bool(average.isfinite().all()) for average in one.ema)
    assert same(one.ema, start)


def test_divergence_of_the_gradient_alone_is_noticed() -> None:
    calls = itertools.count(-1)

    def function(prediction: Tensor, target: Tensor) -> Tensor:
        good = (prediction - target).square()
        return good + (0 * good).sqrt() if next(calls) == 7 else good

    one = trainer(loss=testbed.Loss("steep", function))
    assert list(one) == []
    assert one.diverged_at == 7


@pytest.mark.parametrize("steps", [1, BLOCK, BLOCK + 1])
def test_divergence_of_the_very_last_update_is_noticed(steps: int) -> None:
    # Losses and gradients are finite up to the end; the last update leaves float32.
    one = trainer(steps=steps)
    descend = one.weights.descend

    def last(step: int) -> None:
        if step == steps - 1:
            (run,) = one.weights.groups
            settings = dataclasses.replace(run.settings, learning_rate=1e39)
            one.weights.groups = [run._replace(settings=settings)]
        descend(step)

    one.weights.descend = last
    list(one)
    assert one.diverged_at == steps - 1
    assert all(bool(average.isfinite().all()) for average in one.ema)


@pytest.mark.slow
def test_a_diverged_run_does_not_go_on() -> None:
    one = trainer(loss=fragile(3))
    list(one)
    assert list(one) == []


def test_a_run_that_does_not_diverge_says_so() -> None:
    one = trainer()
    list(one)
    assert one.diverged_at is None
