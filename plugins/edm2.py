"""EDM2's learned weighting (Karras et al. 2024, arXiv:2312.02696, eqs. 14-16 and 21).

    loss = lambda_EDM(sigma) exp(-u(sigma)) |D - x0|^2/d + u(sigma)

is smallest over u at u = log E[lambda_EDM |D - x0|^2/d]: every level then has unit weighted loss.

As in the paper, u is linear in random Fourier features of c_noise = log(sigma)/4. Unlike in the
paper, the weights start at zero, so that training starts as EDM's, and they are not normalised,
since a normalised vector cannot be zero.
"""

import math

import torch

import testbed


class LogVariance(torch.nn.Module):
    """u(sigma) = w . sqrt(2) cos(2 pi (f log(sigma)/4 + phi)), f ~ N(0, 1), phi ~ U(0, 1)."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("f", torch.randn(features))
        self.register_buffer("phi", torch.rand(features))
        self.w = torch.nn.Parameter(torch.zeros(features))

    def forward(self, sigma):
        c_noise = (torch.log(sigma) / 4).to(self.w.dtype)
        waves = torch.cos(2 * math.pi * (c_noise[..., None] * self.f + self.phi))
        return math.sqrt(2) * waves @ self.w


def log_variance(features=128):
    return LogVariance(features)


def weighting(sigma, sigma_data, state):
    edm = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return edm * torch.exp(-state(sigma))


def penalty(sigma, state):
    return state(sigma)


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting(
        "edm2",
        weighting,
        state=log_variance,
        penalty=penalty,
        reference="Karras et al. 2024, arXiv:2312.02696, eqs. 14-16 and 21",
    )
