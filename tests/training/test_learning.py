"""The training engine beside loops written by hand, and that it learns."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.training import FIVE, REGISTRY, Make, U, data, network, same, trainer
from torch import Tensor

import testbed
from testbed.random import stream
from testbed.training.trainer import BLOCK, Trainer, draws

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


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


# See test_data.py: everything here is seeded, so a law that holds once holds always.
Z = 5.0


def law_learns(make: Make) -> None:
    """After training, the loss on draws of its own is below that at F = 0: paired z beyond Z.

    Levels are cut to [0.3, 3], where no few draws outweigh the rest.
    """
    density = REGISTRY.density("lognormal", sigma_min=0.3, sigma_max=3.0)
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
        lambda: trainer(without_a_scaling("eps"), weighting="edm", density=density),
        edm_weight,
        lambda sigma, sd: (torch.ones_like(sigma), -sigma),
    )
