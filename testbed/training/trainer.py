"""The training loop for every device: Adam, averaged weights, and a state that can be resumed.

All randomness comes in blocks of BLOCK steps from named streams of the trial's seed, so a step's
draws depend on (seed, step) alone: every trial of a seed sees the same batches, noises and
uniforms, and a resumed run needs its step and nothing else.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from testbed.training import flips
from testbed.training.accumulation import accumulated
from testbed.training.conditions import block_classes
from testbed.training.curve import CurvePoint, Window
from testbed.training.objective import Objective, Terms
from testbed.training.parallel import ProcessGroup
from testbed.training.settings import Training
from testbed.training.weights import Weights

BLOCK = 50


class TrainingJob(NamedTuple):
    """A denoiser's network to be trained for an objective, by settings, from a seed.

    `conditions` maps the name of each condition of the network to its rate of dropout.
    """

    denoiser: Denoiser
    objective: Objective
    training: Training
    seed: int
    conditions: Mapping[str, float] = {}


class Draws(NamedTuple):
    """The draws of one block of steps: the rows of the batch, the uniforms and the noise."""

    indices: Tensor
    """(BLOCK, B) int64, rows of the training split"""
    u: Tensor
    """(BLOCK, B) float64 in [0, 1), which the density's inverse CDF maps to sigma"""
    eps: Tensor
    """(BLOCK, B, *shape) float32"""


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


def noise_pair(noise: Noise, seed: int, block: int, eps: Tensor) -> tuple[Tensor, Tensor]:
    """(n in x, the target's noise) from a block's eps, each (BLOCK, B, *shape); on CPU."""
    return noise.pair(eps, tuple(eps.shape[2:]), stream(seed, f"{noise.stream}/{block}"))


class SigmaFunctions(NamedTuple):
    """Sigma and the functions of it that a step needs, float32, each (B,)."""

    sigma: Tensor
    c_in: Tensor
    c_noise: Tensor
    terms: Terms | None
    """None for an objective that depends on more than sigma"""

    def steps(self, device: torch.device) -> list[SigmaFunctions]:
        """The functions of each of n steps, from tensors (n, ...)."""
        parts = [part.to(device).unbind() for part in (*self[:3], *(self.terms or ()))]
        return [
            SigmaFunctions(sigma, c_in, c_noise, Terms(*terms) if terms else None)
            for sigma, c_in, c_noise, *terms in zip(*parts, strict=True)
        ]


def sigma_functions(denoiser: Denoiser, objective: Objective, sigma: Tensor) -> SigmaFunctions:
    """Every function of sigma, computed in float64; each shaped like sigma, on its device."""
    c_in, c_noise = denoiser.inputs(sigma)
    terms = objective.terms(sigma) if objective.fixed else None
    return SigmaFunctions(sigma.float(), c_in.float(), c_noise.float(), terms)


def losses(
    network: Callable[..., Tensor],
    objective: Objective,
    x0: Tensor,
    eps: Tensor,
    at: SigmaFunctions,
    precision: str = "float32",
    condition: Mapping[str, Tensor] | None = None,
    n: Tensor | None = None,
    memory_format: str = "contiguous",
) -> Tensor:
    """The loss per sample at x = x0 + sigma n, (B,).

    Args:
        network: called as `network(x, c_noise, condition)`.
        x0, eps: (B, *shape) clean data and the target's noise.
        at: sigma and its functions.
        precision, memory_format: as in `Training`.
        condition: names -> classes (B,) int64, -1 for a class that is dropped.
        n: (B, *shape) the noise in x, by default eps.
    """
    x = x0 + per_sample(at.sigma, x0) * (eps if n is None else n)
    scaled = per_sample(at.c_in, x) * x
    if memory_format == "channels_last":
        scaled = scaled.contiguous(memory_format=torch.channels_last)
    if precision == "float32":
        F = network(scaled, at.c_noise, condition)
    else:
        with torch.autocast(x.device.type, getattr(torch, precision)):
            F = network(scaled, at.c_noise, condition).to(x.dtype)
    return objective(F, x0, eps, at.sigma, at.terms)


class Snapshot(NamedTuple):
    """The averages of K trials after a number of steps: by name, (K, P) of the network's."""

    step: int
    averages: dict[str, Tensor]


