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
        recipe="ve",
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


NCSN = {
    "prediction": "eq. 5: s(x, sigma), the score itself",
    "weighting": "eq. 6 with lambda = sigma^2 (sec. 4.2): sigma^2 |s + eps/sigma|^2",
    "loss": "eq. 5",
    "density": "eq. 6: the mean over the levels",
    "table": "sec. 5: 10 levels in a geometric sequence",
    "c_in": "eq. 5: the network sees x",
    "c_noise": "app. A.1: the index, by conditional instance normalisation",
    "levels": "sec. 5: from 1 to 0.01 for data in [0, 1]",
}
SDE = "yang-song/score_sde_pytorch"
VE = {
    "prediction": "eq. 7: the score",
    "weighting": "sec. 3.3: lambda = sigma^2 in eq. 7, |sigma s + eps|^2",
    "loss": "eq. 7",
    "density": "eq. 7 and app. C: sigma = sigma_min (sigma_max/sigma_min)^t, t uniform",
    "c_in": "eq. 7: the network sees x",
}
VE_CODE = {
    "output": "its network divides what it returns by sigma, so that F = -eps",
    "c_noise": "its network: log sigma, by random Fourier features (app. H.2)",
    "levels": "from 0.01 (app. C) to 50 on CIFAR-10, for data in [0, 1]",
}


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "ncsn",
        parameterization="score",
        table={
            "name": "geometric",
            "n": 10,
            "low": "0.04 * sigma_data",
            "high": "4 * sigma_data",
        },
        density="table",
        weighting="eps",
        loss="score",
        c_noise="index",
        reference="Song and Ermon 2019, arXiv:1907.05600",
        equations=NCSN,
        sources=dict.fromkeys(NCSN, testbed.Source("paper")),
        deviations=(
            "The paper's levels are for pixels in [0, 1]; scaled to [-1, 1], where their "
            "sigma_data is 0.5, they are 2 and 0.02, that is 4 and 0.04 times sigma_data.",
            "The paper orders the levels from the highest to the lowest, and here the index rises "
            "with sigma.",
            "The bundled network embeds the index by waves, and the paper has a set of "
            "normalisation weights for each level.",
        ),
    )
    yield testbed.Recipe(
        "ve",
        parameterization="score",
        density={"name": "loguniform", "low": "0.04 * sigma_data", "high": "200 * sigma_data"},
        weighting="eps",
        loss="score",
        c_noise="log_sigma",
        output="-eps",
        sigma_min="0.04 * sigma_data",
        sigma_max="200 * sigma_data",
        reference="Song et al. 2021, arXiv:2011.13456",
        equations={**VE, **VE_CODE},
        sources=dict.fromkeys(VE, testbed.Source("paper"))
        | {
            "output": testbed.Source("code", f"{SDE}, models/ncsnpp.py"),
            "c_noise": testbed.Source("code", f"{SDE}, models/ncsnpp.py"),
            "levels": testbed.Source("code", f"{SDE}, configs/default_cifar10_configs.py"),
        },
        deviations=(
            "The paper's levels are for pixels in [0, 1]; scaled to [-1, 1], where their "
            "sigma_data is 0.5, they are 0.02 and 100, that is 0.04 and 200 times sigma_data.",
            "log sigma is that of the data as they are, which moves it by a constant.",
            "The paper draws t from 1e-5 on, for numerical reasons (app. C), and here it is from 0 "
            "on.",
        ),
    )
