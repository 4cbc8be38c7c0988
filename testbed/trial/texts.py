"""Texts as a condition: the study's text encoder, the table of token states that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from safetensors.torch import load, save
from torch import Tensor, nn

from testbed import cache
from testbed.components.condition import ConditionTable
from testbed.components.dataset import Data
from testbed.data import text_encoder
from testbed.errors import InputError, did_you_mean, unknown
from testbed.settings import Setting
from testbed.training.conditions import OFF
from testbed.trial.specs import Model

EMPTY = ""
"""The text of which `null = "empty"` has the states where a text is switched off."""


class TextEncoder(Model):
    """`text_encoder`: what turns the texts of the data into states of tokens."""

    path: Annotated[
        str,
        Setting(
            "The folder of a text encoder and its tokenizer, as transformers writes them, or of a "
            "pipeline with the folders text_encoder and tokenizer. Nothing is downloaded.",
            identity=False,
        ),
    ]
    tokens: Annotated[
        int,
        Setting("Number of places for the tokens of a text; a text of more is refused."),
    ] = Field(default=77, ge=1, le=text_encoder.MOST_TOKENS)
    layer: Annotated[
        int,
        Setting(
            "The layer whose states are taken: -1 for the encoder's result, -2 for the hidden "
            "states before its last layer."
        ),
    ] = Field(default=-1, lt=0)
    null: Annotated[
        Literal["off", "empty"],
        Setting(
            'What a network is given where a text is switched off: no tokens at all ("off"), or '
            'those of the empty text ("empty"), as Stable Diffusion is.'
        ),
    ] = "off"
    padding: Annotated[
        Literal["masked", "states"],
        Setting(
            'What is in the places without a token: nothing that a network attends to ("masked"), '
            'or the states of the tokenizer\'s padding, as in Stable Diffusion ("states").',
            since=3,
        ),
    ] = "masked"
    digest: Annotated[
        str, Setting("Digest of the encoder's files; measured, and not to be stated.")
    ] = ""

    def measured(self) -> Self:
        """The settings with the digest of the encoder's files.

        Raises:
            InputError: there is no such encoder, or it has another digest than the one stated.
        """
        found = text_encoder.Folders.of(self.path).digest()
        if self.digest not in ("", found):
            raise InputError(
                f"text_encoder.path = {self.path!r}: the files are not those that the trial was "
                f"trained with: their digest is {found[:12]}, not {self.digest[:12]}."
            )
        return self.model_copy(update={"digest": found})

    def __str__(self) -> str:
        """`text encoder minilm, layer -1, 16 tokens`."""
        null = f", null {self.null}" if self.null != "off" else ""
        padded = ", padding states" if self.padding != "masked" else ""
        return f"text encoder {self.path}, layer {self.layer}, {self.tokens} tokens{null}{padded}"


def encoded(
    data: Data, encoder: TextEncoder | None, prompts: Mapping[str, Sequence[str]] | None = None
) -> Data:
    """The data with a table of token states for each condition of texts; as they are without one.

    With `null = "empty"` the empty text is the first one after those of the data.

    Args:
        data: as the data set gives them.
        encoder: the study's, or None.
        prompts: name of a condition -> texts that it is to have besides: any with an encoder, else
            those of the data.

    Raises:
        InputError: data without texts, an encoder that cannot be read, a text of too many tokens, a
            prompt of no condition of texts, or one that needs an encoder.
    """
    prompts = prompts or {}
    for name, several in prompts.items():
        if name not in data.texts:
            raise InputError(
                f"{name}={several[0]} is no class, and a text is taken by conditions of texts: "
                + unknown("condition of texts", name, data.texts)
            )
    if encoder is None:
        for name, several in prompts.items():
            for text in several:
                number(data, name, text)
        return data
    if not data.texts:
        raise InputError("text_encoder: these data have no texts to encode.")
    encoder.measured()
    texts, tables = {}, {}
    empty = [EMPTY] if encoder.null == "empty" else []
    for name, of_data in data.texts.items():
        kept = list(dict.fromkeys([*of_data, *empty]))
        further = [text for text in dict.fromkeys(prompts.get(name, ())) if text not in kept]
        found = _kept_states(kept, encoder)
        if further:
            found += _states(further, encoder)
        texts[name] = (*kept, *further)
        off = kept.index(EMPTY) if empty else None
        tables[name] = _table(texts[name], found, encoder, off)
    return replace(data, tables={**data.tables, **tables}, texts=texts)


def unused(
    encoder: TextEncoder | None, conditions: Mapping[str, float], data: Data
) -> Iterator[str]:
    """Why a trial has a text encoder for nothing; nothing where it has not.

    A condition that the data do not have may be one of texts, misspelt: what is said of it is all.
    """
    misspelt = set(conditions) - set(data.classes)
    if encoder is not None and not misspelt and not set(conditions) & set(data.texts):
        name = next(iter(data.texts))
        yield (
            "text_encoder: none of the model's conditions has texts to encode: write conditions = "
            f"{{ {name} = 0.1 }}, or leave text_encoder out."
        )


def foreign(data: Data, prompts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is said of each prompt that is none of the texts of the data as they are.

    Args:
        data: as the data set gives them, without the prompts.
        prompts: name of a condition of texts -> texts.
    """
    for name, several in prompts.items():
        of_data = data.texts[name]
        for text in dict.fromkeys(several):
            if text not in of_data:
                yield (
                    f"{name}: {text!r} is none of the {len(of_data)} texts of the data: the "
                    f"network was not trained on it.{did_you_mean(text, of_data)}"
                )


