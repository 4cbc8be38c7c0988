"""The states of a text's tokens by an encoder on disk, read by transformers.

Nothing is downloaded, no pickled file is read, and no code of the folder runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from testbed.errors import InputError, one_line

READ = (".json", ".txt", ".model", ".safetensors")
"""The endings of the files that an encoder and its tokenizer are made of."""
MOST_TOKENS = 4096
"""The most places for the tokens of a text that a network is given."""
UNUSED = ("pooler.", "position_ids", "text_projection")
"""What of a checkpoint's weights the states of tokens do not depend on."""


class Folders(NamedTuple):
    """Where the encoder lies and where its tokenizer does; often one folder."""

    model: Path
    tokenizer: Path

    @classmethod
    def of(cls, path: str) -> Folders:
        """The folders of an encoder, or of a pipeline with `text_encoder` and `tokenizer` in it.

        Raises:
            InputError: there is no such folder, it lacks a file, or its weights are pickled alone.
        """
        at = Path(path)
        if not path or not at.is_dir():
            raise InputError(f"text_encoder.path = {path!r}: there is no such folder.")
        inner = at / "text_encoder", at / "tokenizer"
        found = cls(*inner) if all(one.is_dir() for one in inner) else cls(at, at)
        for folder, file in ((found.model, "config.json"), (found.tokenizer, "tokenizer.json")):
            slow = file == "tokenizer.json" and (folder / "tokenizer_config.json").is_file()
            if not slow and not (folder / file).is_file():
                raise InputError(
                    f"text_encoder.path: {folder} has no {file}: expected a folder that "
                    "transformers' save_pretrained wrote, of the encoder and of its tokenizer."
                )
        if not any(found.model.glob("*.safetensors")):
            raise InputError(
                f"text_encoder.path: {found.model} has no weights as .safetensors, and pickled "
                "ones are not read, since they may run any code. Where they came from, "
                "model.save_pretrained(folder) writes them as .safetensors."
            )
        return found

    def files(self) -> Iterator[Path]:
        """The files that the states depend on, sorted by folder and name."""
        for folder in dict.fromkeys(self):
            yield from (file for file in sorted(folder.iterdir()) if file.suffix in READ)

    def digest(self) -> str:
        """The sha256 of the files, as hexadecimal digits."""
        return _digest(tuple((str(one), one.stat().st_mtime_ns) for one in self.files()))


@functools.lru_cache(maxsize=8)
def _digest(files: tuple[tuple[str, int], ...]) -> str:
    """The digest of files; their times say when it has to be computed again."""
    found = hashlib.sha256()
    for file, _ in files:
        with open(file, "rb") as handle:
            part = hashlib.file_digest(handle, "sha256").hexdigest()
        found.update(f"{Path(file).name} {part}\n".encode())
    return found.hexdigest()


def states(path: str, texts: Sequence[str], layer: int = -1) -> list[Tensor]:
    """The states of each text's tokens, (T, E) float32, the special tokens among them.

    Every text is encoded by itself, so that its states depend on no other one and on no padding.

    Args:
        path: the folder of the encoder.
        texts: the texts; the empty one has the special tokens alone.
        layer: -1 for the encoder's result; -2 for the hidden states before the last layer, and so
            on, as transformers hands them out, without a norm that comes after the last layer.

    Raises:
        InputError: transformers is not installed, the folder holds no encoder that can be read, it
            has no such layer, or a text has no tokens, or more than the encoder takes.
    """
    folders = Folders.of(path)
    model, tokenizer = loaded(folders)
    longest = getattr(model.config, "max_position_embeddings", None)
    found = []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt")
        count = tokens["input_ids"].shape[1]
        if not count or (longest is not None and count > longest):
            raise InputError(
                f"text {text!r} has {count} tokens: the encoder of {folders.model} takes from 1 "
                f"to {longest}."
            )
        given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        found.append(_of_layer(model, given, layer, folders))
    return found


