"""One training loop for every device: Adam, EMA, and a state that can be stored and resumed.

All randomness comes in blocks of BLOCK steps from named streams of the trial's seed, so a step's
draws depend on (seed, step) alone: every trial of a seed sees the same batches, noises and
uniforms, and a resumed run needs to know its step and nothing else.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.diffusion.correlated import Noise
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError
from testbed.random import stream
from testbed.tensors import per_sample
from testbed.training.conditions import of_block
from testbed.training.objective import Objective, Terms
from testbed.training.settings import Training
from testbed.training.weights import Weights

BLOCK = 50


class TrainingJob(NamedTuple):
    """What is trained: a denoiser's network, for an objective, by settings, from a seed.

    `conditions` are those that the network is given, each with its rate of dropout.
    """

    denoiser: Denoiser
    objective: Objective
    training: Training
    seed: int
    conditions: Mapping[str, float] = {}


class Draws(NamedTuple):
    """One block's randomness: indices (BLOCK, B), u (BLOCK, B) float64, eps (BLOCK, B, *shape)."""

    indices: Tensor
    u: Tensor
    eps: Tensor


def draws(seed: int, block: int, batch: int, samples: int, shape: tuple[int, ...]) -> Draws:
    """The draws of steps [BLOCK * block, BLOCK * (block + 1)) for every trial of `seed`; on CPU."""
    batches, uniforms, noises = (
        stream(seed, f"{name}/{block}") for name in ("batch", "sigma", "noise")
    )
    return Draws(
        indices=torch.randint(samples, (BLOCK, batch), generator=batches),
        u=torch.rand(BLOCK, batch, generator=uniforms, dtype=torch.float64),
        eps=torch.randn(BLOCK, batch, *shape, generator=noises),
    )


def noised(noise: Noise, seed: int, block: int, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(n in x, what the target is made of) of a block's eps (BLOCK, B, *shape); on CPU."""
    return noise.applied(eps, tuple(eps.shape[2:]), stream(seed, f"{noise.stream}/{block}"))


@dataclass(frozen=True)
class Row:
    """Means over the steps since the last row. The loss is divided by its value at F = 0."""

    step: int
    loss: float
    gradient_norm: float
    gradient_norm_cv: float
    seconds: float
    bins: tuple[float, ...]
    """loss per sigma bin; nan where no draw fell"""


@dataclass
class Window:
    """What is gathered of K trials between two rows, on the device, without a synchronisation."""

    losses: list[Tensor]
    norms: list[Tensor]
    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, trials: int, bins: int, device: torch.device) -> Window:
        """A window with nothing in it."""
        return cls([], [], *(torch.zeros(trials * bins, device=device) for _ in range(2)))

    def add(self, per_draw: Tensor, norms: Tensor, bins: Tensor) -> None:
        """n steps: losses (n, K, B), gradient norms (n, K), and each draw's place (n, K, B).

        A draw of trial k and sigma bin b has the place k BINS + b.
        """
        self.losses.append(per_draw.mean(2))
        self.norms.append(norms)
        per_draw = per_draw.flatten()
        self.sums.index_add_(0, bins.flatten(), per_draw)
        self.counts.index_add_(0, bins.flatten(), torch.ones_like(per_draw))

    def first_bad(self) -> list[int | None]:
        """The first step with a loss or gradient that is not finite, of each trial."""
        bad = ~torch.isfinite(torch.cat(self.losses) + torch.cat(self.norms))
        first = bad.int().argmax(0).tolist()
        return [
            int(step) if any_bad else None
            for step, any_bad in zip(first, bad.any(0).tolist(), strict=True)
        ]

    def rows(self, step: int, seconds: float) -> list[Row]:
        """The means over the window, of each trial."""
        norms = torch.cat(self.norms).double().cpu()
        means, deviations = norms.mean(0).tolist(), norms.std(0, correction=0).tolist()
        losses = torch.cat(self.losses).double().mean(0).tolist()
        bins = (self.sums / self.counts).view(len(losses), -1).tolist()
        return [
            Row(step, loss, mean, deviation / mean if mean else 0.0, seconds, tuple(row))
            for loss, mean, deviation, row in zip(losses, means, deviations, bins, strict=True)
        ]


class Levels(NamedTuple):
    """What a step needs of sigma, float32, each (B,)."""

    sigma: Tensor
    c_in: Tensor
    c_noise: Tensor
    terms: Terms | None

    def steps(self, device: torch.device) -> list[Levels]:
        """Those of each step, from tensors (n, ...)."""
        parts = [part.to(device).unbind() for part in (*self[:3], *(self.terms or ()))]
        return [
            Levels(sigma, c_in, c_noise, Terms(*terms) if terms else None)
            for sigma, c_in, c_noise, *terms in zip(*parts, strict=True)
        ]


