"""Networks whose output is a score or another prediction type, as the F of a parameterization.

The parameterization is any affine one. With q = a x0 + b eps and x = x0 + sigma eps,
x0 = (b x - sigma q)/(b - sigma a). A network that returns q is therefore a preconditioned denoiser
with

    c_skip = b/(b - sigma a),   c_out = -sigma/(b - sigma a)

and any c_in and c_noise: for the score c_skip = 1, c_out = sigma^2, which is Tweedie's formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from testbed.diffusion.parameterization import Coefficients, Parameterization
from testbed.diffusion.predictions import convert, pair_weights, prediction_type
from testbed.errors import InputError

SINGULAR = {
    "x0": (),
    "eps": (torch.inf,),
    "-eps": (torch.inf,),
    "score": (0.0, torch.inf),
    "v": (),
    "flow": (),
}
"""The limits of sigma at which a prediction type is singular, as `Parameterization.singular`."""


@dataclass(frozen=True)
class OutputScaling:
    """A scaling: c_skip and c_out of a prediction type, the rest of a parameterization."""

    parameterization: Parameterization
    output: str

    def __hash__(self) -> int:
        return hash((self.parameterization.name, self.output))

    def __call__(self, sigma: Tensor, sigma_data: float) -> Coefficients:
        """The four coefficients, float64, shaped like sigma."""
        sigma = sigma.double()
        native = self.parameterization.coefficients(sigma, sigma_data=sigma_data)
        a, b = (sign(self.output) * one for one in pair_weights(_unsigned(self.output), sigma))
        n = b - sigma * a
        return Coefficients(b / n, -sigma / n, native.in_, native.noise)


@dataclass(frozen=True)
class OutputTarget:
    """The target q = a x0 + b eps of a prediction type."""

    output: str

    def __call__(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """q, shaped like x0."""
        q, c = prediction_type(_unsigned(self.output)), sign(self.output)
        return c * (q.a(sigma) * x0 + q.b(sigma) * eps)


def sign(output: str) -> int:
    """-1 for the output "-eps", 1 for any other."""
    return -1 if output == "-eps" else 1


def _unsigned(output: str) -> str:
    """The prediction type of an output; "eps" for "-eps"."""
    return "eps" if output == "-eps" else output


def with_output(parameterization: Parameterization, output: str) -> Parameterization:
    """The parameterization whose F is a network's raw output of the prediction type `output`.

    "-eps", eps with its sign turned, is what a score network returns before its output is divided
    by sigma (Song et al. 2021, arXiv:2011.13456). c_in, c_noise, recipe and range are those of
    `parameterization`; "F" gives it back as it is.

    Raises:
        UnknownName: an unknown prediction type.
        InputError: a non-affine parameterization, which has no c_in and c_noise.
    """
    if output == "F":
        return parameterization
    p = parameterization
    if output != "-eps":
        output = prediction_type(output).name
    if not p.affine:
        raise InputError(f'{p.label} is not affine: output = "{output}" has no c_in and c_noise.')
    return Parameterization(
        name=f"{p.name}_{output.replace('-', 'minus_')}",
        scaling=OutputScaling(p, output),
        target=OutputTarget(output),
        recipe=p.recipe,
        noise_kind=p.noise_kind,
        reference=p.reference,
        sigma_range=p.sigma_range,
        singular=SINGULAR[output],
        sigma_data=p.sigma_data,
    )


class OutputAsF(nn.Module):
    """A network q(x, sigma) of another prediction type as the F of a parameterization.

    It serves a `Denoiser` whose network takes x and sigma themselves: `c_in="unit"` and
    `c_noise="sigma"`. F = a x0 + b eps, with x0 and eps those of q at x.

    Args:
        network: called as `network(x, sigma, condition)`, x (B, ...), sigma (B,).
        output: its prediction type, "x0", "eps", "score", "v" or "flow".
        parameterization: the affine parameterization whose F is returned.
        sigma_data: sqrt(E|x0|^2 / d), as for the Denoiser.

    Raises:
        UnknownName: an unknown prediction type.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        output: str,
        parameterization: Parameterization,
        sigma_data: float,
    ) -> None:
        super().__init__()
        self.network = network
        self.prediction_type = prediction_type(output).name
        self.parameterization = parameterization
        self.sigma_data = sigma_data

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """F, (B, ...), dtype of x."""
        q = self.network(x, sigma, condition).to(x.dtype)
        F, sd = self.parameterization, self.sigma_data
        return convert(q, self.prediction_type, F, x=x, sigma=sigma, sigma_data=sd)
