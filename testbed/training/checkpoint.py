"""Checkpoints that survive a crash and notice damage: safetensors behind a checked header.

File: 8 bytes `TESTBED1`, 8 bytes length n (little endian), 32 bytes sha256 of the body, n bytes of
body (safetensors with JSON in its metadata). Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

MAGIC = b"TESTBED1"
HEADER = len(MAGIC) + 8 + 32

Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a checkpoint, and its facts, which are JSON."""


class Damaged(Exception):
    """The checkpoint is cut short, or its digest does not match."""


def write_durably(file: Path, content: bytes) -> None:
    """Replaces `file` by `content` so that a crash leaves the old or the new one whole.

    Raises:
        OSError: the file cannot be written; the error names it, and no part of it is left.
    """
    temporary = _temporary(file)
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, file)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise OSError(problem.errno, problem.strerror, str(file)) from problem
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _temporary(file: Path) -> Path:
    return file.with_name(file.name + ".tmp")


def write(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Writes `tensors` and JSON `facts`; the checkpoint before it becomes `<file>.previous`.

    A damaged checkpoint does not: it would replace an intact one.

    Raises:
        OSError: the file cannot be written.
    """
    body = save(
        {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()},
        metadata={"facts": json.dumps(facts)},
    )
    header = MAGIC + len(body).to_bytes(8, "little") + hashlib.sha256(body).digest()
    if _is_intact(file):
        os.replace(file, previous(file))
    write_durably(file, header + body)


def previous(file: Path) -> Path:
    """The path of the checkpoint before the last one."""
    return file.with_name(file.name + ".previous")


def remove(file: Path) -> None:
    """Deletes a checkpoint, the one before it, and one that a crash has left half written."""
    for one in (file, previous(file), _temporary(file)):
        one.unlink(missing_ok=True)


def read(file: Path) -> Contents:
    """The tensors and facts of a checkpoint.

    Raises:
        Damaged: the file is truncated, altered, or not a checkpoint.
    """
    body = _body(file)
    return load(body), json.loads(_metadata(body)["facts"])


def _body(file: Path) -> bytes:
    content = file.read_bytes()
    body = content[HEADER:]
    length = int.from_bytes(content[len(MAGIC) : len(MAGIC) + 8], "little")
    digest = content[len(MAGIC) + 8 : HEADER]
    if content[: len(MAGIC)] != MAGIC or len(body) != length:
        raise Damaged(f"{file} is cut short or not a checkpoint.")
    if hashlib.sha256(body).digest() != digest:
        raise Damaged(f"{file} is damaged: its sha256 does not match.")
    return body


def newest(file: Path) -> Contents | None:
    """The checkpoint, or else the previous one; None where neither is there and intact."""
    return next(intact(file), None)


def intact(file: Path, warn: Callable[[str], None] = lambda line: None) -> Iterator[Contents]:
    """The checkpoint and the previous one; a damaged one is left out, and `warn` gets a message."""
    for candidate in (file, previous(file)):
        if candidate.exists():
            try:
                yield read(candidate)
            except Damaged as problem:
                warn(str(problem))


def _is_intact(file: Path) -> bool:
    try:
        return file.exists() and bool(_body(file))
    except Damaged:
        return False


def _metadata(body: bytes) -> dict[str, str]:
    length = int.from_bytes(body[:8], "little")
    metadata: dict[str, str] = json.loads(body[8 : 8 + length]).get("__metadata__", {})
    return metadata


def save_weights(file: Path, tensors: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Writes a plain safetensors file durably, with `facts` as its metadata.

    Raises:
        OSError: the file cannot be written.
    """
    body = save({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata=facts)
    write_durably(file, body)


def load_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    with safe_open(file, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return tensors, handle.metadata() or {}
