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


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "progressive_v",
        parameterization="v",
        density="cosine",
        loss="v",
        c_noise="log_snr",
        reference="Salimans and Ho 2022, arXiv:2202.00512",
        equations={
            "prediction": "sec. 4 and app. D: v = alpha eps - s x0",
            "weighting": "sec. 4: SNR + 1, which is none in v space",
            "density": "sec. 4: alpha = cos(pi t/2), t uniform",
            "c_in": "sec. 2: the network sees z_t = alpha x",
            "c_noise": "sec. 2: the log SNR",
        },
        deviations=(
            "The paper draws t from all of [0, 1]; here sigma is cut to 0.002 and 80, which leaves "
            "out 0.9 % of its draws. Its code, by public copies of it, cuts the log SNR at -20 and "
            "20, where sigma is 22,000 and 4.5e-5.",
            "The published code, by public copies of it, squeezes the log SNR into (0, 1) by "
            "2/pi arctan(exp(-log SNR/2)) before it is embedded; here it is embedded itself.",
            "Taken is the training of the undistilled model, without the distillation.",
        ),
    )
