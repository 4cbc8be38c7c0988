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
        recipe="ddpm",
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


EQUATIONS = {
    "prediction": "eqs. 11 and 12",
    "weighting": "eq. 14 (L_simple): none in eps space",
    "loss": "eq. 14",
    "density": "eq. 14: t is uniform",
    "table": "sec. 4: T = 1000, beta from 1e-4 to 0.02 in equal steps",
    "c_in": "eq. 4: the network sees x_t = sqrt(abar_t) x",
    "c_noise": "sec. 4: t, by the sinusoidal embedding",
    "levels": "sec. 4, by eq. 4: sigma = sqrt((1 - abar)/abar)",
}


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "ddpm",
        parameterization="eps",
        table="ddpm",
        density="table",
        weighting="eps",
        loss="eps",
        c_noise="index",
        reference="Ho et al. 2020, arXiv:2006.11239",
        equations=EQUATIONS,
        sources=dict.fromkeys(EQUATIONS, testbed.Source("paper")),
        deviations=(
            "The network counts the levels from 0, as the published code does "
            "(hojonathanho/diffusion, scripts/run_cifar.py), and the paper from 1.",
            "The bundled network embeds the index by other frequencies than the paper's.",
        ),
    )
