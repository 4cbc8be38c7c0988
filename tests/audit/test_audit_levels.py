"""The audit, level by level: right ones pass every law, effects have their known sizes."""

from __future__ import annotations

import json
import math
from unittest import mock

import pytest
import torch
from helpers.paths import FIXTURES
from helpers.strategies import float64
from hypothesis import given, settings
from hypothesis import strategies as st
from laws.audit import SELF_TESTS, everywhere
from scipy import stats
from torch import Tensor

import testbed
from testbed import audit
from testbed.audit import (
    Effect,
    algebra,
    curvature,
    driver,
    exact,
    learning,
    reference,
    rows,
    trajectories,
)
from testbed.audit.render import VARIANT
from testbed.audit.subject import ParameterizedDenoiser
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.errors import InputError, UnknownName
from testbed.plugin_files import import_file
from testbed.random import stream

REGISTRY = testbed.Registry()
NAMES = REGISTRY.names("parameterization")
SAMPLERS = [REGISTRY.sampler(name) for name in ("euler", "heun")]
STEPS = karras_sigmas(8)[:-1]
NOT_AFFINE = "not affine: no bound is derived"
WIDE = (torch.float64, torch.float32)


def failed(found: list[rows.LawCheck]) -> set[tuple[str, float, str]]:
    assert found
    return {(row.law, row.sigma, row.dtype) for row in found if not row.passed}


def every_law(
    subject: ParameterizedDenoiser, dtypes: tuple[torch.dtype, ...] = driver.DTYPES
) -> list[rows.LawCheck]:
    """All five levels; the ODE, the slowest, on the Gaussian alone."""
    found = subject.algebra(dtypes)
    for oracle in subject.data().values():
        found += exact.check(subject, oracle, dtypes)
        found += curvature.check(subject, oracle)
        found += learning.check(subject, oracle, 512)
    return [
        *found,
        *trajectories.check(subject, reference.mixture(), SAMPLERS, inside(subject, STEPS)),
        *trajectories.check_ode(subject, reference.gaussian()),
    ]


def inside(subject: ParameterizedDenoiser, sigmas: Tensor) -> Tensor:
    low, high = subject.p.sigma_range
    return sigmas[(sigmas > low) & (sigmas < high)]


def companded() -> testbed.Parameterization:
    """The non-affine one of the fixtures."""
    (found,) = import_file(str(FIXTURES / "companded.py")).testbed_parameterizations()
    return found


# --- what is right passes ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 10.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_registered_parameterization_obeys_every_law(name: str, sigma_data: float) -> None:
    found = every_law(ParameterizedDenoiser(REGISTRY.parameterization(name), sigma_data))
    assert failed(found) == set()
    assert not any(row.reason for row in found)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    st.sampled_from(NAMES),
    st.floats(-2, 2).map(lambda e: 10.0**e),
    st.lists(st.floats(-4, 4).map(lambda e: 10.0**e), min_size=1, max_size=5, unique=True),
)
def test_at_any_sigma_data_and_any_levels(
    name: str, sigma_data: float, levels: list[float]
) -> None:
    p = REGISTRY.parameterization(name)
    sigma = torch.tensor(levels, dtype=torch.float64)
    assert failed(algebra.check(p, sigma_data, sigma, WIDE, samples=4)) == set()
    subject = ParameterizedDenoiser(p, sigma_data)
    subject.levels = sigma
    assert failed(exact.check(subject, reference.mixture(), WIDE)) == set()


@pytest.mark.slow
@settings(max_examples=15)
@given(st.floats(0.1, 10))
def test_a_non_affine_one_obeys_what_can_be_checked(c: float) -> None:
    found = every_law(ParameterizedDenoiser(companded().bound({"c": c}), 0.5), WIDE)
    assert failed(found) == set()
    assert {row.reason for row in found} == {"", NOT_AFFINE}
    checked = {row.law for row in found if not row.reason}
    assert {algebra.CONSISTENT, algebra.LIMITS, exact.TARGET, curvature.COVARIANCE} <= checked


