"""Mistakes in conversions, parameterizations and the denoiser, each rejected by its law."""

from collections.abc import Callable
from functools import wraps
from typing import Any
from unittest import mock

import torch
from helpers.strategies import fixed
from laws import conversions, parameterizations
from laws import denoiser as denoisers
from mutants.registry import alpha, given, laws_of, rejected_by
from torch import Tensor

import testbed
from testbed import tensors
from testbed.diffusion import parameterization, predictions
from testbed.diffusion.predictions import PREDICTION_TYPES, PredictionType
from testbed.registry import default_registry

# --- conversions ---------------------------------------------------------------------------------

CONVERSIONS = laws_of("laws: conversions", "conversions from one prediction type to another")


def kind_law(name: str, source: str) -> Callable[[PredictionType], None]:
    """The law of conversions, with one kind of the library replaced."""

    @wraps(conversions.law_conversion_gives_the_kind)
    def law(kind: PredictionType) -> None:
        with mock.patch.dict(predictions.PREDICTION_TYPES, {name: kind}):
            conversions.law_conversion_gives_the_kind(testbed.convert, source, name, fixed())

    return law


rejected_by(
    CONVERSIONS,
    kind_law("v", "x0"),
    PREDICTION_TYPES["v"],
    v_plus_s_x0=PredictionType("v", lambda s: s * alpha(s), alpha),
    v_negated=PredictionType("v", lambda s: s * alpha(s), lambda s: -alpha(s)),
    v_alpha_for_s=PredictionType("v", lambda s: -alpha(s), lambda s: s * alpha(s)),
    v_sigma_for_s=PredictionType("v", lambda s: -s, alpha),
    v_square_dropped=PredictionType(
        "v", lambda s: -s / (1 + s).sqrt(), lambda s: 1 / (1 + s).sqrt()
    ),
    v_root_dropped=PredictionType("v", lambda s: -s / (1 + s**2), lambda s: 1 / (1 + s**2)),
)
rejected_by(
    CONVERSIONS,
    kind_law("score", "eps"),
    PREDICTION_TYPES["score"],
    score_sign=PredictionType("score", torch.zeros_like, lambda s: 1 / s),
    score_over_sigma_squared=PredictionType("score", torch.zeros_like, lambda s: -1 / s**2),
    score_not_divided=PredictionType("score", torch.zeros_like, lambda s: -torch.ones_like(s)),
)
rejected_by(
    CONVERSIONS,
    kind_law("flow", "v"),
    PREDICTION_TYPES["flow"],
    flow_with_data_at_one=PredictionType("flow", torch.ones_like, lambda s: -torch.ones_like(s)),
    flow_of_x=PredictionType("flow", lambda s: -torch.ones_like(s), lambda s: 1 - s),
)


def through_x0(value: Tensor, source: Any, target: Any, **given: Any) -> Tensor:
    x0 = testbed.convert(value, source, "x0", **given)
    return testbed.convert(x0, "x0", target, **given)


def first_sigma_for_all(
    value: Tensor, source: Any, target: Any, *, sigma: Tensor, **given: Any
) -> Tensor:
    return testbed.convert(value, source, target, sigma=sigma.flatten()[0], **given)


def float32_sigma(
    value: Tensor, source: Any, target: Any, *, sigma: Tensor, **given: Any
) -> Tensor:
    return testbed.convert(value, source, target, sigma=sigma.float(), **given)


def float32_inside(value: Tensor, source: Any, target: Any, *, x: Tensor, **given: Any) -> Tensor:
    return testbed.convert(value.float(), source, target, x=x.float(), **given).to(value.dtype)


rejected_by(
    CONVERSIONS, conversions.law_pair_keeps_digits, testbed.convert, through_x0_alone=through_x0
)
rejected_by(
    CONVERSIONS,
    given(conversions.law_conversion_gives_the_kind, "v", "eps", fixed()),
    testbed.convert,
    first_sigma_for_all=first_sigma_for_all,
    float32_sigma=float32_sigma,
    float32_inside=float32_inside,
)
rejected_by(
    CONVERSIONS,
    given(conversions.law_each_sample_has_its_sigma, "x0", "v", fixed()),
    testbed.convert,
    first_sigma_for_all_in_a_batch=first_sigma_for_all,
)


def one_way(value: Tensor, source: Any, target: Any, **given: Any) -> Tensor:
    return testbed.convert(value, source, target, **given) * (1.0 if target == "v" else 1.01)


rejected_by(
    CONVERSIONS,
    given(conversions.law_triangle, "eps", "v", "score", fixed()),
    testbed.convert,
    one_way_off_by_a_hundredth=lambda q, source, target, **given: (
        testbed.convert(q, source, target, **given) * (1.01 if source == "v" else 1.0)
    ),
)
rejected_by(
    CONVERSIONS,
    given(conversions.law_round_trip, "eps", "v", fixed()),
    testbed.convert,
    one_way_off_by_a_hundredth=one_way,
)


