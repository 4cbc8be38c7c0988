"""Recipes at work: what a study leaves out of a trial comes from the recipe that it names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from testbed import settings
from testbed.components import multiples
from testbed.components.recipe import LEVELS, Recipe
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, about
from testbed.registry import Registry
from testbed.training.objective import Objective
from testbed.trial import build, validity
from testbed.trial.config import OWN, TrialSettings
from testbed.trial.specs import ComponentSpec

REQUIRED = ("weighting", "loss", "density")
"""What a study must name where there is no recipe."""
UNSTATED = (0.002, 80.0)
"""The range of noise levels where neither study nor recipe nor table has one."""
DEFAULTS = {
    one.name: one.default
    for one in dataclasses.fields(Recipe)
    if one.default is not dataclasses.MISSING
}


def named(name: str, p: Parameterization, registry: Registry) -> Recipe | None:
    """The recipe that a study names; None where it names none and p has none.

    Raises:
        UnknownName: no recipe has that name.
    """
    return registry.recipe_of(p) if name == OWN else registry.recipe(name)


def published_with(recipe: Recipe, registry: Registry) -> tuple[str, ...]:
    """The parameterizations that a recipe was published with: that which it names, or its own."""
    if recipe.parameterization:
        return (recipe.parameterization,)
    every = registry.names("parameterization")
    return tuple(n for n in every if registry.parameterization(n).recipe == recipe.name)


def note(name: str, trained: Sequence[str], registry: Registry) -> str:
    """A sentence where parameterizations are trained by the recipe of another one; else nothing.

    Args:
        name: the recipe that a study names.
        trained: the names of the parameterizations that it trains by it.
        registry: the plugins.
    """
    own = published_with(registry.recipe(name), registry) if name != OWN else ()
    others = [one for one in dict.fromkeys(trained) if one not in own]
    if not own or not others:
        return ""
    return (
        f"recipe {name} was published with {', '.join(own)}: to train {', '.join(others)} by it is "
        "a setting of this study, and no paper's."
    )


def completed(stated: TrialSettings, recipe: Recipe | None, p: Parameterization) -> TrialSettings:
    """The settings with the recipe's in the place of those that a study leaves out.

    Raises:
        InputError: a setting that the study leaves out, and no recipe; or options for a component
            that the recipe does not have.
    """
    fields = [one for one in settings.fields(TrialSettings) if one.setting.from_recipe]
    left_out = {one.name for one in fields if _left_out(one.name, getattr(stated, one.name))}
    if recipe is None and (missing := left_out & {*REQUIRED}):
        lines = (f"{p.label} has no recipe: name a {name}." for name in REQUIRED if name in missing)
        raise InputError("\n".join(lines))
    update: dict[str, Any] = {}
    for name, setting in ((one.name, one.setting) for one in fields if one.name in left_out):
        wanted = not setting.recipe_with or left_out & {*setting.recipe_with}
        value = getattr(recipe, name) if recipe and wanted else DEFAULTS[name]
        if setting.axis:
            value = _component(value, getattr(stated, name), name, recipe, p)
        update[name] = value
    return stated.model_copy(update=update)


def _left_out(name: str, value: Any) -> bool:
    if name in LEVELS:
        return value is None
    return (value.name if isinstance(value, ComponentSpec) else value) == "recipe"


def _component(
    value: Any, stated: ComponentSpec, axis: str, recipe: Recipe | None, p: Parameterization
) -> ComponentSpec | None:
    """The recipe's component, with the options that the study states in place of its own."""
    if value is not None:
        own = ComponentSpec.model_validate(value)
        return ComponentSpec(name=own.name, options={**own.options, **stated.options})
    if stated.options:
        named = recipe is not None and isinstance(p.recipe, str)
        whose = recipe.label if recipe and named else f"the recipe of {p.label}"
        with about(axis):
            raise InputError(f"{whose} has no {axis} to take options.")
    return None


def limits(
    low: float | str | None, high: float | str | None, table: NoiseTable | None
) -> tuple[float, float]:
    """The lowest and the highest noise level: as stated, else the table's, else 0.002 and 80.

    Those that are stated are numbers: multiples of sigma_data are evaluated by then.
    """
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    own = UNSTATED
    if table is not None and validity.ascends(table):
        own = float(table.sigmas[0]), float(table.sigmas[-1])
    return own[0] if low is None else low, own[1] if high is None else high


def objective(
    recipe: Recipe, p: Parameterization, registry: Registry, sigma_data: float
) -> Objective:
    """The objective of a parameterization that is trained by a recipe, its states not started.

    Raises:
        UnknownName: a component that does not exist.
        InputError: an unknown option, or one of the wrong type.
    """
    specs = {
        axis: value and ComponentSpec.model_validate(multiples.evaluated(value, sigma_data))
        for axis in ("weighting", "loss", "density", "table")
        for value in [getattr(recipe, axis)]
    }
    table = build.noise_table(registry, specs["table"])
    low, high = (multiples.evaluated(getattr(recipe, name), sigma_data) for name in LEVELS)
    range_ = dict(zip(LEVELS, limits(low, high, table), strict=True))
    density = specs["density"]
    cut = ComponentSpec(name=density.name, options={**range_, **density.options})
    weighting = specs["weighting"]
    return Objective(
        with_output(p, recipe.output),
        build.component(registry, "weighting", weighting) if weighting else None,
        build.component(registry, "loss", specs["loss"]),
        build.density(registry, cut, table),
        sigma_data,
        table=table,
    )


def published(p: Parameterization, registry: Registry, sigma_data: float) -> Objective:
    """The objective with which a parameterization was published, its states not started.

    Raises:
        InputError: p has no recipe.
    """
    recipe = registry.recipe_of(p)
    if recipe is None:
        raise InputError(f"{p.label} has no recipe.")
    return objective(recipe, p, registry, sigma_data)
