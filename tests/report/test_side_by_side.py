"""Finished studies side by side."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.command_line import run_here
from helpers.planted_studies import noisy, plant
from scipy import stats

import testbed
from testbed.errors import InputError
from testbed.report.side_by_side import SideBySide, side_by_side

EVEN = np.geomspace(0.002, 80.0, 16).tolist()
"""The grid of a trial that says nothing of its levels."""
A, B, C, D = (noisy(mean, 6, 0.05, stream) for stream, mean in enumerate((1.0, 1.3, 1.1, 0.8)))


def planted(folder: Path, values: dict[str, list[float]], baseline: str, **config: Any) -> Path:
    """A study of one case and arm; `config` changes the record of every trial."""
    labels = {("digits", "", variant): seeds for variant, seeds in values.items()}
    plant(folder, labels, baseline)
    for file in folder.glob("trials/*/trial.json"):
        record = json.loads(file.read_text())
        record["config"] |= config
        file.write_text(json.dumps(record))
    return folder


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., SideBySide]:
    def make(**config: Any) -> SideBySide:
        one = planted(tmp_path / "one", {"a": A, "b": B}, "a")
        two = planted(tmp_path / "two", {"c": C, "d": D}, "d", **config)
        return side_by_side([testbed.open(one), testbed.open(two)])

    return make


@pytest.mark.slow
def test_comparable_variants_are_compared_with_the_first_studys_baseline(
    compared: Callable[..., SideBySide],
) -> None:
    """The t test and Holm's method by hand, from scipy."""
    found = compared()
    assert (len(found.setups), found.apart) == (1, [])
    table = found.table.set_index("variant")
    assert math.isnan(table.loc["a", "ratio"])
    logs = {name: np.log(values) for name, values in zip("bcd", (B, C, D), strict=True)}
    p = {name: stats.ttest_rel(each, np.log(A)).pvalue for name, each in logs.items()}
    ordered, largest = sorted(p, key=p.__getitem__), 0.0
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (3 - rank) * p[name]))
        assert table.loc[name, "p_holm"] == pytest.approx(largest, rel=1e-9)
        ratio = math.exp((logs[name] - np.log(A)).mean())
        assert table.loc[name, "ratio"] == pytest.approx(ratio, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"training": {"steps": 10}}, "training.steps"),
        ({"dataset": "digits"}, "dataset.name: 'moons' -> 'digits'"),
        ({"network": {"name": "mlp", "width": 8}}, "network.options.width"),
        ({"evaluation": {"draws": 8}}, "evaluation.draws: 1024 -> 8"),
        ({"data_digest": "other"}, "data_digest: '' -> 'other'"),
        ({"conditions": {"label": 0.1}}, "conditions.label"),
        ({"sigma_max": 10.0}, "evaluation.sigma_max: 80.0 -> 10.0"),
        ({"evaluation": {"levels": [0.1, 1.0]}, "table": "ddpm"}, "evaluation.levels: 16 -> "),
        ({"evaluation": {"levels": [0.002, 1.0, 80.0]}}, "evaluation.levels: 16 -> [0.002, 1.0"),
    ],
)
def test_what_differs_besides_the_objective_forbids_it_and_is_named(
    compared: Callable[..., SideBySide], config: dict[str, Any], said: str
) -> None:
    found = compared(**config)
    assert len(found.setups) == 2
    assert found.table["ratio"].isna().all()
    (told,) = found.apart
    assert told.startswith("From setup 1 to setup 2 changes: ")
    assert said in told


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"weighting": "edm"},
        {"density": "loguniform"},
        {"parameterization": "edm"},
        {"c_in": "shared"},
        {"sigma_max": 10.0, "evaluation": {"sigma_max": 80.0}},
        {"evaluation": {"levels": sorted([*EVEN, 0.5])}, "asked_levels": EVEN},
    ],
)
def test_what_is_the_objective_may_differ(
    compared: Callable[..., SideBySide], config: dict[str, Any]
) -> None:
    assert len(compared(**config).setups) == 1


# --- a discrete and a continuous variant ---------------------------------------------------------

GRID = [0.01, 0.1, 1.0, 10.0]
NEAREST = [0.012, 0.11, 0.9]
"""The levels of a table that are nearest to the grid: two of the grid have one in common."""


def by_level(
    folder: Path, variant: str, levels: list[float], seeds: int, **config: Any
) -> dict[tuple[int, float], float]:
    """A study of one variant, asked for the grid and measured at `levels`; its log loss/Wiener."""
    planted(folder, {variant: noisy(1.0, seeds)}, variant, asked_levels=GRID, **config)
    stream = np.random.default_rng(len(levels))
    logs = {}
    for file in folder.glob("trials/*/trial.json"):
        record = json.loads(file.read_text())
        record["config"]["evaluation"] = {"levels": levels}
        file.write_text(json.dumps(record))
        own = stream.normal(0.3 * len(levels), 0.2, len(levels))
        logs |= {(record["config"]["seed"], s): x for s, x in zip(levels, own, strict=True)}
        table = pd.DataFrame({"sigma": levels, "loss": np.exp(own), "wiener": 1.0})
        table.to_csv(file.parent / "levels.csv", index=False)
        counted = [x for s, x in zip(levels, own, strict=True) if s in GRID or len(levels) == 3]
        metrics = {"loss_vs_wiener": math.exp(np.mean(counted))}
        (file.parent / "result.json").write_text(
            json.dumps({"status": "finished", "metrics": metrics})
        )
    return logs


