"""Mistakes in weightings, densities and losses, each rejected by its law."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from laws import densities, losses, weightings
from mutants.registry import given, laws_of, rejected_by
from torch import Tensor

import testbed
from testbed import tensors
from testbed.diffusion import predictions
from testbed.registry import default_registry
from testbed.training.objective import Objective, Terms

# --- weightings ----------------------------------------------------------------------------------

WEIGHTINGS = laws_of("laws: weightings", "weightings, and what an objective makes of them")


def weighting(function: Callable[..., Tensor]) -> testbed.Weighting:
    return testbed.Weighting("wrong", function).bound({})


def formula_law(name: str) -> Callable[[testbed.Weighting], None]:
    sigma = torch.logspace(-2, 1.8, 20, dtype=torch.float64)
    return given(weightings.law_weight_is_the_formula, name, sigma, 0.5)


rejected_by(
    WEIGHTINGS,
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
rejected_by(
    WEIGHTINGS,
    formula_law("min_snr"),
    weightings.weighting("min_snr"),
    min_snr_is_max=weighting(lambda sigma: (1 / sigma**2).clamp(min=5.0)),
    min_snr_of_one_over_sigma=weighting(lambda sigma: (1 / sigma).clamp(max=5.0)),
    min_snr_in_eps_form=weighting(lambda sigma: (5.0 * sigma**2).clamp(max=1.0)),
    min_snr_default_one=weighting(lambda sigma: (1 / sigma**2).clamp(max=1.0)),
)
rejected_by(
    WEIGHTINGS,
    formula_law("p2"),
    weightings.weighting("p2"),
    p2_in_eps_form=weighting(lambda sigma: 1 / (1 + 1 / sigma**2)),
)
rejected_by(
    WEIGHTINGS,
    formula_law("soft_min_snr"),
    weightings.weighting("soft_min_snr"),
    soft_min_snr_gamma_inverted=weighting(lambda sigma: 1 / (sigma**2 + 5.0)),
)
for space, wrong_weight in {
    "eps": weighting(lambda sigma: sigma**2),
    "score": weighting(lambda sigma: 1 / sigma**2),
    "v": weighting(lambda sigma: 1 + 1 / sigma),
}.items():
    rejected_by(
        WEIGHTINGS,
        given(weightings.law_weight_is_the_squared_error_of_a_space, space, 0.3),
        weightings.weighting(space),
        **{f"weight_of_{space}_space": wrong_weight},
    )
rejected_by(
    WEIGHTINGS,
    given(weightings.law_sigmoid_is_an_effective_weight, weightings.density("cosine"), 0.3, 0.0),
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
rejected_by(
    WEIGHTINGS,
    given(weightings.law_k_is_lambda_b_squared, "eps"),
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
rejected_by(
    WEIGHTINGS,
    given(weightings.law_unweighted_loss_is_the_weight_of_its_space, "v"),
    unweighted,
    unweighted_loss_is_weighted=as_(WeightAsWell, unweighted),
    unweighted_loss_in_another_space=weightings.objective("eps", None),
)

# --- densities -----------------------------------------------------------------------------------

DENSITIES = laws_of("laws: densities", "densities over log sigma, their quantiles and cuts")


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
rejected_by(
    DENSITIES,
    given(densities.law_pdf_integrates_to_one, lognormal.condition),
    right,
    pdf_not_renormalised=density(NotRenormalised, "lognormal"),
    pdf_over_sigma=density(OverSigma, "lognormal"),
    pdf_root_of_two_pi_dropped=density(
        testbed.Density,
        "lognormal",
        pdf=lambda sigma: torch.exp(-((sigma.log() + 1.2) ** 2) / 2.88),
    ),
)
rejected_by(
    DENSITIES,
    given(densities.law_inverse_is_that_of_the_pdf, lognormal.condition),
    right,
    quantiles_not_renormalised=density(Clamped, "lognormal"),
    quantiles_mirrored=density(Mirrored, "lognormal"),
    pdf_of_another_mean=density(
        testbed.Density,
        "lognormal",
        pdf=lambda sigma: normal_pdf((sigma.log() - 1.2) / 1.2) / 1.2,
    ),
)
rejected_by(
    DENSITIES,
    given(densities.law_quantile_is_the_closed_form, lognormal),
    right,
    quantiles_clamped_only=density(Clamped, "lognormal"),
    std_for_variance=density(
        testbed.Density,
        "lognormal",
        icdf=lambda u: torch.exp(-1.2 + 1.44 * torch.special.ndtri(u)),
    ),
)
rejected_by(
    DENSITIES,
    given(densities.law_pdf_is_the_closed_form, lognormal),
    right,
    pdf_std_outside_dropped=density(
        testbed.Density, "lognormal", pdf=lambda sigma: normal_pdf((sigma.log() + 1.2) / 1.2)
    ),
)
rejected_by(
    DENSITIES,
    densities.law_quantiles_stay_in_the_cut,
    right,
    quantile_of_zero_is_zero=density(Unbounded, "lognormal"),
)
rejected_by(
    DENSITIES,
    densities.law_no_mass_outside_the_cut,
    right,
    pdf_not_cut=density(NotCut, "lognormal"),
)
rejected_by(
    DENSITIES,
    given(densities.law_pdf_is_the_closed_form, densities.TRUTH["cosine"]),
    density(testbed.Density, "cosine"),
    cosine_pdf_over_sigma=density(
        testbed.Density, "cosine", pdf=lambda sigma: 2 / (math.pi * (1 + sigma**2))
    ),
)
rejected_by(
    DENSITIES,
    given(densities.law_quantile_is_the_closed_form, densities.TRUTH["logit_normal"]),
    density(testbed.Density, "logit_normal"),
    logit_normal_gives_time=density(
        testbed.Density, "logit_normal", icdf=lambda u: torch.sigmoid(torch.special.ndtri(u))
    ),
)
rejected_by(
    DENSITIES,
    densities.law_table_has_equal_masses,
    density(testbed.Density, "ddpm"),
    table_from_its_end=density(Mirrored, "ddpm"),
)
rejected_by(
    DENSITIES,
    densities.law_table_pdf_is_mass_over_spacing,
    density(testbed.Density, "ddpm"),
    table_pdf_is_bare_mass=density(
        testbed.Density, "ddpm", pdf=lambda sigma: torch.full_like(sigma, 1 / 1000)
    ),
)

# --- losses --------------------------------------------------------------------------------------

LOSSES = laws_of("laws: losses", "the objective, its gradient and its scale")


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
rejected_by(
    LOSSES,
    given(losses.law_gradient_is_that_of_the_weighted_error, "edm", "v", "min_snr"),
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
rejected_by(
    LOSSES,
    given(losses.law_loss_is_k_times_the_discrepancy, "eps", "v", "edm", "l1"),
    l1,
    l1_weight_in_its_space=as_(WeightInTheLossSpace, l1),
    l1_with_b_not_squared=as_(BNotSquared, l1),
    l1_gain_halved=as_(HalfGain, l1),
    l1_in_another_space=losses.objective("eps", "eps", "edm", "l1"),
    l1_is_l2=losses.objective("eps", "v", "edm", "l2"),
)
huber = losses.objective("eps", "x0", "edm", "huber")
rejected_by(
    LOSSES,
    given(losses.law_loss_is_k_times_the_discrepancy, "eps", "x0", "edm", "huber"),
    huber,
    huber_of_another_delta=replace(
        huber, loss=default_registry().loss("huber", space="x0", delta=0.5)
    ),
)
rejected_by(
    LOSSES,
    losses.law_space_does_not_matter_for_weighted_l2,
    lambda space: losses.objective("v", space, "edm"),
    space_multiplies_the_weight=lambda space: as_(
        WeightInTheLossSpace, losses.objective("v", space, "edm")
    ),
)
near = losses.objective("edm", "x0", "edm")
rejected_by(
    LOSSES,
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
rejected_by(
    LOSSES,
    given(losses.law_scale_is_the_expected_loss_at_zero, "x0", "x0", "unit"),
    scaled,
    scale_of_another_weight=losses.objective("x0", "x0", "edm"),
    scale_of_centred_data=as_(ScaleOfCentredData, scaled),
)
