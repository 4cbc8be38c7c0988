"""Laws of the loss: per sample, mean over dimensions of k(sigma) m(q_hat, q)."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, gamma, rounded
from helpers.covering import pairwise
from helpers.published import SGM
from helpers.strategies import Case, case, draws, fixed, float64
from laws.conversions import TRUTH
from laws.losses import (
    ALL_SPACES,
    METRICS,
    SIGMA_DATA,
    cloud,
    in_space,
    lambda_,
    law_gradient_is_that_of_the_weighted_error,
    law_loss_is_k_times_the_discrepancy,
    law_scale_is_the_expected_loss_at_zero,
    law_small_residual_keeps_its_digits,
    law_space_does_not_matter_for_weighted_l2,
    levels,
    naive,
    objective,
    parameterization,
    row,
    squared_slope,
    target_terms,
)
from laws.parameterizations import BENT, TABLE
from laws.weightings import WEIGHTS
from torch import Tensor

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.training.objective import Objective

PARAMETERIZATIONS = [*TABLE, "flow"]
# A learned one is in test_plugins.py.
WEIGHTINGS = [
    None,
    *(
        name
        for name in default_registry().names("weighting")
        if default_registry().weighting(name).state is None
    ),
]


# --- the gradient table --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "space", "weighting"), pairwise(PARAMETERIZATIONS, list(ALL_SPACES), WEIGHTINGS)
)
def test_gradient_table(name: str, space: str, weighting: str | None) -> None:
    o = objective(name, space, weighting)
    law_gradient_is_that_of_the_weighted_error(o, name, space, weighting)


# --- values, all losses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "space", "loss", "weighting"),
    pairwise(
        PARAMETERIZATIONS, list(ALL_SPACES), list(METRICS), [None, "edm", "min_snr", "sigmoid"]
    ),
)
def test_loss_is_k_times_the_discrepancy(
    name: str, space: str, loss: str, weighting: str | None
) -> None:
    o = objective(name, space, weighting, loss)
    law_loss_is_k_times_the_discrepancy(o, name, space, weighting, loss)


def recorder(space: str) -> tuple[testbed.Loss, list[Tensor]]:
    """A loss that keeps what it was given."""
    seen: list[Tensor] = []

    def keep(prediction: Tensor, target: Tensor) -> Tensor:
        seen.extend((prediction, target))
        return torch.zeros_like(target)

    return testbed.Loss("keep", keep, space=space), seen


@pytest.mark.parametrize("space", ALL_SPACES)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_loss_is_given_the_prediction_and_the_target(name: str, space: str) -> None:
    """(q_hat, q) themselves: l1, l2 and huber know only |q_hat - q|, another loss may not.

    Float32 coefficients and float64 sums: q has gamma_4(float32) (|a_q x0| + |b_q eps|), q_hat that
    and the e of the law above.
    """
    c = levels()
    F = draws(tuple(c.x0.shape), 99)
    loss, seen = recorder(space)
    replace(objective(name, space, None), loss=loss)(F, c.x0, c.eps, c.sigma)
    q_hat, q = in_space(name, space, exact(F), c)
    ends = (
        target_terms(name, c)
        if space == "F"
        else tuple(
            TRUTH[space](x0, eps, c.S, c.SD) for x0, eps in ((c.X0, 0 * c.EPS), (0 * c.X0, c.EPS))
        )
    )
    terms = sum(np.abs(term) for term in ends) + 0 * c.X0
    assert_within(seen[1], q, terms, 4, torch.float32)
    gain = np.abs(row(name, c)[1]) * squared_slope(name, space, c) ** 0.5
    residual = np.abs(exact(F)) + sum(np.abs(term) for term in target_terms(name, c))
    assert_within(seen[0], q_hat, terms + gain * residual, 4, torch.float32)


def test_huber_has_both_branches_here() -> None:
    c = levels()
    q_hat, q = in_space("eps", "eps", exact(draws(tuple(c.x0.shape), 99)), c)
    far = np.abs(q_hat - q) > 1
    assert far.any()
    assert not far.all()


def test_only_the_squared_error_elicits_the_mean_unasked() -> None:
    """Of the registered losses l2 and the parameterizations' own; another has to claim it."""
    registry = default_registry()
    for name in METRICS:
        assert registry.loss(name).elicits_mean == (name == "l2")
    assert all(registry.loss(name).elicits_mean for name in TABLE)
    assert testbed.Loss("relative", lambda q_hat, q: q_hat / q, elicits_mean=True).elicits_mean


