"""Many trials as one computation: equal to one by one but for rounding, and each for itself.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.training import checkpoint
from testbed.training.batch import Batch, unbatchable
from testbed.training.curve import CurvePoint, Window
from testbed.training.objective import Terms
from testbed.training.settings import Training
from testbed.training.step_program import CompiledStep
from testbed.training.trainer import (
    BLOCK,
    SigmaFunctions,
    Trainer,
    TrainingJob,
    losses,
)
from testbed.training.weights import Weights
from testbed.trial import recipes

CPU = torch.device("cpu")
FIVE = ["edm", "eps", "score", "v", "x0"]
WIDTH, SIZE = 16, 16
REGISTRY = default_registry()


@functools.cache
def data() -> Data:
    return REGISTRY.dataset("mixture", dim=3, n=400, test=10)()


def network(seed: int = 0, width: int = WIDTH) -> nn.Module:
    return REGISTRY.network("mlp", width=width, depth=1, features=4)(data().shape, 0, seed)


def training_job(
    name: str | testbed.Parameterization = "eps",
    seed: int = 0,
    *,
    loss: testbed.Loss | str = "",
    net: nn.Module | None = None,
    **training: Any,
) -> TrainingJob:
    """A trial by its parameterization's own recipe."""
    p = REGISTRY.parameterization(name) if isinstance(name, str) else name.bound({})
    recipe = REGISTRY.recipe_of(p) or testbed.Recipe(density="lognormal", weighting="edm")
    objective = recipes.objective(recipe, p, REGISTRY, data().sigma_data)
    if loss:
        m = REGISTRY.loss(loss) if isinstance(loss, str) else loss
        objective = dataclasses.replace(objective, loss=m)
    denoiser = testbed.Denoiser(
        net or network(seed),
        objective.parameterization,
        data().sigma_data,
        c_in=recipe.c_in,
        c_noise=recipe.c_noise,
        table=objective.table,
    )
    settings = Training(**{"steps": 100, "batch": SIZE, "points": 2, **training})
    return TrainingJob(denoiser, objective, settings, seed)


def alone(one: TrainingJob) -> tuple[list[CurvePoint], Tensor, Trainer]:
    """Rows without their times, and averaged weights (P,), of a trial trained for itself."""
    trainer = Trainer(one.denoiser, one.objective, data(), one.training, one.seed, CPU)
    rows = [dataclasses.replace(row, seconds=0.0) for row in trainer]
    return rows, trainer.ema[0], trainer


def ran(batch: Batch) -> list[list[CurvePoint]]:
    """The rows of each trial, without their times."""
    found: list[list[CurvePoint]] = [[] for _ in batch.trials]
    for rows in batch.windows():
        for i, row in enumerate(rows):
            if row is not None:
                found[i].append(dataclasses.replace(row, seconds=0.0))
    return found


def batch_of(trials: list[TrainingJob], made: type[Batch] = Batch) -> Batch:
    return made(trials, data(), CPU)


# --- one step -----------------------------------------------------------------------------------


