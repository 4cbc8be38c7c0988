"""TrigFlow (Lu and Song 2024, arXiv:2410.11081, sec. 3), mapped to x = x0 + sigma eps.

There x_t = cos(t) x0 + sin(t) z with z = sigma_data eps and D = cos(t) x_t - sin(t) sigma_data F of
the input x_t/sigma_data. So tan(t) = sigma/sigma_data, x_t = cos(t) x, and with
r = sqrt(sigma^2 + sigma_data^2), cos(t) = sigma_data/r and sin(t) = sigma/r:

    D = cos(t)^2 x - sin(t) sigma_data F(x/r).

These are EDM's coefficients but for the sign of c_out: F is minus EDM's at every sigma_data (and v
at sigma_data = 1), so that with equal c_noise and density the two have equal objectives. What
differs is the network's time. It is t in the paper; here c_noise = 2t/pi, so that 0 is data and 1
noise as in every "time".
"""

import math

import torch

import testbed


def scaling(sigma, sigma_data):
    r = torch.sqrt(sigma**2 + sigma_data**2)
    cos, sin = sigma_data / r, sigma / r
    return testbed.Coefficients(
        skip=cos**2,
        out=-sin * sigma_data,
        in_=1 / r,
        noise=torch.atan(sigma / sigma_data) * (2 / math.pi),
    )


def target(x0, eps, sigma, sigma_data):
    """v_t/sigma_data with the velocity v_t = dx_t/dt = cos(t) z - sin(t) x0."""
    r = torch.sqrt(sigma**2 + sigma_data**2)
    cos, sin = sigma_data / r, sigma / r
    return cos * eps - sin * x0 / sigma_data


def weighting(sigma, sigma_data):
    """|sigma_data F - v_t|^2 = |D - x0|^2 / sin(t)^2."""
    return 1 + (sigma_data / sigma) ** 2


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="trigflow",
        scaling=scaling,
        target=target,
        recipe="trigflow",
        noise_kind="time",
        reference="Lu and Song 2024, arXiv:2410.11081, sec. 3",
        claims=("unit_target", "unit_input", "homogeneous", "boundary"),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("trigflow", weighting, reference="Lu and Song 2024, sec. 3")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("trigflow", testbed.squared, space="F")


EQUATIONS = {
    "prediction": "sec. 3: sigma_data F is the velocity",
    "weighting": "eq. 4: none in the space of sigma_data F",
    "loss": "eq. 4",
    "density": "sec. 4.2: log(sigma_data tan t) is normal; table 4: P_mean = -0.8, P_std = 1.6",
    "c_in": "sec. 3: x_t/sigma_data",
    "c_noise": "sec. 4.1: t",
}


@testbed.hookimpl
def testbed_recipes():
    # t = arctan(exp(tau)/sigma_data), tau ~ N(P_mean, P_std^2): then exp(tau) is sigma.
    yield testbed.Recipe(
        "trigflow",
        parameterization="trigflow",
        density={"name": "lognormal", "mean": -0.8, "std": 1.6},
        weighting="trigflow",
        reference="Lu and Song 2024, arXiv:2410.11081",
        equations={**EQUATIONS, "levels": "all"},
        sources=dict.fromkeys(EQUATIONS, testbed.Source("paper"))
        | {"levels": testbed.Source("here")},
        deviations=(
            "P_mean and P_std are those of the paper's diffusion models of ImageNet-64; of the "
            "latents of ImageNet-512 they are -0.4 and 1.0 (table 5).",
            "The paper learns a further weight for each t (app. D), which is left out here.",
            "c_noise is 2t/pi, so that it is 0 for data and 1 for noise.",
            "sigma is cut to 0.002 and 80, which leaves out 0.1 % of the draws.",
        ),
    )
