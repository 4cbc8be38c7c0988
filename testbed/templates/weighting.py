"""NAME: a weight lambda(sigma) on |D - x0|^2.

EDIT this text and `weighting`; then `testbed check NAME.py`. As it stands, the weight of eps
prediction, 1/sigma^2, flattened below sigma = floor.
"""

import testbed


def weighting(sigma, floor=0.1):
    # EDIT: lambda(sigma), 0 or more, shaped like sigma, always of the squared error of x0. A weight
    # that a paper gives for eps is to be divided by sigma^2; for v multiply by 1 + 1/sigma^2.
    # You may ask for sigma_data, for p (the density over log sigma), and for options with defaults.
    return 1 / (sigma**2 + floor**2)


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting(
        "NAME",
        weighting,
        # EDIT: the paper and the equation.
        reference="",
    )
