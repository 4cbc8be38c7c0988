"""What must be true of the audit itself, each law a function that raises AssertionError.

Everything goes by way of the audit's own names at the time of the call, so that a mutant of the
audit put in their place is what is tried.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from testbed.audit import (
    Adapter,
    algebra,
    curvature,
    diagnosis,
    driver,
    exact,
    external,
    learning,
    reference,
    rows,
    trajectories,
)
from testbed.audit.external import ExternalDenoiser
from testbed.audit.subject import ParameterizedDenoiser
from testbed.diffusion import equal_objectives, predictions
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.diffusion.predictions import PredictionType
from testbed.errors import InputError
from testbed.oracles import Mixture, Oracle
from testbed.random import stream
from testbed.registry import default_registry

Denoise = Callable[[Tensor, Tensor], Tensor]
Factory = Callable[[Oracle], Denoise]
SELF_TESTS: dict[str, Callable[[], None]] = {}
REGISTRY = default_registry()


def self_test(law: Callable[[], None]) -> Callable[[], None]:
    """Enters a law under its own name."""
    SELF_TESTS[f"self.{law.__name__}"] = law
    return law


def everywhere(
    name: str, wrong: Any, inside: str = "testbed.audit."
) -> AbstractContextManager[Any]:
    """Replaces a function in every module of the audit that has it by that name."""
    stack = ExitStack()
    for module in [m for key, m in sys.modules.items() if key.startswith(inside)]:
        if name in vars(module):
            stack.enter_context(mock.patch.object(module, name, wrong))
    return stack


def as_subject(factory: Factory, adapter: Adapter | None = None) -> ExternalDenoiser:
    """A denoiser of another codebase, claimed exact for the audit's own distributions."""
    return ExternalDenoiser("wrong", factory, adapter or Adapter(), reference.distributions())


def failed_oracle(factory: Factory, adapter: Adapter | None = None) -> set[str]:
    """The laws of the oracle level that a denoiser breaks on any of the distributions."""
    subject = as_subject(factory, adapter)
    found = [row for oracle in subject.data().values() for row in exact.check(subject, oracle)]
    assert found
    return {row.law for row in found if not row.passed}


def breaks(factory: Factory, *laws: str, adapter: Adapter | None = None) -> bool:
    """Whether a denoiser breaks each of these laws of the oracle level on some distribution."""
    subject, left = as_subject(factory, adapter), set(laws)
    for oracle in subject.data().values():
        left -= {row.law for row in exact.check(subject, oracle) if not row.passed}
        if not left:
            return True
    return False


def failed_structure(factory: Factory) -> set[str]:
    """What a denoiser owes its caller and does not give."""
    subject = as_subject(factory)
    return {row.law for row in subject.algebra((torch.float64,)) if not row.passed}


def failed_curvature(factory: Factory) -> set[str]:
    """The laws of the second order that a denoiser breaks on the audit's mixture."""
    return {
        row.law
        for row in curvature.check(as_subject(factory), reference.mixture())
        if not row.passed
    }


