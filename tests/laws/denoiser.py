"""Laws of the preconditioned denoiser D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact
from helpers.strategies import Case
from laws.parameterizations import K_AFFINE, K_COEFFICIENT, TABLE
from torch import Tensor, nn

import testbed

Condition = Mapping[str, Tensor] | None


class Recorder(nn.Module):
    """A network without weights that keeps what it was given: F = tanh(y) + c_noise/8."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Condition]] = []

    def forward(self, y: Tensor, c_noise: Tensor, condition: Condition) -> Tensor:
        self.calls.append((y, c_noise, condition))
        return torch.tanh(y) + c_noise.reshape(-1, *[1] * (y.ndim - 1)).to(y.dtype) / 8


def law_denoiser_is_its_algebra(D: Callable[..., Tensor], F: Tensor, name: str, c: Case) -> None:
    """D = c_skip x + c_out F for the F that the network returned."""
    skip, out, _, _ = TABLE[name](c.S, c.SD)
    X, G = exact(c.x), exact(F)
    found = D(c.x, c.sigma)
    assert found.dtype == c.dtype
    terms = np.abs(skip * X) + np.abs(out * G)
    assert_within(found, skip * X + out * G, terms, K_AFFINE[c.dtype], c.dtype)


def law_network_sees_its_scales(d: testbed.Denoiser, c: Case, c_in: Any, c_noise: Any) -> None:
    """The network's input is c_in x, and c_noise is one number per sample, whatever sigma is."""
    network = d.network
    assert isinstance(network, Recorder)
    d(c.x, c.sigma)
    y, noise, _ = network.calls[-1]
    wanted = c_in * exact(c.x)
    # float64 coefficients, one rounding to float32, one product; x0 + sigma eps is given.
    assert_within(y, wanted, wanted, 2 + K_COEFFICIENT, c.dtype)
    assert (noise.shape, noise.dtype) == (
        c.x0.shape[:1],
        torch.promote_types(c.dtype, torch.float32),
    )
    flat = np.broadcast_to(np.reshape(c_noise, -1), len(c.x0))
    assert_within(noise, flat, flat, 1 + K_COEFFICIENT, noise.dtype)


def law_score_is_tweedie(
    score: Callable[..., Tensor], D: Callable[..., Tensor], F: Tensor, name: str, c: Case
) -> None:
    """score = (D - x)/sigma^2.

    D's own error is gamma_k (|c_skip x| + |c_out F|), and it is divided by sigma^2; the score
    comes from F through the pair, eps = (F - a x)/(b - sigma a), and its terms are no larger.
    """
    skip, out, _, _ = TABLE[name](c.S, c.SD)
    X, G = np.abs(exact(c.x)), np.abs(exact(F))
    wanted = (exact(D(c.x, c.sigma)) - exact(c.x)) / c.S**2
    terms = (np.abs(skip) * X + np.abs(out) * G + (1 - skip) * X + np.abs(out) * G) / c.S**2
    assert_within(score(c.x, c.sigma), wanted, terms, 25, c.dtype)
