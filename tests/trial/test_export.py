"""Trials as pipelines of diffusers, which sample from them what the testbed samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.command_line import run_here
from helpers.diffusers_models import change, needs_diffusers
from helpers.paths import FIXTURES
from torch import Tensor

import testbed
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.trial.export import export

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    needs_diffusers,
    pytest.mark.usefixtures("trials_only"),
    pytest.mark.slow,
]

STUDY = """
plugins = ["{plugin}"]
[study]
name = "s"
[base]
dataset = "digits"
network = {{ name = "tiny_unet" }}
training = {{ steps = 3, batch = 8 }}
evaluation = {{ levels = 2, draws = 4, samples = 4, steps = 2, metrics = [], sampler = "ddim", \
schedule = "table" }}
weighting = "none"
loss = "l2"
seeds = 1
parameterization = "{parameterization}"
{rest}
"""
DISCRETE = """
table = { name = "ddpm", n = 1000 }
density = "table"
c_in = "vp"
c_noise = "index"
"""
FLOW = """
c_in = "flow"
c_noise = "time"
density = "loguniform"
table = "none"
"""
KARRAS = "evaluation.schedule=karras"


def trained(folder: Path, parameterization: str, rest: str, *sets: str) -> Path:
    """The folder of the only trial of such a study."""
    plugin = FIXTURES / "tiny_unet.py"
    text = STUDY.format(plugin=plugin, parameterization=parameterization, rest=rest)
    (folder / "s.toml").write_text(text.replace("\\\n", ""))
    words = [word for one in sets for word in ("--set", one)]
    done = run_here(folder, "study", "s.toml", "--jobs", 0, "--no-mlflow", *words)
    assert done.code == 0, done.err
    (trial,) = (folder / "runs" / "s" / "trials").iterdir()
    return trial


def by_diffusers(folder: Path, z: Tensor, steps: int) -> Tensor:
    """Samples of a pipeline, [0, 1], from the generator that z was drawn from."""
    import diffusers

    index = json.loads((folder / "model_index.json").read_text())
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    found: Tensor = pipeline(
        batch_size=len(z), generator=generator, num_inference_steps=steps, output_type="pt"
    ).images
    return found


def noise() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_ddim_of_diffusers_gives_the_same_images(tmp_path: Path, parameterization: str) -> None:
    """The same noise, eta = 0, ten steps; float32 at abar = 4e-5 loses 157 times a rounding."""
    trial = trained(tmp_path, parameterization, DISCRETE)
    said = export(trial, tmp_path / "pipeline")
    assert said.pipeline == "DDIMPipeline with DDIMScheduler"
    z, steps = noise(), 10
    theirs = by_diffusers(tmp_path / "pipeline", z, steps)
    denoise = testbed.load(trial)
    assert denoise.table is not None
    sigmas = noise_levels.table_sigmas(denoise.table.sigmas, steps, "trailing")
    x = (z * torch.sqrt(1 + sigmas[0] ** 2)).float()
    with torch.no_grad():
        mine = testbed.sample(denoise, x, sigmas, "ddim")
    assert torch.allclose((mine / 2 + 0.5).clamp(0, 1), theirs, atol=5e-4)
    # Read as another prediction type it gives other images.
    wrong = {"eps": "v_prediction", "x0": "epsilon", "v": "sample"}[parameterization]
    change(tmp_path / "pipeline" / "scheduler" / "scheduler_config.json", prediction_type=wrong)
    assert not torch.allclose(by_diffusers(tmp_path / "pipeline", z, steps), theirs, atol=5e-2)


def test_a_flow_is_matched_by_its_scheduler(tmp_path: Path) -> None:
    """Euler's steps of FlowMatchEulerDiscreteScheduler in t are ours in sigma: both are linear."""
    trial = trained(tmp_path, "flow", FLOW, KARRAS)
    assert export(trial, tmp_path / "pipeline").pipeline == (
        "DDPMPipeline with FlowMatchEulerDiscreteScheduler"
    )
    z, steps = noise(), 8
    theirs = by_diffusers(tmp_path / "pipeline", z, steps)
    denoise = testbed.load(trial)
    t = torch.linspace(1, 0.001, steps, dtype=torch.float64)
    t[0] = 1 - 2.0**-30  # where t = 1 sigma is infinite
    sigmas = torch.cat([t / (1 - t), torch.zeros(1, dtype=torch.float64)])
    x = (z.double() * (1 + sigmas[0])).float()
    with torch.no_grad():
        mine = testbed.sample(denoise, x, sigmas, "ddim")
    assert torch.allclose((mine / 2 + 0.5).clamp(0, 1), theirs, atol=2e-3)


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    trial = trained(tmp_path, "v", DISCRETE)
    export(trial, tmp_path / "pipeline")
    back, denoise = testbed.load_diffusers(tmp_path / "pipeline"), testbed.load(trial)
    for sigma in torch.tensor([0.01, 0.3, 5.0, 100.0]):
        x = torch.randn(2, 1, 8, 8) * (1 + sigma)
        with torch.no_grad():
            assert torch.allclose(back(x, sigma), denoise(x, sigma), rtol=1e-4, atol=1e-4)