def levels_of(denoiser: Denoiser, objective: Objective, sigma: Tensor) -> Levels:
    """Every function of sigma, from float64 formulas; each shaped like sigma, on its device."""
    c_in, c_noise = denoiser.inputs(sigma)
    terms = objective.terms(sigma) if objective.fixed else None
    return Levels(sigma.float(), c_in.float(), c_noise.float(), terms)


def losses(
    network: Callable[..., Tensor],
    objective: Objective,
    x0: Tensor,
    eps: Tensor,
    at: Levels,
    precision: str = "float32",
    condition: Mapping[str, Tensor] | None = None,
    n: Tensor | None = None,
) -> Tensor:
    """The loss per sample at x = x0 + sigma n, (B,); `precision` is that of `Training`.

    n is eps, of which the target is made, unless given. `condition` maps names to classes (B,), -1
    where it is dropped.
    """
    x = x0 + per_sample(at.sigma, x0) * (eps if n is None else n)
    if precision == "float32":
        F = network(per_sample(at.c_in, x) * x, at.c_noise, condition)
    else:
        with torch.autocast(x.device.type, getattr(torch, precision)):
            F = network(per_sample(at.c_in, x) * x, at.c_noise, condition)
        F = F.to(x.dtype)
    return objective(F, x0, eps, at.sigma, at.terms)


