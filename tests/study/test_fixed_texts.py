"""Text-to-image models of diffusers as fixed contestants of a study of images with captions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.command_line import run_here, trials_only
from helpers.diffusers_models import change, conditional_unet, needs_diffusers, write
from helpers.encoders import LONGEST
from helpers.stable_diffusion import SHAPE, stable_diffusion
from helpers.studies import planned, refusal
from safetensors.torch import load_file

import testbed
from testbed.data.captions import CAPTIONS
from testbed.metrics import denoising
from testbed.report import fixed_models, reading
from testbed.trial.restore import restore

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    needs_diffusers,
    pytest.mark.slow,
]

STUDY = """
[study]
name = "texts"
[base]
dataset = { name = "captions", size = 16, n = 64, test = 16 }
network = { name = "mlp", width = 8, depth = 1 }
conditions = { caption = 0.2 }
density = "lognormal"
weighting = "edm"
loss = "l2"
training = { steps = 3, batch = 8 }
seeds = 1
[base.evaluation]
levels = 3
draws = 4
samples = 4
steps = 2
metrics = ["energy"]
guidance = { name = "classifier_free", scale = 2.0 }
[grid]
parameterization = ["v"]
"""
FIXED = """
[[fixed]]
name = "sd"
path = "sd"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, from which a study is planned."""
    found = tmp_path_factory.mktemp("texts")
    stable_diffusion(found / "sd")
    return found


@pytest.fixture(autouse=True)
def here(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_all_that_its_folder_says_stands_in_its_settings(folder: Path, tmp_path: Path) -> None:
    """Its latents, its texts and their encoder are its own, whatever the study's encoders are."""
    own = f'text_encoder = {{ path = "{folder / "sd"}", tokens = 12 }}\n[base.evaluation]'
    text = STUDY.replace("[base.evaluation]", own)
    made = planned(text + FIXED, tmp_path)
    (mine,) = (one.config for one in made.trials if one.config.fixed)
    (other,) = (one.config for one in made.trials if not one.config.fixed)
    assert mine.encoder is not None
    assert (mine.encoder.path, mine.encoder.scale, mine.encoder.shift) == (
        "sd/vae", "config", "config")  # fmt: skip
    assert mine.text_encoder is not None
    assert (mine.text_encoder.tokens, mine.text_encoder.padding) == (LONGEST, "states")
    assert mine.text_encoder.null == "empty"
    assert mine.conditions == {"caption": 0.1}
    assert mine.evaluation.guidance.name == "classifier_free"
    assert (mine.parameterization.name, mine.c_in, mine.c_noise) == ("eps", "vp", "index")
    assert other.encoder is None
    assert other.text_encoder is not None
    assert (other.text_encoder.tokens, other.text_encoder.padding) == (12, "masked")
    # The trained variant is as it is without the model.
    (alone,) = planned(text, tmp_path).trials
    assert other.training_text == alone.config.training_text


def test_its_id_is_that_of_its_files_and_not_of_their_place(folder: Path, tmp_path: Path) -> None:
    def id_of(text: str) -> str:
        (one,) = (one for one in planned(STUDY + text, tmp_path).trials if one.config.fixed)
        return one.id

    first = id_of(FIXED)
    (tmp_path / "moved").symlink_to(folder / "sd")
    assert id_of(FIXED.replace('path = "sd"', f'path = "{tmp_path / "moved"}"')) == first
    for part, key in (("text_encoder", "layer_norm_eps"), ("vae", "scaling_factor")):
        at = tmp_path / part
        at.mkdir()
        for one in (folder / "sd").iterdir():
            (at / one.name).symlink_to(one)
        (at / part).unlink()
        (at / part).mkdir()
        for file in (folder / "sd" / part).iterdir():
            (at / part / file.name).write_bytes(file.read_bytes())
        change(at / part / "config.json", **{key: 0.25})
        assert id_of(FIXED.replace('path = "sd"', f'path = "{at}"')) != first


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """A folder in which the study has run to the end of its trials."""
    (folder / "texts.toml").write_text(STUDY + FIXED)
    with trials_only():
        done = run_here(folder, "study", "texts.toml", "--jobs", 0, "--no-mlflow")
    assert done.code == 0, done.err
    return folder


def fixed_trial(folder: Path) -> Path:
    (found,) = (
        file.parent
        for file in (folder / "runs" / "texts" / "trials").glob("*/trial.json")
        if json.loads(file.read_text())["config"].get("fixed")
    )
    return found


def test_it_is_measured_on_its_own_latents_with_its_own_texts(finished: Path) -> None:
    """The losses are those of the folder's denoiser, given the captions as prompts."""
    trial = fixed_trial(finished)
    denoise, data, config, _ = restore(trial)
    assert data.shape == SHAPE
    theirs = testbed.load_diffusers("sd", prompts=CAPTIONS)
    table = pd.read_csv(trial / "levels.csv")
    sigma = torch.tensor(table["sigma"].to_numpy())
    pairs = denoising.held_out_pairs(data, sigma, config.evaluation.draws, ("caption",))
    caption = pairs.condition["caption"]
    for row, level in zip(table.to_dict("records"), sigma.float(), strict=True):
        x = pairs.x0 + level * pairs.eps
        with torch.no_grad():
            D, D_0 = theirs(x, level, {"text": caption}), theirs(x, level)
            mine, off = denoise(x, level, {"caption": caption}), denoise(x, level)
        # One network, given the same states in two batches.
        assert torch.allclose(mine, D, rtol=1e-4, atol=1e-5 * float(D.abs().max()))
        assert torch.allclose(off, D_0, rtol=1e-4, atol=1e-5 * float(D.abs().max()))
        assert float((D - pairs.x0).square().mean()) == pytest.approx(row["loss"], rel=1e-3)
        assert float((D_0 - pairs.x0).square().mean()) == pytest.approx(
            row["loss_dropped"], rel=1e-3)  # fmt: skip
    assert json.loads((trial / "result.json").read_text())["status"] == "finished"


