"""NAME: an elementwise discrepancy of a prediction from its target.

EDIT this text and `loss`; then `testbed check NAME.py`. As it stands, pseudo-Huber: quadratic for
differences well below c, linear well above.
"""

import torch

import testbed


def loss(prediction, target, c=1.0):
    # EDIT: 0 where both are equal, a tensor shaped like them. Options need a default.
    return c**2 * (torch.sqrt(1 + ((prediction - target) / c) ** 2) - 1)


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss(
        "NAME",
        loss,
        # EDIT: where it is taken unless a study says otherwise: "x0", "eps", "score", "v", "flow"
        # or "F".
        space="x0",
        # EDIT: True if the constant that minimises the expected loss is the mean, as for l2.
        elicits_mean=False,
        # EDIT: the paper and the equation.
        reference="",
    )
