"""Every hook that a plugin can implement, on one page.

Registration hooks take no arguments and yield frozen dataclasses of `testbed`. The function that a
component holds takes quantities by the names of its arguments (`sigma`, `sigma_data`, ...); any
other argument must have a default and is an option that a study can set.
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
    from testbed.components.recipe import Recipe
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
    """Yields parameterizations: `testbed.Parameterization(name, scaling, target, ...)`."""


@hookspec
def testbed_weightings() -> Iterable[Weighting]:  # type: ignore[empty-body]
    """Yields weightings lambda(sigma) in x0 space: `testbed.Weighting(name, function)`."""


@hookspec
def testbed_losses() -> Iterable[Loss]:  # type: ignore[empty-body]
    """Yields elementwise discrepancies: `testbed.Loss(name, function, space="x0")`."""


@hookspec
def testbed_densities() -> Iterable[Density]:  # type: ignore[empty-body]
    """Yields training distributions of sigma: `testbed.Density(name, icdf, pdf)`."""


@hookspec
def testbed_datasets() -> Iterable[Dataset]:  # type: ignore[empty-body]
    """Yields data sets: `testbed.Dataset(name, build)`, `build(**options) -> testbed.Data`."""


@hookspec
def testbed_networks() -> Iterable[Network]:  # type: ignore[empty-body]
    """Yields networks: `testbed.Network(name, build, noise={kind: (low, high)})`."""


@hookspec
def testbed_samplers() -> Iterable[Sampler]:  # type: ignore[empty-body]
    """Yields samplers, each by its step: `testbed.Sampler(name, step)`."""


@hookspec
def testbed_schedules() -> Iterable[Schedule]:  # type: ignore[empty-body]
    """Yields the noise levels of samplers' runs: `testbed.Schedule(name, levels)`."""


@hookspec
def testbed_guidances() -> Iterable[Guidance]:  # type: ignore[empty-body]
    """Yields ways to bend a denoiser to a condition: `testbed.Guidance(name, method)`."""


@hookspec
def testbed_tables() -> Iterable[NoiseTable]:  # type: ignore[empty-body]
    """Yields the noise levels of discrete denoisers: `testbed.NoiseTable(name, levels)`."""


@hookspec
def testbed_noises() -> Iterable[Noise]:  # type: ignore[empty-body]
    """Yields noises of training: `testbed.Noise(name, z_shape, in_target=True)`."""


@hookspec
def testbed_recipes() -> Iterable[Recipe]:  # type: ignore[empty-body]
    """Yields the recipes of papers: `testbed.Recipe(name, density=..., weighting=..., ...)`."""


@hookspec
def testbed_metrics() -> Iterable[Metric]:  # type: ignore[empty-body]
    """Yields numbers about samples: `testbed.Metric(name, measure)`."""


@hookspec
def testbed_study_finished(study: Any, results: Any) -> None:
    """Runs once, in the driver, when every trial of a study has ended.

    `study` is the content of the study's file (`testbed.study.study_file.StudyFile`), `results` a
    pandas table with one row per trial: identity, status and final metrics.
    """
