"""Many trials of one architecture, trained as one batched computation.

The parameters of K trials lie in one buffer W (K, P), a row each; so do gradients, Adam's moments
and the averages. One step is one vectorised evaluation of `trainer.losses`, one gradient and one
fused update. The trials' losses are added, and row k of W enters the loss of trial k alone, so that
no trial can move another.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from testbed import settings
from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError, one_line
from testbed.training import flips
from testbed.training.accumulation import accumulated
from testbed.training.conditions import block_classes
from testbed.training.curve import Window
from testbed.training.objective import Objective, Terms
from testbed.training.settings import Training
from testbed.training.step_program import CompiledStep, Products, fusable
from testbed.training.trace import traced
from testbed.training.trainer import (
    BLOCK,
    Loop,
    SigmaFunctions,
    TrainingJob,
    draws,
    losses,
    noise_pair,
    sigma_functions,
)
from testbed.training.weights import Weights


class Batch(Loop):
    """Trains K trials as one; iterating over `windows()` yields their curve points.

    The trials share architecture, data set, batch size, number of steps and the function of the
    loss, and their objectives are functions of sigma alone. Seeds, parameterizations, weightings,
    densities, learning rates, averaging and clipping are each trial's own.

    Args:
        trials: the jobs, at least one.
        data: the data set of all of them.
        device: the device to train on.
        compiled: whether the step is compiled, which takes about twelve seconds at first, two or
            three from a cache, and pays for long runs only.

    A step is traced after `traced_from` steps: a network's or a loss's effects in Python stop then.
    Where a step cannot be compiled, `failure` says why, and its trace trains.

    Raises:
        InputError: trials that cannot be batched, with the reason.
    """

    def __init__(
        self,
        trials: Sequence[TrainingJob],
        data: Data,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        first = trials[0]
        reason = unbatchable(trials)
        if reason:
            raise InputError(f"these trials cannot be trained as one: {reason}.")
        super().__init__(len(trials), first.training, device)
        self.trials = list(trials)
        self.samples = data.train.to(device)
        self.conditions = list(first.conditions)
        self.classes = data.condition("train", self.conditions)
        self.shape = tuple(self.samples.shape[1:])
        self.groups = _equal_sigma_functions(self.trials)
        scales = [0.0] * len(trials)
        for rows in self.groups:
            scale = trials[rows[0]].objective.scale(data)
            for row in rows:
                scales[row] = scale
        self.scale = torch.tensor(scales, device=device)[:, None]
        self.seeds = sorted({one.seed for one in trials})
        self.seed_rows = [self.seeds.index(one.seed) for one in trials]
        self.seed_index = torch.tensor(self.seed_rows, device=device)
        networks = [_module(one).to(device) for one in self.trials]
        self.network = skeleton(networks[0])
        self.names = [name for name, _ in networks[0].named_parameters()]
        self.weights = Weights(
            [list(network.parameters()) for network in networks],
            [one.training for one in self.trials],
            scales,
        )
        self.leaves = [p.detach().requires_grad_() for p in self.weights.views(self.weights.W)]
        self.buffers, self.buffer_dims = _buffers(networks)
        self.results: dict[int, Tensor] = {}
        self.ended: dict[int, int] = {}
        self._compiled = compiled or first.training.compile
        self.traced_from = BLOCK
        self.failure: Exception | None = None
        self._evaluations = 0
        self._traced: Callable[..., tuple[Tensor, ...]] | None = None
        self._program: CompiledStep | None = None

    @property
    def ema(self) -> Tensor:
        """The averages, (K, P)."""
        return self.weights.ema

    def _step(self, leaves: list[Tensor], *inputs: Tensor) -> Any:
        """Losses (K, B), and the gradient of each parameter (K, ...), from those of `_losses`."""
        per_draw, gradients = accumulated(
            functools.partial(self._losses, leaves), inputs, leaves, self.training.accumulation, 1
        )
        return per_draw, *gradients

    def _losses(self, leaves: list[Tensor], x0: Tensor, eps: Tensor, *at: Tensor) -> Tensor:
        """Losses (K, B).

        `at` holds the parts of `SigmaFunctions`, then the classes of each condition, all of them
        (K, B), and last the noise in x for each seed, where it is not the target's.
        """
        split = 3 + len(Terms._fields)
        last = split + len(self.conditions)
        functions = SigmaFunctions(at[0], at[1], at[2], Terms(*at[3:split]))
        conditions = dict(zip(self.conditions, at[split:last], strict=True))
        n = [noise[self.seed_index] for noise in at[last:]]
        objective, network, names = self.trials[0].objective, self.network, self.names

        def one(
            weights: list[Tensor],
            buffers: Any,
            x0: Tensor,
            eps: Tensor,
            at: SigmaFunctions,
            condition: dict[str, Tensor],
            *n: Tensor,
        ) -> Tensor:
            state = {**dict(zip(names, weights, strict=True)), **buffers}

            def with_weights(*inputs: Any) -> Tensor:
                F: Tensor = functional_call(network, state, inputs)
                return F

            precision = self.training.precision
            in_x = n[0] if n else None
            return losses(with_weights, objective, x0, eps, at, precision, condition or None, in_x)

        x0, eps = x0[self.seed_index], eps[self.seed_index]
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels of attention
            dims = 0, self.buffer_dims, *[0] * (4 + len(n))
            per_draw = vmap(one, dims)(leaves, self.buffers, x0, eps, functions, conditions, *n)
        return per_draw / self.scale

    def _columns(self, u: Tensor) -> tuple[list[Tensor], Tensor]:
        """The functions of sigma at the uniforms and the bins of the draws, like u (K, n, B)."""
        bins = torch.empty(u.shape, dtype=torch.int64)
        columns = [torch.empty(u.shape) for _ in range(3 + len(Terms._fields))]
        for rows in self.groups:
            job = self.trials[rows[0]]
            sigma = job.objective.sigma(u[rows].flatten(0, 1))
            bins[rows] = self.bins(sigma, job.objective.density).view(u[rows].shape)
            own = sigma_functions(job.denoiser, job.objective, sigma)
            for column, part in zip(columns, (*own[:3], *(own.terms or ())), strict=True):
                column[rows] = part.view(u[rows].shape)
        for column in columns:
            column[list(self.results)] = 0.0
        return columns, bins + self.BINS * torch.arange(len(u))[:, None, None]

    def _inputs(self, last: int) -> tuple[list[tuple[Tensor, ...]], Tensor]:
        """What `_step` takes at each step up to `last` of the block, and the bins (n, K, B)."""
        block, offset = divmod(self.step, BLOCK)
        size = self.training.batch, len(self.samples), self.shape
        indices, us, noises = zip(*(draws(seed, block, *size) for seed in self.seeds), strict=True)
        noise = self.trials[0].objective.noise
        pairs = [
            noise_pair(noise, seed, block, eps)
            for seed, eps in zip(self.seeds, noises, strict=True)
        ]
        # The noise in x is sent apart only where it is not the target's.
        in_x = [] if noise.in_target else [[n for n, _ in pairs]]
        index, eps, *ns = (
            torch.stack(parts, dim=1).to(self.device)
            for parts in (list(indices), [eps for _, eps in pairs], *in_x)
        )
        chance = self.training.flips
        of_seeds = zip(self.seeds, indices, strict=True)
        flip = torch.stack([flips.drawn(seed, block, i, chance) for seed, i in of_seeds], dim=1)
        columns, bins = self._columns(torch.stack(us)[self.seed_rows])
        columns += self._classes(block, indices)
        # (BLOCK, K, B): a step takes a contiguous part.
        steps = slice(offset, min(BLOCK, offset + last - self.step))
        at = zip(
            index[steps],
            flip[steps],
            eps[steps],
            *(column.transpose(0, 1)[steps].contiguous().to(self.device) for column in columns),
            *(n[steps] for n in ns),
            strict=True,
        )
        of_steps = [
            (flips.flipped(self.samples[rows], flip), *arguments) for rows, flip, *arguments in at
        ]
        return of_steps, bins.transpose(0, 1)[steps].to(self.device)

    def _block(self, window: Window, last: int) -> None:
        self._steps(window, *self._inputs(last))

    def _steps(self, window: Window, steps: list[tuple[Tensor, ...]], bins: Tensor) -> None:
        """Does the steps with these inputs."""
        per_step, norms = [], []
        for arguments in steps:
            per_draw, norm = self._advance(arguments)
            per_step.append(per_draw)
            norms.append(norm)
            self._stepped()
        window.add(torch.stack(per_step), torch.stack(norms), bins)

    def _classes(self, block: int, indices: Sequence[Tensor]) -> list[Tensor]:
        """The classes of each condition, (K, BLOCK, B), dropped at each trial's own rate."""
        classes = [
            block_classes(self.classes, job.conditions, job.seed, block, indices[i])
            for job, i in zip(self.trials, self.seed_rows, strict=True)
        ]
        return [torch.stack([one[name] for one in classes]) for name in self.conditions]

    def _advance(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Does a step; its losses (K, B), and the norms of the gradients (K,)."""
        if self._compiled and fusable(self.weights) and self._program is None:
            try:
                self._program = CompiledStep(self._step, self.weights, arguments)
            except Exception as problem:  # the trace trains as well, if more slowly
                self._compiled, self.failure = False, problem
                why = f"torch.compile failed ({one_line(problem)}): the trials train uncompiled."
                warnings.warn(why, stacklevel=2)
        if self._program is not None:
            per_draw, norms = self._program(self.step, arguments)
            self.weights.average(self.step)
            return per_draw, norms
        per_draw, *gradients = self._evaluate(arguments)
        norms = self.weights.take(gradients)
        self.weights.update(norms, self.step)
        return per_draw, norms

    def _evaluate(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Losses and gradients of a step, by `_step` at first and by its trace later.

        The trace has the same operations without autograd and torch.func. Tracing takes a second,
        so that short runs do without it.
        """
        self._evaluations += 1
        if not self._compiled and self._evaluations <= self.traced_from:
            values: tuple[Tensor, ...] = self._step(self.leaves, *arguments)
            return values
        leaves = [leaf.detach() for leaf in self.leaves]
        if self._traced is None:
            step = traced(self._step, self.leaves, *arguments)
            # CUDA graphs on a GPU, where launching its kernels bounds the time of a step.
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._traced = torch.compile(step, mode=mode) if self._compiled else step
        with torch.no_grad():
            if not self._compiled:
                return self._traced(*leaves, *arguments)
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            per_draw, *rest = self._traced(*leaves, *arguments)
            # A graph overwrites its results at the next step; the gradients are used before it.
            return per_draw.clone(), *rest

    def product_seconds(self) -> float:
        """Of a step's products of matrices on a CPU; NaN before the step is traced."""
        if not isinstance(self._traced, fx.GraphModule) or self.device.type != "cpu":
            return math.nan
        ran = []
        (arguments, *_), _ = self._inputs(self.step + BLOCK)
        with torch.no_grad():
            for _ in range(3):
                ran.append(Products(self._traced))
                ran[-1].run(*[leaf.detach() for leaf in self.leaves], *arguments)
        return min(one.seconds for one in ran)

    def _end(self, trial: int, average: Tensor) -> None:
        """Keeps the average as the result and sets the trial's row to zero from here on."""
        self.results[trial] = average.clone()
        self.ended[trial] = self.step
        self.weights.clear(trial)

    def scale_of(self, trial: int) -> float:
        return float(self.scale[trial])

    def averaged(self, trial: int = 0) -> Denoiser:
        row = self.results.get(trial, self.ema[trial])
        denoiser = self.trials[trial].denoiser
        with torch.no_grad():
            for p, part in zip(denoiser.parameters(), self.weights.views(row), strict=True):
                p.copy_(part)
        return denoiser.eval()

    def steps(self, trial: int) -> int:
        return self.ended.get(trial, self.step)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        results = {f"result{i}": row for i, row in self.results.items()}
        facts = {
            "step": self.step,
            "seeds": [one.seed for one in self.trials],
            "diverged": self.diverged,
            "ended": [self.ended.get(i) for i in range(len(self.trials))],
        }
        return {**self.weights.state(), **results}, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        seeds = [one.seed for one in self.trials]
        if facts.get("seeds") != seeds or not self.weights.fits(tensors):
            raise InputError("this checkpoint belongs to other trials.")
        self.step, self.diverged = facts["step"], list(facts["diverged"])
        self.ended = {i: step for i, step in enumerate(facts["ended"]) if step is not None}
        self.results = {i: tensors[f"result{i}"].to(self.device) for i in self.ended}
        self.weights.restore(tensors)


def _module(job: TrainingJob) -> nn.Module:
    assert isinstance(job.denoiser.network, nn.Module)
    return job.denoiser.network


def skeleton(network: nn.Module) -> nn.Module:
    """A copy without values, to be called with weights by torch.func.functional_call under vmap.

    Its group norms make their input contiguous: vmap has no rule for channels side by side.
    """

    def contiguous(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.contiguous() for x in inputs)

    found = copy.deepcopy(network).to("meta")
    for part in found.modules():
        if isinstance(part, nn.GroupNorm):
            part.register_forward_pre_hook(contiguous)
    return found


def _buffers(
    networks: Sequence[nn.Module],
) -> tuple[dict[str, Tensor], dict[str, int | None]]:
    """The networks' buffers by name, and the dimension along which they are stacked.

    It is None for one that is equal in all of them, such as a table of values: it is held once.
    """
    every = [dict(network.named_buffers()) for network in networks]
    buffers: dict[str, Tensor] = {}
    dims: dict[str, int | None] = {}
    for name, first in every[0].items():
        # A tensor on the meta device has no numbers to be compared.
        alike = not first.is_meta and all(torch.equal(one[name], first) for one in every)
        buffers[name] = first if alike else torch.stack([one[name] for one in every])
        dims[name] = None if alike else 0
    return buffers, dims


def _equal_sigma_functions(trials: Sequence[TrainingJob]) -> list[list[int]]:
    """The indices of trials in groups with the same functions of sigma, whatever their seed."""
    groups: list[list[int]] = []
    for i, job in enumerate(trials):
        for rows in groups:
            other = trials[rows[0]]
            if job.objective == other.objective and job.denoiser.scales_as(other.denoiser):
                rows.append(i)
                break
        else:
            groups.append([i])
    return groups


def alone(objective: Objective, training: Training) -> str:
    """Why a trial with this objective and these settings cannot train in a batch; "" if it can."""
    if training.checkpointing:
        return "activations are computed again, which torch.func.vmap cannot do"
    if training.memory_format != "contiguous":
        return f"memory_format is {training.memory_format}, which torch.func.vmap does not know"
    if not objective.fixed or objective.loss.state is not None:
        return "an objective depends on more than sigma"
    return "a variance is learned" if objective.vlb is not None else ""


def in_common(
    objective: Objective, training: Training, conditions: Mapping[str, float]
) -> dict[str, Any]:
    """What trials of a batch have in common besides data and architecture.

    Each value stands under the sentence that says that it differs.
    """
    return {
        "their losses are different functions": objective.loss.quadratic or objective.loss,
        "their noises differ": objective.noise,
        "their steps, batches, points or precision differ": [
            getattr(training, name) for name in settings.names(Training, batch=True)
        ],
        "their conditions differ": set(conditions),
    }


def unbatchable(trials: Sequence[TrainingJob]) -> str:
    """Why these trials cannot be trained as one; "" where they can."""
    first, *_ = trials
    shared = in_common(first.objective, first.training, first.conditions)
    for one in trials:
        if reason := alone(one.objective, one.training):
            return reason
        for reason, value in in_common(one.objective, one.training, one.conditions).items():
            if value != shared[reason]:
                return reason
        if not isinstance(one.denoiser.network, nn.Module):
            return "a network is no module"
        mine, theirs = (
            {name: (p.shape, p.dtype) for name, p in module.state_dict().items()}
            for module in (one.denoiser.network, _module(first))
        )
        if type(one.denoiser.network) is not type(first.denoiser.network) or mine != theirs:
            return "their networks differ"
        if {p.dtype for p in one.denoiser.parameters()} != {torch.float32}:
            return "a network has weights that are not float32"
    return ""
