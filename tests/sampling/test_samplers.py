"""Laws of the samplers beyond Euler and Heun: printed formulas, marginals, orders, one trajectory.

The formulas are written here as their papers print them, in VP coordinates or in lambda = -log
sigma; the samplers are written in sigma.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import draws, float64
from laws.samplers import (
    GAINS,
    LADDERS,
    PRINTED,
    ROUNDINGS,
    STABILITY,
    carried,
    law_end_is_stability,
    law_marginals_converge,
    law_moments_follow_the_recursion,
    law_run_is_the_printed_formula,
    named,
    noises,
    rounding_of,
    run,
    some_noise,
)
from laws.solvers import SGM, mixture
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.errors import InputError
from testbed.random import stream
from testbed.registry import default_registry

CHURN = {"churn": 3.0, "s_min": 0.4, "s_max": 5.0, "s_noise": 1.1}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "euler": [CHURN],
    "heun": [CHURN],
    "lms": [{"order": 1}, {"order": 2}, {"order": 3}, {"order": 4}],
    "dpmpp_2m": [{}],
    "ddim": [{}, {"eta": 0.3}, {"eta": 1.0}],
    "euler_ancestral": [{}, {"eta": 0.0}, {"eta": 0.3}],
    "ddpm": [{}, {"variance": "large"}],
    "dpmpp_2s_ancestral": [{}, {"eta": 0.0}, {"eta": 0.3}],
    "dpmpp_sde": [{}, {"eta": 0.0}, {"eta": 0.3}],
}
VARIANTS = [(name, options) for name, found in OPTIONS.items() for options in found]


# --- the printed formulas ------------------------------------------------------------------------


def half(x: Any, sigma: Any) -> Any:
    """A denoiser that is exact in any arithmetic: x/2 + 1/4."""
    return x / 2 + 0.25


@pytest.mark.parametrize("levels", LADDERS.values(), ids=LADDERS)
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_run_is_the_printed_formula(
    name: str, options: dict[str, Any], levels: list[float]
) -> None:
    law_run_is_the_printed_formula(named(name, options), name, options, levels)


def test_every_sampler_is_held_against_its_formula() -> None:
    built_in = [
        name
        for name in default_registry().names("sampler")
        if default_registry().source(default_registry().sampler(name)).kind == "built in"
    ]
    assert set(built_in) == set(PRINTED), "PRINTED of tests/laws/samplers.py has the formulas"
    assert set(built_in) == set(OPTIONS), "OPTIONS has the options at which each is tried"


# --- Stability's end points ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "entry"), STABILITY.items())
def test_end_is_stability(name: str, entry: str) -> None:
    law_end_is_stability(named(name, {}), entry)


@pytest.mark.parametrize(("name", "entry"), STABILITY.items())
def test_legacy_end_is_stability(name: str, entry: str) -> None:
    """To 1e-6, relative to the data's size: its levels carry float32 error (README there)."""
    oracle, levels = mixture(SGM), SGM["discretization"]["legacy_ddpm"]["18"]
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    found = run(named(name, {}), oracle.denoise, x, levels, 40 * [torch.zeros_like(x)])
    wanted = np.array(SGM["sampler"]["legacy_ddpm"][entry])
    assert_within(found, wanted, 0, 1, plus=1e-6 * np.abs(wanted).max())


# --- marginals on a Gaussian ---------------------------------------------------------------------


STOCHASTIC = [(name, o) for name, o in VARIANTS if name in GAINS]


@pytest.mark.parametrize("end", [0.1, 0.0])
@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
def test_moments_follow_the_recursion(name: str, options: dict[str, Any], end: float) -> None:
    levels = [*karras_sigmas(11, 0.1, 10.0).tolist()[:-1], end][:-1] + ([0.0] if not end else [])
    law_moments_follow_the_recursion(named(name, options), name, levels)


