"""NAME: a number about samples.

EDIT this text and `measure`; then `testbed check NAME.py`. As it stands, the distance between the
means of the samples and of the held-out data.
"""

import testbed


def measure(samples, data, generator):
    # EDIT: samples (N, *shape); compare with data.test, or give `against="train"` below and compare
    # with data.train. float("nan") where it has no meaning.
    off = samples.double().mean(0) - data.test.double().mean(0)
    return float(off.square().mean().sqrt())


@testbed.hookimpl
def testbed_metrics():
    yield testbed.Metric(
        "NAME",
        measure,
        # EDIT: the split that samples are compared with.
        against="test",
        # EDIT: the paper and the equation.
        reference="",
    )
