"""The laws of guidances: a denoiser of a condition made into one of the samples that are wanted."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.dataset import Data
from testbed.components.guidance import (
    Condition,
    Conditional,
    Denoise,
    Guidance,
    GuidanceMethod,
    LogClasses,
)
from testbed.data.synthetic import mixture
from testbed.oracles import Gaussian
from testbed.sampling.guidance_methods import ClassifierGuidance
from testbed.tensors import per_sample
from testbed.testing import behaviour
from testbed.testing.cases import draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped

LAWS = Group("guidance")
COMPONENTS = {"label": torch.arange(4), "group": torch.tensor([0, 0, 1, 1])}
"""The classes of the four components of the data, as `testbed.data.synthetic.mixture` has them."""
VARIANCE = 0.25


@functools.cache
def _data() -> Data:
    return mixture(dim=3, n=64, test=64)


@functools.cache
def _plain() -> Data:
    """Data without classes."""
    x = draws((8, 3), 91, torch.float32)
    return Data(x, x + 1, oracle=Gaussian(torch.zeros(3), torch.eye(3)))


def _trained(data: Data, rate: float = 0.1) -> dict[str, float]:
    """The conditions of a model that knows all that the data have."""
    return dict.fromkeys(data.classes, rate)


@dataclass(frozen=True)
class Exact:
    """The exact answers for four components N(m_k, VARIANCE I), float64, of any shape.

    r_k = softmax(log(1/4) - |x - m_k|^2/(2 (VARIANCE + sigma^2))) over the components that have the
    classes asked for, D = sum r_k (VARIANCE x + sigma^2 m_k)/(VARIANCE + sigma^2).
    """

    m: Tensor

    def logits(self, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        """(B, 4), -inf for a component of other classes."""
        v = VARIANCE + sigma.double() ** 2
        far = (x.double()[:, None] - self.m).square().flatten(2).sum(2)
        found = -far / (2 * v.expand(len(x))[:, None])
        for name, y in (condition or {}).items():
            other = (y[:, None] >= 0) & (y[:, None] != COMPONENTS[name])
            found = found.masked_fill(other, -torch.inf)
        return found

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        """D_y, like x."""
        s2 = per_sample(sigma.double(), x) ** 2
        r = torch.softmax(self.logits(x, sigma, condition), 1)
        centre = (r.reshape(*r.shape, *[1] * (x.ndim - 1)) * self.m).sum(1)
        return ((VARIANCE * x.double() + s2 * centre) / (VARIANCE + s2)).to(x.dtype)

    def log_classes(self, name: str, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(y|x) of one condition, (B, classes)."""
        log_r = torch.log_softmax(self.logits(x, sigma, None), 1)
        classes = COMPONENTS[name]
        return torch.stack(
            [log_r[:, classes == y].logsumexp(1) for y in range(int(classes.max()) + 1)], 1
        ).to(x.dtype)


@dataclass(frozen=True)
class Case:
    """x (B, ...), sigma (B,), the component of each sample, and the exact answers there."""

    x: Tensor
    sigma: Tensor
    component: Tensor
    exact: Exact

    @classmethod
    def of(cls, shape: tuple[int, ...], batch: int, dtype: torch.dtype = torch.float64) -> Case:
        """Samples of `shape` around the components, at levels from 0.1 to 10."""
        exact = Exact(draws((4, *shape), 92))
        component = (3 * torch.arange(batch) + 1) % 4
        sigma = torch.logspace(-1, 1, batch, dtype=torch.float64)
        x = exact.m[component] + per_sample(sigma, exact.m[component]) * draws((batch, *shape), 93)
        return cls(x.to(dtype), sigma.to(dtype), component, exact)

    def classes(self, names: list[str]) -> dict[str, Tensor]:
        """Those of every sample."""
        return {name: COMPONENTS[name][self.component] for name in names}

    def guided(self, method: GuidanceMethod) -> Denoise:
        """The exact denoiser, guided for these samples."""
        return _guided(
            method,
            self.exact.denoise,
            self.exact.log_classes,
            self.classes(method.classes(_trained(_data()))),
        )

    def found(self, method: GuidanceMethod) -> Tensor:
        """D_w of its samples, like x."""
        return self.guided(method)(self.x.clone(), self.sigma.clone())


def _guided(
    method: GuidanceMethod, denoiser: Conditional, log_classes: object, condition: Condition
) -> Denoise:
    """As a study does it: a classifier is there for classifier guidance alone."""
    classes: LogClasses | None = None
    if isinstance(method, ClassifierGuidance):
        assert callable(log_classes)
        classes = functools.partial(log_classes, method.of)
    return method.denoiser(denoiser, classes, condition)


def methods(g: Guidance) -> Iterator[tuple[str, GuidanceMethod]]:
    """The method at several values of every option, those that no trained model fits left out."""
    for how, one in behaviour.variants(g):
        try:
            method = one.build()
        except ValueError as problem:
            if how == "by default" or not behaviour.refuses(problem):
                raise
            continue
        if how == "by default" or not list(method.misfits(_trained(_data()), _data())):
            yield how, method