class Loop(ABC):
    """Rows at fixed steps, and the end of what diverges; the same for one trial and for many.

    `diverged` holds for each trial the step of its first non-finite loss, gradient or (at a row)
    average, or None; what was averaged until the row before is then its result.
    """

    BINS = 12

    def __init__(self, trials: int, training: Training, device: torch.device) -> None:
        self.training = training
        self.device = device
        self.step = 0
        self.diverged: list[int | None] = [None] * trials
        self.interval = BLOCK * max(1, round(training.steps / training.points / BLOCK))

    def bins(self, sigma: Tensor, density: Density) -> Tensor:
        """The sigma bin of each draw: BINS bins of equal ratio over the density's range."""
        options = {**density.defaults, **density.options}
        low, high = math.log10(options["sigma_min"]), math.log10(options["sigma_max"])
        edges = torch.logspace(low, high, self.BINS + 1, dtype=torch.float64)
        return torch.bucketize(sigma, edges[1:-1])

    @property
    @abstractmethod
    def ema(self) -> Tensor:
        """The averages, (K, P)."""

    def windows(self) -> Iterator[list[Row | None]]:
        """A row of each trial about `training.points` times; None for one that has diverged."""
        while self.step < self.training.steps and None in self.diverged:
            start, first = time.perf_counter(), self.step
            # Rows fall on multiples of the interval, wherever a resumed run starts.
            last = min((first // self.interval + 1) * self.interval, self.training.steps)
            kept = self.ema.clone()
            window = Window.empty(len(self.diverged), self.BINS, self.device)
            while self.step < last:
                self._block(window, last)
            fine = self.ema.isfinite().all(1).tolist()
            for i, (bad, finite) in enumerate(zip(window.first_bad(), fine, strict=True)):
                if self.diverged[i] is None and not (bad is None and finite):
                    self.diverged[i] = first + bad if bad is not None else self.step - 1
                    self._end(i, kept[i])
            seconds = (time.perf_counter() - start) / len(self.diverged)
            found = window.rows(self.step, seconds)
            yield [
                row if at is None else None for row, at in zip(found, self.diverged, strict=True)
            ]

    @abstractmethod
    def averaged(self, trial: int = 0) -> Denoiser:
        """The denoiser of a trial with its averaged weights put in place."""

    @abstractmethod
    def scale_of(self, trial: int) -> float:
        """The loss at F = 0 by which a trial's is divided."""

    def steps(self, trial: int) -> int:
        """How many steps a trial has done."""
        return self.step

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts from which `restore` continues bit for bit (on CPU)."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continues from a `state()`.

        Raises:
            InputError: the state is of other trials.
        """

    @abstractmethod
    def _block(self, window: Window, last: int) -> None:
        """The steps from the current one to the end of its block, or to `last`."""

    @abstractmethod
    def _end(self, trial: int, kept: Tensor) -> None:
        """Makes `kept`, the averages of the row before, (P,), that of a trial that diverged."""


class Trainer(Loop):
    """Trains a denoiser's network for one objective.

    Iterating yields a `Row` about `training.points` times and stops at the last step, or where the
    trial diverges: then `diverged_at` is that step and the average is that of the row before.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective,
        data: Data,
        training: Training,
        seed: int,
        device: torch.device,
        conditions: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(1, training, device)
        self.denoiser = denoiser.to(device)
        self.seed = seed
        self.samples = data.train.to(device)
        self.conditions = dict(conditions or {})
        self.classes = data.condition("train", self.conditions)
        self.scale = objective.scale(data)
        if objective.vlb is not None:
            # Beside a loss that is 1 at F = 0, as L_simple is.
            objective = replace(objective, vlb=objective.vlb * self.scale)
        self.objective = objective
        network = list(denoiser.parameters())
        states = objective.states.to(device) if objective.states is not None else None
        # The objective's own come last: the gradient's norm and clipping are of the network.
        self.parameters = network + list(states.parameters() if states is not None else ())
        self.buffers = dict(states.named_buffers() if states is not None else ())
        self.weights = Weights([self.parameters], [training], len(network))
        for name, buffer in (("data", self.weights.W), ("grad", self.weights.G)):
            for p, view in zip(self.parameters, self.weights.views(buffer[0]), strict=True):
                setattr(p, name, view)

    @classmethod
    def of(cls, one: TrainingJob, data: Data, device: torch.device) -> Trainer:
        """The trainer of a contestant."""
        denoiser, objective, training, seed, conditions = one
        return cls(denoiser, objective, data, training, seed, device, conditions)

    @property
    def ema(self) -> Tensor:
        """The averages, (1, P)."""
        return self.weights.ema

    @property
    def diverged_at(self) -> int | None:
        """The first step that was not finite."""
        return self.diverged[0]

    def __iter__(self) -> Iterator[Row]:
        for (row,) in self.windows():
            if row is not None:
                yield row

    def _end(self, trial: int, kept: Tensor) -> None:
        """The averages of the row before are the result."""
        self.ema.copy_(kept)

    def _block(self, window: Window, last: int) -> None:
        """The steps from the current one to the end of its block, or to `last`."""
        block, offset = divmod(self.step, BLOCK)
        steps = slice(offset, min(BLOCK, offset + last - self.step))
        shape = tuple(self.samples.shape[1:])
        drawn = draws(self.seed, block, self.training.batch, len(self.samples), shape)
        sigmas = self.objective.sigma(drawn.u[steps])
        bins = self.bins(sigmas, self.objective.density).to(self.device)
        # Every function of sigma is evaluated once a block, in float64.
        levels = levels_of(self.denoiser, self.objective, sigmas).steps(self.device)
        n, target = noised(self.objective.noise, self.seed, block, drawn.eps)
        targets = target[steps].to(self.device).unbind()
        ns = targets if n is target else n[steps].to(self.device).unbind()
        indices = drawn.indices[steps].to(self.device).unbind()
        given = of_block(self.classes, self.conditions, self.seed, block, drawn.indices)
        given = {name: classes[steps].to(self.device) for name, classes in given.items()}
        found, norms = [], []
        for i, (index, n, eps, at) in enumerate(zip(indices, ns, targets, levels, strict=True)):
            condition = {name: classes[i] for name, classes in given.items()} or None
            x0 = self.samples.index_select(0, index)
            network, precision = self.denoiser.network, self.training.precision
            per_draw = losses(network, self.objective, x0, eps, at, precision, condition, n)
            per_draw = per_draw / self.scale
            gradients = torch.autograd.grad(
                per_draw.mean(), self.parameters, allow_unused=True, materialize_grads=True
            )
            norm = self.weights.take(gradients)
            self.weights.update(norm, self.step)
            found.append(per_draw.detach())
            norms.append(norm)
            self.step += 1
        window.add(torch.stack(found)[:, None], torch.stack(norms), bins[:, None])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts from which `restore` continues bit for bit (on CPU)."""
        buffers = {f"buffer.{name}": value for name, value in self.buffers.items()}
        return {**self.weights.state(), **buffers}, {"step": self.step, "seed": self.seed}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continues from a `state()`.

        Raises:
            InputError: the state is of another seed or another network.
        """
        shapes = {f"buffer.{name}": value.shape for name, value in self.buffers.items()}
        found = {name: t.shape for name, t in tensors.items() if name.startswith("buffer.")}
        if facts.get("seed") != self.seed or shapes != found or not self.weights.fits(tensors):
            raise InputError("this checkpoint belongs to another seed or network.")
        self.step = facts["step"]
        self.weights.restore(tensors)
        with torch.no_grad():
            for name, value in self.buffers.items():
                value.copy_(tensors[f"buffer.{name}"])

    def scale_of(self, trial: int) -> float:
        """The loss at F = 0 by which the trial's is divided."""
        return self.scale

    def averaged(self, trial: int = 0) -> Denoiser:
        """The denoiser with the averaged weights put in place; training cannot go on after it.

        The objective's states have theirs put in place too.
        """
        with torch.no_grad():
            self.weights.W.copy_(self.ema)
        return self.denoiser.eval()
