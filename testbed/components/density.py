"""Densities: the distribution of noise levels that training draws from."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from testbed.components.base import Component, Sigma, Takes
from testbed.components.signature import require_shape_of, shaped_like_sigma
from testbed.errors import InputError
from testbed.tensors import widen

EDGE = 2.0**-53
"""The distance of the outermost uniform numbers from 0 and 1: the unit roundoff of float64."""


@dataclass(frozen=True)
class Density(Component):
    """The training distribution of sigma, cut to [sigma_min, sigma_max] and renormalised.

    Its options include the two ends of the cut, `sigma_min` and `sigma_max`.

    Args:
        icdf: `icdf(u[, sigma_data, options]) -> sigma`, the inverse of the distribution function,
            increasing on (0, 1), before the cut.
        pdf: `pdf(sigma[, sigma_data, options])`, the density over log sigma, before the cut.
        sigma_data: sqrt(E|x0|^2 / d) of the data, where a function asks for it; see
            `with_sigma_data`.
    """

    axis = "density"
    functions: ClassVar = {
        "icdf": Takes(("u", "sigma_data"), role="icdf"),
        "pdf": Takes(("sigma", "sigma_data"), role="pdf"),
    }
    icdf: Callable[..., Tensor]
    pdf: Callable[..., Tensor]
    sigma_data: float | None = field(default=None, kw_only=True)

    @property
    def defaults(self) -> dict[str, Any]:
        return {"sigma_min": 0.002, "sigma_max": 80.0, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        density = super().bound(options)
        low, high = density.options["sigma_min"], density.options["sigma_max"]
        if not 0 < low < high:
            raise InputError(
                f"{self.label}: sigma_min = {low} and sigma_max = {high}: expected "
                "0 < sigma_min < sigma_max."
            )
        if not self.takes_sigma_data or self.sigma_data is not None:
            density._make_cut(low, high)
        return density

    @property
    def takes_sigma_data(self) -> bool:
        """Whether one of its functions asks for sigma_data."""
        return any("sigma_data" in signature.inputs for signature in self.signatures())

    def with_sigma_data(self, sigma_data: float) -> Self:
        """This density for data of that sigma_data; itself where it does not ask for it.

        Raises:
            InputError: it has no mass between sigma_min and sigma_max.
        """
        if not self.takes_sigma_data or sigma_data == self.sigma_data:
            return self
        return replace(self, sigma_data=sigma_data).bound(self.options)

    def _make_cut(self, low: float, high: float) -> None:
        cut = self._cdf(low, operator.lt), self._cdf(high, operator.le)
        if not cut[0] < cut[1]:
            raise InputError(f"{self.label}: has no mass between {low} and {high}.")
        object.__setattr__(self, "_cut", cut)

    def _quantile(self, u: Tensor) -> Tensor:
        """The quantile before the cut, shaped like u."""
        signature = self.signature("icdf")
        sigma = signature(options=self.options, u=u, sigma_data=self.sigma_data)
        return require_shape_of(signature, sigma, u, "u")

    def _cdf(self, edge: float, inside: Callable[[float, float], bool]) -> float:
        """P(inside(sigma, edge)) before the cut: bisection of the increasing inverse, to one ulp.

        Levels with a mass of their own that lie on an edge belong to the range.
        """

        def below(u: float) -> bool:
            return inside(float(self._quantile(torch.tensor(u, dtype=torch.float64))), edge)

        if not below(math.ulp(0.0)):
            return 0.0  # which bisection would reach after a thousand steps
        low, high = 0.0, 1.0
        while low < (u := (low + high) / 2) < high:
            low, high = (u, high) if below(u) else (low, u)
        return (low + high) / 2

    @property
    def cut(self) -> tuple[float, float]:
        """(P(sigma < sigma_min), P(sigma <= sigma_max)) before the cut."""
        if "_cut" not in self.__dict__ and self.takes_sigma_data and self.sigma_data is None:
            raise InputError(
                f"{self.label} asks for sigma_data: take density.with_sigma_data(...)."
            )
        cut: tuple[float, float] = self.__dict__.get("_cut") or self.bound({}).__dict__["_cut"]
        return cut

    @property
    def range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        options = {**self.defaults, **self.options}
        return options["sigma_min"], options["sigma_max"]

    @property
    def support(self) -> tuple[float, float]:
        """The lowest and the highest level that it draws: the ends of `range` or inside of them.

        They are the quantiles at the smallest and the largest u of float64 arithmetic.
        """
        u = torch.tensor([EDGE, 1 - EDGE], dtype=torch.float64)
        low, high = self.sigma(u).tolist()
        return low, high

    def sigma(self, u: Tensor) -> Tensor:
        """The quantile at u in (0, 1): maps uniforms to noise levels; float64, shaped like u."""
        low, high = self.cut
        return self._quantile(low + u.double() * (high - low)).clamp(*self.range)

    def pdf_over_log_sigma(self, sigma: Sigma) -> Tensor:
        """p(log sigma) after the cut; 0 outside [sigma_min, sigma_max]; shaped like sigma."""
        sigma = widen(sigma)
        low, high = self.cut
        sigma_min, sigma_max = self.range
        signature = self.signature("pdf")
        p = signature(options=self.options, sigma=sigma, sigma_data=self.sigma_data)
        if not isinstance(p, Tensor) or p.shape != sigma.shape:
            p = shaped_like_sigma(signature, p, sigma)
        p = p / (high - low)
        inside = (sigma >= sigma_min) & (sigma <= sigma_max)
        return torch.where(inside, p, torch.zeros_like(p))
