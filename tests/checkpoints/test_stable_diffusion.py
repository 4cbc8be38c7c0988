"""A folder with the layout of Stable Diffusion against diffusers' own pipeline, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bounds import assert_within, exact
from helpers.diffusers_models import change, needs_diffusers
from helpers.encoders import LONGEST
from helpers.stable_diffusion import SHAPE, WIDTH, by_stable_diffusion, stable_diffusion
from torch import Tensor

import testbed
from testbed.checkpoints.diffusers_folders import DiffusersFolder, read
from testbed.checkpoints.networks import ForeignNetwork
from testbed.data import text_encoder
from testbed.errors import InputError
from testbed.sampling.guidance import ClassifierFree

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    needs_diffusers,
    pytest.mark.slow,
]
PROMPTS = ("three blobs, the red one left", "two blobs")
ENCODING = 200 * 2.0**-24
"""Two layers of an encoder in float32 of numbers about 1, summed in another order in a batch."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that predicts eps."""
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def of_v(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network read as v."""
    at = tmp_path_factory.mktemp("v") / "sd"
    at.mkdir()
    for part in folder.iterdir():
        if part.name != "scheduler":
            (at / part.name).symlink_to(part)
    (at / "scheduler").mkdir()
    file = at / "scheduler" / "scheduler_config.json"
    file.write_text((folder / "scheduler" / file.name).read_text())
    change(file, prediction_type="v_prediction")
    return at


def noise(n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)


def pipeline_of(folder: Path) -> Any:
    import diffusers

    return diffusers.StableDiffusionPipeline.from_pretrained(folder)


# --- the states of texts --------------------------------------------------------------------------


def test_states_are_those_that_the_pipeline_makes_of_a_prompt(folder: Path) -> None:
    """Padding is attended to like a word: the mean state of the padding is as large as any."""
    with torch.no_grad():
        states, empty = pipeline_of(folder).encode_prompt(list(PROMPTS), "cpu", 1, True)
    found = torch.stack(text_encoder.padded_states(str(folder), PROMPTS, LONGEST))
    assert found.shape == (2, LONGEST, WIDTH)
    assert float((found - states).abs().max()) <= ENCODING
    (none,) = text_encoder.padded_states(str(folder), [""], LONGEST)
    assert float((none - empty[0]).abs().max()) <= ENCODING
    # Without padding a text has the same states where its words are, and none after them.
    (short,) = text_encoder.states(str(folder), PROMPTS[1:])
    assert float((found[1, : len(short)] - short).abs().max()) <= ENCODING
    assert float(found[1, len(short) :].abs().mean()) > 0.1


def test_a_mask_is_given_to_an_encoder_that_asks_for_one(folder: Path, tmp_path: Path) -> None:
    """The encoder of Stable Diffusion 1 has none, that of some others has."""
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
        for file in (folder / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    (plain,) = text_encoder.padded_states(str(tmp_path), PROMPTS[1:], LONGEST)
    change(tmp_path / "text_encoder" / "config.json", use_attention_mask=True)
    (masked,) = text_encoder.padded_states(str(tmp_path), PROMPTS[1:], LONGEST)
    assert float((plain[:4] - masked[:4]).abs().max()) <= ENCODING  # the words see no padding
    assert float((plain[4:] - masked[4:]).abs().max()) > 1e-3


# --- the denoiser ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_d_is_what_its_scheduler_makes_of_its_network(
    folder: Path, of_v: Path, prediction_type: str
) -> None:
    """pred_original_sample of DDIM's step, whose abar, t float32 factors, is off by (t + 1) u."""
    at = folder if prediction_type == "epsilon" else of_v
    denoise, pipeline = testbed.load_diffusers(at, prompts=PROMPTS), pipeline_of(at)
    assert denoise.table is not None
    pipeline.scheduler.set_timesteps(1000)
    with torch.no_grad():
        states, empty = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, True)
    for t in (0, 300, 900):
        x_t = noise(3).float()
        sigma = denoise.table.sigmas[t]
        x = (x_t * torch.sqrt(1 + sigma**2)).float()
        given = torch.cat([states, empty[:1]])
        with torch.no_grad():
            output = pipeline.unet(x_t, t, encoder_hidden_states=given).sample
            wanted = pipeline.scheduler.step(output, t, x_t).pred_original_sample
            found = denoise(x, sigma.float(), {"text": torch.tensor([0, 1, -1])})
            nothing = denoise(x[2:], sigma.float())
        # The network's own roundings lie between its two outputs, of a batch of three and of one.
        size = float(torch.sqrt(1 + sigma**2)) * (x_t.abs() + output.abs().mean() + output.abs())
        assert_within(found, exact(wanted), exact(size), 512 + 2 * t, torch.float32)
        assert_within(nothing, exact(wanted[2:]), exact(size[2:]), 512 + 2 * t, torch.float32)
        assert float((found[0] - found[1]).abs().max()) > 1e-3 * float(sigma)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_guided_samples_are_those_of_stable_diffusion(
    folder: Path, of_v: Path, prediction_type: str, scale: float
) -> None:
    """Five steps of DDIM from the same latents: equal but for float32's part in it.

    The encoder is in float32, and so is our first stage, some hundred roundings of numbers about 1;
    how far the end moves with the states of the texts is measured. All else is in float64: abar is
    off by 1000 u, and at the first level D is 15 times as much, 11 times with guidance.
    """
    at = folder if prediction_type == "epsilon" else of_v
    z, steps, h = noise(), 5, 2.0**-10
    latents, images = by_stable_diffusion(at, z, PROMPTS, scale, steps)
    schedule = testbed.Registry().schedule("table", spacing="leading", steps_offset=1)
    pipe = testbed.diffusers_pipeline(at, PROMPTS)
    assert isinstance(pipe.denoiser, testbed.Denoiser)
    network = pipe.denoiser.double().network
    assert isinstance(network, ForeignNetwork)
    rows = network.get_buffer("rows_of_text")
    signs = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).sign()
    for theirs, output, rounding in (
        (latents, "latent", 1000 * 2.0**-53 * 15 * 11 * steps * float(z.abs().max())),
        (images, "tensor", 1000 * 2.0**-24),
    ):
        arguments: dict[str, Any] = {
            "scale": scale, "steps": steps, "noise": z, "schedule": schedule, "output": output,
        }  # fmt: skip
        mine = pipe(2, {"text": list(PROMPTS)}, **arguments)
        other = pipe(2, {"text": list(reversed(PROMPTS))}, **arguments)
        rows += h * signs
        moved = pipe(2, {"text": list(PROMPTS)}, **arguments)
        rows -= h * signs
        bound = ENCODING * float((moved - mine).abs().max()) / h + rounding
        assert mine.shape == theirs.shape
        assert float((mine - theirs).abs().max()) <= bound
        assert float((mine - other).abs().max()) > 100 * bound


