"""The noise levels that a trial trains on, is measured at and samples from."""

import functools
import itertools
import operator
from pathlib import Path

import mpmath
import pytest
import torch
from helpers import studies

from testbed.diffusion.noise_levels import TERMINAL, karras_sigmas
from testbed.registry import default_registry
from testbed.study import plan
from testbed.trial import build
from testbed.trial.config import TrialConfig
from testbed.trial.specs import Evaluation

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


def karras_level(i: int) -> float:
    """Level i of 10 of KARRAS (Karras et al. 2022, eq. 5)."""
    low, high = 0.1 ** (1 / 7), 20 ** (1 / 7)
    return float((low + i / 9 * (high - low)) ** 7)


@functools.cache
def ddpm_levels() -> list[float]:
    """sqrt((1 - abar)/abar) of DDPM's linear betas after 1, 2, ..., 1000 steps, with 50 digits."""
    with mpmath.workdps(50):
        first, last = mpmath.mpf(1) / 10000, mpmath.mpf(2) / 100
        alphas = (1 - first - (last - first) * i / 999 for i in range(1000))
        return [
            float(mpmath.sqrt((1 - abar) / abar))
            for abar in itertools.accumulate(alphas, operator.mul)
        ]


def test_a_table_brings_its_own_range(tmp_path: Path) -> None:
    """DDPM's levels run from 0.01 to 157, and all of them are trained on."""
    one = config(tmp_path)
    assert one.sigma_min == pytest.approx(ddpm_levels()[0], rel=1e-12)
    assert one.sigma_max == pytest.approx(ddpm_levels()[-1], rel=1e-10)
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
        (("sigma_max=80",), sum(level <= 80 for level in ddpm_levels())),
        (("sigma_min=1", "sigma_max=80"), sum(1 <= level <= 80 for level in ddpm_levels())),
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
        assert "expected 0 < sigma_min < sigma_max." in line


# --- what is measured, and where the samples' path runs ------------------------------------------


@pytest.mark.parametrize(
    ("sets", "measured", "sampled"),
    [
        (CONTINUOUS, (0.002, 80.0), (0.002, 80.0)),
        ((*CONTINUOUS, "sigma_min=0.01", "sigma_max=40"), (0.01, 40.0), (0.01, 40.0)),
        ((*CONTINUOUS, "density.sigma_max=40"), (0.002, 80.0), (0.002, 40.0)),
        ((*CONTINUOUS, "evaluation.sigma_max=9"), (0.002, 9.0), (0.002, 80.0)),
        ((*CONTINUOUS, "evaluation.sampling_sigma_min=0.03"), (0.002, 80.0), (0.03, 80.0)),
        ((*CONTINUOUS, "evaluation.sampling_sigma_max=9"), (0.002, 80.0), (0.002, 9.0)),
        ((*CONTINUOUS, "evaluation.levels=[0.1, 1, 7]"), (0.1, 7.0), (0.002, 80.0)),
        (("density=table",), (0.002, 80.0), (0.1, 20.0)),
        (("sigma_max=5",), (0.002, 5.0), (0.1, karras_level(5))),
        (("table.zero_terminal_snr=true", "sigma_max=inf"), (0.002, 80.0), (0.1, TERMINAL)),
    ],
)
def test_three_ranges(
    tmp_path: Path,
    sets: tuple[str, ...],
    measured: tuple[float, float],
    sampled: tuple[float, float],
) -> None:
    one = config(tmp_path, KARRAS, *sets)
    assert one.measured == pytest.approx(measured, rel=1e-12)
    assert one.sampled == pytest.approx(sampled, rel=1e-4)


