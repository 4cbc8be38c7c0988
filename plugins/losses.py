"""Elementwise losses; the prediction type in which each is taken is its option `space`."""

from typing import Annotated

import torch

import testbed


def l1(prediction, target):
    return (prediction - target).abs()


def huber(prediction, target, delta: Annotated[float, testbed.Limits(above=0)] = 1.0):
    """d^2/2 for |d| <= delta, else delta (|d| - delta/2) (Huber 1964)."""
    return torch.nn.functional.huber_loss(prediction, target, reduction="none", delta=delta)


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("l2", testbed.squared)
    yield testbed.Loss("l1", l1)
    yield testbed.Loss("huber", huber, reference="Huber 1964")
