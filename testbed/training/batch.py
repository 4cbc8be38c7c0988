"""Many trials of one architecture, trained as one batched computation.

The parameters of K trials lie in one buffer W (K, P), a row each; so do gradients, Adam's moments
and the averages. One step is one vectorised evaluation of the loss of `engine.losses`, one gradient
and one fused update. The trials' losses are added, and row k of W is in trial k's alone: no trial
can move another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from testbed import settings
from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError
from testbed.training.conditions import of_block
from testbed.training.objective import Objective, Terms
from testbed.training.settings import Training
from testbed.training.trainer import (
    BLOCK,
    Levels,
    Loop,
    TrainingJob,
    Window,
    draws,
    levels_of,
    losses,
    noised,
)
from testbed.training.weights import Weights


class Batch(Loop):
    """Trains K trials as one; iterating over `windows()` yields their rows.

    The trials share architecture, data set, batch size, number of steps and the function of the
    loss, and their objectives are functions of sigma alone. Seeds, parameterizations, weightings,
    densities, learning rates, averaging and clipping are each trial's own.

    Args:
        trials: at least one.
        data: of all of them.
        device: where to train.
        compiled: fuse the step by torch.compile; worth its half minute for long runs only.

    A step is traced after a while: what a network or a loss does in Python happens until then.

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
        self.alike = _alike(self.trials)
        scale = {rows[0]: trials[rows[0]].objective.scale(data) for rows in self.alike}
        each = {i: scale[rows[0]] for rows in self.alike for i in rows}
        self.scale = torch.tensor([each[i] for i in range(len(trials))], device=device)[:, None]
        self.seeds = sorted({one.seed for one in trials})
        self.of_seed = torch.tensor([self.seeds.index(one.seed) for one in trials], device=device)
        networks = [_module(one).to(device) for one in self.trials]
        # Its weights are replaced by rows of W at every call.
        self.network = copy.deepcopy(networks[0]).to("meta")
        self.names = [name for name, _ in networks[0].named_parameters()]
        self.weights = Weights(
            [list(network.parameters()) for network in networks],
            [one.training for one in self.trials],
        )
        self.leaves = [p.detach().requires_grad_() for p in self.weights.views(self.weights.W)]
        kept = [dict(network.named_buffers()) for network in networks]
        self.buffers = {name: torch.stack([one[name] for one in kept]) for name in kept[0]}
        self.results: dict[int, Tensor] = {}
        self.ended: dict[int, int] = {}
        self._compiled = compiled
        self._evaluations = 0
        self._traced: Callable[..., tuple[Tensor, ...]] | None = None

    @property
    def ema(self) -> Tensor:
        """The averages, (K, P)."""
        return self.weights.ema

    def _step(self, leaves: list[Tensor], x0: Tensor, eps: Tensor, *at: Tensor) -> Any:
        """Losses (K, B), and the gradient of each parameter (K, ...).

        `at` holds the parts of `Levels`, then the classes of each condition, (K, B) all of them,
        and last the noise in x where the target has another, for each seed.
        """
        split = 3 + len(Terms._fields)
        last = split + len(self.conditions)
        levels = Levels(at[0], at[1], at[2], Terms(*at[3:split]))
        given = dict(zip(self.conditions, at[split:last], strict=True))
        n = [one[self.of_seed] for one in at[last:]]
        objective, network, names = self.trials[0].objective, self.network, self.names

        def one(
            weights: list[Tensor],
            buffers: Any,
            x0: Tensor,
            eps: Tensor,
            at: Levels,
            given: dict[str, Tensor],
            *n: Tensor,
        ) -> Tensor:
            state = {**dict(zip(names, weights, strict=True)), **buffers}

            def called(*inputs: Any) -> Tensor:
                found: Tensor = functional_call(network, state, inputs)
                return found

            return losses(
                called, objective, x0, eps, at, self.training.precision, given or None, *n
            )

        draws = x0[self.of_seed], eps[self.of_seed]
        per_draw = vmap(one)(leaves, self.buffers, *draws, levels, given, *n)
        per_draw = per_draw / self.scale
        found = torch.autograd.grad(
            per_draw.mean(1).sum(), leaves, allow_unused=True, materialize_grads=True
        )
        return per_draw.detach(), *found

    def _block(self, window: Window, last: int) -> None:
        """The steps from the current one to the end of its block, or to `last`."""
        block, offset = divmod(self.step, BLOCK)
        size = self.training.batch, len(self.samples), self.shape
        drawn = [draws(seed, block, *size) for seed in self.seeds]
        u = torch.stack([one.u for one in drawn])[self.of_seed.cpu()]
        noise = self.trials[0].objective.noise
        pairs = [
            noised(noise, seed, block, one.eps) for seed, one in zip(self.seeds, drawn, strict=True)
        ]
        # In x there is the target's noise, but where it is not taught.
        in_x = [] if noise.in_target else [[n for n, _ in pairs]]
        index, eps, *ns = (
            torch.stack(parts).to(self.device)
            for parts in ([one.indices for one in drawn], [eps for _, eps in pairs], *in_x)
        )
        bins = torch.empty(u.shape, dtype=torch.int64)
        columns = [torch.empty(u.shape) for _ in range(3 + len(Terms._fields))]
        for rows in self.alike:
            one = self.trials[rows[0]]
            sigma = one.objective.sigma(u[rows].flatten(0, 1))
            bins[rows] = self.bins(sigma, one.objective.density).view(u[rows].shape)
            own = levels_of(one.denoiser, one.objective, sigma)
            for column, part in zip(columns, (*own[:3], *(own.terms or ())), strict=True):
                column[rows] = part.view(u[rows].shape)
        bins += self.BINS * torch.arange(len(u))[:, None, None]
        for column in columns:
            column[list(self.results)] = 0.0
        columns += self._given(block, [one.indices for one in drawn])
        # (BLOCK, K, B): a step takes a contiguous part.
        steps = slice(offset, min(BLOCK, offset + last - self.step))
        at = zip(
            index.transpose(0, 1)[steps].unbind(),
            eps.transpose(0, 1)[steps].unbind(),
            *(column.transpose(0, 1)[steps].contiguous().to(self.device) for column in columns),
            *(n.transpose(0, 1)[steps] for n in ns),
            strict=True,
        )
        found, norms = [], []
        for rows, *arguments in at:
            per_draw, *gradients = self._evaluated((self.samples[rows], *arguments))
            norm = self.weights.take(gradients)
            self.weights.update(norm, self.step)
            found.append(per_draw)
            norms.append(norm)
            self.step += 1
        place = bins.transpose(0, 1)[steps].to(self.device)
        window.add(torch.stack(found), torch.stack(norms), place)

    def _given(self, block: int, indices: list[Tensor]) -> list[Tensor]:
        """The classes of each condition, (K, BLOCK, B), dropped at each trial's own rate."""
        found = [
            of_block(self.classes, one.conditions, one.seed, block, indices[i])
            for one, i in zip(self.trials, self.of_seed.tolist(), strict=True)
        ]
        return [torch.stack([one[name] for one in found]) for name in self.conditions]

    def _evaluated(self, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The step itself, then its trace: the same operations without autograd and torch.func.

        To trace takes a second, which the first steps do not wait for.
        """
        self._evaluations += 1
        if not self._compiled and self._evaluations <= BLOCK:
            found: tuple[Tensor, ...] = self._step(self.leaves, *arguments)
            return found
        leaves = [leaf.detach() for leaf in self.leaves]
        if self._traced is None:
            traced = make_fx(self._step)(self.leaves, *arguments)
            # With CUDA graphs on a GPU: a step there is bound by launching its kernels.
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self._traced = torch.compile(traced, mode=mode) if self._compiled else traced
        with torch.no_grad():
            if not self._compiled:
                return self._traced(leaves, *arguments)
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            per_draw, *rest = self._traced(leaves, *arguments)
            # A graph writes its results to the same place at every step; the rest is used at once.
            return per_draw.clone(), *rest

    def _end(self, trial: int, kept: Tensor) -> None:
        """Sets a diverged trial's row to zero for good: it keeps its place and no effect."""
        self.results[trial] = kept.clone()
        self.ended[trial] = self.step
        self.weights.clear(trial)

    def scale_of(self, trial: int) -> float:
        """The loss at F = 0 by which a trial's is divided."""
        return float(self.scale[trial])

    def averaged(self, trial: int = 0) -> Denoiser:
        """The denoiser of a trial with its averaged weights put in place."""
        row = self.results.get(trial, self.ema[trial])
        denoiser = self.trials[trial].denoiser
        with torch.no_grad():
            for p, part in zip(denoiser.parameters(), self.weights.views(row), strict=True):
                p.copy_(part)
        return denoiser.eval()

    def steps(self, trial: int) -> int:
        """How many steps a trial has done."""
        return self.ended.get(trial, self.step)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and facts from which `restore` continues bit for bit (on CPU)."""
        results = {f"result{i}": row for i, row in self.results.items()}
        facts = {
            "step": self.step,
            "seeds": [one.seed for one in self.trials],
            "diverged": self.diverged,
            "ended": [self.ended.get(i) for i in range(len(self.trials))],
        }
        return {**self.weights.state(), **results}, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continues from a `state()`.

        Raises:
            InputError: the state is of other trials.
        """
        seeds = [one.seed for one in self.trials]
        if facts.get("seeds") != seeds or not self.weights.fits(tensors):
            raise InputError("this checkpoint belongs to other trials.")
        self.step, self.diverged = facts["step"], list(facts["diverged"])
        self.ended = {i: step for i, step in enumerate(facts["ended"]) if step is not None}
        self.results = {i: tensors[f"result{i}"].to(self.device) for i in self.ended}
        self.weights.restore(tensors)


def _module(one: TrainingJob) -> nn.Module:
    assert isinstance(one.denoiser.network, nn.Module)
    return one.denoiser.network


def _alike(trials: Sequence[TrainingJob]) -> list[list[int]]:
    """The trials whose functions of sigma are the same, whatever their seed."""
    found: list[list[int]] = []
    for i, one in enumerate(trials):
        for rows in found:
            other = trials[rows[0]]
            if one.objective == other.objective and one.denoiser.scales_as(other.denoiser):
                rows.append(i)
                break
        else:
            found.append([i])
    return found


def alone(objective: Objective) -> str:
    """Why a trial with this objective cannot train in a batch; "" where it can."""
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
        if reason := alone(one.objective):
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
