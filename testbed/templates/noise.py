"""NAME: what is added to eps in training, n = eps + strength z.

EDIT this text and `z_shape`; then `testbed check NAME.py`. As it stands, one number for all of a
sample, whatever its channels.
"""

import testbed


def z_shape(shape):
    # EDIT: the shape of a sample's z, that of x0 with a 1 along every axis whose coordinates share
    # a number: (C, 1, 1) of (C, H, W) is one for each channel. Options need a default.
    return (1,) * len(shape)


@testbed.hookimpl
def testbed_noises():
    yield testbed.Noise(
        "NAME",
        z_shape,
        # EDIT: whether the network is to predict n, with z in it, or eps alone.
        in_target=True,
        # EDIT: the paper and the equation.
        reference="",
    )
