"""Laws of the integrals over the noise levels: KL, entropy and mutual information.

A law is a function of the module, which passes for ours and fails for its mutants.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.strategies import float64
from laws.information import (
    P,
    Q,
    U,
    grid,
    kl,
    law_a_sign_is_one_bit,
    law_entropy_of_a_gaussian,
    law_entropy_of_a_mixture,
    law_errors_of_levels_add,
    law_mismatched_gaussians,
    law_the_step_is_the_rule_s_error,
    mismatch,
    mixed,
    one_dimensional,
)

from testbed import oracles
from testbed.errors import InputError
from testbed.metrics import denoising, information
from testbed.sampling.likelihood import levels, log_likelihood

# --- KL ------------------------------------------------------------------------------------------


def test_mismatched_gaussians() -> None:
    law_mismatched_gaussians(information)


def test_the_mismatch_is_the_excess_risk_of_the_oracles() -> None:
    """The closed form above against the oracles, over draws, within five standard errors."""
    p, q = (oracles.Gaussian(float64(m), torch.diag(float64(a))) for m, a in (P, Q))
    n = 20_000
    x0 = p.sample(n, torch.Generator().manual_seed(1))
    eps = torch.randn(n, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for sigma in (0.05, 0.5, 5.0):
        x = x0 + sigma * eps
        off = (q.denoise(x, sigma) - p.denoise(x, sigma)).square().mean(1)
        error = float(off.std()) / math.sqrt(n)
        assert abs(float(off.mean()) - float(mismatch(np.array([sigma]))[0])) < 5 * error


@pytest.mark.slow
def test_the_gap_of_the_ode_is_the_bound_where_that_is_an_equality() -> None:
    """log p - log q along the flow of D_q, in the mean over p_0, is the integral of the excess."""
    p, q = (oracles.Gaussian(float64(m), torch.diag(float64(a))) for m, a in (P, Q))
    n, low, high = 2000, 0.05, 50.0
    generator = torch.Generator().manual_seed(1)
    x = p.sample(n, generator)
    x = x + low * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    flow = [log_likelihood(q.denoise, x, levels(k, low, high), q.log_density).log_p
            for k in (64, 128)]  # fmt: skip
    gap = p.log_density(x, low) - flow[1]
    sigma = grid(low, high, 2001)
    bound = information.kl_bound(sigma, mismatch(sigma), 3)
    noise, ode = float(gap.std()) / math.sqrt(n), float((flow[1] - flow[0]).abs().max()) / 3
    assert abs(float(gap.mean()) - bound.value) < 5 * noise + 2 * ode + 2 * bound.step + kl(high)


# --- entropy -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [law_entropy_of_a_gaussian, law_entropy_of_a_mixture, law_a_sign_is_one_bit,
     law_the_step_is_the_rule_s_error, law_errors_of_levels_add],
)  # fmt: skip
def test_integrals(law: Any) -> None:
    law(information)


def test_the_entropy_from_drawn_mmse_is_within_its_error() -> None:
    """oracle.mmse of a mixture is Monte Carlo with the same draws at every level: errors add."""
    oracle, v = one_dimensional()
    sigma = grid(0.05, 60.0, 81)
    mmse = oracle.mmse(torch.from_numpy(sigma), draws=2000)
    found = information.entropy(sigma, mmse.value, 1, v, mmse.error)
    assert 0 < found.error < 0.2
    assert abs(found.value - mixed(0.05)[1]) < 4 * found.error + 2 * found.step


def test_a_model_s_loss_bounds_the_entropy_by_its_excess() -> None:
    """loss = mmse + excess: the difference of the two entropies is the KL bound, to rounding."""
    sigma = grid(0.01, 50.0, 33)
    mmse, excess = sigma**2 / (1 + sigma**2), 0.01 * sigma**2 / (1 + sigma**4)
    over = information.entropy(sigma, mmse + excess, 5, 1.0)
    exact = information.entropy(sigma, mmse, 5, 1.0)
    bound = information.kl_bound(sigma, excess, 5)
    size = abs(over.value) + 5 * math.log(5000)
    assert over.value - exact.value == pytest.approx(bound.value, abs=200 * U * size)


def test_the_summary_of_a_curve_has_the_same_bound() -> None:
    sigma = grid(0.01, 50.0, 16)
    table = pd.DataFrame(
        {"sigma": sigma, "loss": 1.0, "wiener": 1.0, "excess": sigma / (1 + sigma**4)}
    )
    bound = information.kl_bound(table["sigma"], table["excess"], 7)
    assert denoising.summary(table, 7)["excess_nats"].value == bound.value


@pytest.mark.parametrize(
    ("sigma", "values"),
    [([1.0], [1.0]), ([1.0, 1.0], [1.0, 1.0]), ([2.0, 1.0], [1.0, 1.0]), ([0.0, 1.0], [1.0, 1.0]),
     ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 1.0])],
)  # fmt: skip
def test_what_is_no_curve_is_refused(sigma: list[float], values: list[float]) -> None:
    with pytest.raises(InputError, match="ascend from above 0"):
        information.kl_bound(sigma, values, 2)


@pytest.mark.parametrize("v", [0.0, -1.0, math.inf, math.nan])
def test_no_entropy_without_a_variance(v: float) -> None:
    with pytest.raises(InputError, match="must be positive and finite"):
        information.entropy([1.0, 2.0], [0.1, 0.2], 2, v)
