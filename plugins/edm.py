"""EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1 and app. B.6)."""

import torch

import testbed


def scaling(sigma, sigma_data):
    r = torch.sqrt(sigma**2 + sigma_data**2)
    return testbed.Coefficients(
        skip=sigma_data**2 / r**2,
        out=sigma * sigma_data / r,
        in_=1 / r,
        noise=torch.log(sigma) / 4,
    )


def target(x0, eps, sigma, sigma_data):
    """(x0 - c_skip x)/c_out without its cancellation."""
    r = torch.sqrt(sigma**2 + sigma_data**2)
    return (sigma * x0 - sigma_data**2 * eps) / (sigma_data * r)


def weighting(sigma, sigma_data):
    """1/c_out^2, by which every level has unit loss at F = 0."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="edm",
        scaling=scaling,
        target=target,
        recipe=testbed.Recipe(density="lognormal", weighting="edm"),
        noise_kind="log_sigma",
        reference="Karras et al. 2022, arXiv:2206.00364, table 1",
        claims=("unit_target", "unit_input", "homogeneous", "boundary"),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("edm", weighting, reference="Karras et al. 2022, table 1")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("edm", testbed.squared, space="F")
