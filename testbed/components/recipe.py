"""Recipes: the choices with which a paper trained, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from testbed.components.base import Component
from testbed.errors import InputError

Named = str | Mapping[str, Any]
"""A component as a study file names it: `"edm"`, or `{"name": "min_snr", "gamma": 5}`."""


@dataclass(frozen=True)
class Recipe(Component):
    """The choices with which a paper trained: a study takes from it what it leaves out itself.

    A component is a name or a table `{"name": ..., option: ...}`. A level, or a number among the
    options, may be a multiple of the data's sigma_data, `"0.04 * sigma_data"`.

    Args:
        name: identifier, unique among recipes; one that is written into a parameterization
            (`Parameterization(recipe=Recipe(density=...))`) needs none.
        density: the distribution of the noise levels of training; "table" for those of `table`.
        weighting: lambda(sigma); None for a loss that is unweighted in its own space.
        loss: the discrepancy, and the space in which it is taken.
        table: the levels of a discrete denoiser; None for a continuous one.
        sigma_min, sigma_max: the lowest and the highest noise level; None for those of the table,
            or else 0.002 and 80.
        c_in, c_noise: the inputs of the network, by the names of the study keys.
        output: the prediction type that the network returns, as the study key.
        parameterization: the one that the paper trained; "" for that which names the recipe.
        equations: where in `reference` each choice stands, for example
            `{"weighting": "eq. 14"}`; the keys are fields of the recipe, or "prediction".
        deviations: a sentence for each way in which the trial is not what the paper trained.

    Raises:
        InputError: the name is no identifier, or `equations` names what no recipe has.
    """

    axis: ClassVar[str] = "recipe"
    name: str = "own"
    _: KW_ONLY
    density: Named
    weighting: Named | None = None
    loss: Named = "l2"
    table: Named | None = None
    sigma_min: float | str | None = None
    sigma_max: float | str | None = None
    c_in: str = "native"
    c_noise: str = "native"
    output: str = "F"
    parameterization: str = ""
    equations: Mapping[str, str] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "deviations", tuple(self.deviations))
        if strange := [key for key in self.equations if key not in STATED]:
            raise InputError(
                f"{self.label}: equations has {strange[0]!r}, and its keys are {', '.join(STATED)}."
            )


CHOICES = ("weighting", "loss", "density", "table", "c_in", "c_noise", "output")
"""The fields that are settings of a study, the two levels apart."""
LEVELS = ("sigma_min", "sigma_max")
STATED = ("prediction", *CHOICES, "levels")
"""What the page of recipes says of each, and where in its paper it stands."""