def test_its_samples_are_set_beside_the_others_and_its_losses_are_not(finished: Path) -> None:
    """It has losses of latents, and the trained variant losses of pixels."""
    results = reading.read(finished / "runs" / "texts")
    spans = fixed_models.table(results).set_index("metric")["trained_low"]
    assert bool(spans.drop("energy").isna().all())
    assert spans["energy"] > 0
    assert bool(fixed_models.level_table(results)["trained_low"].isna().all())
    (note,) = fixed_models.parts(results)["all data"].notes
    assert note.startswith("sd denoises other data than the trained variants")


def test_its_samples_are_decoded_and_drawn_of_texts(finished: Path) -> None:
    trial = fixed_trial(finished)
    assert load_file(trial / "samples.safetensors")["samples"].shape == (4, 3, 16, 16)
    assert load_file(trial / "latents.safetensors")["latents"].shape == (4, *SHAPE)
    drawn = [
        run_here(finished, "sample", trial.name, "-n", 2, "--out", f"{i}.npy", "--condition",
                 f"caption={text}")
        for i, text in enumerate(("two blobs", "the red one left two"))
    ]  # fmt: skip
    assert [one.code for one in drawn] == [0, 0], drawn[1].err
    assert (finished / "0.npy").read_bytes() != (finished / "1.npy").read_bytes()


REFUSED = {
    "data without texts": (
        'dataset = { name = "mixture", dim = 2 }',
        'path = "sd"',
        "fixed 'sd': its network attends to one text, and the data's conditions of texts are: none",
    ),
    "images of another size": (
        'dataset = { name = "captions", size = 32, n = 64, test = 16 }',
        'path = "sd"',
        "fixed 'sd': it takes samples of shape (4, 8, 8), and sd/vae makes latents of (4, 16, 16) "
        "of the data's images, which have (3, 32, 32)",
    ),
    "no encoder": ("", 'path = "bare"', "bare has no folders text_encoder and tokenizer"),
    "no first stage": (
        "",
        'path = "stageless"',
        "the data have (3, 16, 16); where those are latents of the data's images, stageless needs "
        "a folder vae",
    ),
    "a distilled model": ("", 'path = "distilled"', "LCMScheduler' is not read: a distilled"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case: str, folder: Path, tmp_path: Path) -> None:
    import diffusers

    dataset, path, said = REFUSED[case]
    for name, part in (("stageless", "vae"), ("distilled", "scheduler")):
        if path.endswith(f'{name}"') and not (folder / name).exists():
            (folder / name).mkdir()
            for one in (folder / "sd").iterdir():
                if one.name != part:
                    (folder / name / one.name).symlink_to(one)
    if case == "a distilled model":
        diffusers.LCMScheduler().save_pretrained(folder / "distilled" / "scheduler")
    if case == "no encoder":
        write(folder / "bare", conditional_unet(), diffusers.DDPMScheduler())
    text = STUDY
    if dataset:
        text = text.replace(
            'dataset = { name = "captions", size = 16, n = 64, test = 16 }', dataset
        )
        if "mixture" in dataset:
            text = text.replace("caption = 0.2", "label = 0.2")
    assert said in refusal(text + FIXED.replace('path = "sd"', path), tmp_path)


def test_latents_that_the_data_have_already_are_taken_as_they_are(
    folder: Path, tmp_path: Path
) -> None:
    """A data set of saved latents: no first stage is needed, and none is used."""
    plugin = tmp_path / "latents.py"
    plugin.write_text(
        "import torch, testbed\n"
        "def build():\n"
        "    x, text = torch.randn(8, 4, 8, 8), torch.arange(8) % 2\n"
        "    return testbed.Data(x, x, further={'caption': (text, text)},\n"
        "                        texts={'caption': ('one blob', 'two blobs')})\n"
        "@testbed.hookimpl\n"
        "def testbed_datasets():\n"
        "    yield testbed.Dataset('saved', build)\n"
    )
    text = STUDY.replace('{ name = "captions", size = 16, n = 64, test = 16 }', '"saved"')
    registry = testbed.Registry((str(plugin),))
    made = planned(text + FIXED, tmp_path, registry=registry)
    (mine,) = (one.config for one in made.trials if one.config.fixed)
    assert mine.encoder is None
    assert mine.text_encoder is not None


def test_an_audit_reads_it_without_a_text(folder: Path) -> None:
    """Its laws hold whatever its weights are; on data it is seen that it has learnt nothing."""
    done = run_here(folder, "audit", "sd")
    assert done.code == 0, done.err + done.out
    assert "laws hold" in done.out
    done = run_here(folder, "audit", "sd", "--data", '{name="captions", size=16, n=64, test=64}',
                    "--part", "learning")  # fmt: skip
    assert done.code == 3, done.err + done.out
