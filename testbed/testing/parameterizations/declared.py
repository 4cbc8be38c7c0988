"""What a parameterization says of itself: its recipe, its c_noise, its singular limits."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.diffusion.parameterization import Parameterization
from testbed.testing import recipes
from testbed.testing.cases import levels
from testbed.testing.checks import Context, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import options_matter
from testbed.testing.parameterizations.cases import LAWS, sigma_datas
from testbed.testing.rounding import K, Worst
from testbed.trial.recipes import published

NOISE_KINDS = ("sigma", "log_sigma", "time", "index")


@LAWS.law("A reference is given, noise_kind is known, and the recipe names what is registered.")
def metadata(p: Parameterization, context: Context) -> str | None:
    demand(bool(p.reference.strip()), "reference is empty: give the paper and equation.")
    demand(
        p.noise_kind in NOISE_KINDS,
        f"noise_kind = {p.noise_kind!r}, expected one of {', '.join(NOISE_KINDS)}.",
    )
    if p.recipe is None:
        return "no recipe"
    recipe = context.registry.recipe_of(p)
    assert recipe is not None
    recipes.inputs(recipe, context)
    for sd in sigma_datas(p):
        published(p, context.registry, sd)
    return f"recipe {recipe.name}" if isinstance(p.recipe, str) else None


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(p: Parameterization, context: Context) -> str:
    return options_matter(p)


@LAWS.law("c_noise is strictly monotone in sigma: no two levels look the same to the network.")
def injective_noise(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: training gives it log(sigma)/4")
    if p.noise_kind == "index":
        raise Skipped("an index is a table's, and piecewise constant")
    for sd in sigma_datas(p):
        sigma = levels(p.sigma_range, 65)
        noise = p.coefficients(sigma, sigma_data=sd).noise.float()
        step = noise.diff()
        held = bool((step > 0).all()) or bool((step < 0).all())
        if not held:
            at = int((step * step.sum().sign() <= 0).nonzero()[:1].sum())
            raise CheckFailed(
                f"c_noise goes from {float(noise[at]):.6g} to {float(noise[at + 1]):.6g} between "
                f"sigma = {float(sigma[at]):.4g} and {float(sigma[at + 1]):.4g}, "
                f"sigma_data = {sd:g}."
            )
    return f"from {float(noise[0]):.3g} to {float(noise[-1]):.3g} (float32)"


@LAWS.law(
    "c_noise is of its declared kind: proportional to sigma; affine in log sigma; a time, not "
    "negative; an index, whole."
)
def noise_kind(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: training gives it log(sigma)/4")
    for sd in sigma_datas(p):
        sigma = levels(p.sigma_range, 17)
        noise = p.coefficients(sigma.clone(), sigma_data=sd).noise
        try:
            _of_kind(p.noise_kind, noise, sigma, sd)
        except CheckFailed as broken:
            kind, formula = _formula(noise, sigma, sd)
            if kind in ("", p.noise_kind):
                raise
            said = "the default is" if p.noise_kind == "sigma" else "declared:"
            raise CheckFailed(
                f'c_noise is {formula}: declare noise_kind = "{kind}" ({said} "{p.noise_kind}").'
            ) from broken
    return str(p.noise_kind)


def _of_kind(kind: str, noise: Tensor, sigma: Tensor, sd: float) -> None:
    """CheckFailed unless c_noise at these levels is of the kind."""
    worst, g = Worst(), gamma(K, torch.float64)
    if kind == "sigma":
        slope = noise / sigma
        line, bound = slope[:1].expand_as(slope), 2 * g * slope.abs()
        worst.compare("c_noise/sigma", slope, line, bound, sigma, sigma_data=sd)
        demand(float(slope[0]) > 0, f"c_noise/sigma = {float(slope[0]):.4g} is not positive.")
    elif kind == "log_sigma":
        y = torch.log(sigma)
        rate = (noise[-1] - noise[0]) / (y[-1] - y[0])
        line = noise[0] + rate * (y - y[0])
        # Where log sigma is small its parts are not: the constant's rounding counts.
        size = noise.abs() + noise[0].abs() + noise[-1].abs() + rate.abs() * y.abs().max()
        what = "c_noise, affine in log sigma"
        worst.compare(what, noise, line, 4 * g * size, sigma, sigma_data=sd)
        demand(float(rate) != 0, "c_noise does not depend on sigma.")
    elif kind == "time":
        demand(bool((noise >= 0).all()), f"c_noise is {float(noise.min()):.4g} < 0.")
    elif kind == "index":
        demand(
            bool((noise == noise.round()).all() and (noise >= 0).all()),
            f"c_noise holds {float(noise[noise != noise.round()][:1].sum()):.4g}.",
        )


def _formula(noise: Tensor, sigma: Tensor, sd: float) -> tuple[str, str]:
    """The kind of c_noise that these numbers have a formula of, and the formula, or nothing."""
    for kind, argument in (("sigma", sigma), ("log_sigma", torch.log(sigma))):
        try:
            _of_kind(kind, noise, sigma, sd)
        except CheckFailed:
            continue
        factor = float((noise[-1] - noise[0]) / (argument[-1] - argument[0]))
        offset = float(noise[0] - factor * argument[0])
        word = kind.replace("_", " ")
        formula = f"{word}/{1 / factor:g}" if abs(factor) < 1 else f"{factor:g} {word}"
        formula = word if f"{factor:g}" == "1" else formula
        small = abs(offset) <= 1e-9 * float(noise.abs().max())
        return kind, formula if small else f"{formula} {'-+'[offset > 0]} {abs(offset):g}"
    return "", ""


@LAWS.law(
    "Singular are exactly the declared limits: where F* vanishes or is unbounded, or |c_out F*| is."
)
def singular(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: the size of F* depends on the data")
    low, high = p.sigma_range
    found: dict[float, str] = {}
    ends = [(0.0, (1e-6, 1e-8))] * (low == 0) + [(float("inf"), (1e6, 1e8))] * (
        high == float("inf")
    )
    for limit, at in ends:
        for sd in sigma_datas(p):
            sigma = torch.tensor(at, dtype=torch.float64)
            a, b = p.pair_weights(sigma.clone(), sigma_data=sd)
            rms = torch.sqrt(a**2 * sd**2 + b**2)
            reach = p.coefficients(sigma.clone(), sigma_data=sd).out.abs() * rms
            why = _why(rms, reach)
            if why:
                found.setdefault(limit, f"at {limit:g} {why}".format(*at))
    declared = {limit for limit in p.singular if limit in [end for end, _ in ends]}
    measured, written = _written(found), _written(p.singular)
    if set(found) - declared:
        said = "; ".join(found[limit] for limit in sorted(set(found) - declared))
        raise CheckFailed(
            f"{said}: write singular={measured}, or a sigma_range that ends before "
            f"(declared: {written})."
        )
    demand(
        set(found) == declared,
        f"at {min(declared - set(found), default=0):g} F* and |c_out F*| have finite limits, and "
        f"F*'s is not 0: write singular={measured} (declared: {written}).",
    )
    return measured


def _why(rms: Tensor, reach: Tensor) -> str:
    """Which of the sizes of F* and of c_out F* makes a limit singular, or nothing.

    Over two decades a power of sigma above 0.15 doubles or halves; what has a limit does neither.
    """
    growth, reached = float(rms[1] / rms[0]), float(reach[1] / reach[0])
    if 0.5 < growth < 2 and reached < 2:
        return ""
    name, size = ("|c_out F*|", reach) if 0.5 < growth < 2 else ("F*", rms)
    vanishes = size is rms and bool(rms.isfinite().all()) and not growth >= 2
    how = "vanishes" if vanishes else "grows without bound"
    first, last = size.tolist()
    return f"{name} {how} ({first:.3g} at sigma = {{:g}}, {last:.3g} at {{:g}})"


def _written(limits: Iterable[float]) -> str:
    """A declaration as its author writes it: `(0.0, math.inf)`."""
    words = ["math.inf" if math.isinf(limit) else "0.0" for limit in sorted(limits)]
    return f"({', '.join(words)}{',' * (len(words) == 1)})"
