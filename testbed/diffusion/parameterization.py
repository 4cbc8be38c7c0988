"""Parameterizations: D = c_skip x + c_out F(c_in x, c_noise) at x = x0 + sigma eps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from testbed import notebook
from testbed.components.base import Component, Sigma, Takes, check_range
from testbed.components.recipe import Recipe
from testbed.components.signature import require_shape_of, shaped_like_sigma
from testbed.errors import InputError, unknown
from testbed.tensors import per_sample, widen

CHANNELS = "sigma_data_channels"
"""The quantity that target and denoise of a parameterization that is not affine may ask for."""
CLAIMS = ("unit_target", "unit_input", "homogeneous", "boundary")


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and c_noise, each shaped like sigma (Karras et al. 2022, eq. 7)."""

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor


NAMES = tuple(f"c_{field.rstrip('_')}" for field in Coefficients._fields)
"""The names of the coefficients in equations and messages."""


@dataclass(frozen=True)
class ParameterizationFields(Component):
    """The statements of a parameterization, without the algebra that follows from them.

    The constructor's `target` and `denoise` are methods of `Parameterization`, so that its fields
    for the two functions have other names, and a dataclass can have both in a base class only.

    The arguments and errors are those of `Parameterization`.
    """

    # Messages about the constructor name the class that plugins know.
    __qualname__ = "Parameterization"
    axis = "parameterization"
    functions: ClassVar = {
        "scaling": Takes(("sigma", "sigma_data"), role="scaling"),
        "stated_target": Takes(("x0", "eps", "sigma", "sigma_data", CHANNELS), role="target"),
        "stated_denoise": Takes(("F", "x", "sigma", "sigma_data", CHANNELS), role="denoise"),
    }
    scaling: Callable[..., Coefficients] | None = None
    target: InitVar[Callable[..., Tensor] | None] = None
    denoise: InitVar[Callable[..., Tensor] | None] = None
    recipe: Recipe | str | None = None
    noise_kind: str = "sigma"
    sigma_range: tuple[float, float] = (0.0, math.inf)
    singular: tuple[float, ...] = ()
    claims: tuple[str, ...] = ()
    sigma_data: float | None = None
    channels: tuple[float, ...] | None = field(default=None, kw_only=True)
    stated_target: Callable[..., Tensor] | None = field(init=False)
    stated_denoise: Callable[..., Tensor] | None = field(init=False)

    @property
    def affine(self) -> bool:
        """Whether D is affine in F with coefficients of sigma alone."""
        return self.scaling is not None

    @property
    def takes_channels(self) -> bool:
        """Whether one of its functions asks for `sigma_data_channels`."""
        return any(CHANNELS in signature.inputs for signature in self.signatures())

    def __post_init__(
        self, target: Callable[..., Tensor] | None, denoise: Callable[..., Tensor] | None
    ) -> None:
        if self.scaling is None and (target is None or denoise is None):
            raise InputError(
                f"parameterization {self.name!r} needs a scaling, or target and denoise."
            )
        if self.scaling is not None and denoise is not None:
            raise InputError(f"parameterization {self.name!r}: denoise follows from the scaling.")
        object.__setattr__(self, "stated_target", target)
        object.__setattr__(self, "stated_denoise", denoise)
        object.__setattr__(self, "singular", tuple(self.singular))
        object.__setattr__(self, "claims", tuple(self.claims))
        super().__post_init__()
        check_range(self.label, self.sigma_range)
        if self.affine and self.takes_channels:
            raise InputError(
                f"{self.label}: {CHANNELS} has a number for each channel, and a scaling is one for "
                "all of them: give target and denoise instead."
            )
        for claim in self.claims:
            if claim not in CLAIMS:
                raise InputError(f"{self.label}: {unknown('claim', claim, CLAIMS)}")
        if not set(self.singular) <= {0.0, math.inf}:
            raise InputError(
                f"{self.label}: singular = {self.singular} may hold 0.0 and math.inf only."
            )
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise InputError(f"{self.label}: sigma_data = {self.sigma_data!r} must be positive.")