def padded_states(path: str, texts: Sequence[str], places: int, layer: int = -1) -> list[Tensor]:
    """The states of each text with its padding, (places, E) float32, as Stable Diffusion has them.

    The tokenizer's own padding fills the places, and its states are those of tokens like others.
    The encoder is given a mask only where its configuration asks for one (`use_attention_mask`).

    Args:
        path, texts, layer: as for `states`.
        places: how many tokens each text has with its padding.

    Raises:
        InputError: as `states`; a tokenizer without a token for padding; more places than the
            encoder takes, or a text of more tokens.
    """
    folders = Folders.of(path)
    model, tokenizer = loaded(folders)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and places > longest:
        raise InputError(
            f"text_encoder.tokens = {places}: the encoder of {folders.model} takes at most "
            f"{longest} tokens, padding included."
        )
    if tokenizer.pad_token is None:
        raise InputError(
            f"text_encoder.path: the tokenizer of {folders.tokenizer} has no token for padding "
            "(pad_token), whose states the network is given."
        )
    masked = bool(getattr(model.config, "use_attention_mask", False))
    found = []
    for text in texts:
        tokens = tokenizer(text, padding="max_length", max_length=places, return_tensors="pt")
        if (count := tokens["input_ids"].shape[1]) > places:
            raise InputError(too_long(text, count, places))
        given = {"input_ids": tokens["input_ids"]}
        given |= {"attention_mask": tokens["attention_mask"]} if masked else {}
        found.append(_of_layer(model, given, layer, folders))
    return found


def too_long(text: str, count: int, places: int) -> str:
    """What is said of a text that has more tokens than there are places."""
    return (
        f"text {text!r} has {count} tokens, and text_encoder.tokens = {places}: expected a shorter "
        f"text, or a network that is trained with {count}."
    )


def _of_layer(model: Any, given: dict[str, Tensor], layer: int, folders: Folders) -> Tensor:
    """The states of one text at a layer of the encoder, (T, E).

    Raises:
        InputError: it has no such layer.
    """
    with torch.no_grad():
        output = model(**given, output_hidden_states=layer != -1)
    if layer == -1:
        return output.last_hidden_state[0].clone()  # type: ignore[no-any-return]
    hidden = output.hidden_states
    if not -len(hidden) <= layer < 0:
        raise InputError(
            f"text_encoder.layer = {layer}: the encoder of {folders.model} has layers from "
            f"{-len(hidden)} to -1."
        )
    return hidden[layer][0].clone()  # type: ignore[no-any-return]


def loaded(folders: Folders) -> tuple[Any, Any]:
    """The encoder, in float32 and evaluation mode, and its tokenizer.

    Raises:
        InputError: transformers is not installed, or what the folder holds cannot be read.
    """
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            "text_encoder needs transformers, which is not installed: pip install "
            "'diffusion-testbed[text]'."
        )
    import transformers

    transformers.utils.logging.disable_progress_bar()
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folders.model, **local)
        # CLIP's checkpoint of text and images has its text encoder under the same names.
        kind = transformers.AutoModelForTextEncoding
        if config.model_type == "clip":
            kind, config = transformers.CLIPTextModel, config.text_config
        model, report = kind.from_pretrained(
            folders.model, config=config, use_safetensors=True, output_loading_info=True, **local
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders.tokenizer, **local)
    except Exception as problem:  # a folder of another kind raises whatever it leads to
        raise InputError(
            f"text_encoder.path: {folders.model} cannot be read as a text encoder: "
            f"{one_line(problem)}"
        ) from problem
    missing = [key for key in report["missing_keys"] if not any(one in key for one in UNUSED)]
    if missing:
        raise InputError(
            f"text_encoder.path: {folders.model} lacks weights of its encoder: "
            f"{', '.join(sorted(missing)[:4])}."
        )
    return model.float().eval(), tokenizer


def packed(found: Sequence[Tensor]) -> dict[str, Tensor]:
    """The states of several texts as two tensors, for a file; `unpacked` undoes it."""
    return {"states": torch.cat(list(found)), "lengths": torch.tensor([len(z) for z in found])}


def unpacked(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The states of each text, (T, E)."""
    return list(torch.split(tensors["states"], tensors["lengths"].tolist()))


def key(path: str, texts: Sequence[str], layer: int, places: int | None = None) -> str:
    """A name for the states of these texts: equal files, texts and settings, equal names.

    `places` is that of padded states, None for those without padding.
    """
    words = json.dumps([Folders.of(path).digest(), layer, *([places] if places else []), *texts])
    return hashlib.sha256(words.encode()).hexdigest()[:32]
