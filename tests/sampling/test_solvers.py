"""Laws of the samplers: the probability-flow ODE dx/dsigma = (x - D)/sigma."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact
from helpers.strategies import draws, float64
from laws.solvers import (
    SGM,
    STEPS,
    Denoise,
    half,
    law_converges_with_order,
    law_denoiser_is_never_called_at_zero,
    law_euler_is_ddim,
    law_step_is_the_formula,
    law_trajectory_is_stability,
    mixture,
    trajectory,
)
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.errors import InputError, UnknownName
from testbed.registry import default_registry


def named(name: str) -> testbed.Sampler:
    return default_registry().sampler(name)


# --- one step ------------------------------------------------------------------------------------


LEVELS = [(1.0, 0.5), (80.0, 57.6), (0.01, 0.002), (3.0, 2.9), (0.5, 0.0)]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("high", "low"), LEVELS)
def test_step_is_the_formula(name: str, high: float, low: float) -> None:
    law_step_is_the_formula(named(name), name, low, high)


# --- whole trajectories against other libraries --------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_trajectory_is_stability(name: str) -> None:
    law_trajectory_is_stability(testbed.sample, name)


@pytest.mark.parametrize("name", STEPS)
def test_legacy_trajectory_is_stability(name: str) -> None:
    """To 1e-6, relative to the data's size: its levels carry float32 error (README there)."""
    oracle, levels = mixture(SGM), SGM["discretization"]["legacy_ddpm"]["18"]
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    found = testbed.sample(oracle.denoise, x, levels, sampler=name)
    wanted = np.array(SGM["sampler"]["legacy_ddpm"][name])
    assert_within(found, wanted, 0, 1, plus=1e-6 * np.abs(wanted).max())


def test_euler_is_ddim() -> None:
    law_euler_is_ddim(testbed.sample)


@pytest.mark.parametrize("sampler", STEPS)
def test_one_oracle_has_one_trajectory_in_every_parameterization(sampler: str) -> None:
    """D = c_skip x + c_out F with F the oracle's output in each parameterization: one trajectory,
    within the running bound; output and denoise add less than the oracle's own 30 roundings."""
    oracle, levels = mixture(SGM), karras_sigmas(18).tolist()
    x = float64(SGM["x_unit"]) * math.sqrt(1 + levels[0] ** 2)
    _, bound = trajectory(sampler, oracle, x, levels, [0.0] * len(levels))
    wanted = exact(testbed.sample(oracle.denoise, x, levels, sampler=sampler))
    for name in ("eps", "v", "edm", "x0", "score"):
        p = default_registry().parameterization(name)

        def denoise(x: Tensor, sigma: Tensor, p: testbed.Parameterization = p) -> Tensor:
            F = p.output(oracle.denoise(x, sigma), x, sigma, sigma_data=0.5)
            return p.denoise(F, x, sigma, sigma_data=0.5)

        found = testbed.sample(denoise, x, levels, sampler=sampler)
        assert_within(found, wanted, 0, 1, plus=exact(2 * bound))


# --- the exact solution --------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_converges_with_order(name: str, order: int) -> None:
    law_converges_with_order(named(name), order)


@pytest.mark.parametrize("name", STEPS)
def test_data_of_one_point_are_found_in_one_step(name: str) -> None:
    """D = y whatever x: the flow is a straight line to y, exact in one step to 0."""
    y = draws((1, 3), 3)
    x = y + 80 * draws((4, 3), 4)
    found = testbed.sample(lambda x, sigma: y.expand_as(x), x, [80.0, 0.0], sampler=name)
    assert_within(found, exact(y.expand(4, 3)), exact(x.abs() + y.abs()), 5)


# --- the loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_denoiser_is_never_called_at_zero(name: str) -> None:
    law_denoiser_is_never_called_at_zero(named(name))


@pytest.mark.parametrize("name", STEPS)
def test_a_last_step_to_zero_ends_at_D(name: str) -> None:
    """x + (0 - sigma)(x - D)/sigma = D: 4 roundings of |x| and |D|."""
    x, D = draws((4, 3), 0), draws((4, 3), 1)
    found = testbed.sample(lambda x, sigma: D, x, [0.5, 0.0], sampler=name)
    assert_within(found, exact(D), exact(x.abs() + D.abs()), 4)


