"""The training engine: its draws, its arithmetic, its state, and what makes a comparison honest.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

import dataclasses
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import (
    CPU,
    REGISTRY,
    Make,
    Restore,
    data,
    network,
    ran,
    resumed,
    same,
    trainer,
)
from scipy import stats
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.random import stream
from testbed.training import rates
from testbed.training import trainer as trainers
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer, draws
from testbed.trial import recipes

FIVE = ["edm", "eps", "score", "v", "x0"]
U = 2.0**-24
# See test_data.py: everything here is seeded, so a law that holds once holds always.
Z = 5.0


def published(name: str, **more: Any) -> Trainer:
    """A trainer of a parameterization's own recipe."""
    p = REGISTRY.parameterization(name)
    recipe = REGISTRY.recipe_of(p)
    assert recipe is not None
    objective = recipes.published(p, REGISTRY, data().sigma_data)
    denoiser = testbed.Denoiser(
        network(data()),
        objective.parameterization,
        data().sigma_data,
        c_in=recipe.c_in,
        c_noise=recipe.c_noise,
        table=objective.table,
    )
    settings = Training(**{"steps": 60, "batch": 16, **more})
    return Trainer(denoiser, objective, data(), settings, 0, CPU)


def named(one: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in one.denoiser.named_parameters()}


# --- draws --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("mutant", [OfItsName, OfTheGlobalStream])
def test_draws_of_a_trial_s_own_are_caught(mutant: type[Trainer]) -> None:
    with torch.random.fork_rng(devices=[]), pytest.raises(AssertionError):
        law_same_draws(functools.partial(trainer, made=mutant))


def test_seeds_have_other_draws() -> None:
    one, other = (heard(trainer, seed=seed, steps=3) for seed in (0, 1))
    assert not any(torch.equal(a[0], b[0]) for a in one for b in other)


@pytest.mark.parametrize("density", ["lognormal", "loguniform", "cosine", "ddpm"])
def test_a_density_maps_the_same_uniforms(density: str) -> None:
    found = torch.stack([c for _, c in heard(trainer, density=density, steps=BLOCK)])
    sigma = REGISTRY.density(density).sigma(draws(0, 0, 16, 400, (2,)).u)
    assert torch.equal(found, (torch.log(sigma) / 4).float())


def test_the_network_is_given_c_in_times_the_noisy_data() -> None:
    drawn, set_ = draws(0, 0, 16, 400, (2,)), data()
    sigma = REGISTRY.density("lognormal").sigma(drawn.u)[..., None]
    x = set_.train[drawn.indices].double() + sigma * drawn.eps
    expected = x / torch.sqrt(sigma**2 + set_.sigma_data**2)
    found = torch.stack([x for x, _ in heard(trainer, steps=BLOCK)]).double()
    # sigma, c_in, two products and a sum are rounded once each; x may cancel.
    size = (set_.train[drawn.indices].abs() + sigma * drawn.eps.abs()) / x.abs() * expected.abs()
    assert bool(((found - expected).abs() <= 6 * U * size).all())


# --- reproducible -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIVE)
def test_a_run_is_the_same_bit_for_bit(name: str) -> None:
    assert same(ran(published(name)), ran(published(name)))


def test_another_seed_is_another_run() -> None:
    one, other = (ran(trainer(seed=seed)) for seed in (0, 1))
    assert not same(one[1][0]["W"], other[1][0]["W"])


def test_a_run_uses_no_global_generator() -> None:
    before = torch.get_rng_state()
    list(published("v"))
    assert torch.equal(before, torch.get_rng_state())


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


def test_the_number_of_rows_changes_no_number() -> None:
    one, other = (ran(trainer(steps=3 * BLOCK, points=points)) for points in (1, 200))
    assert same(one[1], other[1])
    assert (len(one[0]), len(other[0])) == (1, 3)


