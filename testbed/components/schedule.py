"""Schedules: the noise levels at which a sampler stops on its way to 0, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from testbed.components.base import Component
from testbed.components.signature import Signature
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.diffusion.noise_tables import NoiseTable


@dataclass(frozen=True)
class Schedule(Component):
    """`levels([steps, sigma_min, sigma_max, table, options])`: (steps + 1,), descending to 0.

    `table` is the ascending levels of a discrete denoiser.
    """

    axis: ClassVar[str] = "schedule"
    levels: Callable[..., Tensor]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Signature]:
        quantities = ("steps", "sigma_min", "sigma_max", "table")
        return [Signature(self.label, self.levels, quantities, role="levels")]

    @property
    def takes_table(self) -> bool:
        """Whether it takes its levels from the trial's table."""
        return "table" in self.formulas()[0].wanted

    def __call__(
        self, steps: int, sigma_min: float, sigma_max: float, table: NoiseTable | None = None
    ) -> Tensor:
        """The levels of `steps` steps within [sigma_min, sigma_max], and 0; (steps + 1,) float64.

        Raises:
            InputError: an option that has no meaning, more steps than there are levels, or no
                table where it takes them from one.
            ComponentError: `levels` raises, or returns another number of levels.
        """
        (levels,) = self.formulas()
        if table is None and self.takes_table:
            raise InputError(f"{self.label}: takes its levels from the trial's table: name one.")
        found = levels(
            options=self.options,
            steps=steps,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            table=None if table is None else table.sigmas,
        )
        if not isinstance(found, Tensor) or found.shape != (steps + 1,):
            raise levels.wrong(f"a tensor of {steps + 1} levels for {steps} steps", found)
        return found
