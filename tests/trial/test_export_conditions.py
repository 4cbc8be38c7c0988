"""Trials with classes or texts as pipelines of diffusers, which sample from them what we sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here
from helpers.diffusers_models import needs_diffusers
from helpers.encoders import LONGEST, clip
from helpers.stable_diffusion import by_stable_diffusion, exact_abar
from torch import Tensor

import testbed
from testbed.checkpoints.diffusers_folders import read
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.networks.dit import DiT
from testbed.registry import default_registry
from testbed.sampling.guidance import ClassifierFree
from testbed.study import plan, runner, study_file
from testbed.trial import build, restore
from testbed.trial.export import export
from testbed.trial.folders import TrialFolder

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    needs_diffusers,
    pytest.mark.usefixtures("trials_only"),
    pytest.mark.slow,
]

# A large learning rate moves the weights that start at zero by as much as the others are.
STUDY = """
[study]
name = "s"
[base]
dataset = { name = "captions", size = SIZE, n = 64, test = 16 }
network = NETWORK
training = { steps = 4, batch = 8, learning_rate = 0.03 }
weighting = "none"
loss = "l2"
seeds = 1
parameterization = "PARAMETERIZATION"
table = { name = "ddpm", n = 1000 }
density = "table"
c_in = "vp"
c_noise = "index"
REST
[base.evaluation]
levels = 2
draws = 4
samples = 4
steps = 2
metrics = []
sampler = "ddim"
schedule = "table"
"""
UNET = '{ name = "unet", channels = [8, 8], head = 4, groups = 4 }'
DIT = '{ name = "dit", width = 16, depth = 2, heads = 2 }'
LATENTS = "encoder = { channels = [8, 8], latent_channels = 4, steps = 3, batch = 4 }\n"
LABEL = "conditions = { label = 0.1 }\n"
TEXT = 'conditions = { caption = 0.1 }\ntext_encoder = { path = "clip", tokens = 16, PADDING }\n'
AS_DIFFUSERS = 'null = "empty", padding = "states"'
PROMPTS = ("two blobs", "three blobs, the red one left")
STEPS, SCALE = 5, 3.0  # diffusers steps between levels of a table by a whole number
ENCODING = 200 * 2.0**-24
"""The states of a text, which are in float32."""


def written(folder: Path, parameterization: str, network: str, rest: str, size: int) -> Path:
    """The file of such a study, and what it reads."""
    if "text_encoder" in rest:
        clip(folder / "clip")
    values = {"SIZE": str(size), "NETWORK": network, "PARAMETERIZATION": parameterization,
             "REST": rest.replace("PADDING", AS_DIFFUSERS)}  # fmt: skip
    text = STUDY
    for word, value in values.items():
        text = text.replace(word, value)
    (folder / "s.toml").write_text(text)
    return folder / "s.toml"


def trained(
    folder: Path, parameterization: str, network: str, rest: str, size: int = 16, *sets: str
) -> Path:
    """The folder of the only trial of such a study, with these values set."""
    written(folder, parameterization, network, rest, size)
    more = [word for one in sets for word in ("--set", one)]
    words = ("study", "s.toml", "--jobs", 0, "--no-mlflow", "--device", "cpu", *more)
    done = run_here(folder, *words)
    assert done.code == 0, done.err
    (trial,) = (folder / "runs" / "s" / "trials").iterdir()
    return trial


def untrained(folder: Path, network: str, rest: str, size: int) -> Path:
    """The folder of such a trial with the weights that it starts with."""
    registry = default_registry()
    study = study_file.read(written(folder, "v", network, rest, size))
    made = plan.make(study, registry, folder / "runs" / "s", "cpu")
    runner.describe(made, registry)
    (one,) = made.trials
    denoiser, _ = build.assemble(one.config, registry, build.data_of(one.config, registry))
    at = made.folder / "trials" / one.id
    TrialFolder.at(at).put_tensors("weights.safetensors", denoiser.network.state_dict(), {})
    return at


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Ours:
    """What the testbed makes of a trial: in float64 but for the first stage."""

    def __init__(self, trial: Path) -> None:
        denoise, self.data, _, _ = restore.restore(trial)
        self.denoise = denoise.double()
        self.z = torch.randn(2, *self.data.shape, generator=torch.Generator().manual_seed(7),
                             dtype=torch.float64)  # fmt: skip

    def samples(self, name: str, classes: list[int]) -> Tensor:
        """Guided samples of two classes, by DDIM from x_t = z at the table's last level."""
        table = self.denoise.table
        assert table is not None
        sigmas = noise_levels.table_sigmas(table.sigmas, STEPS, "trailing")
        guided = ClassifierFree(self.denoise, [({name: torch.tensor(classes)}, SCALE)])
        with torch.no_grad():
            return testbed.sample(guided, self.z * (1 + sigmas[0] ** 2).sqrt(), sigmas, "ddim")

    def decoded(self, latents: Tensor) -> Tensor:
        assert self.data.first_stage is not None
        return self.data.first_stage.decode(latents)


