"""Checkpoints: what is encoded is decoded, and damage is noticed."""

import io
import json
import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from testbed.training import checkpoint
from testbed.training.checkpoint import Damaged, decode, encode, is_intact

Written = tuple[dict[str, Tensor], dict[str, Any]]
Reader = Callable[[bytes], Written]


def content(step: int = 7) -> Written:
    """Tensors of every kind that a training state has, and facts."""
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "p0": torch.randn(3, 4, generator=generator),
        "wide": torch.randn(5, generator=generator, dtype=torch.float64),
        "narrow": torch.randn(6, generator=generator).bfloat16(),
        "count": torch.tensor([2**60 + step, -1]),
        "adam0.step": torch.tensor(float(step)),
        "special": torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1e-45]),
        "none": torch.zeros(0, 3),
    }
    return tensors, {"step": step, "seed": 3, "rows": [[1, 0.1], [2, None]], "name": "σ"}


def same(one: Written | None, two: Written) -> bool:
    """Equal bit for bit, nan included."""
    if one is None or one[1] != two[1] or one[0].keys() != two[0].keys():
        return False
    return all(
        a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
        for a, b in ((one[0][name], two[0][name]) for name in one[0])
    )


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def read(file: bytes) -> Written:
    return decode(file, "last.ckpt")


@pytest.fixture
def file() -> bytes:
    """A checkpoint of `content()`."""
    return encode(*content())


# --- what is written is read --------------------------------------------------------------------


def test_what_is_written_is_read_bit_for_bit(file: bytes) -> None:
    assert same(read(file), content())


def test_a_view_is_written_as_what_it_shows() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(read(encode({"turned": whole.T}, {}))[0]["turned"], whole.T)


def test_a_parameter_is_written_without_its_graph() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    assert not read(encode({"p": p * 2}, {}))[0]["p"].requires_grad


def test_what_was_read_is_not_what_was_written() -> None:
    tensor = torch.ones(2)
    read(encode({"p": tensor}, {}))[0]["p"].zero_()
    assert torch.equal(tensor, torch.ones(2))


def test_equal_states_are_equal_files() -> None:
    assert encode(*content()) == encode(*content())


def test_the_body_is_safetensors(file: bytes) -> None:
    body = file[checkpoint.HEADER :]
    assert same((safetensors.torch.load(body), content()[1]), content())
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    assert json.loads(header["__metadata__"]["facts"]) == content()[1]


def test_nothing_is_pickled(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert same(read(file), content())


def test_a_pickle_is_no_checkpoint() -> None:
    pickled = io.BytesIO()
    torch.save({"p": torch.ones(2)}, pickled)
    with pytest.raises(Damaged, match="not a checkpoint"):
        read(pickled.getvalue())


# --- damage -------------------------------------------------------------------------------------


def law_cuts_are_noticed(reader: Reader, file: bytes) -> None:
    """A file cut at every 97th byte, at its header's seams, or grown, is damaged."""
    seams = {0, 1, 8, 16, checkpoint.HEADER - 1, checkpoint.HEADER, len(file) - 1}
    for length in sorted(seams | set(range(0, len(file), 97))):
        with pytest.raises(Damaged):
            reader(file[:length])
    with pytest.raises(Damaged):
        reader(file + b"\0")


def law_flips_are_noticed(reader: Reader, file: bytes) -> None:
    """One flipped bit, in each byte of the header and at 200 places of the body, is damage."""
    draw = random.Random(0)
    places = [8 * byte + draw.randrange(8) for byte in range(checkpoint.HEADER)]
    places += [draw.randrange(8 * checkpoint.HEADER, 8 * len(file)) for _ in range(200)]
    for place in places:
        damaged = bytearray(file)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(Damaged):
            reader(bytes(damaged))


def law_zeros_are_noticed(reader: Reader, file: bytes) -> None:
    """A file of its full length whose tail was never written is damaged."""
    for kept in range(0, len(file) - 1, 97):
        with pytest.raises(Damaged):
            reader(file[:kept] + bytes(len(file) - kept))


DAMAGE = [law_cuts_are_noticed, law_flips_are_noticed, law_zeros_are_noticed]


def trusting(file: bytes) -> Written:
    """A reader that looks at nothing but the safetensors inside."""
    body = file[checkpoint.HEADER :]
    try:
        return safetensors.torch.load(body), {}
    except safetensors.SafetensorError as problem:
        raise Damaged from problem


def by_length(file: bytes) -> Written:
    """A reader that looks at the length alone."""
    if len(file) != checkpoint.HEADER + int.from_bytes(file[8:16], "little"):
        raise Damaged
    return {}, {}


@pytest.mark.parametrize("law", DAMAGE)
def test_damage_is_noticed(file: bytes, law: Callable[[Reader, bytes], None]) -> None:
    law(read, file)


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        (law_cuts_are_noticed, lambda file: ({}, {})),
        (law_flips_are_noticed, trusting),
        (law_flips_are_noticed, by_length),
        (law_zeros_are_noticed, by_length),
    ],
)
def test_readers_that_trust_are_caught(
    file: bytes, law: Callable[[Reader, bytes], None], mutant: Reader
) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        law(mutant, file)


def test_the_message_names_the_file(file: bytes) -> None:
    with pytest.raises(Damaged, match=r"last\.ckpt is cut short"):
        read(file[:-1])


def test_what_is_damaged_or_not_there_is_not_intact(file: bytes) -> None:
    assert is_intact(file)
    assert not is_intact(file[:-1])
    assert not is_intact(None)


# --- plain weights ------------------------------------------------------------------------------


def test_weights_are_a_plain_safetensors_file(tmp_path: Path) -> None:
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3).T}
    file = tmp_path / "w.safetensors"
    file.write_bytes(checkpoint.encode_tensors(tensors, {"trial": "abc"}))
    with safetensors.safe_open(file, framework="pt") as handle:
        assert handle.metadata() == {"trial": "abc"}
        assert torch.equal(handle.get_tensor("layer.weight"), tensors["layer.weight"])


def test_weights_are_read_as_written() -> None:
    tensors = {"a": torch.randn(3, generator=torch.Generator().manual_seed(0))}
    found = checkpoint.decode_tensors(checkpoint.encode_tensors(tensors, {"trial": "abc"}))
    assert torch.equal(found["a"], tensors["a"])
