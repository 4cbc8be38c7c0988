"""The draws of a training: their distribution, and that every trial of a seed has the same.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

import functools
import itertools
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import FIVE, REGISTRY, Make, U, data, network, same, trainer
from scipy import stats
from torch import Tensor, nn

from testbed.random import seeded, stream
from testbed.training import trainer as trainers
from testbed.training.trainer import BLOCK, Trainer, draws

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")

# See test_data.py: everything here is seeded, so a law that holds once holds always.
Z = 5.0


def test_a_seeded_block_draws_as_after_manual_seed_and_leaves_the_generator() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        found = torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        assert torch.equal(torch.rand(5), found)


def test_draws_have_a_block_s_shape() -> None:
    found = draws(0, 0, 8, 100, (1, 3, 3))
    assert found.indices.shape == found.u.shape == (BLOCK, 8)
    assert found.eps.shape == (BLOCK, 8, 1, 3, 3)
    assert (found.u.dtype, found.eps.dtype) == (torch.float64, torch.float32)


def test_draws_are_the_same_every_time() -> None:
    assert same(draws(3, 2, 8, 100, (2,)), draws(3, 2, 8, 100, (2,)))


@pytest.mark.parametrize(("seed", "block"), [(4, 2), (3, 3), (2, 3)])
def test_draws_of_other_seeds_and_blocks_differ(seed: int, block: int) -> None:
    for one, other in zip(draws(3, 2, 8, 100, (2,)), draws(seed, block, 8, 100, (2,)), strict=True):
        assert not torch.equal(one, other)


def test_batches_and_levels_do_not_depend_on_the_data_s_dimension() -> None:
    one, other = (draws(3, 2, 8, 100, (d,)) for d in (2, 64))
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.u, other.u)


def test_noise_and_levels_do_not_depend_on_the_number_of_samples() -> None:
    one, other = (draws(3, 2, 8, n, (2,)) for n in (100, 101))
    assert torch.equal(one.eps, other.eps)
    assert torch.equal(one.u, other.u)


def law_distribution(draw: Callable[..., trainers.Draws]) -> None:
    """Levels uniform, noise unit normal, batches uniform; neither follows another."""
    blocks = [draw(0, block, 64, 10, (3,)) for block in range(4)]
    u, eps, index = (torch.cat([b[k] for b in blocks]).numpy() for k in (1, 2, 0))
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-6
    assert stats.kstest(eps.ravel(), "norm").pvalue > 1e-6
    assert stats.chisquare(np.bincount(index.ravel(), minlength=10)).pvalue > 1e-6
    flat = np.stack([u.ravel(), index.ravel(), *eps.reshape(-1, 3).T])
    off = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(off).max() < Z / math.sqrt(u.size)
    serial = np.corrcoef(eps[:-1].ravel(), eps[1:].ravel())[0, 1]
    assert abs(serial) < Z / math.sqrt(eps[1:].size)


def one_stream(seed: int, block: int, batch: int, samples: int, shape: tuple[int, ...]) -> Any:
    good = draws(seed, block, batch, samples, shape)
    return good._replace(u=torch.special.ndtr(good.eps[..., 0].double()))


def repeated(seed: int, block: int, batch: int, samples: int, shape: tuple[int, ...]) -> Any:
    good = draws(seed, block, batch, samples, shape)
    return good._replace(eps=good.eps[:1].expand_as(good.eps))


def last_left_out(seed: int, block: int, batch: int, samples: int, shape: tuple[int, ...]) -> Any:
    return draws(seed, block, batch, samples - 1, shape)


def test_draws_have_their_distribution() -> None:
    law_distribution(draws)


@pytest.mark.parametrize("mutant", [one_stream, repeated, last_left_out])
def test_draw_mutants_are_caught(mutant: Callable[..., trainers.Draws]) -> None:
    with pytest.raises(AssertionError):
        law_distribution(mutant)


def law_streams_of_their_own(draw: Callable[..., trainers.Draws]) -> None:
    """Batches, levels and noises of every seed and block come from twelve different streams."""
    asked: list[tuple[int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers, "stream", lambda *key: (asked.append(key), stream(*key))[1])
        for seed, block in itertools.product(range(2), range(2)):
            draw(seed, block, 4, 10, (3,))
    assert len(asked) == len(set(asked)) == 12


def sharing(seed: int, block: int, batch: int, samples: int, shape: tuple[int, ...]) -> Any:
    good = draws(seed, block, batch, samples, shape)
    again = trainers.stream(seed, f"sigma/{block}")
    return good._replace(eps=torch.randn(good.eps.shape, generator=again))


def test_every_draw_has_a_stream_of_its_own() -> None:
    law_streams_of_their_own(draws)


def test_a_shared_stream_is_caught() -> None:
    with pytest.raises(AssertionError):
        law_streams_of_their_own(sharing)


class Listening(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.heard = inner, []

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        self.heard.append((x.detach().clone(), c_noise.clone()))
        return self.inner(x, c_noise, condition)


def heard(make: Make, **options: Any) -> list[tuple[Tensor, Tensor]]:
    net = Listening(network(data()))
    list(make(net=net, **options))
    return net.heard


def law_same_draws(make: Make) -> None:
    """With shared c_in and c_noise every parameterization's network is given the same numbers."""
    expected = heard(make, parameterization="eps", steps=BLOCK + 10)
    assert len(expected) == BLOCK + 10
    for name in FIVE:
        assert same(heard(make, parameterization=name, steps=BLOCK + 10), expected)
    for weighting, loss in (("unit", "l2"), (None, "l1"), ("min_snr", "huber")):
        found = heard(make, weighting=weighting, loss=loss, steps=BLOCK + 10)
        assert same(found, expected)


