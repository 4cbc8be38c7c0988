"""Mistakes in the clipping of a gradient, each rejected by its law on the engines that show it."""

from typing import Any

import torch
from laws.clipping import law_raw_clipping
from mutants.registry import given, laws_of, rejected_by
from torch import Tensor

from testbed.training.weights import Weights


class Relative(Weights):
    """The norm is that of the divided loss."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.units = torch.ones_like(self.units)


class Divided(Weights):
    """The norm is divided by the loss at F = 0 once more."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.units = 1 / self.units


class Lengthened(Weights):
    """A gradient below the largest norm is brought up to it."""

    def update(self, norms: Tensor, step: int) -> None:
        clip, self.clip = self.clip, None
        self.G *= (clip / (self.units * norms + 1e-6))[:, None]
        super().update(norms, step)
        self.clip = clip


class OfTheFirst(Weights):
    """The loss at F = 0 is that of the first trial."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.units = self.units[:1].expand_as(self.units)


CLIPPING = laws_of("laws: clipping", "the clipping of gradients, by torch's own")
rejected_by(
    CLIPPING,
    given(law_raw_clipping, "sequential"),
    Weights,
    the_norm_of_the_divided_loss=Relative,
    a_norm_divided_twice=Divided,
    a_short_gradient_made_longer=Lengthened,
)
rejected_by(
    CLIPPING,
    given(law_raw_clipping, "batched"),
    Weights,
    the_norm_of_the_divided_loss_in_a_batch=Relative,
    a_norm_divided_twice_in_a_batch=Divided,
    the_size_of_the_first_trial_s_loss=OfTheFirst,
)
