"""The models of diffusers that networks with conditions are, and the pipelines of these models.

A `unet` with classes is a UNet2DModel, with texts a UNet2DConditionModel; a `dit` with classes is a
DiTTransformer2DModel. Weights are copied, and what is a layer of ours and none of theirs is
refused by name.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.data import text_encoder
from testbed.data.latents import Latents
from testbed.errors import InputError
from testbed.networks.dit import EPS, DiT
from testbed.networks.unet import UNet
from testbed.trial.config import TrialConfig
from testbed.trial.texts import TextEncoder

NONE = 1000
"""DiTPipeline's class for none; of fewer classes those between are zero."""
SIDES = 8
"""The sides of StableDiffusionPipeline's images are multiples of it."""


@dataclass(frozen=True)
class ConditionedModel:
    """A network with a condition as a pipeline of diffusers calls it.

    Args:
        name: the class of the pipeline.
        module: the model of diffusers, with the weights of the trial.
        keyword: the argument by which it is given the condition.
        value: classes (B,), -1 where they are off, to what that argument is given.
        condition: the name of the condition in the trial.
        pipeline: the pipeline of a scheduler.
        notes: what a user of it must know, a sentence each.
    """

    name: str
    module: nn.Module
    keyword: str
    value: Callable[[Tensor], Tensor]
    condition: str
    pipeline: Callable[[Any], Any]
    notes: tuple[str, ...] = ()


def conditioned(
    diffusers: Any, network: nn.Module, config: TrialConfig, data: Data, sampler: Any
) -> ConditionedModel:
    """The model of a bundled network with one condition.

    Args:
        diffusers: the module.
        network: that of the trial.
        config, data: those of the trial.
        sampler: the pipeline of models without a condition, DDPMPipeline or DDIMPipeline.

    Raises:
        InputError: there is no such model or pipeline; the message says what of it there is not.
    """
    (name, *more) = config.conditions
    of_text = name in data.texts and name in data.tables
    if more or not (name == "label" or of_text):
        raise InputError(
            f"it has conditions ({', '.join(config.conditions)}), and a pipeline of diffusers has "
            "the label alone, or one condition of texts with a text encoder."
        )
    if isinstance(network, DiT):
        return _transformer(diffusers, network, config, data)
    if not isinstance(network, UNet):
        raise InputError(
            f"it has conditions ({name}), and of its network {config.network.name!r} it is not "
            "known what a pipeline of diffusers would give it: those of unet and dit are."
        )
    if of_text:
        assert config.text_encoder is not None
        return _attending(diffusers, network, name, config.text_encoder, data)
    return _classes(diffusers, network, config.conditions[name] > 0, data, sampler)


def autoencoder(first_stage: Latents) -> Any:
    """The AutoencoderKL of a first stage, whose config.json has the scale of its latents.

    z = scale (E(x) - shift) and x = Dec(z/scale + shift): diffusers' pipelines have no shift, which
    goes into the offsets of the 1 x 1 convolutions that E ends and Dec begins with.

    Raises:
        InputError: a shift, and an AutoencoderKL without these convolutions.
    """
    found: Any = copy.deepcopy(first_stage.autoencoder).float().cpu().eval()
    shift = first_stage.shift
    if shift is not None and bool(shift.any()):
        last, first = found.quant_conv, found.post_quant_conv
        if last is None or first is None:
            raise InputError(
                "its latents have a shift, and its AutoencoderKL no quant_conv that would take it: "
                'train with encoder.shift = "none".'
            )
        shift = shift.float().cpu()
        with torch.no_grad():
            first.bias += first.weight[:, :, 0, 0] @ shift
            last.bias[: len(shift)] -= shift
    found.register_to_config(scaling_factor=float(first_stage.scale), shift_factor=None)
    return found


def _settings(model: Any, shape: tuple[int, ...], **changed: Any) -> dict[str, Any]:
    """The settings of a diffusers model for samples of a shape."""
    stated = {key: value for key, value in model.config.items() if not key.startswith("_")}
    size = shape[1] if shape[1] == shape[2] else list(shape[1:])
    return {**stated, "sample_size": size, "class_embed_type": None, **changed}


