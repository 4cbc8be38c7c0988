"""What a study left in its folder, as digests and numbers that two commits can be compared by.

Only names that the documentation gives are read: files of a trial, and keys of trial.json and
result.json. Times, paths, the host and a trial's id are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Value = float | int | str | None
FACTS = (
    "status",
    "diverged_at",
    "steps",
    "scale",
    "parameters",
    "final_loss",
    "trained_together",
)
"""Of result.json, beside the metrics and their errors."""
TIMES = ("seconds", "time")
"""Of a row of the training curve."""


@dataclass
class Entry:
    """What is compared of one trial, or of the tables of one study.

    Args:
        digests: sha256 of each thing, for example of the tensors of the weights.
        values: the numbers that the digest "metrics" is of, to say by how much they differ.
    """

    digests: dict[str, str] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)

    @classmethod
    def read(cls, stored: dict[str, Any]) -> Entry:
        """From JSON."""
        return cls(stored["digests"], stored["values"])

    def written(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def of_study(name: str, folder: Path) -> dict[str, Entry]:
    """The entries of a study's folder, by study, case, arm, variant and seed.

    A trial that stands in several arms has an entry in each.

    Raises:
        ValueError: two trials have the same labels and seed.
    """
    found: dict[str, Entry] = {}
    for described in sorted((folder / "trials").glob("*/trial.json")):
        trial = json.loads(described.read_text())
        entry = of_trial(described.parent)
        for label in trial["labels"]:
            words = [name, label["case"], label["arm"], label["variant"]]
            key = " · ".join([*filter(None, words), f"seed {trial['config']['seed']}"])
            if key in found:
                raise ValueError(f"{folder}: two trials are {key}.")
            found[key] = entry
    tables = [folder / "coefficients.csv", *(folder / "tables").glob("*.csv")]
    # trials.csv has what the entries of trials have, beside ids that change with the sources.
    tables = [file for file in tables if file.is_file() and file.stem != "trials"]
    digests = {file.stem: of_table(file) for file in sorted(tables)}
    found[f"{name} · tables"] = Entry(digests)
    return found


def of_trial(at: Path) -> Entry:
    """The digests of a trial's folder, of what there is."""
    result, curve = at / "result.json", at / "rows.jsonl"
    values = numbers(json.loads(result.read_text())) if result.is_file() else {}
    digests = {file.stem: of_tensors(file) for file in sorted(at.glob("*.safetensors"))}
    digests |= {file.stem: of_bytes([file.read_bytes()]) for file in sorted(at.glob("*.csv"))}
    if curve.is_file():
        digests["curve"] = of_curve(curve)
    digests["metrics"] = of_words(f"{name} = {value!r}" for name, value in sorted(values.items()))
    return Entry(digests, values)


def numbers(result: dict[str, Any]) -> dict[str, Value]:
    """The metrics of a result.json, their errors and p, and the facts of the training."""
    found: dict[str, Value] = {name: result[name] for name in FACTS if name in result}
    found |= result.get("metrics", {})
    for metric, errors in result.get("errors", {}).items():
        found |= {f"{metric} {name}": value for name, value in errors.items()}
    return found


def of_tensors(file: Path) -> str:
    """Of the name, type, shape and bytes of each tensor, in the order of the names."""

    def parts() -> Iterator[bytes]:
        for name, tensor in sorted(load_file(file).items()):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode()
            yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return of_bytes(parts())


def of_curve(file: Path) -> str:
    """Of the rows of a training curve without their times."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return of_words(json.dumps(row, sort_keys=True) for row in kept)


def of_table(file: Path) -> str:
    """Of the lines of a table of the report; their order may be that of the ids."""
    lines = file.read_text().splitlines()
    return of_words([*lines[:1], *sorted(lines[1:])])


def of_words(lines: Iterable[str]) -> str:
    """Of lines of text."""
    return of_bytes(f"{line}\n".encode() for line in lines)


def of_bytes(parts: Iterable[bytes]) -> str:
    """sha256 of all parts, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
