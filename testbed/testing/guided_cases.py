"""Exactly guided samples of four components: what the laws of guidance are held against."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.guidance import (
    Condition,
    Conditional,
    Denoise,
    GuidanceMethod,
    LogClasses,
)
from testbed.data.synthetic import mixture
from testbed.sampling.guidance_methods import ClassifierGuidance
from testbed.tensors import per_sample
from testbed.testing.cases import draws

COMPONENTS = {"label": torch.arange(4), "group": torch.tensor([0, 0, 1, 1])}
"""The classes of the four components of the data, as `testbed.data.synthetic.mixture` has them."""
VARIANCE = 0.25


@functools.cache
def mixture_data() -> Data:
    return mixture(dim=3, n=64, test=64)


def trained_conditions(data: Data, rate: float = 0.1) -> dict[str, float]:
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
        return guided_denoiser(
            method,
            self.exact.denoise,
            self.exact.log_classes,
            self.classes(method.classes(trained_conditions(mixture_data()))),
        )

    def found(self, method: GuidanceMethod) -> Tensor:
        """D_w of its samples, like x."""
        return self.guided(method)(self.x.clone(), self.sigma.clone())


def guided_denoiser(
    method: GuidanceMethod, denoiser: Conditional, log_classes: object, condition: Condition
) -> Denoise:
    """As a study does it: a classifier is there for classifier guidance alone."""
    classes: LogClasses | None = None
    if isinstance(method, ClassifierGuidance):
        assert callable(log_classes)
        classes = functools.partial(log_classes, method.of)
    return method.denoiser(denoiser, classes, condition)