def test_the_empty_prompt_is_what_guidance_goes_away_from(folder: Path) -> None:
    denoise = testbed.load_diffusers(folder, prompts=PROMPTS).double()
    x, sigma = 3 * noise(), torch.tensor(2.0, dtype=torch.float64)
    with torch.no_grad():
        guided = ClassifierFree(denoise, [({"text": torch.tensor([0, 1])}, 3.0)])(x, sigma)
        D_y, D_0 = denoise(x, sigma, {"text": torch.tensor([0, 1])}), denoise(x, sigma)
    assert torch.allclose(guided, D_0 + 3 * (D_y - D_0), rtol=1e-11, atol=1e-11)


# --- refusals ---


def copied(folder: Path, to: Path, *without: str) -> Path:
    """The folder again, its files copied, but for some of its parts."""
    for file in folder.rglob("*"):
        part = file.relative_to(folder)
        if file.is_file() and part.parts[0] not in without:
            (to / part).parent.mkdir(parents=True, exist_ok=True)
            (to / part).write_bytes(file.read_bytes())
    return to


Change = tuple[str, dict[str, Any]]
UNFIT: dict[str, tuple[str, Change | None, str]] = {
    "no encoder": ("text_encoder", None, "has no folders text_encoder and tokenizer"),
    "no tokenizer": ("tokenizer", None, "has no folders text_encoder and tokenizer"),
    "another width": (
        "",
        ("text_encoder/config.json", {"hidden_size": 32}),
        r"text_encoder/config.json: its states have width 32, and .*unet/config.json has "
        "cross_attention_dim = 16",
    ),
    "more places than the encoder has": (
        "",
        ("tokenizer/tokenizer_config.json", {"model_max_length": 77}),
        r"tokenizer_config.json: model_max_length = 77: .*max_position_embeddings = 16",
    ),
    "no places": (
        "",
        ("tokenizer/tokenizer_config.json", {"model_max_length": -1}),
        r"tokenizer_config.json: model_max_length = -1: expected .* from 1 to max_position",
    ),
    "layers of several widths": (
        "",
        ("unet/config.json", {"cross_attention_dim": [[16], [8]]}),
        r"unet/config.json: cross_attention_dim = \[\[16\], \[8\]\]: expected one whole number",
    ),
    "channels in words": (
        "",
        ("unet/config.json", {"in_channels": "four"}),
        r"unet/config.json: in_channels = 'four': expected a whole number",
    ),
    "classes in words": (
        "",
        ("unet/config.json", {"num_class_embeds": "ten"}),
        r"unet/config.json: num_class_embeds = 'ten': expected a whole number",
    ),
    "several widths": (
        "",
        ("unet/config.json", {"cross_attention_dim": [8, 16]}),
        r"unet/config.json: cross_attention_dim = \[8, 16\]: expected one whole number",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_encoder_that_does_not_fit_is_named(folder: Path, tmp_path: Path, case: str) -> None:
    without, changed, said = UNFIT[case]
    at = copied(folder, tmp_path, without)
    if changed:
        change(at / changed[0], **changed[1])
    with pytest.raises(InputError, match=said):
        testbed.load_diffusers(at, prompts=PROMPTS)


def test_an_encoder_without_a_longest_text_needs_a_tokenizer_with_one(
    folder: Path, tmp_path: Path
) -> None:
    """The tokenizers of T5 often state 10^30."""
    at = copied(folder, tmp_path)
    change(at / "text_encoder" / "config.json", max_position_embeddings=None)
    change(at / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    with pytest.raises(InputError, match=r"model_max_length = 10{30}: .* from 1 to 4096\."):
        testbed.load_diffusers(at, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("scaling_factor", "half", r"scaling_factor = 'half': expected a number"),
        ("scaling_factor", 0.0, r"scaling_factor = 0 must be above 0"),
        ("shift_factor", [0.5], r"shift_factor = \[0\.5\]: expected a number"),
    ],
)
def test_factors_of_latents_that_are_none_are_named(
    folder: Path, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    at = copied(folder, tmp_path)
    change(at / "vae" / "config.json", **{key: value})
    with pytest.raises(InputError, match=r"vae/config\.json: " + said):
        testbed.diffusers_pipeline(at, PROMPTS)


def test_prompts_that_do_not_fit_are_named(folder: Path, tmp_path: Path) -> None:
    said = "has 42 tokens, and text_encoder.tokens = 16: expected a shorter text, or a network that"
    with pytest.raises(InputError, match=said):
        testbed.load_diffusers(folder, prompts=["red " * 40])
    with pytest.raises(InputError, match=r"prompts = 'red': expected a list of texts, \['red'\]"):
        testbed.load_diffusers(folder, prompts="red")
    with pytest.raises(InputError, match=r'give prompts = \["\.\.\."\]'):
        testbed.diffusers_pipeline(folder)
    at = copied(folder, tmp_path)
    change(at / "vae" / "config.json", _class_name="VQModel")
    with pytest.raises(InputError, match=r"vae/config.json: _class_name = 'VQModel' is not read"):
        testbed.diffusers_pipeline(at, PROMPTS)


def test_what_a_network_needs_besides_is_known(folder: Path, tmp_path: Path) -> None:
    """SDXL's network takes the size of the image and a pooled text, too."""
    assert read(folder).needs == ""
    at = copied(folder, tmp_path, "vae")
    change(at / "unet" / "config.json", addition_embed_type="text_time")
    found = read(at)
    assert found.needs == "added_cond_kwargs (addition_embed_type = 'text_time')"
    assert isinstance(found, DiffusersFolder)
    assert found.first_stage is None