class Recorded(Batch):
    """Keeps the weights and the arguments of the first step of each block."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kept: list[tuple[Tensor, tuple[Tensor, ...]]] = []

    def _evaluate(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.step % BLOCK == 0:
            self.kept.append((self.weights.W.clone(), arguments))
        return super()._evaluate(arguments)


@functools.cache
def along_a_run() -> tuple[Recorded, list[tuple[Tensor, tuple[Tensor, ...]]]]:
    """20 trials at 10 states each."""
    trials = [training_job(name, seed, steps=10 * BLOCK) for seed in range(4) for name in FIVE]
    batch = Recorded(trials, data(), CPU)
    ran(batch)
    return batch, batch.kept


def gradient(batch: Batch, k: int, row: Tensor, arguments: tuple[Tensor, ...]) -> Tensor:
    """The gradient of one trial's loss by autograd of that trial alone, (P,)."""
    dtype = row.dtype
    shapes = [leaf.shape[1:] for leaf in batch.leaves]
    parts = torch.split(row, [shape.numel() for shape in shapes])
    weights = [p.reshape(s).requires_grad_() for p, s in zip(parts, shapes, strict=True)]
    state = dict(zip(batch.names, weights, strict=True))
    state |= {
        name: (kept if batch.buffer_dims[name] is None else kept[k]).to(dtype)
        for name, kept in batch.buffers.items()
    }
    x0, eps, *rest = (t.to(dtype) for t in arguments)
    at = [t[k] for t in rest]
    seed = int(batch.seed_index[k])
    levels = SigmaFunctions(at[0], at[1], at[2], Terms(*at[3:]))

    def called(*inputs: Any) -> Tensor:
        found: Tensor = functional_call(batch.network, state, inputs)
        return found

    objective = batch.trials[k].objective
    per_draw = losses(called, objective, x0[seed], eps[seed], levels) / batch.scale[k].to(dtype)
    found = torch.autograd.grad(per_draw.mean(), weights)
    return torch.cat([g.flatten() for g in found])


def condition(batch: Batch, k: int, row: Tensor, arguments: tuple[Tensor, ...]) -> float:
    """How far the gradient moves, per relative change of weights, draws and coefficients.

    Statistical estimate (Kenney and Laub 1994): the largest of four random directions, times 10,
    is below the truth with a probability of less than one in 10,000.
    """
    generator = torch.Generator().manual_seed(0)
    delta = 2.0**-20

    def moved(t: Tensor) -> Tensor:
        return t * (1 + delta * (2 * torch.rand(t.shape, generator=generator) - 1).double())

    row, arguments = row.double(), tuple(t.double() for t in arguments)
    right = gradient(batch, k, row, arguments)
    changes = [
        gradient(batch, k, moved(row), tuple(map(moved, arguments))) - right for _ in range(4)
    ]
    return 10 * max(float(change.norm()) for change in changes) / delta


@functools.cache
def condition_along_a_run(at: int, k: int) -> float:
    """`condition` of a trial at a state: one for all that is tried there."""
    batch, states = along_a_run()
    W, arguments = states[at]
    return condition(batch, k, W[k], arguments)


def law_one_step(made: Callable[[Batch, list[Tensor], tuple[Tensor, ...]], Tensor]) -> None:
    """Batched and alone, each gradient is off by the rounding of its sums: gamma_n condition.

    n counts the longest chain: the sums of two layers over the width, of the loss over dimensions
    and samples, and 30 roundings between.
    """
    batch, states = along_a_run()
    assert len(batch.trials) * len(states) == 200
    n = 3 * WIDTH + SIZE + 3 + 30
    for dtype in (torch.float64, torch.float32):
        unit = torch.finfo(dtype).eps / 2
        for at, (W, arguments) in enumerate(states):
            leaves = [
                part.reshape(len(W), *leaf.shape[1:]).requires_grad_()
                for part, leaf in zip(
                    torch.split(W.to(dtype), [leaf[0].numel() for leaf in batch.leaves], dim=1),
                    batch.leaves,
                    strict=True,
                )
            ]
            G = made(batch, leaves, tuple(t.to(dtype) for t in arguments))
            for k in range(at % 5, len(W), 5):  # each state for four trials, each trial for two
                single = gradient(batch, k, W[k].to(dtype), arguments)
                bound = 2 * n * unit * condition_along_a_run(at, k)
                assert float((G[k] - single).norm()) <= bound


def batched_gradient(batch: Batch, leaves: list[Tensor], arguments: tuple[Tensor, ...]) -> Tensor:
    kept, dtype = batch.buffers, leaves[0].dtype
    batch.buffers = {name: stacked.to(dtype) for name, stacked in kept.items()}
    try:
        _, *gradients = batch._step(leaves, *arguments)
        return torch.cat([g.reshape(len(g), -1) for g in gradients], dim=1)
    finally:
        batch.buffers = kept


