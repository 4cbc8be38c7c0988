"""Tests of the tests: plausible mistakes in the mathematics, each rejected by the law meant for it.

A mutant is a law, what the law is about, and a wrong version of it. The law holds for the first
and must fail for the second.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from components import test_densities as densities
from components import test_losses as losses
from components import test_weightings as weightings
from diffusion import test_conversions as conversions
from diffusion import test_denoiser as denoisers
from diffusion import test_noise_levels as noises
from diffusion import test_parameterizations as parameterizations
from helpers.strategies import fixed, float64
from sampling import test_solvers as sampling
from torch import Tensor

import testbed
from testbed import tensors
from testbed.diffusion import noise_levels, parameterization, predictions
from testbed.diffusion.predictions import PREDICTION_TYPES, PredictionType
from testbed.registry import default_registry
from testbed.training.objective import Objective, Terms


@dataclass(frozen=True)
class Mutant:
    mistake: str
    law: Callable[[Any], None]
    right: Any
    wrong: Any


CATALOGUE: list[Mutant] = []


def mutants(law: Callable[[Any], None], right: Any, **wrong: Any) -> None:
    """Enters wrong versions of `right` under the mistake they make."""
    for mistake, subject in wrong.items():
        CATALOGUE.append(Mutant(mistake, law, right, subject))


# --- conversions ---------------------------------------------------------------------------------


def kind_law(name: str, source: str) -> Callable[[PredictionType], None]:
    """The law of conversions, with one kind of the library replaced."""

    def law(kind: PredictionType) -> None:
        with mock.patch.dict(predictions.PREDICTION_TYPES, {name: kind}):
            conversions.law_conversion_gives_the_kind(testbed.convert, source, name, fixed())

    return law


def alpha(sigma: Tensor) -> Tensor:
    return 1 / torch.sqrt(1 + sigma**2)


mutants(
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
mutants(
    kind_law("score", "eps"),
    PREDICTION_TYPES["score"],
    score_sign=PredictionType("score", torch.zeros_like, lambda s: 1 / s),
    score_over_sigma_squared=PredictionType("score", torch.zeros_like, lambda s: -1 / s**2),
    score_not_divided=PredictionType("score", torch.zeros_like, lambda s: -torch.ones_like(s)),
)
mutants(
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


mutants(conversions.law_pair_keeps_digits, testbed.convert, through_x0_alone=through_x0)
mutants(
    lambda convert: conversions.law_conversion_gives_the_kind(convert, "v", "eps", fixed()),
    testbed.convert,
    first_sigma_for_all=first_sigma_for_all,
    float32_sigma=float32_sigma,
    float32_inside=float32_inside,
)
mutants(
    lambda convert: conversions.law_each_sample_has_its_sigma(convert, "x0", "v", fixed()),
    testbed.convert,
    first_sigma_for_all_in_a_batch=first_sigma_for_all,
)


def broadcast_law(per_sample: Callable[..., Tensor]) -> None:
    with mock.patch.object(parameterization, "per_sample", per_sample):
        conversions.law_conversion_gives_the_kind(testbed.convert, "v", "eps", fixed())


mutants(
    broadcast_law,
    tensors.per_sample,
    sigma_along_the_last_axis=lambda sigma, x: tensors.widen(sigma),
)

# --- parameterizations ---------------------------------------------------------------------------


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
    sigma = fixed().sigma
    return lambda p: parameterizations.law_coefficients_are_the_table(p, name, sigma, 0.5)


mutants(
    table_law("edm"),
    registered("edm"),
    edm_skip_without_sigma_data=changed("edm", lambda c, s, sd: {"skip": 1 / (1 + s**2)}),
    edm_skip_sigma_for_sigma_data=changed("edm", lambda c, s, sd: {"skip": 1 - c.skip}),
    edm_log_not_quartered=changed("edm", lambda c, s, sd: {"noise": s.log()}),
)
mutants(
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
    mutants(
        lambda p: parameterizations.law_target_agrees_with_scaling(p, fixed()),
        registered(name),
        **wrong,
    )


def stated_wrong(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    return alpha(sigma) * eps + sigma * alpha(sigma) * x0


mutants(
    lambda p: parameterizations.law_optimal_output_gives_x0(p, fixed()),
    registered("v"),
    v_target_sign=testbed.Parameterization("v", registered("v").scaling, target=stated_wrong),
    v_denoise_scales_x=DenoiseScaledInput("v"),
)
mutants(
    lambda p: parameterizations.law_target_is_the_table(p, "v", fixed()),
    registered("v"),
    v_consistently_negated=testbed.Parameterization(
        "v",
        lambda sigma: testbed.Coefficients(alpha(sigma) ** 2, sigma * alpha(sigma), sigma, sigma),
    ),
)
mutants(
    lambda p: parameterizations.law_output_inverts_denoise(p, fixed()),
    registered("edm"),
    output_adds_skip=OutputAddsSkip("edm"),
    output_forgets_eps=OutputIsTheTargetOfD("edm"),
)
mutants(
    lambda p: parameterizations.law_denoise_is_affine(p, "v", fixed()),
    registered("v"),
    denoise_swaps_F_and_x=DenoiseSwapped("v"),
    denoise_takes_scaled_x=DenoiseScaledInput("v"),
)
mutants(
    lambda p: parameterizations.law_unit_variance(p, fixed().sigma, 0.5),
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


mutants(
    lambda p: parameterizations.law_smallest_c_out(p, fixed().sigma, 0.5, 0.5),
    registered("edm"),
    edm_unit_variance_by_another_skip=testbed.Parameterization("edm", unit_but_not_smallest),
)

# --- weightings ----------------------------------------------------------------------------------


def weighting(function: Callable[..., Tensor]) -> testbed.Weighting:
    return testbed.Weighting("wrong", function).bound({})


def formula_law(name: str) -> Callable[[testbed.Weighting], None]:
    sigma = torch.logspace(-2, 1.8, 20, dtype=torch.float64)
    return lambda w: weightings.law_weight_is_the_formula(w, name, sigma, 0.5)


mutants(
    formula_law("edm"),
    weightings.weighting("edm"),
    edm_weight_product_not_squared=weighting(
        lambda sigma, sigma_data: (sigma**2 + sigma_data**2) / (sigma * sigma_data)
    ),
    edm_weight_sum_squared=weighting(
        lambda sigma, sigma_data: (sigma + sigma_data) ** 2 / (sigma * sigma_data) ** 2
    ),
    edm_weight_without_sigma_data=weighting(lambda sigma: (sigma**2 + 1) / sigma**2),
)
mutants(
    formula_law("min_snr"),
    weightings.weighting("min_snr"),
    min_snr_is_max=weighting(lambda sigma: (1 / sigma**2).clamp(min=5.0)),
    min_snr_of_one_over_sigma=weighting(lambda sigma: (1 / sigma).clamp(max=5.0)),
    min_snr_in_eps_form=weighting(lambda sigma: (5.0 * sigma**2).clamp(max=1.0)),
    min_snr_default_one=weighting(lambda sigma: (1 / sigma**2).clamp(max=1.0)),
)
mutants(
    formula_law("p2"),
    weightings.weighting("p2"),
    p2_in_eps_form=weighting(lambda sigma: 1 / (1 + 1 / sigma**2)),
)
mutants(
    formula_law("soft_min_snr"),
    weightings.weighting("soft_min_snr"),
    soft_min_snr_gamma_inverted=weighting(lambda sigma: 1 / (sigma**2 + 5.0)),
)
for space, wrong_weight in {
    "eps": weighting(lambda sigma: sigma**2),
    "score": weighting(lambda sigma: 1 / sigma**2),
    "v": weighting(lambda sigma: 1 + 1 / sigma),
}.items():
    mutants(
        lambda w, space=space: weightings.law_weight_is_the_squared_error_of_a_space(w, space, 0.3),
        weightings.weighting(space),
        **{f"weight_of_{space}_space": wrong_weight},
    )
mutants(
    lambda w: weightings.law_sigmoid_is_an_effective_weight(
        w, weightings.density("cosine"), 0.3, 0.0
    ),
    weightings.weighting("sigmoid"),
    sigmoid_as_a_multiplier=weighting(lambda sigma: torch.sigmoid(2 * torch.log(sigma)) / sigma**2),
    sigmoid_of_log_sigma=weighting(lambda sigma, p: torch.sigmoid(torch.log(sigma)) / sigma**2 / p),
    sigmoid_of_plus_log_snr=weighting(
        lambda sigma, p: torch.sigmoid(-2 * torch.log(sigma)) / sigma**2 / p
    ),
)


class Slopes(Objective):
    """k = lambda B_q^power."""

    power = 2

    def k(self, sigma: Tensor) -> Tensor:
        slope = predictions.slope(self.space, sigma, self.sigma_data).abs()
        if self.weighting is None:
            return torch.ones_like(sigma.double())
        weight = self.weighting(sigma, sigma_data=self.sigma_data, density=self.density)
        return weight / slope**self.power


class BNotSquared(Slopes):
    power = 1


class WeightInTheLossSpace(Slopes):
    power = 0


class BInverted(Slopes):
    power = -2


def as_(kind: type[Objective], o: Objective) -> Objective:
    return kind(o.parameterization, o.weighting, o.loss, o.density, o.sigma_data)


of_eps_space = weightings.objective("eps", weightings.weighting("min_snr"))
mutants(
    lambda o: weightings.law_k_is_lambda_b_squared(o, "eps"),
    of_eps_space,
    k_with_b_not_squared=as_(BNotSquared, of_eps_space),
    k_without_b=as_(WeightInTheLossSpace, of_eps_space),
    k_with_b_inverted=as_(BInverted, of_eps_space),
)


class WeightAsWell(Objective):
    """Unweighted, yet multiplied by 1/sigma^2."""

    def k(self, sigma: Tensor) -> Tensor:
        return 1 / sigma.double() ** 2


unweighted = weightings.objective("v", None)
mutants(
    lambda o: weightings.law_unweighted_loss_is_the_weight_of_its_space(o, "v"),
    unweighted,
    unweighted_loss_is_weighted=as_(WeightAsWell, unweighted),
    unweighted_loss_in_another_space=weightings.objective("eps", None),
)

# --- densities -----------------------------------------------------------------------------------


class NotRenormalised(testbed.Density):
    def pdf_over_log_sigma(self, sigma: Any) -> Tensor:
        low, high = self.cut
        return super().pdf_over_log_sigma(sigma) * (high - low)


class NotCut(testbed.Density):
    def pdf_over_log_sigma(self, sigma: Any) -> Tensor:
        sigma = tensors.widen(sigma)
        return self.pdf(sigma) / (self.cut[1] - self.cut[0])


class OverSigma(testbed.Density):
    """A pdf over sigma where one over log sigma is meant."""

    def pdf_over_log_sigma(self, sigma: Any) -> Tensor:
        return super().pdf_over_log_sigma(sigma) / tensors.widen(sigma)


class Clamped(testbed.Density):
    """Quantiles of the whole distribution, pushed to the edges."""

    def sigma(self, u: Tensor) -> Tensor:
        found: Tensor = self.icdf(u.double())
        return found.clamp(self.options["sigma_min"], self.options["sigma_max"])


class Unbounded(testbed.Density):
    def sigma(self, u: Tensor) -> Tensor:
        found: Tensor = self.icdf(u.double())
        return found


class Mirrored(testbed.Density):
    """The largest sigma for the smallest u."""

    def sigma(self, u: Tensor) -> Tensor:
        return super().sigma(1 - u)


def density(kind: type[testbed.Density], name: str, **formulas: Any) -> testbed.Density:
    """A registered density as another class, or with another formula; cut to [0.05, 10]."""
    right = default_registry().density(name)
    made = kind(name, formulas.get("icdf", right.icdf), formulas.get("pdf", right.pdf))
    return made.bound({"sigma_min": 0.05, "sigma_max": 10.0})


def normal_pdf(z: Tensor) -> Tensor:
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


right = density(testbed.Density, "lognormal")
lognormal = densities.TRUTH["lognormal"]
mutants(
    lambda d: densities.law_pdf_integrates_to_one(d, lognormal.condition),
    right,
    pdf_not_renormalised=density(NotRenormalised, "lognormal"),
    pdf_over_sigma=density(OverSigma, "lognormal"),
    pdf_root_of_two_pi_dropped=density(
        testbed.Density,
        "lognormal",
        pdf=lambda sigma: torch.exp(-((sigma.log() + 1.2) ** 2) / 2.88),
    ),
)
mutants(
    lambda d: densities.law_inverse_is_that_of_the_pdf(d, lognormal.condition),
    right,
    quantiles_not_renormalised=density(Clamped, "lognormal"),
    quantiles_mirrored=density(Mirrored, "lognormal"),
    pdf_of_another_mean=density(
        testbed.Density,
        "lognormal",
        pdf=lambda sigma: normal_pdf((sigma.log() - 1.2) / 1.2) / 1.2,
    ),
)
mutants(
    lambda d: densities.law_quantile_is_the_closed_form(d, lognormal),
    right,
    quantiles_clamped_only=density(Clamped, "lognormal"),
    std_for_variance=density(
        testbed.Density,
        "lognormal",
        icdf=lambda u: torch.exp(-1.2 + 1.44 * torch.special.ndtri(u)),
    ),
)
mutants(
    lambda d: densities.law_pdf_is_the_closed_form(d, lognormal),
    right,
    pdf_std_outside_dropped=density(
        testbed.Density, "lognormal", pdf=lambda sigma: normal_pdf((sigma.log() + 1.2) / 1.2)
    ),
)
mutants(
    densities.law_quantiles_stay_in_the_cut,
    right,
    quantile_of_zero_is_zero=density(Unbounded, "lognormal"),
)
mutants(densities.law_no_mass_outside_the_cut, right, pdf_not_cut=density(NotCut, "lognormal"))
mutants(
    lambda d: densities.law_pdf_is_the_closed_form(d, densities.TRUTH["cosine"]),
    density(testbed.Density, "cosine"),
    cosine_pdf_over_sigma=density(
        testbed.Density, "cosine", pdf=lambda sigma: 2 / (math.pi * (1 + sigma**2))
    ),
)
mutants(
    lambda d: densities.law_quantile_is_the_closed_form(d, densities.TRUTH["logit_normal"]),
    density(testbed.Density, "logit_normal"),
    logit_normal_gives_time=density(
        testbed.Density, "logit_normal", icdf=lambda u: torch.sigmoid(torch.special.ndtri(u))
    ),
)
mutants(
    densities.law_table_pdf_is_mass_over_spacing,
    density(testbed.Density, "ddpm"),
    table_pdf_is_bare_mass=density(
        testbed.Density, "ddpm", pdf=lambda sigma: torch.full_like(sigma, 1 / 1000)
    ),
)

# --- losses --------------------------------------------------------------------------------------


class GainNotSquared(Objective):
    def terms(self, sigma: Tensor) -> Terms:
        found = super().terms(sigma)
        out = self.parameterization.coefficients(sigma, sigma_data=self.sigma_data).out
        slope = predictions.slope(self.space, sigma, self.sigma_data)
        return found._replace(k=(found.k / (out * slope).abs()).float())


class TargetSign(Objective):
    def terms(self, sigma: Tensor) -> Terms:
        found = super().terms(sigma)
        return found._replace(b=-found.b)


class TargetWithoutSigmaData(Objective):
    def terms(self, sigma: Tensor) -> Terms:
        found = super().terms(sigma)
        a, b = self.parameterization.pair_weights(sigma, sigma_data=1.0)
        return found._replace(a=a.float(), b=b.float())


class BatchMeanOfSigma(Objective):
    """A scalar where one number per sample is meant."""

    def terms(self, sigma: Tensor) -> Terms:
        return super().terms(sigma.mean().expand_as(sigma))


class Summed(Objective):
    def __call__(self, F: Tensor, *rest: Any) -> Tensor:
        return super().__call__(F, *rest) * F[0].numel()


class HalfGain(Objective):
    """q_hat = q + gain (F - F*)/2."""

    def terms(self, sigma: Tensor) -> Terms:
        found = super().terms(sigma)
        return found._replace(gain=found.gain / 2)


weighted = losses.objective("edm", "v", "min_snr")
mutants(
    lambda o: losses.law_gradient_is_that_of_the_weighted_error(o, "edm", "v", "min_snr"),
    weighted,
    gradient_gain_not_squared=as_(GainNotSquared, weighted),
    gradient_b_not_squared=as_(BNotSquared, weighted),
    gradient_target_sign=as_(TargetSign, weighted),
    gradient_target_without_sigma_data=as_(TargetWithoutSigmaData, weighted),
    gradient_one_sigma_for_all=as_(BatchMeanOfSigma, weighted),
    gradient_of_a_sum=as_(Summed, weighted),
    gradient_without_the_weight=losses.objective("edm", "v", None),
    gradient_of_another_weight=losses.objective("edm", "v", "soft_min_snr"),
)
l1 = losses.objective("eps", "v", "edm", "l1")
mutants(
    lambda o: losses.law_loss_is_k_times_the_discrepancy(o, "eps", "v", "edm", "l1"),
    l1,
    l1_weight_in_its_space=as_(WeightInTheLossSpace, l1),
    l1_with_b_not_squared=as_(BNotSquared, l1),
    l1_gain_halved=as_(HalfGain, l1),
    l1_in_another_space=losses.objective("eps", "eps", "edm", "l1"),
    l1_is_l2=losses.objective("eps", "v", "edm", "l2"),
)
huber = losses.objective("eps", "x0", "edm", "huber")
mutants(
    lambda o: losses.law_loss_is_k_times_the_discrepancy(o, "eps", "x0", "edm", "huber"),
    huber,
    huber_of_another_delta=replace(
        huber, loss=default_registry().loss("huber", space="x0", delta=0.5)
    ),
)
mutants(
    losses.law_space_does_not_matter_for_weighted_l2,
    lambda space: losses.objective("v", space, "edm"),
    space_multiplies_the_weight=lambda space: as_(
        WeightInTheLossSpace, losses.objective("v", space, "edm")
    ),
)
near = losses.objective("edm", "x0", "edm")
mutants(
    losses.law_small_residual_keeps_its_digits,
    lambda F, c: near(F, c.x0, c.eps, c.sigma),
    loss_from_D_minus_x0=losses.naive,
)


class ScaleOfCentredData(Objective):
    """The data's spread without its mean."""

    def scale(self, data: testbed.Data, draws: int = 8192) -> float:
        centred = data.train - data.train.mean(0)
        return super().scale(testbed.Data(centred, data.test), draws)