def rounding(z: Tensor) -> float:
    """abar is off by 1000 u, and at the first level D of eps is 157 times as much, 7 guided."""
    return STEPS * 2e-11 * 7 * float(z.abs().max())


@pytest.mark.parametrize(
    ("parameterization", "latents"), [("eps", True), ("v", True), ("x0", False)]
)
def test_stable_diffusion_samples_a_trial_of_texts(
    tmp_path: Path, parameterization: str, latents: bool
) -> None:
    """The shift of latents by channel is in the offsets of its VAE, the projection in its U-Net.

    How far the end moves with the states of the texts is measured.
    """
    size, rest = (16, LATENTS + TEXT) if latents else (8, TEXT)
    trial = trained(tmp_path, parameterization, UNET, rest, size)
    said = export(trial, tmp_path / "out")
    assert said.pipeline == "StableDiffusionPipeline with DDIMScheduler"
    ours, h = Ours(trial), 2.0**-10
    theirs, images = by_stable_diffusion(tmp_path / "out", ours.z, PROMPTS, SCALE, STEPS)
    texts = [ours.data.texts["caption"].index(text) for text in PROMPTS]
    found, other = (ours.samples("caption", one) for one in (texts, texts[::-1]))
    rows = ours.denoise.get_buffer("network.tokens.values.caption.rows")
    signs = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).sign()
    rows += h * signs
    bound = ENCODING * float((ours.samples("caption", texts) - found).abs().max()) / h
    bound += rounding(ours.z)
    assert float((found - theirs).abs().max()) <= bound
    assert float((found - other).abs().max()) > 100 * bound
    if not latents:
        assert any('vae=None and call it with output_type="latent"' in n for n in said.notes)
        return
    same_images(ours.decoded(found), images)


def same_images(mine: Tensor, theirs: Tensor) -> None:
    """Our first stage is in float32: some hundred roundings of numbers as large as the images."""
    assert float((mine - theirs).abs().max()) <= 1000 * 2.0**-24 * float(theirs.abs().max())


def by_dit_pipeline(
    folder: Path, z: Tensor, classes: list[int], mine: Any, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """The latents and images of DiTPipeline in float64; places and waves, in float32, are ours."""
    import diffusers
    from diffusers.pipelines.dit import pipeline_dit

    pipeline = diffusers.DiTPipeline.from_pretrained(folder).to(torch.float64)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.alphas_cumprod = exact_abar(pipeline.scheduler)
    if isinstance(mine, DiT):
        pipeline.transformer.pos_embed.pos_embed.copy_(mine.places)
        for block in pipeline.transformer.transformer_blocks:
            block.norm1.emb.time_proj = mine.noise.waves
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda *given, **named: z)
    step, found = pipeline.scheduler.step, [z]

    def kept(*given: Any, **named: Any) -> Any:
        result = step(*given, **named)
        found.append(result.prev_sample)
        return result

    monkeypatch.setattr(pipeline.scheduler, "step", kept)
    pipeline(classes, guidance_scale=SCALE, num_inference_steps=STEPS, output_type="pt")
    latents = found[-1].chunk(2)[0]
    with torch.no_grad():
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return latents, images


@pytest.mark.parametrize(
    ("network", "parameterization", "more"),
    [(UNET, "v", ""), (DIT, "eps", ""), (DIT, "v", 'variance = "learned"\n')],
)
def test_dit_pipeline_samples_a_trial_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, parameterization: str, more: str
) -> None:
    """Guided away from its class 1000, which is that for none."""
    trial = trained(tmp_path, parameterization, network, LATENTS + LABEL + more)
    said = export(trial, tmp_path / "out")
    assert said.pipeline == "DiTPipeline with DDIMScheduler"
    ours = Ours(trial)
    found, other = (ours.samples("label", one) for one in ([0, 2], [2, 0]))
    network = ours.denoise.network
    latents, images = by_dit_pipeline(tmp_path / "out", ours.z, [0, 2], network, monkeypatch)
    assert float((found - latents).abs().max()) <= rounding(ours.z)
    assert float((found - other).abs().max()) > 1e-3
    same_images(ours.decoded(found), images)
    back = read(tmp_path / "out")
    assert (back.labels, back.null) == (3, 1000)


