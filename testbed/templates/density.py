"""NAME: a training distribution of sigma.

EDIT this text, `icdf` and `pdf`; then `testbed check NAME.py`. As it stands, log sigma follows the
logistic distribution, which has heavier tails than the normal one.
"""

import torch

import testbed


def icdf(u, mean=-1.2, scale=0.7):
    # EDIT: sigma at the quantile u in (0, 1), increasing. Options need a default.
    return torch.exp(mean + scale * torch.logit(u))


def pdf(sigma, mean=-1.2, scale=0.7):
    # EDIT: the density over log sigma, of the same options.
    y = (torch.log(sigma) - mean) / scale
    return torch.sigmoid(y) * torch.sigmoid(-y) / scale


@testbed.hookimpl
def testbed_densities():
    yield testbed.Density(
        "NAME",
        icdf,
        pdf,
        # EDIT: the paper and the equation.
        reference="",
    )