scaled = losses.objective("x0", "x0", "unit")
mutants(
    lambda o: losses.law_scale_is_the_expected_loss_at_zero(o, "x0", "x0", "unit"),
    scaled,
    scale_of_another_weight=losses.objective("x0", "x0", "edm"),
    scale_of_centred_data=as_(ScaleOfCentredData, scaled),
)

# --- noise levels --------------------------------------------------------------------------------


class ScoreDivided(noise_levels.NoiseSchedule):
    def score_to_ve(self, score: Tensor, t: Any) -> Tensor:
        alpha = tensors.per_sample(self.alpha(tensors.widen(t)), score)
        return score / alpha


class StateNotScaled(noise_levels.NoiseSchedule):
    def from_ve(self, x: Tensor, sigma: Any) -> tuple[Tensor, Tensor]:
        return x, self.time(tensors.widen(sigma))


def schedule(
    name: str, kind: type[noise_levels.NoiseSchedule] = noise_levels.NoiseSchedule, **wrong: Any
) -> Any:
    right = noises.SCHEDULES[name]
    fields = ("name", "alpha", "s", "time", "sigma_rate")
    return kind(**{field: wrong.get(field, getattr(right, field)) for field in fields})


mutants(
    lambda s: noises.law_border_is_the_definition(s, "vp", 0.4),
    noise_levels.VP,
    vp_alpha_squared=schedule("vp", alpha=lambda t: noise_levels.VP.alpha(t) ** 2),
    vp_variance_for_s=schedule("vp", s=lambda t: noise_levels.VP.s(t) ** 2),
    vp_integral_without_half=noise_levels.vp(0.1, 39.9),
)
mutants(
    lambda s: noises.law_border_goes_there_and_back(s, "cosine", fixed()),
    noise_levels.COSINE,
    cosine_time_in_radians=schedule("cosine", time=torch.atan),
    state_not_scaled=schedule("cosine", StateNotScaled),
)
mutants(
    lambda s: noises.law_border_goes_there_and_back(s, "flow", fixed()),
    noise_levels.FLOW,
    flow_time_is_sigma=schedule("flow", time=lambda sigma: sigma / (1 + sigma**2)),
)
mutants(
    lambda s: noises.law_rate_is_the_derivative(s, "flow", 0.4),
    noise_levels.FLOW,
    flow_rate_square_dropped=schedule("flow", sigma_rate=lambda t: 1 / (1 - t)),
)
mutants(
    lambda s: noises.law_rate_is_the_derivative(s, "cosine", 0.4),
    noise_levels.COSINE,
    cosine_rate_chain_dropped=schedule(
        "cosine", sigma_rate=lambda t: 1 / torch.cos(math.pi / 2 * t) ** 2
    ),
)
mutants(
    lambda s: noises.law_score_obeys_the_chain_rule(s, "vp", 0.4, 0),
    noise_levels.VP,
    score_divided_by_alpha=schedule("vp", ScoreDivided),
    score_by_s=schedule("vp", alpha=noise_levels.VP.s),
)