@wraps(conversions.law_conversion_gives_the_kind)
def broadcast_law(per_sample: Callable[..., Tensor]) -> None:
    with mock.patch.object(parameterization, "per_sample", per_sample):
        conversions.law_conversion_gives_the_kind(testbed.convert, "v", "eps", fixed())


rejected_by(
    CONVERSIONS,
    broadcast_law,
    tensors.per_sample,
    sigma_along_the_last_axis=lambda sigma, x: tensors.widen(sigma),
)

# --- parameterizations ---------------------------------------------------------------------------

PARAMETERIZATIONS = laws_of(
    "laws: parameterizations", "coefficients, targets and the two ways between D and F"
)


def registered(name: str) -> testbed.Parameterization:
    return default_registry().parameterization(name)


def with_scaling(name: str, scaling: Callable[..., Any]) -> testbed.Parameterization:
    """A registered parameterization with its statement of the target and another scaling."""
    right = registered(name)
    return testbed.Parameterization(name=name, scaling=scaling, target=right.stated_target)


def changed(name: str, change: Callable[..., dict[str, Tensor]]) -> testbed.Parameterization:
    """... whose scaling differs in the coefficients that `change(c, sigma, sigma_data)` names."""
    right = registered(name)

    def scaling(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
        c = right.coefficients(sigma, sigma_data=sigma_data)
        return c._replace(**change(c, sigma, sigma_data))

    return with_scaling(name, scaling)


class Unlike(testbed.Parameterization):
    """Starts from a registered parameterization's scaling and target."""

    def __init__(self, name: str) -> None:
        right = registered(name)
        super().__init__(name, scaling=right.scaling, target=right.stated_target)


class OutputAddsSkip(Unlike):
    def output(self, D: Tensor, x: Tensor, sigma: Any, *, sigma_data: Any = None) -> Tensor:
        c = self.coefficients(sigma, sigma_data=sigma_data)
        return (D + c.skip[:, None] * x) / c.out[:, None]


class OutputIsTheTargetOfD(Unlike):
    def output(self, D: Tensor, x: Tensor, sigma: Any, *, sigma_data: Any = None) -> Tensor:
        return self.target(D, x, sigma, sigma_data=sigma_data)


class DenoiseSwapped(Unlike):
    def denoise(self, F: Tensor, x: Tensor, sigma: Any, *, sigma_data: Any = None) -> Tensor:
        return super().denoise(x, F, sigma, sigma_data=sigma_data)


class DenoiseScaledInput(Unlike):
    def denoise(self, F: Tensor, x: Tensor, sigma: Any, *, sigma_data: Any = None) -> Tensor:
        c_in = self.coefficients(sigma, sigma_data=sigma_data).in_[:, None]
        return super().denoise(F, c_in * x, sigma, sigma_data=sigma_data)


def table_law(name: str) -> Callable[[testbed.Parameterization], None]:
    return given(parameterizations.law_coefficients_are_the_table, name, fixed().sigma, 0.5)


rejected_by(
    PARAMETERIZATIONS,
    table_law("edm"),
    registered("edm"),
    edm_skip_without_sigma_data=changed("edm", lambda c, s, sd: {"skip": 1 / (1 + s**2)}),
    edm_skip_sigma_for_sigma_data=changed("edm", lambda c, s, sd: {"skip": 1 - c.skip}),
    edm_log_not_quartered=changed("edm", lambda c, s, sd: {"noise": s.log()}),
)
rejected_by(
    PARAMETERIZATIONS,
    table_law("eps"),
    registered("eps"),
    eps_c_out_squared=changed("eps", lambda c, s, sd: {"out": -(s**2)}),
    eps_c_noise_is_log=changed("eps", lambda c, s, sd: {"noise": s.log() / 4}),
)
for name, wrong in {
    "v": {
        "v_c_out_sign": changed("v", lambda c, s, sd: {"out": -c.out}),
        "v_c_skip_is_alpha": changed("v", lambda c, s, sd: {"skip": alpha(s)}),
    },
    "score": {
        "score_c_out_is_sigma": changed("score", lambda c, s, sd: {"out": s}),
        "score_c_out_sign": changed("score", lambda c, s, sd: {"out": -c.out}),
    },
    "edm": {"edm_c_out_is_minus_v": changed("edm", lambda c, s, sd: {"out": -c.out})},
}.items():
    rejected_by(
        PARAMETERIZATIONS,
        given(parameterizations.law_target_agrees_with_scaling, fixed()),
        registered(name),
        **wrong,
    )


def stated_wrong(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return alpha(sigma) * eps + sigma * alpha(sigma) * x0


rejected_by(
    PARAMETERIZATIONS,
    given(parameterizations.law_optimal_output_gives_x0, fixed()),
    registered("v"),
    v_target_sign=testbed.Parameterization("v", registered("v").scaling, target=stated_wrong),
    v_denoise_scales_x=DenoiseScaledInput("v"),
)
rejected_by(
    PARAMETERIZATIONS,
    given(parameterizations.law_target_is_the_table, "v", fixed()),
    registered("v"),
    v_consistently_negated=testbed.Parameterization(
        "v",
        lambda sigma: testbed.Coefficients(alpha(sigma) ** 2, sigma * alpha(sigma), sigma, sigma),
    ),
)
rejected_by(
    PARAMETERIZATIONS,
    given(parameterizations.law_output_inverts_denoise, fixed()),
    registered("edm"),
    output_adds_skip=OutputAddsSkip("edm"),
    output_forgets_eps=OutputIsTheTargetOfD("edm"),
)
rejected_by(
    PARAMETERIZATIONS,
    given(parameterizations.law_denoise_is_affine, "v", fixed()),
    registered("v"),
    denoise_swaps_F_and_x=DenoiseSwapped("v"),
    denoise_takes_scaled_x=DenoiseScaledInput("v"),
)
rejected_by(
    PARAMETERIZATIONS,
    given(parameterizations.law_unit_variance, fixed().sigma, 0.5),
    registered("edm"),
    edm_c_in_without_sigma_data=changed("edm", lambda c, s, sd: {"in_": alpha(s)}),
    edm_c_in_root_dropped=changed("edm", lambda c, s, sd: {"in_": c.in_**2}),
    edm_target_of_v=registered("v"),
)


def unit_but_not_smallest(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
    skip = sigma_data / (sigma_data + sigma)
    out = torch.sqrt((1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2)
    c_in = 1 / torch.sqrt(sigma**2 + sigma_data**2)
    return testbed.Coefficients(skip, out, c_in, sigma.log() / 4)


rejected_by(
    PARAMETERIZATIONS,
    given(parameterizations.law_smallest_c_out, fixed().sigma, 0.5, 0.5),
    registered("edm"),
    edm_unit_variance_by_another_skip=testbed.Parameterization("edm", unit_but_not_smallest),
)

# --- the denoiser --------------------------------------------------------------------------------

DENOISER = laws_of("laws: denoiser", "the denoiser around a network, and its score")


class InputNotScaled(testbed.Denoiser):
    def inputs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in, c_noise = super().inputs(sigma)
        return torch.ones_like(c_in), c_noise


class LogInsteadOfSigma(testbed.Denoiser):
    def inputs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in, c_noise = super().inputs(sigma)
        return c_in, c_noise.log()


class ScoreNotSquared(testbed.Denoiser):
    def score(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        return (self(x, sigma) - x) / tensors.per_sample(sigma, x)


class ScoreSign(testbed.Denoiser):
    def score(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        return -super().score(x, sigma, condition)


class DenoisesScaledInput(testbed.Denoiser):
    def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        F = self.output(x, sigma, condition)
        scaled = tensors.per_sample(self.inputs(tensors.widen(sigma))[0], x) * x
        return self.parameterization.denoise(F, scaled, sigma, sigma_data=self.sigma_data)


class WithoutSigmaData(testbed.Denoiser):
    def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        F = self.output(x, sigma, condition)
        return self.parameterization.denoise(F, x, sigma, sigma_data=1.0)


def made(kind: type[testbed.Denoiser], name: str = "edm") -> testbed.Denoiser:
    return kind(denoisers.Recorder(), registered(name), 0.5)


@wraps(denoisers.law_network_sees_its_scales)
def scales_law(d: testbed.Denoiser) -> None:
    c = fixed()
    _, _, c_in, c_noise = parameterizations.TABLE["v"](c.S, c.SD)
    denoisers.law_network_sees_its_scales(d, c, c_in, c_noise)


@wraps(denoisers.law_denoiser_is_its_algebra)
def algebra_law(d: testbed.Denoiser) -> None:
    c = fixed()
    denoisers.law_denoiser_is_its_algebra(d, d.output(c.x, c.sigma), "edm", c)


@wraps(denoisers.law_score_is_tweedie)
def tweedie_law(d: testbed.Denoiser) -> None:
    c = fixed()
    denoisers.law_score_is_tweedie(d.score, d, d.output(c.x, c.sigma), "edm", c)


rejected_by(
    DENOISER,
    scales_law,
    made(testbed.Denoiser, "v"),
    input_not_scaled=made(InputNotScaled, "v"),
    c_noise_is_log=made(LogInsteadOfSigma, "v"),
)
rejected_by(
    DENOISER,
    algebra_law,
    made(testbed.Denoiser),
    denoiser_skips_scaled_x=made(DenoisesScaledInput),
    denoiser_without_sigma_data=made(WithoutSigmaData),
)
rejected_by(
    DENOISER,
    tweedie_law,
    made(testbed.Denoiser),
    tweedie_square_dropped=made(ScoreNotSquared),
    tweedie_sign=made(ScoreSign),
)