def test_squared_is_the_square_of_the_difference() -> None:
    """Exact numbers: 3 - 5 and -1/2 - 1."""
    found = testbed.squared(float64([3.0, -0.5]), float64([5.0, 1.0]))
    assert torch.equal(found, float64([4.0, 2.25]))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_space_does_not_matter_for_weighted_l2(name: str) -> None:
    law_space_does_not_matter_for_weighted_l2(lambda space: objective(name, space, "edm"))


def test_each_sample_has_its_own_loss() -> None:
    """A batch is its samples one by one, bit for bit: elementwise operations, and means of rows."""
    c = fixed()
    F = draws((9, 9), 99)
    for loss in METRICS:
        o = objective("edm", "v", "edm", loss)
        whole = o(F, c.x0, c.eps, c.sigma)
        for i in range(9):
            r = slice(i, i + 1)
            assert torch.equal(o(F[r], c.x0[r], c.eps[r], c.sigma[r]), whole[r])


def test_image_shapes_are_means_over_all_dimensions() -> None:
    """The same numbers as a vector and as an image; the sums may differ in order: 12 additions."""
    c = case((3, 12), float64([0.1, 1.0, 10.0]))
    F = draws((3, 12), 99)
    o = objective("v", "eps", "min_snr")
    flat = o(F, c.x0, c.eps, c.sigma)
    image = o(*(t.reshape(3, 3, 2, 2) for t in (F, c.x0, c.eps)), c.sigma)
    assert_within(image, exact(flat), exact(flat), 12)


# --- precision -----------------------------------------------------------------------------------


def test_small_residual_keeps_its_digits() -> None:
    o = objective("edm", "x0", "edm")
    law_small_residual_keeps_its_digits(lambda F, c: o(F, c.x0, c.eps, c.sigma))


def test_naive_loss_loses_its_digits() -> None:
    """Why the rule is taken on the F side: D - x0 does not obey the law."""
    with pytest.raises(AssertionError, match="times its bound"):
        law_small_residual_keeps_its_digits(naive)


def test_float32_loss_at_the_lowest_level_is_finite() -> None:
    """k and gain^2 may each overflow float32 where their product does not: one factor."""
    c = case((2, 3), torch.full((2,), 1e-10, dtype=torch.float64))
    for name in TABLE:
        F = parameterization(name).target(c.x0, c.eps, c.sigma, sigma_data=SIGMA_DATA).float()
        loss = objective(name, "F", None)(F, c.x0.float(), c.eps.float(), c.sigma)
        assert bool(torch.isfinite(loss).all()), name


# --- what a loss is divided by -------------------------------------------------------------------

SCALES = [
    ("edm", "x0", "edm"),
    ("edm", "F", None),
    ("v", "v", None),
    ("eps", "x0", "eps"),
    ("x0", "x0", "unit"),
    ("eps", "x0", "min_snr"),
    ("score", "eps", None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "space", "weighting"), SCALES)
def test_scale_is_the_expected_loss_at_zero(name: str, space: str, weighting: str | None) -> None:
    o = objective(name, space, weighting)
    law_scale_is_the_expected_loss_at_zero(o, name, space, weighting)


def test_scale_is_one_number_for_everyone() -> None:
    o = objective("edm", "x0", "edm")
    assert o.scale(cloud()) == o.scale(cloud())


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_nothing_can_be_divided_by_is_refused(value: float) -> None:
    constant = testbed.Loss("constant", lambda q_hat, q: torch.full_like(q, value))
    o = replace(objective("edm", "x0", "edm"), weighting=None, loss=constant)
    with pytest.raises(InputError, match=f"the loss at F = 0 is {value}"):
        o.scale(cloud())