def test_longer_training_begins_the_same() -> None:
    one, other = (ran(trainer(steps=steps))[0] for steps in (BLOCK, 3 * BLOCK))
    assert same(one[0], other[0])


# --- the scale of a loss ------------------------------------------------------------------------


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


# --- twins --------------------------------------------------------------------------------------


def minus_eps(factor: float = 1.0) -> testbed.Parameterization:
    """The network predicts -eps, or a multiple of it."""

    def scaling(sigma: Tensor) -> testbed.Coefficients:
        one = torch.ones_like(sigma)
        return testbed.Coefficients(one, sigma / factor, 1 / torch.sqrt(sigma**2 + 1), sigma)

    return testbed.Parameterization(
        "minus_eps", scaling, target=lambda x0, eps, sigma: -factor * eps
    )


def law_mirrors(make: Callable[[str], Trainer], one: str, other: str) -> None:
    """Twins train as exact mirrors: F -> -F, and nothing else differs by a bit.

    Their objectives' float32 terms are equal but for the signs of a and b (asserted first: these
    are all that the engine knows of a parameterization). Then rounding is symmetric: the last
    layer's gradient is negated, every other layer's is a product of two negated factors, and Adam
    is odd in a gradient.
    """
    first, second = make(one), make(other)
    sigma = first.objective.density.sigma(draws(0, 0, 16, 400, (2,)).u)
    t, m = first.objective.terms(sigma), second.objective.terms(sigma)
    assert same((t.k, -t.a, -t.b), (m.k, m.a, m.b))
    rows, mirrored = ran(first)[0], ran(second)[0]
    assert same(rows, mirrored)
    left, right = named(first), named(second)
    for name, p in left.items():
        assert p.any()
        assert torch.equal(-p if ".last." in name else p, right[name])


def test_eps_and_minus_eps_are_mirrors() -> None:
    kinds = {"eps": "eps", "minus_eps": minus_eps()}
    law_mirrors(lambda name: trainer(kinds[name]), "eps", "minus_eps")


def test_v_and_edm_are_mirrors_at_sigma_data_one() -> None:
    law_mirrors(lambda name: trainer(name, sigma_data=1.0), "v", "edm")


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [None, "unit", "min_snr"])
@pytest.mark.parametrize("density", ["cosine", "ddpm"])
def test_v_and_edm_are_mirrors_whatever_they_share(weighting: str | None, density: str) -> None:
    law_mirrors(
        lambda name: trainer(name, sigma_data=1.0, weighting=weighting, density=density),
        "v",
        "edm",
    )


@pytest.mark.parametrize(
    ("mutant", "one", "other"),
    [
        pytest.param(lambda name: trainer(name, sigma_data=0.5), "v", "edm", id="sigma_data"),
        pytest.param(
            lambda name: trainer(name, sigma_data=1.0, c_noise="native"), "v", "edm", id="c_noise"
        ),
        pytest.param(
            lambda name: trainer(name, sigma_data=1.0, made=OfItsName), "v", "edm", id="draws"
        ),
        pytest.param(
            lambda name: trainer(name, sigma_data=1.0, net=network(data(), seed=len(name))),
            "v",
            "edm",
            id="start",
        ),
        pytest.param(lambda name: trainer(name, sigma_data=1.0), "v", "eps", id="no twins"),
        pytest.param(
            lambda name: trainer("eps" if name == "eps" else minus_eps(1 + 2.0**-10)),
            "eps",
            "minus_eps",
            id="another size",
        ),
    ],
)
def test_what_is_no_mirror_is_caught(
    mutant: Callable[[str], Trainer], one: str, other: str
) -> None:
    with pytest.raises(AssertionError):
        law_mirrors(mutant, one, other)


# --- divergence ---------------------------------------------------------------------------------


