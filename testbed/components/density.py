"""Densities: the distribution of noise levels that training draws from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from testbed.components.base import Component, Sigma
from testbed.components.signature import Signature, require_shape_of, shaped_like_sigma
from testbed.errors import InputError
from testbed.tensors import widen


@dataclass(frozen=True)
class Density(Component):
    """The training distribution of sigma, cut to [sigma_min, sigma_max] and renormalised.

    Args:
        icdf: `icdf(u[, options]) -> sigma`, increasing on (0, 1), before the cut.
        pdf: `pdf(sigma[, options])`, over log sigma, before the cut.
    """

    axis: ClassVar[str] = "density"
    icdf: Callable[..., Tensor]
    pdf: Callable[..., Tensor]
    reference: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def formulas(self) -> list[Signature]:
        return [
            Signature(self.label, self.icdf, ("u",), role="icdf"),
            Signature(self.label, self.pdf, ("sigma",), role="pdf"),
        ]

    @property
    def defaults(self) -> dict[str, Any]:
        return {"sigma_min": 0.002, "sigma_max": 80.0, **super().defaults}

    def bound(self, options: Mapping[str, Any]) -> Self:
        twin = super().bound(options)
        low, high = twin.options["sigma_min"], twin.options["sigma_max"]
        if not 0 < low < high:
            raise InputError(f"{self.label}: needs 0 < sigma_min < sigma_max, got {low}, {high}.")
        c = twin._cdf(low, operator.lt), twin._cdf(high, operator.le)
        if not c[0] < c[1]:
            raise InputError(f"{self.label}: has no mass between {low} and {high}.")
        object.__setattr__(twin, "_cut", c)
        return twin

    def _raw(self, u: Tensor) -> Tensor:
        formula = self.formulas()[0]
        return require_shape_of(formula, formula(options=self.options, u=u), u, "u")

    def _cdf(self, edge: float, inside: Callable[[float, float], bool]) -> float:
        """P(inside(sigma, edge)) before the cut: bisection of the increasing inverse, to one ulp.

        Levels with a mass of their own that lie on an edge belong to the range.
        """
        low, high = 0.0, 1.0
        while low < (u := (low + high) / 2) < high:
            below = inside(float(self._raw(torch.tensor(u, dtype=torch.float64))), edge)
            low, high = (u, high) if below else (low, u)
        return (low + high) / 2

    @property
    def cut(self) -> tuple[float, float]:
        """(P(sigma < sigma_min), P(sigma <= sigma_max)) before the cut."""
        found: tuple[float, float] = self.__dict__.get("_cut") or self.bound({}).__dict__["_cut"]
        return found

    def sigma(self, u: Tensor) -> Tensor:
        """The quantile at u in (0, 1): maps uniforms to noise levels; float64, shaped like u."""
        low, high = self.cut
        sigma = self._raw(low + u.double() * (high - low))
        options = {**self.defaults, **self.options}
        return sigma.clamp(options["sigma_min"], options["sigma_max"])

    def pdf_over_log_sigma(self, sigma: Sigma) -> Tensor:
        """p(log sigma) after the cut; 0 outside [sigma_min, sigma_max]; shaped like sigma."""
        sigma = widen(sigma)
        low, high = self.cut
        options = {**self.defaults, **self.options}
        formula = self.formulas()[1]
        found = formula(options=self.options, sigma=sigma)
        if not isinstance(found, Tensor) or found.shape != sigma.shape:
            found = shaped_like_sigma(formula, found, sigma)
        p = found / (high - low)
        inside = (sigma >= options["sigma_min"]) & (sigma <= options["sigma_max"])
        return torch.where(inside, p, torch.zeros_like(p))
