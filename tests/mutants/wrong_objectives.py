"""Wrong weightings, losses and densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mutants.wrong import wrong
from torch import Tensor, nn

import testbed


def weighting(function: Callable[..., Tensor], **more: Any) -> testbed.Weighting:
    return testbed.Weighting("wrong", function, **more)


wrong("negative", weighting(lambda sigma: 1 - sigma), "positive")
wrong("zero everywhere", weighting(lambda sigma: 0 * sigma), "positive")
wrong("infinite", weighting(lambda sigma: torch.exp(sigma)), "positive")
wrong(
    "negative at large sigma_data",
    weighting(lambda sigma, sigma_data: 1 / sigma**2 + 1 - sigma_data),
    "positive",
)
wrong("mean over the batch", weighting(lambda sigma: 1 / sigma.mean()), "per_sample")
wrong("normalised over the batch", weighting(lambda sigma: sigma / sigma.sum()), "per_sample")
wrong(
    "the first sigma for all",
    weighting(lambda sigma: 1 / sigma.reshape(-1)[:1].sum() ** 2),
    "per_sample",
)
wrong("torch's global generator", weighting(lambda sigma: 1 + 0 * torch.rand(())), "pure")
wrong("random", weighting(lambda sigma: 1 + torch.rand(sigma.shape)), "per_sample", "pure")
wrong("sigma changed in place", weighting(lambda sigma: sigma.mul_(2)), "pure")
wrong(
    "an option that does nothing",
    weighting(lambda sigma, gamma=5.0: (1 / sigma**2).clamp(max=5)),
    "options",
)
wrong("divides by a density that is zero", weighting(lambda sigma, p: 1 / p), "densities")
wrong("a scalar's weight has a dimension", weighting(lambda sigma: sigma.reshape(-1)), "shape")
wrong("a constant on the CPU", weighting(lambda sigma: torch.ones(sigma.shape) * sigma), "device")


class Level(nn.Module):
    """u(sigma) = w log sigma + c."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.c = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, sigma: Tensor) -> Tensor:
        return self.w * torch.log(sigma) + self.c


def learned(
    function: Callable[..., Tensor] = lambda sigma, state: torch.exp(-state(sigma)) / sigma**2,
    penalty: Any = lambda sigma, state: state(sigma),
) -> testbed.Weighting:
    return weighting(function, state=Level, penalty=penalty)


wrong("learned without a penalty", learned(penalty=None), "penalty")
wrong(
    "learned, the penalty a mean",
    learned(penalty=lambda sigma, state: state(sigma).mean()),
    "penalty",
)
wrong(
    "learned, detached",
    learned(
        lambda sigma, state: torch.exp(-state(sigma).detach()) / sigma**2,
        lambda sigma, state: state(sigma).detach(),
    ),
    "learns",
)
wrong(
    "learned, a parameter left out",
    learned(
        lambda sigma, state: torch.exp(-state.c) / sigma**2 + 0 * sigma,
        lambda sigma, state: state.c + 0 * sigma,
    ),
    "learns",
)
wrong(
    "learned, can be negative",
    learned(lambda sigma, state: (1 - state(sigma)) / sigma**2),
    "positive",
)


def loss(function: Callable[..., Tensor], **more: Any) -> testbed.Loss:
    return testbed.Loss("wrong", function, **more)