class OfItsName(Trainer):
    """Draws depend on the parameterization's name."""

    def _block(self, *arguments: Any) -> None:
        seed = self.seed
        self.seed = zlib.crc32(self.objective.parameterization.name.encode())
        super()._block(*arguments)
        self.seed = seed


class OfTheGlobalStream(Trainer):
    """Each trial moves the stream on for the next."""

    def _block(self, *arguments: Any) -> None:
        seed = self.seed
        self.seed = int(torch.randint(2**30, ()))
        super()._block(*arguments)
        self.seed = seed


@pytest.mark.slow
def test_every_trial_of_a_seed_has_the_same_draws() -> None:
    law_same_draws(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [OfItsName, OfTheGlobalStream])
def test_draws_of_a_trial_s_own_are_caught(mutant: type[Trainer]) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(AssertionError):
        law_same_draws(functools.partial(trainer, made=mutant))


def test_seeds_have_other_draws() -> None:
    one, other = (heard(trainer, seed=seed, steps=3) for seed in (0, 1))
    assert not any(torch.equal(a[0], b[0]) for a in one for b in other)


@pytest.mark.slow
@pytest.mark.parametrize("density", ["lognormal", "loguniform", "cosine", "ddpm"])
def test_a_density_maps_the_same_uniforms(density: str) -> None:
    found = torch.stack([c for _, c in heard(trainer, density=density, steps=BLOCK)])
    sigma = REGISTRY.density(density).sigma(draws(0, 0, 16, 400, (2,)).u)
    assert torch.equal(found, (torch.log(sigma) / 4).float())


@pytest.mark.slow
def test_the_network_is_given_c_in_times_the_noisy_data() -> None:
    drawn, set_ = draws(0, 0, 16, 400, (2,)), data()
    sigma = REGISTRY.density("lognormal").sigma(drawn.u)[..., None]
    x = set_.train[drawn.indices].double() + sigma * drawn.eps
    expected = x / torch.sqrt(sigma**2 + set_.sigma_data**2)
    found = torch.stack([x for x, _ in heard(trainer, steps=BLOCK)]).double()
    # sigma, c_in, two products and a sum are rounded once each; x may cancel.
    size = (set_.train[drawn.indices].abs() + sigma * drawn.eps.abs()) / x.abs() * expected.abs()
    assert bool(((found - expected).abs() <= 6 * U * size).all())
