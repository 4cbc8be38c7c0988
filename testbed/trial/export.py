"""A trained trial as a pipeline of diffusers: its network, and the scheduler that reads it.

With classes or texts, and with the first stage of its latents, it is one of `export_models`.

What diffusers would give the network and make of its answer is held against what the denoiser gives
it and makes of it, level by level: a trial of which anything differs is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from testbed.checkpoints import diffusers_folders
from testbed.components.dataset import Data
from testbed.data.latents import Latents
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.inputs import flow_c_in, noise_kind, vp_c_in
from testbed.diffusion.predictions import PREDICTION_TYPES, pair_weights
from testbed.errors import InputError
from testbed.networks.embeddings import UNITS
from testbed.random import stream
from testbed.registry import Registry
from testbed.tensors import per_sample
from testbed.trial import export_models, restore
from testbed.trial.build import component, module_of
from testbed.trial.config import TrialConfig
from testbed.trial.export_models import ConditionedModel

WORDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow"}
"""The prediction types of diffusers by ours; that of flow has schedulers of its own."""
SPACINGS = ("leading", "linspace", "trailing")
LEVELS = 9
CLOSE = 1e-5
"""How far, relatively, two inputs of a network may differ that are one but for float32."""
CLOSE_OUTPUT = 1e-3
"""The same of two outputs of one network: its waves of an index are rounded by 6e-5."""
Inputs = Callable[[Tensor], tuple[Tensor, Tensor]]
"""sigma (L,) -> the states (L, C, H, W) and the times (L,) that a network gives its model."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        pipeline: the class of the pipeline, with that of its scheduler.
        notes: what a user of it must know, a sentence each.
    """

    pipeline: str
    notes: tuple[str, ...]


class Call(NamedTuple):
    """A call of the diffusers model within a network, and what the network made of it."""

    x: Tensor
    time: Tensor
    returned: Tensor
    output: Tensor
    arguments: frozenset[str]


def export(trial: str | Path, to: str | Path) -> Exported:
    """Writes a trial as a pipeline of diffusers, its weights as safetensors.

    Without a condition that is DDPMPipeline or DDIMPipeline; with texts StableDiffusionPipeline,
    with classes of latents DiTPipeline. The prediction type is the trial's, the betas are those of
    its table, and the spacing of the time steps is that of its schedule where diffusers has it. In
    the step to 0 abar is 1, and nothing is clipped, as in the trial's own sampling.

    Args:
        trial: its folder, or the first letters of its id below ./runs.
        to: the folder to write; it must be empty, or not exist.

    Raises:
        InputError: no such trial, diffusers is not installed, the folder holds something, or the
            trial is no model of diffusers; the message says what of it is not.
    """
    diffusers = diffusers_folders.imported(f"what is exported from {trial}")
    folder = Path(to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--to {folder}: it exists and is not empty.")
    denoiser, data, config, registry = restore.restore(trial)
    try:
        pipeline, notes = _pipeline(diffusers, denoiser, data, config, registry)
    except InputError as problem:
        raise InputError(f"trial {trial} cannot be exported: {problem}") from None
    pipeline.save_pretrained(folder, safe_serialization=True)
    scheduler = pipeline.scheduler
    name = f"{type(pipeline).__name__} with {type(scheduler).__name__}"
    return Exported(name, (*notes, *_notes(config, data, scheduler)))


def _pipeline(
    diffusers: Any, denoiser: Denoiser, data: Data, config: TrialConfig, registry: Registry
) -> tuple[Any, tuple[str, ...]]:
    """The pipeline of a trial, and what a user of it must know besides.

    Raises:
        InputError: there is none; the message says what of the trial has no place in one.
    """
    prediction = _prediction(denoiser)
    ancestral = config.evaluation.sampler.name == "ddpm" or prediction == "flow"
    kind = diffusers.DDPMPipeline if ancestral else diffusers.DDIMPipeline
    if not config.conditions:
        model = _model(diffusers, denoiser, config)
        if data.first_stage is not None:
            raise InputError(
                "its samples are latents, and no pipeline of diffusers decodes those of a network "
                "without classes or texts."
            )

        def given(sigma: Tensor) -> tuple[Tensor, Tensor]:
            call = _call(denoiser, model, sigma, data)
            return call.x, call.time

        scheduler = _scheduler(diffusers, denoiser, given, prediction, config, registry, data)
        return kind(unet=_as_called(diffusers, model, data.shape), scheduler=scheduler), ()
    found = export_models.conditioned(diffusers, module_of(denoiser), config, data, kind)
    inputs = _inputs(denoiser, config, data)
    scheduler = _scheduler(diffusers, denoiser, inputs, prediction, config, registry, data)
    _check_scheduler(found.name, scheduler)
    if denoiser.learned_variance and found.name != diffusers.DiTPipeline.__name__:
        raise InputError(f"its variance is learned, which {found.name} does not read.")
    _check_output(denoiser, found, inputs, data)
    return found.pipeline(scheduler), found.notes


def _inputs(denoiser: Denoiser, config: TrialConfig, data: Data) -> Inputs:
    """What a bundled network gives its model: c_in x, and c_noise in units of an index."""
    unit = UNITS[noise_kind(config.c_noise, denoiser.parameterization)]

    def given(sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in, time = denoiser.inputs(sigma)
        x = _state(sigma, data)
        return per_sample(c_in, x).float() * x, unit * time

    return given


def _check_scheduler(name: str, scheduler: Any) -> None:
    """InputError unless the pipeline of that name samples with a scheduler as it is."""
    if name not in ("DiTPipeline", "StableDiffusionPipeline"):
        return
    if not hasattr(scheduler, "scale_model_input"):
        raise InputError(f"its output is a flow, and {name} takes no scheduler of flows.")
    offset = scheduler.config.steps_offset
    if name == "StableDiffusionPipeline" and offset != 1:
        raise InputError(
            f"evaluation.schedule: steps_offset = {offset} with leading steps, and {name} has 1: "
            'write { name = "table", spacing = "leading", steps_offset = 1 }.'
        )


def _check_output(denoiser: Denoiser, found: ConditionedModel, inputs: Inputs, data: Data) -> None:
    """InputError unless the model returns what the trial's network does, with and without y."""
    sigma = torch.logspace(-1, 1, LEVELS, dtype=torch.float64)
    y = torch.arange(LEVELS) % (data.classes[found.condition] + 1) - 1
    x, time = inputs(sigma)
    with torch.no_grad():
        F = denoiser.network(x, denoiser.inputs(sigma)[1].float(), {found.condition: y})
        theirs = found.module(x, time.float(), **{found.keyword: found.value(y)}).sample
    if not torch.allclose(F, theirs, rtol=0, atol=CLOSE_OUTPUT * float(F.abs().max())):
        raise InputError(
            f"its network returns something else than {type(found.module).__name__} with its "
            "weights does."
        )


