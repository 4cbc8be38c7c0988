"""Parts of a batch, activations computed again, layouts and torch.compile: the same training."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.random import stream
from testbed.registry import default_registry
from testbed.training.accumulation import accumulated
from testbed.training.batch import Batch, unbatchable
from testbed.training.curve import Window
from testbed.training.settings import Training
from testbed.training.trainer import Trainer, TrainingJob
from testbed.trial import recipes

CPU = torch.device("cpu")
U = 2.0**-24
REGISTRY = default_registry()
TINY: dict[str, dict[str, Any]] = {
    "mlp": {"width": 8, "depth": 1, "features": 4},
    "dit": {"width": 8, "depth": 1, "heads": 2},
    "unet": {"channels": (4, 8), "groups": 2, "head": 4},
    "convnet": {"width": 8, "depth": 1},
}


@functools.cache
def data() -> Data:
    generator = stream(0, "tests/images")
    return Data(*(torch.randn(n, 1, 8, 8, generator=generator) for n in (64, 8)))


def job(network: str, name: str = "edm", more: Any = None, **training: Any) -> TrainingJob:
    """A trial by its parameterization's own recipe, by plain gradient descent."""
    if network == "unet":
        pytest.importorskip("diffusers", reason="diffusers is not installed")
    p = REGISTRY.parameterization(name)
    recipe = REGISTRY.recipe_of(p)
    assert recipe is not None
    objective = recipes.objective(recipe, p, REGISTRY, data().sigma_data)
    kind = "index" if objective.table is not None else "log_sigma"
    module = REGISTRY.network(network, **TINY[network])(
        data().shape, 0, 0, noise_kind=kind, **more or {}
    )
    denoiser = testbed.Denoiser(
        module,
        objective.parameterization,
        data().sigma_data,
        c_in=recipe.c_in,
        c_noise=recipe.c_noise,
        table=objective.table,
    )
    settings = {"steps": 50, "batch": 12, "optimizer": "sgd", "learning_rate": 0.1, "ema": 0.0}
    return TrainingJob(denoiser, objective, Training(**settings | training), 0)


def weights(loop: Trainer | Batch, steps: int = 3) -> Tensor:
    """The weights after some steps, (K, P)."""
    loop._block(Window.empty(len(loop.diverged), loop.BINS, CPU), steps)
    return loop.weights.W.clone()


# --- accumulation --------------------------------------------------------------------------------


def quadratic(w: Tensor, x: Tensor, more: dict[str, Tensor | None]) -> Tensor:
    assert more["none"] is None
    return (x @ w).square() * more["scale"]


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_the_gradient_of_a_mean_is_the_mean_of_the_parts(parts: int) -> None:
    """g = 2/B sum_i s_i (x_i w) x_i, to the rounding of a sum of B terms in float64."""
    generator = stream(0, "parts")
    x, scale = torch.randn(6, 3, generator=generator).double(), torch.arange(1.0, 7.0).double()
    w = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    losses, (found,) = accumulated(
        lambda *inputs: quadratic(w, *inputs), (x, {"scale": scale, "none": None}), [w], parts
    )
    terms = (2 * scale * (x @ w))[:, None] * x / 6
    bound = 16 * 2.0**-53 * (terms.abs().sum(0) + 1)
    assert bool(((found - terms.sum(0)).abs() <= bound).all())
    assert torch.equal(losses, (x @ w).square().detach() * scale) or parts > 1
    assert losses.shape == (6,)
    assert not losses.requires_grad


