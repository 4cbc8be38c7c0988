"""The optimisers on the same recorded gradients as torch.optim's, and by their equations."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import plan, study_file
from testbed.training import optimizers, rates
from testbed.training.settings import OPTIMIZERS, Training
from testbed.training.weights import Weights

STEPS = 100
RATE = 1e-2
SHAPE = (5, 7)
SMALLEST = 1e-13
"""Relative. A dozen roundings a step, 100 steps: 1.3e-13 if every one of them pointed one way."""

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "adam": [{}, {"betas": (0.8, 0.95)}, {"betas": (0.0, 0.0)}, {"eps": 1e-3}, {"eps": 0.5}],
    "adamw": [{"weight_decay": wd, "betas": b, "eps": e}
              for wd, b, e in itertools.product((0.0, 0.01, 0.3), ((0.9, 0.99), (0.5, 0.9)),
                                                (1e-8, 0.1))],
    "sgd": [{"momentum": momentum} for momentum in (0.0, 0.5, 0.9, 0.99)],
}  # fmt: skip
CASES = [(name, options) for name, several in OPTIONS.items() for options in several]
SHAPES = [{}, {"warmup": 10}, {"schedule": "cosine", "hold": 20, "warmup": 5}]


def recorded(seed: int = 0) -> list[Tensor]:
    """100 gradients over five decades, some of their coordinates exactly 0."""
    g = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-5, 1, (STEPS,), generator=g)
    found = sizes[:, None, None] * torch.randn(STEPS, *SHAPE, generator=g, dtype=torch.float64)
    return list(torch.where(torch.rand(found.shape, generator=g) < 0.05, 0.0, found))


def start(seed: int = 1) -> Tensor:
    """Weights that stay far from 0, where a relative error means something."""
    return 10 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def settings(name: str, **options: Any) -> Training:
    return Training(steps=STEPS, learning_rate=RATE, optimizer=name, **options)


def ours(training: Training, gradients: list[Tensor]) -> list[Tensor]:
    """The weights after each step, from the buffers that training uses."""
    weights = Weights([[start()]], [training], [1.0])
    found = []
    for step, g in enumerate(gradients):
        weights.update(weights.take([g[None]]), step)
        found.append(weights.W.view(SHAPE).clone())
    return found


def torchs(training: Training, gradients: list[Tensor]) -> list[Tensor]:
    """The weights after each step of torch.optim."""
    W = torch.nn.Parameter(start())
    kind: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam([W], RATE, training.betas, training.eps),
        "adamw": lambda: torch.optim.AdamW(
            [W], RATE, training.betas, training.eps, training.weight_decay
        ),
        "sgd": lambda: torch.optim.SGD([W], RATE, training.momentum),
    }
    optimiser = kind[training.optimizer]()
    found = []
    for step, g in enumerate(gradients):
        for group in optimiser.param_groups:
            group["lr"] = rates.learning_rate(training, step)
        W.grad = g.clone()
        optimiser.step()
        found.append(W.detach().clone())
    return found


def law_torch(training: Training) -> None:
    gradients = recorded()
    for step, (mine, theirs) in enumerate(
        zip(ours(training, gradients), torchs(training, gradients), strict=True)
    ):
        off = float(((mine - theirs).abs() / theirs.abs()).max())
        assert off <= SMALLEST, (step, off)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_hundred_steps_are_torch_optims(name: str, options: dict[str, Any]) -> None:
    law_torch(settings(name, **options))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_a_rate_that_changes_they_are_too(name: str, shape: dict[str, Any]) -> None:
    law_torch(settings(name, **OPTIONS[name][-1], **shape))


def by_equation(training: Training, gradients: list[Tensor]) -> NDArray[np.longdouble]:
    """The weights at the end, by the equations of the module's docstring, in extended precision."""
    W = start().numpy().astype(np.longdouble)
    m, v = np.zeros_like(W), np.zeros_like(W)
    beta1, beta2 = map(np.longdouble, training.betas)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.numpy().astype(np.longdouble)
        if training.optimizer == "sgd":
            m = training.momentum * m + g
            W = W - RATE * m
            continue
        W = W * (1 - np.longdouble(RATE) * training.weight_decay)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        W = W - RATE * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + training.eps)
    return W


def law_equation(training: Training) -> None:
    gradients = recorded(2)
    wanted = by_equation(training, gradients)
    off = np.abs(ours(training, gradients)[-1].numpy() - wanted) / np.abs(wanted)
    assert float(off.max()) <= SMALLEST


