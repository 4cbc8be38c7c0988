"""The folders of a study: what is written is read, damage is told, a crash leaves a whole state."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors
import torch
from torch import Tensor

from testbed.errors import InputError
from testbed.trial.folders import (
    Folder,
    GroupFolder,
    TrainingFolder,
    TrialFolder,
)
from testbed.trial.storage import LocalDisk, StoreAway
from testbed.trial.study_folder import StudyFolder, studies

State = tuple[dict[str, Tensor], dict[str, Any]]


@pytest.fixture
def trial(tmp_path: Path) -> TrialFolder:
    return TrialFolder.at(tmp_path / "trials" / "abc")


# --- formats ------------------------------------------------------------------------------------


def test_a_store_that_is_away_says_nothing_of_a_file(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.put_json("result.json", {"status": "finished"})

    def away(*rest: Any) -> bytes:
        raise StoreAway("s3://bucket/x: the store does not answer")

    monkeypatch.setattr(LocalDisk, "get", away)
    for read in (trial.json, trial.json_or_empty):
        with pytest.raises(StoreAway):
            read("result.json")
    with pytest.raises(StoreAway):
        trial.result()


def test_json_is_read_as_written(trial: TrialFolder) -> None:
    trial.put_json("x.json", {"b": [1.5, True, None], "a": {"σ": "x"}})
    assert trial.json("x.json") == {"a": {"σ": "x"}, "b": [1.5, True, None]}
    assert trial.json_or_empty("x.json") == trial.json("x.json")


def test_numbers_that_are_not_finite_become_null(trial: TrialFolder) -> None:
    trial.put_json("x.json", {"a": math.nan, "b": [{"c": math.inf}, (-math.inf, 1.0)]})
    assert trial.json("x.json") == {"a": None, "b": [{"c": None}, [None, 1.0]]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read as JSON: .*No such file or directory"),
        (b"", "cannot be read as JSON: Expecting value"),
        (b'{"a": ', "cannot be read as JSON: Expecting value"),
        (b"\xff", "cannot be read as JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "cannot be read as JSON: maximum recursion depth"),
        (b"[1]", "expected a JSON object, got list"),
    ],
    ids=["missing", "empty", "torn", "not text", "deep", "a list"],
)
def test_what_is_no_json_object_is_told(
    trial: TrialFolder, content: bytes | None, problem: str
) -> None:
    if content is not None:
        trial.store.put("x.json", content)
    with pytest.raises(InputError, match=rf"trials/abc/x\.json: {problem}"):
        trial.json("x.json")
    assert trial.json_or_empty("x.json") == {}


def test_tensors_are_a_plain_safetensors_file(trial: TrialFolder) -> None:
    tensors = {"layer.weight": torch.arange(6.0).reshape(2, 3).T}
    trial.put_tensors("w.safetensors", tensors, {"status": "finished"})
    with safetensors.safe_open(trial.path / "w.safetensors", framework="pt") as handle:
        assert handle.metadata() == {"status": "finished"}
    assert torch.equal(trial.tensors("w.safetensors")["layer.weight"], tensors["layer.weight"])


def test_tensors_that_are_missing_or_damaged_are_told(trial: TrialFolder) -> None:
    with pytest.raises(FileNotFoundError, match=r"abc/w\.safetensors"):
        trial.tensors("w.safetensors")
    trial.put_tensors("w.safetensors", {"a": torch.ones(9)}, {})
    trial.store.put("w.safetensors", (trial.store.get("w.safetensors") or b"")[:-1])
    with pytest.raises(safetensors.SafetensorError):
        trial.tensors("w.safetensors")


def test_a_table_is_the_file_that_pandas_writes(trial: TrialFolder, tmp_path: Path) -> None:
    table = pd.DataFrame({"sigma": [0.1, 1 / 3, math.nan], "name": ["a", 'b,"', "σ\n"]})
    trial.put_table("t.csv", table)
    table.to_csv(tmp_path / "t.csv", index=False)
    assert (trial.path / "t.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
    trial.put_parquet("t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(trial.path / "t.parquet"), table)


# --- the curve ----------------------------------------------------------------------------------


def test_rows_are_read_as_appended(trial: TrialFolder) -> None:
    assert (trial.rows(), trial.last_step()) == ([], 0)
    trial.append_row({"step": 50, "loss": math.nan})
    trial.append_row({"step": 100, "loss": 0.1})
    assert trial.rows() == [{"step": 50, "loss": None}, {"step": 100, "loss": 0.1}]
    assert trial.last_step() == 100


@pytest.mark.parametrize(
    ("content", "step"),
    [
        (b'{"step": 50}\n{"step": 100}\n', 100),
        (b'{"step": 50}\n{"step": 100', 50),
        (b'{"step": 50}\n{"st\x00p": 100}\n', 50),
        (b'{"step": 50}\n{"step": null}\n', 50),
        (b'{"step": 50', 0),
        (b"\n", 0),
    ],
    ids=["whole", "cut short", "damaged", "without a step", "one that is cut short", "empty"],
)
def test_the_last_step_is_that_of_the_last_whole_row(
    trial: TrialFolder, content: bytes, step: int
) -> None:
    trial.store.put("rows.jsonl", content)
    assert trial.last_step() == step


def test_the_last_step_takes_no_row_before_the_last(
    trial: TrialFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal reads it five times a second of every trial."""
    for step in range(1, 201):
        trial.append_row({"step": step, "loss": 0.1})
    parsed: list[Any] = []
    monkeypatch.setattr(
        "testbed.trial.folders.json.loads", lambda text: parsed.append(text) or {"step": 7}
    )
    assert (trial.last_step(), len(parsed)) == (7, 1)