def test_a_network_of_images_with_classes_is_sampled_by_its_scheduler(tmp_path: Path) -> None:
    """No pipeline of diffusers gives a UNet2DModel classes: its scheduler does the same steps."""
    import diffusers

    trial = trained(tmp_path, "v", UNET, LABEL, size=8)
    said = export(trial, tmp_path / "out")
    assert said.pipeline == "DDIMPipeline with DDIMScheduler"
    assert any("class_labels" in note and "class 3 is for none" in note for note in said.notes)
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out").to(torch.float64)
    scheduler = pipeline.scheduler
    scheduler.alphas_cumprod = exact_abar(scheduler)
    scheduler.set_timesteps(STEPS)
    ours = Ours(trial)
    x = ours.z
    for t in scheduler.timesteps:
        with torch.no_grad():
            of_y, of_none = (pipeline.unet(x, t, class_labels=torch.tensor(y)).sample
                             for y in ([0, 2], [3, 3]))  # fmt: skip
        x = scheduler.step(of_none + SCALE * (of_y - of_none), t, x).prev_sample
    found = ours.samples("label", [0, 2])
    assert float((found - x).abs().max()) <= rounding(ours.z)
    assert float((found - ours.samples("label", [2, 0])).abs().max()) > 1e-3


REFUSED = {
    "masked padding": (
        UNET, TEXT.replace("PADDING", 'null = "empty"'), 8,
        r"text_encoder.padding = 'masked': StableDiffusionPipeline gives its network what padding",
    ),
    "no tokens for off": (
        UNET, TEXT.replace("PADDING", 'padding = "states"'), 8, "text_encoder.null = 'off'"),
    "a text without an encoder": (
        UNET, "conditions = { caption = 0.1 }\n", 8, r"has conditions \(caption\)"),
    "two conditions": (
        UNET, TEXT.replace("= 0.1 }", "= 0.1, label = 0.1 }"), 8,
        r"has conditions \(caption, label\)",
    ),
    "another network": (
        '{ name = "convnet", width = 8, depth = 1 }', LABEL, 8, "those of unet and dit are"),
    "a transformer of images": (DIT, LABEL, 8, "its samples are no latents, which DiTPipeline"),
    "a bottleneck": (
        DIT.replace(" }", ", bottleneck = 4 }"), LATENTS + LABEL, 16, "bottleneck is not 0"),
    "a skip": (DIT.replace(" }", ", skip = true }"), LATENTS + LABEL, 16, "network.skip is true"),
    "images of twelve pixels": (
        UNET, LATENTS + TEXT, 12,
        "sides of 12 and 12 pixels, and StableDiffusionPipeline draws multiples of 8",
    ),
    "latents without a condition": (UNET, LATENTS, 16, "its samples are latents, and no pipeline"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_in_a_pipeline_is_refused_by_name(tmp_path: Path, case: str) -> None:
    network, rest, size, said = REFUSED[case]
    trial = untrained(tmp_path, network, rest, size)
    with pytest.raises(InputError, match=f"cannot be exported: .*{said}"):
        export(trial, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scheduler_that_a_pipeline_would_change_is_refused(tmp_path: Path) -> None:
    """StableDiffusionPipeline writes steps_offset = 1 into any scheduler."""
    leading = 'evaluation.schedule={name="table", spacing="leading", steps_offset=0}'
    trial = trained(tmp_path, "v", UNET, TEXT, 8, leading)
    with pytest.raises(InputError, match="steps_offset = 0 with leading steps"):
        export(trial, tmp_path / "out")


def test_a_flow_of_texts_is_refused(tmp_path: Path) -> None:
    flow = ('c_in="flow"', 'c_noise="time"', 'density="loguniform"', 'table="none"',
            'evaluation.schedule="karras"')  # fmt: skip
    trial = trained(tmp_path, "flow", UNET, TEXT, 8, *flow)
    with pytest.raises(InputError, match="a flow, and StableDiffusionPipeline takes no scheduler"):
        export(trial, tmp_path / "out")


def test_a_learned_variance_that_the_pipeline_does_not_read_is_told(tmp_path: Path) -> None:
    sampler = 'evaluation.sampler={name="ddpm", variance="learned"}'
    more = LATENTS + LABEL + 'variance = "learned"\n'
    said = export(trained(tmp_path, "eps", DIT, more, 16, sampler), tmp_path / "out")
    assert said.pipeline == "DiTPipeline with DDPMScheduler"
    assert any("the variance that the network learned" in note for note in said.notes)


def test_its_parts_are_read_back(tmp_path: Path) -> None:
    """The folder is one that `load_diffusers` reads, with its own tokenizer and encoder."""
    trial = trained(tmp_path, "v", UNET, LATENTS + TEXT)
    export(trial, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == LONGEST
    back = testbed.load_diffusers(tmp_path / "out", prompts=PROMPTS).double()
    ours = Ours(trial)
    caption = torch.tensor([ours.data.texts["caption"].index(text) for text in PROMPTS])
    x, sigma = 3 * ours.z, torch.tensor(2.0, dtype=torch.float64)
    with torch.no_grad():
        for found, wanted in (
            (back(x, sigma, {"text": torch.tensor([0, 1])}),
             ours.denoise(x, sigma, {"caption": caption})),
            (back(x, sigma), ours.denoise(x, sigma)),
        ):  # fmt: skip
            assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