def changed(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Factory:
    """The exact denoiser D with `change(D, x, sigma)` in its place."""
    return asked(lambda oracle, x, sigma: change(oracle.denoise(x, sigma), x, sigma))


def asked(answer: Callable[[Oracle, Tensor, Tensor], Tensor]) -> Factory:
    """`answer(oracle, x, sigma)` as a factory."""
    return lambda oracle: lambda x, sigma: answer(oracle, x, sigma)


def edm() -> ParameterizedDenoiser:
    return ParameterizedDenoiser(REGISTRY.parameterization("edm"), 0.5)


# --- what is right passes ------------------------------------------------------------------------


@self_test
def a_right_parameterization_passes() -> None:
    """EDM in float64 and float32 obeys every law of the first three levels."""
    subject = edm()
    found = subject.algebra((torch.float64, torch.float32))
    for oracle in subject.data().values():
        found += exact.check(subject, oracle, (torch.float64, torch.float32))
        found += curvature.check(subject, oracle)
    assert found
    assert {row.law for row in found if not row.passed} == set()


@self_test
def a_right_denoiser_passes() -> None:
    """The exact denoiser itself, in float64 and float32."""
    right = changed(lambda D, x, sigma: D)
    assert failed_oracle(right) | failed_structure(right) | failed_curvature(right) == set()


# --- every error counts --------------------------------------------------------------------------


@self_test
def one_part_in_a_billion_is_rejected() -> None:
    """(1 + 1e-9) D is not D."""
    larger = changed(lambda D, x, sigma: (1 + 1e-9) * D)
    assert breaks(larger, exact.TARGET, exact.TWEEDIE, exact.SCORE)


@self_test
def an_error_of_either_sign_is_rejected() -> None:
    """D + 1e-3 and D - 1e-3 are both wrong."""
    for sign in (1, -1):
        assert breaks(changed(lambda D, x, s, c=sign: D + c * 1e-3), exact.TARGET)


@self_test
def opposite_errors_do_not_cancel() -> None:
    """Errors of 1e-3 whose signs alternate over the dimensions, plus, minus and nothing."""
    signs = torch.tensor([1e-3, -1e-3, 0.0]).double()
    assert breaks(changed(lambda D, x, sigma: D + signs), exact.TARGET)


@self_test
def every_sample_counts() -> None:
    """Wrong in the last sample of the batch alone."""
    last = changed(lambda D, x, sigma: torch.cat([D[:-1], D[-1:] + 1e-3]))
    assert breaks(last, exact.TARGET)


@self_test
def every_dimension_counts() -> None:
    """Wrong in one dimension, whichever."""
    for i in range(3):
        shift = 1e-3 * torch.eye(3, dtype=torch.float64)[i]
        assert breaks(changed(lambda D, x, s, by=shift: D + by), exact.TARGET)


@self_test
def every_decade_of_sigma_counts() -> None:
    """Wrong below sigma = 1e-3 alone, above 1e3 alone, or between 3 and 30 alone."""
    for low, high in ((0, 1e-3), (1e3, math.inf), (3, 30)):
        wrong = changed(
            lambda D, x, sigma, low=low, high=high: (
                D * (1 + 1e-3 * ((sigma > low) & (sigma < high)).to(D))[:, None]
            )
        )
        assert breaks(wrong, exact.TARGET)


@self_test
def a_nan_is_rejected() -> None:
    """NaN on one side, and a ratio that is NaN, are failures."""
    assert breaks(changed(lambda D, x, sigma: D * math.nan), exact.TARGET, exact.TWEEDIE)
    nan = math.nan
    assert not rows.LawCheck("law", "subject", 1.0, "float64", nan, nan, nan).passed


@self_test
def nothing_checked_is_not_passed() -> None:
    """An audit without a row, or whose rows were all left out, has not passed."""
    left_out = rows.skipped("law", "subject", "not affine")
    assert not driver.Audit("subject", ()).passed
    assert not driver.Audit("subject", (left_out, left_out)).passed


@self_test
def one_failure_is_not_passed() -> None:
    """An audit with one broken law among many that hold has not passed."""
    held, bad = (rows.verdict("law", "subject", truth) for truth in (True, False))
    assert driver.Audit("subject", (held,) * 9).passed
    assert not driver.Audit("subject", (held,) * 9 + (bad,)).passed


@self_test
def a_bound_is_far_below_what_it_bounds() -> None:
    """In float64 no bound reaches a thousandth of 1 + sigma, the size of x, or of x/sigma^2."""
    subject = edm()
    for oracle in subject.data().values():
        for row in exact.check(subject, oracle):
            size = 1 + row.sigma if row.law != exact.SCORE else (1 + row.sigma) / row.sigma**2
            assert 0 < row.bound < 1e-3 * size, row


# --- two sides -----------------------------------------------------------------------------------


@self_test
def a_wrong_posterior_mean_of_an_oracle_is_rejected() -> None:
    """Its log-density is right: the two sides of Tweedie's formula are not one helper."""
    right = Mixture.denoise
    with mock.patch.object(Mixture, "denoise", lambda self, x, s: 1.001 * right(self, x, s)):
        assert breaks(changed(lambda D, x, sigma: D), exact.TWEEDIE)


@self_test
def a_wrong_density_of_an_oracle_is_rejected() -> None:
    """Its denoise and score are right."""
    right = Mixture.log_density
    with mock.patch.object(Mixture, "log_density", lambda self, x, s: 1.001 * right(self, x, s)):
        assert breaks(changed(lambda D, x, sigma: D), exact.TWEEDIE)


@self_test
def a_wrong_posterior_variance_of_an_oracle_is_rejected() -> None:
    """loss = excess + variance does not hold for twice the variance."""
    right = Mixture.covariance_trace
    with mock.patch.object(Mixture, "covariance_trace", lambda self, x, s: 2 * right(self, x, s)):
        found = learning.check(
            as_subject(changed(lambda D, x, sigma: D)), reference.mixture(), 1024
        )
        assert any(not row.passed for row in found)


@self_test
def a_wrong_trajectory_is_rejected() -> None:
    """D + 1e-6: the derivative, and Heun's points."""
    wrong = as_subject(changed(lambda D, x, sigma: D + 1e-6))
    heun = [REGISTRY.sampler("heun")]
    found = trajectories.check(wrong, reference.mixture(), heun, karras_sigmas(6)[:-1])
    laws = {row.law for row in found if not row.passed}
    assert laws == {trajectories.DERIVATIVE, f"{trajectories.TRAJECTORY}: heun"}


@self_test
def a_wrong_ode_is_rejected() -> None:
    """D + 1e-3, by solve_ivp."""
    wrong = as_subject(changed(lambda D, x, sigma: D + 1e-3))
    assert not any(row.passed for row in trajectories.check_ode(wrong, reference.gaussian()))


# --- what easy data hide -------------------------------------------------------------------------


@self_test
def what_sigma_one_hides_is_rejected() -> None:
    """sigma^2 for sigma."""
    square = asked(lambda oracle, x, sigma: oracle.denoise(x, sigma**2))
    assert breaks(square, exact.TARGET)


@self_test
def what_centred_data_hide_is_rejected() -> None:
    """-D(-x), which is D(x) for a distribution with p(x0) = p(-x0)."""
    mirror = asked(lambda oracle, x, sigma: -oracle.denoise(-x, sigma))
    assert breaks(mirror, exact.TARGET)


@self_test
def what_isotropic_data_hide_is_rejected() -> None:
    """D with the dimensions in another order."""
    turned = asked(lambda oracle, x, sigma: oracle.denoise(x.flip(-1), sigma).flip(-1))
    assert breaks(turned, exact.TARGET)


@self_test
def every_kind_is_tried() -> None:
    """A wrong definition of any kind is seen by the conversions of EDM's target."""
    for name in predictions.PREDICTION_TYPES:
        right = predictions.PREDICTION_TYPES[name]
        wrong = PredictionType(name, right.a, lambda sigma, b=right.b: b(sigma) + 1e-3)
        with mock.patch.dict(predictions.PREDICTION_TYPES, {name: wrong}):
            found = algebra.conversions(
                edm().p, 0.5, *reference.noisy(reference.mixture(), reference.LEVELS, 4)
            )
        assert f"{algebra.CONVERSION}: {name}" in {row.law for row in found if not row.passed}


@self_test
def float32_inside_is_rejected() -> None:
    """D computed in float32 from float64 arguments."""
    narrow = asked(lambda oracle, x, sigma: oracle.denoise(x.float(), sigma.float()).to(x.dtype))
    assert breaks(narrow, exact.TARGET)


# --- what every denoiser owes --------------------------------------------------------------------


@self_test
def one_sigma_for_a_batch_is_rejected() -> None:
    """The first sample's sigma is used for all."""
    first = asked(lambda oracle, x, sigma: oracle.denoise(x, sigma[:1].expand_as(sigma)))
    assert external.SINGLE in failed_structure(first)
    assert breaks(first, exact.TARGET)


@self_test
def a_changed_argument_is_rejected() -> None:
    """x is rounded in place."""
    assert external.PURE in failed_structure(changed(lambda D, x, sigma: x.add_(1e-3) * 0 + D))


@self_test
def a_global_draw_is_rejected() -> None:
    """torch.rand without a generator, whatever becomes of the number."""
    assert external.STEADY in failed_structure(
        changed(lambda D, x, sigma: D + 0 * torch.rand(D.shape, dtype=D.dtype))
    )


@self_test
def a_cut_gradient_is_rejected() -> None:
    """The value is right and detached."""
    assert curvature.ATTACHED in failed_curvature(changed(lambda D, x, sigma: D.detach()))


@self_test
def a_field_that_is_no_gradient_is_rejected() -> None:
    """D + W x with W = -W^T."""
    W = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 0]], dtype=torch.float64) * 1e-3
    assert curvature.SYMMETRIC in failed_curvature(changed(lambda D, x, sigma: D + x @ W.mT))


