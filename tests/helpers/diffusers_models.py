"""Tiny models of diffusers in folders, built where they are needed: nothing is downloaded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

needs_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="diffusers is not installed"
)
SIZE = 8
DIT = "DiTTransformer2DModel"


def unet(seed: int = 0, **settings: Any) -> Any:
    """A UNet2DModel of 8 channels for images of 1 x 8 x 8."""
    import diffusers

    small = {
        "sample_size": SIZE, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8),
        "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers.UNet2DModel(**{**small, **settings}).eval()


def conditional_unet() -> Any:
    """A UNet2DConditionModel for images of 1 x 8 x 8 and texts of width 6."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return diffusers.UNet2DConditionModel(
            sample_size=SIZE, in_channels=1, out_channels=1, block_out_channels=(8, 8),
            layers_per_block=1, norm_num_groups=4, attention_head_dim=4, cross_attention_dim=6,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip


def dit() -> Any:
    """A DiTTransformer2DModel of three classes with a learned variance, its last layer not 0."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=2,
            num_layers=1, norm_num_groups=1, sample_size=SIZE, patch_size=2, num_embeds_ada_norm=3,
        ).eval()  # fmt: skip


def write(folder: Path, model: Any, scheduler: Any, part: str = "unet") -> Path:
    """The folder of a pipeline, as save_pretrained of its parts writes it."""
    model.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        part: ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def change(file: Path, **keys: Any) -> None:
    """Writes other values of keys into a JSON file; None takes a key away."""
    content = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({key: one for key, one in content.items() if one is not None}))


class Pictures:
    """Three pictures of 1 x 8 x 8 with a little noise: far from Gaussian, so that a linear denoiser
    is beaten soon."""

    std = 0.05

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.modes = torch.randn(3, 1, SIZE, SIZE, generator=generator).sign() * 0.8

    def draw(self, n: int, seed: int) -> Tensor:
        """n pictures, (n, 1, 8, 8) float32."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(3, (n,), generator=generator)
        noise = torch.randn(n, 1, SIZE, SIZE, generator=generator)
        return self.modes[which] + self.std * noise


def train(model: nn.Module, scheduler: Any, steps: int = 150) -> None:
    """Trains a model to predict eps of the pictures, as the training loop of diffusers does."""
    pictures, generator = Pictures(), torch.Generator().manual_seed(4)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    model.train()
    for step in range(steps):
        x0 = pictures.draw(32, step)
        t = torch.randint(1000, (32,), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = (model(scheduler.add_noise(x0, eps, t), t).sample - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