def test_samples_do_not_ask_for_a_level_that_training_never_draws(tmp_path: Path) -> None:
    """DDPM's own levels without a table: its first is 0.01, where the path ended at 0.002."""
    one = config(tmp_path, *CONTINUOUS, "density=ddpm")
    path = build.sampling_levels(one, default_registry())
    assert one.sampled == one.trained
    assert float(path[-2]) == pytest.approx(ddpm_levels()[0], rel=1e-12)
    assert float(path[0]) == pytest.approx(ddpm_levels()[929], rel=1e-9)
    stated = "evaluation.sampling_sigma_min=0.002", "evaluation.sampling_sigma_max=80"
    asked = config(tmp_path, *CONTINUOUS, "density=ddpm", *stated)
    found = build.sampling_levels(asked, default_registry())
    assert torch.equal(found, karras_sigmas(3, 0.002, 80.0))


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ((), ""),
        (("sigma_max=5",), ""),
        (("density.sigma_max=5",), ""),
        (("evaluation.schedule=karras",), ""),
        (("sigma_max=5", "evaluation.sampling_sigma_max=23"), "sigma = 23 to 0.100504, and go"),
        (("sigma_min=1", "evaluation.sampling_sigma_min=0.1"), "to 0.1, and go from 23.3259 to"),
    ],
)
def test_a_learned_variance_is_sampled_at_levels_that_training_draws(
    tmp_path: Path, sets: tuple[str, ...], said: str
) -> None:
    """Also where the study asks for more of the table, which the plan says."""
    made = studies.planned(studies.ONE_TRIAL + studies.LEARNED_VARIANCE, tmp_path, *sets)
    one = made.trials[0].config
    path = build.sampling_levels(one, default_registry())[:-1]
    drawn = build.objective(one, default_registry()).levels
    assert float(path[0]) == float(drawn[-1])
    assert (float(drawn[0]), float(drawn[-1])) == one.trained
    assert all((drawn == level).any() for level in path)
    (note,) = [n for n in plan.notes(made) if "samples are asked" in n] or [""]
    assert said in note
    assert bool(said) == bool(note)


def test_limits_of_the_evaluation_may_be_multiples_of_sigma_data(tmp_path: Path) -> None:
    ends = "sigma_min", "sigma_max", "sampling_sigma_min", "sampling_sigma_max"
    sets = [f"evaluation.{end}={i} * sigma_data" for i, end in enumerate(ends, 1)]
    one = config(tmp_path, *CONTINUOUS, *sets)
    sigma_data = one.sigma_data_measured
    assert one.measured == (sigma_data, 2 * sigma_data)
    assert one.sampled == (3 * sigma_data, 4 * sigma_data)


def test_a_range_that_is_left_out_leaves_the_identity_as_it_was(tmp_path: Path) -> None:
    first = config(tmp_path, *CONTINUOUS)
    assert first.evaluation == Evaluation().model_copy(
        update={name: getattr(first.evaluation, name) for name in Evaluation.model_fields
                if "sigma" not in name}
    )  # fmt: skip
    said = "evaluation.sigma_min=0.002", "evaluation.sigma_max=80"
    assert config(tmp_path, *CONTINUOUS, *said).identity == first.identity
    other = config(tmp_path, *CONTINUOUS, "evaluation.sigma_max=40")
    assert other.identity != first.identity
    assert other.training_text == first.training_text


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["evaluation.levels=[0.1]"], "must be a list of two or more positive numbers, ascending"),
        (["evaluation.levels=[1, 0.1]"], "must be a list of two or more positive numbers"),
        (["evaluation.levels=[1, 1]"], "must be a list of two or more positive numbers"),
        (["evaluation.levels=[0, 1]"], "must be a list of two or more positive numbers"),
        (["evaluation.levels=[1, inf]"], "must be a list of two or more positive numbers"),
        (["evaluation.levels=[1, true]"], "must be a list of two or more positive numbers"),
        (["evaluation.levels=1"], "must be at least 2"),
        (["evaluation.levels=many"], "must be a number of levels, or a list of them"),
        (["evaluation.levels=[1, 2]", "evaluation.sigma_max=4"], "write one or the other"),
        (["evaluation.sigma_min=inf"], "must be a finite number"),
        (["evaluation.sampling_sigma_min=-1"], "must be above 0"),
        (
            ["evaluation.sigma_min=9", "evaluation.sigma_max=2"],
            "evaluation.sigma_max = 2 must be above evaluation.sigma_min = 9.",
        ),
        (
            ["evaluation.sampling_sigma_min=90"],
            "evaluation.sampling_sigma_max = 80 must be above evaluation.sampling_sigma_min = 90.",
        ),
    ],
)
def test_levels_that_are_none_are_refused_in_one_line(
    tmp_path: Path, sets: list[str], says: str
) -> None:
    (line,) = studies.refusal(STUDY, tmp_path, *CONTINUOUS, *sets).splitlines()
    assert says in line