@self_test
def a_denoiser_that_raises_is_refused() -> None:
    """An exception is no answer."""

    def factory(oracle: Oracle) -> Denoise:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            raise RuntimeError("no such layer")

        return denoise

    said = ""
    try:
        driver.run(factory, parts=("oracle",), oracle=reference.mixture())
    except InputError as refused:
        said = str(refused)
    assert "no such layer" in said


@self_test
def the_sign_of_what_it_returns_counts() -> None:
    """A flow model with data at t = 1 passes as -flow, and not as flow."""
    velocity = changed(lambda D, x, sigma: D - (x - D) / sigma[:, None])
    assert failed_oracle(velocity, Adapter("-flow")) == set()
    assert breaks(velocity, exact.TARGET, adapter=Adapter("flow"))


# --- sizes and words -----------------------------------------------------------------------------


def linear_model_of(oracle: Oracle) -> tuple[Denoise, Tensor, Tensor]:
    """D = x (S + W)^T, with its symmetric and its antisymmetric part."""
    S = torch.tensor([[0.5, 0.1, 0.0], [0.1, 0.4, 0.2], [0.0, 0.2, 0.7]], dtype=torch.float64)
    W = torch.tensor([[0.0, 0.3, -0.1], [-0.3, 0.0, 0.2], [0.1, -0.2, 0.0]], dtype=torch.float64)
    return (lambda x, sigma: x.double() @ (S + W).mT), S, W