@pytest.mark.slow
def test_one_step_as_one_is_one_step_alone_but_for_rounding() -> None:
    law_one_step(batched_gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda G: G / len(G), id="mean over the trials"),
        pytest.param(lambda G: G.roll(1, 0), id="another trial's gradient"),
        pytest.param(lambda G: G + 1e-4 * G.mean(0), id="a trace of the others"),
        pytest.param(lambda G: G.bfloat16().to(G.dtype), id="bfloat16 inside"),
    ],
)
def test_a_wrong_step_is_caught(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError):
        law_one_step(lambda *inputs: wrong(batched_gradient(*inputs)))


@pytest.mark.slow
def test_in_bfloat16_a_step_is_off_by_the_rounding_of_bfloat16() -> None:
    trials = [training_job(name, precision="bfloat16") for name in FIVE]
    batch = Recorded(trials, data(), CPU)
    batch._block(Window.empty(len(FIVE), batch.BINS, CPU), 1)
    ((W, arguments),) = batch.kept
    # One rounding to bfloat16 after each product and activation of three layers; W is float32.
    n, unit = 12, 2.0**-8
    G = batched_gradient(batch, batch.leaves, arguments)
    for k in range(len(FIVE)):
        right = gradient(batch, k, W[k], arguments)
        off = float((G[k] - right).norm())
        assert (
            2.0**-23 * float(right.norm()) < off <= n * unit * condition(batch, k, W[k], arguments)
        )


def law_trace(made: type[Batch]) -> None:
    """A step's trace gives the bits of the step: a resumed run is traced elsewhere."""
    trials = [training_job(name, seed, clip=0.5) for seed in range(2) for name in FIVE]
    batch = made(trials, data(), CPU)
    ran(batch)
    assert batch.step > BLOCK
    for W, arguments in batch.kept[-3:]:
        batch.weights.W.copy_(W)
        for mine, right in zip(
            batch._evaluate(arguments), batch._step(batch.leaves, *arguments), strict=True
        ):
            assert torch.equal(mine, right)


