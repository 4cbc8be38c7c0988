"""The trial directory: the truth about a trial. MLflow and the report only read it.

trials/<id>/trial.json       identity, configuration, labels
            rows.jsonl       training curve, a line per row
            checkpoint       state to resume from, and checkpoint.previous
            group.json       the group that it trains with, in whose folder that state is then
            weights.safetensors  averaged weights
            levels.csv       per-sigma table
            samples.safetensors
            tweedie.json     identity rows of the trained model
            result.json      status and final metrics
            error.txt        the traceback of a failure
groups/<id>/checkpoint       of trials that train as one
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.training.checkpoint import write_durably

ENDED = ("finished", "diverged")


def folder(study: Path, trial: str) -> Path:
    """The directory of a trial."""
    return study / "trials" / trial


def group(study: Path, group: str) -> Path:
    """The directory of trials that train as one: their checkpoint."""
    return study / "groups" / group


def ended(at: Path) -> bool:
    """Whether a trial has a result, finished or diverged."""
    file = at / "result.json"
    return file.is_file() and entry(file, "status") in ENDED


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
    files = sorted((study / "trials").glob("*/trial.json"))
    return [read_json(file) for file in files]


def state(study: Path, trial: str) -> str:
    """ "finished", "diverged", "failed", "interrupted" (it can resume) or "new"."""
    at = folder(study, trial)
    if (at / "result.json").is_file():
        return entry(at / "result.json", "status")
    stored = at / "checkpoint"
    if (at / "group.json").is_file():
        stored = group(study, entry(at / "group.json", "group")) / "checkpoint"
    return "interrupted" if stored.is_file() else "new"


def rows(at: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a curve from byte `start`, and where they end."""
    file = at / "rows.jsonl"
    if not file.is_file():
        return [], start
    with file.open("rb") as handle:
        handle.seek(start)
        content = handle.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start + len(whole)


def last_step(at: Path) -> int:
    """The step of the last row, or 0."""
    curve = rows(at)[0]
    return int(curve[-1]["step"]) if curve else 0


def append_row(at: Path, row: Mapping[str, Any]) -> None:
    """Adds a line to the curve."""
    with (at / "rows.jsonl").open("a") as handle:
        handle.write(json.dumps(_finite(row), allow_nan=False) + "\n")


def cut_rows(at: Path, step: int) -> None:
    """Drops the rows after `step`: those since the checkpoint that a run resumes from."""
    kept = [row for row in rows(at)[0] if row["step"] <= step]
    text = "".join(json.dumps(row) + "\n" for row in kept)
    write_durably(at / "rows.jsonl", text.encode())


@contextmanager
def locked(at: Path) -> Iterator[None]:
    """Holds the trial's lock.

    Raises:
        InputError: another process is at work on this trial.
    """
    at.mkdir(parents=True, exist_ok=True)
    with (at / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{at} is being worked on by another process.") from None
        yield
