"""Every network, sampler and guidance on a device that has nothing but its shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.devices import META, OneDevice
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.registry import default_registry
from testbed.training.batch import Batch
from testbed.training.curve import Window
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Trainer, TrainingJob

REGISTRY = default_registry()
NETWORKS = REGISTRY.names("network")
CLASSES = 3
LEVELS = [3.0, 0.5, 0.05, 0.0]


def data_of(shape: tuple[int, ...]) -> Data:
    """Numbers of that shape with labels, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, *shape, generator=generator)
    y = torch.arange(16) % CLASSES
    return Data(train=x, test=x, train_labels=y, test_labels=y)


def denoiser_of(name: str) -> tuple[Denoiser, Objective, Data]:
    """The denoiser of a bundled network with labels where it takes them, its objective, its data.

    A network that takes an index has a table.
    """
    network = REGISTRY.network(name)
    data = data_of(network.shapes[0])
    labelled = network.takes("label")
    indexed = "index" in network.noise and len(network.noise) == 1
    table = REGISTRY.table("ddpm", n=20) if indexed else None
    p = REGISTRY.parameterization("v")
    density = REGISTRY.density("lognormal")
    module = network(data.shape, CLASSES if labelled else 0, seed=1)
    denoise = Denoiser(module, p, 1.0, c_noise="index" if indexed else "shared", table=table)
    objective = Objective(p, REGISTRY.weighting("edm"), REGISTRY.loss("l2"), density, 1.0,
                          table=table)  # fmt: skip
    return denoise, objective, data


def condition_of(name: str, n: int) -> dict[str, Tensor] | None:
    if not REGISTRY.network(name).takes("label"):
        return None
    return {"label": torch.zeros(n, dtype=torch.int64, device=META)}


def one_step(name: str, engine: str, change: Callable[[Any], None] = lambda loop: None) -> int:
    """A training step with backward and update on meta; returns how many operations ran there."""
    denoise, objective, data = denoiser_of(name)
    conditions = {"label": 0.1} if REGISTRY.network(name).takes("label") else {}
    training = Training(steps=8, batch=4, points=1, clip=1.0)
    jobs = [TrainingJob(denoise, objective, training, seed, conditions) for seed in (0, 1)]
    if engine == "batched":
        second = denoiser_of(name)[0]
        jobs[1] = jobs[1]._replace(denoiser=second)
        loop: Any = Batch(jobs, data, META)
    else:
        loop = Trainer.of(jobs[0], data, META)
    change(loop)
    with OneDevice() as mode:
        loop._block(Window.empty(len(loop.diverged), loop.BINS, META), 1)
    assert loop.step == 1
    return mode.on_meta


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sequential", "batched"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_stays_on_the_device(name: str, engine: str) -> None:
    assert one_step(name, engine) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_denoiser_stays_on_the_device(name: str) -> None:
    denoise, _, data = denoiser_of(name)
    denoise.to(META)
    x = torch.empty(4, *data.shape, device=META)
    with OneDevice() as mode:
        for sigma in (0.7, torch.full((4,), 0.7, device=META)):
            assert denoise(x, sigma, condition_of(name, 4)).device == META
            assert denoise.score(x, sigma, condition_of(name, 4)).device == META
    assert mode.on_meta > 10


def sampled(denoise: Any, name: str, shape: tuple[int, ...], **options: Any) -> Tensor:
    """Three steps of a sampler on meta, its noise drawn on the CPU."""
    sampler = REGISTRY.sampler(name, **options)
    x = torch.empty(4, *shape, device=META)
    with OneDevice():
        generator = torch.Generator().manual_seed(0)
        return testbed.sample(denoise, x, LEVELS, sampler, generator)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY.names("sampler"))
def test_a_sampler_stays_on_the_device(name: str) -> None:
    denoise, _, data = denoiser_of("mlp")
    assert sampled(denoise.to(META), name, data.shape).device == META