def test_an_objective_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        objective("edm", "x0", "edm").sigma_data = 1.0


def test_a_loss_names_both_its_arguments() -> None:
    with pytest.raises(InputError, match=r"must take 2 arguments .*, takes \(q_hat, \*rest\)"):
        testbed.Loss("rest", lambda q_hat, *rest: q_hat)


# --- a parameterization that is not affine -------------------------------------------------------


def warped_target(x0: Tensor, eps: Tensor, sigma: Tensor, bend: float = 1.0) -> Tensor:
    return torch.asinh(bend * x0) / bend


def warped_denoise(F: Tensor, x: Tensor, sigma: Tensor, bend: float = 1.0) -> Tensor:
    return torch.sinh(bend * F) / bend


WARPED = testbed.Parameterization("warped", target=warped_target, denoise=warped_denoise)


def warped(weighting: str | None, loss: str = "l2", space: str = "x0") -> Objective:
    o = objective("x0", "x0", weighting, loss)
    bound = default_registry().loss(loss, space=space)
    return Objective(WARPED.bound({"bend": 2.0}), o.weighting, bound, o.density, SIGMA_DATA)


@pytest.mark.parametrize("loss", METRICS)
@pytest.mark.parametrize("weighting", [None, "unit", "edm"])
def test_non_affine_loss_is_the_weighted_error(weighting: str | None, loss: str) -> None:
    """In x0 space: lambda m(sinh(2 F)/2 - x0), and its gradient; 8 float64 roundings of terms |D|
    and |x0| (sinh 2, its argument's |2 F|)."""
    c = levels()
    F = (draws(tuple(c.x0.shape), 99) / 2).requires_grad_()
    found = warped(weighting, loss)(F, c.x0, c.eps, c.sigma)
    (gradient,) = torch.autograd.grad(found.sum(), F)
    D = torch.sinh(2 * F) / 2
    weight = rounded(lambda_("x0", "x0", weighting, c))
    m: Any = {"l2": torch.square, "l1": torch.abs}.get(
        loss, lambda d: torch.where(d.abs() <= 1, d**2 / 2, d.abs() - 0.5)
    )
    wanted = (weight * m(D - c.x0)).mean(1)
    (expected,) = torch.autograd.grad(wanted.sum(), F)
    size = (D.abs() + c.x0.abs()) * (1 + 2 * F.abs())
    slope = 2 * ((D - c.x0).abs() + 1) * weight
    terms = exact((slope * size).mean(1))
    assert_within(found, exact(wanted), terms + exact(wanted), 16)
    grow = 2 * weight * (1 + size) * torch.cosh(2 * F) * (1 + 2 * F.abs()) / F[0].numel()
    assert_within(gradient, exact(expected), exact(grow), 32)


def test_non_affine_loss_on_the_output_side() -> None:
    """Space F without a weighting: |F - F*|^2. The output goes through D = sinh(2 F)/2 and back,
    which costs asinh's condition, at most 1, of D's roundings."""
    c = levels()
    F = draws(tuple(c.x0.shape), 99) / 2
    found = warped(None, space="F")(F, c.x0, c.eps, c.sigma)
    r = F - torch.asinh(2 * c.x0) / 2
    size = F.abs() + c.x0.abs()
    terms = exact((2 * (r.abs() + 1) * size * (1 + 2 * F.abs())).mean(1))
    assert_within(found, exact(r.square().mean(1)), terms, 20)