def number(data: Data, name: str, text: str) -> int:
    """The class of a text.

    Raises:
        InputError: it is none of the texts of the condition.
    """
    texts = data.texts.get(name, ())
    if text not in texts:
        raise InputError(f"{name}: {unknown('text', text, texts)}")
    return texts.index(text)


def _table(
    texts: Sequence[str], states: Sequence[Tensor], encoder: TextEncoder, off: int | None
) -> ConditionTable:
    """The states of texts, each with as many places as `tokens` says."""
    tokens = encoder.tokens
    if encoder.padding == "states":
        return ConditionTable("tokens", torch.stack(list(states)), off=off)
    rows = torch.zeros(len(texts), tokens, states[0].shape[-1])
    mask = torch.zeros(len(texts), tokens, dtype=torch.bool)
    for row, places, text, z in zip(rows, mask, texts, states, strict=True):
        if len(z) > tokens:
            raise InputError(text_encoder.too_long(text, len(z), tokens))
        row[: len(z)], places[: len(z)] = z, True
    return ConditionTable("tokens", rows, mask, off)


def _states(texts: Sequence[str], encoder: TextEncoder) -> list[Tensor]:
    """The states of each text, with those of its padding where the settings say so."""
    if encoder.padding == "states":
        return text_encoder.padded_states(encoder.path, texts, encoder.tokens, encoder.layer)
    return text_encoder.states(encoder.path, texts, encoder.layer)


def _kept_states(texts: Sequence[str], encoder: TextEncoder) -> list[Tensor]:
    """The states of texts, from the user's cache where they are there; else they are put there."""
    places = encoder.tokens if encoder.padding == "states" else None
    key = text_encoder.key(encoder.path, texts, encoder.layer, places)
    name = f"texts/{key}.safetensors"

    def made() -> bytes:
        return save(text_encoder.packed(_states(texts, encoder)))

    return text_encoder.unpacked(load(cache.kept(name, made, _intact)))


def _intact(content: bytes) -> bool:
    try:
        text_encoder.unpacked(load(content))
    except Exception:  # whatever the damage leads to
        return False
    return True


def row_for_off(module: nn.Module, rows: Mapping[str, int]) -> nn.Module:
    """The network, given a row such as that of the empty text wherever its condition is off.

    The weights and their names stay as they are: what is changed is the call.

    Args:
        module: called as network(x, c_noise, condition).
        rows: name of a condition -> the row; see `ConditionTable.off`.
    """

    def filled(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x, c_noise, *rest = arguments
        condition = dict((rest[0] if rest else None) or {})
        for name, row in rows.items():
            classes = condition.get(name)
            if classes is None:
                classes = torch.full((len(x),), OFF, device=x.device)
            condition[name] = torch.where(classes < 0, row, classes)
        return x, c_noise, condition, *rest[1:]

    module.register_forward_pre_hook(filled)
    return module
