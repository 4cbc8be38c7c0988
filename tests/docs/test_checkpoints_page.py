"""The page on checkpoints of other libraries: its code runs, and it names what there is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import pages
from helpers.command_line import run_here
from helpers.diffusers_models import needs_diffusers, unet, write
from helpers.encoders import clip
from helpers.stable_diffusion import SHAPE, stable_diffusion
from helpers.studies import SMALL, planned
from safetensors.torch import save_file

import testbed
from testbed.checkpoints import diffusers_folders, schedulers
from testbed.checkpoints.weights import AVERAGES, PREFIXES
from testbed.checkpoints.wrappings import WRAPPINGS
from testbed.registry import default_registry

PAGE = "checkpoints"
NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x, t):
        return self.layer(x)


def build():
    return Net()
"""


def test_weights_of_ones_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(pages.blocks(PAGE, "python")[0], names)
    assert "torch.Size([3, 2])" in capsys.readouterr().out
    for key, value in names["network"].state_dict().items():
        assert torch.equal(value, names["average"][f"ema._orig_mod.{key}"])


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_models_of_diffusers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("".join(pages.blocks(PAGE, "python")), names)
    assert names["images"].shape == (2, 1, 8, 8)
    assert bool(names["images"].isfinite().all())


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_text_to_image_pipeline_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    stable_diffusion(tmp_path / "sd")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"torch": torch, "testbed": testbed}
    exec(pages.blocks(PAGE, "py")[1], names)
    assert names["images"].shape == (2, 3, 16, 16)
    assert names["D"].shape == (3, *SHAPE)
    with torch.no_grad():
        alone = names["denoise"](names["latents"][2:], names["sigma"])
    assert torch.allclose(names["D"][2:], alone, rtol=1e-4, atol=1e-4)


def test_the_way_to_convert_a_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    monkeypatch.chdir(tmp_path)
    network = torch.nn.Linear(2, 2)
    torch.save({"ema": network}, "model.ckpt")
    exec(pages.blocks(PAGE, "py")[0], {"torch": torch, "safetensors": safetensors})
    found = safetensors.torch.load_file("model.safetensors")
    assert torch.equal(found["weight"], network.weight)


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_contestants_shown_are_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    save_file(torch.nn.Linear(2, 2).state_dict(prefix="layer."), "net.safetensors")
    write(tmp_path / "pipeline", unet(), diffusers.DDPMScheduler())
    block, _ = pages.blocks(PAGE, "toml")
    of_folder, of_factory = block.split("\n\n")
    (fixed,) = (one for one in planned(SMALL + of_factory, tmp_path).trials if one.config.fixed)
    assert fixed.labels[0]["variant"] == "net"
    digits = SMALL.replace('{ name = "mixture", dim = 2 }', '"digits"')
    (fixed,) = (one for one in planned(digits + of_folder, tmp_path).trials if one.config.fixed)
    assert fixed.labels[0]["variant"] == "theirs"


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.usefixtures("trials_only")
def test_the_settings_shown_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With smaller numbers, and the tiny encoder of the tests."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    clip(tmp_path / "encoders" / "clip")
    _, block = pages.blocks(PAGE, "toml")
    for word, small in (
        ('"captions"', '{ name = "captions", size = 16, n = 16, test = 8 }'),
        ("[32, 64], latent_channels = 4", "[8, 8], latent_channels = 4, steps = 2, batch = 4"),
        ("tokens = 77", "tokens = 16"),
        ('"unet"', '{ name = "unet", channels = [8, 8], head = 4, groups = 4 }'),
        ("evaluation = {", "evaluation = { levels = 2, draws = 2, samples = 4, steps = 2, "
                           "metrics = [],"),
    ):  # fmt: skip
        assert word in block
        block = block.replace(word, small)
    block += 'training = { steps = 2, batch = 4 }\nparameterization = "v"\nseeds = 1\n'
    (tmp_path / "s.toml").write_text('[study]\nname = "s"\n' + block)
    monkeypatch.chdir(tmp_path)
    done = run_here(tmp_path, "study", "s.toml", "--jobs", 0, "--no-mlflow")
    assert done.code == 0, done.err
    (trial,) = (tmp_path / "runs" / "s" / "trials").iterdir()
    done = run_here(tmp_path, "export", trial.name, "--to", "out")
    assert done.code == 0, done.err
    assert "StableDiffusionPipeline with DDIMScheduler" in done.out


@needs_diffusers
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_audits_shown_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that learnt nothing ends with exit code 3; the page's own network passes."""
    import diffusers

    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    exec(pages.blocks(PAGE, "python")[0], {})
    write(tmp_path / "pipeline", unet(), diffusers.DDPMScheduler())
    of_folder, of_factory = pages.blocks(PAGE, "sh")[0].splitlines()
    done = run_here(tmp_path, *shlex.split(of_folder)[1:], "--part", "learning")
    assert done.code == 3, done.err + done.out
    assert "are its weights loaded?" in " ".join(done.out.split())
    done = run_here(tmp_path, *shlex.split(of_factory)[1:])
    assert done.code == 0, done.err + done.out
    assert "laws hold" in done.out


def test_the_page_names_all_there_is() -> None:
    text = pages.text(PAGE)
    for name in WRAPPINGS:
        assert f"`{name.removesuffix('.quantize')}`" in text
    for word in (*AVERAGES, *diffusers_folders.MODELS, diffusers_folders.EXTRA, PREFIXES[0]):
        assert f"{word}" in text, word
    for name in (*schedulers.OF_FLOW, *schedulers.OF_EDM, *schedulers.OF_VE):
        assert name.removesuffix("Scheduler") in text, name


@pytest.mark.parametrize("name", WRAPPINGS)
def test_the_table_of_wrappers_has_their_c_noise(name: str) -> None:
    """The column c_noise is the number that the network is given at sigma = 3."""
    said = {
        "sigma": 3.0,
        "sigma; its networks take log(sigma)/4 themselves": 3.0,
        "2/pi arctan(sigma)": 2 / np.pi * np.arctan(3.0),
        "log(sigma/2)": np.log(1.5),
        "log(sigma)/4": np.log(3.0) / 4,
    }
    one = WRAPPINGS[name]
    row = next(line for line in pages.text(PAGE).splitlines() if line.startswith("|")
               and f"`{name.removesuffix('.quantize')}`" in line)  # fmt: skip
    word = row.split("|")[4].strip()
    table = default_registry().table("ddpm") if one.table == "needed" else None
    around = one.around(torch.nn.Identity(), 0.5, table)
    c_noise = float(around.inputs(torch.tensor(3.0, dtype=torch.float64))[1])
    if word in said:
        assert c_noise == pytest.approx(said[word], rel=1e-12)
    else:
        assert one.table == "needed" or "999 t" in word
        assert 0 < c_noise < 999
