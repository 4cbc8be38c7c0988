"""The tables of a study that need no training: they are made again only where they must be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import SMALL, planned

from testbed.registry import Registry, default_registry
from testbed.study import reference_tables
from testbed.study.plan import Plan

TEXT = SMALL.replace("dim = 2 }", "dim = 2, n = 64, test = 32 }\nsigma_data = { assumed = 1 }")
QUICK = (
    'evaluation={levels=3, draws=8, samples=8, steps=2, metrics=["energy"]}',
    'grid.parameterization=["v", "edm"]',
)
EQUAL = ("weighting=edm", "loss=l2", "density=lognormal", "c_in=shared", "c_noise=shared")


def made(folder: Path, *sets: str) -> Plan:
    return planned(TEXT, folder, *QUICK, *EQUAL, *sets)


@pytest.fixture
def written(tmp_path: Path) -> Plan:
    plan = made(tmp_path)
    assert reference_tables.write(plan, default_registry())
    return plan


def is_made(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the tables of a plan are made."""
    calls: list[Plan] = []

    def make(plan: Plan, registry: Registry) -> list[dict[str, Any]]:
        calls.append(plan)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(reference_tables, "_make", make)
        reference_tables.write(plan, default_registry())
    return bool(calls)


def test_they_are_made_once(written: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = reference_tables._make(written, default_registry())
    assert not is_made(made(tmp_path), monkeypatch)
    assert reference_tables.write(made(tmp_path), default_registry()) == groups
    assert groups[0]["members"] == ["v", "edm"]


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("harm", [shorten, Path.unlink], ids=["damaged", "gone"])
@pytest.mark.parametrize(
    "name", ["coefficients.csv", "data/data.json", "data/data.safetensors", "reference.json"]
)
def test_a_file_that_is_not_as_it_was(
    written: Plan, monkeypatch: pytest.MonkeyPatch, name: str, harm: Callable[[Path], None]
) -> None:
    harm(written.folder / name)
    assert is_made(written, monkeypatch)


@pytest.mark.parametrize(
    "word",
    ["dataset.dim=3", "weighting=eps", "evaluation.samples=9", "training.clip=1"],
)
def test_another_study(
    written: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    assert is_made(made(tmp_path, word), monkeypatch)


def test_other_sources(written: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_tables.sources, "digest", lambda modules: "another")
    assert is_made(written, monkeypatch)
