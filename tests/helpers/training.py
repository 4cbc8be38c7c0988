"""A small trainer of networks, and runs to compare bit for bit."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.registry import default_registry
from testbed.training import checkpoint
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Trainer
from testbed.trial import recipes

CPU = torch.device("cpu")
REGISTRY = default_registry()
FIVE = ("edm", "eps", "score", "v", "x0")
U = 2.0**-24
"""The unit roundoff of float32."""
State = tuple[dict[str, Tensor], dict[str, Any]]
Make = Callable[..., Trainer]


@functools.cache
def data(name: str = "gaussian", **options: Any) -> Data:
    return REGISTRY.dataset(name, **{"n": 400, "test": 10, **options})()


def network(set_: Data, seed: int = 0, labels: int = 0, width: int = 16) -> nn.Module:
    return REGISTRY.network("mlp", width=width, depth=1, features=4)(set_.shape, labels, seed)


def trainer(
    parameterization: str | testbed.Parameterization = "eps",
    *,
    weighting: str | None = "edm",
    loss: str | testbed.Loss = "l2",
    density: str | testbed.Density = "lognormal",
    c_in: str = "shared",
    c_noise: str = "shared",
    sigma_data: float | None = None,
    set_: Data | None = None,
    net: nn.Module | None = None,
    seed: int = 0,
    made: type[Trainer] = Trainer,
    **training: Any,
) -> Trainer:
    """A trainer of a small network; by default all but the parameterization is shared."""
    set_ = data() if set_ is None else set_
    p = parameterization
    p = REGISTRY.parameterization(p) if isinstance(p, str) else p.bound({})
    measured = set_.sigma_data if sigma_data is None else sigma_data
    denoiser = testbed.Denoiser(
        network(set_) if net is None else net, p, measured, c_in=c_in, c_noise=c_noise
    )
    objective = Objective(
        p,
        None if weighting is None else REGISTRY.weighting(weighting),
        REGISTRY.loss(loss) if isinstance(loss, str) else loss,
        REGISTRY.density(density) if isinstance(density, str) else density.bound(density.options),
        measured,
    )
    settings = Training(**{"steps": 60, "batch": 16, **training})
    return made(denoiser, objective, set_, settings, seed, CPU)


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


def gradient_norms(one: Trainer) -> list[float]:
    """The norms of the gradients that the optimiser is given, filled as the trainer runs."""
    norms: list[float] = []
    descend = one.weights.descend

    def listen(step: int) -> None:
        norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in one.parameters)))
        descend(step)

    one.weights.descend = listen  # type: ignore[method-assign]
    return norms


def ran(one: Trainer) -> tuple[list[tuple[Any, ...]], State]:
    """The rows without their times, and the final state."""
    rows = [dataclasses.replace(row, seconds=0.0) for row in one]
    return [dataclasses.astuple(row) for row in rows], one.state()


def same(one: Any, two: Any) -> bool:
    """Equal bit for bit, nan included."""
    if isinstance(one, Tensor):
        return torch.equal(one.detach().isnan(), two.detach().isnan()) and torch.equal(
            one.detach().nan_to_num(), two.detach().nan_to_num()
        )
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two or (one != one and two != two)


Restore = Callable[[Trainer, dict[str, Tensor], dict[str, Any]], None]


def resumed(make: Make, stop: int, steps: int, restore: Restore) -> Any:
    """Rows after `stop` and final state of a run whose second half begins from a checkpoint."""
    first = make(steps=stop)
    list(first)
    second = make(steps=steps, net=network(data(), seed=99))
    restore(second, *checkpoint.decode(checkpoint.encode(*first.state()), "state"))
    return ran(second)
