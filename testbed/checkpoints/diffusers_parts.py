"""What a pipeline of diffusers has beside its network: the encoder of its texts, its first stage.

The names of the folders are those of StableDiffusionPipeline and DiTPipeline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InputError, one_line

CONFIG = "config.json"
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"
FIRST_STAGES = ("vae", "vqvae")
"""The folders of a first stage."""
AUTOENCODER = "AutoencoderKL"
"""The only class of a first stage that is read."""
WIDTHS = ("hidden_size", "d_model")
"""What the width of an encoder's states is called in its config.json."""


@dataclass(frozen=True)
class TextInput:
    """The states of a text's tokens that a network attends to, and the encoder that makes them.

    Args:
        width: E of the states (T, E) that the network takes.
        path: the folder with `text_encoder` and `tokenizer` in it.
        places: T, how many tokens each text has with its padding.
        problem: why that encoder cannot be used; "" where it can.
    """

    width: int
    path: str = ""
    places: int = 0
    problem: str = ""


def read_json(file: Path) -> dict[str, Any]:
    """The content of a file.

    Raises:
        InputError: it is missing, or no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"{file} cannot be read: {one_line(problem)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object.")
    return content


def text_input(root: Path, written: Mapping[str, Any], file: Path) -> TextInput:
    """The texts of a UNet2DConditionModel.

    Args:
        root: the folder of the pipeline.
        written: the content of the network's config.json.
        file: that config.json, for messages.
    """
    key = "encoder_hid_dim" if written.get("encoder_hid_dim_type") else "cross_attention_dim"
    found = written.get(key, 1280)
    widths = set(found) if isinstance(found, list) else {found}
    if len(widths) != 1 or not isinstance(width := widths.pop(), int):
        return TextInput(0, problem=f"{file}: {key} = {found!r}: expected one whole number.")
    if not all((root / name).is_dir() for name in (TEXT_ENCODER, TOKENIZER)):
        return TextInput(
            width,
            problem=f"{root} has no folders {TEXT_ENCODER} and {TOKENIZER}, which make the states "
            "(encoder_hidden_states) that its network attends to.",
        )
    encoder, tokenizer = root / TEXT_ENCODER / CONFIG, root / TOKENIZER / "tokenizer_config.json"
    try:
        of_encoder, of_tokenizer = read_json(encoder), read_json(tokenizer)
    except InputError as unread:
        return TextInput(width, problem=str(unread))
    own = next((of_encoder[name] for name in WIDTHS if name in of_encoder), width)
    longest = of_encoder.get("max_position_embeddings")
    places = of_tokenizer.get("model_max_length", longest)
    problem = ""
    if own != width:
        problem = (
            f"{encoder}: its states have width {own}, and {file} has {key} = {width}: expected one "
            "width."
        )
    elif not isinstance(places, int | float) or (longest and places > longest):
        problem = (
            f"{tokenizer}: model_max_length = {places!r}: expected the number of tokens of a "
            f"padded text, at most max_position_embeddings = {longest} of {encoder}."
        )
    return TextInput(width, str(root), 0 if problem else int(places or 0), problem)


def first_stage(root: Path) -> Path | None:
    """The folder of the pipeline's AutoencoderKL; None where it has no first stage.

    Raises:
        InputError: its first stage is of another class.
    """
    for name in FIRST_STAGES:
        file = root / name / CONFIG
        if not file.is_file():
            continue
        kind = read_json(file).get("_class_name")
        if kind != AUTOENCODER:
            raise InputError(
                f"{file}: _class_name = {kind!r} is not read: the first stage of latents is an "
                f"{AUTOENCODER}."
            )
        return root / name
    return None
