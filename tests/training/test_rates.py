"""The learning rate and the average's decay from step to step, against torch's and against sums."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import mpmath
import numpy as np
import pytest
import torch
from helpers.training import same, trainer
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.training import rates
from testbed.training.settings import WIDEST, Training

Rate = Callable[[Training, int], float]
U = 2.0**-53
STEPS, BASE = 40, 0.02


def of(schedule: str, warmup: int = 0, hold: int = 0) -> Training:
    hold = max(hold, 1) if schedule == "inverse_sqrt" else hold
    return Training(
        steps=STEPS, learning_rate=BASE, schedule=schedule, warmup=warmup, hold=hold, points=1
    )


# --- the learning rate --------------------------------------------------------------------------


def torchs(schedule: str, warmup: int) -> list[float]:
    """The learning rates of torch's own schedulers, chained."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([p], lr=BASE)
    own = torch.optim.lr_scheduler
    chained: list[Any] = []
    if schedule == "cosine":
        chained.append(own.CosineAnnealingLR(optimiser, STEPS))
    elif schedule == "linear":
        chained.append(own.LinearLR(optimiser, 1.0, 0.0, STEPS))
    elif schedule == "inverse_sqrt":
        chained.append(own.MultiplicativeLR(optimiser, lambda t: (t / (t + 1)) ** 0.5))
    if warmup > 1:
        chained.append(own.LinearLR(optimiser, 1 / warmup, 1.0, warmup - 1))
    found = []
    for _ in range(STEPS):
        found.append(float(optimiser.param_groups[0]["lr"]))
        optimiser.step()
        for one in chained:
            one.step()
    return found


def law_torch(rate: Rate) -> None:
    """As torch's schedulers; those go from step to step by a factor: 8 u for each step so far.

    CosineAnnealingLR divides by 1 + cos, which at the last step is (pi/STEPS)^2/2 = 1/324.
    """
    for schedule in ("constant", "cosine", "linear", "inverse_sqrt"):
        for warmup in (0, 7):
            expected = torchs(schedule, warmup)
            found = [rate(of(schedule, warmup), t) for t in range(STEPS)]
            np.testing.assert_allclose(found, expected, rtol=0, atol=324 * 8 * STEPS * U * BASE)


def law_hold(rate: Rate) -> None:
    """Before `hold` nothing decays; then the decay is that of the steps that are left."""
    for schedule in ("cosine", "linear"):
        one = of(schedule, hold=10)
        assert [rate(one, t) for t in range(11)] == [BASE] * 11
        rest = dataclasses.replace(one, steps=STEPS - 10, hold=0)
        assert [rate(one, t + 10) for t in range(30)] == [rate(rest, t) for t in range(30)]
    one = of("inverse_sqrt", hold=10)
    assert [rate(one, t) for t in range(10)] == [BASE] * 10
    assert rate(one, 39) == BASE / 2  # 40 = 4 hold


def test_the_rate_is_torch_s() -> None:
    law_torch(rates.learning_rate)


def test_a_decay_waits_for_its_hold() -> None:
    law_hold(rates.learning_rate)


def late(training: Training, t: int) -> float:
    return rates.learning_rate(training, min(t + 1, training.steps - 1))


def squared(training: Training, t: int) -> float:
    return rates.learning_rate(training, t) ** 2 / training.learning_rate


def forgetful(training: Training, t: int) -> float:
    return rates.learning_rate(dataclasses.replace(training, warmup=0), t)


def impatient(training: Training, t: int) -> float:
    schedule = training.schedule
    return rates.learning_rate(
        dataclasses.replace(training, hold=1 if schedule == "inverse_sqrt" else 0), t
    )


@pytest.mark.parametrize(
    ("law", "mutant"),
    [(law_torch, late), (law_torch, squared), (law_torch, forgetful), (law_hold, impatient)],
)
def test_a_wrong_rate_is_caught(law: Callable[[Rate], None], mutant: Rate) -> None:
    with pytest.raises(AssertionError):
        law(mutant)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "linear", "inverse_sqrt"])
def test_a_run_uses_the_rate_of_its_step(schedule: str) -> None:
    """Equal to a run whose constant rate is set to that of each step by hand."""
    options: dict[str, Any] = {"steps": 12, "learning_rate": BASE, "warmup": 3}
    if schedule == "inverse_sqrt":
        options["hold"] = 4
    one = trainer(schedule=schedule, **options)
    expected = [rates.learning_rate(one.training, t) for t in range(12)]
    list(one)
    by_hand = trainer(steps=12, learning_rate=BASE)
    descend = by_hand.weights.descend

    def set_rate(step: int) -> None:
        (run,) = by_hand.weights.groups
        settings = dataclasses.replace(run.settings, learning_rate=expected[step])
        by_hand.weights.groups = [run._replace(settings=settings)]
        descend(step)

    by_hand.weights.descend = set_rate  # type: ignore[method-assign]
    list(by_hand)
    assert same(one.weights.W, by_hand.weights.W)
    assert not same(one.weights.W, trainer(steps=12, learning_rate=BASE).weights.W)


# --- the average --------------------------------------------------------------------------------