def fragile(step: int, value: float = math.nan) -> testbed.Loss:
    """A loss that is `value` at the given step; its first call is the scale's."""
    calls = itertools.count(-1)

    def function(prediction: Tensor, target: Tensor) -> Tensor:
        good = (prediction - target).square()
        return good * value if next(calls) == step else good

    return testbed.Loss("fragile", function)


@pytest.mark.parametrize("step", [0, 1, BLOCK - 1, BLOCK, BLOCK + 23, 2 * BLOCK - 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_the_step_of_the_first_loss_that_is_not_finite(
    step: int, value: float
) -> None:
    one = trainer(loss=fragile(step, value), steps=3 * BLOCK)
    rows = list(one)
    assert one.diverged_at == step
    assert [row.step for row in rows] == [BLOCK] * (step >= BLOCK)


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


def test_a_diverged_run_does_not_go_on() -> None:
    one = trainer(loss=fragile(3))
    list(one)
    assert list(one) == []


def test_a_run_that_does_not_diverge_says_so() -> None:
    one = trainer()
    list(one)
    assert one.diverged_at is None


# --- state --------------------------------------------------------------------------------------


def law_resumes(restore: Restore = Trainer.restore) -> None:
    """A run in two parts is the run in one, bit for bit: at a block's edge and within one."""
    make = functools.partial(trainer, "v", points=200)
    rows, state = ran(make(steps=3 * BLOCK))
    for stop in (BLOCK, 2 * BLOCK, 1, BLOCK - 1, BLOCK + 23):
        later, found = resumed(make, stop, 3 * BLOCK, restore)
        assert same(found, state)
        # A row of which a part was before the stop is a mean over the rest.
        assert [row[0] for row in later] == [row[0] for row in rows if row[0] > stop]
        whole = math.ceil(stop / BLOCK)
        assert same(later[len(later) - len(rows) + whole :], rows[whole:])


def forgetting(*names: str) -> Restore:
    def restore(one: Trainer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        fresh = one.state()[0]
        kept = {
            name: torch.zeros_like(tensor) if name in names else tensor
            for name, tensor in tensors.items()
        }
        kept |= {name: fresh[name] for name in fresh if name == "ema" and "ema" in names}
        one.restore(kept, facts)

    return restore


def from_step(step: int) -> Restore:
    return lambda one, tensors, facts: one.restore(tensors, {**facts, "step": step})


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    law_resumes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(forgetting("m"), id="first moments"),
        pytest.param(forgetting("v"), id="second moments"),
        pytest.param(forgetting("counts"), id="Adam's step"),
        pytest.param(forgetting("ema"), id="average"),
        pytest.param(from_step(0), id="draws from the start"),
    ],
)
def test_a_resumption_that_forgets_is_caught(mutant: Restore) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)):
        law_resumes(mutant)


def test_a_state_of_step_zero_is_the_start() -> None:
    one, other = trainer(), trainer(net=network(data(), seed=5))
    other.restore(*one.state())
    assert same(ran(other), ran(trainer()))


def test_a_network_with_an_unused_parameter_resumes() -> None:
    # Trained without labels, a network built with them never uses their embedding.
    make = functools.partial(trainer, steps=2 * BLOCK)
    first = trainer(net=network(data(), labels=3), steps=BLOCK)
    list(first)
    second = make(net=network(data(), seed=1, labels=3))
    second.restore(*first.state())
    assert same(ran(second)[1], ran(make(net=network(data(), labels=3)))[1])


def test_a_restored_run_leaves_the_state_as_it_was() -> None:
    first = trainer(steps=BLOCK)
    list(first)
    tensors, facts = first.state()
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    second = trainer(steps=2 * BLOCK)
    second.restore(tensors, facts)
    list(second)
    assert same(tensors, kept)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"net": lambda: network(data(), width=8)}, id="width"),
        pytest.param({"net": lambda: network(data(), labels=2)}, id="layers"),
    ],
)
def test_a_state_of_another_seed_or_network_is_refused(other: dict[str, Any]) -> None:
    options = {key: value() if callable(value) else value for key, value in other.items()}
    with pytest.raises(InputError, match="another seed or network"):
        trainer(**options).restore(*trainer().state())


