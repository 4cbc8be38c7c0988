"""From the resolved configuration of a trial to its parts: data, denoiser, objective."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch

from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.random import stream
from testbed.registry import Registry
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import TrainingJob
from testbed.trial import class_conditions

WHITE: dict[str, Any] = {"name": "white", "options": {}}
FIXED: dict[str, Any] = {"name": "fixed", "options": {}}
"""The noise and the variance of a trial that names none."""


@functools.lru_cache(maxsize=1)
def registry_of(plugins: tuple[str, ...], folders: tuple[str, ...]) -> Registry:
    """The worker's registry, made once."""
    return Registry(plugins, folders)


@functools.lru_cache(maxsize=4)
def dataset(name: str, options: str, registry: Registry) -> Data:
    """The data of a data set, built once a process; `options` in JSON."""
    return registry.dataset(name, **json.loads(options))()


def component(registry: Registry, axis: str, named: dict[str, Any]) -> Any:
    """The component that a resolved `{"name": ..., "options": ...}` stands for."""
    return _component(registry, axis, named["name"], json.dumps(named["options"]))


@functools.lru_cache(maxsize=1024)
def _component(registry: Registry, axis: str, name: str, options: str) -> Any:
    # A density's cut takes a hundred evaluations, and many trials have the same.
    return getattr(registry, axis)(name, **json.loads(options))


def objective_of(config: Mapping[str, Any], registry: Registry) -> Objective:
    """The objective of a resolved configuration, its states not started."""
    axes = ("parameterization", "weighting", "loss", "density")
    table = table_of(config, registry)
    parts: dict[str, Any] = {
        axis: table.density(**config[axis]["options"])
        if table is not None and config[axis] and config[axis]["name"] == "table"
        else config[axis] and component(registry, axis, config[axis])
        for axis in axes
    }
    parts["parameterization"] = with_output(parts["parameterization"], config.get("output", "F"))
    learned = config.get("variance", FIXED)["options"]
    noise = component(registry, "noise", config.get("noise", WHITE))
    sd, vlb = config["sigma_data"], learned.get("vlb")
    return Objective(**parts, sigma_data=sd, table=table, noise=noise, vlb=vlb)


def table_of(config: Mapping[str, Any], registry: Registry) -> NoiseTable | None:
    """The table of a resolved configuration, or None."""
    named = config.get("table")
    found: NoiseTable | None = component(registry, "table", named) if named else None
    return found


def assemble(config: dict[str, Any], registry: Registry, data: Data) -> tuple[Denoiser, Objective]:
    """The untrained denoiser and the objective of a resolved configuration."""
    states = stream(config["seed"], "states").initial_seed()
    objective = objective_of(config, registry).with_states(states)
    p = objective.parameterization
    weights = stream(config["seed"], "weights").initial_seed()
    labels, further = class_conditions.built(config.get("conditions", {}), data)
    build = component(registry, "network", config["network"])
    learned = objective.vlb is not None
    network = build(data.shape, labels, weights, further, outputs=2 if learned else 1)
    denoiser = Denoiser(
        network,
        p,
        config["sigma_data"],
        c_in=config["c_in"],
        c_noise=config["c_noise"],
        table=objective.table,
        learned_variance=learned,
    )
    return denoiser, objective


def module_of(denoiser: Denoiser) -> torch.nn.Module:
    """The denoiser's network, which holds its weights."""
    assert isinstance(denoiser.network, torch.nn.Module)
    return denoiser.network


def training_of(config: Mapping[str, Any]) -> str:
    """What of a resolved configuration its training depends on: all but how it is measured."""
    return json.dumps({k: v for k, v in config.items() if k != "evaluation"}, sort_keys=True)


def data_of(config: Mapping[str, Any], registry: Registry) -> Data:
    """The data of a resolved configuration."""
    named = config["dataset"]
    return dataset(named["name"], json.dumps(named["options"]), registry)


def training_job(
    config: dict[str, Any], registry: Registry, data: Data, steps: int | None = None
) -> TrainingJob:
    """What a resolved configuration trains, for its own number of steps or for `steps`."""
    denoiser, objective = assemble(config, registry, data)
    settings = {**config["training"], "betas": tuple(config["training"]["betas"])}
    if steps is not None:
        settings |= {"steps": steps, "points": 1}
    conditions = config["conditions"]
    return TrainingJob(denoiser, objective, Training(**settings), config["seed"], conditions)
