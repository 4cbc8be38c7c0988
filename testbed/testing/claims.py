"""What a component may claim besides the laws: a false claim fails, a true one may be made.

A claim is decided over sigma 1e-4 to 1e4 and sigma_data 0.1 to 10, with bounds from rounding; a
limit by its rate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.base import Component
from testbed.components.guidance import Guidance
from testbed.components.loss import Loss
from testbed.diffusion.parameterization import Coefficients, Parameterization
from testbed.random import stream
from testbed.testing import guidances
from testbed.testing.bounds import Rounding
from testbed.testing.cases import SIGMA_DATAS, Case, case, levels
from testbed.testing.checks import Check, Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.parameterizations.cases import sigma_datas, target
from testbed.testing.rounding import K, Worst

OF_PARAMETERIZATIONS = Group("parameterization", "claim")
OF_LOSSES = Group("loss", "claim")
OF_GUIDANCES = Group("guidance", "claim")
GROUPS = {group.axis: group for group in (OF_PARAMETERIZATIONS, OF_LOSSES, OF_GUIDANCES)}


def made(subject: Component) -> list[Check]:
    """A check for every claim that the component makes."""
    if isinstance(subject, Parameterization | Guidance):
        names = {f"claim.{name}" for name in subject.claims}
        return [check for check in GROUPS[subject.axis] if check.id in names]
    return list(OF_LOSSES) if isinstance(subject, Loss) and subject.elicits_mean else []


def unmade(subject: Component) -> list[Check]:
    """A check for every claim that the component could make and does not."""
    group = GROUPS.get(subject.axis, ())
    mine = {check.id for check in made(subject)}
    return [check for check in group if check.id not in mine]


@OF_PARAMETERIZATIONS.law("unit_target: Var F* = a^2 sigma_data^2 + b^2 = 1 at every sigma.")
def unit_target(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: the variance of F* depends on the data's distribution")
    worst, g = Worst(), gamma(2 * K, torch.float64)
    for sd in sigma_datas(p):
        sigma = levels(p.sigma_range, 65)
        a, b = p.pair_weights(sigma.clone(), sigma_data=sd)
        found = a**2 * sd**2 + b**2
        bound = g * found
        if p.stated_target is None:
            c = p.coefficients(sigma.clone(), sigma_data=sd)
            lost = g * (1 + c.skip.abs()) / c.out.abs()
            bound = bound + 2 * lost * (a.abs() * sd**2 + b.abs() * sigma)
        worst.compare("Var F*", found, torch.ones_like(found), bound, sigma, sigma_data=sd)
    return str(worst)


@OF_PARAMETERIZATIONS.law(
    "unit_input: Var(c_in x) = c_in^2 (sigma_data^2 + sigma^2) = 1 at every sigma."
)
def unit_input(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: it has no c_in of its own")
    worst = Worst()
    for sd in sigma_datas(p):
        sigma = levels(p.sigma_range, 65)
        found = p.coefficients(sigma.clone(), sigma_data=sd).in_ ** 2 * (sd**2 + sigma**2)
        bound = gamma(2 * K, torch.float64) * found
        worst.compare("Var(c_in x)", found, torch.ones_like(found), bound, sigma, sigma_data=sd)
    return str(worst)


@OF_PARAMETERIZATIONS.law(
    "homogeneous: with data, sigma and sigma_data multiplied by any c, F* and c_in x stay the same."
)
def homogeneous(p: Parameterization, context: Context) -> str:
    demand(
        p.sigma_data is None,
        f"it is right for sigma_data = {p.sigma_data} only: there is no other unit to change to.",
    )
    worst, (low, high) = Worst(), p.sigma_range
    for c in (0.3, 7.0):
        sigma = levels((max(low, low / c), min(high, high / c)))
        for sd in SIGMA_DATAS:
            one = case((9, 9), sigma, sd)
            other = Case(c * one.x0, one.eps, c * sigma, c * sd)
            bound = Rounding(p, one).target() + Rounding(p, other).target()
            where = {"sigma_data": sd, "c": c}
            worst.compare("F*", target(p, other), target(p, one), bound, sigma, **where)
            if p.affine:
                mine, theirs = (
                    p.coefficients(at.sigma.clone(), sigma_data=at.sigma_data).in_ * k
                    for at, k in ((one, 1.0), (other, c))
                )
                limit = gamma(2 * K, torch.float64) * mine.abs()
                worst.compare("c_in x", theirs, mine, limit, sigma, **where)
    return str(worst)


@OF_PARAMETERIZATIONS.law("boundary: c_skip -> 1 and c_out -> 0 as sigma -> 0, so that D -> x.")
def boundary(p: Parameterization, context: Context) -> str:
    if not p.affine:
        raise Skipped("not affine: it has no c_skip and c_out")
    demand(p.sigma_range[0] == 0, f"sigma_range starts at {p.sigma_range[0]:g}: there is no limit.")
    shown = []
    for sd in sigma_datas(p):
        for name, distance in (("1 - c_skip", _far), ("c_out", lambda q: q.out.abs())):
            shown.append(f"{name} ~ {_vanishes(p, sd, name, distance)}")
    return "; ".join(dict.fromkeys(shown))


def _far(q: Coefficients) -> Tensor:
    """|1 - c_skip|, or 0 where rounding cannot tell it from 0."""
    far = (1 - q.skip).abs()
    return torch.where(far <= gamma(K, torch.float64), 0.0, far)


def _vanishes(
    p: Parameterization, sd: float, name: str, distance: Callable[[Coefficients], Tensor]
) -> str:
    """The rate at which a distance vanishes as sigma -> 0.

    Decided on sigma = 1e-4 ... 1e-12: every two decades it must at least halve (any power of sigma
    above 0.15 does) until it is 0. A constant left over, however small, stops that.
    """
    sigma = torch.logspace(-4, -12, 5, dtype=torch.float64)
    value = distance(p.coefficients(sigma.clone(), sigma_data=sd))
    held = torch.isfinite(value).all() and bool((value[1:] <= value[:-1] / 2).all())
    demand(
        bool(held),
        f"{name} = {', '.join(f'{v:.3g}' for v in value.tolist())} at sigma = 1e-4, 1e-6, ... "
        f"1e-12 (sigma_data = {sd:g}) does not go to 0.",
    )
    positive = value[value > 0]
    if len(positive) < 2:
        return "0"
    rate = float(torch.log10(positive[0] / positive[-1])) / (2 * (len(positive) - 1))
    return f"sigma^{rate:.2g}"


@OF_LOSSES.law("elicits_mean: E m(q_hat, q) is smallest at q_hat = E q, whatever the distribution.")
def elicits_mean(m: Loss, context: Context) -> str:
    """Nothing may beat the mean by more than the sum's rounding, and values near it must lose.

    The samples are lopsided (mean, median and mode differ) and of several scales, since a Huber
    loss is l2 on a narrow one.
    """
    from scipy.optimize import minimize_scalar

    n = 257
    z = torch.rand(n, generator=stream(0, "testing/claims"), dtype=torch.float64)
    state = m.build()
    for scale in (0.01, 1.0, 100.0):
        for q in (-scale * torch.log(z), scale * (z < 0.1).double() - scale):
            mean, spread = float(q.mean()), float(q.std())

            def expected(guess: float, q: Tensor = q) -> float:
                with torch.no_grad():
                    return float(m(torch.full_like(q, guess), q, state).mean())

            at_mean = expected(mean)
            found = minimize_scalar(
                expected,
                bounds=(float(q.min()), float(q.max())),
                method="bounded",
                options={"xatol": 1e-9 * spread},
            )
            # So near the mean E m changes by 2^-76 of itself: what is seen is the rounding of m.
            near = [expected(mean * (1 + k * 2.0**-42)) for k in range(-16, 17)]
            tolerance = gamma(n + K, torch.float64) * abs(at_mean) + 2 * (max(near) - min(near))
            if not at_mean - float(found.fun) <= tolerance:
                raise CheckFailed(
                    f"E m is {at_mean:.9g} at the mean {mean:.6g} and {float(found.fun):.9g} at "
                    f"{float(found.x):.6g} (spread {spread:.3g})."
                )
            for beside in (mean - spread / 8, mean + spread / 8):
                demand(
                    expected(beside) > at_mean + tolerance,
                    f"E m is no larger at {beside:.6g} than at the mean {mean:.6g}.",
                )
    return "nothing beats the mean on 6 lopsided samples"


@OF_GUIDANCES.law("conditional_at_one: at scale = 1, D_w = D_y, that of the samples' own classes.")
def conditional_at_one(g: Guidance, context: Context) -> str:
    return guidances.compare_at(g, 1.0, conditioned=True)


@OF_GUIDANCES.law(
    # Another option may put a class in the place of none.
    "unconditional_at_zero: at scale = 0, D_w is D with every condition off.",
    own=True,
)
def unconditional_at_zero(g: Guidance, context: Context) -> str:
    return guidances.compare_at(g, 0.0, conditioned=False)
