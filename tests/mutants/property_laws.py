"""Mistakes in the library that the laws of everything that is drawn reject."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any
from unittest import mock

import torch
from mutants.registry import FAMILIES, Stated, alpha, laws_of, wrong
from properties import laws_of_coordinates as coordinates
from properties import laws_of_kinds as of_kinds
from properties import laws_of_parameterizations as of_parameterizations
from properties import laws_of_tensors  # noqa: F401
from properties.states import LAWS
from torch import Tensor

import testbed
from testbed import tensors
from testbed.diffusion import noise_levels, parameterization, predictions
from testbed.diffusion.predictions import PREDICTION_TYPES, PredictionType
from testbed.registry import Registry

Patch = Callable[[], Any]
PROPERTIES = laws_of(
    "properties",
    "the library, by laws of everything that is drawn, each on few examples",
    raised=(AssertionError, RuntimeError),
)


def stated(name: str) -> Stated:
    """The law of nothing in particular, on the examples that reject mistakes."""

    @wraps(LAWS[name])
    def law(_: None) -> None:
        LAWS[name].few()

    return Stated(law)


FAMILIES[PROPERTIES].right.update({name: stated(name) for name in LAWS})


def mutant(mistake: str, patch: Patch, *laws: str) -> None:
    """Enters a mistake, how to make it, and the laws that must reject it."""
    for name in laws:
        one = stated(name)
        wrong(PROPERTIES, mistake, one, one.id, patch=patch)


def kind(name: str, a: Callable[..., Tensor], b: Callable[..., Tensor]) -> Patch:
    return lambda: mock.patch.dict(PREDICTION_TYPES, {name: PredictionType(name, a, b)})


zero, one = torch.zeros_like, torch.ones_like
mutant("x0 scaled by alpha", kind("x0", alpha, zero), "x0_is_the_clean_data", "x0_is_D")
mutant(
    "eps scaled by alpha",
    kind("eps", zero, alpha),
    "eps_is_the_unit_noise",
    "eps_is_x_minus_D_over_sigma",
    "D_is_x_minus_sigma_eps",
    "every_kind_gives_every_other",
)
mutant(
    "score of the other sign",
    kind("score", zero, lambda s: 1 / s),
    "score_is_minus_eps_over_sigma",
    "score_is_D_minus_x_over_sigma_squared",
    "D_is_x_plus_sigma_squared_score",
    "every_kind_gives_every_other",
)
mutant(
    "score over sigma^2",
    kind("score", zero, lambda s: -1 / s**2),
    "score_is_minus_eps_over_sigma",
    "weight_of_each_kind_is_one_over_B_squared",
)
mutant(
    "v with a plus",
    kind("v", lambda s: s * alpha(s), alpha),
    "v_is_alpha_eps_minus_s_x0",
    "v_is_x_minus_one_plus_sigma_squared_D_over_sigma_root",
    "D_is_alpha_squared_x_minus_s_v",
    "v_tends_to_minus_x0_as_sigma_grows",
    "edm_output_at_unit_sigma_data_is_minus_v",
)
mutant(
    "v with alpha for s",
    kind("v", lambda s: -alpha(s), lambda s: s * alpha(s)),
    "v_is_alpha_eps_minus_s_x0",
    "v_tends_to_eps_as_sigma_vanishes",
)
mutant(
    "u with data at t = 1",
    kind("flow", one, lambda s: -one(s)),
    "flow_is_eps_minus_x0",
    "flow_is_x_minus_D_over_sigma_minus_D",
    "D_is_x_minus_sigma_flow_over_one_plus_sigma",
)


def convert(wrong: Callable[..., Tensor]) -> Patch:
    return lambda: mock.patch.object(testbed, "convert", wrong)


right_convert = predictions.convert


def through_x0(q: Tensor, source: Any, target: Any, **given: Any) -> Tensor:
    return right_convert(right_convert(q, source, "x0", **given), "x0", target, **given)


def first_sigma(q: Tensor, source: Any, target: Any, *, sigma: Tensor, **given: Any) -> Tensor:
    return right_convert(q, source, target, sigma=sigma.flatten()[0], **given)


def mean_sigma(q: Tensor, source: Any, target: Any, *, sigma: Tensor, **given: Any) -> Tensor:
    return right_convert(q, source, target, sigma=sigma * (1 if sigma.ndim else 1.001), **given)


def float32(q: Tensor, source: Any, target: Any, *, x: Tensor, **given: Any) -> Tensor:
    return right_convert(q.float(), source, target, x=x.float(), **given)


def in_place(q: Tensor, source: Any, target: Any, *, x: Tensor, **given: Any) -> Tensor:
    found = right_convert(q, source, target, x=x, **given)
    x.mul_(2)
    return found


def infinite(q: Tensor, source: Any, target: Any, *, sigma: Tensor, **given: Any) -> Tensor:
    found = right_convert(q, source, target, sigma=sigma, **given)
    far = tensors.per_sample(sigma.double() ** 100, found)
    return (found * (far / far)).to(found.dtype)


def one_way(q: Tensor, source: Any, target: Any, **given: Any) -> Tensor:
    found = right_convert(q, source, target, **given)
    return found if target == "x0" else found * 1.01


mutant("conversion through x0 alone", convert(through_x0), "every_kind_gives_every_other")
mutant(
    "sigma of the first sample for all",
    convert(first_sigma),
    "every_kind_gives_every_other",
    "batch_is_its_samples_one_by_one",
)
mutant(
    "a scalar sigma handled apart",
    convert(mean_sigma),
    "one_sigma_is_the_same_sigma_for_every_sample",
)
mutant(
    "float32 inside and out", convert(float32), "result_has_the_dtype_and_shape_of_the_prediction"
)
mutant("x changed in place", convert(in_place), "conversion_leaves_its_arguments_alone")
mutant("an overflow at the ends", convert(infinite), "conversions_are_finite_at_both_ends")
mutant(
    "one way off by a hundredth",
    convert(one_way),
    "round_trip_returns_the_prediction",
    "triangle_through_a_third_kind_is_the_direct_way",
)


def pair(change: Callable[..., tuple[Tensor, Tensor]]) -> Patch:
    right = predictions.to_pair

    def wrong(q: Tensor, source: Any, *, x: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        return change(*right(q, source, x=x, **given))

    return lambda: mock.patch.object(of_kinds, "to_pair", wrong)


mutant(
    "a pair that makes another x",
    pair(lambda x0, eps: (x0, 1.01 * eps)),
    "pair_of_a_prediction_makes_x",
)


def squashed(q: Tensor, source: Any, target: Any, **given: Any) -> Tensor:
    found = right_convert(q, source, target, **given)
    return found.clamp(-1, 1) if target == "x0" else found


mutant("D clipped to [-1, 1]", convert(squashed), "guidance_is_the_same_in_every_kind")


# --- coordinates -----------------------------------------------------------------------------


def schedule(name: str, **change: Any) -> Patch:
    wrong = replace(coordinates.SCHEDULES[name], **change)
    return lambda: mock.patch.dict(coordinates.SCHEDULES, {name: wrong})


flow, cosine = coordinates.SCHEDULES["flow"], coordinates.SCHEDULES["cosine"]
mutant(
    "alpha of flow squared",
    schedule("flow", alpha=lambda t: (1 - t) ** 2),
    "x_t_is_alpha_x0_plus_s_eps",
    "alpha_plus_s_is_1_in_flow",
)
mutant(
    "cosine without pi",
    schedule("cosine", alpha=lambda t: torch.cos(t / 2)),
    "alpha_squared_plus_s_squared_is_1_where_variance_is_preserved",
    "same_state_in_every_coordinate_gives_the_same_x0",
)
mutant(
    "time of flow from the data",
    schedule("flow", time=lambda s: 1 / (1 + s)),
    "sigma_to_t_to_sigma_returns_sigma",
    "t_to_sigma_to_t_returns_t",
)
mutant(
    "s and alpha of flow exchanged",
    schedule("flow", alpha=flow.s, s=flow.alpha),
    "snr_falls_as_t_grows",
)


@contextlib.contextmanager
def score_divided() -> Iterator[None]:
    def wrong(self: noise_levels.NoiseSchedule, score: Tensor, t: Any) -> Tensor:
        return tensors.scaled(score, 1 / self.alpha(tensors.widen(t)))

    with mock.patch.object(noise_levels.NoiseSchedule, "score_to_ve", wrong):
        yield


mutant("score divided by alpha", score_divided, "score_in_x_t_is_the_score_in_x_over_alpha")


@contextlib.contextmanager
def promoted() -> Iterator[None]:
    def wrong(x: Tensor, factor: Tensor) -> Tensor:
        return x * tensors.per_sample(factor, x)

    with mock.patch.object(noise_levels, "scaled", wrong):
        yield


mutant("x_t in sigma's dtype", promoted, "x_t_has_the_dtype_and_shape_of_x")


# --- parameterizations -----------------------------------------------------------------------


def output(name: str, change: Callable[..., dict[str, Any]]) -> Patch:
    """The registry's `name` with the methods that `change(p)` names replaced."""
    right = Registry.parameterization

    def wrong(self: Registry, asked: str, **options: Any) -> Any:
        p = right(self, asked, **options)
        if asked == name:
            for method, function in change(p).items():
                object.__setattr__(p, method, function)
        return p

    return lambda: mock.patch.object(Registry, "parameterization", wrong)


