"""minus_eps: the network predicts the noise with its sign turned, for A/A studies beside eps.

Everything but the sign of F is as in eps: the two train as mirror images, and a difference between
them is a fault of the comparison and not a finding.
"""

import math

import torch

import testbed


def scaling(sigma):
    return testbed.Coefficients(
        skip=torch.ones_like(sigma),
        out=sigma,
        in_=1 / torch.sqrt(sigma**2 + 1),
        noise=sigma,
    )


def target(x0, eps, sigma):
    return -eps


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="minus_eps",
        scaling=scaling,
        target=target,
        recipe="ddpm",
        noise_kind="sigma",
        reference="Ho et al. 2020, arXiv:2006.11239, with the sign of F turned",
        singular=(math.inf,),
        claims=("unit_target", "boundary"),
    )