ORDERS = [
    ("ddim", {"eta": 0.0}, 1),
    ("ddim", {"eta": 1.0}, 1),
    ("euler_ancestral", {}, 1),
    ("ddpm", {}, 1),
    ("ddpm", {"variance": "large"}, 1),
    ("euler", {"churn": 4.0, "s_min": 0.0, "s_noise": 1.0}, 1),
    ("heun", {"churn": 4.0, "s_min": 0.0, "s_noise": 1.0}, 2),
    ("lms", {"order": 1}, 1),
    ("lms", {"order": 2}, 2),
    ("lms", {}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
    ("dpmpp_2s_ancestral", {}, 2),
    ("dpmpp_sde", {"eta": 0.0}, 2),
    ("dpmpp_sde", {}, 2),
]


@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_marginals_converge(name: str, options: dict[str, Any], order: int) -> None:
    law_marginals_converge(named(name, options), order)


def curve(sigma: float, L: float = 0.3) -> float:
    """The ODE's solution for x0 ~ N(0, L), and its slope below."""
    return math.sqrt(L + sigma**2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_step_of_lms_from_the_exact_past_has_its_order(order: int) -> None:
    """From exact slopes the error of one step is O(h^(order + 1)); started by Euler's step the run
    is of second order at most, whatever its formula (above)."""

    def D(x: Tensor, sigma: float) -> Tensor:
        return 0.3 / (0.3 + sigma**2) * x

    step, errors = named("lms", {}).step, []
    for h in (2.0**-4, 2.0**-5, 2.0**-6, 2.0**-7):
        past = [
            (s, float64([[s / curve(s)]])) for s in (1 + i * h for i in range(order - 1, 0, -1))
        ]
        end = step(D, float64([[curve(1.0)]]), 1.0, 1 - h, None, past, order=order)
        errors.append(abs(float(end) - curve(1 - h)))
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert round(measured[-1]) == order + 1, measured


# --- the same denoiser, the same trajectory ------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_one_oracle_has_one_trajectory_in_every_parameterization(
    name: str, options: dict[str, Any]
) -> None:
    """With the same noise; output and denoise add less than the oracle's own operations."""
    oracle, levels = mixture(SGM), karras_sigmas(12).tolist()
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    sampler, noise = named(name, options), some_noise(x, 24)
    bound = exact(2 * carried(sampler, oracle.denoise, x, levels, noise, rounding_of(oracle)))
    wanted = exact(run(sampler, oracle.denoise, x, levels, noise))
    for kind in ("eps", "v", "edm", "x0", "score", "flow"):
        p = default_registry().parameterization(kind)

        def denoise(x: Tensor, sigma: Tensor, p: testbed.Parameterization = p) -> Tensor:
            F = p.output(oracle.denoise(x, sigma), x, sigma, sigma_data=0.5)
            return p.denoise(F, x, sigma, sigma_data=0.5)

        assert_within(run(sampler, denoise, x, levels, noise), wanted, 0, 1, plus=bound)


def test_ddim_at_one_is_euler_ancestral_and_ddpm() -> None:
    """Bit for bit the first, to rounding the second; at 0 DDIM is Euler."""
    x, levels = draws((4, 2), 5), [10.0, 3.0, 1.0, 0.1, 0.0]
    noise = some_noise(x, 5)
    one, other, third = (
        run(named(*of), half, x, levels, noise)
        for of in (("ddim", {"eta": 1.0}), ("euler_ancestral", {}), ("ddpm", {}))
    )
    assert torch.equal(one, other)
    bound = carried(named("ddpm", {}), half, x, levels, noise, gamma(ROUNDINGS))
    assert_within(third, exact(one), 0, 1, plus=exact(2 * bound))
    plain = testbed.sample(half, x, levels, "euler")
    assert torch.equal(testbed.sample(half, x, levels, "ddim"), plain)


# --- what a sampler is given ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_generator_is_asked_for_where_noise_is_drawn(name: str, options: dict[str, Any]) -> None:
    sampler, x = named(name, options), draws((2, 2), 0)
    quiet = options in ({"eta": 0.0}, {}) if name == "ddim" else options == {"eta": 0.0}
    assert sampler.deterministic == (quiet or name not in GAINS)
    if sampler.deterministic:
        with noises([]) as taken:
            testbed.sample(half, x, [2.0, 1.0, 0.0], sampler)
        assert taken == [0]
        return
    with pytest.raises(InputError, match=f"sampler '{name}' draws noise: give generator"):
        testbed.sample(half, x, [2.0, 1.0, 0.0], sampler)
    one, other = (testbed.sample(half, x, [2.0, 1.0, 0.0], sampler, stream(0, "a")) for _ in "ab")
    assert torch.equal(one, other)


def test_plain_euler_and_heun_are_deterministic() -> None:
    for name in ("euler", "heun"):
        assert named(name, {}).deterministic
        assert not named(name, {"churn": 1.0}).deterministic


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ddim", {"eta": 1.5}, "eta = 1.5 must be at least 0 and at most 1 (default 0.0)."),
        ("dpmpp_sde", {"eta": -0.1}, "eta = -0.1 must be at least 0 and at most 1 (default 1.0)."),
        ("euler", {"churn": -1.0}, "churn = -1.0 must be at least 0 and finite (default 0.0)."),
        ("lms", {"order": 0}, "order = 0 must be at least 1."),
        ("ddpm", {"variance": "smal"}, "Did you mean 'small'? Known: large, learned, small."),
    ],
)
def test_an_option_without_meaning_is_refused(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        testbed.sample(half, draws((2, 2), 0), [2.0, 1.0], named(name, options), stream(0, "a"))
    assert said in str(refused.value)


def test_the_option_of_the_noise_must_be_one() -> None:
    def step(
        denoise: Any, x: Any, s: Any, t: Any, generator: Any, history: Any, eta: float = 0.0
    ) -> Any:
        return x

    with pytest.raises(InputError, match=r"option 'etta'\. Did you mean 'eta'"):
        testbed.Sampler("mine", step, noise="etta")


def test_a_step_may_ask_how_many_there_are() -> None:
    def step(denoise: Any, x: Any, s: Any, t: Any, generator: Any, history: Any, steps: int) -> Any:
        return x + steps

    x = torch.zeros(1, 1)
    found = testbed.sample(half, x, [3.0, 2.0, 1.0, 0.5], testbed.Sampler("mine", step))
    assert float(found) == 9


@pytest.mark.slow
def test_a_progress_bar_counts_the_steps_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    x, levels = draws((2, 2), 0), [4.0, 2.0, 1.0, 0.0]
    plain = testbed.sample(half, x, levels, "euler")
    assert capsys.readouterr() == ("", "")
    shown = testbed.sample(half, x, levels, "euler", progress=True)
    out, err = capsys.readouterr()
    assert torch.equal(plain, shown)
    assert out == ""
    assert "euler" in err
    assert "100%" in err


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2,), (2, 1, 4, 4)])
def test_dtype_and_shape_are_kept(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = draws(shape, 0, dtype)
    before = x.clone()
    found = testbed.sample(half, x, [4.0, 2.0, 1.0, 0.0], name, stream(0, "a"))
    assert (found.dtype, found.shape, found.device) == (dtype, x.shape, x.device)
    assert torch.equal(x, before), "the start was changed in place"
