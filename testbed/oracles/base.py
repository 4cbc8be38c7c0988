"""The interface of an oracle: exact answers about x0 given x = x0 + sigma eps."""

import copy
import math
from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """A number and its error: float64 tensors of one shape."""

    value: Tensor
    error: Tensor

    def __float__(self) -> float:
        return float(self.value)


class Oracle(ABC):
    """A distribution p(x0) with exact answers under x = x0 + sigma eps, eps ~ N(0, I).

    Shapes, the same for every method: x (B, *any) floating point, with d = `dim` numbers per
    sample; sigma > 0 a float, a 0-d tensor or (B,). Everything is computed in float64 in log
    space, where neither TF32, nor autocast, nor `set_float32_matmul_precision` applies; results
    have the dtype and the device of x, and autograd differentiates them with respect to x.

    Every method raises ValueError for a wrong shape, dtype or device, or a sigma that is not
    positive.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self.dim = math.prod(shape)

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D = E[x0|x], shaped like x."""

    @abstractmethod
    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """grad_x log p_sigma(x), shaped like x; taken as a residual, never as (D - x)/sigma^2."""

    @abstractmethod
    def covariance(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Cov[x0|x] = sigma^2 dD/dx, (B, d, d)."""

    @abstractmethod
    def covariance_trace(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """tr Cov[x0|x] = E|x0 - D|^2 given x, (B,), without the matrix."""

    @abstractmethod
    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p_sigma(x) in nats, (B,)."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x0, (n, *shape) float64, made on the generator's device and then moved."""

    def mapped(self, A: Tensor) -> "Oracle":
        """The distribution of A x0 for A (d, d), of x0 in one row; float64.

        Raises:
            NotImplementedError: the oracle has no such map.
        """
        raise NotImplementedError(f"{type(self).__name__}: no linear map of it is known.")

    def mmse(
        self,
        sigma: float | Tensor,
        *,
        draws: int = 4096,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """The irreducible loss per dimension, E|x0 - D|^2/d = E[tr Cov[x0|x]]/d.

        It is a Monte Carlo estimate over `draws` of (x0, eps), the same ones at every sigma, from
        `generator`, by default one with a fixed seed. The error is one standard error plus
        rounding.

        Args:
            sigma: any shape, which value and error take.
            draws: the number of draws, at least 2.
            generator: the generator of the draws.
        """
        if draws < 2:
            raise ValueError(f"draws: got {draws}, expected at least 2")
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        x0 = self.sample(draws, generator).reshape(draws, self.dim)
        eps = normal(x0.shape, generator, self.device)
        levels = self._levels(sigma)
        loss = torch.stack(
            [self.covariance_trace(x0 + s * eps, s) / self.dim for s in levels.reshape(-1)]
        )
        value = loss.mean(1)
        error = loss.std(1) / math.sqrt(draws) + gamma(self.dim + 8) * value
        return Estimate(value.reshape(levels.shape), error.reshape(levels.shape))

    def to(self, device: torch.device | str) -> Self:
        """A copy of this oracle on the device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    @property
    def device(self) -> torch.device:
        """The device of the oracle's tensors."""
        return next(value.device for value in vars(self).values() if isinstance(value, Tensor))

    def _levels(self, sigma: float | Tensor) -> Tensor:
        return self._checked(sigma)[0]

    def _checked(self, sigma: float | Tensor) -> tuple[Tensor, bool]:
        """Sigma in float64, and whether it is one number throughout."""
        levels = torch.as_tensor(sigma, dtype=torch.float64, device=self.device)
        # With a NaN among them both ends are NaN.
        low, high = map(float, levels.detach().aminmax()) if levels.numel() else (math.nan,) * 2
        if not (low > 0 and high < math.inf):
            bad = levels[~((levels > 0) & levels.isfinite())].reshape(-1)[:1].tolist()
            found = f"{bad[0]:g}" if bad else "none"
            raise ValueError(f"sigma: got {found}, expected positive finite numbers")
        return levels, low == high

    def _prepare(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """x as (B, d), and sigma as (B, 1), or as (1, 1) where it is one for all; both float64."""
        if not x.is_floating_point() or x.device != self.device:
            raise ValueError(
                f"x: got {x.dtype} on {x.device}, expected floating point on {self.device}"
            )
        if x.ndim == 0 or math.prod(x.shape[1:]) != self.dim:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (B, {', '.join(map(str, self.shape))})"
                f" or another with {self.dim} numbers per sample"
            )
        batch = x.shape[0]
        if isinstance(sigma, Tensor) and sigma.shape not in {(), (batch,)}:
            raise ValueError(
                f"sigma: got shape {tuple(sigma.shape)}, expected () or ({batch},), one per sample"
            )
        if batch == 0:
            return x.reshape(0, self.dim).double(), x.new_ones((0, 1), dtype=torch.float64)
        levels, one = self._checked(sigma)
        if one and not levels.requires_grad:
            levels = levels.reshape(-1)[:1]
        return x.reshape(batch, self.dim).double(), levels.reshape(-1, 1)


def gamma(k: int) -> float:
    """gamma_k = k u/(1 - k u), u = 2^-53: the relative error of k float64 operations (Higham)."""
    u = 2.0**-53
    return k * u / (1 - k * u)


def normal(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Unit Gaussian float64 draws, which do not depend on the device they are moved to."""
    draws = torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)
    return draws.to(device)


def finite(name: str, value: Tensor, ndim: int) -> Tensor:
    """A float64 copy of the parameter, off the graph; ValueError if not finite or of low rank."""
    if value.ndim < ndim or value.numel() == 0 or not bool(value.isfinite().all()):
        raise ValueError(
            f"{name}: got shape {tuple(value.shape)}, expected at least {ndim} dimension(s), not "
            "empty, finite numbers only"
        )
    return value.detach().to(torch.float64, copy=True)


def eigenbasis(name: str, S: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """S = Q diag(L) Q^T for positive semidefinite S (..., d, d): L (..., d), Q (..., d, d).

    S may have been computed in float32, so that asymmetry and negative eigenvalues up to
    d 2^-23 |S| are accepted; eigenvalues that float64 cannot tell from 0, below d 2^-52 |S|,
    become 0.

    Raises:
        ValueError: another shape, numbers that are not finite, or an S that is not symmetric or not
            positive semidefinite.
    """
    if S.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(S.shape)}, expected {shape}")
    S = finite(name, S, 2)
    d, scale = shape[-1], S.abs().amax((-2, -1))
    if bool(((S - S.mT).abs().amax((-2, -1)) > d * 2.0**-23 * scale).any()):
        raise ValueError(f"{name}: got an asymmetric matrix, expected a symmetric one")
    L, Q = torch.linalg.eigh((S + S.mT) / 2)
    if bool((L[..., 0] < -d * 2.0**-23 * scale).any()):
        raise ValueError(
            f"{name}: got an eigenvalue {float(L.min()):.3g}, expected positive semidefinite"
        )
    return torch.where(d * 2.0**-52 * scale[..., None] < L, L, 0.0), Q