class Loop(ABC):
    """Curve points at fixed steps, and the end of trials that diverge; for one trial and for many.

    `diverged` holds for each trial the step of its first loss, gradient or (at a point) average
    that is not finite, or None. The result of such a trial is its average at the point before.
    `snapshots` holds the averages at the stops of the last window; see `keep`. `process_group` has
    the processes that train a trial together; it is None where this one trains alone.
    """

    BINS = 12
    weights: Weights
    process_group: ProcessGroup | None = None

    def __init__(self, trials: int, training: Training, device: torch.device) -> None:
        self.training = training
        self.device = device
        self.step = 0
        self.diverged: list[int | None] = [None] * trials
        self.interval = BLOCK * max(1, round(training.steps / training.points / BLOCK))
        self.stops: frozenset[int] = frozenset()
        self.snapshots: list[Snapshot] = []

    def keep(self, steps: Iterable[int], widths: Sequence[float] = ()) -> None:
        """Takes a snapshot of the averages after each of these numbers of steps.

        The numbers of a training stay the same. It is called before the first step, and before
        `restore`.

        Args:
            steps: the stops.
            widths: of power-function averages that are kept beside the trial's own.
        """
        self.stops = frozenset(steps)
        if widths:
            self.weights.keep(widths)

    def _stepped(self) -> None:
        """Counts a step, and takes a snapshot where it is a stop."""
        self.step += 1
        if self.step in self.stops:
            self.snapshots.append(Snapshot(self.step, self.weights.averages()))

    def snapshots_of(self, trial: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Step and averages, each (P,), of a trial's snapshots before it diverged, if it did."""
        end = self.diverged[trial]
        for step, averages in self.snapshots:
            if end is None or step <= end:
                yield step, {name: rows[trial] for name, rows in averages.items()}

    def bins(self, sigma: Tensor, density: Density) -> Tensor:
        """The sigma bin of each draw: BINS bins of equal ratio over the density's range."""
        low, high = map(math.log10, density.range)
        edges = torch.logspace(low, high, self.BINS + 1, dtype=torch.float64)
        return torch.bucketize(sigma, edges[1:-1])

    @property
    @abstractmethod
    def ema(self) -> Tensor:
        """The averages, (K, P)."""

    def windows(self) -> Iterator[list[CurvePoint | None]]:
        """A point for each trial, about `training.points` times; None for one that has diverged."""
        while self.step < self.training.steps and None in self.diverged:
            start, first = time.perf_counter(), self.step
            # Points fall on multiples of the interval, wherever a resumed run starts.
            last = min((first // self.interval + 1) * self.interval, self.training.steps)
            before = self.ema.clone()
            self.snapshots = []
            window = Window.empty(len(self.diverged), self.BINS, self.device)
            while self.step < last:
                self._block(window, last)
            finite = self.ema.isfinite().all(1).tolist()
            for i, step in enumerate(window.first_nonfinite()):
                if self.diverged[i] is None and not (step is None and finite[i]):
                    self.diverged[i] = first + step if step is not None else self.step - 1
                    self._end(i, before[i])
            seconds = (time.perf_counter() - start) / len(self.diverged)
            points = window.points(self.step, seconds)
            yield [
                point if diverged is None else None
                for point, diverged in zip(points, self.diverged, strict=True)
            ]

    @abstractmethod
    def averaged(self, trial: int = 0) -> Denoiser:
        """The denoiser of a trial with its averaged weights put in place."""

    @abstractmethod
    def scale_of(self, trial: int) -> float:
        """The loss at F = 0 by which the trial's loss is divided."""

    def steps(self, trial: int) -> int:
        """The number of steps that a trial has done."""
        return self.step

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON facts from which `restore` continues, on the CPU bit for bit."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continues from a `state()`.

        Raises:
            InputError: the state is of other trials.
        """

    @abstractmethod
    def _block(self, window: Window, last: int) -> None:
        """Does the steps from the current one to the end of its block, or to `last`."""

    @abstractmethod
    def _end(self, trial: int, average: Tensor) -> None:
        """Makes `average` (P,), that at the point before, the result of a trial that diverged."""


class Trainer(Loop):
    """Trains a denoiser's network for one objective.

    Iterating yields a `CurvePoint` about `training.points` times and stops at the last step, or
    where the trial diverges: then `diverged_at` is that step, and the average is that of the point
    before.

    Args:
        denoiser: the denoiser whose network is trained; it is moved to the device.
        objective: the objective, with its states.
        data: the data set.
        training: the settings.
        seed: the seed of every draw.
        device: the device to train on.
        conditions: names of conditions -> rates of dropout.
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
            # The factor is relative to a loss that is 1 at F = 0, as L_simple is.
            objective = replace(objective, vlb=objective.vlb * self.scale)
        self.objective = objective
        called = denoiser.network
        self.network = torch.compile(called) if training.compile else called
        network = list(denoiser.parameters())
        states = objective.states.to(device) if objective.states is not None else None
        # The objective's own come last: the gradient's norm and clipping are the network's.
        self.parameters = network + list(states.parameters() if states is not None else ())
        self.buffers = dict(states.named_buffers() if states is not None else ())
        self.weights = Weights([self.parameters], [training], [self.scale], len(network))
        for name, buffer in (("data", self.weights.W), ("grad", self.weights.G)):
            for p, view in zip(self.parameters, self.weights.views(buffer[0]), strict=True):
                setattr(p, name, view)

    @classmethod
    def of(cls, job: TrainingJob, data: Data, device: torch.device) -> Trainer:
        """The trainer of a job."""
        denoiser, objective, training, seed, conditions = job
        return cls(denoiser, objective, data, training, seed, device, conditions)

    @property
    def ema(self) -> Tensor:
        """The averages, (1, P)."""
        return self.weights.ema

    @property
    def diverged_at(self) -> int | None:
        """The first step that was not finite."""
        return self.diverged[0]

    def __iter__(self) -> Iterator[CurvePoint]:
        for (point,) in self.windows():
            if point is not None:
                yield point

    def _end(self, trial: int, average: Tensor) -> None:
        self.ema.copy_(average)

    def _block(self, window: Window, last: int) -> None:
        block, offset = divmod(self.step, BLOCK)
        steps = slice(offset, min(BLOCK, offset + last - self.step))
        shape = tuple(self.samples.shape[1:])
        indices, u, eps = draws(self.seed, block, self.training.batch, len(self.samples), shape)
        flip = flips.drawn(self.seed, block, indices, self.training.flips)[steps]
        sigmas = self.objective.sigma(u[steps])
        bins = self.bins(sigmas, self.objective.density).to(self.device)
        # Every function of sigma is evaluated once a block, in float64.
        functions = sigma_functions(self.denoiser, self.objective, sigmas).steps(self.device)
        n, target = noise_pair(self.objective.noise, self.seed, block, eps)
        targets = target[steps].to(self.device).unbind()
        ns = targets if n is target else n[steps].to(self.device).unbind()
        batches = indices[steps].to(self.device).unbind()
        drawn = block_classes(self.classes, self.conditions, self.seed, block, indices)
        conditions = {name: classes[steps].to(self.device) for name, classes in drawn.items()}
        per_step, norms = [], []
        for i, (index, n, eps, at) in enumerate(zip(batches, ns, targets, functions, strict=True)):
            condition = {name: classes[i] for name, classes in conditions.items()} or None
            x0 = flips.flipped(self.samples.index_select(0, index), flip[i])
            inputs = x0, eps, at, condition, n
            parts = self.training.accumulation, 0, self.process_group
            per_draw, gradients = accumulated(self._losses, inputs, self.parameters, *parts)
            norm = self.weights.take(gradients)
            self.weights.update(norm, self.step)
            per_step.append(per_draw)
            norms.append(norm)
            self._stepped()
        window.add(torch.stack(per_step)[:, None], torch.stack(norms), bins[:, None])

    def _losses(self, x0: Tensor, eps: Tensor, at: Any, condition: Any, n: Tensor) -> Tensor:
        settings = self.training.precision, condition, n, self.training.memory_format
        return losses(self.network, self.objective, x0, eps, at, *settings) / self.scale

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        buffers = {f"buffer.{name}": value for name, value in self.buffers.items()}
        return {**self.weights.state(), **buffers}, {"step": self.step, "seed": self.seed}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        shapes = {f"buffer.{name}": value.shape for name, value in self.buffers.items()}
        stored = {name: t.shape for name, t in tensors.items() if name.startswith("buffer.")}
        if facts.get("seed") != self.seed or shapes != stored or not self.weights.fits(tensors):
            raise InputError("this checkpoint belongs to another seed or network.")
        self.step = facts["step"]
        self.weights.restore(tensors)
        with torch.no_grad():
            for name, value in self.buffers.items():
                value.copy_(tensors[f"buffer.{name}"])

    def scale_of(self, trial: int) -> float:
        return self.scale

    def averaged(self, trial: int = 0) -> Denoiser:
        """The denoiser with the averaged weights put in place, and the objective's states likewise.

        Training cannot continue after it.
        """
        with torch.no_grad():
            self.weights.W.copy_(self.ema)
        return self.denoiser.eval()
