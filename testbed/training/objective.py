"""The one loss rule: per sample, mean over dimensions of k(sigma) m(q_hat, q)."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.components.loss import Loss
from testbed.components.weighting import Weighting
from testbed.diffusion.correlated import WHITE, Noise
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import convert, from_pair, pair_weights, slope
from testbed.errors import InputError
from testbed.random import seeded, stream
from testbed.tensors import per_sample
from testbed.training.variational import Variational


class Terms(NamedTuple):
    """The coefficients of an affine parameterization's loss, float32, each shaped like sigma.

    F* = a x0 + b eps is the network's target, q = a_q x0 + b_q eps the loss's; q_hat - q =
    gain (F - F*). For l2 the loss is k gain^2 mean |F - F*|^2.
    """

    k: Tensor
    gain: Tensor
    a: Tensor
    b: Tensor
    a_q: Tensor
    b_q: Tensor


@dataclass(frozen=True)
class Objective:
    """k(sigma) m(q_hat, q) with k = lambda B_q^2, or k = 1 without a weighting; B_q = |dD/dq|.

    With a weighting l2 is lambda |D - x0|^2 whatever the space; without one l2 in space q is
    |q_hat - q|^2. A learned weighting's penalty is added to it.

    Args:
        sigma_data: sqrt(E|x0|^2 / d) of the training data; a density that asks for it gets it.
        states: the modules that the weighting and the loss train, under "weighting" and "loss";
            `with_states` builds them.
        table: the levels of a discrete denoiser; every sigma of training is replaced by the nearest
            before anything is computed from it.
        noise: the noise in x, and whether the target has it too.
        vlb: the factor on L_vlb, which is added for a network whose output is [F, nu] and moves nu
            alone (Nichol and Dhariwal 2021, arXiv:2102.09672, sec. 3.1); None for no such term.
    """

    parameterization: Parameterization
    weighting: Weighting | None
    loss: Loss
    density: Density
    sigma_data: float
    states: nn.ModuleDict | None = None
    table: NoiseTable | None = None
    noise: Noise = WHITE
    vlb: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", self.density.with_sigma_data(self.sigma_data))

    def with_states(self, seed: int) -> Self:
        """This objective with new states drawn from `seed`, or itself where nothing has a state."""
        with seeded(seed):
            states = {
                part.axis: state
                for part in (self.weighting, self.loss)
                if part is not None and (state := part.build()) is not None
            }
        return replace(self, states=nn.ModuleDict(states)) if states else self

    def sigma(self, u: Tensor) -> Tensor:
        """The noise level of each u in (0, 1), the nearest of the table; float64, like u."""
        sigma = self.density.sigma(u)
        return sigma if self.table is None else self.table.quantised(sigma)

    def _state(self, axis: str) -> nn.Module | None:
        return self.states[axis] if self.states is not None and axis in self.states else None

    @property
    def fixed(self) -> bool:
        """Whether the terms are functions of sigma alone, the same at every step."""
        learned = self.weighting is not None and self.weighting.state is not None
        return self.parameterization.affine and not learned

    @property
    def space(self) -> str | Parameterization:
        """The prediction type in which the loss is taken."""
        return self.parameterization if self.loss.space == "F" else self.loss.space

    def k(self, sigma: Tensor) -> Tensor:
        """The factor on m(q_hat, q), float64, shaped like sigma."""
        sigma = sigma.double()
        if self.weighting is None:
            return torch.ones_like(sigma)
        weight = self.weighting(
            sigma,
            sigma_data=self.sigma_data,
            density=self.density,
            state=self._state("weighting"),
        )
        return weight / slope(self.space, sigma, self.sigma_data) ** 2

    def effective_weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) p(log sigma) of |D - x0|^2, float64, shaped like sigma.

        It is what a trial with l2 optimises. A learned weighting enters in its present state.
        """
        sigma = sigma.double()
        with torch.no_grad():
            weight = self.k(sigma) * slope(self.space, sigma, self.sigma_data) ** 2
        return weight * self.density.pdf_over_log_sigma(sigma)

    def terms(self, sigma: Tensor) -> Terms:
        """The loss's coefficients at sigma, float32, computed in float64.

        Raises:
            InputError: a non-affine parameterization.
        """
        p, sigma = self.parameterization, sigma.double()
        out = p.coefficients(sigma, sigma_data=self.sigma_data).out
        gain, k = out * slope(self.space, sigma, self.sigma_data), self.k(sigma)
        if self.loss.quadratic:
            # As one factor: k and gain^2 may each overflow float32 where their product does not.
            gain, k = torch.ones_like(gain), k * gain**2
        a, b = p.pair_weights(sigma, sigma_data=self.sigma_data)
        # l2 is computed from F itself, whatever the space.
        a_q, b_q = (
            (a, b) if self.loss.quadratic else pair_weights(self.space, sigma, self.sigma_data)
        )
        return Terms(*(term.float() for term in (k, gain, a, b, a_q, b_q)))

    def __call__(
        self, F: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor, terms: Terms | None = None
    ) -> Tensor:
        """The loss per sample, (B,).

        For an affine parameterization it is computed from F, q_hat = q + gain (F - F*): D - x0 in a
        narrow dtype would lose its digits at small sigma.

        Args:
            F: (B, ...) network output at x = x0 + sigma eps; with `vlb` (B, 2C, ...).
            x0, eps: (B, ...) clean data and the target's noise.
            sigma: (B,).
            terms: `self.terms(sigma)`, where it is already at hand.
        """
        if self.vlb is not None:
            F, nu = F.chunk(2, dim=1)
        loss = self._discrepancy(F, x0, eps, sigma, terms)
        if self.weighting is not None:
            loss = loss + self.weighting.penalty_at(sigma, self._state("weighting"))
        if self.vlb is not None:
            loss = loss + self.vlb * self.variational(F, nu, x0, eps, sigma)
        return loss

    @property
    def levels(self) -> Tensor:
        """The levels of the table within the density's range, ascending, (n,) float64.

        Raises:
            InputError: no table.
        """
        if self.table is None:
            raise InputError("a learned variance is that of a step of a table: name one.")
        s, (sigma_min, sigma_max) = self.table.sigmas, self.density.range
        return s[(s >= sigma_min) & (s <= sigma_max)]

    @functools.cached_property
    def variational(self) -> Variational:
        """L_vlb over the levels of training.

        Raises:
            InputError: no table, fewer than two of its levels, or a non-affine parameterization.
        """
        return Variational(self.parameterization, self.levels, self.sigma_data)

    def _discrepancy(
        self, F: Tensor, x0: Tensor, eps: Tensor, sigma: Tensor, terms: Terms | None
    ) -> Tensor:
        """k m(q_hat, q), mean over dimensions, (B,)."""
        p = self.parameterization
        if p.affine:
            terms = terms or self.terms(sigma)
            k, a, b = (per_sample(term, x0).to(F.dtype) for term in (terms.k, terms.a, terms.b))
            residual = F - (a * x0 + b * eps)
            if self.loss.quadratic:
                return (k * residual.square()).flatten(1).mean(1)
            gain, a_q, b_q = (
                per_sample(term, x0).to(F.dtype) for term in (terms.gain, terms.a_q, terms.b_q)
            )
            q = a_q * x0 + b_q * eps
            q_hat = q + gain * residual
        else:
            k = per_sample(self.k(sigma).to(F.dtype), x0)
            x = x0 + per_sample(sigma, x0).to(x0.dtype) * eps
            q = from_pair(x0, eps, self.space, sigma=sigma, sigma_data=self.sigma_data)
            q_hat = convert(F, p, self.space, x=x, sigma=sigma, sigma_data=self.sigma_data)
        return (k * self.loss(q_hat, q, self._state("loss"))).flatten(1).mean(1)

    def scale(self, data: Data, draws: int = 8192) -> float:
        """The expected loss at F = 0 without L_vlb, by which a trial's loss is divided.

        Gradient clipping and Adam's epsilon depend on the scale of a loss. The draws are stratified
        in u, with data and noise from a stream that nothing else uses: the number is the same for
        every seed.

        Raises:
            InputError: the loss at F = 0 is zero or not finite.
        """
        generator = stream(0, "scale")
        index = torch.randint(len(data.train), (draws,), generator=generator)
        x0 = data.train[index].double()
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        _, target_noise = self.noise.pair(eps, data.shape, generator)
        u = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
        # A copy, because a loss may change its state at every call.
        fresh = replace(self, states=copy.deepcopy(self.states), vlb=None)
        with torch.no_grad():
            loss = float(fresh(torch.zeros_like(x0), x0, target_noise, self.sigma(u)).mean())
        if not 0 < loss < float("inf"):
            raise InputError(f"the loss at F = 0 is {loss}: the objective cannot be scaled by it.")
        return loss