def one_minus_product(betas: Tensor) -> Tensor:
    abar = torch.cumprod(1 - betas, 0)
    return torch.sqrt((1 - abar) / abar)


def product_rooted(betas: Tensor) -> Tensor:
    abar = torch.cumprod(1 - betas, 0).sqrt()
    return torch.sqrt((1 - abar) / abar)


mutants(
    noises.law_first_step_keeps_its_digits,
    noise_levels.ddpm_sigmas,
    one_minus_abar=one_minus_product,
)
mutants(
    noises.law_table_is_the_product,
    noise_levels.ddpm_sigmas,
    abar_is_a_root=product_rooted,
    alpha_bar_starts_at_one=lambda betas: noise_levels.ddpm_sigmas(
        torch.cat([torch.zeros(1).double(), betas[:-1]])
    ),
)
mutants(
    lambda sigmas: noises.law_karras(sigmas, 18),
    noise_levels.karras_sigmas,
    karras_over_n=lambda n: torch.cat([noise_levels.karras_sigmas(n + 1)[:-2], float64([0.0])]),
    karras_rho_five=lambda n: noise_levels.karras_sigmas(n, rho=5.0),
    karras_ascending=lambda n: torch.cat(
        [noise_levels.karras_sigmas(n)[:-1].flip(0), float64([0.0])]
    ),
)

