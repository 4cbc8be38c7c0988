"""score: the network predicts grad log p (Song and Ermon 2019, arXiv:1907.05600)."""

import math

import torch

import testbed


def scaling(sigma):
    return testbed.Coefficients(
        skip=torch.ones_like(sigma),
        out=sigma**2,
        in_=torch.ones_like(sigma),
        noise=sigma,
    )


def target(x0, eps, sigma):
    """grad log p(x|x0) = (x0 - x)/sigma^2 without its cancellation."""
    return -eps / sigma


def weighting(sigma):
    """|s_hat - s|^2 = |D - x0|^2 / sigma^4."""
    return 1 / sigma**4


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="score",
        scaling=scaling,
        target=target,
        recipe=testbed.Recipe(density="loguniform", loss="score"),
        noise_kind="sigma",
        reference="Song and Ermon 2019, arXiv:1907.05600; Vincent 2011",
        singular=(0.0, math.inf),
        claims=("boundary",),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("score", weighting, reference="Vincent 2011 (denoising score matching)")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("score", testbed.squared, space="score")
