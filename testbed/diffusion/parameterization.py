"""What the network is asked for: D = c_skip x + c_out F(c_in x, c_noise), x = x0 + sigma eps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from testbed.components.base import Component, Sigma, check_range
from testbed.components.signature import Signature, require_shape_of, shaped_like_sigma
from testbed.errors import InputError, unknown
from testbed.tensors import per_sample, widen

CLAIMS = ("unit_target", "unit_input", "homogeneous", "boundary")


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise, each shaped like sigma (Karras et al. 2022, eq. 7)."""

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor


NAMES = tuple(f"c_{field.rstrip('_')}" for field in Coefficients._fields)
"""What the coefficients are called in formulas and messages."""


@dataclass(frozen=True)
class Recipe:
    """What a parameterization was published with; names or `{name = ..., option = ...}` tables.

    `weighting=None` is an unweighted loss in the loss's own space. `c_in` and `c_noise` are
    "native" (the parameterization's own) or "shared".
    """

    density: str | Mapping[str, Any]
    weighting: str | Mapping[str, Any] | None = None
    loss: str | Mapping[str, Any] = "l2"
    c_in: str = "native"
    c_noise: str = "native"


@dataclass(frozen=True, init=False)
class Parameterization(Component):
    """What the network is asked for: D = c_skip x + c_out F(c_in x, c_noise).

    Args:
        name: identifier, unique among parameterizations.
        scaling: `scaling(sigma[, sigma_data, options]) -> Coefficients`.
        target: the network's target in its own words, `target(x0, eps, sigma[, ...])`; when left
            out it follows from the scaling.
        denoise: `denoise(F, x, sigma[, ...])`, only for a non-affine one, which has no scaling.
        recipe: what it was published with.
        noise_kind: what c_noise is: "sigma", "log_sigma", "time" or "index".
        reference: paper and equation.
        sigma_range: the open interval of noise levels where the formulas are defined.
        singular: the limits of sigma, 0.0 or math.inf, at which F* vanishes or is unbounded, or
            |c_out F*| is (eps: math.inf; score: both).
        claims: what holds besides the laws: "unit_target", "unit_input", "homogeneous",
            "boundary". The conformance kit rejects a false one.
        sigma_data: the only value that a hard-wired one is right for.

    Raises:
        InputError: neither a scaling nor both target and denoise; an unknown claim; a range that
            is empty; a singular level other than 0 and infinity.
    """

    axis: ClassVar[str] = "parameterization"
    scaling: Callable[..., Coefficients] | None = None
    stated_target: Callable[..., Tensor] | None = None
    stated_denoise: Callable[..., Tensor] | None = None
    recipe: Recipe | None = None
    noise_kind: str = "sigma"
    reference: str = ""
    sigma_range: tuple[float, float] = (0.0, math.inf)
    singular: tuple[float, ...] = ()
    claims: tuple[str, ...] = ()
    sigma_data: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        name: str,
        scaling: Callable[..., Coefficients] | None = None,
        target: Callable[..., Tensor] | None = None,
        denoise: Callable[..., Tensor] | None = None,
        recipe: Recipe | None = None,
        noise_kind: str = "sigma",
        reference: str = "",
        sigma_range: tuple[float, float] = (0.0, math.inf),
        singular: Sequence[float] = (),
        claims: Sequence[str] = (),
        sigma_data: float | None = None,
    ) -> None:
        if scaling is None and (target is None or denoise is None):
            raise InputError(f"parameterization {name!r} needs a scaling, or target and denoise.")
        if scaling is not None and denoise is not None:
            raise InputError(f"parameterization {name!r}: denoise follows from the scaling.")
        values: tuple[Any, ...] = (
            name,
            scaling,
            target,
            denoise,
            recipe,
            noise_kind,
            reference,
            sigma_range,
            tuple(singular),
            tuple(claims),
            sigma_data,
            {},
        )
        for f, value in zip(fields(Parameterization), values, strict=True):
            object.__setattr__(self, f.name, value)
        self.__post_init__()
        check_range(self.label, sigma_range)
        for claim in claims:
            if claim not in CLAIMS:
                raise InputError(f"{self.label}: {unknown('claim', claim, CLAIMS)}")
        if not set(singular) <= {0.0, math.inf}:
            raise InputError(f"{self.label}: singular = {singular} may hold 0.0 and math.inf only.")
        if sigma_data is not None and not 0 < sigma_data < math.inf:
            raise InputError(f"{self.label}: sigma_data = {sigma_data!r} must be positive.")

    @property
    def affine(self) -> bool:
        """Whether D is affine in F with coefficients of sigma alone."""
        return self.scaling is not None

    def _formula(self, role: str) -> Signature | None:
        function, quantities = {
            "scaling": (self.scaling, ("sigma", "sigma_data")),
            "target": (self.stated_target, ("x0", "eps", "sigma", "sigma_data")),
            "denoise": (self.stated_denoise, ("F", "x", "sigma", "sigma_data")),
        }[role]
        return function and Signature(self.label, function, quantities, role=role)

    def formulas(self) -> list[Signature]:
        found = (self._formula(role) for role in ("scaling", "target", "denoise"))
        return [formula for formula in found if formula]

    def coefficients(self, sigma: Sigma, *, sigma_data: float | None = None) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise) at sigma.

        Args:
            sigma: noise level, any shape; a Python float is taken as float64.
            sigma_data: sqrt(E|x0|^2 / d); needed where the scaling names it, else ignored.

        Returns:
            four tensors shaped like sigma, float32 or wider.

        Raises:
            TypeError: the scaling names sigma_data and none was given.
            InputError: a non-affine parameterization (it has no coefficients); a scaling that
                raises, or returns anything but four coefficients.
        """
        formula = self._formula("scaling")
        if formula is None:
            raise InputError(f"{self.label} is not affine: it has no coefficients.")
        sigma = widen(sigma)
        found = formula(options=self.options, sigma=sigma, sigma_data=sigma_data)
        if not isinstance(found, tuple | list) or len(found) != len(NAMES):
            wanted = f"testbed.Coefficients({', '.join(Coefficients._fields)})"
            raise formula.wrong(wanted, found)
        return Coefficients(
            *(
                shaped_like_sigma(formula, c, sigma, name)
                for name, c in zip(NAMES, found, strict=True)
            )
        )

    def pair_weights(
        self, sigma: Sigma, *, sigma_data: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """(a, b) of the target F* = a x0 + b eps, in float64.

        Read off the stated target where there is one (a = F*(1, 0), b = F*(0, 1)); else
        a = (1 - c_skip)/c_out, b = -c_skip sigma/c_out.
        """
        sigma = widen(sigma).double()
        stated = self._formula("target")
        if stated is None:
            skip, out, _, _ = self.coefficients(sigma, sigma_data=sigma_data)
            return (1 - skip) / out, -skip * sigma / out
        if not self.affine:
            raise InputError(f"{self.label} is not affine: its target has no coefficients.")
        one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
        a, b = (
            require_shape_of(
                stated,
                stated(options=self.options, x0=x0, eps=eps, sigma=sigma, sigma_data=sigma_data),
                x0,
                "x0",
            )
            for x0, eps in ((one, zero), (zero, one))
        )
        return a, b

    def target(
        self, x0: Tensor, eps: Tensor, sigma: Sigma, *, sigma_data: float | None = None
    ) -> Tensor:
        """F*(x0, eps, sigma) = a x0 + b eps: what the network should output.

        Args:
            x0, eps: (B, ...) clean data and unit noise.
            sigma: scalar or (B,).
            sigma_data: needed where the parameterization names it, else ignored.

        Returns:
            (B, ...), dtype of x0.
        """
        if self.affine:
            a, b = self.pair_weights(sigma, sigma_data=sigma_data)
            return combine(a, x0, b, eps)
        return self._stated("target", x0, sigma, sigma_data, x0=x0, eps=eps)

    def _stated(
        self, role: str, like: Tensor, sigma: Sigma, sigma_data: float | None, **tensors: Tensor
    ) -> Tensor:
        """The role's own function in float32 or wider, returned in the dtype of `like`."""
        formula = self._formula(role)
        assert formula is not None
        wide = torch.promote_types(like.dtype, torch.float32)
        found = formula(
            options=self.options,
            sigma=per_sample(sigma, like).to(wide),
            sigma_data=sigma_data,
            **{name: tensor.to(wide) for name, tensor in tensors.items()},
        )
        return require_shape_of(formula, found, like, next(iter(tensors))).to(like.dtype)

    def denoise(
        self, F: Tensor, x: Tensor, sigma: Sigma, *, sigma_data: float | None = None
    ) -> Tensor:
        """D = c_skip x + c_out F, the estimate of x0.

        Args:
            F: (B, ...) network output.
            x: (B, ...) noisy data x0 + sigma eps.
            sigma: scalar or (B,).
            sigma_data: needed where the parameterization names it, else ignored.

        Returns:
            (B, ...), dtype of x.
        """
        if self.affine:
            c = self.coefficients(widen(sigma).double(), sigma_data=sigma_data)
            return combine(c.skip, x, c.out, F)
        return self._stated("denoise", x, sigma, sigma_data, F=F, x=x)

    def output(
        self, D: Tensor, x: Tensor, sigma: Sigma, *, sigma_data: float | None = None
    ) -> Tensor:
        """F = (D - c_skip x)/c_out, the inverse of `denoise`.

        A non-affine parameterization takes its target at x0 = D, eps = (x - D)/sigma.
        Arguments and result as for `denoise`.
        """
        if self.affine:
            c = self.coefficients(widen(sigma).double(), sigma_data=sigma_data)
            return combine(1 / c.out, D, -c.skip / c.out, x)
        return self.target(D, (x - D) / per_sample(sigma, x), sigma, sigma_data=sigma_data).to(
            x.dtype
        )


def combine(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a x + b y with per-sample a and b; computed in float32 or wider, returned in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    a, b = per_sample(a, x).to(wide), per_sample(b, x).to(wide)
    return (a * x.to(wide) + b * y.to(wide)).to(x.dtype)