# --- sampling ------------------------------------------------------------------------------------


def step(function: Callable[..., Tensor]) -> testbed.Sampler:
    """A sampler from a step without generator and history."""

    def full(
        denoise: Any, x: Tensor, sigma: float, following: float, generator: Any, history: Any
    ) -> Tensor:
        return function(denoise, x, sigma, following)

    return testbed.Sampler("wrong", full)


def heun(second: Callable[..., Tensor], average: bool = True) -> testbed.Sampler:
    """Heun's step with another second slope."""

    def function(denoise: Any, x: Tensor, s: float, t: float) -> Tensor:
        slope = (x - denoise(x, s)) / s
        end = x + (t - s) * slope
        if t == 0:
            return end
        there = second(denoise, x, end, s, t)
        return x + (t - s) * ((slope + there) / 2 if average else there)

    return step(function)


def right_second(denoise: Any, x: Tensor, end: Tensor, s: float, t: float) -> Tensor:
    return (end - denoise(end, t)) / t


EULER = {
    "euler_wrong_direction": step(lambda D, x, s, t: x - (t - s) * (x - D(x, s)) / s),
    "euler_half_score": step(lambda D, x, s, t: x + (t - s) * (x - D(x, s)) / (2 * s)),
    "euler_divides_by_the_next": step(lambda D, x, s, t: x + (t - s) * (x - D(x, s)) / (t or s)),
    "euler_moves_D": step(lambda D, x, s, t: D(x, s)),
    "euler_sigma_squared": step(lambda D, x, s, t: x + (t**2 - s**2) * (x - D(x, s)) / s**2),
}
HEUN = {
    "heun_without_average": heun(right_second, average=False),
    "heun_second_slope_at_x": heun(lambda D, x, end, s, t: (x - D(x, t)) / t),
    "heun_second_slope_at_sigma": heun(lambda D, x, end, s, t: (end - D(end, s)) / s),
    "heun_is_euler": heun(lambda D, x, end, s, t: (x - D(x, s)) / s),
}
mutants(lambda s: sampling.law_step_is_the_formula(s, "euler", 0.5, 1.0), "euler", **EULER)
mutants(lambda s: sampling.law_step_is_the_formula(s, "heun", 0.5, 1.0), "heun", **HEUN)
mutants(
    lambda s: sampling.law_converges_with_order(s, 2),
    "heun",
    **{f"order_of_{mistake}": sampler for mistake, sampler in HEUN.items()},
)
mutants(
    lambda s: sampling.law_converges_with_order(s, 1),
    "euler",
    order_of_half_score=EULER["euler_half_score"],
    order_of_wrong_direction=EULER["euler_wrong_direction"],
)


