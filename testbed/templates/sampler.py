"""NAME: one step of a sampler, from one noise level to the next.

EDIT this text and `step`; then `testbed check NAME.py`. As it stands, the midpoint method on the
probability-flow ODE dx/dsigma = (x - D)/sigma.
"""

import testbed


def step(denoise, x, sigma, sigma_next, generator, history):
    # EDIT: return x at `sigma_next` < sigma, both floats. denoise(x, sigma) estimates x0 and is
    # never called at 0. `history` is a list of the run's own, `generator` its random numbers.
    middle = (sigma + sigma_next) / 2
    halfway = x + (middle - sigma) * (x - denoise(x, sigma)) / sigma
    return x + (sigma_next - sigma) * (halfway - denoise(halfway, middle)) / middle


@testbed.hookimpl
def testbed_samplers():
    yield testbed.Sampler(
        "NAME",
        step,
        # EDIT: False if it uses `generator`.
        deterministic=True,
        # EDIT: the paper and the equation.
        reference="",
    )