class Parameterization(ParameterizationFields):
    """The meaning of a network's output: D = c_skip x + c_out F(c_in x, c_noise).

    Args:
        name: identifier, unique among parameterizations.
        scaling: `scaling(sigma[, sigma_data, options]) -> Coefficients`.
        target: the network's target in its own words, `target(x0, eps, sigma[, ...])`; when left
            out it follows from the scaling.
        denoise: `denoise(F, x, sigma[, ...])`, only for a non-affine one, which has no scaling.
        recipe: the name of the recipe with which it was published, or the recipe itself.
        noise_kind: the kind of c_noise: "sigma", "log_sigma", "time" or "index".
        reference: the paper and the equation.
        sigma_range: the open interval of noise levels where the formulas are defined.
        singular: the limits of sigma, 0.0 or math.inf, at which F* vanishes or is unbounded, or
            |c_out F*| is (eps: math.inf; score: both).
        claims: the properties that it has besides the laws: "unit_target", "unit_input",
            "homogeneous", "boundary". The conformance kit rejects a false one.
        sigma_data: the only sigma_data for which it is right, where that is hard-wired.
        channels: sqrt(E|x0|^2/d) of each channel of the data, where target and denoise ask for
            `sigma_data_channels`, which is then shaped (C, 1, ...) like a sample; see
            `with_channels`. Without it each channel has sigma_data.

    Raises:
        InputError: neither a scaling nor both target and denoise; an unknown claim; a range that
            is empty; a singular level other than 0 and infinity.
    """

    def __repr__(self) -> str:
        options = "".join(f", {key} = {value!r}" for key, value in self.options.items())
        reference = f" ({self.reference})" if self.reference else ""
        return f"<Parameterization {self.name!r}{options}{reference}>"

    def _repr_html_(self) -> str:
        """The coefficients at a few noise levels, where sigma_data is its own or 1."""
        if not self.affine:
            return notebook.table([], [["not affine: no coefficients"]], repr(self)[1:-1])
        sigma_data = self.sigma_data or 1.0
        sigma = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
        c = torch.stack([sigma, *self.coefficients(sigma, sigma_data=sigma_data)], dim=1)
        rows = [[f"{number:.4g}" for number in row] for row in c.tolist()]
        caption = f"{repr(self)[1:-1]}, at sigma_data = {sigma_data:g}"
        return notebook.table(["sigma", *NAMES], rows, caption)

    def with_channels(self, channels: Sequence[float]) -> Self:
        """This parameterization for data whose channels have these sigma_data.

        It is itself where it does not ask for them.
        """
        if not self.takes_channels:
            return self
        made = copy.copy(self)
        object.__setattr__(made, "channels", tuple(channels))
        return made

    def coefficients(self, sigma: Sigma, *, sigma_data: float | None = None) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise) at sigma.

        Args:
            sigma: noise level, any shape; a Python float is taken as float64.
            sigma_data: sqrt(E|x0|^2 / d); needed where the scaling takes it, else ignored.

        Returns:
            Four tensors shaped like sigma, float32 or wider.

        Raises:
            TypeError: the scaling takes sigma_data, and it is None.
            InputError: a non-affine parameterization (it has no coefficients); a scaling that
                raises, or returns anything but four coefficients.
        """
        if not self.affine:
            raise InputError(f"{self.label} is not affine: it has no coefficients.")
        sigma, signature = widen(sigma), self.signature("scaling")
        coefficients = signature(options=self.options, sigma=sigma, sigma_data=sigma_data)
        if not isinstance(coefficients, tuple | list) or len(coefficients) != len(NAMES):
            expected = f"testbed.Coefficients({', '.join(Coefficients._fields)})"
            raise signature.wrong(expected, coefficients)
        return Coefficients(
            *(
                shaped_like_sigma(signature, c, sigma, name)
                for name, c in zip(NAMES, coefficients, strict=True)
            )
        )

    def pair_weights(
        self, sigma: Sigma, *, sigma_data: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """(a, b) of the target F* = a x0 + b eps, float64, shaped like sigma.

        A stated target gives a = F*(1, 0) and b = F*(0, 1); without one a = (1 - c_skip)/c_out and
        b = -c_skip sigma/c_out.

        Raises:
            InputError: a non-affine parameterization.
        """
        sigma = widen(sigma).double()
        if self.stated_target is None:
            skip, out, _, _ = self.coefficients(sigma, sigma_data=sigma_data)
            return (1 - skip) / out, -skip * sigma / out
        if not self.affine:
            raise InputError(f"{self.label} is not affine: its target has no coefficients.")
        one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
        F_star, fixed = self.signature("stated_target"), {"sigma": sigma, "sigma_data": sigma_data}
        a, b = (
            require_shape_of(
                F_star, F_star(options=self.options, x0=x0, eps=eps, **fixed), x0, "x0"
            )
            for x0, eps in ((one, zero), (zero, one))
        )
        return a, b

    def target(
        self, x0: Tensor, eps: Tensor, sigma: Sigma, *, sigma_data: float | None = None
    ) -> Tensor:
        """F*(x0, eps, sigma) = a x0 + b eps, the target of the network's output.

        Args:
            x0, eps: (B, ...) clean data and unit noise.
            sigma: scalar or (B,).
            sigma_data: needed where the parameterization takes it, else ignored.

        Returns:
            (B, ...), dtype of x0.
        """
        if self.affine:
            a, b = self.pair_weights(sigma, sigma_data=sigma_data)
            return combine(a, x0, b, eps)
        return self._stated("stated_target", x0, sigma, sigma_data, x0=x0, eps=eps)

    def _stated(
        self, field: str, like: Tensor, sigma: Sigma, sigma_data: float | None, **tensors: Tensor
    ) -> Tensor:
        """The value of a stated function in float32 or wider, returned in the dtype of `like`."""
        signature = self.signature(field)
        wide = torch.promote_types(like.dtype, torch.float32)
        by_channel = None
        if CHANNELS in signature.inputs:
            by_channel = self._by_channel(like, wide, sigma_data)
        value = signature(
            options=self.options,
            sigma=per_sample(sigma, like).to(wide),
            sigma_data=sigma_data,
            sigma_data_channels=by_channel,
            **{name: tensor.to(wide) for name, tensor in tensors.items()},
        )
        return require_shape_of(signature, value, like, next(iter(tensors))).to(like.dtype)

    def _by_channel(
        self, like: Tensor, dtype: torch.dtype, sigma_data: float | None
    ) -> Tensor | None:
        """The sigma_data of each channel, shaped (C, 1, ...) like a sample (C, ...)."""
        shape = (*like.shape[1:2], *[1] * (like.ndim - 2))
        if self.channels is not None:
            return torch.tensor(self.channels, dtype=dtype, device=like.device).reshape(shape)
        if sigma_data is None:
            return None
        return torch.full(shape, sigma_data, dtype=dtype, device=like.device)

    def denoise(
        self, F: Tensor, x: Tensor, sigma: Sigma, *, sigma_data: float | None = None
    ) -> Tensor:
        """D = c_skip x + c_out F, the estimate of x0.

        Args:
            F: (B, ...) network output.
            x: (B, ...) noisy data x0 + sigma eps.
            sigma: scalar or (B,).
            sigma_data: needed where the parameterization takes it, else ignored.

        Returns:
            (B, ...), dtype of x.
        """
        if self.affine:
            c = self.coefficients(widen(sigma).double(), sigma_data=sigma_data)
            return combine(c.skip, x, c.out, F)
        return self._stated("stated_denoise", x, sigma, sigma_data, F=F, x=x)

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