def heun_to_zero(denoise: Any, x: Tensor, s: float, t: float) -> Tensor:
    slope = (x - denoise(x, s)) / s
    end = x + (t - s) * slope
    return x + (t - s) * (slope + (end - denoise(end, t)) / max(t, 1e-9)) / 2


mutants(
    sampling.law_denoiser_is_never_called_at_zero,
    "heun",
    heun_calls_at_zero=step(heun_to_zero),
    euler_calls_one_level_late=step(lambda D, x, s, t: x + (t - s) * (x - D(x, t)) / s),
)


def sampler_instead(wrong: testbed.Sampler) -> Callable[..., Tensor]:
    return lambda denoise, x, levels, sampler: testbed.sample(denoise, x, levels, sampler=wrong)


mutants(
    lambda sample: sampling.law_trajectory_is_stability(sample, "euler"),
    testbed.sample,
    stability_euler_is_heun=sampler_instead(default_registry().sampler("heun")),
)
mutants(
    lambda sample: sampling.law_trajectory_is_stability(sample, "heun"),
    testbed.sample,
    stability_heun_without_average=sampler_instead(HEUN["heun_without_average"]),
)
mutants(
    sampling.law_euler_is_ddim,
    testbed.sample,
    ddim_is_heun=sampler_instead(default_registry().sampler("heun")),
    ddim_stops_before_zero=lambda denoise, x, levels, sampler: testbed.sample(
        denoise, x, levels[:-1], sampler=sampler
    ),
)

