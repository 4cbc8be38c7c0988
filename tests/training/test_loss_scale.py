"""The loss of a training is divided by its expected value at F = 0."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from helpers.training import FIVE, REGISTRY, data, published, trainer

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.training.objective import Objective
from testbed.training.trainer import draws

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")

# See test_data.py: everything here is seeded, so a law that holds once holds always.
Z = 5.0


def law_unit_loss(scale: Callable[[Objective, Data], float] = Objective.scale) -> None:
    """At step 0, F = 0, the loss is 1: for every recipe, and with everything shared.

    Its error is that of a batch of 8192 and of the scale's own 8192 draws.
    """
    batch = 8192
    arms = [published(name, batch=batch, steps=1) for name in FIVE]
    arms += [trainer(name, batch=batch, steps=1) for name in FIVE]
    arms += [
        trainer(name, loss=loss, weighting=None, batch=batch, steps=1)
        for name, loss in (("v", "l1"), ("x0", "huber"), ("score", "score"))
    ]
    for one in arms:
        one.scale = scale(one.objective, data())
        drawn = draws(0, 0, batch, 400, (2,))
        x0, eps = data().train[drawn.indices[0]].double(), drawn.eps[0].double()
        sigma = one.objective.density.sigma(drawn.u[0])
        per_draw = one.objective(torch.zeros_like(x0), x0, eps, sigma)
        (row,) = one
        error = float(per_draw.std() / per_draw.mean()) * math.sqrt(2 / batch)
        assert abs(math.log(row.loss)) < Z * error


@pytest.mark.slow
def test_the_loss_starts_at_one() -> None:
    law_unit_loss()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda o, d: 1.0, id="unscaled"),
        pytest.param(lambda o, d: d.train[0].numel() * o.scale(d), id="sum for mean"),
        pytest.param(
            lambda o, d: dataclasses.replace(o, density=REGISTRY.density("loguniform")).scale(d),
            id="another density",
        ),
        pytest.param(lambda o, d: math.sqrt(o.scale(d)), id="root"),
    ],
)
def test_scale_mutants_are_caught(mutant: Callable[[Objective, Data], float]) -> None:
    with pytest.raises(AssertionError):
        law_unit_loss(mutant)


def test_the_scale_is_one_number_for_every_seed() -> None:
    assert trainer(seed=0).scale == trainer(seed=1).scale


def test_a_loss_of_zero_at_the_start_is_refused() -> None:
    nothing = testbed.Weighting("nothing", lambda sigma: 0 * sigma)
    objective = dataclasses.replace(trainer().objective, weighting=nothing)
    with pytest.raises(InputError, match=r"loss at F = 0 is 0\.0"):
        objective.scale(data())
