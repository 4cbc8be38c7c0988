"""v = alpha eps - s x0 (Salimans and Ho 2022, arXiv:2202.00512), mapped to x = x0 + sigma eps."""

import torch

import testbed


def scaling(sigma):
    alpha = 1 / torch.sqrt(1 + sigma**2)
    return testbed.Coefficients(skip=alpha**2, out=-sigma * alpha, in_=alpha, noise=sigma)


def target(x0, eps, sigma):
    alpha = 1 / torch.sqrt(1 + sigma**2)
    return alpha * eps - sigma * alpha * x0


def weighting(sigma):
    """|v_hat - v|^2 = (1 + sigma^2)/sigma^2 |D - x0|^2: SNR + 1."""
    return (1 + sigma**2) / sigma**2


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="v",
        scaling=scaling,
        target=target,
        recipe="progressive_v",
        noise_kind="sigma",
        reference="Salimans and Ho 2022, arXiv:2202.00512",
        claims=("boundary",),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("v", weighting, reference="Salimans and Ho 2022, sec. 4 (SNR + 1)")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("v", testbed.squared, space="v")
