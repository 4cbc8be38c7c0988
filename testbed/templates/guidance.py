"""NAME: guidance, a way to bend a sampler's denoiser towards a condition.

EDIT this text and `Method`; then `testbed check NAME.py`. As it stands, classifier-free guidance at
the noise levels from `low` to `high` alone, as Kynkäänniemi et al. 2024, arXiv:2404.07724, have it.
"""

from dataclasses import dataclass

import torch

import testbed


@dataclass(frozen=True)
class Method:
    # EDIT: the options, each with a default.
    scale: float = 2.0
    low: float = 0.2
    high: float = 5.0

    def classes(self, conditions):
        # The names of the conditions whose classes every sample is to have, out of those that the
        # model was trained with: name -> the rate at which it was switched off.
        return list(conditions)

    def misfits(self, conditions, data):
        # EDIT: why such a model cannot be guided so, a sentence for each reason.
        if not conditions:
            yield "NAME needs a model that is trained with conditions."
        for name, rate in conditions.items():
            if rate == 0:
                yield f"NAME asks the model without {name}: give conditions.{name} a rate above 0."

    def denoiser(self, denoiser, log_classes, condition):
        # EDIT: denoiser(x, sigma, condition) is D, of no condition where it is None; x is (B, ...),
        # sigma (B,), and `condition` has the classes (B,) of the samples by name.
        def guided(x, sigma):
            D_y = denoiser(x, sigma, condition)
            D = denoiser(x, sigma, None)
            inside = (self.low <= sigma) & (sigma <= self.high)
            w = torch.where(inside, self.scale, 1.0).to(x.dtype)
            return D + w.reshape(-1, *[1] * (x.ndim - 1)) * (D_y - D)

        return guided


@testbed.hookimpl
def testbed_guidances():
    yield testbed.Guidance(
        "NAME",
        Method,
        # EDIT: the paper and the equation.
        reference="",
        # EDIT: what holds of `scale`: `testbed check` says what could be claimed.
        claims=("conditional_at_one",),
    )
