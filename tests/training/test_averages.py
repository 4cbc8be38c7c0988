"""Snapshots of averages in a training, and averages of any length made of them.

The laws of the reconstruction are in tests/laws/averages.py, their mutants in tests/mutants.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.training import CPU, REGISTRY, data, network, ran, same, trainer
from laws.averages import directly, law_inner_products, law_least, law_reconstruction
from torch import Tensor

from testbed.training import averages, checkpoint
from testbed.training.averages import OWN, Profile
from testbed.training.batch import Batch
from testbed.training.trainer import Loop, Trainer, TrainingJob

STEPS = 120
Kept = dict[int, dict[str, Tensor]]


def test_inner_products() -> None:
    law_inner_products(averages.inner_products)


@pytest.mark.slow
def test_reconstruction() -> None:
    law_reconstruction(averages.coefficients)


def test_least_squares() -> None:
    law_least(averages.coefficients)


@pytest.mark.parametrize("steps", [1, 7, 100, 2000, 10**6])
def test_what_is_kept_is_rebuilt_as_it_was(steps: int) -> None:
    for width in averages.WIDTHS:
        assert averages.error(averages.stored(steps), Profile(steps, width)) <= 1e-6
    assert averages.spaced(steps)[-1] == steps
    assert len(averages.spaced(steps)) == min(steps, averages.SNAPSHOTS)


def snapshots(loop: Loop, trial: int = 0) -> Kept:
    """All snapshots of a trial, trained to its end."""
    found: Kept = {}
    for _ in loop.windows():
        found |= dict(loop.snapshots_of(trial))
    return found


def kept(stops: Sequence[int], widths: Sequence[float] = (), **training: object) -> Kept:
    one = trainer(**{"steps": STEPS, "points": 3, **training})  # type: ignore[arg-type]
    one.keep(stops, widths)
    return snapshots(one)


def batch_of(steps: int = STEPS, **training: object) -> Batch:
    """Two trials as one."""
    jobs = []
    for name in ("eps", "v"):
        one = trainer(name, net=network(data()), steps=steps, points=3, **training)  # type: ignore[arg-type]
        jobs.append(TrainingJob(one.denoiser, one.objective, one.training, one.seed))
    return Batch(jobs, data(), CPU)


@pytest.mark.slow
def test_snapshots_change_no_number_of_a_training() -> None:
    first, second = trainer(steps=STEPS), trainer(steps=STEPS)
    second.keep([1, 30, 77, STEPS], averages.WIDTHS)
    rows, (tensors, facts) = ran(first)
    more, (others, others_facts) = ran(second)
    assert same(rows, more)
    assert facts == others_facts
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())

    one, two = batch_of(), batch_of()
    two.keep([1, 30, 77, STEPS], averages.WIDTHS)
    for loop in (one, two):
        assert len(list(loop.windows())) == 3
    assert torch.equal(one.weights.W, two.weights.W)
    assert torch.equal(one.ema, two.ema)


@pytest.mark.slow
def test_a_snapshot_is_the_average_of_a_training_that_ends_there() -> None:
    """One by one and batched; the stops lie within a block of draws, and at its ends."""
    for stop, weights in kept([1, 50, 77, STEPS]).items():
        short = trainer(steps=stop)
        list(short)
        assert torch.equal(weights[OWN], short.ema[0])
    long = batch_of()
    long.keep([30, 77])
    found = [dict(long.snapshots_of(i)) for _ in long.windows() for i in range(2)]
    for stop in (30, 77):
        short_batch = batch_of(steps=stop)
        list(short_batch.windows())
        rows = [one[stop][OWN] for one in found if stop in one]
        assert torch.equal(torch.stack(rows), short_batch.ema)


@pytest.mark.slow
def test_averages_of_any_length_are_those_over_every_step() -> None:
    """Of a real training, whose weights are the average that forgets at once.

    A step of the recursion rounds a few times in float32, and the profile's sum forgets none of it.
    """
    every = kept(range(1, STEPS + 1), averages.WIDTHS, ema=0.0)
    weights = torch.stack([every[step][OWN] for step in range(1, STEPS + 1)])
    largest = float(weights.abs().max())
    rounding = 4 * STEPS * 2.0**-24 * largest
    for step, width in ((STEPS, 0.05), (60, 0.1), (1, 0.1)):
        exact = directly(weights, Profile(step, width))
        assert float((every[step][str(width)].double() - exact).abs().max()) <= rounding
    basis = {one: every[one.step][str(one.width)] for one in averages.stored(STEPS)}
    for width in (0.03, 0.07, 0.2):
        wanted = Profile(STEPS, width)
        found, exact = averages.reconstruct(basis, wanted), directly(weights, wanted)
        assert found.dtype == torch.float32
        x = averages.coefficients(list(basis), wanted)
        spread = float((weights - weights.mean(0)).double().square().sum(0).max().sqrt())
        norm = float(averages.inner_products([wanted], [wanted])[0, 0]) ** 0.5
        off = averages.error(list(basis), wanted) * norm * spread
        bound = off + rounding * (1 + float(abs(x).sum()))
        assert float((found.double() - exact).abs().max()) <= bound
        # The average is another than the ones that were kept: the bound tells them apart.
        for other in averages.WIDTHS:
            assert float((every[STEPS][str(other)].double() - exact).abs().max()) > bound


@pytest.mark.slow
@pytest.mark.parametrize("make", ["alone", "batch"])
def test_a_resumed_training_keeps_the_same_averages(make: str) -> None:
    def loop(steps: int = STEPS) -> Loop:
        made: Loop = trainer(steps=steps, points=3) if make == "alone" else batch_of(steps)
        made.keep([30, 77, STEPS], averages.WIDTHS)
        return made

    whole = snapshots(loop())
    first, second = loop(), loop()
    found: Kept = {}
    for _ in first.windows():
        found |= dict(first.snapshots_of(0))
        break
    second.restore(*checkpoint.decode(checkpoint.encode(*first.state()), "state"))
    found |= snapshots(second)
    assert same(found, whole)
    assert sorted(found) == [30, 77, STEPS]


@pytest.mark.slow
def test_a_trial_that_diverges_has_no_snapshot_after_it() -> None:
    loss = REGISTRY.loss("l2")
    one = trainer(loss=loss, steps=STEPS, points=1, learning_rate=1e30)
    one.keep(range(1, STEPS + 1))
    found = snapshots(one)
    assert one.diverged_at is not None
    assert sorted(found) == list(range(1, one.diverged_at + 1))


def test_weights_are_placed_in_the_order_of_the_parameters() -> None:
    one: Trainer = trainer()
    flat = torch.arange(one.ema.shape[1], dtype=torch.float32)
    averages.place(one.denoiser.network, flat)  # type: ignore[arg-type]
    assert torch.equal(torch.cat([p.detach().flatten() for p in one.denoiser.parameters()]), flat)