@pytest.mark.parametrize(
    ("damage", "rows", "told"),
    [
        (lambda content: content[:-1], 2, []),
        (lambda content: content[:20], 1, []),
        (lambda content: content[:12] + b"\0" + content[13:], 1, [12]),
        (lambda content: b"\0" + content[1:], 0, [0]),
    ],
    ids=["without its end", "torn", "a damaged row", "the first one"],
)
def test_rows_end_at_a_damaged_one(
    trial: TrialFolder, damage: Callable[[bytes], bytes], rows: int, told: list[int]
) -> None:
    """A row that is not complete is on its way, and no damage."""
    for step in range(3):
        trial.append_row({"step": step})
    content = trial.store.get("rows.jsonl") or b""
    assert content == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    trial.store.put("rows.jsonl", damage(content))
    heard: list[int] = []
    found = trial.rows(heard.append)
    assert found == [{"step": step} for step in range(rows)]
    assert heard == told


def test_a_mark_is_that_of_the_curve_cut_there(trial: TrialFolder) -> None:
    empty = trial.curve_mark()
    trial.append_row({"step": 1})
    one = trial.curve_mark()
    trial.append_row({"step": 2})
    two = trial.curve_mark()
    assert len({empty, one, two}) == 3
    assert [trial.curve_mark(size) for size in (0, one[0], two[0])] == [empty, one, two]
    trial.cut_curve(one[0])
    assert trial.curve_mark() == one
    assert trial.rows() == [{"step": 1}]
    trial.cut_curve(0)
    assert trial.curve_mark() == empty


# --- the result ---------------------------------------------------------------------------------


def test_a_trial_without_a_result_has_not_ended_and_is_not_damaged(trial: TrialFolder) -> None:
    assert (trial.result(), trial.damage(), trial.ended()) == ({}, "", False)


@pytest.mark.parametrize("status", ["finished", "diverged", "failed"])
def test_a_result_ends_a_trial_that_did_not_fail(trial: TrialFolder, status: str) -> None:
    trial.put_json("result.json", {"status": status})
    assert trial.result() == {"status": status}
    assert trial.ended() == (status != "failed")


def test_a_result_of_another_curve_is_damage(trial: TrialFolder) -> None:
    trial.append_row({"step": 1})
    trial.put_json("result.json", {"status": "finished", "curve": trial.curve_mark()[1]})
    assert (trial.damage(), trial.ended()) == ("", True)
    trial.append_row({"step": 2})
    told = f"{trial.path / 'rows.jsonl'}: is not the curve that the trial wrote."
    assert (trial.damage(), trial.result(), trial.ended()) == (told, {}, False)


def test_a_damaged_result_is_told(trial: TrialFolder) -> None:
    trial.store.put("result.json", b'{"status": ')
    assert "result.json: cannot be read as JSON" in trial.damage()
    trial.put_json("result.json", {})
    assert trial.damage() == f"{trial.path / 'result.json'}: has no 'status'."
    assert trial.result() == {}


def test_a_failure_keeps_its_traceback_and_its_message(trial: TrialFolder) -> None:
    trial.fail("Traceback σ \udcff", "ValueError: σ \udcff")
    assert (trial.path / "error.txt").read_text() == "Traceback σ \\udcff"
    result = trial.result()
    assert time.time() - 60 < result.pop("ended") <= time.time()
    assert result == {"status": "failed", "error": "ValueError: σ \udcff"}


