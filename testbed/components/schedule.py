"""Schedules: the noise levels at which a sampler stops on its way to 0, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from testbed.components.base import Component, Takes
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.diffusion.noise_tables import NoiseTable


@dataclass(frozen=True)
class Schedule(Component):
    """The noise levels of a sampler's run: `levels([steps, sigma_min, sigma_max, table, options])`.

    The function returns (steps + 1,) float64, descending to 0. `table` is (n,) float64, the
    ascending levels of a discrete denoiser.
    """

    axis = "schedule"
    functions: ClassVar = {
        "levels": Takes(("steps", "sigma_min", "sigma_max", "table"), role="levels")
    }
    levels: Callable[..., Tensor]

    @property
    def takes_table(self) -> bool:
        """Whether it takes its levels from the trial's table."""
        return "table" in self.signature("levels").inputs

    def __call__(
        self, steps: int, sigma_min: float, sigma_max: float, table: NoiseTable | None = None
    ) -> Tensor:
        """The levels of `steps` steps within [sigma_min, sigma_max], and 0; (steps + 1,) float64.

        Raises:
            InputError: an option that has no meaning, more steps than there are levels, or no
                table where the schedule takes its levels from one.
            ComponentError: `levels` raises, or returns another number of levels.
        """
        signature = self.signature("levels")
        if table is None and self.takes_table:
            raise InputError(f"{self.label}: takes its levels from the trial's table: name one.")
        levels = signature(
            options=self.options,
            steps=steps,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            table=None if table is None else table.sigmas,
        )
        if not isinstance(levels, Tensor) or levels.shape != (steps + 1,):
            raise signature.wrong(f"a tensor of {steps + 1} levels for {steps} steps", levels)
        return levels
