"""flow: the velocity u = eps - x0 of x_t = (1 - t) x0 + t eps (flow matching, rectified flow).

Mapped to x = x0 + sigma eps: t = sigma/(1 + sigma), x_t = x/(1 + sigma), and D = x_t - t u.
"""

import testbed


def scaling(sigma):
    a, t = 1 / (1 + sigma), sigma / (1 + sigma)
    return testbed.Coefficients(skip=a, out=-t, in_=a, noise=t)


def target(x0, eps, sigma):
    return eps - x0


def weighting(sigma):
    """|u_hat - u|^2 = |D - x0|^2 / t^2."""
    return ((1 + sigma) / sigma) ** 2


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        name="flow",
        scaling=scaling,
        target=target,
        recipe="rectified_flow",
        noise_kind="time",
        reference="Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003; "
        "density: Esser et al. 2024, arXiv:2403.03206",
        claims=("boundary",),
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("flow", weighting, reference="Lipman et al. 2023 (flow matching)")


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("flow", testbed.squared, space="flow")
