"""Laws of the three ways to bring in a network that outputs a score, and of the way back."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion.test_ddpm import STUDY_OF
from diffusion.test_parameterizations import TABLE
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import WIDE, Case, cases, draws, float64
from hypothesis import given
from mutants.mutation import kit
from torch import Tensor, nn

import testbed
from testbed import audit, oracles
from testbed.audit.adapters import Adapter
from testbed.diffusion import noise_levels, outputs
from testbed.diffusion.predictions import PREDICTION_TYPES, pair_weights
from testbed.errors import InputError, UnknownName
from testbed.registry import default_registry
from testbed.study import equal_objectives, plan, study_file
from testbed.trial import build, worker

Denoise = Callable[[Tensor, Tensor], Tensor]
Way = Callable[[nn.Module, str, Any], Denoise]
AFFINE = [name for name in TABLE if name != "score"]


class Score(nn.Module):
    """s(x, sigma) = -(x - tanh(x)/2)/(1 + sigma^2): any function of x and sigma will do."""

    def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        s = sigma.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return -(x - torch.tanh(x) / 2) / (1 + s * s)


def by_scaling(network: nn.Module, name: str, sigma_data: Any) -> Denoise:
    """The parameterization "score": D = x + sigma^2 F with c_in = 1 and c_noise = sigma."""
    return testbed.Denoiser(network, default_registry().parameterization("score"), sigma_data)


def by_wrapper(network: nn.Module, name: str, sigma_data: Any) -> Denoise:
    """The network as the F of another parameterization."""
    p = default_registry().parameterization(name)
    F = outputs.OutputAsF(network, "score", p, sigma_data)
    return testbed.Denoiser(F, p, sigma_data, c_in=outputs.unscaled, c_noise=outputs.itself)


def by_flag(network: nn.Module, name: str, sigma_data: Any) -> Denoise:
    """The output of any denoiser said to be a score."""
    p = default_registry().parameterization(name)
    own = {"c_in": outputs.unscaled, "c_noise": outputs.itself}
    return testbed.Denoiser(network, p, sigma_data, output="score", **own)


def law_all_ways_are_tweedie(way: Way, name: str, c: Case) -> None:
    """D = x + sigma^2 s(x, sigma), and the score of the denoiser is s again.

    By way of F = a x0 + b eps the terms are those of x0 and eps, with |c_out b| <= ... taken from
    the exact coefficients of `name`; 40 roundings are more than the longest path has.
    """
    d = way(Score(), name, c.sigma_data)
    s = exact(Score()(c.x, c.sigma.to(c.dtype) if c.sigma.ndim else c.sigma.expand(len(c.x))))
    X = exact(c.x)
    x0, eps = X + c.S**2 * s, -c.S * s
    skip, _, _, _ = TABLE[name](c.S, c.SD)
    # F* = a x0 + b eps with a = (1 - c_skip)/c_out, b = -c_skip sigma/c_out; x0 itself is a sum.
    size = np.abs(1 - skip) * (np.abs(X) + np.abs(c.S**2 * s)) + np.abs(skip * c.S * eps)
    size = size + np.abs(skip * X) + np.abs(x0)
    assert_within(d(c.x, c.sigma), x0, size, 40, c.dtype)
    if isinstance(d, testbed.Denoiser):
        back = d.score(c.x, c.sigma)
        assert_within(back, s, size / c.S**2 + np.abs(s), 60, c.dtype)


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
    d = testbed.Denoiser(F, p, 0.5, c_in=outputs.unscaled, c_noise=outputs.itself)
    x = draws((3, 2), 1)
    assert_within(d(x, 1.0, {"shift": float64(0.5)}), exact(x / 2), exact(x.abs()), 60)


# --- every kind ----------------------------------------------------------------------------------


def law_reading_is_the_kind(read: Callable[..., testbed.Parameterization], c: Case) -> None:
    """D of an output q of a kind is x0 of that q, with 50 digits; c_in, c_noise are the other's."""
    for output, kind in PREDICTION_TYPES.items():
        p = default_registry().parameterization("edm")
        found = read(p, output)
        q = draws(tuple(c.x.shape), 77)
        sigma = c.sigma.double()
        a, b = (np.reshape(exact(part), np.shape(c.S)) for part in (kind.a(sigma), kind.b(sigma)))
        n = b - c.S * a
        terms = np.abs(b / n * exact(c.x)) + np.abs(c.S / n * exact(q))
        wanted = b / n * exact(c.x) - c.S / n * exact(q)
        D = found.denoise(q, c.x, c.sigma, sigma_data=c.sigma_data)
        assert_within(D, wanted, terms, 32)
        ours = found.coefficients(sigma, sigma_data=c.sigma_data)
        theirs = p.coefficients(sigma, sigma_data=c.sigma_data)
        assert torch.equal(ours.in_, theirs.in_)
        assert torch.equal(ours.noise, theirs.noise)
        # What the network is to learn is the kind itself.
        own = found.pair_weights(sigma, sigma_data=c.sigma_data)
        for ours_, theirs_ in zip(own, pair_weights(output, sigma), strict=True):
            assert torch.equal(ours_, theirs_.expand_as(ours_))