@pytest.mark.slow
@pytest.mark.parametrize("discrete_first", [False, True])
def test_a_discrete_variant_is_paired_at_its_table_s_levels(
    tmp_path: Path, discrete_first: bool
) -> None:
    """The t test of the mean over these levels of the log ratios, by hand."""
    both = sorted([*GRID, *NEAREST])
    continuous = by_level(tmp_path / "one", "a", both, 5)
    discrete = by_level(tmp_path / "two", "d", NEAREST, 6, table="ddpm")
    names = ["two", "one"] if discrete_first else ["one", "two"]
    found = side_by_side([testbed.open(tmp_path / name) for name in names])
    assert (len(found.setups), found.apart) == (1, [])
    r = np.array([[discrete[k, s] - continuous[k, s] for s in NEAREST] for k in range(5)]).mean(1)
    row = found.table.set_index("variant").loc["a" if discrete_first else "d"]
    assert math.isnan(found.table.set_index("variant").loc["d" if discrete_first else "a", "ratio"])
    assert row["ratio"] == pytest.approx(math.exp(r.mean() * (-1) ** discrete_first), rel=1e-12)
    assert row["p_holm"] == pytest.approx(stats.ttest_1samp(r, 0).pvalue, rel=1e-9)
    (said,) = (note for note in found.notes if "of a table" in note)
    assert "at the 3 levels of a table that both were measured at, σ = 0.012 to 0.9." in said
    assert "d (" in said
    assert "a (" in said


@pytest.mark.slow
@pytest.mark.parametrize("levels", [GRID, sorted([*GRID, *NEAREST[:2]])])
def test_one_that_was_not_measured_at_the_table_s_levels_is_apart(
    tmp_path: Path, levels: list[float]
) -> None:
    by_level(tmp_path / "one", "a", levels, 5)
    by_level(tmp_path / "two", "d", NEAREST, 5, table="ddpm")
    found = side_by_side([testbed.open(tmp_path / name) for name in ("one", "two")])
    assert len(found.setups) == 2
    assert found.table["ratio"].isna().all()
    assert any("evaluation.levels: " in line for line in found.apart)


@pytest.mark.slow
def test_levels_do_not_join_what_differs_otherwise(tmp_path: Path) -> None:
    by_level(tmp_path / "one", "a", sorted([*GRID, *NEAREST]), 5)
    by_level(tmp_path / "two", "d", NEAREST, 5, table="ddpm", network={"name": "mlp", "width": 8})
    found = side_by_side([testbed.open(tmp_path / name) for name in ("one", "two")])
    assert len(found.setups) == 2
    assert any("network.options.width" in line for line in found.apart)


@pytest.mark.slow
def test_other_sources_and_devices_are_noted(compared: Callable[..., SideBySide]) -> None:
    found = compared(sources="x", device="cuda")
    assert len(found.setups) == 1
    notes = " ".join(found.notes)
    assert "device was cpu" in notes
    assert "digest of testbed's sources" in notes


@pytest.mark.slow
def test_equal_trials_with_other_numbers_are_told(tmp_path: Path) -> None:
    one = planted(tmp_path / "one", {"a": A, "b": B}, "a")
    two = planted(tmp_path / "two", {"a": A, "b": [*B[:-1], B[-1] * 1.01]}, "a")
    notes = side_by_side([testbed.open(one), testbed.open(two)]).notes
    assert any("12 equal trials, whose numbers differ" in note for note in notes)
    notes = side_by_side([testbed.open(one), testbed.open(one)]).notes
    assert any("numbers are the same" in note for note in notes)


def test_one_study_is_no_comparison(tmp_path: Path) -> None:
    one = planted(tmp_path / "one", {"a": A}, "a")
    with pytest.raises(InputError, match="two or more studies"):
        side_by_side([testbed.open(one)])
    done = run_here(tmp_path, "compare", "one")
    assert (done.code, done.out) == (2, "")


@pytest.mark.slow
def test_the_command_shows_the_setups_and_writes_the_table(tmp_path: Path) -> None:
    planted(tmp_path / "one", {"a": A, "b": B}, "a")
    planted(tmp_path / "two", {"c": C}, "c")
    planted(tmp_path / "three", {"a": A}, "a", training={"steps": 3})
    done = run_here(tmp_path, "compare", "one", "two", "three", "--out", "all.csv")
    assert done.code == 0, done.err
    assert "Setup 1: one · digits and two · digits" in done.out
    assert "Setup 2: three · digits" in done.out
    assert "training.steps" in done.out
    assert (tmp_path / "all.csv").read_text().count("\n") == 5
