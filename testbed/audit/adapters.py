"""Denoisers of other codebases as (x, sigma) -> x0: prediction type, schedule, time argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from testbed.components.guidance import Denoise
from testbed.diffusion.noise_levels import COSINE, FLOW, VE, VP, NoiseSchedule
from testbed.diffusion.predictions import PREDICTION_TYPES, convert
from testbed.errors import InputError, UnknownName, unknown
from testbed.tensors import per_sample

SCHEDULES = {schedule.name: schedule for schedule in (VE, VP, COSINE, FLOW)}
MOST_NUMBERS, MOST_TRAINED = 256, 16384
"""Numbers that a sample of one shape may have: of an exact denoiser, and of a trained one."""
TIME_ARGUMENTS = ("sigma", "log_sigma", "time", "1-time", "index")


@dataclass(frozen=True)
class Adapter:
    """How a foreign callable `function(state, time)` is to be read.

    Args:
        prediction_type: what it returns, "x0", "eps", "score", "v" or "flow", with a minus in
            front for the other sign ("-flow": t = 1 at the data). A score is of the state's own
            density: under the VP schedule grad log p(x_t), 1/alpha times ours.
        schedule: alpha and s of the state that it takes, x_t = alpha x0 + s eps: "ve", "vp"
            (linear beta), "cosine" (VP with t = 2/pi arctan sigma), "flow", or a NoiseSchedule.
        time_argument: what its second argument is, (B,): "sigma", "log_sigma", the schedule's
            "time", "1-time" where time runs from noise to data, or the "index" into `table`.
        table: (n,) float64 ascending noise levels for "index".
        shape: the shape of a sample that it takes, where it takes one alone; states are brought to
            it, and its output back.
        dtype: the dtype of a state that it takes, where it takes one alone. Its time argument is
            of that dtype too, but never narrower than float32.

    Raises:
        UnknownName: an unknown word, with the nearest.
        InputError: an index without a table, or a shape of other numbers than positive ones.
    """

    prediction_type: str = "x0"
    schedule: str | NoiseSchedule = "ve"
    time_argument: str = "sigma"
    table: Tensor | None = field(default=None, repr=False)
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        unsigned = self.unsigned_prediction_type
        if unsigned not in PREDICTION_TYPES:
            raise UnknownName(unknown("prediction type", unsigned, PREDICTION_TYPES))
        if isinstance(self.schedule, str) and self.schedule not in SCHEDULES:
            raise UnknownName(unknown("schedule", self.schedule, SCHEDULES))
        if self.time_argument not in TIME_ARGUMENTS:
            raise UnknownName(unknown("time argument", self.time_argument, TIME_ARGUMENTS))
        if (self.time_argument == "index") != (self.table is not None):
            raise InputError(
                "time_argument='index' needs table=, the noise level of each index, only then."
            )
        if self.shape is not None and not (self.shape and min(self.shape) > 0):
            raise InputError(f"shape = {self.shape}: expected positive sizes, such as (3, 8, 8).")
        if self.shape is not None and math.prod(self.shape) > MOST_TRAINED:
            raise InputError(f"shape = {self.shape}: at most {MOST_TRAINED} numbers a sample.")

    @property
    def unsigned_prediction_type(self) -> str:
        """The prediction type without its sign."""
        return self.prediction_type.removeprefix("-")

    @property
    def sign(self) -> int:
        """-1 where the output is of the other sign."""
        return -1 if self.prediction_type.startswith("-") else 1

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The schedule itself, where `schedule` may be its name."""
        return SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule

    @property
    def words(self) -> str:
        """Prediction type, schedule and time argument as the options of `testbed audit`."""
        return (
            f"--prediction-type {self.prediction_type} --schedule {self.noise_schedule.name} "
            f"--time-argument {self.time_argument}"
        )

    @property
    def dim(self) -> int | None:
        """The number of dimensions of a sample, where `shape` says so."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def reaches(self) -> tuple[float, float]:
        """The noise levels that the callable can be asked about."""
        if self.table is not None:
            return float(self.table.min()), float(self.table.max())
        if self.noise_schedule.name == "vp":
            return 0.0, float(self.noise_schedule.sigma(torch.ones((), dtype=torch.float64)))
        return 0.0, float("inf")

    def inside(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(state, time argument) for x (B, ...) and sigma (B,), in x's dtype or float32."""
        if self.noise_schedule is VE:
            state, t = x, sigma
        else:
            state, t = self.noise_schedule.from_ve(x, sigma)
        if self.shape is not None:
            state = state.reshape(-1, *self.shape)
        dtype = self.dtype or state.dtype
        state = state.to(dtype)
        if self.table is not None:
            table = self.table.to(sigma.device)
            return state, (sigma[:, None].double() - table).abs().argmin(1)
        noise = {
            "sigma": lambda: sigma,
            "log_sigma": lambda: torch.log(sigma),
            "time": lambda: t,
            "1-time": lambda: 1 - t,
        }[self.time_argument]()
        return state, noise.to(torch.promote_types(dtype, torch.float32))

    def raw(self, function: Callable[..., Any]) -> Denoise:
        """(x, sigma) -> what the callable itself returns, shaped like x.

        Of an object with a tensor `sample` (the outputs of diffusers' models), it is that tensor.
        """

        def answer(x: Tensor, sigma: Tensor) -> Tensor:
            state, time = self.inside(x, sigma)
            output = function(state, time)
            if not isinstance(output, Tensor):
                output = getattr(output, "sample", output)
            if not isinstance(output, Tensor) or output.shape != state.shape:
                found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise InputError(
                    f"the denoiser returned {found}, expected x's {tuple(state.shape)}."
                )
            return output.reshape(x.shape)

        return answer

    def read(self, q: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 by what the callable returned for x (B, ...) and sigma (B,), shaped like x."""
        unsigned, q = self.unsigned_prediction_type, self.sign * q
        if unsigned == "score":
            t = self.noise_schedule.time(sigma)
            q = q * per_sample(self.noise_schedule.alpha(t), q).to(q.dtype)
        return q if unsigned == "x0" else convert(q, unsigned, "x0", x=x, sigma=sigma)

    def __call__(self, function: Callable[..., Any]) -> Denoise:
        """(x, sigma) -> x0."""
        raw = self.raw(function)
        return lambda x, sigma: self.read(raw(x, sigma), x, sigma)