@given(c=cases(dtypes=(torch.float64,)))
def test_reading_is_the_kind(c: Case) -> None:
    law_reading_is_the_kind(outputs.with_output, c)


def test_readings_of_one_parameterization_are_equal() -> None:
    p, q = (default_registry().parameterization(name) for name in ("edm", "v"))
    assert outputs.with_output(p, "score") == outputs.with_output(p, "score")
    assert outputs.with_output(p, "score") != outputs.with_output(q, "score")
    assert outputs.with_output(p, "score") != outputs.with_output(p, "eps")
    assert outputs.with_output(p, "F") is p


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


def law_vp_score_is_brought_in(to_ve: Callable[..., Tensor]) -> None:
    """The exact score of x_t = alpha x, times alpha: D is the oracle's, by all three ways.

    On Gaussian data, and by the audit's adapter too.
    """
    m, L = 0.4, 0.7
    oracle = oracles.Gaussian(float64([m]), float64([[L]]))

    def foreign(x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p(x_t) of x_t ~ N(alpha m, alpha^2 L + s^2)."""
        alpha, s = noise_levels.VP.alpha(t)[:, None], noise_levels.VP.s(t)[:, None]
        return -(x_t - alpha * m) / (alpha**2 * L + s**2)

    class Brought(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
            x_t, t = noise_levels.VP.from_ve(x, sigma)
            return to_ve(foreign(x_t, t), t)

    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    x = m + torch.sqrt(L + sigma**2)[:, None] * draws((9, 1), 5)
    wanted = exact(oracle.denoise(x, sigma))
    size = exact(x.abs() + m)
    # t has some 20 roundings, conditioned by int beta; alpha and s have those again.
    k = 64 * (1 + float(torch.log1p(sigma**2).max()))
    for way in (by_scaling, by_wrapper, by_flag):
        assert_within(way(Brought(), "v", 0.5)(x, sigma), wanted, 4 * size, k)
    if to_ve is noise_levels.VP.score_to_ve:
        adapted = Adapter(returns="score", coordinates="vp", noise="time")(foreign)
        assert_within(adapted(x, sigma), wanted, 4 * size, k)


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


def planned(folder: Path, *sets: str) -> plan.Plan:
    file = folder / "scores.toml"
    file.write_text(STUDY_OF.replace("[base]\n", f"[base]\n{SHARED}"))
    return plan.make(
        study_file.read(file, sets, seeds=1), testbed.Registry(), folder / "out", "cpu"
    )


def test_a_study_s_key_is_the_score_scaling_with_another_recipe(tmp_path: Path) -> None:
    """`output = "score"` with v trains the same weights as `parameterization = "score"` where the
    rest is equal; a study calls them twins."""
    registry = testbed.Registry()
    found = []
    for sets in (["output=score"], ["parameterization=score"]):
        (one,) = planned(tmp_path, *sets).trials
        data = build.data_of(one.config, registry)
        made = build.training_job(one.config, registry, data)
        trainer = worker.Trainer(
            made.denoiser, made.objective, data, made.training, 0, torch.device("cpu")
        )
        list(trainer)
        found.append((one.config, trainer.weights.W, made))
    (flag, W, made), (scaling, V, _) = found
    assert torch.equal(W, V)
    assert made.objective.parameterization.name == "v_score"
    assert flag["output"] == "score"
    assert flag["parameterization"]["name"] == "v"
    signatures = [equal_objectives.described(config, registry) for config in (flag, scaling)]
    assert equal_objectives.compared(*signatures) == 1.0  # type: ignore[arg-type]


def test_the_recipe_is_the_parameterization_s_own(tmp_path: Path) -> None:
    """A score network with EDM's inputs."""
    (one,) = planned(tmp_path, "output=score", "parameterization=edm", "c_in=native").trials
    d, objective = build.assemble(one.config, testbed.Registry(), build.data_of(
        one.config, testbed.Registry()))  # fmt: skip
    sd = one.config["sigma_data"]
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