@pytest.mark.slow
@pytest.mark.parametrize("sigma_range", [(0.002, math.inf), (0.0, 80.0), (0.002, 80.0)])
def test_a_range_of_sigma_is_kept_to(sigma_range: tuple[float, float]) -> None:
    """NaN outside of the range: no law may look there."""
    low, high = sigma_range
    v = REGISTRY.parameterization("v")

    def scaling(sigma: Tensor) -> testbed.Coefficients:
        outside = (sigma <= low) | (sigma >= high)
        found = v.coefficients(sigma)
        return testbed.Coefficients(*(torch.where(outside, math.nan, c) for c in found))

    p = testbed.Parameterization("ranged", scaling, target=v.stated_target, sigma_range=sigma_range)
    found = every_law(ParameterizedDenoiser(p, 0.5), (torch.float64,))
    assert failed(found) == set()
    assert all(low < row.sigma < high for row in found if not math.isnan(row.sigma))
    assert {row.law for row in found} >= {algebra.LIMITS, exact.TWEEDIE, trajectories.ODE}


@pytest.mark.slow
def test_a_run_has_every_level_its_table_and_its_notes() -> None:
    found = audit.run("edm")
    assert found.passed
    assert found.findings == ()
    note = "trigflow is the same objective at sigma_data = 0.5: its F is -1 times this one's."
    assert found.notes == (note,)
    table = found.table()
    first = ["part", "law", "subject", "data", "sigma", "dtype"]
    assert list(table.columns) == [*first, "error", "bound", "ratio", "reason", "passed"]
    assert set(table["part"]) == set(driver.PARTS)
    assert set(table["dtype"]) == {"float64", "float32", "bfloat16"}
    assert set(table["data"]) == {"", "mixture", "gaussian", "empirical"}
    assert (table["error"] <= table["bound"])[table["bound"].notna()].all()
    laws = found.laws()
    assert laws["checks"].sum() == len(table) == laws["held"].sum()


@pytest.mark.slow
@pytest.mark.parametrize("level", driver.PARTS)
def test_one_level_alone(level: str) -> None:
    found = audit.run("v", parts=[level], oracle=reference.gaussian())
    assert {row.part for row in found.rows} == {level}
    assert found.passed


# --- what counts as passed -----------------------------------------------------------------------


def test_nothing_that_could_be_checked_is_no_pass() -> None:
    left_out = rows.skipped("law", "subject", "because")
    assert not driver.Audit("subject", ()).passed
    assert not driver.Audit("subject", (left_out,)).passed
    assert not audit.run("edm", parts=[]).passed


def test_nan_passes_nowhere() -> None:
    """On either side, in the bound, and with an infinity on both sides."""
    sigma, one = torch.ones(2).double(), torch.ones(2, 3).double()
    nan, inf = one * math.nan, one * math.inf
    for first, second, bound in [
        (nan, one, one),
        (one, nan, one),
        (nan, nan, one),
        (2 * one, one, nan),
        (inf, inf, one),
        (inf, one, inf),
    ]:
        (row,) = rows.rows("law", "subject", sigma, first, second, bound)
        assert not row.passed
        assert row.ratio == math.inf


def test_equal_sides_need_no_bound_and_unequal_ones_exceed_a_bound_of_zero() -> None:
    sigma, one = torch.ones(2).double(), torch.ones(2, 3).double()
    assert rows.rows("law", "subject", sigma, one, one, 0 * one)[0].passed
    assert not rows.rows("law", "subject", sigma, one, one + 1e-16 + 2**-50, 0 * one)[0].passed


def test_a_row_is_the_worst_of_its_level() -> None:
    sigma = float64([2.0, 1.0, 2.0, 1.0])
    second, bound = torch.zeros(4, 2).double(), torch.ones(4, 2).double()
    first = float64([[0.1, 0.2], [0.3, -0.7], [-3.0, 0.0], [0.6, 0.5]])
    bound[2] = 6.0
    low, high = rows.rows("law", "subject", sigma, first, second, bound)
    assert (low.sigma, low.error, low.bound, low.ratio) == (1.0, 0.7, 1.0, 0.7)
    assert (high.sigma, high.error, high.bound, high.ratio) == (2.0, 3.0, 6.0, 0.5)


@pytest.mark.slow
def test_no_bound_of_any_law_reaches_a_thousandth_of_what_is_compared() -> None:
    """Against vacuous passes: float64, level by level, beside the largest of the second side.

    A Jacobian may vanish, where a posterior has one point: then beside 1/(1 + sigma^2), that of
    data of unit variance; and what ought to be 0 beside 1.
    """
    right, worst = rows.rows, dict[str, float]()
    powers = {curvature.COVARIANCE: 2, curvature.SYMMETRIC: 0, curvature.POSITIVE: 0}

    def watched(law, subject, sigma, first, second, bound, dtype=None):  # type: ignore[no-untyped-def]
        for level in torch.unique(sigma):
            chosen, s = sigma == level, float(level)
            size = float(second[chosen].abs().max())
            if law in powers:
                size = max(size, s ** powers[law] / (1 + s**2))
            limit = float(bound.expand_as(first)[chosen].abs().max())
            key = VARIANT.sub("", law)
            worst[key] = max(worst.get(key, 0.0), limit / (size or 1.0))
        return right(law, subject, sigma, first, second, bound, dtype)

    with everywhere("rows", watched):
        for name in NAMES:
            found = every_law(ParameterizedDenoiser(REGISTRY.parameterization(name), 0.5), WIDE[:1])
            assert failed(found) == set()
    assert len(worst) >= 14
    assert {law: ratio for law, ratio in worst.items() if not 0 < ratio < 1e-3} == {}