@LAWS.law("Its classes are conditions of the data, of a model trained with any of them, once each.")
def classes(g: Guidance, context: Context) -> str:
    for how, method in methods(g):
        for names in ([], ["label"], ["label", "group"]):
            found = method.classes(dict.fromkeys(names, 0.1))
            known = list(_data().classes)
            demand(
                isinstance(found, list)
                and len(set(found)) == len(found)
                and all(name in known for name in found),
                f"classes of a model with {names} are {found!r}, the data have {known} {how}.",
            )
    return ", ".join(g.build().classes(_trained(_data()))) or "none"


@LAWS.law("Every misfit is a line of text, for any model and data; asked twice it is the same.")
def misfits(g: Guidance, context: Context) -> str:
    shown = 0
    for how, method in methods(g):
        for data in (_data(), _plain()):
            for conditions in ({}, {"label": 0.0}, {"label": 0.1}, _trained(data)):
                first, second = (list(method.misfits(conditions, data)) for _ in range(2))
                bad = [one for one in first if not isinstance(one, str) or not one.strip()]
                demand(not bad, f"a misfit is {bad[:1]} {how}.")
                demand(first == second, f"the misfits of {conditions} changed {how}.")
                demand(not any("\n" in one for one in first), f"a misfit has several lines {how}.")
                shown += len(first)
    return f"{shown} reasons in all"


@LAWS.law("It guides a model that was trained with every condition of the data, and without them.")
def fits(g: Guidance, context: Context) -> None:
    found = list(g.build().misfits(_trained(_data()), _data()))
    demand(not found, f"{len(found)} misfits: {found[:1]}.")


@LAWS.law("D_w has the shape and dtype of x, for any shape of samples and any batch.")
def shape(g: Guidance, context: Context) -> None:
    for how, method in methods(g):
        for dims, batch in (((3,), 3), ((3,), 5), ((2, 3), 2), ((2, 3, 4), 4), ((3,), 0)):
            for dtype in (torch.float64, torch.float32):
                case = Case.of(dims, batch, dtype)
                found = case.found(method)
                demand(
                    found.shape == case.x.shape and found.dtype == dtype,
                    f"D_w is {tuple(found.shape)} {found.dtype} for {tuple(case.x.shape)} {dtype} "
                    f"{how}.",
                )


@LAWS.law("On an exact mixture D_w is finite, from sigma = 1e-3 to 1e3.")
def finite(g: Guidance, context: Context) -> str:
    data, n = _data(), 16
    exact = data.conditional
    assert exact is not None
    x0 = data.test[:n].double()
    for how, method in methods(g):
        held = data.condition("test", method.classes(_trained(data)))
        condition = {name: y[:n] for name, y in held.items()}
        denoise = _guided(method, exact.denoise, exact.log_classes, condition)
        for sigma in (1e-3, 0.1, 1.0, 10.0, 1e3):
            each = torch.full((n,), sigma, dtype=torch.float64)
            found = denoise(x0 + sigma * draws((n, 3), 94), each)
            bad = ~torch.isfinite(found).flatten(1).all(1)
            demand(not bool(bad.any()), f"{int(bad.sum())} of {n} are not at {sigma:g} {how}.")
    return "finite"


@LAWS.law("Per sample: D_w depends on the sample's own x, sigma and class alone.")
def per_sample_(g: Guidance, context: Context) -> None:
    case = Case.of((3,), 5)
    for how, method in methods(g):
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
            demand(moved == 0, f"sample {i} moves by {moved:.3g} with the others {how}.")


@LAWS.law("The classes of the samples have an effect on D_w.")
def sees_condition(g: Guidance, context: Context) -> str:
    case, method = Case.of((3,), 5), g.build()
    if not method.classes(_trained(_data())):
        raise Skipped("it asks for no classes")
    other = Case(case.x, case.sigma, (case.component + 2) % 4, case.exact)
    far = float((other.found(method) - case.found(method)).abs().max())
    demand(far > 0, "other classes give the same D_w.")
    return f"another class moves D_w by {far:.3g}"


@LAWS.law("Pure: x, sigma, the classes and global state stay as they were; two calls are equal.")
def pure(g: Guidance, context: Context) -> None:
    case = Case.of((3,), 5)
    for _, method in methods(g):
        condition = case.classes(method.classes(_trained(_data())))
        denoise = _guided(method, case.exact.denoise, case.exact.log_classes, condition)
        with behaviour.harmless(*condition.values()):
            behaviour.pure(denoise, (case.x, case.sigma))


@LAWS.law("Every option has an effect, and binding its default has none.")
def options(g: Guidance, context: Context) -> str:
    """What bends the denoiser has none of its own at a scale of 1, so that it is at 2."""
    bent = {"scale": 2.0} if "scale" in g.defaults else {}
    return behaviour.options_matter(g.bound({**g.options, **bent}))


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
        names: Mapping[str, Tensor] = case.classes(method.classes(_trained(_data())))
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
