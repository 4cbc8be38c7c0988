"""The training engine: a run is the same bit for bit, and what its rows say."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import FIVE, REGISTRY, U, data, gradient_norms, published, ran, same, trainer
from torch import Tensor

from testbed.training.trainer import BLOCK, Trainer, draws

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_a_run_is_the_same_bit_for_bit(name: str) -> None:
    assert same(ran(published(name)), ran(published(name)))


@pytest.mark.slow
def test_another_seed_is_another_run() -> None:
    one, other = (ran(trainer(seed=seed)) for seed in (0, 1))
    assert not same(one[1][0]["W"], other[1][0]["W"])


@pytest.mark.slow
def test_a_run_uses_no_global_generator() -> None:
    before = torch.get_rng_state()
    list(published("v"))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_global_generator() -> None:
    one = ran(trainer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        assert same(ran(trainer()), one)


def test_a_run_leaves_the_data_as_they_were() -> None:
    set_ = data(data_seed=5)
    digest = set_.digest
    list(trainer(set_=set_))
    assert set_.digest == digest


@pytest.mark.slow
def test_the_number_of_rows_changes_no_number() -> None:
    one, other = (ran(trainer(steps=3 * BLOCK, points=points)) for points in (1, 200))
    assert same(one[1], other[1])
    assert (len(one[0]), len(other[0])) == (1, 3)


@pytest.mark.slow
def test_longer_training_begins_the_same() -> None:
    one, other = (ran(trainer(steps=steps))[0] for steps in (BLOCK, 3 * BLOCK))
    assert same(one[0], other[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "points", "expected"),
    [
        (30, 200, [30]),
        (BLOCK, 1, [BLOCK]),
        (3 * BLOCK, 200, [BLOCK, 2 * BLOCK, 3 * BLOCK]),
        (2 * BLOCK + 20, 200, [BLOCK, 2 * BLOCK, 2 * BLOCK + 20]),
        (4 * BLOCK, 2, [2 * BLOCK, 4 * BLOCK]),
        (2 * BLOCK, 1, [2 * BLOCK]),
    ],
)
def test_rows_come_at_multiples_of_the_interval(
    steps: int, points: int, expected: list[int]
) -> None:
    assert [row.step for row in trainer(steps=steps, points=points, batch=2)] == expected


def test_two_thousand_steps_have_forty_rows_of_a_block_each() -> None:
    assert trainer(steps=2000, points=40).interval == BLOCK
    assert trainer(steps=20_000, points=200).interval == 2 * BLOCK


def at_start(one: Trainer, steps: int, batch: int) -> tuple[Tensor, Tensor]:
    """Scaled losses and levels of the first steps of a network that stays at F = 0."""
    drawn = draws(0, 0, batch, 400, (2,))
    sigma = one.objective.density.sigma(drawn.u[:steps]).reshape(-1)
    x0 = data().train[drawn.indices[:steps]].reshape(-1, 2)
    eps = drawn.eps[:steps].reshape(-1, 2)
    loss = one.objective(torch.zeros_like(x0), x0, eps, sigma.float()) / one.scale
    return loss.double(), sigma


def still(**options: Any) -> Trainer:
    """A trainer whose steps change nothing."""
    one = trainer(**options)
    one.weights.descend = lambda step: None
    return one


def test_a_row_s_loss_is_the_mean_since_the_last_row() -> None:
    one = still(steps=30)
    loss, _ = at_start(one, 30, 16)
    (row,) = one
    assert row.loss == pytest.approx(float(loss.mean()), rel=32 * U)


def test_a_row_s_bins_are_means_by_level() -> None:
    one = still(steps=30, density=REGISTRY.density("lognormal"))
    loss, sigma = at_start(one, 30, 16)
    (row,) = one
    position = np.log(sigma.numpy() / 0.002) / math.log(80 / 0.002) * Trainer.BINS
    expected = [loss[torch.from_numpy(np.floor(position) == k)].mean() for k in range(Trainer.BINS)]
    assert row.bins == pytest.approx(list(map(float, expected)), rel=512 * U, nan_ok=True)
    assert 0 < sum(map(math.isnan, row.bins)) < Trainer.BINS - 4


@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.1, 3.0)])
def test_bins_are_equal_parts_of_the_logarithm(low: float, high: float) -> None:
    density = REGISTRY.density("lognormal", sigma_min=low, sigma_max=high)
    edges = np.geomspace(low, high, Trainer.BINS + 1)
    inside = torch.from_numpy(np.concatenate([edges[:-1] * (1 + 1e-12), edges[1:] * (1 - 1e-12)]))
    bins = trainer(density=density).bins(inside, density)
    assert bins.tolist() == 2 * list(range(Trainer.BINS))


def test_a_row_s_gradient_norm_is_the_mean_of_the_gradient_s_norm() -> None:
    one = trainer(steps=20)
    norms = gradient_norms(one)
    (row,) = one
    assert row.gradient_norm == pytest.approx(np.mean(norms), rel=64 * U)
    assert row.gradient_norm_cv == pytest.approx(np.std(norms) / np.mean(norms), rel=1e4 * U)
