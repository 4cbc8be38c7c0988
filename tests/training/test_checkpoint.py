"""Checkpoints: what is written is read, damage is noticed, and a crash leaves a whole one."""

import json
import math
import os
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
from testbed.training.checkpoint import Damaged, newest, previous, read, write

Written = tuple[dict[str, Tensor], dict[str, Any]]
Reader = Callable[[Path], Written]


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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint of `content()`."""
    write(tmp_path / "last.ckpt", *content())
    return tmp_path / "last.ckpt"


# --- what is written is read --------------------------------------------------------------------


def test_what_is_written_is_read_bit_for_bit(file: Path) -> None:
    assert same(read(file), content())


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write(tmp_path / "c", {"turned": whole.T}, {})
    assert torch.equal(read(tmp_path / "c")[0]["turned"], whole.T)


def test_a_parameter_is_written_without_its_graph(tmp_path: Path) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    write(tmp_path / "c", {"p": p * 2}, {})
    assert not read(tmp_path / "c")[0]["p"].requires_grad


def test_what_was_read_is_not_what_was_written(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    write(tmp_path / "c", {"p": tensor}, {})
    read(tmp_path / "c")[0]["p"].zero_()
    assert torch.equal(tensor, torch.ones(2))


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    write(tmp_path / "one", *content())
    write(tmp_path / "two", *content())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_temporary_file_is_left(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_body_is_safetensors(file: Path) -> None:
    body = file.read_bytes()[checkpoint.HEADER :]
    assert same((safetensors.torch.load(body), content()[1]), content())
    length = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + length])
    assert json.loads(header["__metadata__"]["facts"]) == content()[1]


def test_nothing_is_pickled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert same(read(file), content())


def test_a_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"p": torch.ones(2)}, tmp_path / "c")
    with pytest.raises(Damaged, match="not a checkpoint"):
        read(tmp_path / "c")


# --- damage -------------------------------------------------------------------------------------


def law_cuts_are_noticed(reader: Reader, file: Path) -> None:
    """A file cut at every 97th byte, at its header's seams, or grown, is damaged."""
    whole = file.read_bytes()
    seams = {0, 1, 8, 16, checkpoint.HEADER - 1, checkpoint.HEADER, len(whole) - 1}
    for length in sorted(seams | set(range(0, len(whole), 97))):
        file.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            reader(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(Damaged):
        reader(file)


def law_flips_are_noticed(reader: Reader, file: Path) -> None:
    """One flipped bit, in each byte of the header and at 200 places of the body, is damage."""
    whole = file.read_bytes()
    draw = random.Random(0)
    places = [8 * byte + draw.randrange(8) for byte in range(checkpoint.HEADER)]
    places += [draw.randrange(8 * checkpoint.HEADER, 8 * len(whole)) for _ in range(200)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(Damaged):
            reader(file)


def law_zeros_are_noticed(reader: Reader, file: Path) -> None:
    """A file of its full length whose tail was never written is damaged."""
    whole = file.read_bytes()
    for kept in range(0, len(whole) - 1, 97):
        file.write_bytes(whole[:kept] + bytes(len(whole) - kept))
        with pytest.raises(Damaged):
            reader(file)


DAMAGE = [law_cuts_are_noticed, law_flips_are_noticed, law_zeros_are_noticed]


def trusting(file: Path) -> Written:
    """A reader that looks at nothing but the safetensors inside."""
    body = file.read_bytes()[checkpoint.HEADER :]
    try:
        return safetensors.torch.load(body), {}
    except safetensors.SafetensorError as problem:
        raise Damaged from problem


def by_length(file: Path) -> Written:
    """A reader that looks at the length alone."""
    whole = file.read_bytes()
    if len(whole) != checkpoint.HEADER + int.from_bytes(whole[8:16], "little"):
        raise Damaged
    return {}, {}


@pytest.mark.parametrize("law", DAMAGE)
def test_damage_is_noticed(file: Path, law: Callable[[Reader, Path], None]) -> None:
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
    file: Path, law: Callable[[Reader, Path], None], mutant: Reader
) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        law(mutant, file)


def test_the_message_names_the_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(Damaged, match=r"last\.ckpt is cut short"):
        read(file)


# --- the one before -----------------------------------------------------------------------------


def spoil(file: Path) -> None:
    """One bit in the middle of the file."""
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 4
    file.write_bytes(whole)


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "last.ckpt") is None


def test_the_newest_is_the_last_written(file: Path) -> None:
    write(file, *content(8))
    assert same(newest(file), content(8))


