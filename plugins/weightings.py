"""Named weightings lambda(sigma) of |D - x0|^2, with SNR = 1/sigma^2."""

from typing import Annotated

import torch

import testbed

Finite = Annotated[float, testbed.Limits()]
Positive = Annotated[float, testbed.Limits(above=0)]
NotNegative = Annotated[float, testbed.Limits(least=0)]


def unit(sigma):
    return torch.ones_like(sigma)


def min_snr(sigma, gamma: Positive = 5.0):
    """min(SNR, gamma)."""
    return (1 / sigma**2).clamp(max=gamma)


def soft_min_snr(sigma, gamma: Positive = 5.0):
    """1/(sigma^2 + 1/gamma): min_snr with the corner rounded."""
    return 1 / (sigma**2 + 1 / gamma)


def truncated_snr(sigma):
    """max(SNR, 1)."""
    return (1 / sigma**2).clamp(min=1)


def p2(sigma, k: NotNegative = 1.0, g: Finite = 1.0):
    """SNR/(k + SNR)^g = sigma^(2g - 2)/(1 + k sigma^2)^g, without forming the SNR."""
    return sigma ** (2 * g - 2) / (1 + k * sigma**2) ** g


def sigmoid(sigma, p, b: Finite = 0.0):
    """SNR sigmoid(b - log SNR)/p(log sigma); b - log SNR = b + 2 log sigma.

    The literature states the effective weight per d log SNR; division by the density gives lambda.
    It is zero where the density has no mass.
    """
    effective = torch.sigmoid(b + 2 * torch.log(sigma)) / sigma**2
    return torch.where(p > 0, effective / p, torch.zeros_like(p))


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("unit", unit)
    yield testbed.Weighting("min_snr", min_snr, reference="Hang et al. 2023, arXiv:2303.09556")
    yield testbed.Weighting("soft_min_snr", soft_min_snr, reference="Crowson et al. 2024")
    yield testbed.Weighting(
        "truncated_snr", truncated_snr, reference="Salimans and Ho 2022, sec. 4"
    )
    yield testbed.Weighting("p2", p2, reference="Choi et al. 2022, arXiv:2204.00227")
    yield testbed.Weighting(
        "sigmoid", sigmoid, reference="Kingma and Gao 2023; Hoogeboom et al. 2024"
    )
