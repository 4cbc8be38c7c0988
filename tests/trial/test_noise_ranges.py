"""The noise levels that a trial trains on: what the study states, else its table's, else the
default's."""

from pathlib import Path

import mpmath
import pytest
from helpers import studies

from testbed.study import plan
from testbed.trial.config import TrialConfig

STUDY = """
[study]
name = "ranges"
[base]
dataset = { name = "gaussian", dim = 2, n = 256, test = 64 }
network = { name = "mlp_index", width = 8, depth = 1 }
table = { name = "ddpm", n = 1000 }
density = "table"
c_noise = "index"
weighting = "edm"
loss = "l2"
training = { steps = 20, batch = 8 }
evaluation = { levels = 4, draws = 8, samples = 8, steps = 3, sampler = "ddim", metrics = [] }
[grid]
parameterization = ["v"]
"""
CONTINUOUS = "table=none", "c_noise=shared", "network=mlp", "density=lognormal"
KARRAS = 'table={ name = "karras", n = 10, low = 0.1, high = 20 }'


def config(folder: Path, *sets: str) -> TrialConfig:
    return studies.config(STUDY, folder, *sets)


def ddpm_level(t: int) -> float:
    """sqrt((1 - abar)/abar) of DDPM's linear betas after t of 1000 steps, with 50 digits."""
    with mpmath.workdps(50):
        first, last = mpmath.mpf(1) / 10000, mpmath.mpf(2) / 100
        abar = mpmath.fprod(1 - first - (last - first) * i / 999 for i in range(t))
        return float(mpmath.sqrt((1 - abar) / abar))


def test_a_table_brings_its_own_range(tmp_path: Path) -> None:
    """DDPM's levels run from 0.01 to 157, and all of them are trained on."""
    one = config(tmp_path)
    assert one.sigma_min == pytest.approx(ddpm_level(1), rel=1e-12)
    assert one.sigma_max == pytest.approx(ddpm_level(1000), rel=1e-10)
    assert one.trained == (one.sigma_min, one.sigma_max)
    assert one.density.options["sigma_max"] == one.sigma_max
    assert one.table_levels == (1000, 1000)


@pytest.mark.parametrize(
    ("sets", "limits"),
    [
        ((), (0.1, 20.0)),
        (("sigma_min=0.5",), (0.5, 20.0)),
        (("sigma_max=5",), (0.1, 5.0)),
        (("sigma_min=0.5", "sigma_max=80"), (0.5, 80.0)),
        (("density=lognormal",), (0.1, 20.0)),
        (("density={ name = 'table', sigma_max = 3 }", "sigma_max=5"), (0.1, 3.0)),
        (CONTINUOUS, (0.002, 80.0)),
        ((*CONTINUOUS, "sigma_min=0.5"), (0.5, 80.0)),
    ],
)
def test_what_the_study_states_comes_before_the_table_and_that_before_the_default(
    tmp_path: Path, sets: tuple[str, ...], limits: tuple[float, float]
) -> None:
    one = config(tmp_path, KARRAS, *sets)
    assert (one.sigma_min, one.sigma_max) == pytest.approx(limits, rel=1e-12)


def test_a_limit_that_is_written_out_is_the_same_trial(tmp_path: Path) -> None:
    said = "sigma_min=0.002", "sigma_max=80"
    assert config(tmp_path, *CONTINUOUS).identity == config(tmp_path, *CONTINUOUS, *said).identity
    own = config(tmp_path)
    limits = f"sigma_min={own.sigma_min!r}", f"sigma_max={own.sigma_max!r}"
    measured = "evaluation.sigma_min=0.002", "evaluation.sigma_max=80"
    assert config(tmp_path, *limits, *measured).identity == own.identity


@pytest.mark.parametrize(
    ("sets", "drawn"),
    [
        (("sigma_max=80",), sum(ddpm_level(t) <= 80 for t in range(1, 1001))),
        (("sigma_min=1", "sigma_max=80"), sum(1 <= ddpm_level(t) <= 80 for t in range(1, 1001))),
    ],
)
def test_a_cut_of_a_table_is_counted(tmp_path: Path, sets: tuple[str, ...], drawn: int) -> None:
    made = studies.planned(STUDY, tmp_path, *sets)
    assert made.trials[0].config.table_levels == (drawn, 1000)
    said = f"table ddpm is cut to {drawn} of 1000 levels: training never draws those outside of "
    assert said in "\n".join(plan.notes(made))
    assert (drawn == 930) == (sets == ("sigma_max=80",))


def test_a_whole_table_is_not_said_to_be_cut(tmp_path: Path) -> None:
    assert "is cut to" not in "\n".join(plan.notes(studies.planned(STUDY, tmp_path)))


def test_limits_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    for sets in (("sigma_min=30", KARRAS), (*CONTINUOUS, "sigma_min=100")):
        (line,) = studies.refusal(STUDY, tmp_path, *sets).splitlines()
        assert "needs 0 < sigma_min < sigma_max, got" in line
