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
        recipe="edm",
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


EQUATIONS = {
    "prediction": "eq. 7 and table 1",
    "weighting": "table 1: (sigma^2 + sigma_data^2)/(sigma sigma_data)^2",
    "loss": "sec. 5, and eq. 8 for F",
    "density": "table 1: P_mean = -1.2, P_std = 1.2",
    "c_in": "table 1",
    "c_noise": "table 1: log(sigma)/4",
    "levels": "table 1, where they are those of sampling",
}


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "edm",
        parameterization="edm",
        density={"name": "lognormal", "mean": -1.2, "std": 1.2},
        weighting="edm",
        sigma_min=0.002,
        sigma_max=80.0,
        reference="Karras et al. 2022, arXiv:2206.00364",
        equations=EQUATIONS,
        sources=dict.fromkeys(EQUATIONS, testbed.Source("paper")),
        deviations=(
            "The paper draws from the whole log-normal distribution; the cut leaves out 0.002 % of "
            "its draws.",
            "The paper's data have sigma_data = 0.5; its P_mean and P_std are taken as they are, "
            "for data of any sigma_data.",
            "The paper's augmentation and dropout are not part of the recipe.",
        ),
    )
