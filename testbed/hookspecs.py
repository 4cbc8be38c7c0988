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
    from testbed.components.dataset import Dataset
    from testbed.components.density import Density
    from testbed.components.guidance import Guidance
    from testbed.components.loss import Loss
    from testbed.components.metric import Metric
    from testbed.components.network import Network
    from testbed.components.sampler import Sampler
    from testbed.components.schedule import Schedule
    from testbed.components.weighting import Weighting
    from testbed.diffusion.correlated import Noise
    from testbed.diffusion.noise_tables import NoiseTable
    from testbed.diffusion.parameterization import Parameterization

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
def testbed_schedules() -> Iterable[Schedule]:  # type: ignore[empty-body]
    """The noise levels of a sampler's run: `testbed.Schedule(name, levels)`."""


@hookspec
def testbed_guidances() -> Iterable[Guidance]:  # type: ignore[empty-body]
    """Ways to bend a denoiser towards a condition: `testbed.Guidance(name, method)`."""


@hookspec
def testbed_tables() -> Iterable[NoiseTable]:  # type: ignore[empty-body]
    """The levels of a discrete denoiser: `testbed.NoiseTable(name, levels)`."""


@hookspec
def testbed_noises() -> Iterable[Noise]:  # type: ignore[empty-body]
    """What is added to eps in training: `testbed.Noise(name, z_shape, in_target=True)`."""


@hookspec
def testbed_metrics() -> Iterable[Metric]:  # type: ignore[empty-body]
    """Numbers about samples: `testbed.Metric(name, measure)`."""


@hookspec
def testbed_study_finished(study: Any, results: Any) -> None:
    """Called once, in the driver, when every trial of a study has ended.

    `study` is the study's file as read (`testbed.study.study_file.StudyFile`), `results` a pandas
    table with one row per trial: identity, status and final metrics.
    """
