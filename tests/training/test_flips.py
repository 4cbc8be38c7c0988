"""Random flips: which samples, which axis, and that no other draw of a trial changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.training import CPU, REGISTRY, ran, same, trainer
from scipy import stats
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError
from testbed.training import flips
from testbed.training.batch import Batch, unbatchable
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, TrainingJob, draws

Flipped = Callable[[Tensor, Tensor], Tensor]


@functools.cache
def images() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 2, 4, 3, generator=generator)
    return Data(x[:80], x[80:])


def law_mirrored(flipped: Flipped) -> None:
    """A flip moves pixel (c, i, j) to (c, i, w - 1 - j); all other samples stay."""
    x = torch.randn(3, 5, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    flip = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    assert flip.any()
    assert not flip.all()
    for axes in (1, 2):
        y, where = (x, flip) if axes == 2 else (x[0], flip[0])
        found = flipped(y, where)
        for index in range(where.numel()):
            at = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), where.shape))
            for j in range(3):
                source = 2 - j if where[at] else j
                assert torch.equal(found[at][:, :, j], y[at][:, :, source])


def test_a_flip_is_one_along_the_last_axis() -> None:
    law_mirrored(flips.flipped)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, flip: flips.flipped(x.mT, flip).mT,
        lambda x, flip: flips.flipped(x, ~flip),
        lambda x, flip: flips.flipped(x, torch.ones_like(flip)),
        lambda x, flip: x,
        lambda x, flip: torch.where(flip.reshape(*flip.shape, 1, 1, 1), x.roll(1, -1), x),
    ],
    ids=["rows", "the others", "all", "none", "rolled"],
)
def test_other_operations_are_rejected(wrong: Flipped) -> None:
    with pytest.raises(AssertionError):
        law_mirrored(wrong)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_the_share_that_is_flipped(probability: float) -> None:
    index = torch.zeros(BLOCK, 100, dtype=torch.int64)
    found = flips.drawn(0, 0, index, probability)
    assert (found.shape, found.dtype) == (index.shape, torch.bool)
    assert stats.binomtest(int(found.sum()), found.numel(), probability).pvalue > 1e-3
    assert not same(found, flips.drawn(0, 1, index, probability)) or probability in (0, 1)
    assert not same(found, flips.drawn(1, 0, index, probability)) or probability in (0, 1)
    more = flips.drawn(0, 0, index, min(1.0, probability + 0.25))
    assert bool((found <= more).all())  # the uniforms are those of every probability


class Seen(nn.Module):
    """A network that keeps what it is given; its output is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        self.inputs.append(x.detach())
        return 0 * self.w * x


def test_the_network_sees_the_flipped_batch_under_the_same_noise() -> None:
    steps, probability = 5, 0.5

    def inputs(flip: float) -> list[Tensor]:
        net = Seen()
        list(trainer("eps", c_in="unit", set_=images(), net=net, steps=steps, flips=flip))
        return net.inputs

    plain, flipped = inputs(0.0), inputs(probability)
    drawn = draws(0, 0, 16, 80, (2, 4, 3))
    flip = flips.drawn(0, 0, drawn.indices, probability)
    for t in range(steps):
        x0 = images().train[drawn.indices[t]]
        noise = plain[t] - x0
        there = torch.where(flip[t][:, None, None, None], x0.flip(-1), x0)
        # x = x0 + sigma eps is rounded once, and taken apart once.
        off = 2.0**-23 * (plain[t].abs() + x0.abs() + there.abs())
        assert bool(((flipped[t] - (there + noise)).abs() <= off).all())


@pytest.mark.slow
def test_no_flips_change_no_number_and_flips_no_other_draw() -> None:
    before = ran(trainer("v", set_=images(), steps=20))
    with mock.patch.object(flips, "stream", None):
        assert same(ran(trainer("v", set_=images(), steps=20, flips=0.0)), before)
    assert not same(ran(trainer("v", set_=images(), steps=20, flips=0.5)), before)
    symmetric = Data(*(x + x.flip(-1) for x in (images().train, images().test)))
    plain, flipped = (ran(trainer("v", set_=symmetric, steps=20, flips=p)) for p in (0.0, 1.0))
    assert same(plain, flipped)


def jobs(probability: float) -> list[TrainingJob]:
    found = []
    for seed, name in ((0, "v"), (1, "v"), (1, "eps")):
        p, sd = REGISTRY.parameterization(name), images().sigma_data
        network = REGISTRY.network("mlp", width=8, depth=1, features=4)((2, 4, 3), 0, seed)
        denoiser = Denoiser(network, p, sd, c_in="shared", c_noise="shared")
        weighting, density = REGISTRY.weighting("edm"), REGISTRY.density("lognormal")
        objective = Objective(p, weighting, REGISTRY.loss("l2"), density, sd)
        settings = Training(steps=60, batch=16, flips=probability)
        found.append(TrainingJob(denoiser, objective, settings, seed))
    return found


@pytest.mark.slow
def test_both_engines_flip_alike() -> None:
    """Batched and one by one differ by rounding alone: within 1e-4 of the weights' size."""
    from testbed.training.trainer import Trainer

    many = Batch(jobs(0.5), images(), CPU)
    list(many.windows())
    for i, job in enumerate(jobs(0.5)):
        one = Trainer.of(job, images(), CPU)
        list(one)
        assert float((many.ema[i] - one.ema[0]).abs().max()) < 1e-4
    plain = Batch(jobs(0.0), images(), CPU)
    list(plain.windows())
    assert float((plain.ema - many.ema).abs().max()) > 1e-3


@pytest.mark.slow
def test_a_resumed_training_flips_the_same() -> None:
    whole = trainer("v", set_=images(), steps=90, points=90, flips=0.5)
    list(whole)
    half = trainer("v", set_=images(), steps=60, points=90, flips=0.5)
    list(half)
    rest = trainer("v", set_=images(), steps=90, points=90, flips=0.5)
    rest.restore(*half.state())
    list(rest)
    assert same(rest.state(), whole.state())


def test_trials_with_and_without_do_not_share_a_batch() -> None:
    assert "differ" in unbatchable([jobs(0.5)[0], jobs(0.0)[1]])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_probability_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"flips = .* is out of range: expected a probability"):
        Training(flips=value)
