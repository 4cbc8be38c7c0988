"""A study with a discrete variant: where its trials are measured, and what the report makes of it.

Which levels these are is a law (tests/laws/levels.py); here they go through a whole study.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import studies
from helpers.planted_studies import says

from testbed.registry import default_registry
from testbed.report import comparisons, ranges, reading
from testbed.report.results import Results
from testbed.study import runner
from testbed.trial import worker

STUDY = """
[study]
name = "levels"
[base]
parameterization = "edm"
dataset = { name = "gaussian", dim = 2, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
density = "lognormal"
weighting = "edm"
loss = "l2"
c_noise = "shared"
training = { steps = 3, batch = 8, points = 1, learning_rate = 0.01 }
evaluation = { levels = 8, draws = 32, samples = 8, steps = 12, metrics = [] }
seeds = 2
[grid]
parameterization = ["edm", "flow"]
[report]
baseline = "edm"
"""
DISCRETE = STUDY.replace(
    'parameterization = ["edm", "flow"]',
    'parameterization = ["edm", "flow"]\ntable = ["none", { name = "karras", n = 10, low = 0.1, '
    "high = 20.0 }]",
)
GRID = np.geomspace(0.002, 80.0, 8)


def path(low: float, high: float, n: int = 12) -> list[float]:
    """n levels from high to low at equal steps of sigma^(1/7) (Karras et al. 2022, eq. 5)."""
    top, bottom = high ** (1 / 7), low ** (1 / 7)
    return [float((top + i / (n - 1) * (bottom - top)) ** 7) for i in range(n)]


TABLE = path(0.1, 20.0, 10)


def nearest(sigma: float) -> float:
    """The level of the table that is nearest, by trying all."""
    return min(TABLE, key=lambda level: abs(level - sigma))


NEAREST = sorted(set(map(nearest, GRID)))


def ran(folder: Path, text: str) -> Path:
    """The folder of a study, each of whose trials was run by itself."""
    folder.mkdir()
    made = studies.planned(text, folder, seeds=None)
    runner.describe(made, default_registry())
    for trial in made.trials:
        assert worker.run(trial.config, made.files.trial(trial.id).path) == "finished"
    return made.folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study with discrete variants, and without."""
    at = tmp_path_factory.mktemp("levels")
    return ran(at / "discrete", DISCRETE), ran(at / "plain", STUDY)


def trials(folder: Path) -> dict[tuple[str, int], Path]:
    """The folders of the trials by variant and seed."""
    found = {}
    for at in (folder / "trials").iterdir():
        described = json.loads((at / "trial.json").read_text())
        found[described["labels"][0]["variant"], described["config"]["seed"]] = at
    return found


def result(at: Path) -> dict[str, Any]:
    return json.loads((at / "result.json").read_text())


@pytest.mark.slow
def test_each_trial_is_measured_where_it_is_asked_for(folders: tuple[Path, Path]) -> None:
    for (variant, _), at in trials(folders[0]).items():
        levels = pd.read_csv(at / "levels.csv")["sigma"]
        wanted = NEAREST if "karras" in variant else sorted([*GRID, *NEAREST])
        np.testing.assert_allclose(levels, wanted, rtol=1e-9)


@pytest.mark.slow
def test_another_variant_changes_no_number_of_a_trial(folders: tuple[Path, Path]) -> None:
    """Neither at a level nor over all, bit for bit, and no sample."""
    with_tables, without = (trials(folder) for folder in folders)
    for (variant, seed), at in without.items():
        other = with_tables[f"{variant} table=none", seed]
        alone = pd.read_csv(at / "levels.csv").set_index("sigma")
        beside = pd.read_csv(other / "levels.csv").set_index("sigma")
        pd.testing.assert_frame_equal(alone, beside.loc[alone.index], check_exact=True)
        assert result(at)["metrics"] == result(other)["metrics"]
        name = "samples.safetensors"
        assert (at / name).read_bytes() == (other / name).read_bytes()


def test_a_trial_s_folder_has_the_levels_that_its_samples_went_through(
    folders: tuple[Path, Path],
) -> None:
    for (variant, _), at in trials(folders[0]).items():
        sigmas = json.loads((at / "schedule.json").read_text())["sigmas"]
        wanted = path(0.002, 80.0)
        if "karras" in variant:
            wanted = sorted(map(nearest, path(0.1, 20.0)), reverse=True)
            assert len(set(wanted)) < len(wanted)
            wanted = sorted(set(wanted), reverse=True)
        np.testing.assert_allclose(sigmas, [*wanted, 0.0], rtol=1e-9)


def of(results: Results, *variants: str) -> ranges.CommonLevels:
    found = ranges.common(results, *(("", "", variant) for variant in variants))
    assert found is not None
    return found


@pytest.mark.slow
def test_a_pair_is_compared_at_the_same_levels_and_the_share_is_said(
    folders: tuple[Path, Path],
) -> None:
    results = reading.read(folders[0])
    plain, discrete = "edm table=none", "flow table=karras"
    levels = of(results, plain, discrete)
    np.testing.assert_allclose(levels.levels, NEAREST, rtol=1e-9)
    inside = [0.1 <= sigma <= 20 for sigma in GRID]
    assert levels.trained.tolist() == inside
    assert levels.text.startswith(
        f"{sum(inside)} of 8 levels (the {len(NEAREST)} nearest of a table), σ"
    )
    np.testing.assert_allclose(of(results, plain, "flow table=none").levels, GRID, rtol=1e-9)
    assert of(results, plain, "flow table=none").whole
    # 4 of 8 levels are just enough.
    assert (sum(inside), levels.enough) == (4, True)
    made = comparisons.make(results).to_baseline("", "", discrete)
    assert made is not None
    assert made.comparison is not None
    # By hand: the excess in nats by the trapezoid rule at the table's levels, for both.
    ratios = []
    for seed in (0, 1):
        nats = []
        for variant in (discrete, plain):
            table = pd.read_csv(trials(folders[0])[variant, seed] / "levels.csv")
            near = [int((table["sigma"] - level).abs().argmin()) for level in NEAREST]
            here = table.iloc[near]
            y = here["excess"] / here["sigma"] ** 2
            nats.append(np.trapezoid(y, np.log(here["sigma"])))
        ratios.append(nats[0] / nats[1])
    assert made.comparison.ratio == pytest.approx(float(np.sqrt(np.prod(ratios))), rel=1e-9)
    assert f"over the {levels.text}, that both were trained on" in says(results)


@pytest.mark.slow
def test_less_than_half_of_the_levels_has_no_verdict(tmp_path: Path) -> None:
    """A table from 1 to 20 has 2 of the 8 levels."""
    folder = ran(tmp_path / "narrow", DISCRETE.replace("low = 0.1", "low = 1.0"))
    results = reading.read(folder)
    made = comparisons.make(results).to_baseline("", "", "edm table=karras")
    assert made is not None
    assert made.levels is not None
    assert not made.levels.enough
    said = (
        f"both were trained on 2 of 8 levels (the {len(made.levels.levels)} nearest of a table), σ"
    )
    assert made.verdict.startswith(said)


@pytest.mark.slow
def test_two_tables_without_a_common_level_are_not_compared(tmp_path: Path) -> None:
    other = ', { name = "karras", n = 11, low = 0.15, high = 19.0 }]'
    folder = ran(tmp_path / "two", DISCRETE.replace("}]", "}" + other).replace(', "flow"]', "]"))
    compared = comparisons.make(reading.read(folder))
    (pair,) = compared.pairs
    assert pair.verdict == "they were measured at no level in common"
    assert pair.comparison is None


def test_trials_that_are_measured_elsewhere_are_one_training(tmp_path: Path) -> None:
    """An arm without a table measures at its grid alone, and the other at the table's too."""
    table = '{ table = { name = "karras", n = 10 } }'
    text = STUDY.replace("[grid]", f"[arms]\na = {table}\nb = {{}}\n[grid]")
    text = text.replace('["edm", "flow"]', '["edm"]')
    made = studies.planned(text, tmp_path)
    discrete, plain = made.trials
    assert discrete.config.table is not None
    assert isinstance(plain.config.evaluation.levels, tuple)
    alone = studies.planned(text, tmp_path, "arms.a={}").trials
    assert len(alone) == 1
    assert alone[0].config.training_text == plain.config.training_text
    assert alone[0].config.identity != plain.config.identity


def test_the_nearest_level_is_one_of_the_range_that_is_measured(tmp_path: Path) -> None:
    """4.5 lies between two levels of the table, and nearer to the one above."""
    below, above = max(s for s in TABLE if s < 4.5), min(s for s in TABLE if s > 4.5)
    assert above - 4.5 < 4.5 - below
    text = DISCRETE.replace("levels = 8,", "levels = 8, sigma_max = 4.5,")
    made = studies.planned(text, tmp_path, seeds=None)
    for trial in made.trials:
        levels = trial.config.evaluation.levels
        assert isinstance(levels, tuple)
        assert max(levels) == pytest.approx(4.5 if trial.config.table is None else below)


ARMS = """
[study]
name = "arms"
[base]
dataset = { name = "gaussian", dim = 2, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 3, batch = 8, points = 1 }
evaluation = { levels = 8, draws = 32, samples = 8, steps = 12, metrics = [] }
seeds = 2
[arms.published]
[arms.equal]
weighting = "edm"
loss = "l2"
density = "lognormal"
c_in = "shared"
c_noise = "shared"
[grid]
parameterization = ["edm", "eps"]
[report]
baseline = "edm"
"""


@pytest.mark.slow
def test_a_training_is_not_compared_with_itself(tmp_path: Path) -> None:
    """EDM has one training in both arms; beside eps' table it is measured at more levels."""
    results = reading.read(ran(tmp_path / "arms", ARMS))
    ids = [set(results.of("", arm, "edm")["id"]) for arm in ("published", "equal")]
    assert not ids[0] & ids[1]
    between = {one.variant: one for one in comparisons.make(results).between_arms("")}
    assert between["edm"].reason == "the same trials"
    assert between["edm"].comparison is None
    assert between["eps"].reason != "the same trials"
