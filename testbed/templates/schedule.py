"""NAME: the noise levels at which a sampler stops.

EDIT this text and `levels`; then `testbed check NAME.py`. As it stands, equal steps of log sigma.
"""

import math

import torch

import testbed


def levels(steps, sigma_min, sigma_max):
    # EDIT: steps + 1 levels, float64, that fall strictly from sigma_max or below it to sigma_min or
    # above it, and then 0. Options need a default. An argument `table` gets the trial's own levels.
    y = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return torch.cat([torch.exp(y), torch.zeros(1, dtype=torch.float64)])


@testbed.hookimpl
def testbed_schedules():
    yield testbed.Schedule(
        "NAME",
        levels,
        # EDIT: the paper and the equation.
        reference="",
    )
