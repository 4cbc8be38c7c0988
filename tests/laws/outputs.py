"""Laws of the three ways to bring in a network that outputs a score, and of the way back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact
from helpers.strategies import Case, draws, float64
from laws.parameterizations import TABLE
from torch import Tensor, nn

import testbed
from testbed import oracles
from testbed.audit.adapters import Adapter
from testbed.diffusion import noise_levels, outputs
from testbed.diffusion.predictions import PREDICTION_TYPES, pair_weights
from testbed.registry import default_registry

Denoise = Callable[[Tensor, Tensor], Tensor]
Way = Callable[[nn.Module, str, Any], Denoise]


class Score(nn.Module):
    """s(x, sigma) = -(x - tanh(x)/2)/(1 + sigma^2): any function of x and sigma will do."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return -(x - torch.tanh(x) / 2) / (1 + s * s)


def by_scaling(network: nn.Module, name: str, sigma_data: Any) -> Denoise:
    """The parameterization "score": D = x + sigma^2 F with c_in = 1 and c_noise = sigma."""
    return testbed.Denoiser(network, default_registry().parameterization("score"), sigma_data)


def by_wrapper(network: nn.Module, name: str, sigma_data: Any) -> Denoise:
    """The network as the F of another parameterization."""
    p = default_registry().parameterization(name)
    F = outputs.OutputAsF(network, "score", p, sigma_data)
    return testbed.Denoiser(F, p, sigma_data, c_in="unit", c_noise="sigma")


def by_flag(network: nn.Module, name: str, sigma_data: Any) -> Denoise:
    """The output of any denoiser said to be a score."""
    p = default_registry().parameterization(name)
    own = {"c_in": "unit", "c_noise": "sigma"}
    return testbed.Denoiser(network, p, sigma_data, output="score", **own)


def law_all_ways_are_tweedie(way: Way, name: str, c: Case) -> None:
    """D = x + sigma^2 s(x, sigma), and the score of the denoiser is s again.

    By way of F = a x0 + b eps the terms are those of x0 and eps, with |c_out b| <= ... taken from
    the exact coefficients of `name`; 40 roundings are more than the longest path has.
    """
    d = way(Score(), name, c.sigma_data)
    s = exact(Score()(c.x, c.sigma.to(c.dtype) if c.sigma.ndim else c.sigma.expand(len(c.x))))
    X = exact(c.x)
    x0, eps = X + c.S**2 * s, -c.S * s
    skip, _, _, _ = TABLE[name](c.S, c.SD)
    # F* = a x0 + b eps with a = (1 - c_skip)/c_out, b = -c_skip sigma/c_out; x0 itself is a sum.
    size = np.abs(1 - skip) * (np.abs(X) + np.abs(c.S**2 * s)) + np.abs(skip * c.S * eps)
    size = size + np.abs(skip * X) + np.abs(x0)
    assert_within(d(c.x, c.sigma), x0, size, 40, c.dtype)
    if isinstance(d, testbed.Denoiser):
        back = d.score(c.x, c.sigma)
        assert_within(back, s, size / c.S**2 + np.abs(s), 60, c.dtype)


def law_reading_is_the_kind(read: Callable[..., testbed.Parameterization], c: Case) -> None:
    """D of an output q of a kind is x0 of that q, with 50 digits; c_in, c_noise are the other's."""
    for output, kind in PREDICTION_TYPES.items():
        p = default_registry().parameterization("edm")
        found = read(p, output)
        q = draws(tuple(c.x.shape), 77)
        sigma = c.sigma.double()
        a, b = (np.reshape(exact(part), np.shape(c.S)) for part in (kind.a(sigma), kind.b(sigma)))
        n = b - c.S * a
        terms = np.abs(b / n * exact(c.x)) + np.abs(c.S / n * exact(q))
        wanted = b / n * exact(c.x) - c.S / n * exact(q)
        D = found.denoise(q, c.x, c.sigma, sigma_data=c.sigma_data)
        assert_within(D, wanted, terms, 32)
        ours = found.coefficients(sigma, sigma_data=c.sigma_data)
        theirs = p.coefficients(sigma, sigma_data=c.sigma_data)
        assert torch.equal(ours.in_, theirs.in_)
        assert torch.equal(ours.noise, theirs.noise)
        # What the network is to learn is the kind itself.
        own = found.pair_weights(sigma, sigma_data=c.sigma_data)
        for ours_, theirs_ in zip(own, pair_weights(output, sigma), strict=True):
            assert torch.equal(ours_, theirs_.expand_as(ours_))


def law_vp_score_is_brought_in(to_ve: Callable[..., Tensor]) -> None:
    """The exact score of x_t = alpha x, times alpha: D is the oracle's, by all three ways.

    On Gaussian data, and by the audit's adapter too.
    """
    m, L = 0.4, 0.7
    oracle = oracles.Gaussian(float64([m]), float64([[L]]))

    def foreign(x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p(x_t) of x_t ~ N(alpha m, alpha^2 L + s^2)."""
        alpha, s = noise_levels.VP.alpha(t)[:, None], noise_levels.VP.s(t)[:, None]
        return -(x_t - alpha * m) / (alpha**2 * L + s**2)

    class Brought(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
            x_t, t = noise_levels.VP.from_ve(x, sigma)
            return to_ve(foreign(x_t, t), t)

    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    x = m + torch.sqrt(L + sigma**2)[:, None] * draws((9, 1), 5)
    wanted = exact(oracle.denoise(x, sigma))
    size = exact(x.abs() + m)
    # t has some 20 roundings, conditioned by int beta; alpha and s have those again.
    k = 64 * (1 + float(torch.log1p(sigma**2).max()))
    for way in (by_scaling, by_wrapper, by_flag):
        assert_within(way(Brought(), "v", 0.5)(x, sigma), wanted, 4 * size, k)
    if to_ve is noise_levels.VP.score_to_ve:
        adapted = Adapter(prediction_type="score", schedule="vp", time_argument="time")(foreign)
        assert_within(adapted(x, sigma), wanted, 4 * size, k)
