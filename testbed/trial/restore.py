"""A trained trial, read back from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError, one_line
from testbed.registry import Registry
from testbed.sampling.pipeline import Pipeline
from testbed.trial.build import assemble, component, data_of, dataset, module_of, registry_of
from testbed.trial.config import TrialConfig
from testbed.trial.folders import TrialFolder
from testbed.trial.guided import Guide
from testbed.trial.storage import local
from testbed.trial.study_folder import StudyFolder, studies
from testbed.trial.texts import encoded


def find(trial: str | Path) -> Path:
    """The directory of a trial given by path, by URL, or by its id's first letters below ./runs.

    Raises:
        InputError: none, or several.
    """
    at = local(trial)
    if TrialFolder.at(at).has("trial.json"):
        return at
    found = [
        one.path
        for study in studies(Path("runs"))
        for one in study.trials()
        if str(trial) and one.name.startswith(str(trial))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(map(str, found[:4]))
        raise InputError(f"trial {str(trial)!r} fits {len(found)} trials: {several} ...")
    raise InputError(f"trial {str(trial)!r} is neither a trial's folder nor an id below ./runs.")


def load(trial: str | Path, device: str = "cpu") -> Denoiser:
    """The trained Denoiser of a trial, with its averaged weights, in evaluation mode.

    Args:
        trial: its folder, or the first letters of its id below ./runs.
        device: where to put it.

    Raises:
        InputError: no such trial, or one without weights yet.
        UnknownName: its plugins are not loaded.
    """
    denoiser, _, _, _ = restore(trial, device)
    return denoiser


def restore(
    trial: str | Path, device: str = "cpu", prompts: Mapping[str, Sequence[str]] | None = None
) -> tuple[Denoiser, Data, TrialConfig, Registry]:
    """The trained Denoiser, its data, its configuration and its registry; see `load`.

    Args:
        prompts: name of a condition -> texts that it and the data are to know besides their own: of
            a trial with a text encoder any, else those of the data.

    Raises:
        InputError: as `load`, and for a prompt that there is not.
    """
    at = find(trial)
    folder = TrialFolder.at(at)
    described = folder.json("trial.json")
    if not folder.has("weights.safetensors"):
        state = StudyFolder.at(at.parents[1]).state(at.name)
        raise InputError(f"trial {at} has no weights yet: it is {state}.")
    try:
        config = TrialConfig.model_validate(described["config"])
        registry = registry_of(tuple(described["plugins"]), tuple(described["plugin_dirs"]))
        data = data_of(config, registry)
        if prompts:
            data = encoded(
                dataset(registry, config.dataset, config.encoder), config.text_encoder, prompts
            )
        denoiser, _ = assemble(config, registry, data)
        module_of(denoiser).load_state_dict(folder.tensors("weights.safetensors"))
    except InputError:
        raise
    except Exception as problem:  # a damaged file raises whatever its damage leads to
        raise InputError(f"trial {at} cannot be restored: {one_line(problem)}") from problem
    return denoiser.to(device).eval(), data, config, registry


def pipeline(
    trial: str | Path, device: str = "cpu", prompts: Mapping[str, Sequence[str]] | None = None
) -> Pipeline:
    """What draws samples of a trained trial as its study did, with its sampler and guidance.

    Arguments and errors are those of `restore`.
    """
    denoiser, data, config, registry = restore(trial, device, prompts)
    return pipeline_of(denoiser, data, config, registry, torch.device(device))


def pipeline_of(
    denoiser: Denoiser,
    data: Data,
    config: TrialConfig,
    registry: Registry,
    device: torch.device,
) -> Pipeline:
    """The pipeline of a denoiser on a device, which is that of this trial."""
    guide = Guide(config, registry, data, denoiser, device)
    evaluation = config.evaluation
    shown = (data.pixels or data).train
    return Pipeline(
        denoiser,
        data.shape,
        config.sampled,
        component(registry, "sampler", evaluation.sampler),
        component(registry, "schedule", evaluation.schedule),
        evaluation.steps,
        denoiser.sigma_data,
        classes={name: data.classes[name] for name in (*config.conditions, *guide.names)},
        texts={name: data.texts[name] for name in config.conditions if name in data.texts},
        always=frozenset(name for name, rate in config.conditions.items() if rate == 0),
        table=denoiser.table,
        trained=config.trained,
        extent=(float(shown.min()), float(shown.max())),
        first_stage=data.first_stage,
        own=guide.trained,
        device=device,
    )
