"""Denoisers of other codebases as (x, sigma) -> x0: what they return, see, and call the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.components.guidance import Denoise
from testbed.diffusion.noise_levels import COSINE, FLOW, VE, VP, NoiseSchedule
from testbed.diffusion.predictions import PREDICTION_TYPES, convert
from testbed.errors import InputError, UnknownName, unknown
from testbed.tensors import per_sample

COORDINATES = {schedule.name: schedule for schedule in (VE, VP, COSINE, FLOW)}
NOISES = ("sigma", "log_sigma", "time", "1-time", "index")


@dataclass(frozen=True)
class Adapter:
    """How a foreign callable `function(state, noise)` is to be read.

    Args:
        returns: the kind of its output, "x0", "eps", "score", "v" or "flow", with a minus in front
            for the other sign ("-flow": t = 1 at the data). A score is of the state's own density:
            in VP coordinates grad log p(x_t), 1/alpha times ours.
        coordinates: of the state, x_t = alpha x0 + s eps: "ve", "vp" (linear beta), "cosine" (VP
            with t = 2/pi arctan sigma), "flow", or a Schedule.
        noise: what its second argument is, (B,): "sigma", "log_sigma", the schedule's "time",
            "1-time" where time runs from noise to data, or the "index" into `table`.
        table: (n,) float64 ascending noise levels for "index".

    Raises:
        UnknownName: an unknown word, with the nearest.
        InputError: an index without a table.
    """

    returns: str = "x0"
    coordinates: str | NoiseSchedule = "ve"
    noise: str = "sigma"
    table: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in PREDICTION_TYPES:
            raise UnknownName(unknown("kind of output", self.kind, PREDICTION_TYPES))
        if isinstance(self.coordinates, str) and self.coordinates not in COORDINATES:
            raise UnknownName(unknown("coordinates", self.coordinates, COORDINATES))
        if self.noise not in NOISES:
            raise UnknownName(unknown("noise argument", self.noise, NOISES))
        if (self.noise == "index") != (self.table is not None):
            raise InputError(
                "noise='index' needs table=, the noise level of each index, only then."
            )

    @property
    def kind(self) -> str:
        """The kind without its sign."""
        return self.returns.removeprefix("-")

    @property
    def sign(self) -> int:
        """-1 where the output is of the other sign."""
        return -1 if self.returns.startswith("-") else 1

    @property
    def schedule(self) -> NoiseSchedule:
        """The form of the state."""
        given = self.coordinates
        return given if isinstance(given, NoiseSchedule) else COORDINATES[given]

    @property
    def reaches(self) -> tuple[float, float]:
        """The noise levels that the callable can be asked about."""
        if self.table is not None:
            return float(self.table.min()), float(self.table.max())
        if self.schedule.name == "vp":
            return 0.0, float(self.schedule.sigma(torch.ones((), dtype=torch.float64)))
        return 0.0, float("inf")

    def inside(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(state, noise argument) for x (B, ...) and sigma (B,), in x's dtype or float32."""
        if self.schedule is VE:
            state, t = x, sigma
        else:
            state, t = self.schedule.from_ve(x, sigma)
        if self.table is not None:
            table = self.table.to(sigma.device)
            return state, (sigma[:, None].double() - table).abs().argmin(1)
        noise = {
            "sigma": lambda: sigma,
            "log_sigma": lambda: torch.log(sigma),
            "time": lambda: t,
            "1-time": lambda: 1 - t,
        }[self.noise]()
        return state, noise

    def raw(self, function: Callable[..., Tensor]) -> Denoise:
        """(x, sigma) -> what the callable itself returns."""
        return lambda x, sigma: function(*self.inside(x, sigma))

    def __call__(self, function: Callable[..., Tensor]) -> Denoise:
        """(x, sigma) -> x0."""
        raw = self.raw(function)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            q = raw(x, sigma)
            if not isinstance(q, Tensor) or q.shape != x.shape:
                given = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
                raise InputError(f"the denoiser returned {given}, expected x's {tuple(x.shape)}.")
            q = self.sign * q
            if self.kind == "score":
                t = self.schedule.time(sigma)
                q = q * per_sample(self.schedule.alpha(t), q).to(q.dtype)
            return q if self.kind == "x0" else convert(q, self.kind, "x0", x=x, sigma=sigma)

        return denoise
