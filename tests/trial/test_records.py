"""The shapes of the JSON files of a study's folder: what is of another shape is damaged."""

import json
from typing import Any

import pytest

from testbed.trial import records

RESULT = {"status": "finished", "metrics": {"energy": 0.5}, "errors": {"energy": {"error": None}}}
ROW = {"law": "D = x", "subject": "v", "sigma": 1.0, "error": 0.0, "bound": 1e-7, "ratio": None}
LISTED = {"id": "abc", "labels": [{"case": "", "arm": "", "variant": "v"}]}
RIGHT: dict[str, dict[str, Any]] = {
    "study.json": {"name": "tiny", "trials": [LISTED], "seconds": None, "of a later version": []},
    "plan.json": {"name": "batched", "groups": [["abc"]], "measured": {"compiled": None}},
    "tweedie.json": {"rows": [ROW]},
    "result.json": RESULT,
    "rows.jsonl": {"step": 2, "time": 1.5, "loss": None},
    "system.jsonl": {"time": 1.5, "memory_mb": 5.0},
    "another.json": {"anything": 5},
}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("study.json", {"trials": 5}, "trials: Input should be a valid list, got 5"),
    ("study.json", {"trials": [{"id": 3, "labels": []}]}, "trials.0.id: .* string, got 3"),
    ("study.json", {"trials": [{"id": "a", "labels": [{"arm": []}]}]}, r"labels.0.arm: .*got \[\]"),
    ("study.json", {"equal_objectives": 1}, "equal_objectives: .* list"),
    ("plan.json", {"groups": -1}, "groups: .* list, got -1"),
    ("plan.json", {"measured": {"batched": "fast"}}, "measured.batched: .* number"),
    ("plan.json", {"networks": {"abc": []}}, "networks.abc: .* number"),
    ("tweedie.json", {"rows": {}}, r"rows: .* list, got \{\}"),
    ("tweedie.json", {"rows": [{**ROW, "reason": {}}]}, "rows.0.reason: .* string"),
    ("tweedie.json", {"rows": [{"subject": "v"}]}, "rows.0.law: Field required"),
    ("result.json", {**RESULT, "metrics": [1]}, "metrics: .* dictionary"),
    ("result.json", {**RESULT, "errors": {"energy": [1]}}, "errors.energy: .*"),
    ("result.json", {**RESULT, "measuring_seconds": {}}, "measuring_seconds: .* number"),
    ("rows.jsonl", {"loss": 1.0, "time": 1.0}, "step: Field required"),
    ("system.jsonl", {"memory_mb": 5.0}, "time: Field required"),
]


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_file_holds_is_read_as_it_stands(name: str) -> None:
    assert records.parsed(name, written(RIGHT[name])) == RIGHT[name]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_another_shape_is_told_with_place_and_value(
    name: str, value: dict[str, Any], message: str
) -> None:
    with pytest.raises(records.WrongShape, match=message):
        records.parsed(name, written(value))


@pytest.mark.parametrize("name", RIGHT)
def test_every_file_is_an_object(name: str) -> None:
    with pytest.raises(records.WrongShape, match="expected a JSON object, got list"):
        records.parsed(name, b"[1]")