def test_parts_are_cut_along_the_batch_of_many_trials() -> None:
    x = torch.arange(24.0).view(2, 6, 2)
    w = torch.ones(2, requires_grad=True)
    seen: list[tuple[int, ...]] = []

    def per_draw(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x @ w

    losses, (found,) = accumulated(per_draw, (x,), [w], 3, 1)
    assert seen == [(2, 2, 2)] * 3
    assert torch.equal(losses, (x @ w).detach())
    assert torch.allclose(found, x.mean(1).sum(0), rtol=8 * U)


@pytest.mark.slow
@pytest.mark.parametrize("network", TINY)
@pytest.mark.parametrize("parts", [2, 4])
def test_a_training_in_parts_is_that_of_the_whole(network: str, parts: int) -> None:
    """Draws are the same; only roundings of sums over a batch differ, and sgd magnifies none."""
    whole = Trainer.of(job(network), data(), CPU)
    start = whole.weights.W.clone()
    one, cut = weights(whole), weights(Trainer.of(job(network, accumulation=parts), data(), CPU))
    moved = float((one - start).abs().max())
    assert float((one - cut).abs().max()) < 1e4 * U * moved
    assert not torch.equal(one, start)


@pytest.mark.slow
def test_a_batch_of_trials_is_trained_in_parts_too() -> None:
    names = ("edm", "eps")
    whole = weights(Batch([job("mlp", name) for name in names], data(), CPU))
    cut = weights(Batch([job("mlp", name, accumulation=4) for name in names], data(), CPU))
    assert float((whole - cut).abs().max()) < 1e4 * U * float(whole.abs().max())


@pytest.mark.parametrize("parts", [0, 5, 24])
def test_parts_must_divide_the_batch(parts: int) -> None:
    with pytest.raises(InputError, match=r"accumulation = \d+ is out of range: .* batch = 12"):
        Training(batch=12, accumulation=parts)


# --- images in a batch of trials -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("network", TINY)
def test_trials_on_images_train_as_one(network: str) -> None:
    """Group norms, convolutions and attention; one trial has an index, the other a log_sigma."""
    names = ("eps", "edm")
    together = weights(Batch([job(network, name) for name in names], data(), CPU))
    for row, name in zip(together, names, strict=True):
        trainer = Trainer.of(job(network, name), data(), CPU)
        start = trainer.weights.W.clone()
        alone = weights(trainer)
        moved = float((alone - start).abs().max())
        assert moved > 0
        assert float((row - alone[0]).abs().max()) < 1e4 * U * moved


def test_a_table_of_values_is_held_once_for_all_trials() -> None:
    rows = torch.randn(3, 5, generator=stream(0, "rows"))
    more = {"tables": {"size": testbed.ConditionTable("vector", rows)}}
    batch = Batch([job("mlp", name, more) for name in ("eps", "edm")], data(), CPU)
    (name,) = (name for name in batch.buffers if name.endswith("rows"))
    assert batch.buffers[name].shape == rows.shape
    assert batch.buffers["embed_noise.frequencies"].ndim == 2


# --- checkpointing, layouts, torch.compile --------------------------------------------------------


@pytest.mark.slow
def test_activations_computed_again_give_the_same_weights() -> None:
    kept, again = (
        weights(Trainer.of(job("dit", more={"checkpointing": one}), data(), CPU))
        for one in (False, True)
    )
    assert torch.equal(kept, again)


class Seen(nn.Module):
    """A network of one weight that notes how its input lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.channels_last: list[bool] = []

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        self.channels_last.append(x.is_contiguous(memory_format=torch.channels_last))
        return self.weight * x


def test_the_network_s_input_lies_as_it_should() -> None:
    images = Data(torch.randn(32, 3, 4, 4), torch.randn(8, 3, 4, 4))
    found = {}
    for layout in ("contiguous", "channels_last"):
        one = job("mlp", memory_format=layout)
        module = Seen()
        one.denoiser.network = module
        weights(Trainer.of(one, images, CPU), 1)
        found[layout] = module.channels_last
    assert found == {"contiguous": [False], "channels_last": [True]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (network, settings)
        for network in ("dit", "convnet", "unet")
        for settings in ({"memory_format": "channels_last"}, {"accumulation": 3})
    ],
)
def test_layouts_change_roundings_alone(network: str, settings: dict[str, Any]) -> None:
    plain, other = (
        weights(Trainer.of(job(network, **more), data(), CPU)) for more in ({}, settings)
    )
    assert float((plain - other).abs().max()) < 1e4 * U * float(plain.abs().max())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"checkpointing": True}, "activations are computed again"),
        ({"memory_format": "channels_last"}, "memory_format is channels_last"),
    ],
)
def test_what_vmap_cannot_do_is_trained_one_by_one(settings: dict[str, Any], reason: str) -> None:
    assert reason in unbatchable([job("mlp", name, **settings) for name in ("eps", "edm")])


@pytest.mark.slow
def test_compile_compiles_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda f, **more: compiled.append(f) or f)
    one = job("mlp", compile=True)
    weights(Trainer.of(one, data(), CPU), 1)
    assert compiled == [one.denoiser.network]
    assert Batch([job("mlp", name, compile=True) for name in ("eps", "edm")], data(), CPU)._compiled
