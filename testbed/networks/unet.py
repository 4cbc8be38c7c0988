"""The U-Net: diffusers' modules, fed with what networks are fed with here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from testbed.components.condition import KINDS, ConditionTable
from testbed.components.network import Network
from testbed.errors import InputError, missing
from testbed.hookspecs import hookimpl
from testbed.networks.conditions import (
    AddedConditions,
    ClassEmbedding,
    Condition,
    Images,
    Tokens,
    VectorEmbedding,
    check,
    of_kind,
)
from testbed.networks.embeddings import NO_SECOND, NOISE, UNITS, zero_linear


def module(
    channels: tuple[int, ...],
    layers: int,
    attention: tuple[int, ...],
    head: int,
    groups: int,
    ends: tuple[int, int],
    texts: bool,
) -> nn.Module:
    """diffusers' UNet2DModel, or with texts UNet2DConditionModel, from `ends[0]` to `ends[1]`.

    Raises:
        MissingExtra: diffusers is not installed.
    """
    try:
        from diffusers import UNet2DConditionModel, UNet2DModel
    except ImportError:
        raise missing("network 'unet'", "diffusers", "images") from None
    attended = [2**i in attention for i in range(len(channels))]
    down, up = (
        tuple((f"CrossAttn{end}" if texts else f"Attn{end}") if here else end for here in order)
        for end, order in (("DownBlock2D", attended), ("UpBlock2D", attended[::-1]))
    )
    shared: dict[str, Any] = {
        "in_channels": ends[0],
        "out_channels": ends[1],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "norm_num_groups": groups,
        "down_block_types": down,
        "up_block_types": up,
        "class_embed_type": "identity",
    }
    found: nn.Module
    if texts:
        heads = tuple(width // head for width in channels)
        shared |= {"cross_attention_dim": channels[-1], "attention_head_dim": heads}
        found = UNet2DConditionModel(**shared)
    else:
        found = UNet2DModel(**shared, attention_head_dim=head)
    for parameter in found.get_submodule("conv_out").parameters():
        nn.init.zeros_(parameter)
    return found


def widened(first: nn.Conv2d, more: int) -> nn.Conv2d:
    """The layer with `more` further channels of input, whose weights are zero."""
    wide: nn.Conv2d = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, first.in_channels + more, first.out_channels, 3, padding=1
    )
    with torch.no_grad():
        nn.init.zeros_(wide.weight)
        wide.weight[:, : first.in_channels] = first.weight
        wide.get_parameter("bias").copy_(first.get_parameter("bias"))
    return wide


class UNet(nn.Module):
    """x (B, C, H, W) and c_noise (B,) to F (B, C, H, W); the last layer is set to zero here.

    The module is diffusers' own, with the names of its weights under `unet`. It gets c_noise times
    a constant by which the levels of each kind are as far apart as those of an index, which is
    taken as it is; their sines and cosines are float32's. What classes, vectors and a second noise
    level add to the embedding of the noise level, and the weights of images as further channels
    (Brooks et al. 2023, sec. 3.2), start at zero. Tokens are attended to where attention is.

    Raises:
        InputError: at building, an image of another size than x; at a call, a condition or a second
            noise level that it was built without.
    """

    unit: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        conditions: Mapping[str, int],
        tables: Mapping[str, ConditionTable],
        outputs: Mapping[str, int],
        noise_kind: str,
        second: bool,
        checkpointing: bool,
        channels: tuple[int, ...],
        layers: int,
        attention: tuple[int, ...],
        head: int,
        groups: int,
    ) -> None:
        super().__init__()
        texts, pictures = of_kind(tables, "tokens"), of_kind(tables, "image")
        ends = shape[0], sum(outputs.values())
        self.unet: Any = module(channels, layers, attention, head, groups, ends, bool(texts))
        width = 4 * channels[0]
        # A buffer, since trials of one batch may have different kinds of c_noise.
        self.register_buffer("unit", torch.tensor(UNITS.get(noise_kind, 1.0)), persistent=False)
        self.second = zero_linear(width, width, bias=False) if second else None
        self.conditions = AddedConditions(
            {name: ClassEmbedding(n, width) for name, n in conditions.items()}
            | {name: VectorEmbedding(t, width) for name, t in of_kind(tables, "vector").items()}
        )
        self.images = Images(pictures, shape) if pictures else None
        if self.images is not None:
            first = self.unet.conv_in
            assert isinstance(first, nn.Conv2d)
            self.unet.conv_in = widened(first, self.images.channels)
        self.tokens = Tokens(texts, channels[-1]) if texts else None
        self.width, self.names = width, (*conditions, *tables)
        if checkpointing:
            enable: Any = self.unet.enable_gradient_checkpointing
            enable()

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Condition | None = None,
        second: Tensor | None = None,
    ) -> Tensor:
        check(condition, self.names)
        if self.images is not None:
            x = torch.cat([x, self.images(condition, x)], 1)
        further: dict[str, Any] = {"class_labels": self._added(x, condition, second)}
        if self.tokens is not None:
            tokens, mask = self.tokens(condition, x)
            further |= {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
        F: Tensor = self.unet(x, self.unit * c_noise, return_dict=False, **further)[0]
        return F

    def with_features(
        self,
        x: Tensor,
        c_noise: Tensor,
        condition: Condition | None = None,
        second: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """F, and what each level and the middle give, "down0", ..., "mid", "up0", ..., (B, ...)."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            def hook(part: nn.Module, inputs: Any, output: Any) -> None:
                found[name] = output[0] if isinstance(output, tuple) else output

            return hook

        parts = {
            **{f"down{i}": part for i, part in enumerate(self.unet.down_blocks)},
            "mid": self.unet.mid_block,
            **{f"up{i}": part for i, part in enumerate(self.unet.up_blocks)},
        }
        handles = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
        try:
            F = self(x, c_noise, condition, second)
        finally:
            for handle in handles:
                handle.remove()
        return F, found

    def _added(self, x: Tensor, condition: Condition | None, second: Tensor | None) -> Tensor:
        """What is added to the embedding of the noise level, (B, width)."""
        total = torch.zeros(x.shape[0], self.width, dtype=x.dtype, device=x.device)
        if second is not None:
            if self.second is None:
                raise InputError(NO_SECOND)
            waves = self.unet.time_proj(self.unit * second).to(x.dtype)
            total = total + self.second(silu(self.unet.time_embedding.linear_1(waves)))
        added = self.conditions(condition, x)
        return total if added is None else total + added


