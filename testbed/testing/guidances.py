"""The laws of guidances: a denoiser of a condition made into one of the samples that are wanted."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.dataset import Data
from testbed.components.guidance import (
    Guidance,
)
from testbed.oracles import Gaussian
from testbed.tensors import per_sample
from testbed.testing import behaviour
from testbed.testing.cases import draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.guided_cases import (
    Case,
    guided_denoiser,
    mixture_data,
    trained_conditions,
)
from testbed.testing.options import options_matter

LAWS = Group("guidance")


@functools.cache
def _plain() -> Data:
    """Data without classes."""
    x = draws((8, 3), 91, torch.float32)
    return Data(x, x + 1, oracle=Gaussian(torch.zeros(3), torch.eye(3)))


@LAWS.law("Its classes are conditions of the data, of a model trained with any of them, once each.")
def classes(g: Guidance, context: Context) -> str:
    method, known = g.build(), list(mixture_data().classes)
    for names in ([], ["label"], ["label", "group"]):
        found = method.classes(dict.fromkeys(names, 0.1))
        demand(
            isinstance(found, list)
            and len(set(found)) == len(found)
            and all(name in known for name in found),
            f"classes of a model with {names} are {found!r}, the data have {known}.",
        )
    return ", ".join(method.classes(trained_conditions(mixture_data()))) or "none"


@LAWS.law("Every misfit is a line of text, for any model and data; asked twice it is the same.")
def misfits(g: Guidance, context: Context) -> str:
    shown, method = 0, g.build()
    for data in (mixture_data(), _plain()):
        for conditions in ({}, {"label": 0.0}, {"label": 0.1}, trained_conditions(data)):
            first, second = (list(method.misfits(conditions, data)) for _ in range(2))
            bad = [one for one in first if not isinstance(one, str) or not one.strip()]
            demand(not bad, f"a misfit is {bad[:1]}.")
            demand(first == second, f"the misfits of {conditions} changed.")
            demand(not any("\n" in one for one in first), "a misfit has several lines.")
            shown += len(first)
    return f"{shown} reasons in all"


@LAWS.law("It guides a model that was trained with every condition of the data, and without them.")
def fits(g: Guidance, context: Context) -> None:
    found = list(g.build().misfits(trained_conditions(mixture_data()), mixture_data()))
    demand(not found, f"{len(found)} misfits: {found[:1]}.")


@LAWS.law("D_w has the shape and dtype of x, for any shape of samples and any batch.")
def shape(g: Guidance, context: Context) -> None:
    method = g.build()
    for dims, batch in (((3,), 3), ((3,), 5), ((2, 3), 2), ((2, 3, 4), 4), ((3,), 0)):
        for dtype in (torch.float64, torch.float32):
            case = Case.of(dims, batch, dtype)
            found = case.found(method)
            demand(
                found.shape == case.x.shape and found.dtype == dtype,
                f"D_w is {tuple(found.shape)} {found.dtype} for {tuple(case.x.shape)} {dtype}.",
            )


@LAWS.law("On an exact mixture D_w is finite, from sigma = 1e-3 to 1e3.")
def finite(g: Guidance, context: Context) -> str:
    data, n = mixture_data(), 16
    exact = data.conditional
    assert exact is not None
    x0 = data.test[:n].double()
    method = g.build()
    held = data.condition("test", method.classes(trained_conditions(data)))
    condition = {name: y[:n] for name, y in held.items()}
    denoise = guided_denoiser(method, exact.denoise, exact.log_classes, condition)
    for sigma in (1e-3, 0.1, 1.0, 10.0, 1e3):
        each = torch.full((n,), sigma, dtype=torch.float64)
        found = denoise(x0 + sigma * draws((n, 3), 94), each)
        bad = ~torch.isfinite(found).flatten(1).all(1)
        demand(not bool(bad.any()), f"{int(bad.sum())} of {n} are not at {sigma:g}.")
    return "finite"


@LAWS.law("Per sample: D_w depends on the sample's own x, sigma and class alone.")
def per_sample_(g: Guidance, context: Context) -> None:
    case, method = Case.of((3,), 5), g.build()
    whole = case.found(method)
    for i in range(len(case.x)):
        mine = torch.arange(len(case.x)) == i
        other = Case(
            torch.where(mine[:, None], case.x, 1 - case.x.flip(0)),
            torch.where(mine, case.sigma, 2 * case.sigma.flip(0)),
            torch.where(mine, case.component, (case.component + 1) % 4),
            case.exact,
        )
        # The same shapes run the same sums: equal bits.
        moved = float((other.found(method)[i] - whole[i]).abs().max())
        demand(moved == 0, f"sample {i} moves by {moved:.3g} with the others.")


@LAWS.law("The classes of the samples have an effect on D_w.")
def sees_condition(g: Guidance, context: Context) -> str:
    case, method = Case.of((3,), 5), g.build()
    if not method.classes(trained_conditions(mixture_data())):
        raise Skipped("it asks for no classes")
    other = Case(case.x, case.sigma, (case.component + 2) % 4, case.exact)
    far = float((other.found(method) - case.found(method)).abs().max())
    demand(far > 0, "other classes give the same D_w.")
    return f"another class moves D_w by {far:.3g}"


@LAWS.law("Pure: x, sigma, the classes and global state stay as they were; two calls are equal.")
def pure(g: Guidance, context: Context) -> None:
    case, method = Case.of((3,), 5), g.build()
    condition = case.classes(method.classes(trained_conditions(mixture_data())))
    denoise = guided_denoiser(method, case.exact.denoise, case.exact.log_classes, condition)
    with behaviour.harmless(*condition.values()):
        behaviour.pure(denoise, (case.x, case.sigma))


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(g: Guidance, context: Context) -> str:
    """What bends the denoiser has none of its own at a scale of 1, so that it is at 2."""
    bent = {"scale": 2.0} if "scale" in g.defaults else {}
    return options_matter(g.bound({**g.options, **bent}))


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(g: Guidance, context: Context) -> str:
    return behaviour.equal_elsewhere(g, context)


def compare_at(g: Guidance, scale: float, conditioned: bool) -> str:
    """D at this `scale` against D_y, or D without conditions.

    Raises:
        CheckFailed: it is another, or there is no such option.
    """
    if "scale" not in g.defaults:
        raise CheckFailed("it has no option `scale`.")
    method = g.bound({**g.options, "scale": scale}).build()
    worst = 0.0
    for dims in ((3,), (2, 3)):
        case = Case.of(dims, 8)
        names: Mapping[str, Tensor] = case.classes(
            method.classes(trained_conditions(mixture_data()))
        )
        wanted = case.exact.denoise(case.x, case.sigma, names if conditioned else None)
        found = case.found(method)
        # A softmax knows its weights to gamma max|logit|; the rest are sums of terms of this size.
        logits = case.exact.logits(case.x, case.sigma, None).abs().amax(1)
        size = case.x.abs().flatten(1).amax(1) + float(case.exact.m.abs().sum())
        bound = per_sample(gamma(256, torch.float64) * (1 + logits) * size, case.x)
        ratio = float(((found - wanted).abs() / bound).nan_to_num(nan=torch.inf).max())
        demand(
            ratio <= 1,
            f"at scale = {scale:g} the error is {ratio:.3g} times its bound, for {dims}.",
        )
        worst = max(worst, ratio)
    return f"error at most {worst:.2g} of its bound"
