"""Samples of image networks: `testbed.Pipeline` beside the pipeline of diffusers, DDIM's steps.

Both have the same weights, start in the same noise and take the same levels, so that they end in
the same images but for rounding: `apart` says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)
from memory import memory
from side import Figure, clock_of, interleaved, ratios, wait
from torch import Tensor
from trials import REGISTRY

import testbed
from testbed.data.latents import Latents
from testbed.trial.build import module_of

IMAGES, STEPS, SCALE = 4, 20, 4.0
SIZE, CHANNELS = 16, 4
CLASSES = 1000
"""The number by which DiTPipeline switches a class off."""


class Timed:
    """A call that draws images, with the seconds of each call that pass within its networks.

    Args:
        draw: it returns images in [0, 1], (n, C, H, W).
        within: the modules, each with the name of its method that is timed.
        device: where they are.
    """

    def __init__(
        self, draw: Callable[[], Tensor], within: list[tuple[Any, str]], device: torch.device
    ) -> None:
        self.draw, self.device, self.clock = draw, device, clock_of(device)
        self.within: list[float] = []
        for module, method in within:
            setattr(module, method, self._timed(getattr(module, method)))

    def __call__(self) -> Tensor:
        self.within.append(0.0)
        images = self.draw()
        wait(self.device)
        return images

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            wait(self.device)
            start = self.clock()
            found = method(*arguments, **named)
            wait(self.device)
            self.within[-1] += self.clock() - start
            return found

        return timed


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, timestep_spacing="leading")


def save(name: str, folder: str) -> None:
    """Writes the folder of a pipeline with random weights, which both sides load."""
    (unet if name == "unet" else dit)().save_pretrained(folder)


def unet() -> DDIMPipeline:
    """Images of one channel by a U-Net of two levels."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIZE, in_channels=1, out_channels=1, block_out_channels=(32, 64),
        layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return DDIMPipeline(network.eval(), scheduler())


def dit() -> DiTPipeline:
    """Images of one channel, by a DiT of four blocks that makes latents of four."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=CHANNELS, out_channels=CHANNELS,
        num_layers=4, norm_num_groups=1, sample_size=SIZE, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    decoder = AutoencoderKL(1, 1, block_out_channels=(8,), norm_num_groups=4, sample_size=SIZE)
    return DiTPipeline(network.eval(), decoder.eval(), scheduler())


def theirs(name: str, device: torch.device) -> Timed:
    """The pipeline of diffusers; that of `dit` is guided."""
    with TemporaryDirectory() as folder:
        save(name, folder)
        kind = DDIMPipeline if name == "unet" else DiTPipeline
        pipeline = kind.from_pretrained(folder, low_cpu_mem_usage=False).to(device)
    pipeline.set_progress_bar_config(disable=True)
    first: dict[str, Any] = {"batch_size": IMAGES}
    if name == "dit":
        first = {"class_labels": list(range(IMAGES)), "guidance_scale": SCALE}

    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images: Tensor = pipeline(
            **first, generator=generator, num_inference_steps=STEPS, output_type="pt"
        ).images
        return images

    if name == "unet":
        return Timed(draw, [(pipeline.unet, "forward")], device)
    return Timed(draw, [(pipeline.transformer, "forward"), (pipeline.vae, "decode")], device)


def ours(name: str, device: torch.device) -> Timed:
    """`testbed.Pipeline` of the model in the other pipeline's folder."""
    decoder, latents = None, None
    with TemporaryDirectory() as folder:
        save(name, folder)
        denoiser = testbed.load_diffusers(folder).to(device)
        if name == "dit":
            words = {"subfolder": "vae", "low_cpu_mem_usage": False}
            decoder = AutoencoderKL.from_pretrained(folder, **words).eval().to(device)
    if decoder is not None:
        scale = float(decoder.config.scaling_factor)
        latents = Latents(
            lambda images: decoder.encode(images).latent_dist.mean,
            lambda z: decoder.decode(z).sample,
            1, (SIZE, SIZE), scale,
        )  # fmt: skip
    network: Any = module_of(denoiser).network
    table = denoiser.table
    assert table is not None
    pipeline = testbed.Pipeline(
        denoiser,
        (1 if latents is None else CHANNELS, SIZE, SIZE),
        (float(table.sigmas[0]), float(table.sigmas[-1])),
        REGISTRY.sampler("ddim"),
        REGISTRY.schedule("table", spacing="leading"),
        STEPS,
        denoiser.sigma_data,
        classes={} if latents is None else {"label": CLASSES},
        table=table,
        first_stage=latents,
        device=device,
    )
    towards: dict[str, Any] = {}
    if latents is not None:
        towards = {"condition": {"label": list(range(IMAGES))}, "scale": SCALE}

    def draw() -> Tensor:
        images: Tensor = pipeline(IMAGES, generator=torch.Generator().manual_seed(0), **towards)
        return (images / 2 + 0.5).clamp(0, 1)

    within = [(network, "forward"), *([(decoder, "decode")] if decoder is not None else [])]
    return Timed(draw, within, device)


def sampling(name: str, rounds: int, device: torch.device) -> Iterator[Figure]:
    """Images by both pipelines: the whole time, and what passes outside of their networks."""
    works = {"ours": ours(name, device), "theirs": theirs(name, device)}
    apart = float((works["ours"]() - works["theirs"]()).abs().max())
    for work in works.values():
        work.within.clear()
    found = interleaved(works, rounds, clock_of(device))
    # The first round does not count.
    outside = {
        key: [whole - within for whole, within in zip(found[key], work.within[1:], strict=True)]
        for key, work in works.items()
    }
    figure = f"sample_{name}"
    yield Figure(
        figure, f"our samples of {name} / those of diffusers' pipeline",
        ratios(found["ours"], found["theirs"]), -1.02,
        {**{f"ms, {key}": 1000 * min(found[key]) for key in found}, "apart": apart},
    )  # fmt: skip
    yield Figure(
        figure, f"the same, outside of the networks' calls ({name})",
        ratios(outside["ours"], outside["theirs"]), -1.0,
        {f"ms, {key}": 1000 * min(outside[key]) for key in outside},
    )  # fmt: skip
    yield memory(figure, "image_sampling", name, device)