def test_the_samplers_settings_are_the_schedulers(tmp_path: Path) -> None:
    sets = (
        'evaluation.sampler={name="ddpm", variance="large"}',
        'evaluation.schedule={name="table", spacing="leading", steps_offset=1}',
    )
    trial = trained(tmp_path, "eps", DISCRETE, *sets)
    said = export(trial, tmp_path / "pipeline")
    assert said.pipeline == "DDPMPipeline with DDPMScheduler"
    config = json.loads((tmp_path / "pipeline/scheduler/scheduler_config.json").read_text())
    assert config["variance_type"] == "fixed_large"
    assert (config["timestep_spacing"], config["steps_offset"]) == ("leading", 1)
    assert len(config["trained_betas"]) == 1000
    assert config["trained_betas"][::999] == pytest.approx([1e-4, 0.02], rel=1e-9)
    assert not config["clip_sample"]


REFUSED = {
    "the F of edm": ("edm", "table = 'none'\ndensity = 'lognormal'", (KARRAS,), "the F of edm"),
    "continuous levels": (
        "eps",
        "table = 'none'\ndensity = 'loguniform'\nc_in = 'vp'\nc_noise = 'sigma'",
        (KARRAS,),
        "levels are cont",
    ),
    "another c_in": ("v", DISCRETE.replace('"vp"', '"unit"'), (), "another c_in x"),
    "another c_noise": ("v", DISCRETE.replace('"index"', '"sigma"'), (), "another c_noise"),
    "the time itself": (
        "flow",
        FLOW,
        (KARRAS, "network.thousand=false"),
        "the flow's time t itself",
    ),
    "no UNet2DModel": ("v", DISCRETE, ('network={name="mlp_index", width=8}',), "has no UNet2DM"),
    "other weights": ("v", DISCRETE, ("network.extra=true",), "has weights besides"),
    "a changed output": ("v", DISCRETE, ("network.scale=2.0",), "changes what its UNet2DModel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_pipeline_is_refused_by_name(tmp_path: Path, case: str) -> None:
    parameterization, rest, sets, said = REFUSED[case]
    trial = trained(tmp_path, parameterization, rest, *sets)
    with pytest.raises(InputError, match=f"cannot be exported: .*{said}"):
        export(trial, tmp_path / "pipeline")
    assert not (tmp_path / "pipeline").exists()


def test_the_command_writes_it_and_refuses_a_folder_in_use(tmp_path: Path) -> None:
    trial = trained(tmp_path, "v", DISCRETE)
    done = run_here(tmp_path, "export", trial.name, "--to", "pipeline")
    assert done.code == 0, done.err
    assert "DDIMPipeline with DDIMScheduler in" in done.out
    done = run_here(tmp_path, "export", trial.name, "--to", "pipeline")
    assert done.code == 2
    assert "exists and is not empty" in done.err
    done = run_here(tmp_path, "export", trial.name)
    assert done.code == 2
    assert "--to FOLDER is required" in done.err
