"""The audit: every registered parameterization passes; each mutant fails the law meant for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import testbed
from testbed import audit
from testbed.audit.reference import mixture
from testbed.audit.rows import gamma
from testbed.oracles import Gaussian

REGISTRY = testbed.Registry()
NAMES = REGISTRY.names("parameterization")
SAMPLERS = [REGISTRY.sampler(name) for name in REGISTRY.names("sampler")]
TARGET = "target of the oracle gives its denoiser"
TWEEDIE = "Tweedie: D = x + sigma^2 grad log p"
SCORE = "score: (D - x)/sigma^2 = grad log p"


@pytest.mark.slow
@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 10.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_registered_parameterization_passes(name: str, sigma_data: float) -> None:
    rows = audit.check_parameterization(REGISTRY.parameterization(name), sigma_data)
    assert rows
    assert all(row.passed for row in rows), audit.table(rows).query("not passed")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [2, 8])
def test_every_parameterization_passes_on_embedded_data(name: str, dim: int) -> None:
    data = REGISTRY.dataset("mixture", dim=dim, n=64, test=64)()
    rows = audit.check_parameterization(REGISTRY.parameterization(name), 0.5, data.oracle)
    assert all(row.passed for row in rows), audit.table(rows).query("not passed")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_trajectory_agrees_by_x0_and_by_score(name: str) -> None:
    rows = audit.check_sampler(REGISTRY.parameterization(name), 0.5, SAMPLERS)
    assert {row.law for row in rows} >= {
        f"trajectory by x0 and by score: {sampler.name}" for sampler in SAMPLERS
    }
    assert all(row.passed for row in rows), audit.table(rows).query("not passed")


@pytest.mark.slow
def test_the_two_sides_of_tweedie_are_not_one_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong oracle.denoise must show, though its log-density is right; and the other way."""
    oracle = mixture()
    right = type(oracle).denoise
    monkeypatch.setattr(
        type(oracle), "denoise", lambda self, x, sigma: 1.001 * right(self, x, sigma)
    )
    rows = audit.check_parameterization(REGISTRY.parameterization("eps"), 0.5)
    assert TARGET in {row.law for row in rows if not row.passed}


def variant(
    skip: Callable, out: Callable, target: Callable, name: str = "mutant"
) -> testbed.Parameterization:
    def scaling(sigma):  # type: ignore[no-untyped-def]
        one = torch.ones_like(sigma)
        return testbed.Coefficients(skip(sigma) * one, out(sigma) * one, one, sigma)

    return testbed.Parameterization(name=name, scaling=scaling, target=target)


def alpha(sigma: torch.Tensor) -> torch.Tensor:
    return 1 / torch.sqrt(1 + sigma**2)