# --- the average of the weights -----------------------------------------------------------------


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


def test_the_average_is_the_hand_computed_one() -> None:
    law_average(trainer)


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


def test_without_decay_the_average_is_the_weights() -> None:
    one = trainer(ema=0.0)
    list(one)
    assert same(one.ema, one.weights.W)


def test_the_averaged_denoiser_has_the_average_for_weights() -> None:
    one = trainer()
    list(one)
    expected = [average.clone() for average in one.weights.views(one.ema[0])]
    denoiser = one.averaged()
    assert same([p.detach() for p in denoiser.parameters()], expected)
    assert not denoiser.training


# --- against loops written by hand --------------------------------------------------------------


def by_hand(scale: float, steps: int = BLOCK + 10, seed: int = 0) -> list[Tensor]:
    """L_simple of DDPM: the network predicts eps, every level counts the same. Nothing of ours
    but the draws and the initial weights."""
    net, set_ = network(data()), data()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    for t in range(steps):
        drawn = draws(seed, t // BLOCK, 16, len(set_.train), (2,))
        x0, eps = set_.train[drawn.indices[t % BLOCK]], drawn.eps[t % BLOCK]
        u = drawn.u[t % BLOCK]
        sigma = torch.exp(-1.2 + 1.2 * torch.special.ndtri(cut(u)))
        c_in = 1 / torch.sqrt(sigma**2 + set_.sigma_data**2)
        x = x0 + sigma.float()[:, None] * eps
        F = net(c_in.float()[:, None] * x, (torch.log(sigma) / 4).float(), None)
        loss = ((F - eps).square().mean(1) / scale).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return [p.detach() for p in net.parameters()]


def cut(u: Tensor) -> Tensor:
    """u of the log-normal cut to [0.002, 80]."""
    low, high = REGISTRY.density("lognormal").cut
    return low + u * (high - low)


@pytest.mark.slow
def test_the_engine_is_a_ten_line_loop_bit_for_bit() -> None:
    one = trainer("eps", weighting="eps", steps=BLOCK + 10)
    list(one)
    assert same([p.detach() for p in one.parameters], by_hand(one.scale))


Weight = Callable[[Tensor, float], Tensor]
Skip = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def edm_skip(sigma: Tensor, sd: float) -> tuple[Tensor, Tensor]:
    r2 = sigma**2 + sd**2
    return sd**2 / r2, sigma * sd / torch.sqrt(r2)


def edm_weight(sigma: Tensor, sd: float) -> Tensor:
    return (sigma**2 + sd**2) / (sigma * sd) ** 2


def textbook(
    one: Trainer,
    weight: Weight,
    skip: Skip,
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    same_noise: bool = False,
    noise: int | None = None,
) -> list[Tensor]:
    """lambda |D - x0|^2 with D = c_skip x + c_out F(c_in x, c_noise), in float64 throughout.

    With `noise`, every gradient and every new weight is off by a float32 rounding, at random.
    """
    net, set_, sd = network(data()).double(), data(), data().sigma_data
    net.embed_noise.frequencies = net.embed_noise.frequencies.double()
    adam = torch.optim.Adam(net.parameters(), lr=1e-3, betas=betas, foreach=False)
    rounding = None if noise is None else stream(noise, "rounding")
    for t in range(one.training.steps):
        drawn = draws(0, t // BLOCK, 16, len(set_.train), (2,))
        x0, eps = set_.train[drawn.indices[t % BLOCK]].double(), drawn.eps[t % BLOCK].double()
        if same_noise:
            eps = eps[:1].expand_as(eps)
        sigma = one.objective.density.sigma(drawn.u[t % BLOCK])
        x = x0 + sigma[:, None] * eps
        c_in = 1 / torch.sqrt(sigma**2 + sd**2)
        F = net(c_in[:, None] * x, torch.log(sigma) / 4, None)
        c_skip, c_out = skip(sigma, sd)
        D = c_skip[:, None] * x + c_out[:, None] * F
        loss = (weight(sigma, sd) * (D - x0).square().mean(1)).mean() / one.scale
        adam.zero_grad()
        loss.backward()
        if rounding is not None:
            for p in net.parameters():
                jitter = torch.randn(p.shape, generator=rounding, dtype=torch.float64)
                p.grad += U * p.grad.square().mean().sqrt() * jitter
        adam.step()
        if rounding is not None:
            with torch.no_grad():
                for p in net.parameters():
                    p.mul_(1 + U * (torch.rand(p.shape, generator=rounding).double() - 0.5) * 2)
    return [p.detach() for p in net.parameters()]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return math.sqrt(
        sum(
            float((a.double() - b.double()).square().sum()) for a, b in zip(one, other, strict=True)
        )
    )


def law_textbook(make: Callable[[], Trainer], weight: Weight, skip: Skip, **more: Any) -> None:
    """The engine's weights are the textbook's, within ten times the drift that rounding causes.

    The drift is measured: the textbook's own loop with one float32 rounding of each gradient and
    weight a step. The engine's arithmetic takes some ten roundings for each of those.
    """
    one = make()
    list(one)
    exact = textbook(one, weight, skip)
    drift = max(apart(textbook(one, weight, skip, noise=turn), exact) for turn in range(3))
    theirs = textbook(one, weight, skip, **more) if more else exact
    assert apart([p.detach() for p in one.parameters], theirs) <= 10 * drift


@pytest.mark.slow
def test_the_engine_is_the_textbook_s_edm() -> None:
    law_textbook(lambda: trainer("edm", weighting="edm"), edm_weight, edm_skip)


@pytest.mark.slow
def test_the_engine_is_the_textbook_s_eps_with_another_weight() -> None:
    law_textbook(
        lambda: trainer("eps", weighting="min_snr"),
        lambda sigma, sd: torch.minimum(1 / sigma**2, torch.tensor(5.0).double()),
        lambda sigma, sd: (torch.ones_like(sigma), -sigma),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "skip", "more"),
    [
        pytest.param(lambda s, sd: 1 / s**2, edm_skip, {}, id="another weight"),
        pytest.param(edm_weight, lambda s, sd: (edm_skip(s, sd)[0], s), {}, id="another c_out"),
        pytest.param(edm_weight, edm_skip, {"betas": (0.9, 0.999)}, id="Adam's defaults"),
        pytest.param(edm_weight, edm_skip, {"same_noise": True}, id="one noise a batch"),
    ],
)
def test_loops_of_another_method_are_caught(weight: Weight, skip: Skip, more: Any) -> None:
    with pytest.raises(AssertionError):
        law_textbook(lambda: trainer("edm", weighting="edm", steps=20), weight, skip, **more)


# --- learning -----------------------------------------------------------------------------------


def law_learns(make: Make) -> None:
    """After training, the loss on draws of its own is below that at F = 0: paired z beyond Z.

    Levels are cut to [0.3, 3], where no few draws outweigh the rest.
    """
    density = Bound(REGISTRY.density("lognormal", sigma_min=0.3, sigma_max=3.0))
    one = make(steps=6 * BLOCK, batch=32, density=density)
    list(one)
    drawn = draws(77, 0, 64, 400, (2,))
    x0, eps = data().train[drawn.indices].reshape(-1, 2), drawn.eps.reshape(-1, 2)
    sigma = one.objective.density.sigma(drawn.u.reshape(-1)).float()
    with torch.no_grad():
        F = one.averaged().output(x0 + sigma[:, None] * eps, sigma)
        gain = one.objective(torch.zeros_like(F), x0, eps, sigma) - one.objective(F, x0, eps, sigma)
    assert float(gain.mean() / gain.std()) * math.sqrt(len(gain)) > Z


@pytest.mark.slow
@pytest.mark.parametrize("name", FIVE)
def test_training_lowers_the_loss(name: str) -> None:
    law_learns(functools.partial(trainer, name))


class NoStep(Trainer):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.weights.descend = lambda step: None


class Uphill(Trainer):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        descend = self.weights.descend

        def ascend(step: int) -> None:
            self.weights.G.neg_()
            descend(step)

        self.weights.descend = ascend


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [NoStep, Uphill])
def test_training_that_does_not_learn_is_caught(mutant: type[Trainer]) -> None:
    with pytest.raises(AssertionError):
        law_learns(functools.partial(trainer, made=mutant))