wrong(  # it is refused: every check that calls it raises
    "mean over everything",
    loss(lambda a, b: ((a - b) ** 2).mean()),
    *("shape", "elementwise", "device", "differentiable", "finite", "options", "pure"),
    *("sees_errors", "zero_at_target"),
)
wrong(
    "mean over the batch, kept",
    loss(lambda a, b: ((a - b) ** 2).mean(0, keepdim=True).expand_as(a)),
    "elementwise",
)
wrong(
    "divided by the batch's size of error",
    loss(lambda a, b: (a - b) ** 2 / (a - b).square().mean()),
    "elementwise",
    "zero_at_target",
)
wrong("negated", loss(lambda a, b: -((a - b) ** 2)), "zero_at_target", "sees_errors")
wrong("signed", loss(lambda a, b: a - b), "zero_at_target", "sees_errors")
wrong(
    "not zero at the target", loss(lambda a, b: torch.sqrt((a - b) ** 2 + 0.01)), "zero_at_target"
)
wrong("zero", loss(lambda a, b: 0 * (a - b)), "sees_errors")
wrong("one-sided", loss(lambda a, b: (a - b).clamp(min=0)), "sees_errors")
wrong("prediction detached", loss(lambda a, b: (a.detach() - b) ** 2 + 0 * a), "differentiable")
wrong("overflows", loss(lambda a, b: torch.expm1((a - b) ** 2)), "finite")
wrong("torch's global generator", loss(lambda a, b: (a - b) ** 2 + 0 * torch.rand(())), "pure")
wrong("changed in place", loss(lambda a, b: a.sub_(b).square()), "pure", "differentiable")
wrong("an option that does nothing", loss(lambda a, b, delta=1.0: (a - b) ** 2), "options")
wrong(
    "a constant on the CPU",
    loss(lambda a, b: (a - b) ** 2 * torch.ones(a.shape[-1:], dtype=a.dtype)),
    "device",
)
wrong("unknown space", loss(lambda a, b: (a - b) ** 2, space="epsilon"), "metadata")
wrong("float64 always", loss(lambda a, b: (a.double() - b.double()) ** 2), "shape")
for name, function in {
    "l1": lambda a, b: (a - b).abs(),
    "huber": lambda a, b: nn.functional.huber_loss(a, b, reduction="none"),
    "huber with a large delta": lambda a, b: nn.functional.huber_loss(
        a, b, reduction="none", delta=10.0
    ),
    "a fourth power": lambda a, b: (a - b) ** 4,
    "a tilted square": lambda a, b: (a - b) ** 2 + 0.01 * (a - b).clamp(min=0) ** 2,
}.items():
    wrong(f"claims the mean, {name}", loss(function, elicits_mean=True), "claim.elicits_mean")


class Count(nn.Module):
    """How many calls there were, in an attribute that no checkpoint keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("unused", torch.zeros(()))


def counted(a: Tensor, b: Tensor, state: Count) -> Tensor:
    state.calls += 1
    return (a - b) ** 2 * state.calls


wrong("a state that is not saved", loss(counted, state=Count), "state_round_trip")


def normal(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def density(
    icdf: Callable[..., Tensor] = lambda u: torch.exp(torch.special.ndtri(u)),
    pdf: Callable[..., Tensor] = lambda sigma: normal(torch.log(sigma)),
) -> testbed.Density:
    """A standard log-normal with a part replaced."""
    return testbed.Density("wrong", icdf, pdf)


wrong(
    "pdf over sigma, not log sigma",
    density(pdf=lambda sigma: normal(torch.log(sigma)) / sigma),
    "normalised",
    "draws",
)
wrong(
    "pdf 0.1 % too large", density(pdf=lambda sigma: 1.001 * normal(torch.log(sigma))), "normalised"
)
wrong(
    "pdf of another deviation",
    density(pdf=lambda sigma: normal(torch.log(sigma) / 1.2) / 1.2),
    "normalised",
    "draws",
)
wrong(
    "deviation not divided by",
    density(
        lambda u: torch.exp(1.2 * torch.special.ndtri(u)),
        lambda sigma: normal(torch.log(sigma) / 1.2),
    ),
    "normalised",
)
wrong(
    "icdf shifted",
    density(lambda u: torch.exp(0.05 + torch.special.ndtri(u))),
    "draws",
    "normalised",
)
wrong(
    "icdf of sigma^2",
    density(lambda u: torch.exp(2 * torch.special.ndtri(u))),
    "normalised",
    "draws",
)
wrong(
    "pdf negative",
    density(pdf=lambda sigma: normal(torch.log(sigma)) - 1e-3),
    "normalised",
    "positive",
)
wrong(
    "pdf infinite at a point",
    density(pdf=lambda sigma: torch.where(sigma > 50, torch.inf, normal(torch.log(sigma)))),
    "normalised",
    "positive",
)
wrong(
    "random",
    density(lambda u: torch.exp(torch.special.ndtri(u)) * (1 + 1e-9 * torch.rand(u.shape))),
    "pure",
)
wrong(
    "torch's global generator",
    density(pdf=lambda sigma: normal(torch.log(sigma)) + 0 * torch.rand(())),
    "pure",
)
wrong(
    "u changed in place",
    density(lambda u: torch.exp(torch.special.ndtri(u.clamp_(1e-9, 0.9)))),
    "pure",
)
wrong(
    "icdf has a dip",
    density(lambda u: torch.exp(torch.special.ndtri(u) + 0.02 * torch.sin(300 * u))),
    "increasing",
    "draws",
)
wrong(
    "the batch's order",
    density(lambda u: torch.exp(torch.special.ndtri(u)).sort().values),
    "per_sample",
)
wrong("float32 out", density(lambda u: torch.exp(torch.special.ndtri(u)).float()), "shape")
wrong(
    "an option that does nothing",
    density(lambda u, mean=0.0: torch.exp(torch.special.ndtri(u))),
    "options",
)