# --- the denoiser --------------------------------------------------------------------------------


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


def scales_law(d: testbed.Denoiser) -> None:
    c = fixed()
    _, _, c_in, c_noise = parameterizations.TABLE["v"](c.S, c.SD)
    denoisers.law_network_sees_its_scales(d, c, c_in, c_noise)


def algebra_law(d: testbed.Denoiser) -> None:
    c = fixed()
    denoisers.law_denoiser_is_its_algebra(d, d.output(c.x, c.sigma), "edm", c)


def tweedie_law(d: testbed.Denoiser) -> None:
    c = fixed()
    denoisers.law_score_is_tweedie(d.score, d, d.output(c.x, c.sigma), "edm", c)


mutants(
    scales_law,
    made(testbed.Denoiser, "v"),
    input_not_scaled=made(InputNotScaled, "v"),
    c_noise_is_log=made(LogInsteadOfSigma, "v"),
)
mutants(
    algebra_law,
    made(testbed.Denoiser),
    denoiser_skips_scaled_x=made(DenoisesScaledInput),
    denoiser_without_sigma_data=made(WithoutSigmaData),
)
mutants(
    tweedie_law,
    made(testbed.Denoiser),
    tweedie_square_dropped=made(ScoreNotSquared),
    tweedie_sign=made(ScoreSign),
)


# --- the tests of the tests ----------------------------------------------------------------------


@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda mutant: mutant.mistake)
def test_mutant_is_rejected(mutant: Mutant) -> None:
    mutant.law(mutant.right)
    with pytest.raises(AssertionError):
        mutant.law(mutant.wrong)


def test_catalogue_is_large_and_names_are_unique() -> None:
    count = Counter(mutant.mistake for mutant in CATALOGUE)
    assert len(count) >= 25
    assert max(count.values()) == 1
