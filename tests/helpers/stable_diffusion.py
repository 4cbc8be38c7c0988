"""A tiny pipeline with the layout of Stable Diffusion, and what diffusers samples from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.encoders import clip
from torch import Tensor, nn

SHAPE = (4, 8, 8)
"""Of a latent; an image is 3 x 16 x 16."""
WIDTH = 16
"""Of the states of its text encoder."""


def seeded(seed: int, make: Any) -> Any:
    """What `make` builds with the global generator of this seed, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def vae(channels: int = 3) -> Any:
    """An AutoencoderKL of images (channels, 16, 16), whose latents are multiplied by 0.5."""
    import diffusers

    return seeded(5, lambda: diffusers.AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=SHAPE[0], sample_size=16,
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.5,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ))  # fmt: skip


def attending_unet(width: int = WIDTH) -> Any:
    """A UNet2DConditionModel of latents, whose output depends on the text as much as on x."""
    import diffusers

    network = seeded(6, lambda: diffusers.UNet2DConditionModel(
        sample_size=SHAPE[1], in_channels=SHAPE[0], out_channels=SHAPE[0], layers_per_block=1,
        block_out_channels=(8, 8), norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ))  # fmt: skip
    for name, parameter in network.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    return network


def stable_diffusion(folder: Path) -> Path:
    """The folder of a StableDiffusionPipeline, as save_pretrained writes it; it predicts eps.

    Its scheduler is that of Stable Diffusion but for its last step, which goes to abar = 1.
    """
    import diffusers
    import transformers

    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
        clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    text = clip(folder.parent / f"{folder.name} text")
    diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=transformers.CLIPTextModel.from_pretrained(text),
        tokenizer=transformers.AutoTokenizer.from_pretrained(text),
        unet=attending_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def by_stable_diffusion(
    folder: Path, z: Tensor, prompts: Sequence[str], scale: float, steps: int
) -> tuple[Tensor, Tensor]:
    """The latents and images of diffusers' own pipeline from the noise z, in float64.

    The states of the prompts are those of its encoder in float32. abar, which diffusers keeps in
    float32, is computed from the betas in float64. Without a VAE there are no images.
    """
    import diffusers

    absent = {} if (folder / "vae").is_dir() else {"vae": None}
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        states, empty = pipeline.encode_prompt(list(prompts), "cpu", 1, True)
    pipeline = pipeline.to(torch.float64)
    pipeline.scheduler.alphas_cumprod = exact_abar(pipeline.scheduler)
    latents = pipeline(
        prompt_embeds=states.double(), negative_prompt_embeds=empty.double(), latents=z,
        guidance_scale=scale, num_inference_steps=steps, output_type="latent",
    ).images  # fmt: skip
    if pipeline.vae is None:
        return latents, latents
    with torch.no_grad():
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return latents, images


def exact_abar(scheduler: Any) -> Tensor:
    """abar of a scheduler's betas, stated or scaled-linear, in float64."""
    of = scheduler.config
    roots = torch.linspace(of.beta_start**0.5, of.beta_end**0.5, 1000, dtype=torch.float64)
    stated = of.get("trained_betas")
    betas = roots**2 if stated is None else torch.tensor(stated, dtype=torch.float64)
    return torch.cumprod(1 - betas, 0)
