"""The trial directory: the truth about a trial. MLflow and the report only read it.

trials/<id>/trial.json       identity, configuration, labels
            rows.jsonl       training curve, a line per row
            checkpoint       state to resume from, and checkpoint.previous
            group.json       the group that it trains with, in whose folder that state is then
            weights.safetensors  averaged weights
            levels.csv       per-sigma table
            samples.safetensors
            tweedie.json     identity rows of the trained model
            result.json      status, final metrics, sampling error and p of each sample metric
            error.txt        the traceback of a failure
groups/<id>/checkpoint       of trials that train as one
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.training.checkpoint import remove, write_durably

ENDED = ("finished", "diverged")


def folder(study: Path, trial: str) -> Path:
    """The directory of a trial."""
    return study / "trials" / trial


def group(study: Path, group: str) -> Path:
    """The directory of trials that train as one: their checkpoint."""
    return study / "groups" / group


def result(at: Path) -> dict[str, Any]:
    """A trial's result; empty where it has none, or one that is damaged."""
    return {} if damage(at) else found(at / "result.json")


def ended(at: Path) -> bool:
    """Whether a trial has a result, finished or diverged."""
    return result(at).get("status") in ENDED


def damage(at: Path) -> str:
    """What is wrong with a trial's result or with the curve that it was made with, if it is."""
    file = at / "result.json"
    if not file.is_file():
        return ""
    try:
        entry(file, "status")
    except InputError as problem:
        return str(problem)
    if read_json(file).get("curve") not in (None, digest(at)):
        return f"{at / 'rows.jsonl'}: is not the curve that the trial wrote."
    return ""


def write_json(file: Path, value: Any) -> None:
    """Writes JSON durably; numbers that are not finite become null."""
    text = json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False)
    write_durably(file, text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is missing or is not one.
    """
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"{file}: cannot be read as JSON: {problem}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: expected a JSON object, got {type(found).__name__}.")
    return found


def found(file: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or is not one."""
    try:
        return read_json(file)
    except InputError:
        return {}


def entry(file: Path, key: str) -> str:
    """A word in a JSON object.

    Raises:
        InputError: the object has no such key.
    """
    found = read_json(file)
    if key not in found:
        raise InputError(f"{file}: has no {key!r}.")
    return str(found[key])


def trials(study: Path) -> list[dict[str, Any]]:
    """Every trial.json of a study's folder, sorted by id."""
    return [read_json(file) for file in described(study)]


def described(study: Path) -> list[Path]:
    """The trial.json of each trial, sorted by id."""
    return sorted((study / "trials").glob("*/trial.json"))


def key(study: Path) -> str:
    """What marks a study's runs in a tracker: drawn once, and kept in two files."""
    for name in ("study.json", "mlflow.json"):
        if word := found(study / name).get("key"):
            return str(word)
    return uuid.uuid4().hex


def state(study: Path, trial: str) -> str:
    """ "finished", "diverged", "failed", "interrupted" (it can resume) or "new"."""
    at = folder(study, trial)
    if known := result(at):
        return str(known["status"])
    stored = at / "checkpoint"
    if together := found(at / "group.json").get("group"):
        stored = group(study, str(together)) / "checkpoint"
    return "interrupted" if stored.is_file() else "new"


def rows(at: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a curve from byte `start` to the first damaged one, and their end."""
    file = at / "rows.jsonl"
    if not file.is_file():
        return [], start
    with file.open("rb") as handle:
        handle.seek(start)
        content = handle.read()
    made = []
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            made.append(json.loads(line))
        except ValueError:  # damaged: what follows is not trusted either
            break
        start += len(line)
    return made, start


def last_step(at: Path) -> int:
    """The step of the last row, or 0."""
    curve = rows(at)[0]
    return int(curve[-1]["step"]) if curve else 0


def append_row(at: Path, row: Mapping[str, Any]) -> None:
    """Adds a line to the curve.

    Raises:
        OSError: with the curve's name.
    """
    file = at / "rows.jsonl"
    try:
        with file.open("a") as handle:
            handle.write(json.dumps(_finite(row), allow_nan=False) + "\n")
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, str(file)) from problem


def length(at: Path) -> int:
    """How many bytes the curve has."""
    file = at / "rows.jsonl"
    return file.stat().st_size if file.is_file() else 0


def digest(at: Path, size: int | None = None) -> str:
    """sha256 of the curve's first `size` bytes, or of all."""
    file = at / "rows.jsonl"
    return hashlib.sha256(file.read_bytes()[:size] if file.is_file() else b"").hexdigest()


def cut_rows(at: Path, size: int) -> None:
    """Drops all after `size` bytes: the rows since the checkpoint that a run resumes from."""
    file = at / "rows.jsonl"
    write_durably(file, file.read_bytes()[:size] if file.is_file() else b"")


def tidy(study: Path, groups: Collection[str]) -> None:
    """Removes what kills have left: half-written files, and states of what has ended.

    Args:
        study: its folder.
        groups: those that are about to run, whose state stays.
    """
    for pattern in ("*.json.tmp", "data/*.tmp", "trials/*/*.tmp"):
        for file in study.glob(pattern):
            file.unlink()
    wanted = set(groups)
    for at in (study / "trials").glob("*"):
        if ended(at):
            remove(at / "checkpoint")
            (at / "group.json").unlink(missing_ok=True)
        else:
            wanted.add(str(found(at / "group.json").get("group")))
    for at in (study / "groups").glob("*"):
        if at.name not in wanted:
            remove(at / "checkpoint")
            (at / "error.txt").unlink(missing_ok=True)
            with suppress(OSError):  # it holds what is not ours
                at.rmdir()


class Busy(InputError):
    """Another process is at work there."""


@contextmanager
def locked(at: Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock of a trial or of a study.

    Args:
        at: its folder.
        patience: seconds to wait for it.

    Raises:
        Busy: another process has it.
    """
    at.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    with (at / "lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    message = f"{at} is being worked on by another process: wait for it, or end it."
                    raise Busy(message) from None
            time.sleep(0.05)
        yield
