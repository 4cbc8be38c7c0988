"""Every hook that a plugin can implement, on one page.

Registration hooks take no arguments and yield frozen dataclasses of `testbed`. The function that a
component holds names the quantities it wants (`sigma`, `sigma_data`, ...); any other argument must
have a default and becomes an option that a study can set.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from testbed.components import Dataset, Density, Loss, Metric, Network, Sampler, Weighting
    from testbed.parameterization import Parameterization

hookspec = pluggy.HookspecMarker("testbed")
hookimpl = pluggy.HookimplMarker("testbed")


@hookspec
def testbed_parameterizations() -> Iterable[Parameterization]:  # type: ignore[empty-body]
    """What the network may be asked for: `testbed.Parameterization(name, scaling, target, ...)`."""


@hookspec
def testbed_weightings() -> Iterable[Weighting]:  # type: ignore[empty-body]
    """lambda(sigma) in x0 space: `testbed.Weighting(name, function)`."""


@hookspec
def testbed_losses() -> Iterable[Loss]:  # type: ignore[empty-body]
    """Elementwise discrepancies: `testbed.Loss(name, function, space="x0")`."""


@hookspec
def testbed_densities() -> Iterable[Density]:  # type: ignore[empty-body]
    """Training distributions of sigma: `testbed.Density(name, icdf, pdf)`."""


@hookspec
def testbed_datasets() -> Iterable[Dataset]:  # type: ignore[empty-body]
    """Data sets: `testbed.Dataset(name, build)`, `build(**options) -> testbed.Data`."""


@hookspec
def testbed_networks() -> Iterable[Network]:  # type: ignore[empty-body]
    """Networks: `testbed.Network(name, build, noise={kind: (low, high)})`."""


@hookspec
def testbed_samplers() -> Iterable[Sampler]:  # type: ignore[empty-body]
    """Samplers, one step each: `testbed.Sampler(name, step)`."""


@hookspec
def testbed_metrics() -> Iterable[Metric]:  # type: ignore[empty-body]
    """Numbers about samples: `testbed.Metric(name, measure)`."""


@hookspec
def testbed_study_finished(study: Any, results: Any) -> None:
    """Called once, in the driver, when every trial of a study has ended.

    `study` is the resolved study (testbed.study.spec.Study), `results` a pandas table with one row
    per trial: identity, status and final metrics.
    """