class NarrowTrace(Recorded):
    def _evaluate(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found = super()._evaluate(arguments)
        return tuple(t + t * 2.0**-23 * (self._evaluations > BLOCK) for t in found)


@pytest.mark.slow
def test_the_trace_of_a_step_has_its_bits() -> None:
    law_trace(Recorded)


@pytest.mark.slow
def test_a_trace_with_other_bits_is_caught() -> None:
    with pytest.raises(AssertionError):
        law_trace(NarrowTrace)


# --- hundreds of steps --------------------------------------------------------------------------

LONG = 400


def far(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def nudged(net: nn.Module) -> nn.Module:
    """Every weight one unit in the last place up."""
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.nextafter(p, torch.full_like(p, math.inf)))
    return net


@functools.cache
def long_alone() -> list[Tensor]:
    return [alone(training_job(name, steps=LONG))[1] for name in FIVE]


@functools.cache
def long_nudged() -> float:
    """The mean drift that one unit in the last place of the first weights causes."""
    drifts = [
        far(alone(training_job(name, net=nudged(network()), steps=LONG))[1], right)
        for name, right in zip(FIVE, long_alone(), strict=True)
    ]
    return float(np.mean(drifts))


@pytest.mark.slow
def test_after_hundreds_of_steps_it_is_off_by_no_more_than_one_unit_of_rounding_causes() -> None:
    batch = batch_of([training_job(name, steps=LONG) for name in FIVE])
    ran(batch)
    drifts = [far(batch.ema[k], right) for k, right in enumerate(long_alone())]
    assert 0 < np.mean(drifts) <= long_nudged()


@pytest.mark.slow
def test_other_trials_in_the_batch_change_no_more_than_that() -> None:
    many = batch_of([training_job(name, seed, steps=LONG) for seed in (0, 1) for name in FIVE])
    few = batch_of([training_job("v", steps=LONG), training_job("edm", steps=LONG)])
    ran(many)
    ran(few)
    for k, name in enumerate(("v", "edm")):
        assert far(many.ema[FIVE.index(name)], few.ema[k]) <= long_nudged()


# --- each for itself ----------------------------------------------------------------------------

# One unit in the last place a step, all of one sign. Measured: 1.5e-6 at most.
CLOSE = 100 * 2.0**-23


Trials = Callable[[], list[TrainingJob]]


@functools.cache
def each_alone(trials: Trials) -> list[tuple[list[CurvePoint], Tensor, Trainer]]:
    """What each of the trials is alone, which all implementations of a batch are compared with."""
    return [alone(one) for one in trials()]


def law_as_alone(trials: Trials, made: type[Batch] = Batch) -> None:
    """Every trial of a batch has its rows and its averages as if alone, within the drift."""
    batch = batch_of(trials(), made)
    found = ran(batch)
    for k, (rows, average, trainer) in enumerate(each_alone(trials)):
        assert far(batch.ema[k], average) <= CLOSE
        assert batch.scale[k].item() == pytest.approx(trainer.scale, rel=1e-6)
        assert len(found[k]) == len(rows)
        for row, right in zip(found[k], rows, strict=True):
            assert row.step == right.step
            mine, its = (
                np.array([r.loss, r.gradient_norm, r.gradient_norm_cv, *r.bins])
                for r in (row, right)
            )
            assert np.array_equal(np.isnan(mine), np.isnan(its))
            np.testing.assert_allclose(mine, its, rtol=CLOSE)
        batch.averaged(k)
        for p, q in zip(
            batch.trials[k].denoiser.parameters(), trainer.averaged().parameters(), strict=True
        ):
            assert torch.allclose(p, q, rtol=CLOSE, atol=CLOSE)


def varied(steps: int = 100) -> list[TrainingJob]:
    """Each with settings of its own, neighbours of the batch sharing some."""
    jobs = [
        training_job("eps", 0),
        training_job("edm", 1, ema=0.5),
        training_job("v", 0, learning_rate=1e-2),
        training_job("x0", 2, learning_rate=1e-2, clip=0.1),
        training_job("score", 3, learning_rate=1e-2, betas=(0.5, 0.9)),
        training_job("eps", 1, ema=0.9, clip=0.05),
        training_job("v", 1, optimizer="adamw", weight_decay=0.1, learning_rate=1e-2),
        training_job("edm", 0, optimizer="sgd", momentum=0.9, learning_rate=1e-2),
    ]
    return [one._replace(training=dataclasses.replace(one.training, steps=steps)) for one in jobs]


def varied_briefly() -> list[TrainingJob]:
    """Ended before a batch is traced, which takes a second; mutants do not live as long."""
    return varied(steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [varied, varied_briefly])
def test_settings_are_each_trial_s_own(trials: Trials) -> None:
    law_as_alone(trials)


@pytest.mark.slow
def test_five_parameterizations_and_seeds() -> None:
    law_as_alone(lambda: [training_job(name, seed) for seed in (3, 0) for name in FIVE])


@pytest.mark.slow
def test_a_loss_that_is_not_quadratic() -> None:
    loss = REGISTRY.loss("huber", space="eps")
    law_as_alone(lambda: [training_job(name, loss=loss) for name in ("v", "edm")])


class Compiled(Batch):
    """The compiled engine; see `uncompiled`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, compiled=True)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be compiled runs as it was traced, so that no C++ compiler is asked."""
    monkeypatch.setattr(torch._inductor, "standalone_compile", lambda module, *_, **__: module)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)


def of_adam() -> list[TrainingJob]:
    """Those of `varied` whose steps a compiled program takes from the draws to the averages."""
    return [one for one in varied_briefly() if one.training.optimizer != "sgd"]


@pytest.mark.slow
@pytest.mark.parametrize("trials", [varied_briefly, of_adam])
def test_the_program_that_is_compiled_trains_as_one_by_one(
    uncompiled: None, trials: Trials
) -> None:
    law_as_alone(trials, Compiled)