def test_the_one_before_is_kept(file: Path) -> None:
    write(file, *content(8))
    assert same(read(previous(file)), content(7))


def test_only_one_before_is_kept(file: Path) -> None:
    write(file, *content(8))
    write(file, *content(9))
    assert same(read(previous(file)), content(8))
    assert len(list(file.parent.iterdir())) == 2


def test_damage_falls_back_to_the_one_before(file: Path) -> None:
    write(file, *content(8))
    spoil(file)
    assert same(newest(file), content(7))


def test_damage_to_both_leaves_none(file: Path) -> None:
    write(file, *content(8))
    spoil(file)
    spoil(previous(file))
    assert newest(file) is None


def test_a_damaged_one_does_not_replace_a_whole_one_before(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, *content(8))
    spoil(file)
    monkeypatch.setattr(checkpoint, "write_durably", crash)
    with pytest.raises(Crash):
        write(file, *content(9))
    assert same(newest(file), content(7))


# --- crashes ------------------------------------------------------------------------------------


class Crash(Exception):
    """The machine stops here."""


def crash(*_: Any, **__: Any) -> None:
    raise Crash


Writer = Callable[[Path, dict[str, Tensor], dict[str, Any]], None]


def law_a_crash_leaves_a_whole_one(writer: Writer, folder: Path) -> None:
    """A crash at any system call that changes the folder leaves the old or the new state.

    After it, the next write works and is what is read.
    """
    calls = ["replace", "fsync", "open"]
    for name in calls:
        for turn in range(3):
            file = folder / f"{name}{turn}"
            writer(file, *content(1))
            writer(file, *content(2))
            genuine, left = getattr(os, name), [turn]

            def failing(*arguments: Any, genuine: Any = genuine, left: list[int] = left) -> Any:
                left[0] -= 1
                return crash() if left[0] < 0 else genuine(*arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, name, failing)
                try:
                    writer(file, *content(3))
                    done = True
                except Crash:
                    done = False
            found = newest(file)
            assert same(found, content(3)) or (not done and same(found, content(2)))
            writer(file, *content(4))
            assert same(newest(file), content(4))


def test_a_crash_leaves_a_whole_one(tmp_path: Path) -> None:
    law_a_crash_leaves_a_whole_one(write, tmp_path)


def replaced_in_place(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Opens the file itself, as `torch.save` does, and is cut off half way."""
    write(file.with_name("aside"), tensors, facts)
    whole = file.with_name("aside").read_bytes()
    with file.open("wb") as handle:
        handle.write(whole[: len(whole) // 2])
        os.fsync(handle.fileno())
        handle.write(whole[len(whole) // 2 :])


def without_a_previous(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Takes the old one away before the new one is there."""
    file.unlink(missing_ok=True)
    write(file, tensors, facts)


@pytest.mark.parametrize("mutant", [replaced_in_place, without_a_previous])
def test_writers_that_lose_the_old_one_are_caught(tmp_path: Path, mutant: Writer) -> None:
    with pytest.raises(AssertionError):
        law_a_crash_leaves_a_whole_one(mutant, tmp_path)


def test_a_crash_between_the_renames_leaves_the_one_before(file: Path) -> None:
    file.rename(previous(file))
    assert same(newest(file), content(7))


def test_a_half_written_temporary_file_is_ignored(file: Path) -> None:
    whole = file.read_bytes()
    file.with_name(file.name + ".tmp").write_bytes(whole[: len(whole) // 2])
    assert same(newest(file), content(7))


def test_a_temporary_file_of_a_crash_does_not_stop_the_next_write(file: Path) -> None:
    file.with_name(file.name + ".tmp").write_bytes(b"rest")
    write(file, *content(8))
    assert same(newest(file), content(8))


# --- plain weights ------------------------------------------------------------------------------


def test_weights_are_a_plain_safetensors_file(tmp_path: Path) -> None:
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3).T}
    checkpoint.save_weights(tmp_path / "w.safetensors", tensors, {"trial": "abc"})
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"trial": "abc"}
        assert torch.equal(handle.get_tensor("layer.weight"), tensors["layer.weight"])


def test_weights_are_read_as_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, generator=torch.Generator().manual_seed(0))}
    checkpoint.save_weights(tmp_path / "w.safetensors", tensors, {"trial": "abc"})
    found, facts = checkpoint.load_weights(tmp_path / "w.safetensors")
    assert torch.equal(found["a"], tensors["a"])
    assert facts == {"trial": "abc"}