# --- effects -------------------------------------------------------------------------------------


def by_name(found: list[Effect] | tuple[Effect, ...], name: str) -> list[Effect]:
    chosen = [effect for effect in found if effect.name == name]
    assert chosen
    return chosen


@pytest.mark.parametrize("delta", [1e-3, 0.5])
def test_a_constant_error_has_its_square_as_excess(delta: float) -> None:
    """D* + delta: excess = delta^2, Fisher divergence = d delta^2/sigma^4.

    The sum D* + delta rounds by u |D* + delta|, which moves delta^2 by 2 delta times that; 3 more
    roundings, and n of the mean.
    """
    oracle, d, n = reference.mixture(), 3, 512
    held = oracle.sample(n, stream(0, "held"))
    sigmas = torch.logspace(-2, 2, 5, dtype=torch.float64)
    found = learning.measure(
        lambda x, sigma: oracle.denoise(x, sigma) + delta,
        "off",
        held,
        sigmas,
        oracle,
        stream(0, "noise"),
        jacobians=0,
    )
    u = torch.finfo(torch.float64).eps / 2
    relative = 2 * u * (5 + delta) / delta + rows.gamma(3 * n, torch.float64)
    for effect in by_name(found, "excess risk"):
        assert abs(effect.value - delta**2) <= relative * delta**2
    for effect in by_name(found, "Fisher divergence"):
        known = d * delta**2 / effect.sigma**4
        assert abs(effect.value - known) <= (relative + 8 * u) * known
        assert effect.unit == "nats"


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """(1 + c) D* on a Gaussian: excess = c^2 (|m|^2 + sum L^2/(L + sigma^2))/d, 300 times.

    At a true coverage of 95 % fewer than the smallest accepted number occur once in 10,000.
    """
    oracle, c, sigma, runs = reference.gaussian(), 0.2, 0.8, 300
    L = oracle.L
    power = float(oracle.m.square().sum() + (L**2 / (L + sigma**2)).sum()) / 3
    known = {
        "excess risk": c**2 * power,
        "Fisher divergence": 3 * c**2 * power / sigma**4,
        "loss - excess risk - posterior variance": 0.0,
    }
    hits = dict.fromkeys(known, 0)
    for seed in range(runs):
        held = oracle.sample(256, stream(seed, "held"))
        found = learning.measure(
            lambda x, s: (1 + c) * oracle.denoise(x, s),
            "scaled",
            held,
            float64([sigma]),
            oracle,
            stream(seed, "noise"),
            jacobians=0,
        )
        for name, value in known.items():
            (effect,) = by_name(found, name)
            hits[name] += effect.low <= value <= effect.high
    least = stats.binom.ppf(1e-4, runs, 0.95)
    assert min(hits.values()) >= least, hits
    assert max(hits.values()) < runs, "an interval that never misses is too wide"


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0.05, 20))
def test_the_asymmetry_of_a_linear_model_is_that_of_its_matrix(seed: int, level: float) -> None:
    """D = (S + W) x, W = -W^T: |J - J^T|/|J + J^T| = |W|/|S|, and 2 |W|/sigma^2."""
    M = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    S, W = (M + M.mT) / 2, (M - M.mT) / 2
    held = torch.randn(8, 4, generator=stream(seed, "held"), dtype=torch.float64)
    found = learning.measure(
        lambda x, sigma: x @ M.mT,
        "linear",
        held,
        float64([level]),
        None,
        stream(seed, "noise"),
    )
    (asymmetry,), (curl,) = (
        by_name(found, name) for name in ("asymmetry of dD/dx", "curl of the score")
    )
    # Two entries of size |M| subtracted, squared, summed and averaged: 32 roundings.
    unit = rows.gamma(32, torch.float64) * float(M.norm())
    size = float(W.norm() / S.norm())
    assert abs(asymmetry.value - size) <= unit * (1 + size) / float(S.norm())
    known = 2 * float(W.norm()) / level**2
    assert abs(curl.value - known) <= 2 * unit / level**2
    assert {effect.name for effect in found} == {"loss", asymmetry.name, curl.name}


