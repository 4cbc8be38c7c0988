"""NAME: what the network is asked for, and how its answer becomes an estimate D of x0.

EDIT this text, `scaling` and `target`; then `testbed check NAME.py`. As it stands, the network
predicts eps - x0/sigma_data: the flow velocity of data scaled to unit size.
"""

import torch

import testbed


def scaling(sigma, sigma_data):
    # EDIT: the coefficients of D = skip x + out F(in_ x, noise) for x = x0 + sigma eps. A target
    # F* = a x0 + b eps has skip = b/(b - sigma a) and out = -sigma/(b - sigma a).
    # Ask for sigma_data only if you need it. An argument with a default is an option of a study.
    return testbed.Coefficients(
        skip=sigma_data / (sigma_data + sigma),
        out=-sigma * sigma_data / (sigma_data + sigma),
        in_=1 / torch.sqrt(sigma**2 + sigma_data**2),
        noise=torch.log(sigma) / 4,
    )


def target(x0, eps, sigma, sigma_data):
    # EDIT: F*, what the network should output, in your own words: the checks hold it against
    # `scaling`. Or delete it, here and below: then it is (x0 - skip x)/out.
    return eps - x0 / sigma_data


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="NAME",
        scaling=scaling,
        target=target,
        # EDIT: what it was published with. Names: `testbed plugins`.
        recipe=testbed.Recipe(density="lognormal", weighting="edm", loss="l2"),
        # EDIT: what `noise` above is: "sigma", "log_sigma", "time" (0 data, 1 noise) or "index".
        noise_kind="log_sigma",
        reference="EDIT: the paper and the equation",
        # EDIT: what holds besides the laws; `testbed check NAME.py --suggest-claims` finds out.
        claims=("unit_input", "homogeneous", "boundary"),
        # EDIT, where it applies: sigma_range=(low, high) where the formulas are defined,
        # singular=(0.0, math.inf) for limits of sigma where F* vanishes or is unbounded, or where
        # |out F*| is.
    )
