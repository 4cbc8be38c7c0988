"""x0: the network predicts the clean data (Ho et al. 2020, sec. 3.2; Salimans and Ho 2022)."""

import torch

import testbed


def scaling(sigma, sigma_data):
    return testbed.Coefficients(
        skip=torch.zeros_like(sigma),
        out=torch.ones_like(sigma),
        in_=1 / torch.sqrt(sigma**2 + sigma_data**2),
        noise=torch.log(sigma) / 4,
    )


def target(x0, eps, sigma):
    return x0


def weighting(sigma):
    return torch.ones_like(sigma)


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="x0",
        scaling=scaling,
        target=target,
        recipe="progressive_x0",
        noise_kind="log_sigma",
        reference="Salimans and Ho 2022, arXiv:2202.00512, sec. 4",
        claims=("unit_input",),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("x0", weighting, reference="Ho et al. 2020, sec. 3.2")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("x0", testbed.squared, space="x0")
