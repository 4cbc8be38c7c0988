"""NAME: a network.

EDIT this text and the class; then `testbed check NAME.py`. As it stands, a perceptron with one
hidden layer, which sees c_noise as one more input.
"""

import math

import torch

import testbed


class Perceptron(torch.nn.Module):
    def __init__(self, shape, width):
        super().__init__()
        d = math.prod(shape)
        self.first = torch.nn.Linear(d + 1, width)
        self.last = torch.nn.Linear(width, d)
        # Zero at the start: equal objectives train as exact mirrors, from a plateau at F = 0. It is
        # advice, no law.
        torch.nn.init.zeros_(self.last.weight)
        torch.nn.init.zeros_(self.last.bias)

    def forward(self, x, c_noise, condition=None):
        # EDIT: x (B, *shape), c_noise (B,); `condition` is None or a mapping of tensors. Returns
        # (B, *shape).
        inputs = torch.cat([x.flatten(1), c_noise[:, None].to(x.dtype)], dim=1)
        return self.last(torch.tanh(self.first(inputs))).view_as(x)


def build(shape, width=64):
    # EDIT: `shape` is that of one sample. Ask for `labels`, the number of classes (0 without), or
    # for `conditions`, each one's name and number, to take them; for `outputs`, names and channels,
    # to learn a variance; for `second` to take a second noise level (docs/reference/hooks.md).
    # Options need a default.
    return Perceptron(shape, width)


@testbed.hookimpl
def testbed_networks():
    yield testbed.Network(
        "NAME",
        build,
        # EDIT: the kinds of c_noise that it takes, each with its range; for a network that sees no
        # noise level, noise={} and blind=True.
        noise={"sigma": (0.0, 200.0), "log_sigma": (-2.4, 2.4), "time": (0.0, 1.0)},
        # EDIT: shapes of samples that it takes, at which it is checked.
        shapes=((2,), (1, 8, 8)),
        # EDIT: the paper.
        reference="",
    )
