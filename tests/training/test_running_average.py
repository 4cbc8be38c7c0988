"""The running average of the weights, beside the one computed by hand."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.training import Make, U, same, trainer

from testbed.training import rates
from testbed.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


def law_average(make: Make) -> None:
    """e_(t+1) = d e_t + (1 - d) p_(t+1), d = min(ema, (1 + t)/(10 + t)), from weights by step.

    One step rounds d, the difference, the product and the sum: 4 u of the larger of |e| and |p|.
    """
    steps, ema = 12, 0.3
    path = []
    for k in range(1, steps + 1):
        one = make(steps=k, ema=ema, learning_rate=0.05)
        if k == 1:
            path.append([p.detach().double().clone() for p in one.parameters])
        list(one)
        path.append([p.detach().double().clone() for p in one.parameters])
        average = [p.clone() for p in path[0]]
        for t in range(k):
            d = min(ema, (1 + t) / (10 + t))
            average = [d * e + (1 - d) * p for e, p in zip(average, path[t + 1], strict=True)]
        for e, found, *ps in zip(average, one.weights.views(one.ema[0]), *path, strict=True):
            size = torch.stack(ps).abs().amax(0)
            assert bool(((found.double() - e).abs() <= 4 * k * U * size).all())


def decaying(schedule: Callable[[int], float]) -> type[Trainer]:
    """A trainer whose average decays on another schedule."""

    class Mutant(Trainer):
        def _block(self, *arguments: Any) -> None:
            genuine = rates.decay
            rates.decay = lambda training, step: schedule(step)
            try:
                super()._block(*arguments)
            finally:
                rates.decay = genuine

    return Mutant


@pytest.mark.slow
def test_the_average_is_the_hand_computed_one() -> None:
    law_average(trainer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(lambda t: 0.3, id="no warm-up"),
        pytest.param(lambda t: (1 + t) / (10 + t), id="warm-up without end"),
        pytest.param(lambda t: min(0.3, (2 + t) / (11 + t)), id="off by one step"),
        pytest.param(lambda t: 1 - min(0.3, (1 + t) / (10 + t)), id="weights exchanged"),
        pytest.param(lambda t: min(0.2999, (1 + t) / (10 + t)), id="a slightly wrong decay"),
    ],
)
def test_averages_with_a_wrong_decay_are_caught(schedule: Callable[[int], float]) -> None:
    law_average(functools.partial(trainer, made=decaying(lambda t: min(0.3, (1 + t) / (10 + t)))))
    with pytest.raises(AssertionError):
        law_average(functools.partial(trainer, made=decaying(schedule)))


@pytest.mark.slow
def test_without_decay_the_average_is_the_weights() -> None:
    one = trainer(ema=0.0)
    list(one)
    assert same(one.ema, one.weights.W)


@pytest.mark.slow
def test_the_averaged_denoiser_has_the_average_for_weights() -> None:
    one = trainer()
    list(one)
    expected = [average.clone() for average in one.weights.views(one.ema[0])]
    denoiser = one.averaged()
    assert same([p.detach() for p in denoiser.parameters()], expected)
    assert not denoiser.training
