"""The laws of recipes: they name what there is, and what they name fits together."""

from __future__ import annotations

import torch

from testbed.components.recipe import Recipe
from testbed.diffusion.inputs import C_IN, C_NOISE
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.testing.cases import SIGMA_DATAS
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import Skipped
from testbed.trial import recipes
from testbed.trial.validity import levels_of

LAWS = Group("recipe")
OUTPUTS = ("F", "-eps", *PREDICTION_TYPES)


@LAWS.law("A reference and the parameterization are given, and deviations are sentences.")
def metadata(r: Recipe, context: Context) -> str:
    demand(bool(r.reference.strip()), "reference is empty: give the paper and equations.")
    demand(bool(r.parameterization), "parameterization is empty: name the one that it trains.")
    context.registry.parameterization(r.parameterization)
    for text in r.deviations:
        demand(text.strip().endswith("."), f"the deviation {text!r} is no sentence.")
    return f"{len(r.deviations)} deviations"


@LAWS.law("c_in, c_noise and output are known, and an index has a table.")
def inputs(r: Recipe, context: Context) -> None:
    for name, known in (
        ("c_in", ("native", *C_IN)),
        ("c_noise", ("native", "index", *C_NOISE)),
        ("output", OUTPUTS),
    ):
        value = getattr(r, name)
        demand(value in known, f"{name} = {value!r}, expected one of {', '.join(known)}.")
    demand(r.c_noise != "index" or r.table is not None, 'c_noise = "index" without a table.')


@LAWS.law("Its components exist with these options, at every sigma_data.")
def components(r: Recipe, context: Context) -> str:
    p = _parameterization(r, context)
    for sd in SIGMA_DATAS:
        recipes.objective(r, p, context.registry, sd)
    return f"sigma_data from {min(SIGMA_DATAS):g} to {max(SIGMA_DATAS):g}"


@LAWS.law("lambda(sigma) p(log sigma) is finite, not negative and not all zero over its levels.")
def weight(r: Recipe, context: Context) -> str:
    p = _parameterization(r, context)
    for sd in SIGMA_DATAS:
        objective = recipes.objective(r, p, context.registry, sd).with_states(0)
        if not objective.parameterization.affine and objective.loss.space == "F":
            raise Skipped("|dD/dF| depends on F: there is no lambda(sigma)")
        sigma = levels_of(objective.density, 129)
        found = objective.effective_weight(sigma)
        bad = ~(torch.isfinite(found) & (found >= 0))
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            demand(
                False,
                f"lambda p is {float(found[at]):.4g} at sigma = {float(sigma[at]):.4g}, "
                f"sigma_data = {sd:g}.",
            )
        demand(bool((found > 0).any()), f"lambda p is 0 at every level, sigma_data = {sd:g}.")
    return f"up to {float(found.max()):.3g}"


def _parameterization(r: Recipe, context: Context) -> Parameterization:
    return context.registry.parameterization(r.parameterization)
