"""Checkpoints of other codebases as subjects: the raw network, and how it is stated to be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from testbed.audit import driver
from testbed.audit.adapters import Adapter
from testbed.audit.result import PARTS, Audit
from testbed.checkpoints.models import Checkpoint
from testbed.checkpoints.wrappings import FirstHalf
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.inputs import VP_STEPS
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.oracles import Oracle
from testbed.registry import Registry


@dataclass(frozen=True)
class TimeOf:
    """c_noise as an adapter's time argument, and what makes c_noise of it."""

    schedules: tuple[str, ...]
    argument: str
    c_noise: Callable[[Tensor], Tensor] = lambda t: t


TIMES = {
    "sigma": TimeOf(("ve", "vp", "flow"), "sigma"),
    "log_sigma": TimeOf(("ve", "vp", "flow"), "log_sigma"),
    "shared": TimeOf(("ve", "vp", "flow"), "log_sigma", lambda t: t / 4),
    "log_half_sigma": TimeOf(("ve", "vp", "flow"), "log_sigma", lambda t: t - math.log(2)),
    "time": TimeOf(("flow",), "time"),
    "cosine_time": TimeOf(("cosine",), "time"),
    "vp_time": TimeOf(("vp",), "time", lambda t: (VP_STEPS - 1) * t),
    "index": TimeOf(("ve", "vp", "flow"), "index"),
    "position": TimeOf(("ve", "vp", "flow"), "index"),
}
"""By the name of c_noise; with the schedules whose state can have it."""
STATES = {"unit": "ve", "vp": "vp", "flow": "flow"}
"""The schedule whose state c_in x is."""


class RawNetwork(nn.Module):
    """A network that takes an adapter's time argument."""

    def __init__(self, network: nn.Module, time: TimeOf) -> None:
        super().__init__()
        self.network, self.time = network, time

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Its output for the state x (B, ...) and the time argument t (B,)."""
        output: Tensor = self.network(x, self.time.c_noise(t))
        return output


class Whole(nn.Module):
    """D(x, sigma) alone: as a denoiser of another codebase, whose answers are all that is known."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        D: Tensor = self.denoiser(x, sigma)
        return D


def read(checkpoint: Checkpoint, shape: tuple[int, ...] | None) -> tuple[nn.Module, Adapter]:
    """A checkpoint's callable, and the adapter with the conventions that its files state.

    It is the raw network, so that its output can be read in other ways too. Where its F is none of
    the prediction types, or its input no state of a schedule, as in EDM, it is the denoiser.

    Args:
        checkpoint: the model.
        shape: of one sample; None where it takes any.

    Raises:
        InputError: as `Checkpoint.module`.
    """
    said = checkpoint.reading
    around, network = said.wrapping, checkpoint.module()
    name = around.parameterization
    output = name if around.output == "F" else around.output
    schedule = STATES.get(around.c_in, "")
    if around.c_noise == "cosine_time" and schedule == "vp":
        schedule = "cosine"
    c_noise = "index" if said.table is not None else around.c_noise
    time = TIMES.get(c_noise)
    raw = output.removeprefix("-") in PREDICTION_TYPES and time is not None
    if not raw or time is None or schedule not in time.schedules:
        D = around.around(network, said.sigma_data, said.table, said.learned_variance).eval()
        return Whole(D), Adapter(shape=shape, dtype=_dtype(network))
    table = None if said.table is None else said.table.sigmas
    if table is not None:
        table = table[table < TERMINAL]  # the audit has no state without any signal
    adapter = Adapter(output, schedule, time.argument, table, shape, _dtype(network))
    module = FirstHalf(network) if said.learned_variance else network
    return RawNetwork(module, time), adapter


def run(
    checkpoint: Checkpoint,
    *,
    name: str,
    shape: tuple[int, ...] | None = None,
    held_out: Tensor | None = None,
    oracle: Oracle | None = None,
    parts: Sequence[str] = PARTS,
    registry: Registry | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Audits a checkpoint as the trained network that its files state.

    Args:
        checkpoint: A folder of diffusers (`checkpoints.diffusers_folders.read`) or the model of a
            factory (`checkpoints.models.factory_model`).
        name: The name of the subject in the result.
        shape: The shape of one sample, where it takes one alone.
        held_out, oracle: The data that it is trained on, as for `audit.run`; without them only what
            every denoiser owes its caller is checked.
        parts, registry, say: As for `audit.run`.

    Raises:
        InputError: It cannot be loaded, or the data do not have its shape.
    """
    network, adapter = read(checkpoint, shape)
    known = oracle is not None or held_out is not None
    found = driver.run(
        network,
        name=name,
        parts=parts if known else [part for part in parts if part == "algebra"],
        adapter=adapter,
        oracle=oracle,
        held_out=held_out,
        trained=True,
        registry=registry,
        say=say,
    )
    notes = [f"it was read as {checkpoint.reading.source} has it: {adapter.words}."]
    if not known:
        notes.append("without data only what every denoiser owes its caller was checked.")
    return replace(found, notes=(*notes, *found.notes))


def _dtype(network: nn.Module) -> torch.dtype | None:
    found = (one.dtype for one in network.parameters() if one.is_floating_point())
    return next(found, None)
