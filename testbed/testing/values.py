"""Bundled names against the numbers of their papers, which stand in `published`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.base import Component
from testbed.components.density import Density
from testbed.components.guidance import Condition, Guidance
from testbed.components.loss import Loss
from testbed.components.sampler import Sampler
from testbed.components.schedule import Schedule
from testbed.components.weighting import Weighting
from testbed.diffusion.correlated import Noise
from testbed.diffusion.noise_tables import TABLES
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError
from testbed.random import stream
from testbed.sampling.loop import sample
from testbed.testing import published
from testbed.testing.checks import Check, Context
from testbed.testing.failures import CheckFailed
from testbed.testing.guided_cases import guided_denoiser
from testbed.testing.probes import LOGNORMAL
from testbed.testing.published import LADDER, RANGE, SIGMA, SIGMA_DATA, Table, U
from testbed.testing.rounding import Worst

BOUND = gamma(2**18, torch.float64)
"""The first level of a table forms 1 - abar = 4e-5 from a few roundings; no other loses as much."""


def _weighting(w: Weighting) -> Tensor:
    density = LOGNORMAL if "p" in w.signature("function").inputs else None
    with torch.no_grad():
        return w(_tensor(SIGMA), sigma_data=SIGMA_DATA, density=density, state=w.build())


def _parameterization(p: Parameterization) -> Tensor:
    return torch.cat(p.coefficients(_tensor(SIGMA), sigma_data=SIGMA_DATA))


def _loss(m: Loss) -> Tensor:
    return m(_tensor((3.0, 0.25, -1.0)), _tensor((1.0, 0.5, -1.0)), m.build())


def _density(d: Density) -> Tensor:
    return torch.cat([d.sigma(_tensor(U)), d.pdf_over_log_sigma(_tensor(SIGMA))])


def _schedule(s: Schedule) -> Tensor:
    return s(5, *RANGE, TABLES["ddpm"].bound({}))


def _sampler(s: Sampler) -> Tensor:
    def end(x: float) -> Tensor:
        draws = None if s.deterministic else stream(0, "testing/values")
        start = torch.full((1, 1), x, dtype=torch.float64)
        return sample(lambda x, sigma: x / (1 + sigma[:, None] ** 2), start, LADDER, s, draws)

    return (end(7.0) - end(0.0))[0] / 7


def _noise(c: Noise) -> Tensor:
    shape = (2, 3, 4)
    return _tensor((c.eigenvalue(shape), c.regression(shape), c.variance))


def _guidance(g: Guidance) -> Tensor:
    def log_classes(name: str, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack([x.sum(1), 0 * x.sum(1)], 1)

    label = {"label": torch.zeros(1, dtype=torch.int64)}

    def conditional(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        off = torch.full((1,), -1)
        y = (condition or {}).get("label", off).expand(len(x))[:, None]
        return torch.where(y < 0, 1.0, 3.0).double().expand_as(x)

    denoise = guided_denoiser(g.build(), conditional, log_classes, label)
    return denoise(torch.zeros(1, 2, dtype=torch.float64), _tensor((SIGMA_DATA,)))[0]


def _tensor(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


AXES: dict[str, tuple[Table, Callable[[Any], Tensor]]] = {
    "weighting": (published.WEIGHTINGS, _weighting),
    "parameterization": (published.PARAMETERIZATIONS, _parameterization),
    "loss": (published.LOSSES, _loss),
    "density": (published.DENSITIES, _density),
    "schedule": (published.SCHEDULES, _schedule),
    "table": (published.NOISE_TABLES, lambda t: t.sigmas[[0, 1, 500, 998, 999]]),
    "sampler": (published.SAMPLERS, _sampler),
    "noise": (published.NOISES, _noise),
    "guidance": (published.GUIDANCES, _guidance),
}
"""The values of each axis by name, and how a component gives its own."""


def _equal(component: Component, context: Context) -> str:
    table, numbers = AXES[component.axis]
    stated, worst = table[component.name], Worst()
    for values in stated if isinstance(stated, tuple) else (stated,):
        try:
            found = numbers(component.bound(values.options))
        except InputError as problem:
            raise CheckFailed(f"the bundled name has other options: {problem}") from problem
        wanted = _tensor(values.numbers)
        worst.compare(component.name, found.double(), wanted, BOUND * wanted.abs())
    return str(worst)


CHECKS = {
    axis: Check(
        f"{axis}.values",
        axis,
        "A bundled name has the values of its paper, which stand in the kit.",
        _equal,
        own=True,
    )
    for axis in AXES
}


def made(subject: Component) -> list[Check]:
    """The check of a bundled name's values; none for any other name."""
    table, _ = AXES.get(subject.axis, ({}, None))
    return [CHECKS[subject.axis]] if subject.name in table else []