def shares(decay: Rate, training: Training, steps: int) -> np.ndarray[Any, Any]:
    """What each step's weights have in the average after `steps` steps, and the start's at 0."""
    share = np.zeros(steps + 1)
    share[0] = 1.0
    for t in range(steps):
        beta = decay(training, t)
        share *= beta
        share[t + 1] += 1 - beta
    return share


def law_power(decay: Rate) -> None:
    """Shares of t^gamma: standard deviation `width` of t/n and nothing left of the start.

    The shares are differences of (t/n)^(gamma + 1) and stand for their middle: like the midpoint
    rule they miss the integral's moments by less than 1/n^2, once for each of the two moments.
    """
    n = 20_000
    for width in (0.05, 0.1, 0.2, WIDEST):
        share = shares(decay, Training(ema_width=width), n)
        t = np.arange(n + 1) / n
        mean = (share * t).sum()
        found = math.sqrt((share * (t - mean) ** 2).sum())
        assert share[0] == 0
        assert abs(share.sum() - 1) <= 4 * n * U
        assert abs(found - width) <= 2 / n**2


@pytest.mark.slow
def test_the_power_profile_has_its_width() -> None:
    law_power(rates.decay)


def flatter(training: Training, t: int) -> float:
    return float((t / (t + 1)) ** rates.exponent(training.ema_width))


def shifted(training: Training, t: int) -> float:
    return rates.decay(training, t + 1)


def squared_width(training: Training, t: int) -> float:
    return float((t / (t + 1)) ** (1 / training.ema_width**2 + 1))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [flatter, shifted, squared_width])
def test_a_wrong_profile_is_caught(mutant: Rate) -> None:
    with pytest.raises(AssertionError):
        law_power(mutant)


@given(width=st.floats(1e-4, WIDEST))
def test_the_exponent_gives_the_width(width: float) -> None:
    """The deviation of t with density (gamma + 1) t^gamma: its moments with 50 digits.

    E t^k = (gamma + 1)/(gamma + 1 + k). The cubic is evaluated at its root with terms of at most
    gamma^3 + 7 gamma^2 + (16 + y) gamma + 12 + y, eight roundings, and has the slope 3 gamma^2 +
    14 gamma + 16 - y there: their quotient is gamma's error, and the width, whose logarithm has a
    slope below 1/(gamma + 1), moves by less.
    """
    gamma = rates.exponent(width)
    assert gamma >= 0
    g, y = mpmath.mpf(gamma), width**-2
    mean, square = ((g + 1) / (g + 1 + k) for k in (1, 2))
    found = mpmath.sqrt(square - mean**2)
    terms = gamma**3 + 7 * gamma**2 + (16 + y) * gamma + 12 + y
    moved = 8 * U * terms / (3 * gamma**2 + 14 * gamma + 16 - y) / (gamma + 1)
    assert abs(found / width - 1) <= moved + 4 * U


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, math.nan])
def test_a_width_that_no_profile_has_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        rates.exponent(width)


@pytest.mark.slow
def test_a_run_keeps_the_power_average() -> None:
    """The average of the weights by step, with the shares that the profile gives them."""
    width, steps, path = 0.15, 10, []
    for k in range(1, steps + 1):
        one = trainer(steps=k, ema_width=width, learning_rate=0.05)
        list(one)
        path.append(one.weights.W[0].double().clone())
    share = shares(rates.decay, one.training, steps)
    expected = sum(s * w for s, w in zip(share[1:], path, strict=True))
    size = torch.stack(path).abs().amax(0)
    # Each step rounds four times in float32.
    assert bool(((one.ema[0].double() - expected).abs() <= 4 * steps * 2.0**-24 * size).all())


@pytest.mark.slow
def test_the_width_takes_the_place_of_the_decay() -> None:
    runs = [trainer(steps=20, ema=ema, ema_width=0.1) for ema in (0.2, 0.999)]
    for one in runs:
        list(one)
    assert same(runs[0].ema, runs[1].ema)
    with mock.patch.object(rates, "decay", lambda training, t: min(training.ema, 0.5)):
        other = trainer(steps=20, ema=0.2, ema_width=0.1)
        list(other)
    assert not same(runs[0].ema, other.ema)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup": -1}, "warmup = -1 is out of range"),
        ({"ema_width": 0.3}, "ema_width = 0.3 is out of range"),
        ({"schedule": "cosine", "hold": 2000}, "hold = 2000 is out of range"),
        ({"schedule": "inverse_sqrt"}, "give hold"),
        ({"hold": 5}, "hold = 5 delays a decay"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_settings_that_say_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Training(**options)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_rate() -> None:
    options: dict[str, Any] = {"steps": 100, "schedule": "cosine", "warmup": 10, "ema_width": 0.1}
    whole = trainer(**options, points=2)
    rows = iter(whole)
    next(rows)
    tensors, facts = whole.state()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    list(rows)
    resumed = trainer(**options, points=2)
    resumed.restore(tensors, facts)
    list(resumed)
    assert same(whole.ema, resumed.ema)
    assert same(whole.weights.W, resumed.weights.W)
