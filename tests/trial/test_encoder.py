"""The encoder of a study: against diffusers and closed forms, its cache, its settings, a study."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.command_line import run_here
from helpers.strategies import draws
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import distributions

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.networks import autoencoder
from testbed.training import autoencoder as training
from testbed.trial import first_stage
from testbed.trial.encoder import Encoder

diffusers = pytest.importorskip("diffusers", reason="the extra `images` is not installed")
SMALL: dict[str, Any] = {"channels": [8, 8], "latent_channels": 2, "steps": 3, "batch": 4}


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "testbed" / "first_stages"


def images(size: tuple[int, int] = (5, 6), channels: int = 1) -> Data:
    """Smooth images, twelve to train on and six held out."""
    x = draws((18, channels, 1, 1), 1, torch.float32) + 0.1 * draws(
        (18, channels, *size), 2, torch.float32
    )
    return Data(x[:12], x[12:])


def encoder(**change: Any) -> Encoder:
    return Encoder.model_validate({**SMALL, **change})


# --- the training ---------------------------------------------------------------------------------


def test_the_divergence_is_that_of_gaussians() -> None:
    mean, log_variance = (
        draws((5, 2, 3, 3), 1, torch.float64),
        draws((5, 2, 3, 3), 2, torch.float64),
    )
    posterior = distributions.Normal(mean, (log_variance / 2).exp())
    prior = distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    wanted = distributions.kl_divergence(posterior, prior).flatten(1).sum(1)
    # Four terms an entry, each with a few roundings of exp and log.
    terms = (mean.square() + log_variance.exp() + 1 + log_variance.abs()).flatten(1).sum(1)
    assert bool(((training.kl(mean, log_variance) - wanted).abs() <= 40 * 2.0**-52 * terms).all())


@pytest.mark.parametrize("power", [1, 2])
def test_the_loss_is_that_of_its_formula(power: int) -> None:
    x, found = draws((5, 2, 3, 4), 1, torch.float64), draws((5, 2, 3, 4), 2, torch.float64)
    mean, log_variance = (
        draws((5, 2, 2, 2), 3, torch.float64),
        draws((5, 2, 2, 2), 4, torch.float64),
    )
    by_hand = 0.0
    for n in range(5):
        distance = sum(
            abs(float(a - b)) ** power
            for a, b in zip(x[n].flatten(), found[n].flatten(), strict=True)
        )
        nats = sum(
            (m * m + np.exp(v) - 1 - v) / 2
            for m, v in zip(
                mean[n].flatten().tolist(), log_variance[n].flatten().tolist(), strict=True
            )
        )
        by_hand += (0.7 * distance + 0.01 * nats) / (5 * 24)
    value = training.loss(x, found, mean, log_variance, power, 0.7, 0.01)
    assert abs(float(value) - by_hand) <= 200 * 2.0**-52 * abs(by_hand)


@pytest.mark.slow
def test_training_reconstructs_and_the_settings_of_the_loss_act() -> None:
    data = images((8, 8))

    def error(**change: Any) -> float:
        found = first_stage.latent_data(data, encoder(learning_rate=5e-3, batch=12, **change))
        assert found.first_stage is not None
        return float((found.first_stage.decode(found.test) - data.test).square().mean().sqrt())

    errors = {steps: error(steps=steps) for steps in (1, 30)}
    assert errors[30] < errors[1] / 1.5
    assert (
        len(
            {
                error(steps=30, **one)
                for one in ({}, {"loss": "l2"}, {"kl": 1.0}, {"reconstruction": 0.1, "kl": 1.0})
            }
        )
        == 4
    )


# --- latents --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_latents_have_unit_mean_square_and_centred_channels(channels: int) -> None:
    data = first_stage.latent_data(images(channels=channels), encoder())
    assert data.shape == (2, 3, 3)
    assert abs(data.sigma_data - 1) <= 1e-6
    assert float(data.train.double().mean((0, 2, 3)).abs().max()) <= 1e-5
    assert data.pixels is not None
    assert data.pixels.shape == (channels, 5, 6)
    assert any("Losses of latents are not those of pixels" in note for note in data.notes)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_kept_is_what_was_made(cached: Path, precision: str) -> None:
    made = first_stage.latent_data(images(), encoder(precision=precision))
    assert len(list(cached.glob("*.safetensors"))) == 1
    with mock.patch.object(training, "train", side_effect=AssertionError("trained again")):
        kept = first_stage.latent_data(images(), encoder(precision=precision))
        scaled = first_stage.latent_data(
            images(), encoder(precision=precision, scale=0.5, shift="none")
        )
    assert torch.equal(kept.train, made.train)
    assert kept.digest == made.digest
    assert kept.first_stage is not None
    assert made.first_stage is not None
    assert torch.equal(kept.first_stage.decode(kept.test), made.first_stage.decode(made.test))
    assert scaled.sigma_data != made.sigma_data
    for file in cached.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert first_stage.latent_data(images(), encoder(precision=precision)).digest == made.digest


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"steps": 4}, {"kl": 0.5}, {"precision": "bfloat16"}, {"layers": 2}]
)
def test_other_settings_are_another_encoder(cached: Path, change: dict[str, Any]) -> None:
    digests = {first_stage.latent_data(images(), encoder(**one)).digest for one in ({}, change)}
    assert len(digests) == len(list(cached.glob("*.safetensors"))) == 2


@pytest.mark.slow
def test_the_global_generators_stay_as_they_were() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first_stage.latent_data(images(), encoder())
    assert torch.equal(torch.get_rng_state(), before)


# --- a folder of diffusers ------------------------------------------------------------------------


def saved(folder: Path, channels: int = 1) -> Any:
    """An autoencoder of diffusers in a folder, with a scaling and a shift of its own."""
    module = diffusers.AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    module.save_pretrained(folder)
    return module.eval()


def test_a_folder_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    module, data = saved(tmp_path / "vae"), images((4, 6))
    given = Encoder.model_validate(
        {"path": str(tmp_path / "vae"), "scale": "config", "shift": "config"}
    )
    found = first_stage.latent_data(data, given)
    with torch.no_grad():
        wanted = 0.5 * (module.encode(data.test).latent_dist.mean - 0.25)
        decoded = module.decode(wanted / 0.5 + 0.25).sample
    assert torch.equal(found.test, wanted)
    assert found.first_stage is not None
    with torch.no_grad():
        exact = module.double().decode(wanted.double() / 0.5 + 0.25).sample
    # Another layout in memory adds in another order: what float32 is off by anyway.
    rounding = float((decoded - exact).abs().max())
    assert float((found.first_stage.decode(found.test) - exact).abs().max()) <= 4 * rounding
    assert Encoder.model_validate(str(tmp_path / "vae")).path == str(tmp_path / "vae")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "encoder", "decoder"])
def test_the_weights_are_the_identity_of_a_folder_and_not_its_place(
    tmp_path: Path, part: str
) -> None:
    """Also those of the decoder alone, by which latents are the same and samples are not."""
    model = saved(tmp_path / "here")
    if part:
        with torch.no_grad():
            getattr(model, part).conv_in.bias += 0.1
    model.save_pretrained(tmp_path / "there")
    here, there = (
        first_stage.latent_data(images(), encoder(path=str(tmp_path / name)))
        for name in ("here", "there")
    )
    assert torch.equal(here.train, there.train) == (part != "encoder")
    assert (here.digest == there.digest) == (part == "")


def test_folders_that_do_not_fit_are_told(tmp_path: Path) -> None:
    saved(tmp_path / "vae", channels=3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "broken" / autoencoder.WEIGHTS).write_bytes(b"no safetensors")
    for name, message in (
        ("vae", "is of images of 3 channels, and the data have 1"),
        ("empty", "there is no config.json"),
        ("none", "there is no config.json"),
        ("broken", "encoder.path = .*broken"),
    ):
        with pytest.raises(InputError, match=message):
            first_stage.latent_data(images(), Encoder(path=str(tmp_path / name)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "vae")
    (tmp_path / "vae" / autoencoder.WEIGHTS).rename(
        tmp_path / "vae" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(InputError, match="as safetensors"):
        first_stage.latent_data(images(), Encoder(path=str(tmp_path / "vae")))


def test_without_diffusers_the_extra_is_named() -> None:
    with (
        mock.patch.dict("sys.modules", {"diffusers": None}),
        pytest.raises(InputError, match=r"diffusion-testbed\[images\]"),
    ):
        first_stage.latent_data(images(), encoder())


def test_vectors_have_no_encoder() -> None:
    with pytest.raises(InputError, match=r"samples have shape \(2,\), expected images"):
        first_stage.latent_data(
            Data(draws((4, 2), 1, torch.float32), draws((4, 2), 2, torch.float32)), encoder()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": []}, "one to six positive"),
        ({"channels": [8, 0]}, "one to six positive"),
        ({"scale": "config"}, "those of a folder"),
        ({"scale": -1.0}, "a positive number"),
        ({"scale": True}, "a positive number"),
        ({"shift": "config"}, "those of a folder"),
        ({"loss": "l3"}, "'l1' or 'l2'"),
        ({"precision": "float16"}, "'float32' or 'bfloat16'"),
        ({"latent_chanels": 2}, "latent_chanels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        encoder(**change)


# --- a study --------------------------------------------------------------------------------------

STUDY = """
[study]
name = "latent"
[base]
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 32 }
evaluation = { levels = 4, draws = 16, samples = 8, steps = 2, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["edm", "v"]
[[cases]]
name = "pixels"
dataset = "digits"
[[cases]]
name = "latents"
dataset = "digits"
encoder = { channels = [8, 8], steps = 3, latent_channels = 2 }
[report]
baseline = "edm"
"""


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_study_of_latents_has_samples_of_images(tmp_path: Path) -> None:
    (tmp_path / "latent.toml").write_text(STUDY)
    words = "study", "latent.toml", "--no-mlflow", "--jobs", 0, "--device", "cpu"
    done = run_here(tmp_path, *words)
    assert done.code == 0, done.err
    assert "Losses of latents are not those of pixels" in done.out + done.err
    folders = list(tmp_path.glob("runs/latent/trials/*"))
    of_latents = [one for one in folders if (one / "latents.safetensors").exists()]
    assert (len(folders), len(of_latents)) == (4, 2)
    for trial in of_latents:
        assert load_file(trial / "samples.safetensors")["samples"].shape == (8, 1, 8, 8)
        z = load_file(trial / "latents.safetensors")["latents"]
        assert z.shape == (8, 2, 4, 4)
        pipeline = testbed.pipeline(trial)
        assert pipeline(2).shape == (2, 1, 8, 8)
        assert pipeline(2, output="latent").shape == (2, 2, 4, 4)
    facts = json.loads((tmp_path / "runs/latent/data/latents.json").read_text())
    assert facts["floors"]["energy"]["decoded"] > 0
    assert (
        "decoded"
        not in json.loads((tmp_path / "runs/latent/data/pixels.json").read_text())["floors"][
            "energy"
        ]
    )
    assert "images decoded again: " in (tmp_path / "runs/latent/report.html").read_text()


@pytest.mark.slow
def test_pixels_and_latents_are_not_compared(tmp_path: Path) -> None:
    mixed = STUDY.replace(
        'parameterization = ["edm", "v"]',
        'parameterization = ["edm"]\nencoder = ["none", { channels = [8, 8], steps = 3 }]',
    )
    mixed = mixed[: mixed.index('[[cases]]\nname = "latents"')] + mixed[mixed.index("[report]") :]
    (tmp_path / "mixed.toml").write_text(mixed)
    done = run_here(tmp_path, "plan", "mixed.toml")
    assert done.code == 2
    assert "give each encoder a case of its own" in done.err
