"""The folders of trials and groups: what their files are called and what the files hold.

A trial's folder is the truth about the trial; MLflow and the report only read it.

trials/<id>/trial.json       identity, configuration, labels
            rows.jsonl       training curve, a line per row
            checkpoint       state to resume from, and checkpoint.previous
            group.json       the group that it trains with, in whose folder that state is then
            weights.safetensors  averaged weights
            states.safetensors   what else the objective has learned
            levels.csv       per-sigma table
            classifier.csv   per-sigma table of the classifier that guides
            schedule.json    the noise levels of the samples' path, as they were used
            samples.safetensors
            denoised.safetensors    of images: held-out ones with noise, and D of them, by level
            neighbours.safetensors  of images: the first samples, and their nearest training images
            pictures.json    the levels of the former, the distances of the latter
            tweedie.json     identity rows of the trained model
            averages/STEP    averages of the weights after so many steps, a checked file each
            points/POINT/    what was measured there: levels.csv, tweedie.json, schedule.json,
                             samples.safetensors, of images what pictures are made of, result.json
            training.json    of a trial that takes over a training: what its result.json says of it
            result.json      status, final metrics, sampling error and p of each sample metric
            error.txt        the traceback of a failure
            system.jsonl     what the worker's process uses, a line every ten seconds
            orders/cancelled.json   left by who wants the trial to end at a checkpoint and not go on
groups/<id>/checkpoint       of trials that train as one
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from testbed.errors import InputError
from testbed.training import checkpoint
from testbed.trial import records
from testbed.trial.storage import Claim, Leased, Store, away, opened

if TYPE_CHECKING:
    import pandas as pd

ENDED = ("finished", "diverged")
TRAINING_FACTS = ("diverged_at", "steps", "scale", "trained_together")
"""What a result says of the training, and not of how it was measured."""


@dataclass(frozen=True)
class Folder:
    """Files of several formats in a store."""

    store: Store

    @classmethod
    def at(cls, path: Path) -> Self:
        """The folder at a path, in the store of its study."""
        return cls(opened(path))

    @property
    def path(self) -> Path:
        """Where the folder lies."""
        return self.store.path()

    def own(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """See `Store.own`."""
        return self.store.own(patience)

    @property
    def lease(self) -> float:
        """The seconds of the leases that the folder is owned by; 0 for a file lock."""
        return self.store.seconds if isinstance(self.store, Leased) else 0.0

    def claim(self) -> Claim | None:
        """What is seen of an owner that has not ended, alive or not; None of a file lock."""
        claim = self.store.claim() if isinstance(self.store, Leased) else None
        return None if claim is None or claim.released else claim

    def confirm(self) -> None:
        """See `Store.confirm`."""
        self.store.confirm()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.store.has(name)

    def put_json(self, name: str, value: Any, durable: bool = True) -> None:
        """Writes JSON; numbers that are not finite become null. See `Store.put`."""
        text = json.dumps(_finite(value), indent=1, sort_keys=True, allow_nan=False)
        self.store.put(name, text.encode(), durable)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            InputError: the file is missing, is not one, or not what it is to hold; see `records`.
            OSError: the disk or the server that keeps the file is away.
        """
        file = self.store.path(name)
        try:
            content = self.store.get(name)
            if content is None:
                raise _missing(file)
            return records.parsed(name, content)
        except records.WrongShape as problem:
            raise InputError(f"{file}: {problem}.") from None
        except (OSError, ValueError, RecursionError) as problem:
            if away(problem):  # of the file this says nothing
                raise
            raise InputError(f"{file}: cannot be read as JSON: {problem}") from None

    def json_or_empty(self, name: str) -> dict[str, Any]:
        """A JSON object; empty where the file is missing or is not one."""
        try:
            return self.json(name)
        except InputError:
            return {}

    def put_checked(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes JSON that `checked` reads back; numbers that are not finite become null."""
        content = _finite(value)
        self.put_json(name, {"content": content, "digest": _digest(content)})

    def checked(self, name: str) -> dict[str, Any]:
        """What `put_checked` wrote; empty where the file is missing, damaged or altered."""
        found = self.json_or_empty(name)
        content, digest = found.get("content"), found.get("digest")
        return content if isinstance(content, dict) and digest == _digest(content) else {}

    def put_tensors(self, name: str, tensors: Mapping[str, Tensor], facts: dict[str, str]) -> None:
        """Writes a plain safetensors file, with `facts` as its metadata."""
        self.store.put(name, checkpoint.encode_tensors(tensors, facts))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file.

        Raises:
            FileNotFoundError: there is no such file.
            SafetensorError: the file is damaged.
        """
        content = self.store.get(name)
        if content is None:
            raise _missing(self.store.path(name))
        return checkpoint.decode_tensors(content)

    def put_table(self, name: str, table: pd.DataFrame) -> None:
        """Writes a table as comma-separated values, without its index."""
        self.store.put(name, table.to_csv(index=False).encode())

    def put_parquet(self, name: str, table: pd.DataFrame) -> None:
        """Writes a table as Parquet."""
        self.store.put(name, table.to_parquet())


class TrainingFolder(Folder):
    """A folder that holds the checkpoint of a training: a trial's own, or that of a group."""

    def put_checkpoint(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Writes a checkpoint; the one before is kept as checkpoint.previous.

        A damaged one is not kept: it would replace a whole one.
        """
        content = checkpoint.encode(tensors, facts)
        if checkpoint.is_intact(self.store.get("checkpoint")):
            self.store.rename("checkpoint", "checkpoint.previous")
        self.store.put("checkpoint", content)

    def checkpoints(
        self, warn: Callable[[str], None] = lambda line: None
    ) -> Iterator[checkpoint.Contents]:
        """The checkpoint and the one before; a damaged one is left out, and `warn` is told."""
        for name in ("checkpoint", "checkpoint.previous"):
            content = self.store.get(name)
            if content is not None:
                try:
                    yield checkpoint.decode(content, str(self.store.path(name)))
                except checkpoint.Damaged as problem:
                    warn(str(problem))

    def remove_checkpoint(self) -> None:
        """Deletes the checkpoint and the one before."""
        self.store.remove("checkpoint", "checkpoint.previous")


class GroupFolder(TrainingFolder):
    """The folder of trials that train as one."""

    @property
    def dissolved(self) -> bool:
        """Whether training together has failed, so that each trial runs alone."""
        return self.has("error.txt")

    def dissolve(self, traceback: str) -> None:
        """Keeps why training together has failed, and deletes the checkpoint."""
        self.store.put("error.txt", _text(traceback))
        self.remove_checkpoint()

    def remove(self) -> None:
        """Deletes all that is ours in the folder; it stays where it holds something else."""
        self.store.remove("checkpoint", "checkpoint.previous", "error.txt")


class TrialFolder(TrainingFolder):
    """The folder of a trial."""

    @property
    def name(self) -> str:
        """The id of the trial."""
        return self.path.name

    def result(self) -> dict[str, Any]:
        """The trial's result; empty where it has none, or one that is damaged."""
        return self._result_and_damage()[0]

    def damage(self) -> str:
        """What is wrong with the result or with the curve that it was made with; else empty."""
        return self._result_and_damage()[1]

    def ended(self) -> bool:
        """Whether the trial has a result, finished or diverged."""
        return self.result().get("status") in ENDED

    def forget(self) -> None:
        """Deletes the result, of a trial that is to run anew."""
        self.store.remove("error.txt", "result.json")

    def _result_and_damage(self) -> tuple[dict[str, Any], str]:
        if not self.has("result.json"):
            return {}, ""
        try:
            result = self.json("result.json")
        except InputError as problem:
            return {}, str(problem)
        if "status" not in result:
            return {}, f"{self.store.path('result.json')}: has no 'status'."
        if result.get("curve") not in (None, self.curve_mark()[1]):
            return {}, f"{self.store.path('rows.jsonl')}: is not the curve that the trial wrote."
        return result, ""

    def fail(self, traceback: str, message: str) -> None:
        """Keeps what ended the trial: the traceback for a person, the message for the report."""
        self.store.put("error.txt", _text(traceback))
        result = {"status": "failed", "error": message, "ended": time.time()}
        self.put_json("result.json", result)

    def begin(self, group: str = "", together: int = 1) -> None:
        """Deletes what an earlier run of the trial has ended with, and keeps its group.

        Args:
            group: the id of the group that the trial trains with; empty where it trains alone.
            together: how many trainings the group has: trials that differ in their evaluation
                alone are one.
        """
        self.forget()
        if group:
            self.store.remove("training.json")
            self.put_json("group.json", {"group": group, "trained_together": together})
        else:
            self.leave()

    def cancel(self) -> None:
        """Asks the trial's worker to end at a checkpoint, and every driver to leave it alone."""
        self._orders.put_json("cancelled.json", {"asked": time.time()})

    def retry(self) -> None:
        """Forgets that the trial failed or was cancelled; it goes on from its checkpoint."""
        self._orders.store.remove("cancelled.json")
        if self.result().get("status") == "failed":
            self.forget()

    @property
    def cancelled(self) -> bool:
        """Whether the trial is not to go on."""
        return self._orders.has("cancelled.json")

    @property
    def _orders(self) -> Folder:
        """What others than the owner tell it; they own this folder for as long as they write."""
        return Folder(self.store.apart("orders"))

    def append_sample(self, sample: Mapping[str, float]) -> None:
        """Adds what the worker's process uses now."""
        self.store.append("system.jsonl", (json.dumps(_finite(sample)) + "\n").encode())

    def samples(self) -> list[dict[str, Any]]:
        """What the worker's process used, in the order of time; a torn line is left out."""
        found = []
        for line in (self.store.get("system.jsonl") or b"").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                found.append(records.parsed("system.jsonl", line))
        return found

    def sweep(self) -> None:
        """Deletes what a crash has left half written."""
        self.store.sweep()
        self._averages.sweep()
        for name in self.store.folder("points").names():
            self.point(name).store.sweep()

    def leave(self) -> None:
        """Forgets the group."""
        self.store.remove("group.json")

    @property
    def group(self) -> str:
        """The id of the group that the trial trains with; empty where it trains alone."""
        return str(self.json_or_empty("group.json").get("group") or "")

    def rows(self, warn: Callable[[int], None] = lambda byte: None) -> list[dict[str, Any]]:
        """The rows of the curve up to the first damaged one; `warn` is told where that begins."""
        rows, end = [], 0
        content = self._curve()
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                rows.append(records.parsed("rows.jsonl", line))
            except (ValueError, RecursionError):  # damaged: what follows is not trusted either
                warn(end)
                break
            end += len(line)
        return rows

    def last_step(self) -> int:
        """The step of the last row that is whole, or 0; no row before it is parsed."""
        for line in reversed(self._curve().split(b"\n")[:-1]):
            with contextlib.suppress(KeyError, TypeError, ValueError):
                return int(json.loads(line)["step"])
        return 0

    def put_averages(self, step: int, averages: Mapping[str, Tensor]) -> None:
        """Keeps averages of the weights after a number of steps, by name, in a checked file."""
        self._averages.put(str(step), checkpoint.encode(averages, {"step": step}))

    def averages(self, step: int) -> dict[str, Tensor]:
        """The averages that were kept after a number of steps, by name.

        Raises:
            FileNotFoundError: none were.
            Damaged: the file is damaged.
        """
        content = self._averages.get(str(step))
        if content is None:
            raise _missing(self._averages.path(str(step)))
        return checkpoint.decode(content, str(self._averages.path(str(step))))[0]

    def has_averages(self, step: int, names: Collection[str] = ()) -> bool:
        """Whether averages of these names were kept after a number of steps, undamaged."""
        try:
            return set(names) <= set(self.averages(step))
        except (FileNotFoundError, checkpoint.Damaged):
            return False

    @property
    def _averages(self) -> Store:
        return self.store.folder("averages")

    def point(self, name: str) -> Folder:
        """The folder of what was measured at a point of training."""
        return Folder(self.store.folder("points").folder(name))

    def points(self) -> list[Folder]:
        """The folders of the points that were measured to the end."""
        found = map(self.point, self.store.folder("points").names())
        return [one for one in found if one.has("result.json")]

    def measured(self) -> dict[int, Folder]:
        """By step, ascending, the folders of what was measured with the trial's own average.

        Those of its points and last, where it has ended, the trial's own.
        """
        facts = {point: point.json_or_empty("result.json") for point in self.points()}
        found = {
            int(one["step"]): point
            for point, one in facts.items()
            if "step" in one and one.get("width") is None
        }
        end = self.result().get("steps")
        return {**dict(sorted(found.items())), **({int(end): self} if end else {})}

    def take_over(self, other: TrialFolder) -> None:
        """Copies the training of a trial that has ended: what `conclude` would have found."""
        result = other.result()
        for name in ("rows.jsonl", "weights.safetensors", "states.safetensors"):
            if (content := other.store.get(name)) is not None:
                self.store.put(name, content)
        for name in other._averages.names():
            if (content := other._averages.get(name)) is not None:
                self._averages.put(name, content)
        facts = {key: result[key] for key in TRAINING_FACTS if key in result}
        self.put_json("training.json", facts)

    def take_as_it_is(self) -> None:
        """Makes the trial one that is measured without a training."""
        self.put_json("training.json", {"diverged_at": None, "steps": 0, "scale": 1.0})

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Adds a row to the curve."""
        line = json.dumps(_finite(row), allow_nan=False) + "\n"
        self.store.append("rows.jsonl", line.encode())

    def curve_mark(self, size: int | None = None) -> tuple[int, str]:
        """The length and the sha256 of the curve's first `size` bytes, or of all of them."""
        content = self._curve()[:size]
        return len(content), hashlib.sha256(content).hexdigest()

    def cut_curve(self, size: int) -> None:
        """Drops all after `size` bytes: the rows since the checkpoint that a run resumes from."""
        self.store.put("rows.jsonl", self._curve()[:size])

    def _curve(self) -> bytes:
        return self.store.get("rows.jsonl") or b""


def _missing(file: Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(words: str) -> bytes:
    return words.encode(errors="backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