@pytest.mark.parametrize(("name", "options"), CASES)
def test_they_are_what_their_equations_say(name: str, options: dict[str, Any]) -> None:
    law_equation(settings(name, **options))


WRONG: dict[str, dict[str, Callable[[Training], Training]]] = {
    "adam": {
        "eps left out": lambda t: dataclasses.replace(t, eps=0.0),
        "betas swapped": lambda t: dataclasses.replace(t, betas=t.betas[::-1]),
    },
    "adamw": {"no decay": lambda t: dataclasses.replace(t, weight_decay=0.0)},
    "sgd": {"no momentum": lambda t: dataclasses.replace(t, momentum=0.0)},
}
DECISIVE = {
    "adam": {"eps": 1e-3, "betas": (0.8, 0.95)},
    "adamw": {"weight_decay": 0.01},
    "sgd": {"momentum": 0.5},
}


@pytest.mark.parametrize(("name", "mistake"), [(n, m) for n in WRONG for m in WRONG[n]])
def test_an_option_that_is_dropped_is_caught(name: str, mistake: str) -> None:
    right, wrong = optimizers.descend, WRONG[name][mistake]

    def descend(*parts: Any) -> None:
        right(*parts[:5], wrong(parts[5]), parts[6])

    with mock.patch.object(optimizers, "descend", descend):
        for law in (law_torch, law_equation):
            with pytest.raises(AssertionError):
                law(settings(name, **DECISIVE[name]))


def coupled(
    W: Tensor, G: Tensor, m: Tensor, v: Tensor, steps: Tensor, t: Training, r: float
) -> None:
    """Weight decay added to the gradient: L2, and not AdamW."""
    decay = t.weight_decay
    plain = dataclasses.replace(t, weight_decay=0.0)
    RIGHT(W, G + decay * W, m, v, steps, plain, r)


def damped(
    W: Tensor, G: Tensor, m: Tensor, v: Tensor, steps: Tensor, t: Training, r: float
) -> None:
    """The first momentum step (1 - momentum) times too small."""
    RIGHT(W, G * (1 - t.momentum) if float(m.abs().max()) == 0 else G, m, v, steps, t, r)


RIGHT = optimizers.descend


@pytest.mark.parametrize(("name", "wrong"), [("adamw", coupled), ("sgd", damped)])
def test_a_formula_that_is_another_is_caught(name: str, wrong: Callable[..., None]) -> None:
    with mock.patch.object(optimizers, "descend", wrong):
        for law in (law_torch, law_equation):
            with pytest.raises(AssertionError):
                law(settings(name, **DECISIVE[name]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adamx"}, "Did you mean 'adam'?"),
        ({"weight_decay": 0.1}, 'is an option of adamw, and optimizer = "adam" has none'),
        ({"optimizer": "adam", "momentum": 0.9}, 'is an option of sgd, and optimizer = "adam"'),
        ({"optimizer": "sgd", "weight_decay": 0.1}, 'is an option of adamw, and optimizer = "sgd"'),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum = 1.0 is out of range"),
        ({"optimizer": "adamw", "weight_decay": -0.1}, "weight_decay = -0.1 is out of range"),
        ({"eps": -1e-8}, "eps = -1e-08 is out of range"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        Training(**options)


STUDY = """
[study]
name = "optimizers"
[base]
parameterization = "v"
dataset = { name = "moons", n = 300, test = 100 }
training = { steps = 60, batch = 16 }
seeds = 1
[grid]
training.optimizer = ["adam", "sgd"]
training.learning_rate = [0.001, 0.01]
"""


def test_they_are_factors_of_a_study_and_the_default_leaves_identities_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "optimizers.toml"
    file.write_text(STUDY)
    registry = default_registry()
    made = plan.make(study_file.read(file), registry, tmp_path / "out", "cpu")
    assert [one.labels[0]["variant"] for one in made.trials] == [
        f"v optimizer={name} learning_rate={rate}"
        for name in ("adam", "sgd")
        for rate in (0.001, 0.01)
    ]
    file.write_text(STUDY.replace('training.optimizer = ["adam", "sgd"]\n', ""))
    plain = plan.make(study_file.read(file), registry, tmp_path / "out", "cpu")
    assert {one.id for one in plain.trials} < {one.id for one in made.trials}