def without_a_scaling(kind: str) -> testbed.Parameterization:
    """eps without coefficients of its own, and asinh(eps), which has none."""
    if kind == "eps":
        return testbed.Parameterization(
            "free_eps",
            target=lambda x0, eps, sigma: eps,
            denoise=lambda F, x, sigma: x - sigma * F,
        )
    return testbed.Parameterization(
        "asinh",
        target=lambda x0, eps, sigma: torch.asinh(eps),
        denoise=lambda F, x, sigma: x - sigma * torch.sinh(F),
    )


@pytest.mark.slow
@pytest.mark.parametrize("space", ["x0", "eps", "F"])
def test_a_parameterization_without_a_scaling_learns(space: str) -> None:
    p = without_a_scaling("asinh")
    weighting = None if space == "F" else "edm"
    loss = REGISTRY.loss("l2", space=space)
    law_learns(functools.partial(trainer, p, weighting=weighting, loss=loss))


@pytest.mark.slow
def test_eps_without_a_scaling_is_the_textbook_s_eps() -> None:
    # D - x0 cancels at small sigma; above 1/2 it loses no more than the roundings allowed for.
    density = REGISTRY.density("lognormal", sigma_min=0.5)
    law_textbook(
        lambda: trainer(without_a_scaling("eps"), weighting="edm", density=Bound(density)),
        edm_weight,
        lambda sigma, sd: (torch.ones_like(sigma), -sigma),
    )