def test_heun_takes_two_calls_a_step_and_one_to_zero() -> None:
    calls: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma[0]))
        return x / 2

    testbed.sample(denoise, draws((1, 1), 0), [2.0, 1.0, 0.0], sampler="heun")
    assert calls == [2.0, 1.0, 1.0]
    calls.clear()
    testbed.sample(denoise, draws((1, 1), 0), [2.0, 1.0, 0.0], sampler="euler")
    assert calls == [2.0, 1.0]


BAD = {
    "ascending": [1.0, 2.0],
    "equal": [1.0, 1.0],
    "negative": [1.0, -0.5],
    "zero inside": [1.0, 0.0, 0.0],
    "not a number": [float("nan"), 0.5],
    "ends in nan": [1.0, float("nan")],
    "infinite": [float("inf"), 1.0],
    "none": [],
}


@pytest.mark.parametrize("levels", BAD.values(), ids=BAD)
def test_levels_must_descend_to_zero_or_above(levels: list[float]) -> None:
    with pytest.raises(InputError, match="sigmas must descend"):
        testbed.sample(half, draws((1, 2), 0), levels)


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (3, "[1, 2, 3] (3 levels)."),
        (4, "[1, 2, 3, 4] (4 levels)."),
        (5, "[1, 2, 3, 4, ...] (5 levels)."),
        (1000, "[1, 2, 3, 4, ...] (1000 levels)."),
    ],
)
def test_a_refusal_shows_the_first_levels(n: int, shown: str) -> None:
    with pytest.raises(InputError) as refused:
        testbed.sample(half, draws((2, 2), 1), list(range(1, n + 1)))
    assert str(refused.value).endswith(shown)


def test_one_level_is_no_step() -> None:
    x = draws((2, 2), 0)
    assert torch.equal(testbed.sample(half, x, [1.0]), x)


def test_unknown_sampler_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'euler'"):
        testbed.sample(half, draws((1, 2), 0), [1.0, 0.0], sampler="eular")


def test_callback_sees_every_state_before_its_step() -> None:
    x, levels = draws((2, 2), 0), [4.0, 2.0, 1.0, 0.0]
    seen: list[tuple[int, float, Tensor]] = []
    end = testbed.sample(
        half, x, levels, sampler="euler", callback=lambda i, s, x: seen.append((i, s, x))
    )
    assert [(i, s) for i, s, _ in seen] == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert torch.equal(seen[0][2], x)
    for i in range(3):
        after = seen[i + 1][2] if i < 2 else end
        step = testbed.sample(half, seen[i][2], levels[i : i + 2], sampler="euler")
        assert torch.equal(step, after)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 1, 4, 4)])
def test_dtype_and_shape_are_kept(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = draws(shape, 0, dtype)
    before = x.clone()
    found = testbed.sample(half, x, [2.0, 1.0, 0.0], sampler=name)
    assert (found.dtype, found.shape, found.device) == (dtype, x.shape, x.device)
    assert torch.equal(x, before), "the start was changed in place"


def test_sigmas_as_a_tensor_or_a_list() -> None:
    x = draws((2, 2), 0)
    levels = karras_sigmas(5)
    assert torch.equal(testbed.sample(half, x, levels), testbed.sample(half, x, levels.tolist()))


def noisy(
    denoise: Denoise, x: Tensor, sigma: float, sigma_next: float, generator: Any, history: Any
) -> Tensor:
    history.append(sigma)
    return x + sigma_next * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def test_a_stochastic_sampler_asks_for_a_generator() -> None:
    sampler = testbed.Sampler("noisy", noisy, deterministic=False)
    x = draws((2, 2), 0)
    with pytest.raises(InputError, match="generator"):
        testbed.sample(half, x, [1.0, 0.5], sampler=sampler)
    one, other = (
        testbed.sample(half, x, [1.0, 0.5], sampler, torch.Generator().manual_seed(s))
        for s in (0, 0)
    )
    assert torch.equal(one, other)
