"""Mistakes in the audit itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from laws.audit import SELF_TESTS, everywhere
from mutants.registry import (
    EVERY_SIZE,
    FAMILIES,
    Family,
    col,
    wrong,
)
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
from testbed.diffusion import equal_objectives, predictions
from testbed.oracles import Gaussian, Oracle


def of_audit(nothing: None) -> set[str]:
    """The laws about the audit that are broken."""
    found = set()
    for name, law in SELF_TESTS.items():
        try:
            law()
        except Exception:
            found.add(name)
    return found


FAMILIES["audit"] = Family("the audit, by the laws that it must obey", of_audit, {"audit": None})


def audit(
    mistake: str, patch: Callable[[], AbstractContextManager[Any]], meant: str, *also: str
) -> None:
    others = (f"self.{name}" for name in " ".join(also).split())
    wrong("audit", mistake, None, f"self.{meant}", *others, patch=patch)


def replaced(name: str, function: Any) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: everywhere(name, function)


def comparing(change: Callable[..., tuple[Tensor, ...]]) -> Any:
    """`change(sigma, first, second, bound)` before two sides are compared."""
    right = rows.rows

    def compare(
        law: str, subject: str, sigma: Any, first: Any, second: Any, bound: Any, dtype: Any = None
    ) -> Any:
        full = bound.expand_as(first)
        return right(law, subject, *change(sigma, first, second, full), dtype or first.dtype)

    return replaced("rows", compare)


def first_of_each(sigma: Tensor) -> Tensor:
    """The index of the first sample of each level."""
    return torch.stack([(sigma == level).nonzero()[0, 0] for level in torch.unique(sigma)])


def averaged(sigma: Tensor, first: Tensor, second: Tensor, bound: Tensor) -> tuple[Tensor, ...]:
    error = (first.double() - second.double()).flatten(1).mean(1, keepdim=True)
    return sigma, error, torch.zeros_like(error), bound.flatten(1).amax(1, keepdim=True)


def only(levels: Tensor | None = None, same: bool = False) -> Any:
    """Every draw at these noise levels, or at one for a batch."""
    right = reference.noisy

    def noisy(oracle: Oracle, given: Tensor, samples: int) -> tuple[Tensor, ...]:
        x0, eps, sigma = right(oracle, given, samples)
        return x0, eps, sigma[4].expand_as(sigma).clone() if same else 0 * sigma + levels

    return replaced("noisy", noisy)


def by_denoiser(oracle: Oracle, x: Tensor, sigma: Tensor) -> Tensor:
    return ((oracle.denoise(x, sigma) - x) / col(sigma) ** 2).detach()


def easy(dim: int | None = None) -> dict[str, Oracle]:
    """Centred, isotropic, Gaussian."""
    return {"gaussian": Gaussian(torch.zeros(3).double(), torch.eye(3).double() / 4)}


def symmetrised(denoise: Any, x: Tensor, sigma: Tensor) -> Any:
    J = JACOBIAN(denoise, x, sigma)
    return None if J is None else (J + J.mT) / 2


def never_cut(denoise: Any, x: Tensor, sigma: Tensor) -> Any:
    J = JACOBIAN(denoise, x, sigma)
    return torch.zeros(len(x), 3, 3).to(x) if J is None else J


def held(law: str, subject: str, truth: bool, dtype: str = "") -> rows.LawCheck:
    return VERDICT(law, subject, True, dtype)


def effects(change: Callable[[learning.Effect], dict[str, float]]) -> Any:
    right = learning.measure

    def measure(*given: Any, **named: Any) -> list[learning.Effect]:
        return [type(one)(**{**vars(one), **change(one)}) for one in right(*given, **named)]

    return lambda: mock.patch.object(learning, "measure", measure)


def swallowed(self: Any, oracle: Oracle) -> Any:
    right = self.adapter(self.make(oracle))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        try:
            return right(x, sigma)
        except RuntimeError:
            return oracle.denoise(x, sigma)

    return denoise


JACOBIAN, VERDICT, EXACT = curvature.jacobian, rows.verdict, exact.check
GAMMA = rows.gamma

audit(
    "bounds a million million times too large",
    replaced("gamma", lambda k, dtype: 1e12 * GAMMA(k, dtype)),
    "one_part_in_a_billion_is_rejected",
    EVERY_SIZE,
    "a_wrong_posterior_variance_of_an_oracle_is_rejected",
)
audit(
    "bounds without end",
    comparing(lambda s, a, b, bound: (s, a, b, bound + math.inf)),
    "one_part_in_a_billion_is_rejected",
    EVERY_SIZE,
    "a_wrong_ode_is_rejected one_sigma_for_a_batch_is_rejected",
    "the_sign_of_what_it_returns_counts what_centred_data_hide_is_rejected",
    "what_isotropic_data_hide_is_rejected what_sigma_one_hides_is_rejected",
)
audit(
    "the unit of bfloat16 for every dtype",
    replaced("gamma", lambda k, dtype: GAMMA(k, torch.bfloat16)),
    "one_part_in_a_billion_is_rejected",
    EVERY_SIZE,
    "a_wrong_posterior_variance_of_an_oracle_is_rejected what_sigma_one_hides_is_rejected",
)
audit(
    "the unit of float64 for every dtype",
    replaced("gamma", lambda k, dtype: GAMMA(k, torch.float64)),
    "a_right_parameterization_passes",
)
audit(
    "a factor below one for the bounds",
    replaced("gamma", lambda k, dtype: GAMMA(k, dtype) / 1e3),
    "a_right_parameterization_passes",
    "a_right_denoiser_passes the_sign_of_what_it_returns_counts",
)
audit(
    "NaN is no error",
    comparing(lambda s, a, b, bound: (s, torch.where(a.isnan(), b, a), b, bound)),
    "a_nan_is_rejected",
)
audit(
    "a ratio of NaN passes",
    lambda: mock.patch.object(rows.LawCheck, "passed", property(lambda self: not self.ratio > 1)),
    "a_nan_is_rejected",
)
audit(
    "an empty audit passes",
    lambda: mock.patch.object(
        driver.Audit, "passed", property(lambda self: all(row.passed for row in self.rows))
    ),
    "nothing_checked_is_not_passed",
)
audit(
    "what was left out counts as passed",
    lambda: mock.patch.object(
        driver.Audit,
        "passed",
        property(lambda self: bool(self.rows) and all(row.passed for row in self.rows)),
    ),
    "nothing_checked_is_not_passed",
)
audit(
    "one law that holds is enough",
    lambda: mock.patch.object(
        driver.Audit,
        "passed",
        property(lambda self: any(row.passed and not row.reason for row in self.rows)),
    ),
    "one_failure_is_not_passed",
)
audit(
    "the error without its absolute value",
    comparing(lambda s, a, b, bound: (s, torch.maximum(a.double(), b.double()), b, bound)),
    "an_error_of_either_sign_is_rejected",
    "a_wrong_trajectory_is_rejected",
)
audit(
    "the mean error for the largest",
    comparing(averaged),
    "opposite_errors_do_not_cancel",
    "a_field_that_is_no_gradient_is_rejected",
)
audit(
    "the first sample of a level alone",
    comparing(lambda s, a, b, bound: (s[(i := first_of_each(s))], a[i], b[i], bound[i])),
    "every_sample_counts",
)
audit(
    "the first dimension alone",
    comparing(
        lambda s, a, b, bound: (
            s,
            a.flatten(1)[:, :1],
            b.flatten(1)[:, :1],
            bound.flatten(1)[:, :1],
        )
    ),
    "every_dimension_counts",
    "a_field_that_is_no_gradient_is_rejected",
)
audit(
    "the score of the oracle on both sides",
    replaced("tweedie", lambda oracle, x, sigma: oracle.score(x, sigma).detach()),
    "a_wrong_density_of_an_oracle_is_rejected",
)
audit(
    "the denoiser of the oracle on both sides",
    replaced("tweedie", by_denoiser),
    "a_wrong_posterior_mean_of_an_oracle_is_rejected",
    "a_wrong_density_of_an_oracle_is_rejected",
)
audit(
    "sigma = 1 alone",
    only(torch.ones((), dtype=torch.float64)),
    "what_sigma_one_hides_is_rejected",
    "a_known_mistake_is_named an_unknown_mistake_is_not_named",
    "every_decade_of_sigma_counts one_sigma_for_a_batch_is_rejected",
)
audit(
    "one sigma for a batch",
    only(same=True),
    "one_sigma_for_a_batch_is_rejected",
    "a_denoiser_that_raises_is_refused an_unknown_mistake_is_not_named",
    "every_decade_of_sigma_counts what_sigma_one_hides_is_rejected",
)
audit(
    "centred, isotropic, Gaussian data alone",
    replaced("distributions", easy),
    "what_centred_data_hide_is_rejected",
    "a_wrong_density_of_an_oracle_is_rejected",
    "a_wrong_posterior_mean_of_an_oracle_is_rejected what_isotropic_data_hide_is_rejected",
)
audit(
    "eps alone of all kinds",
    lambda: mock.patch.object(
        algebra, "PREDICTION_TYPES", {"eps": predictions.PREDICTION_TYPES["eps"]}
    ),
    "every_kind_is_tried",
)
audit(
    "float32 alone",
    lambda: mock.patch.object(
        exact, "check", lambda subject, oracle, *more: EXACT(subject, oracle, (torch.float32,))
    ),
    "float32_inside_is_rejected",
    "one_part_in_a_billion_is_rejected",
)
audit(
    "the Jacobian made symmetric",
    replaced("jacobian", symmetrised),
    "a_field_that_is_no_gradient_is_rejected",
    "the_asymmetry_is_that_of_a_known_matrix",
)
audit(
    "a cut gradient taken for zero", replaced("jacobian", never_cut), "a_cut_gradient_is_rejected"
)
audit(
    "a verdict that is always yes",
    replaced("verdict", held),
    "a_changed_argument_is_rejected",
    "a_cut_gradient_is_rejected a_global_draw_is_rejected one_failure_is_not_passed",
)
audit(
    "an exception taken for an answer",
    lambda: mock.patch.object(external.ExternalDenoiser, "denoiser", swallowed),
    "a_denoiser_that_raises_is_refused",
)
audit(
    "no false alarm ever: an infinite quantile",
    lambda: mock.patch.object(learning, "FALSE_ALARM", 0.0),
    "a_wrong_posterior_variance_of_an_oracle_is_rejected",
)
audit(
    "the ODE's bound from a coarse solution",
    lambda: mock.patch.object(trajectories, "COARSE", 0.3),
    "a_wrong_ode_is_rejected",
)
audit(
    "Fisher divergence over sigma^2",
    effects(
        lambda one: (
            {key: getattr(one, key) * one.sigma**2 for key in ("value", "low", "high")}
            if one.name.startswith("Fisher")
            else {}
        )
    ),
    "the_interval_holds_a_known_excess",
)
audit(
    "the scatter of one draw for that of the mean",
    effects(
        lambda one: {
            "low": one.value - 64 * (one.value - one.low),
            "high": one.value + 64 * (one.high - one.value),
        }
    ),
    "the_interval_holds_a_known_excess",
)
audit(
    "an interval forty times too narrow",
    effects(
        lambda one: {
            "low": one.value - (one.value - one.low) / 40,
            "high": one.value + (one.high - one.value) / 40,
        }
    ),
    "the_interval_holds_a_known_excess",
)
audit(
    "|J - J^T|/|J|",
    effects(lambda one: {"value": one.value * 2} if one.name.startswith("asym") else {}),
    "the_asymmetry_is_that_of_a_known_matrix",
)
audit(
    "the sign of what is returned ignored",
    lambda: mock.patch.object(Adapter, "sign", property(lambda self: 1)),
    "the_sign_of_what_it_returns_counts",
)
audit(
    "a diagnosis that fits anything",
    lambda: mock.patch.object(diagnosis, "RESIDUAL", 2.0),
    "an_unknown_mistake_is_not_named",
)
audit(
    "a diagnosis that fits nothing",
    lambda: mock.patch.object(diagnosis, "RESIDUAL", 0.0),
    "a_known_mistake_is_named",
)
audit(
    "twins at one level",
    lambda: mock.patch.object(equal_objectives, "RESOLUTION", 2.0),
    "twins_are_twins_at_every_level",
)
