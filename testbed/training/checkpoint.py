"""Checkpoints that notice damage, as bytes: safetensors behind a checked header.

8 bytes `TESTBED1`, 8 bytes length n (little endian), 32 bytes sha256 of the body, n bytes of body
(safetensors with JSON in its metadata). Nothing is unpickled. What keeps the bytes is not known
here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

MAGIC = b"TESTBED1"
HEADER = len(MAGIC) + 8 + 32

Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a checkpoint, and its facts, which are JSON."""


class Damaged(Exception):
    """The checkpoint is cut short, or its digest does not match."""


def encode(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A checkpoint of `tensors` and JSON `facts`."""
    body = encode_tensors(tensors, {"facts": json.dumps(facts)})
    return b"".join((MAGIC, len(body).to_bytes(8, "little"), hashlib.sha256(body).digest(), body))


def decode(content: bytes, name: str) -> Contents:
    """The tensors and facts of a checkpoint.

    Args:
        content: from `encode`.
        name: what the message calls the checkpoint.

    Raises:
        Damaged: the content is truncated, altered, or not a checkpoint.
    """
    body = _body(content, name)
    return load(body), json.loads(metadata_of(body)["facts"])


def is_intact(content: bytes | None) -> bool:
    """Whether there is a checkpoint, and it is not damaged."""
    try:
        return content is not None and bool(_body(content, ""))
    except Damaged:
        return False


def _body(content: bytes, name: str) -> bytes:
    body = content[HEADER:]
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 8], "little")
    digest = content[len(MAGIC) + 8 : HEADER]
    if content[: len(MAGIC)] != MAGIC or len(body) != length:
        raise Damaged(f"{name} is cut short or not a checkpoint.")
    if hashlib.sha256(body).digest() != digest:
        raise Damaged(f"{name} is damaged: its sha256 does not match.")
    return body


def metadata_of(body: bytes) -> dict[str, str]:
    """The metadata of a plain safetensors file."""
    length = int.from_bytes(body[:8], "little")
    metadata: dict[str, str] = json.loads(body[8 : 8 + length]).get("__metadata__", {})
    return metadata


def encode_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A plain safetensors file of `tensors`, with its metadata."""
    own = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    return save(own, metadata=metadata)


def decode_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a plain safetensors file.

    Raises:
        SafetensorError: the content is damaged.
    """
    return load(content)