def unet(
    shape: tuple[int, ...],
    conditions: Mapping[str, int],
    tables: Mapping[str, ConditionTable],
    outputs: Mapping[str, int],
    noise_kind: str,
    second: bool,
    checkpointing: bool,
    channels: tuple[int, ...] = (32, 64),
    layers: int = 1,
    attention: tuple[int, ...] = (2,),
    head: int = 8,
    groups: int = 8,
) -> UNet:
    """A U-Net of residual blocks, with attention at chosen levels (Ho et al. 2020, app. B).

    Args:
        shape: (C, H, W), H and W multiples of 2^(levels - 1).
        conditions, tables, outputs, noise_kind, second, checkpointing: as of any network.
        channels: those of each level, from the finest; each level after it is half as large.
        layers: residual blocks at each level on the way down; there is one more on the way up.
        attention: the levels with attention, by how many times smaller than x they are: 1, 2, 4,
            ... The middle, at the coarsest level, always has it.
        head: channels of a head of the attention.
        groups: groups of each group norm.

    Raises:
        InputError: sizes that do not fit; diffusers is not installed.
    """
    factors = [2**i for i in range(len(channels))]
    if not channels or min(*channels, layers, head, groups) < 1:
        raise InputError(
            f"network 'unet': channels = {channels}, layers = {layers}, head = {head} and groups = "
            f"{groups} must be positive."
        )
    if any(width % groups or width % head for width in channels):
        raise InputError(
            f"network 'unet': channels = {channels}: each must be a multiple of groups = {groups} "
            f"and of head = {head}."
        )
    if unknown := [factor for factor in attention if factor not in factors]:
        raise InputError(
            f"network 'unet': attention = {attention}: no level is {unknown[0]} times smaller than "
            f"x. Levels: {', '.join(map(str, factors))}."
        )
    if len(shape) != 3 or shape[1] % factors[-1] or shape[2] % factors[-1]:
        raise InputError(
            f"network 'unet': samples of shape {shape} with {len(channels)} levels: it takes "
            f"images (channels, height, width) whose height and width are multiples of "
            f"{factors[-1]}."
        )
    declared = shape, conditions, tables, outputs, noise_kind, second, checkpointing
    return UNet(*declared, channels, layers, attention, head, groups)


def stages(channels: tuple[int, ...] = (32, 64)) -> tuple[str, ...]:
    """The names of the features of `unet`."""
    down, up = ([f"{end}{i}" for i in range(len(channels))] for end in ("down", "up"))
    return (*down, "mid", *up)


@hookimpl
def testbed_networks() -> Iterable[Network]:
    """The U-Net."""
    yield Network(
        "unet",
        unet,
        noise=NOISE,
        shapes=((1, 8, 8), (3, 4, 6)),
        condition_kinds=KINDS,
        features=stages,
        reference="Ho et al. 2020, arXiv:2006.11239, app. B; diffusers' UNet2DModel",
    )