@self_test
def the_asymmetry_is_that_of_a_known_matrix() -> None:
    """D = (S + W) x has |J - J^T|/|J + J^T| = |W|/|S| and a score's curl of 2 |W|/sigma^2."""
    oracle = reference.gaussian()
    D, S, W = linear_model_of(oracle)
    sigmas = torch.tensor([0.2, 5.0], dtype=torch.float64)
    held = oracle.sample(64, stream(1, "held"))
    found = learning.measure(D, "linear", held, sigmas, None, stream(2, "noise"))
    u = rows.gamma(32, torch.float64)
    for effect in found:
        known = {
            "asymmetry of dD/dx": float(W.norm() / S.norm()),
            "curl of the score": 2 * float(W.norm()) / effect.sigma**2,
        }.get(effect.name)
        if known is not None:
            assert abs(effect.value - known) <= u * known
    assert {effect.name for effect in found} >= {"asymmetry of dD/dx", "curl of the score"}


@self_test
def the_interval_holds_a_known_excess() -> None:
    """(1 + c) D*: excess = c^2 E|D*|^2/d, Fisher divergence = d excess/sigma^4, within 10 %."""
    oracle, c, d = reference.gaussian(), 0.1, 3
    held = oracle.sample(4096, stream(3, "held"))
    sigmas = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    found = learning.measure(
        lambda x, sigma: (1 + c) * oracle.denoise(x, sigma),
        "scaled",
        held,
        sigmas,
        oracle,
        stream(4, "noise"),
        jacobians=0,
        confidence=1 - 1e-6,
    )
    seen = 0
    for effect in found:
        L = oracle.L
        power = float((oracle.m.square().sum() + (L**2 / (L + effect.sigma**2)).sum()) / d)
        known = {
            "excess risk": c**2 * power,
            "Fisher divergence": d * c**2 * power / effect.sigma**4,
            "loss - excess risk - posterior variance": 0.0,
        }.get(effect.name)
        if known is not None:
            seen += 1
            assert effect.low <= known <= effect.high, (effect, known)
            # 1 - 1e-6 of a normal lie within 4.9 standard errors of 4,096 draws, and the squares of
            # what is measured scatter by no more than their mean: below 4.9/64.
            if known:
                assert effect.high - effect.low <= 2 * 4.9 / 64 * known, effect
    assert seen == 9


@self_test
def a_known_mistake_is_named() -> None:
    """sigma^2 for sigma, in words."""
    square = asked(lambda oracle, x, sigma: oracle.denoise(x, sigma**2))
    told = diagnosis.explain(as_subject(square), reference.mixture())
    assert told == "the noise level is taken as sigma^2."


@self_test
def an_unknown_mistake_is_not_named() -> None:
    """tanh(D) is none of the mistakes in the list."""
    odd = as_subject(changed(lambda D, x, sigma: torch.tanh(D)))
    assert diagnosis.explain(odd, reference.mixture()) == ""


@self_test
def twins_are_twins_at_every_level() -> None:
    """v and EDM at sigma_data = 1 alone; eps and score never."""
    p = REGISTRY.parameterization
    assert equal_objectives.equal_objectives_of(p("v"), [p("edm"), p("eps"), p("score")], 1.0) == {
        "edm": -1.0
    }
    assert equal_objectives.equal_objectives_of(p("v"), [p("edm")], 0.5) == {}
    assert equal_objectives.equal_objectives_of(p("eps"), [p("score")], 1.0) == {}
