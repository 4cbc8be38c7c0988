"""The benchmarks can be run: all are imported, and the trials that they measure take steps."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest
from helpers.paths import ROOT

MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
OF_OTHERS = ("image_sampling", "image_training", "vmapped")
"""They import diffusers, which takes seconds, or JAX, which only `nox -s bench` installs; `nox -s
types` reads them, as it reads the others."""


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of the folder are found by their names, as they are by a script of it."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    yield
    for name in set(MODULES) & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in OF_OTHERS])
def test_a_benchmark_is_imported(name: str) -> None:
    importlib.import_module(name)


@pytest.mark.slow
def test_a_trial_of_the_benchmarks_takes_steps() -> None:
    trials = importlib.import_module("trials")
    loop = trials.trainer(trials.training_job("edm", 0, 8, 4))
    trials.run_blocks(loop, 1)
    assert loop.step == trials.BLOCK


def test_the_driver_runs_a_simulated_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduling = importlib.import_module("scheduling")
    monkeypatch.setattr(scheduling, "NODES", 2)
    found = scheduling.simulate(60, 2 * scheduling.HOUR)
    assert (found["finished"], found["failed"]) == (60, 0)
    assert found["killed_trials"] > 0
