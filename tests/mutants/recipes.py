"""Mistakes in recipes, as papers are misread: each against the paper's own coordinates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from laws import recipes as laws
from laws.recipes import Trained, changed
from mutants.registry import REGISTRY, given, laws_of, rejected_by
from torch import Tensor

FAMILY = laws_of("laws: recipes", "a recipe as a trial trains it, against its paper")
WEIGHT = laws.law_weight_and_density_are_the_paper_s
INPUTS = laws.law_inputs_are_the_paper_s
TARGET = laws.law_network_is_asked_for_what_the_paper_asks
LEVELS = laws.law_levels_are_the_paper_s


def recipe(law: Any, name: str, sigma_data: float = 0.5, **wrong_ones: Any) -> None:
    """Enters wrong versions of a recipe: other choices, or another `Trained`."""
    subjects = {
        f"{name}: {mistake}": one if isinstance(one, Trained) else changed(name, sigma_data, **one)
        for mistake, one in wrong_ones.items()
    }
    stated = given(law, laws.papers(sigma_data)[name])
    rejected_by(FAMILY, stated, changed(name, sigma_data), **subjects)


class OverSigma(type(REGISTRY.density("lognormal"))):  # type: ignore[misc]
    """A pdf over sigma in the place of one over log sigma."""

    def pdf_over_log_sigma(self, sigma: Tensor) -> Tensor:
        return super().pdf_over_log_sigma(sigma) / sigma


def over_sigma(name: str) -> Trained:
    one = changed(name, 0.5)
    density = one.objective.density
    wrong = object.__new__(OverSigma)
    wrong.__dict__.update(density.__dict__)
    return replace(one, objective=replace(one.objective, density=wrong))


def told(name: str, function: Any, sigma_data: float = 0.5) -> Trained:
    """c_noise as a function of the right one."""
    one = changed(name, sigma_data)
    right = one.inputs

    def inputs(sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in, c_noise = right(sigma)
        return c_in, function(c_noise)

    return replace(one, inputs=inputs)


recipe(
    WEIGHT,
    "ddpm",
    weight_of_x0_and_not_of_eps={"weighting": "unit"},
    eps_s_weight_divided_by_sigma_again={"weighting": "score"},
    beta_up_to_a_twenty_fifth={"table": {"name": "ddpm", "end": 0.04}},
    sqrt_beta_in_equal_steps={"table": "scaled_linear"},
    a_hundred_levels={"table": {"name": "ddpm", "n": 100}},
    cut_at_a_hundredth={"sigma_min": 0.02},
)
recipe(
    INPUTS,
    "ddpm",
    sigma_for_the_index={"c_noise": "native"},
    index_from_one=told("ddpm", lambda n: n + 1),
    index_from_the_noisy_end=told("ddpm", lambda n: 999 - n),
    x_and_not_x_t={"c_in": "unit"},
)
recipe(
    WEIGHT,
    "progressive_v",
    density_over_sigma=over_sigma("progressive_v"),
    snr_without_one={"weighting": "eps"},
    weight_of_v_taken_twice={"weighting": "v", "loss": "x0", "density": "loguniform"},
    log_snr_uniform={"density": "loguniform"},
    min_for_max={"weighting": {"name": "min_snr", "gamma": 1.0}},
)
recipe(
    INPUTS,
    "progressive_v",
    sigma_for_log_snr={"c_noise": "native"},
    log_sigma_for_log_snr={"c_noise": "log_sigma"},
    sign_of_log_snr=told("progressive_v", lambda c: -c),
)
recipe(
    WEIGHT,
    "progressive_x0",
    min_for_max={"weighting": {"name": "min_snr", "gamma": 1.0}},
    snr_without_its_floor={"weighting": "eps"},
    the_weight_of_v={"weighting": "v"},
)
recipe(
    INPUTS, "progressive_x0", c_in_of_edm={"c_in": "native"}, c_noise_of_edm={"c_noise": "native"}
)
recipe(
    WEIGHT,
    "edm",
    weight_of_f_without_c_out={"weighting": None, "loss": "l2"},
    density_over_sigma=over_sigma("edm"),
    std_for_variance={"density": {"name": "lognormal", "mean": -1.2, "std": 1.44}},
    mean_of_sigma_and_not_of_its_logarithm={"density": {"name": "lognormal", "mean": 1.2}},
    density_of_edm2={"density": {"name": "lognormal", "mean": -0.4, "std": 1.0}},
)
recipe(
    INPUTS,
    "edm",
    log_sigma_without_its_quarter={"c_noise": "log_sigma"},
    sigma_data_forgotten={"c_in": "vp"},
)
recipe(
    WEIGHT,
    "edm2",
    density_of_edm={"density": {"name": "lognormal", "mean": -1.2, "std": 1.2}},
    weight_of_eps={"weighting": "eps"},
)
recipe(
    WEIGHT,
    "ncsn",
    1.7,
    unweighted_score={"weighting": None},
    weighted_by_sigma={"weighting": {"name": "p2", "k": 0.0, "g": 0.5}},
    sigma_data_forgotten={"table": {"name": "geometric", "n": 10, "low": 0.02, "high": 2.0}},
    pixels_not_centred={
        "table": {
            "name": "geometric",
            "n": 10,
            "low": "0.02 * sigma_data",
            "high": "2 * sigma_data",
        }
    },
    a_hundred_levels={
        "table": {
            "name": "geometric",
            "n": 100,
            "low": "0.04 * sigma_data",
            "high": "4 * sigma_data",
        }
    },
)
recipe(
    INPUTS,
    "ncsn",
    sigma_for_the_index={"c_noise": "native"},
    index_from_the_noisy_end=told("ncsn", lambda n: 9 - n),
    scaled_input={"c_in": "shared"},
)
recipe(TARGET, "ncsn", output_divided_by_sigma={"output": "-eps"}, asked_for_eps={"output": "eps"})
recipe(
    WEIGHT,
    "ve",
    1.7,
    unweighted_score={"weighting": None},
    sigma_data_forgotten={
        "density": {"name": "loguniform", "low": 0.02, "high": 100.0},
        "sigma_min": 0.02,
        "sigma_max": 100.0,
    },
    sigma_uniform=over_sigma("ve"),
    likelihood_weight={"weighting": "unit"},
)
recipe(
    INPUTS,
    "ve",
    1.7,
    sigma_for_its_logarithm={"c_noise": "native"},
    log_sigma_over_four={"c_noise": "shared"},
    unit_variance={"c_in": "shared"},
)
recipe(TARGET, "ve", 1.7, raw_score={"output": "F"}, sign_of_eps={"output": "eps"})
recipe(
    LEVELS,
    "ve",
    1.7,
    sigma_data_forgotten={"sigma_min": 0.02, "sigma_max": 100.0},
    levels_of_edm={"sigma_min": 0.002, "sigma_max": 80.0},
)
recipe(
    WEIGHT,
    "vp_karras",
    density_over_sigma=over_sigma("vp_karras"),
    beta_d_for_beta_max={"density": {"name": "vp", "beta_d": 20.0}},
    betas_exchanged={"density": {"name": "vp", "beta_d": 0.1, "beta_min": 19.9}},
)
recipe(
    INPUTS,
    "vp_karras",
    m_for_m_minus_one=told("vp_karras", lambda c: c / 999 * 1000),
    time_from_zero_to_one=told("vp_karras", lambda c: c / 999),
    sigma_for_t={"c_noise": "native"},
)
recipe(LEVELS, "vp_karras", cut_at_80={"sigma_max": 80.0}, first_t_of_sampling={"sigma_min": 0.02})
recipe(WEIGHT, "ve_karras", scaled={"density": "lognormal"}, weight_of_x0={"weighting": "unit"})
recipe(INPUTS, "ve_karras", half_forgotten={"c_noise": "log_sigma"}, unit_variance={"c_in": "vp"})
recipe(
    WEIGHT,
    "rectified_flow",
    uniform_time={"density": "loguniform"},
    density_over_sigma=over_sigma("rectified_flow"),
    weight_of_x0={"weighting": "unit"},
)
recipe(
    INPUTS,
    "rectified_flow",
    time_turned_round={"c_noise": "reversed_time"},
    variance_preserving={"c_in": "vp"},
)
recipe(
    WEIGHT,
    "jit",
    time_turned_round={"density": {"name": "logit_normal", "mean": -0.8, "std": 0.8}},
    clip_forgotten={"weighting": "flow"},
    clip_of_a_tenth={"weighting": {"name": "clipped_flow", "clip": 0.1}},
    loss_of_x0={"weighting": "unit"},
)
recipe(
    INPUTS,
    "jit",
    time_turned_round={"c_noise": "time"},
    variance_preserving={"c_in": "vp"},
    noise_of_x0={"c_noise": "native"},
)
recipe(
    WEIGHT,
    "trigflow",
    1.7,
    density_of_edm={"density": {"name": "lognormal", "mean": -1.2, "std": 1.2}},
    density_of_consistency_training={"density": {"name": "lognormal", "mean": -1.0, "std": 1.4}},
    weight_of_v={"weighting": "v"},
)