def test_non_affine_denoiser() -> None:
    """Denoiser and score of a non-affine parameterization, with the shared input scales."""
    c = levels()
    seen: list[Tensor] = []

    def network(y: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        seen.extend((y, c_noise))
        return 0.3 * torch.tanh(y)

    denoiser = testbed.Denoiser(network, WARPED, SIGMA_DATA)
    D = denoiser(c.x, c.sigma)
    y = c.x / torch.sqrt(c.sigma**2 + SIGMA_DATA**2)[:, None]
    wanted = torch.sinh(0.3 * torch.tanh(y))
    assert_within(D, exact(wanted), exact(1 + wanted.abs()), 16)
    assert_within(seen[0], exact(y), exact(y.abs()), 8)
    assert_within(seen[1], exact(torch.log(c.sigma) / 4), exact(torch.log(c.sigma).abs()), 4)
    score = (exact(D) - exact(c.x)) / c.S**2
    terms = (np.abs(exact(D)) + np.abs(exact(c.x))) / c.S**2
    assert_within(denoiser.score(c.x, c.sigma), score, terms, 8)


def test_a_loss_is_given_the_prediction_and_the_target_of_a_non_affine_one() -> None:
    """In eps space: D of sinh(F) and x, eps_hat = (x - D)/sigma with the terms |x| and D's own."""
    c = levels()
    F = draws(tuple(c.x0.shape), 99)
    loss, seen = recorder("eps")
    o = objective("x0", "eps", None)
    replace(o, parameterization=BENT, loss=loss)(F, c.x0, c.eps, c.sigma)
    r = (1 + c.S**2) ** 0.5
    v = np.frompyfunc(mpmath.sinh, 1, 1)(exact(F))
    D = (c.X - c.S * r * v) / r**2
    terms = (c.X_SIZE + (c.X_SIZE + c.S * r * np.abs(v)) / r**2) / c.S
    assert_within(seen[0], (c.X - D) / c.S, terms, 16)
    assert torch.equal(seen[1], c.eps)


def test_non_affine_has_no_coefficients() -> None:
    with pytest.raises(InputError, match="not affine"):
        WARPED.coefficients(1.0)
    with pytest.raises(InputError, match="not affine"):
        warped("unit", space="F")(*(torch.ones(2, 2).double(),) * 3, torch.ones(2).double())


# --- outside truth -------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", SGM["loss"]["values"])
def test_stability_loss(entry: str) -> None:
    """Its loss is mean w(sigma) |D - x0|^p: the l2 loss with that weighting, and for p = 1 the l1
    loss in x0 space, where k = lambda. Bound as for the values above; its side forms D - x0 in
    float64, at sigma > 0.06."""
    scaling, weight_name, metric = entry.split("|")
    name, _, rest = scaling.partition("(sigma_data=")
    shared = name == "v_edm_c_noise"
    name, sigma_data = ("v" if shared else name), float(rest.rstrip(")") or 1.0)
    numbers = SGM["loss"]
    c = Case(
        float64(numbers["x0"]), float64(numbers["noise"]), float64(numbers["sigma"]), sigma_data
    )
    A, b = float64(SGM["network"]["A"]), float64(SGM["network"]["b"])

    def network(y: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
        return y @ A.T + torch.tanh(c_noise)[:, None] * b

    weight, _, rest = weight_name.partition("(sigma_data=")
    registered = default_registry().weighting(weight)
    own = float(rest.rstrip(")") or 1.0)
    fixed_weight = testbed.Weighting("fixed", lambda sigma: registered(sigma, sigma_data=own))

    p = parameterization(name)
    c_noise = "shared" if shared else "native"
    denoiser = testbed.Denoiser(network, p, sigma_data, c_noise=c_noise)
    F = denoiser.output(c.x, c.sigma)
    registry = default_registry()
    o = Objective(
        p, fixed_weight, registry.loss(metric, space="x0"), registry.density("cosine"), sigma_data
    )
    found = o(F, c.x0, c.eps, c.sigma)
    k = WEIGHTS[weight](c.S, exact(own), None)
    skip, out = row(name, c)
    r = np.abs(skip * exact(c.x) + out * exact(F) - c.X0)
    e = (
        exact(gamma(4, torch.float32))
        * np.abs(out)
        * (np.abs(exact(F)) + sum(np.abs(t) for t in target_terms(name, c)))
    )
    wide = np.abs(skip * c.X) + np.abs(out * exact(F)) + np.abs(c.X0)
    e = e + exact(gamma(40)) * wide
    plus = (k * (e * (2 * r + e) if metric == "l2" else e)).mean(1)
    wanted = np.array(numbers["values"][entry])
    assert_within(found, wanted, wanted, 4, torch.float32, plus=plus)


# --- what has a state -----------------------------------------------------------------------------


class Drawn(torch.nn.Module):
    """A few drawn numbers, and how often it was asked."""

    calls: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.u = torch.nn.Parameter(torch.randn(size))
        self.register_buffer("calls", torch.zeros(()))


def build(size: int = 2) -> Drawn:
    return Drawn(size)


def learned_weight(sigma: Tensor, state: Drawn) -> Tensor:
    return state.u[0].exp() / sigma**2


def learned_penalty(sigma: Tensor, state: Drawn, times: float = 1.0) -> Tensor:
    return times * state.u[1] * sigma


def scaled_distance(q_hat: Tensor, q: Tensor, state: Drawn) -> Tensor:
    state.calls += 1
    return state.u[0].exp() * (q_hat - q).abs()


LEARNED = testbed.Weighting("learned", learned_weight, state=build, penalty=learned_penalty)
STATEFUL = testbed.Loss("stateful", scaled_distance, state=build)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: testbed.Weighting("w", learned_weight), "'w': asks for a state"),
        (lambda: testbed.Weighting("w", lambda sigma: sigma, state=build), "no function asks"),
        (
            lambda: testbed.Weighting("w", lambda sigma: sigma, penalty=lambda sigma: sigma),
            "a penalty without a state changes no gradient",
        ),
        (
            lambda: testbed.Weighting(
                "w", learned_weight, state=build, penalty=lambda sigma, other: sigma
            ),
            r"'w' \(penalty\): argument 'other'",
        ),
        (
            lambda: testbed.Weighting("w", learned_weight, state=lambda other: None),
            r"'w' \(state\): argument 'other'",
        ),
        (lambda: testbed.Loss("m", scaled_distance), "'m': asks for a state"),
        (lambda: testbed.Loss("m", lambda q_hat, q: q, state=build), "no function asks"),
        (
            lambda: testbed.Loss("m", scaled_distance, state=lambda other: None),
            r"'m' \(state\): argument 'other'",
        ),
        (
            lambda: testbed.Weighting("w", learned_weight, state=lambda: 3).build(),
            r"must build a torch.nn.Module, got 3",
        ),
    ],
)
def test_a_state_is_built_where_it_is_asked_for_and_nowhere_else(
    make: Callable[[], Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_the_range_of_a_weighting_is_an_interval() -> None:
    for wrong in ((1.0, 1.0), (2.0, 1.0), (-1.0, 2.0), (float("nan"), 1.0)):
        with pytest.raises(InputError, match="needs 0 <= low < high"):
            testbed.Weighting("w", lambda sigma: sigma, sigma_range=wrong)
    for right in ((0.0, 1.0), (0.002, 80.0), (2.0, float("inf"))):
        w = testbed.Weighting("w", lambda sigma: sigma, sigma_range=right)
        assert w.sigma_range == right
    assert testbed.Weighting("w", lambda sigma: sigma).sigma_range == (0.0, float("inf"))


def test_a_penalty_alone_may_ask_for_the_state() -> None:
    w = testbed.Weighting("w", lambda sigma: 1 / sigma, state=build, penalty=learned_penalty)
    state, sigma = w.build(), float64([1.0, 2.0])
    assert isinstance(state, Drawn)
    assert torch.equal(w.penalty_at(sigma, state), state.u[1] * sigma)
    assert torch.equal(w.bound({"times": 3.0}).penalty_at(sigma, state), 3.0 * state.u[1] * sigma)
    assert default_registry().weighting("edm").penalty_at(sigma, None) == 0


@pytest.mark.parametrize("component", [LEARNED, STATEFUL], ids=["weighting", "loss"])
def test_a_state_is_built_from_the_options(component: Any) -> None:
    assert component.build().u.shape == (2,)
    assert component.bound({"size": 3}).build().u.shape == (3,)
    with pytest.raises(TypeError, match="needs state"):
        component(*[float64([1.0])] * (2 if component is STATEFUL else 1))


@pytest.mark.parametrize("component", ["edm", "l2"])
def test_most_have_no_state(component: str) -> None:
    kind = default_registry().weighting if component == "edm" else default_registry().loss
    assert kind(component).build() is None


def stateful(
    weighting: testbed.Weighting | None = LEARNED, loss: testbed.Loss | None = None
) -> Objective:
    o = objective("v", "x0", None)
    return replace(o, weighting=weighting, loss=loss or o.loss)


def test_an_objective_starts_the_states_of_its_parts_from_the_seed() -> None:
    both = stateful(LEARNED, STATEFUL)
    before = torch.get_rng_state()
    one, same, other = both.with_states(3), both.with_states(3), both.with_states(4)
    assert torch.equal(before, torch.get_rng_state())
    assert both.states is None
    assert set(one.states) == {"weighting", "loss"}
    for axis in ("weighting", "loss"):
        assert torch.equal(one.states[axis].u, same.states[axis].u)
        assert not torch.equal(one.states[axis].u, other.states[axis].u)
    assert set(stateful(None, STATEFUL).with_states(0).states) == {"loss"}
    assert set(stateful().with_states(0).states) == {"weighting"}
    plain = objective("v", "x0", "edm")
    assert plain.with_states(3) is plain


def test_terms_are_fixed_where_nothing_learns_the_weight() -> None:
    assert objective("v", "x0", "edm").fixed
    assert stateful(None, STATEFUL).with_states(0).fixed
    assert not stateful().with_states(0).fixed
    assert not replace(objective("v", "x0", None), parameterization=BENT).fixed


def test_a_learned_weighting_is_the_weight_of_its_state_plus_the_penalty() -> None:
    """The same bits as a fixed weighting of that number, and u_1 sigma on top."""
    c, o = levels(), stateful().with_states(3)
    F = draws(tuple(c.x0.shape), 99)
    u = o.states["weighting"].u
    number = testbed.Weighting("number", lambda sigma: u[0].exp() / sigma**2)
    known = replace(o, weighting=number, states=None)
    found = o(F, c.x0, c.eps, c.sigma)
    assert torch.equal(found, known(F, c.x0, c.eps, c.sigma) + u[1] * c.sigma)
    (slopes,) = torch.autograd.grad(found.sum(), u)
    # u_0 scales what is not the penalty, whose slope is sigma: float32 sums of nine terms.
    wanted = torch.stack([(found - u[1] * c.sigma).sum(), c.sigma.sum()]).detach()
    assert_within(slopes, wanted, wanted.abs() + c.sigma.sum(), 32, torch.float32)
    weight = o.effective_weight(c.sigma)
    assert torch.equal(weight, known.effective_weight(c.sigma).detach())
    assert not weight.requires_grad


def test_a_loss_with_a_state_is_given_it() -> None:
    c, o = levels(), stateful(None, STATEFUL).with_states(3)
    F = draws(tuple(c.x0.shape), 99)
    u = o.states["loss"].u[0].exp().detach()
    known = replace(o, loss=testbed.Loss("known", lambda a, b: u * (a - b).abs()), states=None)
    assert torch.equal(o(F, c.x0, c.eps, c.sigma), known(F, c.x0, c.eps, c.sigma))
    assert o.states["loss"].calls == 1


def test_the_scale_changes_no_state() -> None:
    o = stateful(LEARNED, STATEFUL).with_states(3)
    o = replace(o, weighting=None)
    first = o.scale(cloud())
    assert o.states["loss"].calls == 0
    assert o.scale(cloud()) == first
