"""Recipes: the choices with which a paper trained, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from testbed.components.base import Component
from testbed.errors import InputError, unknown

Named = str | Mapping[str, Any]
"""A component as a study file names it: `"edm"`, or `{"name": "min_snr", "gamma": 5}`."""


Medium = Literal["paper", "code", "cited", "here"]
"""What a choice was read in: the paper itself, its authors' code, another publication that cites
it, or nothing, for a choice that is this recipe's own and not the paper's."""


@dataclass(frozen=True)
class Source:
    """What a choice of a recipe was read in.

    Args:
        medium: "paper", "code", "cited" or "here".
        where: for code its repository and file, for "cited" the publication; a paper's section
            stands in the recipe's `equations`.

    Raises:
        InputError: the medium is unknown, or code or another publication is not named.
    """

    medium: Medium
    where: str = ""

    def __post_init__(self) -> None:
        if self.medium not in get_args(Medium):
            raise InputError(unknown("medium of a source", self.medium, get_args(Medium)))
        if self.medium in ("code", "cited") and not self.where.strip():
            raise InputError(f"A source in {self.medium!r} says in `where` which one it is.")

    def __str__(self) -> str:
        return f"{self.medium}: {self.where}" if self.where else self.medium


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
            `{"weighting": "eq. 14"}`; the keys are fields of the recipe, "prediction" or "levels".
        sources: what each choice was read in, by the same keys.
        deviations: a sentence for each way in which the trial is not what the paper trained.

    Raises:
        InputError: the name is no identifier, or `equations` or `sources` names what no recipe
            has.
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
    sources: Mapping[str, Source] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "deviations", tuple(self.deviations))
        for name in ("equations", "sources"):
            if strange := [key for key in getattr(self, name) if key not in STATED]:
                known = f"its keys are {', '.join(STATED)}"
                raise InputError(f"{self.label}: {name} has {strange[0]!r}, and {known}.")


CHOICES = ("weighting", "loss", "density", "table", "c_in", "c_noise", "output")
"""The fields that are settings of a study, the two levels apart."""
LEVELS = ("sigma_min", "sigma_max")
STATED = ("prediction", *CHOICES, "levels")
"""What the page of recipes says of each, and where in its paper it stands."""