def _model(diffusers: Any, denoiser: Denoiser, config: TrialConfig) -> nn.Module:
    """The diffusers model that the network of a trial without conditions is.

    Raises:
        InputError: it is none, or has a learned variance.
    """
    network = module_of(denoiser)
    found = next((one for one in network.modules() if isinstance(one, diffusers.UNet2DModel)), None)
    if found is None:
        raise InputError(
            f"its network {config.network.name!r} has no UNet2DModel of diffusers, which is what "
            "DDPMPipeline and DDIMPipeline take."
        )
    own = {id(one) for one in found.parameters()}
    if any(id(one) not in own for one in network.parameters()):
        raise InputError(
            f"its network {config.network.name!r} has weights besides those of its UNet2DModel."
        )
    if denoiser.learned_variance:
        raise InputError("its variance is learned, which these pipelines do not read.")
    model: nn.Module = found.float().eval()
    return model


def _as_called(diffusers: Any, model: Any, shape: tuple[int, ...]) -> nn.Module:
    """The model as these pipelines call it: with the size of a sample, and without an embedding.

    That of `unet` adds the embeddings of conditions, of which there are none.
    """
    stated = {key: value for key, value in model.config.items() if not key.startswith("_")}
    stated |= {"sample_size": list(shape[1:]), "class_embed_type": None}
    with torch.random.fork_rng(devices=[]):
        found: nn.Module = diffusers.UNet2DModel(**stated)
    found.load_state_dict(model.state_dict())
    return found.eval()


