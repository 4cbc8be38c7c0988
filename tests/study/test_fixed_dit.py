"""Class-conditioned models of diffusers as fixed contestants: DiT, and a U-Net with classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.command_line import run_here
from helpers.diffusers_models import change, needs_diffusers, unet, write
from helpers.stable_diffusion import SHAPE, seeded, vae
from helpers.studies import planned, refusal
from torch import Tensor

import testbed
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising
from testbed.trial.restore import restore

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    needs_diffusers,
    pytest.mark.slow,
]

STUDY = """
[study]
name = "classes"
[base]
dataset = { name = "captions", size = 16, n = 64, test = 16 }
network = { name = "mlp", width = 8, depth = 1 }
conditions = { label = 0.2 }
training = { steps = 3, batch = 8 }
seeds = 1
[base.evaluation]
levels = 3
draws = 4
samples = 4
steps = 2
metrics = []
guidance = { name = "classifier_free", scale = 2.0 }
[grid]
parameterization = ["v"]
[[fixed]]
name = "dit"
path = "dit"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline of three classes of a thousand, with a learned variance."""
    import diffusers

    found = tmp_path_factory.mktemp("dit")
    network = seeded(2, lambda: diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=SHAPE[0], num_layers=1,
        out_channels=2 * SHAPE[0], sample_size=SHAPE[1], patch_size=2,
    ))  # fmt: skip
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    diffusers.DiTPipeline(network, vae(), scheduler).save_pretrained(found / "dit")
    names = {str(k): f"{k} blobs" for k in range(3)}
    change(found / "dit" / "model_index.json", id2label=names)
    return found


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_guided_samples_are_those_of_dit_pipeline(folder: Path, monkeypatch: Any) -> None:
    """Five steps in float64; abar is off by 1000 u, and D at the first level is 157 times as much.

    The second half of its channels, a variance, moves nothing.
    """
    import diffusers
    from diffusers.pipelines.dit import pipeline_dit

    z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = diffusers.DiTPipeline.from_pretrained(folder / "dit").to(torch.float64)
    theirs.set_progress_bar_config(disable=True)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    theirs.scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda *given, **named: z)
    kept: list[Tensor] = []
    decode = theirs.vae.decode
    monkeypatch.setattr(theirs.vae, "decode", lambda given: (kept.append(given), decode(given))[1])
    theirs([0, 2], guidance_scale=3.0, num_inference_steps=5, output_type="pt")
    pipe = testbed.diffusers_pipeline("dit")
    assert isinstance(pipe.denoiser, Denoiser)
    pipe.denoiser.double()

    def drawn(classes: list[int]) -> Tensor:
        found: Tensor = pipe(2, {"label": classes}, scale=3.0, steps=5, noise=z, output="latent")
        return found

    wanted = kept[0] * 0.5  # the scale of its latents
    assert float((drawn([0, 2]) - wanted).abs().max()) <= 5 * 2e-11 * 7 * float(z.abs().max())
    assert float((drawn([2, 0]) - wanted).abs().max()) > 1e-2


@pytest.mark.usefixtures("trials_only")
def test_it_is_measured_with_the_classes_of_the_data(folder: Path, tmp_path: Path) -> None:
    made = planned(STUDY, tmp_path)
    (fixed,) = (one for one in made.trials if one.config.fixed)
    assert fixed.config.conditions == {"label": 0.1}
    assert fixed.config.evaluation.guidance.name == "classifier_free"
    assert fixed.config.encoder is not None
    (folder / "classes.toml").write_text(STUDY)
    done = run_here(folder, "study", "classes.toml", "--jobs", 0, "--no-mlflow")
    assert done.code == 0, done.err
    trial = folder / "runs" / "classes" / "trials" / fixed.id
    _, data, config, _ = restore(trial)
    theirs = testbed.load_diffusers("dit")
    table = pd.read_csv(trial / "levels.csv")
    sigma = torch.tensor(table["sigma"].to_numpy())
    pairs = denoising.held_out_pairs(data, sigma, config.evaluation.draws, ("label",))
    for row, level in zip(table.to_dict("records"), sigma.float(), strict=True):
        x = pairs.x0 + level * pairs.eps
        for column, given in (("loss", {"label": pairs.condition["label"]}), ("loss_dropped", {})):
            with torch.no_grad():
                D = theirs(x, level, given)
            assert float((D - pairs.x0).square().mean()) == pytest.approx(row[column], rel=1e-3)


def test_other_numbers_of_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    for one in (folder / "dit").iterdir():
        (tmp_path / one.name).symlink_to(one)
    (tmp_path / "model_index.json").unlink()
    index = json.loads((folder / "dit" / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    change(tmp_path / "model_index.json", id2label={"0": "a", "1": "b"})
    text = STUDY.replace('path = "dit"', f'path = "{tmp_path}"')
    said = refusal(text, tmp_path)
    assert "fixed 'dit': it has 2 classes, and the data have 3." in said


def test_the_last_class_of_a_u_net_is_for_none_where_it_is_one_more(tmp_path: Path) -> None:
    """As `testbed export` writes it, and as latent diffusion's models of ImageNet have it."""
    import diffusers

    for classes in (3, 4):
        network = unet(num_class_embeds=classes, in_channels=3, out_channels=3)
        write(tmp_path / f"{classes}", network, diffusers.DDIMScheduler())
    text = STUDY.replace("size = 16", "size = 8").replace("[base.evaluation]", "[base.evaluation]")
    for classes, rate in ((4, 0.1), (3, 0.0)):
        fixed = text.replace('path = "dit"', f'path = "{tmp_path / str(classes)}"')
        if rate == 0:
            assert "conditions.label = 0 never trains" in refusal(fixed, tmp_path)
            fixed = fixed.replace('guidance = { name = "classifier_free", scale = 2.0 }\n', "")
        (mine,) = (one.config for one in planned(fixed, tmp_path).trials if one.config.fixed)
        assert mine.conditions == {"label": rate}
        assert mine.encoder is None