MUTANTS = {
    "eps with the sign of c_out flipped": variant(
        lambda s: 1, lambda s: s, lambda x0, eps, sigma: eps
    ),
    "eps with c_out squared": variant(lambda s: 1, lambda s: -(s**2), lambda x0, eps, sigma: eps),
    "eps with alpha for sigma": variant(
        lambda s: 1, lambda s: -s * alpha(s), lambda x0, eps, sigma: eps
    ),
    "score without the minus": variant(
        lambda s: 1, lambda s: s**2, lambda x0, eps, sigma: eps / sigma
    ),
    "score with sigma for sigma^2": variant(
        lambda s: 1, lambda s: s, lambda x0, eps, sigma: -eps / sigma
    ),
    "v of the other sign": variant(
        lambda s: alpha(s) ** 2,
        lambda s: -s * alpha(s),
        lambda x0, eps, sigma: sigma * alpha(sigma) * x0 - alpha(sigma) * eps,
    ),
    "v with c_skip alpha for alpha^2": variant(
        lambda s: alpha(s),
        lambda s: -s * alpha(s),
        lambda x0, eps, sigma: alpha(sigma) * eps - sigma * alpha(sigma) * x0,
    ),
    "x0 scaled by one part in a million": variant(
        lambda s: 0, lambda s: 1 + 1e-6, lambda x0, eps, sigma: x0
    ),
    "flow with t for 1 - t": variant(
        lambda s: s / (1 + s), lambda s: -s / (1 + s), lambda x0, eps, sigma: eps - x0
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_parameterization_fails_its_laws(name: str) -> None:
    """Scaling and target are stated apart, so that a wrong one of them breaks all four laws."""
    rows = audit.check_parameterization(MUTANTS[name], 0.5)
    laws = {row.law for row in rows if not row.passed}
    assert TARGET in laws
    assert TWEEDIE in laws
    assert SCORE in laws


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_parameterization_fails_in_every_trajectory(name: str) -> None:
    rows = audit.check_sampler(MUTANTS[name], 0.5, SAMPLERS)
    broken = {row.law for row in rows if not row.passed}
    assert {f"trajectory by x0 and by score: {sampler.name}" for sampler in SAMPLERS} <= broken


@pytest.mark.slow
def test_a_target_with_a_shift_fails() -> None:
    shifted = variant(lambda s: 0, lambda s: 1, lambda x0, eps, sigma: x0 + 1e-3)
    assert TARGET in {
        row.law for row in audit.check_parameterization(shifted, 0.5) if not row.passed
    }


@pytest.mark.slow
def test_nan_fails() -> None:
    broken = variant(lambda s: 0, lambda s: 1, lambda x0, eps, sigma: x0 * float("nan"))
    rows = audit.check_parameterization(broken, 0.5)
    assert {TARGET, TWEEDIE, SCORE} <= {row.law for row in rows if not row.passed}


@pytest.mark.slow
def test_a_parameterization_that_is_not_affine_is_checked_and_says_what_is_not() -> None:
    warped = testbed.Parameterization(
        name="warped",
        target=lambda x0, eps, sigma: torch.asinh(x0),
        denoise=lambda F, x, sigma: torch.sinh(F),
    )
    rows = audit.check_parameterization(warped, 0.5)
    assert all(row.passed for row in rows), audit.table(rows).query("not passed")
    assert {row.reason for row in rows} == {"", "not affine: no bound is derived"}
    wrong = testbed.Parameterization(
        name="warped",
        target=lambda x0, eps, sigma: torch.asinh(x0),
        denoise=lambda F, x, sigma: torch.sinh(F) + 1e-6,
    )
    assert TARGET in {row.law for row in audit.check_parameterization(wrong, 0.5) if not row.passed}


class Linear(torch.nn.Module):
    """A network with weights of its own, so that a trained model's laws are not about zero."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.4, 0], [0, -1, 0.7]]))

    def forward(self, x, c_noise, condition=None):  # type: ignore[no-untyped-def]
        return x @ self.A + torch.tanh(c_noise)[:, None]


def model_rows(denoiser: testbed.Denoiser) -> list[audit.LawCheck]:
    generator = torch.Generator().manual_seed(3)
    sigma = torch.logspace(-3, 2, 24)
    x0, eps = (torch.randn(24, 3, generator=generator) + shift for shift in (0.4, 0.0))
    return audit.check_model(denoiser, x0, eps, sigma)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_agrees_with_its_score_from_F(name: str) -> None:
    rows = model_rows(testbed.Denoiser(Linear(), REGISTRY.parameterization(name), 0.7))
    assert len(rows) == 24
    assert all(row.passed for row in rows), audit.table(rows).query("not passed")


@pytest.mark.parametrize("factor", [-1.0, 1.001])
def test_a_model_with_a_wrong_score_fails(factor: float) -> None:
    class Wrong(testbed.Denoiser):
        def score(self, x, sigma, condition=None):  # type: ignore[no-untyped-def]
            return factor * super().score(x, sigma, condition)

    rows = model_rows(Wrong(Linear(), REGISTRY.parameterization("v"), 0.7))
    assert any(not row.passed for row in rows)


@pytest.mark.parametrize("k", [1, 8, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gamma_is_k_u_over_one_minus_k_u(k: int, dtype: torch.dtype) -> None:
    u = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}[dtype]
    assert gamma(k, dtype) == k * u / (1 - k * u)


@pytest.mark.slow
def test_the_bound_is_not_larger_than_a_visible_effect() -> None:
    """Vacuous passes: the Tweedie bound stays 9 decades below the size of x."""
    for name in NAMES:
        for row in audit.check_parameterization(REGISTRY.parameterization(name), 0.5):
            if row.law == TWEEDIE:
                assert row.bound < 1e-9 * (2 + row.sigma)


@pytest.mark.slow
def test_a_gaussian_oracle_is_as_good() -> None:
    S = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.5, 0.1], [0.0, 0.1, 0.2]]).double()
    oracle = Gaussian(torch.tensor([1.0, -2.0, 0.5]).double(), S)
    for name in NAMES:
        rows = audit.check_parameterization(REGISTRY.parameterization(name), 0.5, oracle)
        rows += audit.check_sampler(REGISTRY.parameterization(name), 0.5, SAMPLERS, oracle)
        assert all(row.passed for row in rows), audit.table(rows).query("not passed")


def test_the_table_counts_a_nan_ratio_as_failed_unless_there_is_a_reason() -> None:
    nan = float("nan")
    row = audit.LawCheck("law", "subject", 1.0, "float64", nan, nan, nan)
    assert not row.passed
    assert audit.LawCheck("law", "subject", 1.0, "", nan, nan, nan, "because").passed
    assert list(audit.table([row]).passed) == [False]
