"""The preconditioned denoiser: one module around a raw network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from testbed import notebook
from testbed.components.base import Sigma
from testbed.diffusion import ddpm
from testbed.diffusion.inputs import C_IN, C_NOISE, InputScale
from testbed.diffusion.noise_tables import Lookup, NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.diffusion.parameterization import Coefficients, Parameterization, combine
from testbed.diffusion.predictions import convert
from testbed.errors import InputError, unknown
from testbed.tensors import per_sample, widen


def singular_at_infinity(p: Parameterization) -> str:
    """Why a parameterization has no zero terminal SNR, sigma = infinity (Lin et al. 2024, sec. 3).

    It is one that says `math.inf` among its singular levels.
    """
    return (
        f"{p.label} at sigma_max = infinity (zero terminal SNR): x is pure noise there and F "
        "says nothing of x0. Take one that is not singular at infinity, such as v, or a finite "
        "sigma_max."
    )


class Denoiser(nn.Module):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), the estimate of E[x0|x].

    Args:
        network: called as `network(x, c_noise, condition)`, x (B, ...), c_noise (B,).
        parameterization: the meaning of the network's output.
        sigma_data: sqrt(E|x0|^2 / d) of the training data, positive.
        c_in, c_noise: None or "native" for the parameterization's own, a name of `inputs.C_IN` and
            `inputs.C_NOISE`, such as "shared" for 1/sqrt(sigma^2 + sigma_data^2) and log(sigma)/4,
            or a function (sigma, sigma_data); c_noise may also be "index", the whole number of the
            level in the table.
        table: the levels of a discrete denoiser; any sigma is first replaced by the nearest.
        learned_variance: whether the network returns (B, 2C, ...), [F, nu] (see `posterior`). It
            needs a table.
        output: the prediction type of the network's output where that is not the
            parameterization's own F: "x0", "eps", "-eps", "score", "v" or "flow"
            (`outputs.with_output`).

    Raises:
        InputError: sigma_data is not positive, c_in or c_noise is none of these, an index or a
            learned variance without a table, another output with a non-affine parameterization, or
            a table that ends at infinity with one that is singular there.
        UnknownName: an unknown prediction type.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        parameterization: Parameterization,
        sigma_data: float,
        c_in: str | InputScale | None = None,
        c_noise: str | InputScale | None = None,
        table: NoiseTable | None = None,
        learned_variance: bool = False,
        output: str = "F",
    ) -> None:
        super().__init__()
        if not float(sigma_data) > 0:
            raise InputError(f"sigma_data = {sigma_data!r} must be positive.")
        if learned_variance and table is None:
            raise InputError("a learned variance is that of a step of a table: give table=....")
        parameterization = with_output(parameterization, output)
        if table is not None and table.terminal and math.inf in parameterization.singular:
            raise InputError(singular_at_infinity(parameterization))
        self.network = network
        self.learned_variance = learned_variance
        self.parameterization = parameterization
        self.sigma_data = float(sigma_data)
        # A non-affine parameterization has no coefficients of its own.
        default = None if parameterization.affine else "shared"
        self.table = table
        self._c_in = _input_scale("c_in", default if c_in is None else c_in)
        if c_noise == "index":
            if table is None:
                raise InputError('c_noise = "index" is that of a level in a table: give table=....')
            c_noise = table.c_noise
        self._c_noise = _input_scale("c_noise", default if c_noise is None else c_noise)
        # What a step of a sampler costs besides the network is twice as much otherwise.
        self._lookup: Lookup | None = None
        if table is not None and parameterization.affine:
            self._lookup = Lookup(table, self._coefficients)

    def __repr__(self) -> str:
        kind, n = type(self.network).__name__, sum(each.numel() for each in self.parameters())
        levels = f", {self.table.name} table of {len(self.table.sigmas)}" if self.table else ""
        p, sd = self.parameterization.name, self.sigma_data
        return f"<Denoiser: {p} around {kind} ({n} parameters), sigma_data = {sd:g}{levels}>"

    def _repr_html_(self) -> str:
        rows = [
            ["parameterization", repr(self.parameterization)[1:-1]],
            ["network", type(self.network).__name__],
            ["parameters", f"{sum(each.numel() for each in self.parameters()):,}"],
            ["sigma_data", f"{self.sigma_data:g}"],
            ["levels", "any sigma" if self.table is None else f"{len(self.table.sigmas)}"],
        ]
        return notebook.table([], rows, repr(self)[1:-1])

    def level(self, sigma: Sigma) -> Tensor:
        """The table's level nearest to sigma, or sigma itself; float32 or wider, like sigma."""
        sigma = widen(sigma)
        return sigma if self.table is None else self.table.quantised(sigma)

    def inputs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_in, c_noise) at sigma, float64, shaped like sigma."""
        sigma = self.level(sigma).double()
        if self._c_in is None or self._c_noise is None:
            native = self.parameterization.coefficients(sigma, sigma_data=self.sigma_data)
        c_in = native.in_ if self._c_in is None else self._c_in(sigma, self.sigma_data)
        c_noise = native.noise if self._c_noise is None else self._c_noise(sigma, self.sigma_data)
        return c_in, c_noise

    def _coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in and c_noise at levels of the table, float64, shaped like them."""
        c = self.parameterization.coefficients(sigma.double(), sigma_data=self.sigma_data)
        return Coefficients(c.skip, c.out, *self.inputs(sigma))

    def scales_as(self, other: Denoiser) -> bool:
        """Whether `inputs` of the two are the same functions."""
        mine, theirs = (
            (one.parameterization, one.sigma_data, one._c_in, one._c_noise, one.table)
            for one in (self, other)
        )
        return mine == theirs

    def output(
        self, x: Tensor, sigma: Sigma, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """F(c_in x, c_noise): the raw network output, (B, ...), dtype of x."""
        return self._halves(x, sigma, condition)[0]

    def _halves(
        self, x: Tensor, sigma: Sigma, condition: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """(F, nu), or (F, None) without a learned variance; (B, ...), dtype of x."""
        return self._answer(x, *self.inputs(widen(sigma).to(x.device)), condition)

    def _answer(
        self,
        x: Tensor,
        c_in: Tensor,
        c_noise: Tensor,
        condition: Mapping[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(F, nu) of the network at c_in x and c_noise; see `_halves`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = next(self.parameters(), None)
        dtype = x.dtype if weight is None else weight.dtype
        scaled = (per_sample(c_in, x).to(wide) * x).to(dtype)
        c_noise = c_noise.to(torch.promote_types(dtype, torch.float32)).expand(x.shape[0])
        output: Tensor = self.network(scaled, c_noise, condition).to(x.dtype)
        if not self.learned_variance:
            return output, None
        if output.shape != (len(x), 2 * x.shape[1], *x.shape[2:]):
            raise InputError(
                f"the network returned {tuple(output.shape)} for x {tuple(x.shape)}: with a "
                "learned variance it returns twice as many channels, F and nu."
            )
        F, nu = output.chunk(2, dim=1)
        return F, nu

    def forward(
        self, x: Tensor, sigma: Sigma, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """D(x, sigma), the estimate of x0.

        Args:
            x: (B, ...) = x0 + sigma eps.
            sigma: scalar or (B,), positive.
            condition: a mapping of tensors (B, ...) for the network, or None.

        Returns:
            (B, ...), dtype and device of x.
        """
        if self._lookup is None:
            F, p = self.output(x, sigma, condition), self.parameterization
            return p.denoise(F, x, self.level(sigma), sigma_data=self.sigma_data)
        wide = torch.promote_types(x.dtype, torch.float32)
        c = Coefficients(*self._lookup(widen(sigma).to(x.device), wide))
        F, _ = self._answer(x, c.in_, c.noise, condition)
        return combine(c.skip, x, c.out, F)

    def score(
        self, x: Tensor, sigma: Sigma, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """grad_x log p_sigma(x) = -eps/sigma, from F through the pair (x0, eps), not from D.

        Arguments and result as for `forward`.
        """
        sigma = self.level(sigma)
        F = self.output(x, sigma, condition)
        p = self.parameterization
        return convert(F, p, "score", x=x, sigma=sigma, sigma_data=self.sigma_data)

    def posterior(
        self,
        x: Tensor,
        sigma: Sigma,
        sigma_next: Sigma | None = None,
        condition: Mapping[str, Tensor] | None = None,
    ) -> ddpm.Normal:
        """p(x'|x) with the learned variance, in x = x_t/alpha (Nichol and Dhariwal 2021, eq. 15).

            mean = D + (sigma'/sigma)^2 (x - D),   variance = exp(v log beta + (1 - v) log beta~)

        over alpha'^2, with v = (nu + 1)/2. D and nu are those of the level nearest to sigma, while
        the step is from sigma itself. In the step to 0 beta~ takes the second step's value.

        Args:
            x, sigma, condition: as for `forward`.
            sigma_next: the level of x', scalar or (B,), below sigma; by default the table's level
                before the nearest to sigma, which is then taken for sigma, and 0 for its first.

        Returns:
            mean and variance, both (B, ...), dtype of x.

        Raises:
            NoPosterior: no learned variance.
            InputError: `sigma_next` is not in [0, sigma).
        """
        if self.table is None or not self.learned_variance:
            raise ddpm.NoPosterior
        levels = ddpm.Chain(self.table.sigmas)
        sigma = widen(sigma).double().to(x.device)
        t = self.table.index(sigma)
        if sigma_next is None:
            sigma = self.level(sigma)
            sigma_next = levels.before.to(x.device)[t]
        sigma_next = widen(sigma_next).double().to(x.device)
        if not bool(((sigma_next >= 0) & (sigma_next < sigma)).all()):
            raise InputError(
                f"sigma_next = {sigma_next}: expected from 0 to below sigma = {sigma}."
            )
        F, nu = self._halves(x, sigma, condition)
        assert nu is not None
        D = self.parameterization.denoise(F, x, self.level(sigma), sigma_data=self.sigma_data)
        low, high = ddpm.extremes(sigma, sigma_next, levels.after.to(x.device)[t])
        ratio = per_sample((sigma_next / sigma) ** 2, x).to(x.dtype)
        return ddpm.Normal(D + ratio * (x - D), ddpm.interpolated(low, high, nu))


def _input_scale(name: str, value: Any) -> InputScale | None:
    """The function that `c_in` or `c_noise` stands for; None for the parameterization's own."""
    if value is None or value == "native":
        return None
    if callable(value):
        scale: InputScale = value
        return scale
    named = C_IN if name == "c_in" else {key: one.function for key, one in C_NOISE.items()}
    if value not in named:
        known = ["native", *named]
        raise InputError(f"{name}: {unknown(name, value, known)} A function may be given too.")
    return named[value]
