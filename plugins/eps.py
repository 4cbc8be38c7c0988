"""eps: the network predicts the noise (Ho et al. 2020, arXiv:2006.11239, eq. 14)."""

import math

import torch

import testbed


def scaling(sigma):
    return testbed.Coefficients(
        skip=torch.ones_like(sigma),
        out=-sigma,
        in_=1 / torch.sqrt(sigma**2 + 1),
        noise=sigma,
    )


def target(x0, eps, sigma):
    return eps


def weighting(sigma):
    """|eps_hat - eps|^2 = |D - x0|^2 / sigma^2."""
    return 1 / sigma**2


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="eps",
        scaling=scaling,
        target=target,
        recipe=testbed.Recipe(density="ddpm", weighting="eps"),
        noise_kind="sigma",
        reference="Ho et al. 2020, arXiv:2006.11239",
        singular=(math.inf,),
        claims=("unit_target", "boundary"),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("eps", weighting, reference="Ho et al. 2020, eq. 14 (L_simple)")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("eps", testbed.squared, space="eps")
