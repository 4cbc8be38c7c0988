"""NAME: a data set.

EDIT this text and `build`; then `testbed check NAME.py`. As it stands, points around an arc.
"""

import math

import torch

import testbed
from testbed.random import stream


def arc(n, width, generator):
    angle = math.pi * torch.rand(n, generator=generator)
    points = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    return points + width * torch.randn(n, 2, generator=generator)


def build(n=5000, test=1000, width=0.05, data_seed=0):
    # EDIT: float32 tensors (N, ...), the same for the same options. Every random number comes from
    # a named stream. Options need a default. If the distribution is known exactly, give its
    # `oracle`, one of testbed.oracles: then reports show the excess over the exact optimum.
    return testbed.Data(
        train=arc(n, width, stream(data_seed, "train")),
        test=arc(test, width, stream(data_seed, "test")),
    )


@testbed.hookimpl
def testbed_datasets():
    yield testbed.Dataset(
        "NAME",
        build,
        # EDIT: the paper or the address.
        reference="",
    )
