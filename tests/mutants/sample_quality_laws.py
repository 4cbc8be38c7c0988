"""Mistakes in sample metrics, their errors and their p, each rejected by its law."""

import math
import statistics
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from laws.sample_quality import (
    Ratio,
    TwoSample,
    law_assignment,
    law_error,
    law_expected_coverage,
    law_given,
    law_jackknife,
    law_of_many,
    law_of_means,
    law_p_given,
    law_power_of_two_samples,
    law_shift,
    law_trees,
    law_uniform,
    law_value,
)
from mutants.registry import laws_of, rejected_by
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.metric import MetricValue
from testbed.metrics import kernels, neighbours, projections, resampling
from testbed.metrics.conditional import conditional_energy


def changed(**parts: Callable[[MetricValue], float]) -> TwoSample:
    def mutant(
        x: Tensor, y: Tensor, k: Callable[[Tensor], Tensor], g: torch.Generator
    ) -> MetricValue:
        found = kernels.two_sample(x, y, k, g)
        return found._replace(**{name: change(found) for name, change in parts.items()})

    return mutant


def v_statistic(
    x: Tensor, y: Tensor, k: Callable[[Tensor], Tensor], g: torch.Generator
) -> MetricValue:
    found = kernels.two_sample(x, y, k, g)
    within = [float(-torch.cdist(z, z).sum()) / len(z) ** 2 / (len(z) - 1) for z in (x, y)]
    return found._replace(value=found.value - sum(within))


def one_side(
    f: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, g: torch.Generator
) -> float:
    return resampling.jackknife(lambda a, b: f(a, y), x, y, g)


def uninflated(
    f: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, g: torch.Generator
) -> float:
    return resampling.jackknife(f, x, y, g) / math.sqrt(resampling.GROUPS - 1)


def unsorted(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    i, j, w = projections.coupling(len(x), len(y))
    return w @ ((x @ u)[i] - (y @ u)[j]).square()


def cut(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """The longer sample cut to the shorter."""
    n = min(len(x), len(y))
    return projections.squared_wasserstein(x[:n], y[:n], u)


def first_power(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    i, j, w = projections.coupling(len(x), len(y))
    return w @ ((x @ u).sort(0).values[i] - (y @ u).sort(0).values[j]).abs()


RATIOS: dict[str, Ratio] = {
    "precision": neighbours.precision,
    "recall": neighbours.recall,
    "density": neighbours.density,
    "coverage": neighbours.coverage,
}


def with_itself(x: Tensor, y: Tensor, k: int) -> float:
    """Each row its own first neighbour."""
    return neighbours.coverage(x, y, k - 1)


def with_marginal(
    x: Tensor, data: Data, g: torch.Generator, condition: Mapping[str, Tensor], n: int
) -> MetricValue:
    """Draws of p(x) in the place of p(x|c)."""
    off = {name: torch.full_like(y, -1) for name, y in condition.items()}
    return conditional_energy(x, data, g, off, n)


def exchanged(
    x: Tensor, data: Data, g: torch.Generator, condition: Mapping[str, Tensor], n: int
) -> MetricValue:
    """Each condition's samples against the draws of the other."""
    return conditional_energy(x, data, g, {name: 1 - y for name, y in condition.items()}, n)


def added(
    x: Tensor, data: Data, g: torch.Generator, condition: Mapping[str, Tensor], n: int
) -> MetricValue:
    """The sum over conditions."""
    found = conditional_energy(x, data, g, condition, n)
    return found._replace(value=2 * found.value, error=2 * found.error)


def plain_error(
    x: Tensor, data: Data, g: torch.Generator, condition: Mapping[str, Tensor], n: int
) -> MetricValue:
    """The error of one condition."""
    found = conditional_energy(x, data, g, condition, n)
    return found._replace(error=2 * found.error)


def judged(change: Callable[[list[float]], float]) -> Any:
    """p made of those of the conditions, one by one."""

    def mutant(
        x: Tensor, data: Data, g: torch.Generator, condition: Mapping[str, Tensor], n: int
    ) -> MetricValue:
        y = condition["label"]
        alone = [conditional_energy(x[y == k], data, g, {"label": y[y == k]}, n).p for k in (0, 1)]
        return conditional_energy(x, data, g, condition, n)._replace(p=change(alone))

    return mutant


QUALITY = laws_of("laws: sample quality", "sample metrics, their errors and p, by outside truth")
rejected_by(QUALITY, law_value, kernels.two_sample, diagonal_included=v_statistic)
rejected_by(
    QUALITY,
    law_error,
    kernels.two_sample,
    half_the_error=changed(error=lambda e: e.error / 2),
    variance_for_error=changed(error=lambda e: e.error**2),
)
rejected_by(
    QUALITY,
    law_jackknife,
    kernels.two_sample,
    **{"n for n - 1": changed(error=lambda e: e.error * 1.01)},
)
rejected_by(
    QUALITY,
    law_power_of_two_samples,
    kernels.two_sample,
    the_other_tail=changed(p=lambda e: 1 - e.p),
    two_sided=changed(p=lambda e: min(1.0, 2 * e.p)),
)
rejected_by(
    QUALITY,
    law_uniform,
    kernels.two_sample,
    T_itself_not_counted=changed(p=lambda e: e.p - 1 / 200),
)
for law in (law_of_means, law_of_many):
    rejected_by(QUALITY, law, resampling.jackknife, one_side=one_side, uninflated=uninflated)
rejected_by(
    QUALITY,
    law_assignment,
    projections.squared_wasserstein,
    unsorted=unsorted,
    cut=cut,
    first_power=first_power,
)
rejected_by(QUALITY, law_shift, projections.squared_wasserstein, first_power=first_power)
rejected_by(
    QUALITY,
    law_given,
    conditional_energy,
    the_marginal=with_marginal,
    exchanged=exchanged,
    added=added,
    the_error_of_one=plain_error,
)
rejected_by(
    QUALITY,
    law_p_given,
    conditional_energy,
    p_of_the_first_alone=judged(lambda p: p[0]),
    mean_of_the_p=judged(statistics.fmean),
    least_of_the_p=judged(min),
)
rejected_by(QUALITY, law_expected_coverage, neighbours.coverage, each_its_own_neighbour=with_itself)
for name, ratio in RATIOS.items():

    @wraps(law_trees)
    def law(found: Ratio, name: str = name) -> None:
        law_trees(name, found)

    rejected_by(
        QUALITY,
        law,
        ratio,
        **{f"{other} for {name}": RATIOS[other] for other in RATIOS if other != name},
        **{f"{name} of k + 1": lambda x, y, k, ratio=ratio: ratio(x, y, k + 1)},
        **{f"{name} exchanged": lambda x, y, k, ratio=ratio: ratio(y, x, k)},
    )
