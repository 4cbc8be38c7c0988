"""The tables of a study that need no training: they are made again only where they must be."""

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import SMALL, planned

from testbed.registry import Registry, default_registry
from testbed.study import reference_tables
from testbed.study.plan import Plan
from testbed.study.spare_work import TablesAhead
from testbed.trial import storage

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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    ["dataset.dim=3", "weighting=eps", "evaluation.samples=9", "training.clip=1"],
)
def test_another_study(
    written: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    assert is_made(made(tmp_path, word), monkeypatch)


@pytest.mark.slow
def test_other_sources(written: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_tables.sources, "digest", lambda modules: "another")
    assert is_made(written, monkeypatch)


class Slots:
    """A worker in this process, which gets what it does as a process would."""

    slots = 1

    def submit(self, job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(pickle.loads(pickle.dumps(job)).run(lambda: False))
        except Exception as problem:
            future.set_exception(problem)
        return future

    def advance(self) -> None: ...

    def stop(self) -> None: ...

    def close(self, kill: bool = False) -> None: ...


@pytest.mark.slow
def test_a_worker_makes_them_on_a_free_slot_and_the_driver_does_not_make_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, slots = made(tmp_path), Slots()
    ahead = TablesAhead(plan, default_registry())
    ahead.advance(slots, 0)
    assert ahead.pending
    assert not plan.files.has("coefficients.csv")
    ahead.advance(slots, 1)
    assert not ahead.pending
    for one in plan.trials:
        one.state = "finished"
    assert not is_made(plan, monkeypatch)
    plan.trials[0].state = "failed"  # its tables may be others
    assert is_made(plan, monkeypatch)


def test_what_a_worker_cannot_make_is_left_to_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: Any) -> None:
        raise OSError("no space")

    plan = made(tmp_path)
    ahead = TablesAhead(plan, default_registry())
    with monkeypatch.context() as patch:
        patch.setattr(reference_tables, "_make", full)
        ahead.advance(Slots(), 1)
    assert not ahead.pending
    assert is_made(plan, monkeypatch)


def test_only_the_driver_writes_them_where_nothing_trains_or_with_leases(tmp_path: Path) -> None:
    plan = made(tmp_path)
    for one in plan.trials:
        one.state = "finished"
    assert not TablesAhead(plan, default_registry()).pending
    storage.begin(tmp_path / "leased", 60.0)
    assert not TablesAhead(
        replace(made(tmp_path), folder=tmp_path / "leased"), default_registry()
    ).pending
