"""Laws of the three ways to bring in a network that outputs a score, and of the way back."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import studies
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import WIDE, Case, cases, draws, float64
from helpers.studies import ONE_TRIAL
from hypothesis import given
from laws.outputs import (
    Score,
    Way,
    by_flag,
    by_scaling,
    by_wrapper,
    law_all_ways_are_tweedie,
    law_reading_is_the_kind,
    law_vp_score_is_brought_in,
)
from laws.parameterizations import TABLE
from mutants.registry import kit
from torch import Tensor, nn

import testbed
from testbed import audit, oracles
from testbed.diffusion import noise_levels, outputs
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.errors import InputError, UnknownName
from testbed.registry import default_registry
from testbed.study import equal_objectives
from testbed.trial import build, worker

AFFINE = [name for name in TABLE if name != "score"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [by_scaling, by_wrapper, by_flag])
@pytest.mark.parametrize("name", AFFINE)
@given(c=cases(dtypes=WIDE))
def test_all_ways_are_tweedie(way: Way, name: str, c: Case) -> None:
    law_all_ways_are_tweedie(way, name, c)


def test_the_wrapper_passes_the_condition_on() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
            return -condition["shift"] * x

    p = default_registry().parameterization("v")
    F = outputs.OutputAsF(Conditional(), "score", p, 0.5)
    d = testbed.Denoiser(F, p, 0.5, c_in="unit", c_noise="sigma")
    x = draws((3, 2), 1)
    assert_within(d(x, 1.0, {"shift": float64(0.5)}), exact(x / 2), exact(x.abs()), 60)


# --- every kind ----------------------------------------------------------------------------------


@pytest.mark.slow
@given(c=cases(dtypes=(torch.float64,)))
def test_reading_is_the_kind(c: Case) -> None:
    law_reading_is_the_kind(outputs.with_output, c)


def test_readings_of_one_parameterization_are_equal() -> None:
    p, q = (default_registry().parameterization(name) for name in ("edm", "v"))
    assert outputs.with_output(p, "score") == outputs.with_output(p, "score")
    assert outputs.with_output(p, "score") != outputs.with_output(q, "score")
    assert outputs.with_output(p, "score") != outputs.with_output(p, "eps")
    assert outputs.with_output(p, "F") is p


@pytest.mark.slow
def test_a_reading_obeys_the_laws_of_parameterizations() -> None:
    for output in PREDICTION_TYPES:
        assert kit(outputs.with_output(default_registry().parameterization("edm"), output)) == set()


def test_unknown_kinds_and_what_has_no_inputs_are_refused() -> None:
    r = default_registry()
    with pytest.raises(UnknownName, match="Did you mean 'score'"):
        testbed.Denoiser(Score(), r.parameterization("v"), 0.5, output="scores")
    with pytest.raises(UnknownName, match="Did you mean 'score'"):
        outputs.OutputAsF(Score(), "scores", r.parameterization("v"), 0.5)
    bent = testbed.Parameterization(
        "bent", target=lambda x0, eps, sigma: x0, denoise=lambda F, x, sigma: F
    )
    with pytest.raises(InputError, match="is not affine"):
        outputs.with_output(bent, "score")


# --- exact models, other coordinates, and back ---------------------------------------------------


def test_vp_score_is_brought_in() -> None:
    law_vp_score_is_brought_in(noise_levels.VP.score_to_ve)


def test_back_to_a_score() -> None:
    """(D - x)/sigma^2 of any denoiser is `convert`; of a Denoiser `score` keeps F's digits; both
    are grad log p of the exact one, by autograd of the log-density."""
    oracle = oracles.Gaussian(float64([0.4, -1.0]), float64([[0.7, 0.2], [0.2, 0.3]]))
    sigma = torch.logspace(-1, 1, 7, dtype=torch.float64)
    x = (3 * draws((7, 2), 6)).requires_grad_()
    (wanted,) = torch.autograd.grad(oracle.log_density(x, sigma).sum(), x)
    x = x.detach()
    D = oracle.denoise(x, sigma)
    found = testbed.convert(D, "x0", "score", x=x, sigma=sigma)
    size = (x.abs() + D.abs() + 4) / sigma[:, None] ** 2
    assert_within(found, exact(wanted), exact(size), 64)
    plain = (D - x) / sigma[:, None] ** 2
    assert_within(plain, exact(wanted), exact(size), 64)

    class Exact(nn.Module):
        def forward(self, y: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
            return oracle.score(y, c_noise)

    for way in (by_scaling, by_wrapper, by_flag):
        d = way(Exact(), "v", 0.5)
        assert isinstance(d, testbed.Denoiser)
        assert_within(d.score(x, sigma), exact(wanted), exact(size), 128)


@pytest.mark.parametrize("way", [by_scaling, by_wrapper, by_flag])
def test_the_audit_passes_all_three(way: Way) -> None:
    x0, eps = draws((12, 2), 1), draws((12, 2), 2)
    sigma = torch.logspace(-1, 1, 12, dtype=torch.float64)
    d = way(Score(), "v", 0.5)
    assert isinstance(d, testbed.Denoiser)
    rows = audit.check_model(d, x0, eps, sigma)
    assert rows
    assert all(row.passed for row in rows), audit.table(rows)


# --- in a study ----------------------------------------------------------------------------------

SHARED = """
network = { name = "mlp", width = 8, depth = 1 }
density = "lognormal"
c_in = "shared"
c_noise = "shared"
evaluation = { levels = 2, draws = 8, samples = 8, steps = 4, metrics = [] }
"""


planned = partial(studies.planned, ONE_TRIAL.replace("[base]\n", f"[base]\n{SHARED}"))


@pytest.mark.slow
def test_a_study_s_key_is_the_score_scaling_with_another_recipe(tmp_path: Path) -> None:
    """`output = "score"` with v trains the same weights as `parameterization = "score"` where the
    rest is equal; a study calls them twins."""
    registry = default_registry()
    found = []
    for sets in (["output=score"], ["parameterization=score"]):
        (one,) = planned(tmp_path, *sets).trials
        data = build.dataset(registry, one.config.dataset)
        made = build.training_job(one.config, registry, data)
        trainer = worker.Trainer(
            made.denoiser, made.objective, data, made.training, 0, torch.device("cpu")
        )
        list(trainer)
        found.append((one.config, trainer.weights.W, made))
    (flag, W, made), (scaling, V, _) = found
    assert torch.equal(W, V)
    assert made.objective.parameterization.name == "v_score"
    assert flag.output == "score"
    assert flag.parameterization.name == "v"
    signatures = [equal_objectives.described(config, registry) for config in (flag, scaling)]
    assert equal_objectives.compared(*signatures) == 1.0  # type: ignore[arg-type]


def test_the_recipe_is_the_parameterization_s_own(tmp_path: Path) -> None:
    """A score network with EDM's inputs."""
    (one,) = planned(tmp_path, "output=score", "parameterization=edm", "c_in=native").trials
    registry = default_registry()
    data = build.dataset(registry, one.config.dataset)
    d, objective = build.assemble(one.config, registry, data)
    sd = one.config.sigma_data
    edm = default_registry().parameterization("edm").coefficients(2.0, sigma_data=sd)
    assert float(d.inputs(float64(2.0))[0]) == float(edm.in_)
    assert float(objective.parameterization.coefficients(2.0, sigma_data=sd).out) == 4.0


def test_a_kind_that_is_singular_is_refused_at_infinity(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sigma_max = infinity"):
        planned(
            tmp_path, "output=score", "sigma_max=inf", "table.name=ddpm",
            "table.zero_terminal_snr=true", "density=table",
        )  # fmt: skip


def test_bounds_are_not_vacuous() -> None:
    """In float32 at sigma = 1 the bound of the laws above is below 1e-4 of x."""
    assert 40 * gamma(1, torch.float32) * 8 < 1e-4
    assert math.isfinite(float(Score()(draws((1, 1), 1), torch.ones(1)).sum()))