class Bound:
    """A component whose options are already bound."""

    def __init__(self, component: Any) -> None:
        self.component = component

    def bound(self, _: Any) -> Any:
        return self.component


# --- rows ---------------------------------------------------------------------------------------


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
    bins = trainer(density=Bound(density)).bins(inside, density)
    assert bins.tolist() == 2 * list(range(Trainer.BINS))


def test_a_row_s_gradient_norm_is_the_mean_of_the_gradient_s_norm() -> None:
    one, norms = trainer(steps=20), []
    descend = one.weights.descend

    def listen(step: int) -> None:
        norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in one.parameters)))
        descend(step)

    one.weights.descend = listen
    (row,) = one
    assert row.gradient_norm == pytest.approx(np.mean(norms), rel=64 * U)
    assert row.gradient_norm_cv == pytest.approx(np.std(norms) / np.mean(norms), rel=1e4 * U)


# --- clipping -----------------------------------------------------------------------------------


def gradients(**options: Any) -> tuple[list[float], float]:
    """The norms of the gradients that the optimiser is given, and the norm in the row."""
    one, norms = trainer(steps=20, **options), []
    descend = one.weights.descend

    def listen(step: int) -> None:
        norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in one.parameters)))
        descend(step)

    one.weights.descend = listen
    (row,) = one
    return norms, row.gradient_norm


def test_clipping_bounds_every_gradient() -> None:
    norms, _ = gradients(clip=0.1)
    assert max(norms) <= 0.1 * (1 + 64 * U)
    assert min(gradients()[0]) > 0.1


