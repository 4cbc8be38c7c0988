"""Trials as pipelines of diffusers, which sample from them what the testbed samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bounds import u
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


def by_diffusers(folder: Path, z: Tensor, steps: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the last step of a pipeline gives from the noise z, before it is cut to [-1, 1].

    It is in the dtype of z: abar, which diffusers keeps in float32, is computed from the betas.
    """
    import diffusers
    from diffusers.pipelines.ddim import pipeline_ddim
    from diffusers.pipelines.ddpm import pipeline_ddpm

    index = json.loads((folder / "model_index.json").read_text())
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder).to(z.dtype)
    pipeline.set_progress_bar_config(disable=True)
    if betas := pipeline.scheduler.config.get("trained_betas"):
        one = 1 - torch.tensor(betas, dtype=torch.float64)
        pipeline.scheduler.alphas_cumprod = torch.cumprod(one, 0).to(z.dtype)
    for module in (pipeline_ddim, pipeline_ddpm):
        monkeypatch.setattr(module, "randn_tensor", lambda *given, **named: z)
    step, found = pipeline.scheduler.step, [z]

    def kept(*given: Any, **named: Any) -> Any:
        result = step(*given, **named)
        found.append(result.prev_sample)
        return result

    monkeypatch.setattr(pipeline.scheduler, "step", kept)
    pipeline(len(z), num_inference_steps=steps, output_type="pt")
    assert len(found) == steps + 1
    return found[-1]


def noise() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(7)).double()


def images(denoise: testbed.Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
    """Our samples in float64, from x_t = z at the first level of its process."""
    first = torch.full(z.shape[:1], float(sigmas[0]), dtype=torch.float64)
    c_in, _ = denoise.inputs(first)
    with torch.no_grad():
        return testbed.sample(denoise.double(), z / c_in.reshape(-1, 1, 1, 1), sigmas, "ddim")


UNET = 'network={name="unet", channels=[8, 8], head=4, groups=4}'
NETWORKS = [(), (UNET,)]
"""A UNet2DModel alone, and the bundled network around one."""


@pytest.mark.parametrize(
    ("parameterization", "network"), [("eps", ()), ("x0", (UNET,)), ("v", (UNET,))]
)
def test_ddim_of_diffusers_gives_the_same_images(
    tmp_path: Path, parameterization: str, network: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise, eta = 0, ten steps, in float64.

    abar, a product of 1000 factors, is off by 1000 u, and at the first level, abar = 4e-5, D of eps
    is 157 times as much: 2e-11 of x_t in each of ten steps.
    """
    trial = trained(tmp_path, parameterization, DISCRETE, *network)
    said = export(trial, tmp_path / "pipeline")
    assert said.pipeline == "DDIMPipeline with DDIMScheduler"
    z, steps = noise(), 10
    theirs = by_diffusers(tmp_path / "pipeline", z, steps, monkeypatch)
    denoise = testbed.load(trial)
    assert denoise.table is not None
    sigmas = noise_levels.table_sigmas(denoise.table.sigmas, steps, "trailing")
    mine = images(denoise, z, sigmas)
    assert torch.allclose(mine, theirs, rtol=0, atol=steps * 2e-11 * float(z.abs().max()))
    # Read as another prediction type it gives other images.
    wrong = {"eps": "v_prediction", "x0": "epsilon", "v": "sample"}[parameterization]
    change(tmp_path / "pipeline" / "scheduler" / "scheduler_config.json", prediction_type=wrong)
    other = by_diffusers(tmp_path / "pipeline", z, steps, monkeypatch)
    assert not torch.allclose(other, theirs, atol=5e-2)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_flow_is_matched_by_its_scheduler(
    tmp_path: Path, network: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Euler's steps of FlowMatchEulerDiscreteScheduler in t are ours in sigma: both are linear.

    Its steps are in float32, whatever the network: each rounds x, the difference of two t and its
    product with u. How much the end moves with the start is measured.
    """
    trial = trained(tmp_path, "flow", FLOW, KARRAS, *network)
    assert export(trial, tmp_path / "pipeline").pipeline == (
        "DDPMPipeline with FlowMatchEulerDiscreteScheduler"
    )
    z, steps = noise(), 8
    theirs = by_diffusers(tmp_path / "pipeline", z, steps, monkeypatch)
    t = torch.linspace(1, 0.001, steps, dtype=torch.float64)
    t[0] = 1 - 2.0**-40  # where t = 1 sigma is infinite
    sigmas = torch.cat([t / (1 - t), torch.zeros(1, dtype=torch.float64)])
    denoise = testbed.load(trial)
    mine = images(denoise, z, sigmas)
    h = 2.0**-20
    signs = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).sign()
    moved = float((images(denoise, z + h * signs, sigmas) - mine).abs().max()) / h
    bound = steps * 4 * u(torch.float32) * float(z.abs().max()) * max(moved, 1.0)
    assert torch.allclose(mine, theirs.double(), rtol=0, atol=bound)


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    """The same weights in float64, at levels that are off by 1000 u."""
    trial = trained(tmp_path, "v", DISCRETE, UNET)
    export(trial, tmp_path / "pipeline")
    back, denoise = testbed.load_diffusers(tmp_path / "pipeline"), testbed.load(trial)
    for sigma in torch.tensor([0.01, 0.3, 5.0, 100.0], dtype=torch.float64):
        x = torch.randn(2, 1, 8, 8, dtype=torch.float64) * (1 + sigma)
        with torch.no_grad():
            found, wanted = back.double()(x, sigma), denoise.double()(x, sigma)
            assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-11)


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
    "no UNet2DModel": ("v", DISCRETE, ('network={name="dit", width=8, depth=1}',), "has no UNet"),
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