def scaling(name: str, change: Callable[[Any], Any]) -> Patch:
    """... whose scaling is `change` of the right coefficients."""

    def methods(p: Any) -> dict[str, Any]:
        right = p.coefficients
        return {"coefficients": lambda s, **given: change(right(s, **given))}

    return output(name, methods)


def target(name: str, change: Callable[..., Tensor]) -> Patch:
    return output(name, lambda p: {"stated_target": change})


mutant(
    "target of v as published elsewhere, s x0 - alpha eps",
    target("v", lambda x0, eps, sigma: (sigma * x0 - eps) * alpha(sigma)),
    "output_named_after_a_kind_is_that_kind",
    "optimal_output_denoises_to_x0",
    "c_skip_plus_c_out_a_is_1_and_c_skip_sigma_plus_c_out_b_is_0",
)
mutant(
    "EDM's target without sigma_data",
    target("edm", lambda x0, eps, sigma: (sigma * x0 - eps) * alpha(sigma)),
    "edm_output_is_sigma_x0_minus_sigma_data_squared_eps_over_sigma_data_r",
    "edm_target_has_unit_variance",
    "edm_is_homogeneous",
    "edm_output_tends_to_x0_over_sigma_data_as_sigma_grows",
)
mutant(
    "EDM's target with eps's sign turned",
    target(
        "edm",
        lambda x0, eps, sigma, sigma_data: (
            (sigma * x0 + sigma_data**2 * eps) / (sigma_data * torch.sqrt(sigma**2 + sigma_data**2))
        ),
    ),
    "edm_output_tends_to_minus_eps_as_sigma_vanishes",
    "edm_output_at_unit_sigma_data_is_minus_v",
)
mutant(
    "c_in of EDM without its root",
    scaling("edm", lambda c: c._replace(in_=c.in_**2)),
    "edm_input_has_unit_variance",
)
mutant(
    "c_skip of EDM without its square",
    scaling("edm", lambda c: c._replace(skip=c.skip**0.5)),
    "edm_D_tends_to_sigma_data_F_as_sigma_grows",
    "optimal_output_denoises_to_x0",
)
mutant(
    "c_skip of v is 1 - alpha^2",
    scaling("v", lambda c: c._replace(skip=1 - c.skip)),
    "D_tends_to_x_as_sigma_vanishes",
)
mutant(
    "c_out of score without its square",
    scaling("score", lambda c: c._replace(out=c.out**0.5)),
    "weight_of_an_output_is_one_over_c_out_squared",
    "optimal_output_denoises_to_x0",
)
mutant(
    "c_out of eps in absolute value",
    scaling("eps", lambda c: c._replace(out=c.out.abs())),
    "weight_of_an_output_is_one_over_c_out_squared",
)