# --- trained models ------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """A network with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor([[0.3, -0.2, 0.1], [0.5, 0.4, 0], [0, -1, 0.7]]))

    def forward(self, x: Tensor, c_noise: Tensor, condition: object = None) -> Tensor:
        return x @ self.A + torch.tanh(c_noise)[:, None]


EFFECTS = {
    "loss",
    "excess risk",
    "Fisher divergence",
    "loss - excess risk - posterior variance",
    "asymmetry of dD/dx",
    "curl of the score",
}


@pytest.mark.parametrize("p", [*map(REGISTRY.parameterization, ("v", "eps")), companded()])
def test_a_model_passes_its_identities_and_has_sizes(p: testbed.Parameterization) -> None:
    found = audit.run(testbed.Denoiser(Linear(), p, 0.7), oracle=reference.mixture())
    assert found.passed
    assert {effect.name for effect in found.effects} == EFFECTS
    assert all(effect.low <= effect.value <= effect.high for effect in found.effects)
    assert all(effect.value > 0 for effect in by_name(found.effects, "excess risk"))
    assert list(found.effects_table().columns) == list(Effect.__annotations__)


def test_a_model_whose_score_is_wrong_fails() -> None:
    class Wrong(testbed.Denoiser):
        def score(self, x, sigma, condition=None):  # type: ignore[no-untyped-def]
            return 1.001 * super().score(x, sigma, condition)

    found = audit.run(
        Wrong(Linear(), REGISTRY.parameterization("v"), 0.7), oracle=reference.mixture()
    )
    assert not found.passed
    assert {row.law for row in found.rows if not row.passed} == {
        "trained model: D = x + sigma^2 score(F)"
    }


def test_a_model_of_data_without_an_oracle_has_no_excess() -> None:
    """Of any callable; what is unknown is left out and said."""
    held = reference.mixture().sample(16, stream(0, "held"))
    found = learning.measure(
        lambda x, sigma: x / 2, "half", held, torch.ones(1).double(), None, stream(0, "noise")
    )
    assert {effect.name for effect in found} == EFFECTS - {
        "excess risk",
        "Fisher divergence",
        "loss - excess risk - posterior variance",
    }


def test_json_has_no_number_that_is_not_finite() -> None:
    found = audit.run("v", parts=["oracle"], oracle=reference.gaussian())
    row = rows.LawCheck("law", "subject", 1.0, "", math.nan, math.inf, math.nan, "because")
    stored = json.loads(driver.Audit("v", (*found.rows, row)).json())
    assert stored["passed"]
    assert stored["rows"][-1]["bound"] is None
    assert rows.LawCheck.read({k: v for k, v in stored["rows"][0].items() if k != "passed"}).passed
    assert not rows.LawCheck.read(
        {k: v for k, v in stored["rows"][-1].items() if k != "passed"} | {"reason": ""}
    ).passed


# --- bad input -----------------------------------------------------------------------------------


def test_an_unknown_level_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="sampling"):
        audit.run("v", parts=["samplin"])


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="edm"):
        audit.run("edn")


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan, math.inf])
def test_sigma_data_is_positive(sigma_data: float) -> None:
    with pytest.raises(InputError, match="sigma_data"):
        audit.run("v", sigma_data=sigma_data)


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(InputError, match="neither a name nor a callable"):
        audit.run(3)  # type: ignore[arg-type]


def test_a_parameterization_that_raises_is_refused_with_its_message() -> None:
    def scaling(sigma: Tensor) -> testbed.Coefficients:
        raise RuntimeError("no table")

    with pytest.raises(InputError, match="no table"):
        audit.run(testbed.Parameterization("broken", scaling))


# --- the tests of the audit ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SELF_TESTS)
def test_law_about_the_audit(name: str) -> None:
    SELF_TESTS[name]()


def test_the_patched_names_are_all_there_is() -> None:
    """Replacing a function everywhere leaves no module with the right one."""
    with everywhere("gamma", None):
        assert (
            algebra.gamma is exact.gamma is curvature.gamma is reference.gamma is rows.gamma is None
        )
    assert isinstance(rows.gamma(1, torch.float64), float)
    with mock.patch.object(rows, "gamma", None):
        assert exact.gamma is not None
