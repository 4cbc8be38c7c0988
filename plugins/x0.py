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


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "progressive_x0",
        parameterization="x0",
        density="cosine",
        weighting="truncated_snr",
        c_in="vp",
        c_noise="log_snr",
        reference="Salimans and Ho 2022, arXiv:2202.00512",
        equations={
            "prediction": "sec. 4: x",
            "weighting": "sec. 4: max(SNR, 1), the truncated SNR",
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
