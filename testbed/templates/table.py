"""NAME: the noise levels of a discrete denoiser.

EDIT this text and `levels`; then `testbed check NAME.py`. As it stands, the geometric sequence of
noise conditional score networks (Song and Ermon 2019, arXiv:1907.05600, sec. 4.1).
"""

import math

import torch

import testbed


def levels(n=1000, low=0.01, high=50.0):
    # EDIT: n levels, float64, positive and ascending; n = 2 at least. Of betas they are
    # testbed.noise_levels.ddpm_sigmas(betas). Options need a default.
    y = torch.linspace(math.log(low), math.log(high), n, dtype=torch.float64)
    return torch.exp(y)


@testbed.hookimpl
def testbed_tables():
    yield testbed.NoiseTable(
        "NAME",
        levels,
        # EDIT: the paper and the equation.
        reference="",
    )
