"""What the JSON files of a study's folder hold, by name; each may hold more than stands here.

Numbers that were not finite are null in them. A file of another shape is damaged.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError

Number = float | None


class Listed(BaseModel):
    """A trial of study.json."""

    id: str
    labels: list[dict[str, str]]


class StudyRecord(BaseModel):
    """study.json: what was asked for, and where it ran."""

    name: str = ""
    title: str = ""
    note: str = ""
    file: str = ""
    device: str = ""
    seconds: Number = None
    trials: list[Listed] = []
    equal_objectives: list[dict[str, Any]] | None = None
    asked: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    plugins: list[dict[str, Any]] | None = None
    failures: list[dict[str, Any]] | None = None


class TrialRecord(BaseModel):
    """trial.json: what identifies a trial, its settings and its labels."""

    id: str = ""
    labels: list[dict[str, str]] = []
    config: dict[str, Any] | None = None


class EngineRecord(BaseModel):
    """plan.json: what trains as one, by which engine."""

    name: str = ""
    slots: int = 0
    threads: int = 1
    groups: list[list[str]] = []
    measured: dict[str, Number] = {}
    networks: dict[str, Number] = {}
    devices: int = 1


class IdentityRow(BaseModel):
    """A row of tweedie.json: an identity, with its error and the error's bound."""

    law: str
    subject: str
    sigma: Number = None
    dtype: str | None = None
    error: Number = None
    bound: Number = None
    ratio: Number = None
    reason: str | None = None


class IdentityRecord(BaseModel):
    """tweedie.json."""

    rows: list[IdentityRow] = []


class SampleError(BaseModel):
    """How exact a metric of a result is."""

    error: Number = None
    p: Number = None


class ResultRecord(BaseModel):
    """result.json of a trial, or of a point of its training."""

    status: str = ""
    device: str = ""
    curve: str | None = None
    steps: int | None = None
    diverged_at: int | None = None
    parameters: int | None = None
    ended: Number = None
    training_seconds: Number = None
    measuring_seconds: Number = None
    sampling_seconds: Number = None
    final_loss: Number = None
    scale: Number = None
    metrics: dict[str, Number] = {}
    errors: dict[str, SampleError] = {}


class CurveRow(BaseModel):
    """A line of rows.jsonl."""

    step: int
    time: Number = None
    loss: Number = None


class SystemSample(BaseModel):
    """A line of system.jsonl."""

    time: float


RECORDS: dict[str, type[BaseModel]] = {
    "study.json": StudyRecord,
    "trial.json": TrialRecord,
    "plan.json": EngineRecord,
    "tweedie.json": IdentityRecord,
    "result.json": ResultRecord,
    "rows.jsonl": CurveRow,
    "system.jsonl": SystemSample,
}


class WrongShape(ValueError):
    """JSON, and not what a file of its name holds."""


def parsed(name: str, content: bytes) -> dict[str, Any]:
    """The JSON object in a file of this name, or in a line of it.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
        WrongShape: it is not an object, or not what a file of this name holds.
    """
    found = json.loads(content.decode())
    if not isinstance(found, dict):
        raise WrongShape(f"expected a JSON object, got {type(found).__name__}")
    if name in RECORDS:
        try:
            RECORDS[name].model_validate(found)
        except ValidationError as problem:
            wrong = problem.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            raise WrongShape(f"{place}: {wrong['msg']}, got {wrong['input']!r:.80}") from None
    return found
