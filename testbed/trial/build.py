"""From the configuration of a trial to its parts: data, denoiser, objective, training job."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import Tensor

from testbed import settings
from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.components.network import Network
from testbed.components.weighting import Weighting
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.inputs import noise_kind
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.errors import InputError, about
from testbed.metrics.denoising import log_spaced
from testbed.random import stream
from testbed.registry import Registry
from testbed.sampling.schedules import path
from testbed.training.objective import Objective
from testbed.training.trainer import TrainingJob
from testbed.trial import class_conditions, fixed, texts
from testbed.trial.config import TrialConfig
from testbed.trial.encoder import Encoder
from testbed.trial.fields import TrialFields
from testbed.trial.specs import ComponentSpec, Evaluation
from testbed.trial.texts import TextEncoder

KEYS = {
    field.setting.axis: f"{where}{field.name}"
    for where, model in (("", TrialFields), ("evaluation.", Evaluation))
    for field in settings.fields(model)
    if field.setting.axis
}
"""The key of a trial's settings that names a component of each axis."""
TABLELESS = 'density = "table" is that of a table: name one, such as table = "ddpm".'


@functools.lru_cache(maxsize=1)
def registry_of(plugins: tuple[str, ...], plugin_dirs: tuple[str, ...]) -> Registry:
    """The worker's registry, made once."""
    return Registry(plugins, plugin_dirs)


def component(registry: Registry, axis: str, spec: ComponentSpec) -> Any:
    """The component that a spec names, its options bound.

    Raises:
        UnknownName: no such component.
        InputError: an unknown option, or one of the wrong type.
    """
    return _component(registry, axis, spec.name, json.dumps(spec.options))


@functools.lru_cache(maxsize=1024)
def _component(registry: Registry, axis: str, name: str, options: str) -> Any:
    # A density's cut takes a hundred evaluations, and many trials have the same.
    with about(KEYS.get(axis, axis)):
        return getattr(registry, axis)(name, **json.loads(options))


def dataset(registry: Registry, spec: ComponentSpec, encoder: Encoder | None = None) -> Data:
    """The data of a data set, built once a process; their latents where there is an encoder."""
    text = encoder.model_dump_json() if encoder is not None else ""
    return _data(registry, spec.name, json.dumps(spec.options), text)


def data_of(config: TrialFields, registry: Registry) -> Data:
    """The data of a trial: latents where it has an encoder, states of texts with a text encoder.

    Raises:
        InputError: no such data set, or an encoder that does not fit.
    """
    data = dataset(registry, config.dataset, config.encoder)
    text_encoder = config.text_encoder
    return data if text_encoder is None else _encoded(data, text_encoder.model_dump_json())


@functools.lru_cache(maxsize=4)
def _encoded(data: Data, encoder: str) -> Data:
    return texts.encoded(data, TextEncoder.model_validate_json(encoder))


@functools.lru_cache(maxsize=4)
def _data(registry: Registry, name: str, options: str, encoder: str) -> Data:
    with about(KEYS["dataset"]):
        data: Data = registry.dataset(name, **json.loads(options))()
    if not encoder:
        return data
    from testbed.trial.first_stage import latent_data

    return latent_data(data, Encoder.model_validate_json(encoder))


def noise_table(registry: Registry, spec: ComponentSpec | None) -> NoiseTable | None:
    """The levels of a discrete denoiser; None for a continuous one.

    Raises:
        UnknownName: no such table.
        InputError: an option that does not fit, or options that name no levels.
    """
    found: NoiseTable | None = component(registry, "table", spec) if spec else None
    if found is not None:
        with about(KEYS["table"]):
            found.sigmas  # noqa: B018  one whose options name no levels is refused here
    return found


def density(registry: Registry, spec: ComponentSpec, table: NoiseTable | None) -> Density:
    """The density of noise levels; "table" is that of the table's levels with equal mass.

    Raises:
        UnknownName: no such density.
        InputError: an unknown option, or "table" without a table.
    """
    if spec.name != "table":
        found: Density = component(registry, "density", spec)
        return found
    if table is None:
        raise InputError(TABLELESS)
    levels = table.density(float(table.sigmas[0]), float(table.sigmas[-1]))
    return levels.bound(spec.options)


def objective(config: TrialConfig, registry: Registry) -> Objective:
    """The objective of a trial, its states not started."""
    table = noise_table(registry, config.table)
    p = component(registry, "parameterization", config.parameterization)
    if config.sigma_data_channels is not None:
        p = p.with_channels(config.sigma_data_channels)
    weighting: Weighting | None = None
    if config.weighting is not None:
        weighting = component(registry, "weighting", config.weighting)
    return Objective(
        with_output(p, config.output),
        weighting,
        component(registry, "loss", config.loss),
        density(registry, config.density, table),
        config.sigma_data,
        table=table,
        noise=component(registry, "noise", config.noise),
        vlb=config.variance.vlb,
    )


def assemble(config: TrialConfig, registry: Registry, data: Data) -> tuple[Denoiser, Objective]:
    """The untrained denoiser and the objective of a trial."""
    states = stream(config.seed, "states").initial_seed()
    started = objective(config, registry).with_states(states)
    weights = stream(config.seed, "weights").initial_seed()
    labels, further, tables = class_conditions.built(config.conditions, data)
    learned, channels = started.vlb is not None, data.shape[0]
    kind = noise_kind(config.c_noise, started.parameterization)
    with about(KEYS["network"]):
        module = network_of(config, registry)(
            data.shape,
            labels,
            weights,
            further,
            outputs={"F": channels, "nu": channels} if learned else None,
            noise_kind=kind,
            tables=tables,
            checkpointing=config.training.checkpointing,
        )
    if empty := {name: one.off for name, one in tables.items() if one.off is not None}:
        texts.row_for_off(module, empty)
    denoiser = Denoiser(
        module,
        started.parameterization,
        config.sigma_data,
        c_in=config.c_in,
        c_noise=config.c_noise,
        table=started.table,
        learned_variance=learned,
    )
    return denoiser, started


def network_of(config: TrialConfig, registry: Registry) -> Network:
    """The network that a trial names, or that of a fixed model."""
    if config.fixed is not None:
        return fixed.network(config.fixed, noise_table(registry, config.fixed.table))
    found: Network = component(registry, "network", config.network)
    return found


def measured_levels(config: TrialConfig) -> Tensor:
    """The noise levels that a trial is measured at, ascending, (L,) float64."""
    levels = config.evaluation.levels
    if isinstance(levels, int):
        return log_spaced(*config.measured, levels)
    return torch.tensor(levels, dtype=torch.float64)


def sampling_levels(config: TrialConfig, registry: Registry) -> Tensor:
    """The noise levels of the path of a trial's samples; see `schedules.path`."""
    evaluation, table = config.evaluation, noise_table(registry, config.table)
    schedule = component(registry, "schedule", evaluation.schedule)
    return path(schedule, evaluation.steps, config.sampled, table, config.trained)


def module_of(denoiser: Denoiser) -> torch.nn.Module:
    """The denoiser's network, which holds its weights."""
    assert isinstance(denoiser.network, torch.nn.Module)
    return denoiser.network


def training_job(config: TrialConfig, registry: Registry, data: Data) -> TrainingJob:
    """What a trial trains."""
    return TrainingJob(
        *assemble(config, registry, data), config.training, config.seed, config.conditions
    )
