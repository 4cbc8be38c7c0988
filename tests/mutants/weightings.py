"""Mistakes in weightings and in the objective that multiplies by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from helpers.strategies import fixed
from laws import losses, weightings
from mutants.registry import (
    FAMILIES,
    REGISTRY,
    Family,
    kit,
    tests,
    wrong,
)
from mutants.wrong_parameterizations import r_of
from torch import Tensor

import testbed
from testbed.training.objective import Objective


@dataclass(frozen=True)
class Weighted:
    """A weighting that ought to be the registered one of that name, in an objective."""

    weighting: testbed.Weighting
    name: str
    kind: type[Objective] = Objective


def of_weighting(subject: Weighted) -> set[str]:
    objective = subject.kind(
        REGISTRY.parameterization("edm"),
        subject.weighting,
        REGISTRY.loss("l2", space="v"),
        REGISTRY.density("lognormal"),
        losses.SIGMA_DATA,
    )
    return kit(subject.weighting) | tests(
        weight_is_the_formula=lambda: weightings.law_weight_is_the_formula(
            subject.weighting, subject.name, fixed().sigma, 0.5
        ),
        k_is_lambda_b_squared=lambda: weightings.law_k_is_lambda_b_squared(objective, "v"),
        gradient_is_that_of_the_weighted_error=lambda: (
            losses.law_gradient_is_that_of_the_weighted_error(objective, "edm", "v", subject.name)
        ),
    )


FAMILIES["weighting"] = Family(
    "a weighting lambda(sigma) of |D - x0|^2, and the objective that multiplies by it",
    of_weighting,
    {name: Weighted(REGISTRY.weighting(name), name) for name in ("eps", "v", "edm", "min_snr")},
)


def weight(
    mistake: str, name: str, function: Callable[..., Tensor], meant: str, *also: str
) -> None:
    wrong("weighting", mistake, Weighted(testbed.Weighting("wrong", function), name), meant, *also)


class GainNotSquared(Objective):
    """|D - x0| = |c_out| |F - F*|, not squared."""

    def terms(self, sigma: Tensor) -> Any:
        found = super().terms(sigma)
        out = self.parameterization.coefficients(sigma, sigma_data=self.sigma_data).out
        return found._replace(k=(found.k / out.abs()).float())


class OneSigma(Objective):
    """The first sample's sigma for the batch."""

    def terms(self, sigma: Tensor) -> Any:
        return super().terms(sigma[:1].expand_as(sigma))


class WeightInTheLossSpace(Objective):
    """lambda multiplies |v_hat - v|^2."""

    def k(self, sigma: Tensor) -> Tensor:
        return self.weighting(sigma.double(), sigma_data=self.sigma_data)


weight(
    "1/sigma for 1/sigma^2",
    "eps",
    lambda sigma: 1 / sigma,
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error",
)
weight(
    "alpha for alpha^2: v's weight rooted",
    "v",
    lambda sigma: r_of(sigma) / sigma,
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error",
)
weight(
    "sigma_data missing",
    "edm",
    lambda sigma: (sigma**2 + 1) / sigma**2,
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error",
)
weight(
    "c_out^2 for 1/c_out^2",
    "edm",
    lambda sigma, sigma_data: (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2),
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error",
)
weight(
    "max for min",
    "min_snr",
    lambda sigma: (1 / sigma**2).clamp(min=5.0),
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error",
)
weight(
    "the weight of eps space for that of x0 space",
    "min_snr",
    lambda sigma: (1 / sigma**2).clamp(max=5.0) * sigma**2,
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error",
)
weight(
    "the largest sigma of the batch for all",
    "eps",
    lambda sigma: 0 * sigma + 1 / sigma.max() ** 2,
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error weighting.per_sample weighting.shape",
)
weight(
    "normalised over the batch",
    "eps",
    lambda sigma: sigma.numel() / sigma**2 / (1 / sigma**2).sum(),
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error weighting.per_sample",
)
weight(
    "float32 inside",
    "eps",
    lambda sigma: (1 / sigma.float() ** 2).to(sigma),
    "tests.weight_is_the_formula",
)
weight(
    "of the other sign",
    "eps",
    lambda sigma: -1 / sigma**2,
    "tests.weight_is_the_formula",
    "tests.gradient_is_that_of_the_weighted_error weighting.positive",
)
weight(
    "a draw from the global random state",
    "eps",
    lambda sigma: 1 / sigma**2 + 0 * torch.rand(()),
    "weighting.pure",
)


def objective(mistake: str, kind: type[Objective], meant: str, *also: str) -> None:
    wrong("weighting", mistake, Weighted(REGISTRY.weighting("edm"), "edm", kind), meant, *also)


objective(
    "c_out not squared in the objective",
    GainNotSquared,
    "tests.gradient_is_that_of_the_weighted_error",
)
objective(
    "the first sample's sigma for all in the objective",
    OneSigma,
    "tests.gradient_is_that_of_the_weighted_error",
)
objective(
    "lambda in the space of the loss, not of x0",
    WeightInTheLossSpace,
    "tests.gradient_is_that_of_the_weighted_error",
    "tests.k_is_lambda_b_squared",
)