def not_squared(space: Any, sigma: Tensor, sigma_data: float | None = None) -> Tensor:
    return predictions.slope(space, sigma, sigma_data).abs().sqrt()


mutant(
    "B_q for B_q^2",
    lambda: mock.patch.object(of_parameterizations, "slope", not_squared),
    "squared_error_in_a_space_is_its_weight_times_that_of_D",
    "weight_of_each_kind_is_one_over_B_squared",
)


def method(role: str, change: Callable[..., Callable[..., Any]]) -> Patch:
    """A method of every parameterization replaced by `change` of it."""
    right = getattr(parameterization.Parameterization, role)
    return lambda: mock.patch.object(parameterization.Parameterization, role, change(right))


def clipped(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, F, x, sigma, **given: right(self, F, x, sigma, **given).clamp(-1, 1)


def added(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(self: Any, D: Tensor, x: Tensor, sigma: Any, **given: Any) -> Tensor:
        return right(self, D, -x, sigma, **given)

    return wrong


def wide(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, *parts, **given: right(self, *(part.double() for part in parts), **given)


def shared(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrong(self: Any, F: Tensor, x: Tensor, sigma: Tensor, **given: Any) -> Tensor:
        return right(self, F, x, sigma.flatten()[0], **given)

    return wrong


mutant(
    "D clipped", method("denoise", clipped), "D_is_c_skip_x_plus_c_out_F", "F_to_D_to_F_returns_F"
)
mutant(
    "F with c_skip x added",
    method("output", added),
    "F_is_D_minus_c_skip_x_over_c_out",
    "F_to_D_to_F_returns_F",
)
mutant("D and F in float64", method("denoise", wide), "D_and_F_have_the_dtype_and_shape_of_x")
mutant(
    "one sigma for a batch of outputs",
    method("denoise", shared),
    "batch_of_outputs_is_its_samples_one_by_one",
)