def _built(kind: Any, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """A model of diffusers with these weights, which are all that it has, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        found = kind(**settings)
    missing, unexpected = found.load_state_dict(weights, strict=False)
    # The places of patches are a buffer, which some versions keep.
    assert not unexpected, unexpected
    assert set(missing) <= {"pos_embed.pos_embed"}, missing
    return found.eval()


def _rows(classes: Tensor, rows: int, none: Tensor) -> Tensor:
    """The embeddings of `rows` classes, zero for those that there are not, and that of none.

    Raises:
        InputError: there are more classes than DiTPipeline knows.
    """
    if len(classes) > rows:
        raise InputError(f"it has {len(classes)} classes, and DiTPipeline at most {rows}.")
    found = torch.zeros(rows + 1, classes.shape[1])
    found[: len(classes)], found[rows] = classes, none
    return found


def _or_none(classes: Tensor, none: int) -> Tensor:
    return classes.where(classes >= 0, none)


def _square(shape: tuple[int, ...]) -> None:
    if shape[1] != shape[2]:
        raise InputError(
            f"its samples have shape {shape}, and DiTPipeline draws squares: height and width must "
            "be equal."
        )


def _dit_pipeline(
    diffusers: Any, module: nn.Module, vae: Any, classes: int
) -> Callable[[Any], Any]:
    """The DiTPipeline of a scheduler, whose classes are called by their numbers."""

    def pipeline(scheduler: Any) -> Any:
        found = diffusers.DiTPipeline(transformer=module, vae=vae, scheduler=scheduler)
        # model_index.json has what is registered, and of the names of classes that is none.
        found.register_to_config(id2label={k: str(k) for k in range(classes)})
        return found

    return pipeline


def _classes(
    diffusers: Any, network: UNet, dropped: bool, data: Data, sampler: Any
) -> ConditionedModel:
    """UNet2DModel with classes, whose embeddings are added to that of the time.

    That of none is zero. Of latents it is the network of DiTPipeline, the one pipeline that gives
    its network classes; of images there is none, and its folder is that of the scheduler.
    """
    embedding = network.conditions["label"].get_parameter("weight").detach()
    classes, stage = len(embedding), data.first_stage
    none = NONE if stage is not None else classes
    weights = dict(network.unet.state_dict())
    weights["class_embedding.weight"] = _rows(embedding, none, torch.zeros(embedding.shape[1]))
    settings = _settings(network.unet, data.shape, num_class_embeds=none + 1)
    module = _built(diffusers.UNet2DModel, settings, weights)
    value = functools.partial(_or_none, none=none)
    never = () if dropped else (f"Class {none} is for none, which the network never saw.",)
    if isinstance(stage, Latents):
        _square(data.shape)
        of_latents = _dit_pipeline(diffusers, module, autoencoder(stage), classes)
        return ConditionedModel(
            "DiTPipeline", module, "class_labels", value, "label", of_latents, never
        )
    note = (
        f"{sampler.__name__} gives its network no classes: in a loop of its scheduler call "
        f"unet(x, t, class_labels=...); class {none} is for none."
    )

    def of_images(scheduler: Any) -> Any:
        return sampler(unet=module, scheduler=scheduler)

    return ConditionedModel(
        sampler.__name__, module, "class_labels", value, "label", of_images, (note, *never)
    )


def _attending(
    diffusers: Any, network: UNet, name: str, encoder: TextEncoder, data: Data
) -> ConditionedModel:
    """UNet2DConditionModel with the projection of the states as its `encoder_hid_proj`.

    StableDiffusionPipeline pads each text to `model_max_length`, takes the encoder's result, and
    gives the network all of these states without a mask.
    """
    stated = {"padding": "states", "null": "empty", "layer": -1}
    for key, wanted in stated.items():
        if (found := getattr(encoder, key)) != wanted:
            raise InputError(
                f"text_encoder.{key} = {found!r}: StableDiffusionPipeline gives its network what "
                f"{key} = {wanted!r} is: train with that."
            )
    assert network.tokens is not None
    table, project = data.tables[name], network.tokens.project[name]
    weights = dict(network.unet.state_dict())
    for end, tensor in project.state_dict().items():
        weights[f"encoder_hid_proj.{end}"] = tensor
    settings = _settings(
        network.unet,
        data.shape,
        encoder_hid_dim=table.shape[1],
        encoder_hid_dim_type="text_proj",
    )
    module = _built(diffusers.UNet2DConditionModel, settings, weights)

    def states(classes: Tensor) -> Tensor:
        assert table.off is not None
        return table.rows[_or_none(classes, table.off)]

    model, tokenizer = text_encoder.loaded(text_encoder.Folders.of(encoder.path))
    tokenizer.model_max_length = encoder.tokens
    stage = data.first_stage
    vae = None
    if isinstance(stage, Latents):
        sides = [stage.stride * side for side in data.shape[1:]]
        if any(side % SIDES for side in sides):
            raise InputError(
                f"its images have sides of {sides[0]} and {sides[1]} pixels, and "
                f"StableDiffusionPipeline draws multiples of {SIDES}."
            )
        vae = autoencoder(stage)
    notes = () if vae is not None else (
        "It has no VAE, since its samples are no latents: load it with vae=None and call it with "
        'output_type="latent", which gives them.',
    )  # fmt: skip

    def pipeline(scheduler: Any) -> Any:
        return diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=model,
            tokenizer=tokenizer,
            unet=module,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return ConditionedModel(
        "StableDiffusionPipeline", module, "encoder_hidden_states", states, name, pipeline, notes
    )


def _transformer(diffusers: Any, network: DiT, config: TrialConfig, data: Data) -> ConditionedModel:
    """DiTTransformer2DModel, of which each block has embeddings of its own: copies of ours."""
    width = network.places.shape[1]
    hidden = network.blocks[0].get_parameter("inner.weight").shape[0]
    stage = data.first_stage
    model = "DiTTransformer2DModel"
    reasons = {
        f"it has conditions ({', '.join(config.conditions)}), and DiTPipeline gives its network "
        "the label alone": "label" not in config.conditions,
        "its samples are no latents, which DiTPipeline decodes": not isinstance(stage, Latents),
        f"network.bottleneck is not 0, and {model} takes patches by one layer": not isinstance(
            network.first, nn.Linear
        ),
        f"network.skip is true, and {model} adds no x to its output": network.skip is not None,
        f"network.mlp_ratio = {hidden / width:g}, and that of {model} is 4": hidden != 4 * width,
    }
    if why := [reason for reason, holds in reasons.items() if holds]:
        raise InputError(f"{why[0]}.")
    assert isinstance(stage, Latents)
    _square(data.shape)
    attention: Any = network.blocks[0].attention
    settings = {
        "num_attention_heads": attention.heads,
        "attention_head_dim": width // attention.heads,
        "in_channels": network.channels,
        "out_channels": network.last.out_features // network.patch**2,
        "num_layers": len(network.blocks),
        "sample_size": data.shape[1],
        "patch_size": network.patch,
        "num_embeds_ada_norm": NONE,
        "norm_eps": EPS,
    }
    classes = len(network.conditions["label"].get_parameter("weight")) - 1
    module = _built(diffusers.DiTTransformer2DModel, settings, _renamed(network))
    pipeline = _dit_pipeline(diffusers, module, autoencoder(stage), classes)
    value = functools.partial(_or_none, none=NONE)
    return ConditionedModel("DiTPipeline", module, "class_labels", value, "label", pipeline)


def _renamed(network: DiT) -> dict[str, Tensor]:
    """The weights of a `dit` by the names that DiTTransformer2DModel has for them."""
    mine, C, p = network.state_dict(), network.channels, network.patch
    rows = mine["conditions.label.weight"]
    rows = _rows(rows[:-1], NONE, rows[-1])
    found = {
        "pos_embed.proj.weight": mine["first.weight"].view(-1, C, p, p),
        "pos_embed.proj.bias": mine["first.bias"],
    }
    for end in ("weight", "bias"):
        found[f"proj_out_1.{end}"] = mine[f"modulation.{end}"]
        found[f"proj_out_2.{end}"] = mine[f"last.{end}"]
    for i in range(len(network.blocks)):
        theirs, ours = f"transformer_blocks.{i}", f"blocks.{i}"
        embeddings = f"{theirs}.norm1.emb"
        found[f"{embeddings}.class_embedder.embedding_table.weight"] = rows
        for end in ("weight", "bias"):
            k, v = mine[f"{ours}.attention.key_value.{end}"].chunk(2)
            found |= {
                f"{embeddings}.timestep_embedder.linear_1.{end}": mine[f"noise.inner.{end}"],
                f"{embeddings}.timestep_embedder.linear_2.{end}": mine[f"noise.outer.{end}"],
                f"{theirs}.norm1.linear.{end}": mine[f"{ours}.modulation.{end}"],
                f"{theirs}.attn1.to_q.{end}": mine[f"{ours}.attention.query.{end}"],
                f"{theirs}.attn1.to_k.{end}": k,
                f"{theirs}.attn1.to_v.{end}": v,
                f"{theirs}.attn1.to_out.0.{end}": mine[f"{ours}.attention.out.{end}"],
                f"{theirs}.ff.net.0.proj.{end}": mine[f"{ours}.inner.{end}"],
                f"{theirs}.ff.net.2.{end}": mine[f"{ours}.outer.{end}"],
            }
    return found