def guided(name: str, denoise: Denoiser, condition: dict[str, Tensor]) -> Any:
    """The denoiser of a guidance method; its classifier is a linear layer on the device."""
    layer = nn.Linear(2, CLASSES).to(META)
    method = REGISTRY.guidance(name).build()
    return method.denoiser(denoise, lambda x, sigma: layer(x).log_softmax(1), condition)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRY.names("guidance"))
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_guidance_stays_on_the_device(name: str, sampler: str) -> None:
    denoise, _, data = denoiser_of("mlp")
    assert data.shape == (2,)
    condition = {"label": torch.zeros(4, dtype=torch.int64, device=META)}
    by = guided(name, denoise.to(META), condition)
    assert sampled(by, sampler, data.shape).device == META


# --- what is left on the CPU is seen --------------------------------------------------------------


class Frequencies(nn.Module):
    """A network with a buffer that `to` does not move, as a plain attribute is not."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        if registered:
            self.register_buffer("frequencies", torch.ones(2), persistent=False)
        else:
            self.frequencies = torch.ones(2)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        F: Tensor = self.layer(x + torch.cos(c_noise[:, None] * self.frequencies))
        return F


def around(network: nn.Module) -> Denoiser:
    return Denoiser(network, REGISTRY.parameterization("v"), 1.0).to(META)


def test_a_buffer_left_behind_is_seen() -> None:
    x, sigma = torch.empty(4, 2, device=META), torch.ones(4, device=META)
    with OneDevice():
        around(Frequencies(registered=True))(x, sigma)
        with pytest.raises(AssertionError, match=r"aten\.mul\.Tensor is given tensors on cpu"):
            around(Frequencies(registered=False))(x, sigma)


def test_an_index_left_behind_is_seen() -> None:
    """`meta` alone takes an index from the CPU."""
    samples, index = torch.empty(16, 2, device=META), torch.arange(4)
    assert samples[index].shape == (4, 2)
    with OneDevice():
        with pytest.raises(AssertionError, match=r"aten\.index\.Tensor"):
            samples[index]
        with pytest.raises(AssertionError, match=r"aten\.index_select"):
            samples.index_select(0, index)

    def left_behind(loop: Batch) -> None:
        loop.seed_index = loop.seed_index.new_tensor([0, 1], device="cpu")

    with pytest.raises(AssertionError, match=r"aten\.index\.Tensor"):
        one_step("mlp", "batched", left_behind)


def test_a_schedule_left_behind_is_seen() -> None:
    """Levels that a sampler's step indexes with, and multiplies a batch with."""

    def step(denoise: Any, x: Tensor, sigma: float, sigma_next: float, generator: Any,
             history: list[Any]) -> Tensor:  # fmt: skip
        level = torch.full((len(x), 1), sigma_next / sigma)  # on the CPU
        return denoise(x, sigma) + level * (x - denoise(x, sigma))

    right, _, data = denoiser_of("mlp")
    x = torch.empty(4, *data.shape, device=META)
    with OneDevice(), pytest.raises(AssertionError, match="given tensors on cpu and meta"):
        testbed.sample(right.to(META), x, LEVELS, testbed.Sampler("left_behind", step))
    table = REGISTRY.table("ddpm", n=20)
    with OneDevice(), pytest.raises(AssertionError):
        table.sigmas[torch.zeros(4, dtype=torch.int64, device=META)]


def test_a_condition_left_behind_is_seen() -> None:
    """An embedding on meta takes classes from the CPU, unless it is watched."""
    embedding = nn.Embedding(3, 2).to(META)
    assert embedding(torch.arange(3)).shape == (3, 2)
    with OneDevice(), pytest.raises(AssertionError, match="embedding"):
        embedding(torch.arange(3))
    denoise, _, data = denoiser_of("mlp")
    x, sigma = torch.empty(4, *data.shape, device=META), torch.ones(4, device=META)
    label = {"label": torch.zeros(4, dtype=torch.int64)}
    with OneDevice(), pytest.raises(AssertionError, match="given tensors on cpu and meta"):
        denoise.to(META)(x, sigma, label)


def test_numbers_and_copies_are_not() -> None:
    x = torch.empty(4, 2, device=META)
    with OneDevice() as mode:
        y = x * torch.tensor(2.0) + torch.ones(4, 2).to(META)
        assert y.device == META
    assert mode.on_meta == 2