def _prediction(denoiser: Denoiser) -> str:
    """Which of `WORDS` the network returns.

    Raises:
        InputError: none of them.
    """
    p, sigma = denoiser.parameterization, torch.logspace(-2, 2, LEVELS, dtype=torch.float64)
    if p.affine:
        mine = torch.stack(p.pair_weights(sigma, sigma_data=denoiser.sigma_data))
        for name in WORDS:
            theirs = torch.stack(pair_weights(name, sigma))
            if torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12):
                return name
    others = ", ".join(name for name in PREDICTION_TYPES if name in WORDS)
    raise InputError(
        f"its network returns the F of {p.name}: a scheduler of diffusers with a table reads "
        f"{others} alone."
    )


def _scheduler(
    diffusers: Any,
    denoiser: Denoiser,
    inputs: Inputs,
    prediction: str,
    config: TrialConfig,
    registry: Registry,
    data: Data,
) -> Any:
    """The scheduler that gives the network what the denoiser gives it.

    Raises:
        InputError: none does.
    """
    if prediction == "flow":
        return _of_flow(diffusers, denoiser, inputs, data)
    table = denoiser.table
    if table is None:
        raise InputError(
            "its noise levels are continuous, and such a pipeline of diffusers knows those of a "
            'table alone: train with a table, such as table = "ddpm", and c_noise = "index".'
        )
    sigma = table.sigmas[:: max(1, len(table.sigmas) // LEVELS)]
    x, time = inputs(sigma)
    _same("c_in x", x, per_sample(vp_c_in(sigma, 1.0), x) * _state(sigma, data),
          'alpha x, which is c_in = "vp"')  # fmt: skip
    _same("c_noise", time, table.index(sigma), 'the index of the level, c_noise = "index"')
    spec = config.evaluation.schedule
    spacing = str(spec.options.get("spacing", ""))
    abar = 1 / (1 + table.sigmas**2)
    before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    settings: dict[str, Any] = {
        "num_train_timesteps": len(abar),
        "trained_betas": (1 - abar / before).tolist(),
        "prediction_type": WORDS[prediction],
        "timestep_spacing": spacing if spacing in SPACINGS else "trailing",
        "steps_offset": int(spec.options.get("steps_offset", 0)) if spacing == "leading" else 1,
        "clip_sample": False,
    }
    if config.evaluation.sampler.name == "ddpm":
        sampler = component(registry, "sampler", config.evaluation.sampler)
        size = "large" if sampler.options.get("variance") == "large" else "small"
        return diffusers.DDPMScheduler(**settings, variance_type=f"fixed_{size}")
    return diffusers.DDIMScheduler(**settings, set_alpha_to_one=True)


def _of_flow(diffusers: Any, denoiser: Denoiser, inputs: Inputs, data: Data) -> Any:
    """Flow matching, whose scheduler gives the network n t: n is what it is made for."""
    sigma = torch.logspace(-1.5, 1.5, LEVELS, dtype=torch.float64)
    if denoiser.table is not None:
        sigma = denoiser.table.sigmas[: -1 : max(1, len(denoiser.table.sigmas) // LEVELS)]
    x, time = inputs(sigma)
    _same("c_in x", x, per_sample(flow_c_in(sigma, 1.0), x) * _state(sigma, data),
          '(1 - t) x, which is c_in = "flow"')  # fmt: skip
    t = sigma / (1 + sigma)
    n = round(float((time.double() / t)[-1]))
    _same("c_noise", time, n * t, "n times the flow's time t, with a whole number n")
    if n < 2:
        raise InputError(
            "its network is given the flow's time t itself, and a scheduler of diffusers gives "
            "n t, n the number of its levels."
        )
    return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=n)


def _state(sigma: Tensor, data: Data) -> Tensor:
    """x at each level, (L, *shape) float32."""
    x = torch.randn(len(sigma), *data.shape, generator=stream(0, "export"))
    return x * per_sample((1 + sigma**2).sqrt(), x).float()


def _call(denoiser: Denoiser, model: nn.Module, sigma: Tensor, data: Data) -> Call:
    """What the model is given at these levels, and what comes of it.

    Raises:
        InputError: it is called another number of times than once, with more than a state and a
            time, or what it returns is changed.
    """
    calls: list[tuple[Any, Any, Any]] = []

    def keep(module: nn.Module, given: Any, named: Mapping[str, Any], returned: Any) -> None:
        calls.append((given, dict(named), returned))

    handle = model.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            F = denoiser.output(_state(sigma, data), sigma)
    finally:
        handle.remove()
    if len(calls) != 1:
        raise InputError(f"its network calls its UNet2DModel {len(calls)} times.")
    given, named, returned = calls[0]
    bound = dict(zip(("sample", "timestep", "class_labels"), given, strict=False)) | named
    extra = {key for key, one in bound.items() if isinstance(one, Tensor)} - {"sample", "timestep"}
    config: Any = model.config
    if config.class_embed_type == "identity" and not bool(bound["class_labels"].any()):
        extra -= {"class_labels"}  # zeros are added, which is nothing
    if extra:
        raise InputError(
            f"its network gives its UNet2DModel {', '.join(sorted(extra))} too, and these "
            "pipelines do not."
        )
    raw = returned[0] if isinstance(returned, tuple) else returned.sample
    time = torch.as_tensor(bound["timestep"]).expand(len(sigma))
    call = Call(bound["sample"], time, raw, F, frozenset(bound))
    if not torch.equal(call.returned, call.output):
        raise InputError("its network changes what its UNet2DModel returns.")
    return call


def _same(what: str, mine: Tensor, theirs: Tensor, words: str) -> None:
    """InputError unless the network is given what diffusers would give it."""
    mine, theirs = mine.double(), theirs.double()
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=CLOSE, atol=CLOSE):
        raise InputError(f"its network is given another {what} than diffusers gives it: {words}.")


def _notes(config: TrialConfig, data: Data, scheduler: Any) -> list[str]:
    notes = []
    spec = config.evaluation.schedule
    stated = str(spec.options.get("spacing", ""))
    if hasattr(scheduler.config, "timestep_spacing") and stated not in SPACINGS:
        notes.append(
            f"Its samples follow the schedule {spec.name!r}, which diffusers has not: the time "
            "steps are spaced as trailing."
        )
    shown = (data.pixels or data).train
    low, high = float(shown.min()), float(shown.max())
    if low < -1.01 or high > 1.01:
        notes.append(
            f"Its data lie in [{low:.3g}, {high:.3g}]: the pipeline takes its output for images in "
            "[-1, 1] and cuts it to them."
        )
    stage = data.first_stage
    if isinstance(stage, Latents):
        drawn = tuple(stage.stride * side for side in data.shape[1:])
        if drawn != stage.size:
            notes.append(f"Its images have {drawn} pixels, of which the data have {stage.size}.")
        if stage.dtype != torch.float32:
            notes.append(f"Its first stage is in float32 there, and in {stage.dtype} here.")
    if config.noise.name != "white":
        notes.append(f"It was trained with the noise {config.noise}: the pipeline starts in white.")
    return notes