def test_a_trial_that_begins_forgets_how_it_ended(trial: TrialFolder) -> None:
    trial.put_json("trial.json", {"id": "abc"})
    trial.fail("Traceback", "ValueError")
    trial.begin("together", 3)
    assert trial.store.names() == ["group.json", "trial.json"]
    assert trial.json("group.json") == {"group": "together", "trained_together": 3}
    assert trial.group == "together"
    trial.begin()
    assert trial.store.names() == ["trial.json"]
    assert trial.group == ""


# --- checkpoints --------------------------------------------------------------------------------


def state(step: int) -> State:
    return {"p": torch.arange(400.0) * step}, {"step": step, "rows": []}


def step(found: State | None) -> int | None:
    """The step of a state that is whole."""
    if found is None:
        return None
    assert torch.equal(found[0]["p"], state(found[1]["step"])[0]["p"])
    return int(found[1]["step"])


def newest(folder: TrainingFolder) -> int | None:
    return step(next(folder.checkpoints(), None))


def spoil(folder: TrainingFolder, name: str = "checkpoint") -> None:
    """One bit in the middle of the file."""
    content = bytearray(folder.store.get(name) or b"")
    content[len(content) // 2] ^= 4
    folder.store.put(name, bytes(content))


@pytest.fixture
def twice(tmp_path: Path) -> GroupFolder:
    """Steps 7 and 8."""
    folder = GroupFolder.at(tmp_path)
    folder.put_checkpoint(*state(7))
    folder.put_checkpoint(*state(8))
    return folder


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(GroupFolder.at(tmp_path)) is None


def test_the_newest_comes_first_and_only_one_before_is_kept(twice: GroupFolder) -> None:
    twice.put_checkpoint(*state(9))
    assert [step(one) for one in twice.checkpoints()] == [9, 8]
    assert twice.store.names() == ["checkpoint", "checkpoint.previous"]


def test_damage_falls_back_to_the_one_before(twice: GroupFolder) -> None:
    spoil(twice)
    told: list[str] = []
    assert [step(one) for one in twice.checkpoints(told.append)] == [7]
    assert told == [f"{twice.path / 'checkpoint'} is damaged: its sha256 does not match."]


def test_damage_to_both_leaves_none(twice: GroupFolder) -> None:
    spoil(twice)
    twice.store.put("checkpoint.previous", b"TEST")
    told: list[str] = []
    assert list(twice.checkpoints(told.append)) == []
    assert told[1] == f"{twice.path / 'checkpoint.previous'} is cut short or not a checkpoint."


def test_a_damaged_one_does_not_replace_a_whole_one_before(
    twice: GroupFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(twice)
    with monkeypatch.context() as patch:
        patch.setattr(LocalDisk, "put", crash)
        with pytest.raises(Crash):
            twice.put_checkpoint(*state(9))
    assert newest(twice) == 7


def test_a_crash_between_the_renames_leaves_the_one_before(twice: GroupFolder) -> None:
    twice.store.rename("checkpoint", "checkpoint.previous")
    assert newest(twice) == 8


def test_a_half_written_one_is_ignored_and_stops_no_write(twice: GroupFolder) -> None:
    twice.store.append("checkpoint.tmp", (twice.store.get("checkpoint") or b"")[:100])
    assert newest(twice) == 8
    twice.put_checkpoint(*state(9))
    assert newest(twice) == 9


def test_a_removed_checkpoint_leaves_nothing(twice: GroupFolder) -> None:
    twice.store.append("checkpoint.tmp", b"half")
    twice.put_json("kept.json", {})
    twice.remove_checkpoint()
    assert [file.name for file in twice.path.iterdir()] == ["kept.json"]


class Crash(Exception):
    """The machine stops here."""


def crash(*_: Any, **__: Any) -> None:
    raise Crash


Writer = Callable[[TrainingFolder, dict[str, Tensor], dict[str, Any]], None]


def law_a_crash_leaves_a_whole_one(write: Writer, at: Path) -> None:
    """A crash at any system call that changes the folder leaves the old or the new state.

    After it, the next write works and is what is read.
    """
    for name in ("replace", "fsync", "open"):
        for turn in range(3):
            folder = GroupFolder.at(at / f"{name}{turn}")
            write(folder, *state(1))
            write(folder, *state(2))
            genuine, left = getattr(os, name), [turn]

            def failing(*arguments: Any, genuine: Any = genuine, left: list[int] = left) -> Any:
                left[0] -= 1
                return crash() if left[0] < 0 else genuine(*arguments)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, name, failing)
                try:
                    write(folder, *state(3))
                    done = True
                except Crash:
                    done = False
            assert newest(folder) in ({3} if done else {2, 3})
            write(folder, *state(4))
            assert newest(folder) == 4


def test_a_crash_leaves_a_whole_one(tmp_path: Path) -> None:
    law_a_crash_leaves_a_whole_one(TrainingFolder.put_checkpoint, tmp_path)


def replaced_in_place(
    folder: TrainingFolder, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Opens the file itself, as `torch.save` does, and is cut off half way."""
    aside = GroupFolder(folder.store.folder("aside"))
    aside.put_checkpoint(tensors, facts)
    whole = (aside.path / "checkpoint").read_bytes()
    with (folder.path / "checkpoint").open("wb") as handle:
        handle.write(whole[: len(whole) // 2])
        os.fsync(handle.fileno())
        handle.write(whole[len(whole) // 2 :])


def without_a_previous(
    folder: TrainingFolder, tensors: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Takes the old one away before the new one is there."""
    folder.store.remove("checkpoint")
    folder.put_checkpoint(tensors, facts)


@pytest.mark.parametrize("mutant", [replaced_in_place, without_a_previous])
def test_writers_that_lose_the_old_one_are_caught(tmp_path: Path, mutant: Writer) -> None:
    with pytest.raises(AssertionError):
        law_a_crash_leaves_a_whole_one(mutant, tmp_path)


# --- groups and studies -------------------------------------------------------------------------


def test_a_dissolved_group_keeps_why_and_no_checkpoint(twice: GroupFolder) -> None:
    assert not twice.dissolved
    twice.dissolve("Traceback")
    assert twice.dissolved
    assert {file.name: file.read_text() for file in twice.path.iterdir()} == {
        "error.txt": "Traceback"
    }


def test_a_removed_group_is_gone_unless_it_holds_more(tmp_path: Path) -> None:
    for name in ("mine", "shared"):
        folder = GroupFolder.at(tmp_path / name)
        folder.put_checkpoint(*state(1))
        folder.dissolve("Traceback")
        folder.put_checkpoint(*state(2))
    (tmp_path / "shared" / "notes.txt").write_text("kept")
    for name in ("mine", "shared"):
        GroupFolder.at(tmp_path / name).remove()
    assert [file.relative_to(tmp_path).as_posix() for file in sorted(tmp_path.rglob("*"))] == [
        "shared",
        "shared/notes.txt",
    ]


def test_a_study_lists_the_trials_that_are_described(tmp_path: Path) -> None:
    study = StudyFolder.at(tmp_path)
    assert (study.trials(), study.descriptions()) == ([], [])
    for id_ in "ba":
        study.trial(id_).put_json("trial.json", {"id": id_})
    study.trial("c").append_row({})
    (tmp_path / "trials" / "file").write_text("")
    assert [one.name for one in study.trials()] == ["a", "b"]
    assert study.descriptions() == [{"id": "a"}, {"id": "b"}]


def test_the_studies_of_a_folder(tmp_path: Path) -> None:
    assert studies(tmp_path / "runs") == []
    for name in "ba":
        StudyFolder.at(tmp_path / "runs" / name).put_json("study.json", {})
    assert [one.path.name for one in studies(tmp_path / "runs")] == ["a", "b"]


def test_the_state_of_a_trial(tmp_path: Path) -> None:
    study = StudyFolder.at(tmp_path)
    trial, read = study.trial("t"), functools.partial(study.state, "t")
    assert read() == "new"
    trial.begin("g", 2)
    assert read() == "new"
    trial.put_checkpoint(*state(1))
    assert read() == "new"  # of a group, whose state counts
    study.group("g").put_checkpoint(*state(1))
    assert read() == "interrupted"
    trial.put_json("result.json", {"status": "diverged"})
    assert read() == "diverged"
    trial.begin()
    assert read() == "interrupted"
    trial.remove_checkpoint()
    assert read() == "new"
    trial.fail("Traceback", "ValueError")
    assert read() == "failed"


def test_tidying_sweeps_its_own_half_written_files_alone(tmp_path: Path) -> None:
    study = StudyFolder.at(tmp_path)
    study.trial("t").put_json("result.json", {"status": "finished"})
    swept = ["study.json.tmp", "coefficients.csv.tmp", "drawn.csv.tmp", "data/digits.json.tmp"]
    swept += ["trials/t/x.tmp"]
    for name in [*swept, "theirs.tmp"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    study.tidy(set())
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*")}
    assert left == {"theirs.tmp", "trials/t/result.json"}


def test_folders_are_equal_where_they_are_the_same_place(tmp_path: Path) -> None:
    assert StudyFolder.at(tmp_path).trial("t") == TrialFolder.at(tmp_path / "trials" / "t")
    assert StudyFolder.at(tmp_path).data == Folder.at(tmp_path / "data")