@pytest.mark.slow
def test_a_program_takes_every_step_of_adam_and_no_other(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Weights, "update", lambda *_: asked.append("update"))
    for trials in (of_adam, varied_briefly):
        ran(batch_of(trials()[-3:], Compiled))
    assert asked == ["update"] * varied_briefly()[0].training.steps


WRONG_PROGRAMS = {
    "rates of the next step": ("_rates", lambda right, self, step: right(self, step + 1)),
    "one trial's settings for all": (
        "_columns",
        lambda right, self, values: right(self, values)[:, :1].expand(-1, len(self.weights.W), 1),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), WRONG_PROGRAMS.values(), ids=WRONG_PROGRAMS)
def test_a_wrong_program_is_caught(
    uncompiled: None, monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[..., Tensor]
) -> None:
    right = getattr(CompiledStep, name)
    monkeypatch.setattr(CompiledStep, name, _as_method(wrong, right))
    with pytest.raises(AssertionError):
        law_as_alone(of_adam, Compiled)


def _as_method(wrong: Callable[..., Tensor], right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, value: wrong(right, self, value)


class Updates(Weights):
    """Weights in which something is one trial's for all."""

    def update(self, norms: Tensor, step: int) -> None:
        super().update(norms.max().expand_as(norms), step)


class OneClip(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.weights.__class__ = Updates


def alike(weights: Weights, **settings: float | str) -> None:
    """Gives every trial the same settings."""
    weights.groups = [
        run._replace(settings=dataclasses.replace(run.settings, **settings))
        for run in weights.groups
    ]


class OneDecay(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        alike(self.weights, ema=0.999)


class OneSeed(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seed_index = torch.zeros_like(self.seed_index)


class OneRate(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        alike(self.weights, learning_rate=1e-3)


class OneOptimizer(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        alike(self.weights, optimizer="adam", weight_decay=0.0, momentum=0.0)


class OneScale(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scale = self.scale[:1].expand_as(self.scale)


class Shifted(Batch):
    """Bins of the trial before."""

    def bins(self, sigma: Tensor, density: testbed.Density) -> Tensor:
        return (super().bins(sigma, density) + 1).clamp(max=self.BINS - 1)


class AllAlike(Batch):
    """One trial's functions of sigma for all."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.groups = [list(range(len(self.trials)))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [OneClip, OneDecay, OneSeed, OneRate, OneOptimizer, OneScale, Shifted, AllAlike]
)
def test_settings_of_another_trial_are_caught(mutant: type[Batch]) -> None:
    with pytest.raises(AssertionError):
        law_as_alone(varied_briefly, mutant)


# --- divergence ---------------------------------------------------------------------------------


class Ending(nn.Module):
    """A network whose output is not finite once it has been called `calls` times."""

    def __init__(self, inner: nn.Module, big: float) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.tensor(big))

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return self.inner(x, c_noise, condition) * self.gain


def mixed(big: float = 1e30, blocks: int = 3) -> list[TrainingJob]:
    """Three trials, the middle one of which overflows in the first steps."""
    gains = (1.0, big, 1.0)
    names = ("eps", "v", "edm")
    return [
        training_job(
            name, seed, net=Ending(network(seed), gain), steps=blocks * BLOCK, points=blocks
        )
        for seed, (name, gain) in enumerate(zip(names, gains, strict=True))
    ]


def law_divergence(made: type[Batch] = Batch, blocks: int = 1) -> None:
    """A trial that diverges ends as it would alone, and the others do not notice."""
    batch = batch_of(mixed(blocks=blocks), made)
    found = ran(batch)
    rows, average, trainer = alone(mixed(blocks=blocks)[1])
    assert batch.diverged == [None, trainer.diverged_at, None]
    assert trainer.diverged_at is not None
    assert [len(one) for one in found] == [blocks, len(rows), blocks]
    assert batch.steps(1) == trainer.step
    assert batch.steps(0) == blocks * BLOCK
    batch.averaged(1)
    ended = torch.cat([p.detach().flatten() for p in batch.trials[1].denoiser.parameters()])
    assert bool(ended.isfinite().all())
    assert far(ended, average) <= CLOSE
    assert not bool(batch.weights.W[1].any())
    healthy = batch_of(mixed(1.0, blocks), made)
    ran(healthy)
    for k in (0, 2):
        assert torch.equal(batch.weights.W[k], healthy.weights.W[k])
        assert torch.equal(batch.ema[k], healthy.ema[k])


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 3])
def test_a_diverged_trial_stops_and_touches_nobody(blocks: int) -> None:
    law_divergence(blocks=blocks)


class GoesOn(Batch):
    def _end(self, trial: int, kept: Tensor) -> None:
        self.results[trial] = self.ema[trial].clone()


class Spreads(Weights):
    def take(self, gradients: Sequence[Tensor]) -> Tensor:
        return super().take([g + 1e-9 * g.sum(0) for g in gradients])


class Infects(Batch):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.weights.__class__ = Spreads


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [GoesOn, Infects])
def test_a_divergence_that_goes_on_or_spreads_is_caught(mutant: type[Batch]) -> None:
    with pytest.raises(AssertionError):
        law_divergence(mutant)


# --- resuming -----------------------------------------------------------------------------------


def lasting(trials: Trials, steps: int) -> Batch:
    return batch_of(
        [
            one._replace(training=dataclasses.replace(one.training, steps=steps, points=200))
            for one in trials()
        ]
    )


@functools.cache
def uninterrupted(trials: Trials) -> Batch:
    whole = lasting(trials, 3 * BLOCK)
    ran(whole)
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("trials", [varied, mixed], ids=["varied", "one diverged"])
@pytest.mark.parametrize("stop", [BLOCK, BLOCK + 23])
def test_a_resumed_batch_is_the_uninterrupted_one(trials: Trials, stop: int) -> None:
    first = lasting(trials, stop)
    ran(first)
    second = lasting(trials, 3 * BLOCK)
    second.restore(*checkpoint.decode(checkpoint.encode(*first.state()), "state"))
    ran(second)
    mine, its = second.state(), uninterrupted(trials).state()
    assert mine[1] == its[1]
    assert mine[0].keys() == its[0].keys()
    for name, tensor in its[0].items():
        assert torch.equal(mine[0][name], tensor), name


def test_a_state_of_other_trials_is_refused() -> None:
    state = batch_of([training_job("eps", 0), training_job("v", 1)]).state()
    with pytest.raises(InputError, match="other trials"):
        batch_of([training_job("eps", 0), training_job("v", 2)]).restore(*state)


# --- what cannot be batched ---------------------------------------------------------------------


def learned() -> TrainingJob:
    one = training_job("edm")
    weighting = REGISTRY.weighting("edm2")
    objective = dataclasses.replace(one.objective, weighting=weighting).with_states(0)
    return one._replace(objective=objective)


CANNOT = {
    "steps": (lambda: training_job(steps=50), "steps, batches, points or precision differ"),
    "batch": (lambda: training_job(batch=8), "steps, batches, points or precision differ"),
    "width": (lambda: training_job(net=network(width=8)), "networks differ"),
    "dtype": (lambda: training_job(net=network().double()), "networks differ"),
    "precision": (
        lambda: training_job(precision="bfloat16"),
        "steps, batches, points or precision differ",
    ),
    "learned weighting": (learned, "depends on more than sigma"),
    "loss": (lambda: training_job(loss="l1"), "losses are different functions"),
}


@pytest.mark.parametrize(("other", "said"), CANNOT.values(), ids=CANNOT)
def test_what_cannot_be_batched_is_refused_with_the_reason(
    other: Callable[[], TrainingJob], said: str
) -> None:
    assert said in unbatchable([training_job(), other()])
    with pytest.raises(InputError, match=said):
        batch_of([training_job(), other()])


@pytest.mark.slow
def test_a_batch_of_one_and_of_twenty() -> None:
    law_as_alone(lambda: [training_job("v", 4)])
    assert unbatchable([training_job(name, seed) for seed in range(4) for name in FIVE]) == ""
