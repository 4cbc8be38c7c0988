"""The U-Net: diffusers' modules fed with levels, conditions and a second level."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import testbed
from testbed.components.condition import ConditionTable
from testbed.errors import InputError, MissingExtra
from testbed.networks.unet import UNet
from testbed.random import stream
from testbed.testing.cases import awaken

SMALL = {"channels": (8, 16), "groups": 4, "head": 4}


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"needs diffusers.*diffusion-testbed\[images\]"):
        testbed.Registry().network("unet")((1, 8, 8), 0, 0)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"channels": (8, 8, 8)}, (1, 10, 12), "3 levels.*multiples of 4"),
        ({}, (2,), "it takes images"),
        ({"channels": (8, 10)}, (1, 8, 8), "multiple of groups = 4"),
        ({"attention": (4,)}, (1, 8, 8), "no level is 4 times smaller.*Levels: 1, 2"),
        ({"layers": 0}, (1, 8, 8), "must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    options: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        testbed.Registry().network("unet", **SMALL | options)(shape, 0, 0)


def unet(shape: tuple[int, ...] = (1, 8, 8), labels: int = 0, **more: Any) -> UNet:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    options = SMALL | more.pop("options", {})
    module = testbed.Registry().network("unet", **options)(shape, labels, 0, **more)
    assert isinstance(module, UNet)
    return module.eval()


def batch(shape: tuple[int, ...], n: int = 3) -> tuple[Tensor, Tensor]:
    generator = stream(0, "tests/unet")
    return torch.randn(n, *shape, generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize(("size", "levels"), [(8, 4), (28, 3), (6, 2), (7, 1)])
def test_sizes_that_the_levels_divide_are_taken(size: int, levels: int) -> None:
    options = {"channels": (8,) * levels, "attention": ()}
    module = unet((1, size, size), options=options)
    x, c = batch((1, size, size))
    assert module(x, c).shape == x.shape


def test_the_last_layer_alone_was_changed() -> None:
    """The other weights are those that diffusers draws."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = diffusers.UNet2DModel(
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
        )
    mine, wanted = unet().unet.state_dict(), theirs.state_dict()
    assert mine.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.startswith("conv_out."):
            assert not bool(mine[name].any())
        else:
            assert torch.equal(mine[name], value), name


@pytest.mark.parametrize(
    ("kind", "unit"), [("index", 1.0), ("time", 1000.0), ("sigma", 64.0), ("log_sigma", 250.0)]
)
def test_it_is_diffusers_module_at_a_multiple_of_c_noise(kind: str, unit: float) -> None:
    module = unet(noise_kind=kind)
    awaken(module)
    x, c = batch((1, 8, 8))
    c = c if kind != "index" else torch.tensor([0.0, 3.0, 999.0])
    none = torch.zeros(3, 32)
    wanted = module.unet(x, unit * c, class_labels=none).sample
    assert torch.equal(module(x, c), wanted)


@pytest.mark.slow
def test_levels_are_not_cut_to_whole_numbers() -> None:
    module = unet(noise_kind="index")
    awaken(module)
    x, _ = batch((1, 8, 8), 1)
    first, second = (module(x, torch.tensor([t])) for t in (3.0, 3.25))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_images_are_further_channels_whose_weights_start_at_zero() -> None:
    rows = torch.randn(2, 2, 8, 8, generator=stream(0, "maps"))
    module, plain = unet(tables={"map": ConditionTable("image", rows)}), unet()
    first, alone = module.unet.conv_in.weight, plain.unet.conv_in.weight
    assert torch.equal(first[:, :1], alone)
    assert first.shape[1] == 3
    assert not bool(first[:, 1:].any())
    with pytest.raises(InputError, match="height and width must be equal"):
        unet((1, 4, 4), tables={"map": ConditionTable("image", rows)})


def test_tokens_are_attended_to_where_attention_is() -> None:
    rows = torch.randn(2, 3, 5, generator=stream(0, "tokens"))
    module = unet(tables={"text": ConditionTable("tokens", rows)})
    kind = type(module.unet).__name__
    assert kind == "UNet2DConditionModel"
    assert type(module.unet.down_blocks[0]).__name__ == "DownBlock2D"
    assert type(module.unet.down_blocks[1]).__name__ == "CrossAttnDownBlock2D"
