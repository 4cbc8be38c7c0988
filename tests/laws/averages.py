"""Laws of averages of any length, each with outside truth: quadrature, and a sum over all steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import integrate

from testbed.training.averages import Profile, inner_products, stored
from testbed.training.rates import exponent

Array = NDArray[np.float64]
Inner = Callable[[Sequence[Profile], Sequence[Profile]], Array]
Coefficients = Callable[[Sequence[Profile], Profile], Array]
EPS = float(np.finfo(np.float64).eps)
STEPS = 400
WANTED = [Profile(STEPS, width) for width in (0.03, 0.07, 0.15, 0.2)]


def profile(t: float, one: Profile) -> float:
    """(gamma + 1) t^gamma / n^(gamma + 1) up to n, and 0 beyond."""
    g = exponent(one.width)
    return (g + 1) * (t / one.step) ** g / one.step if t <= one.step else 0.0


def directly(weights: torch.Tensor, one: Profile) -> torch.Tensor:
    """The average of the weights (n, P) after each step, by the integral of the profile, float64.

    The weights after step j stand for the times from j - 1 to j.
    """
    edges = (torch.arange(one.step + 1, dtype=torch.float64) / one.step) ** (
        exponent(one.width) + 1
    )
    return edges.diff() @ weights[: one.step].double()


def allowance(kept: Sequence[Profile], wanted: Profile, x: Array, weights: torch.Tensor) -> float:
    """How far sum_i x_i a_i may be from the wanted average, by the profiles alone.

    It is int (sum x_i p_i - p)(w - c) dt for any c, as both profiles have integral 1: at most the
    distance of the profiles times the norm of w - c (Cauchy and Schwarz), with c the mean of w. The
    sums add n roundings of the largest weight for each coefficient.
    """
    grid = (np.arange(200 * wanted.step) + 0.5) / 200
    found = sum(
        factor * np.array(profile_on(grid, one)) for factor, one in zip(x, kept, strict=True)
    )
    distance = math.sqrt(float(np.mean((found - profile_on(grid, wanted)) ** 2)) * wanted.step)
    spread = float((weights - weights.mean(0)).square().sum(0).max().sqrt())
    rounding = len(weights) * EPS * (1 + float(np.abs(x).sum())) * float(weights.abs().max())
    return distance * spread + rounding


def profile_on(grid: Array, one: Profile) -> Array:
    """The profile at the times of a grid."""
    g = exponent(one.width)
    values: Array = np.where(grid <= one.step, (g + 1) * (grid / one.step) ** g / one.step, 0.0)
    return values


def law_inner_products(inner: Inner) -> None:
    """The inner product of two profiles is the integral of their product, by quadrature."""
    profiles = [Profile(n, width) for n in (3, 40, 100) for width in (0.02, 0.05, 0.1, 0.25)]
    found = inner(profiles, profiles)
    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles):
            end = float(min(a.step, b.step))
            value, error = integrate.quad(
                lambda t, a=a, b=b: profile(t, a) * profile(t, b), 0, end, epsabs=0, epsrel=1e-10
            )
            # A power's relative error is its exponent's number of roundings of the base.
            powers = exponent(a.width) + exponent(b.width)
            assert abs(found[i, j] - value) <= error + 4 * powers * EPS * value


def law_reconstruction(coefficients: Coefficients) -> None:
    """Averages of a random trajectory far from 0 are rebuilt as the profiles' distance allows."""
    generator = torch.Generator().manual_seed(0)
    weights = 100 + torch.randn(STEPS, 64, generator=generator, dtype=torch.float64)
    kept = stored(STEPS)
    averages = np.stack([directly(weights, one).numpy() for one in kept])
    for wanted in WANTED:
        x = coefficients(kept, wanted)
        off = np.abs(x @ averages - directly(weights, wanted).numpy()).max()
        best = least(kept, wanted)
        assert off <= allowance(kept, wanted, best, weights)


def least(kept: Sequence[Profile], wanted: Profile) -> Array:
    """The x with sum x = 1 and the least distance, by projection on what sums to 0."""
    gram, right = inner_products(kept, kept), inner_products(kept, [wanted])[:, 0]
    n = len(kept)
    start = np.eye(n)[-1]
    basis = np.vstack([np.eye(n - 1), -np.ones(n - 1)])
    z = np.linalg.lstsq(basis.T @ gram @ basis, basis.T @ (right - gram @ start), rcond=None)[0]
    found: Array = start + basis @ z
    return found


def law_least(coefficients: Coefficients) -> None:
    """No other sum with the same total is nearer to the wanted profile."""
    kept = stored(100)
    gram = inner_products(kept, kept)
    rng = np.random.default_rng(0)
    for width in (0.03, 0.07, 0.2):
        wanted = Profile(100, width)
        right = inner_products(kept, [wanted])[:, 0]
        norm = float(inner_products([wanted], [wanted])[0, 0])

        def square(x: Array, right: Array = right, norm: float = norm) -> float:
            return float(x @ gram @ x - 2 * x @ right) + norm

        x = coefficients(kept, wanted)
        assert abs(x.sum() - 1) <= 1e3 * EPS * np.abs(x).sum()
        # The three terms round like their sum of absolute values.
        size = np.abs(x) @ gram @ np.abs(x) + 2 * np.abs(x) @ right + norm
        rounding = 4 * len(x) * EPS * size
        for _ in range(50):
            step = rng.normal(size=len(x))
            step -= step.mean()
            for scale in (1e-3, 1e-1):
                assert square(x) <= square(x + scale * step) + rounding
        assert square(x) <= square(np.eye(len(x))[-1]) + rounding