def test_a_clipped_gradient_has_the_largest_norm_allowed() -> None:
    # torch divides by norm + 1e-6; the norms here are above 0.1.
    norms, _ = gradients(clip=0.1)
    assert min(norms) >= 0.1 * (1 - 1e-5 - 64 * U)


def test_the_row_shows_the_norm_before_clipping() -> None:
    clipped, shown = gradients(clip=0.1)
    assert shown > 2 * np.mean(clipped)


def test_a_bound_that_is_never_reached_changes_nothing() -> None:
    assert same(ran(trainer(clip=1e9)), ran(trainer()))


def test_a_bound_that_is_reached_changes_the_run() -> None:
    assert not same(ran(trainer(clip=0.1))[1], ran(trainer())[1])


# --- Training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -5),
        ("steps", 10**10),
        ("batch", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("betas", (1.0, 0.99)),
        ("betas", (0.9, -0.1)),
        ("betas", (0.9, math.nan)),
        ("betas", (0.9,)),
        ("betas", (0.9, 0.99, 0.999)),
        ("ema", 1.0),
        ("ema", -0.1),
        ("ema", math.nan),
        ("clip", -1.0),
        ("clip", math.nan),
        ("points", 0),
    ],
)
def test_training_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} = .* is out of range"):
        Training(**{name: value})


@pytest.fixture(autouse=True)
def the_engine_is_left_as_it_was() -> Iterator[None]:
    before = torch.get_rng_state(), rates.decay
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] is rates.decay


# --- bfloat16 -----------------------------------------------------------------------------------


def narrow(
    losses: Callable[..., Tensor], one: Trainer, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss in bfloat16, that of the network's narrow output, and that in float32."""
    generator = torch.Generator().manual_seed(3)
    x0 = data().train[: len(sigma)]
    eps = torch.randn(x0.shape, generator=generator)
    at = trainers.sigma_functions(one.denoiser, one.objective, sigma)
    net = one.denoiser.network
    x = x0 + at.sigma[:, None] * eps
    with torch.autocast("cpu", torch.bfloat16):
        F = net(at.c_in[:, None] * x, at.c_noise, None)
    assert F.dtype == torch.bfloat16
    right = one.objective(F.float(), x0, eps, at.sigma, at.terms)
    return (
        losses(net, one.objective, x0, eps, at, "bfloat16"),
        right,
        losses(net, one.objective, x0, eps, at),
    )


def law_only_the_network_is_narrow(losses: Callable[..., Tensor]) -> None:
    """Bit for bit; and something is narrow."""
    sigma = torch.logspace(-3, 2, 64, dtype=torch.float64)
    for name in FIVE:
        one = published(name)
        list(one)
        found, right, wide = narrow(losses, one, sigma)
        assert torch.equal(found, right)
        assert not torch.equal(found, wide)
        assert found.dtype == torch.float32


def all_narrow(
    network: Callable[..., Tensor],
    objective: Objective,
    x0: Tensor,
    eps: Tensor,
    at: trainers.SigmaFunctions,
    precision: str = "float32",
) -> Tensor:
    def left_narrow(*inputs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return network(*inputs)

    return trainers.losses(left_narrow, objective, x0, eps, at)


@pytest.mark.slow
def test_in_bfloat16_only_the_network_is_narrow() -> None:
    law_only_the_network_is_narrow(trainers.losses)


def test_a_loss_in_bfloat16_is_caught() -> None:
    with pytest.raises(AssertionError):
        law_only_the_network_is_narrow(all_narrow)


def test_in_bfloat16_weights_moments_and_averages_are_float32() -> None:
    one = trainer(precision="bfloat16")
    first = list(one)
    assert {tensor.dtype for tensor in one.weights.state().values()} == {torch.float32}
    assert not same(ran(trainer())[1], one.state())
    assert first[-1].loss < first[0].loss


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"precision 'bfloat'. Did you mean 'bfloat16'\?"):
        Training(precision="bfloat")
