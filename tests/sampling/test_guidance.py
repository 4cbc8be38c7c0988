"""Guidance: its identities in every form, the exact conditional oracles, and the classifier.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, gamma
from helpers.strategies import WIDE, draws, float64
from hypothesis import given
from hypothesis import strategies as st
from laws.guidance import (
    FIRST,
    MEANS,
    PI,
    SPREADS,
    conditional,
    fields,
    mixture,
    table,
)
from scipy import integrate, stats
from torch import Tensor

import testbed
from testbed.components.guidance import Condition
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.diffusion.predictions import PREDICTION_TYPES, slope
from testbed.errors import InputError, UnknownName
from testbed.oracles import Conditional, Gaussian
from testbed.random import stream
from testbed.registry import default_registry
from testbed.sampling.guidance import ClassifierFree, ClassifierGuided
from testbed.training import classifier

REGISTRY = default_registry()
AFFINE = [
    p
    for name in REGISTRY.names("parameterization")
    if (p := REGISTRY.parameterization(name)).affine
]
FORMS = [*PREDICTION_TYPES, *(f"F of {p.name}" for p in AFFINE)]
SD = 0.5
U = 2.0**-53


# --- classifier-free ----------------------------------------------------------------------------


def test_a_denoiser_of_weight_zero_is_not_asked() -> None:
    for w, wanted in ((0.0, [-1]), (1.0, [0]), (2.0, [-1, 0])):
        asked: list[int] = []
        guided = ClassifierFree(table(fields(torch.float64), asked), [({"label": FIRST}, w)])
        guided(torch.zeros(5, 3).double(), torch.ones(5))
        assert asked == wanted


@pytest.mark.parametrize("negative", [None, {"group": torch.tensor([2, 0, 1, 1, 2])}])
def test_all_conditions_are_one_call(negative: Condition | None) -> None:
    calls: list[tuple[Tensor, Tensor, Condition | None]] = []

    def denoiser(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        calls.append((x, sigma, condition))
        return x

    x, sigma, labels = draws((5, 3), 3), torch.arange(1.0, 6), torch.tensor([0, 1, 0, 1, -1])
    ClassifierFree(denoiser, [({"label": labels}, 2.0)], negative)(x, sigma)
    [(asked, levels, condition)] = calls
    assert torch.equal(asked, torch.cat([x, x]))
    assert torch.equal(levels, torch.cat([sigma, sigma]))
    off = torch.full((5,), -1)
    wanted = {"label": torch.cat([off, labels])}
    if negative is not None:
        wanted["group"] = torch.cat([negative["group"], off])
    assert condition is not None
    assert condition.keys() == wanted.keys()
    assert all(torch.equal(condition[name], wanted[name]) for name in wanted)


# --- the forms ----------------------------------------------------------------------------------


def to_form(form: str, D: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """The table of kinds: what D is in that form. s (B, 1) float64, like D and x."""
    if form not in PREDICTION_TYPES:
        c = coefficients(form, s)
        return (D - c["skip"] * x) / c["out"]
    a = torch.sqrt(1 + s**2)
    return {
        "x0": lambda: D,
        "eps": lambda: (x - D) / s,
        "score": lambda: (D - x) / s**2,
        "v": lambda: (x - (1 + s**2) * D) / (s * a),
        "flow": lambda: (x - D) / s - D,
    }[form]()


def from_form(form: str, q: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """D of a prediction in that form."""
    if form not in PREDICTION_TYPES:
        c = coefficients(form, s)
        return c["skip"] * x + c["out"] * q
    a = torch.sqrt(1 + s**2)
    return {
        "x0": lambda: q,
        "eps": lambda: x - s * q,
        "score": lambda: x + s**2 * q,
        "v": lambda: (x - s * a * q) / (1 + s**2),
        "flow": lambda: (x - s * q) / (1 + s),
    }[form]()


def named(form: str) -> str | testbed.Parameterization:
    """The kind, or the parameterization of an F."""
    return (
        form if form in PREDICTION_TYPES else REGISTRY.parameterization(form.removeprefix("F of "))
    )


def coefficients(form: str, s: Tensor) -> dict[str, Tensor]:
    c = REGISTRY.parameterization(form.removeprefix("F of ")).coefficients(s, sigma_data=SD)
    return {"skip": c.skip, "out": c.out}


def pull(form: str, s: Tensor) -> Tensor:
    """What grad log p(y|x) is multiplied by in that form, beside lambda."""
    return {
        "x0": s**2,
        "eps": -s,
        "score": torch.ones_like(s),
        "v": -s * torch.sqrt(1 + s**2),
        "flow": -s * (1 + s),
    }[form] if form in PREDICTION_TYPES else s**2 / coefficients(form, s)["out"]  # fmt: skip


cases = given(
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(WIDE),
    log_sigma=st.floats(-4, 4),
    w=st.floats(-2, 8),
    seed=st.integers(0, 2**16),
)


@pytest.mark.slow
@cases
def test_the_same_scale_holds_in_every_form(
    form: str, dtype: torch.dtype, log_sigma: float, w: float, seed: int
) -> None:
    """q_n + w (q_c - q_n) is D_n + w (D_c - D_n) in eps, score, x0, v, flow and every F."""
    D, sigma = fields(dtype, seed), torch.full((5,), 10.0**log_sigma, dtype=torch.float64)
    s = sigma[:, None]
    x = D[0].double() + s * draws((5, 3), seed + 7)
    x = x.to(dtype)
    found = ClassifierFree(table(D), [({"label": FIRST}, w)])(x, sigma)
    q_n, q_c = (to_form(form, D[k].double(), x.double(), s) for k in (-1, 0))
    wanted = from_form(form, q_n + w * (q_c - q_n), x.double(), s)
    terms = (1 + 2 * abs(w)) * (D[-1].abs() + D[0].abs()).double()
    # The other side rounds in float64: each q carries x to its own size and back.
    there = gamma(24) * (1 + 2 * abs(w)) * (x.abs().double() + terms)
    assert_within(found, wanted, terms, 4, dtype, plus=there)


def linear(g: Tensor) -> Any:
    """A classifier with gradient g for class 0 and -g for class 1."""

    def log_classes(x: Tensor, sigma: Tensor) -> Tensor:
        along = (x * g).flatten(1).sum(1)
        return torch.stack([along, -along], 1)

    return log_classes


@cases
def test_a_classifier_enters_every_form_by_its_slope(
    form: str, dtype: torch.dtype, log_sigma: float, w: float, seed: int
) -> None:
    """eps - l sigma g, score + l g, v - l sigma sqrt(1 + sigma^2) g, ...: one denoiser."""
    D, g = draws((5, 3), seed, dtype), draws((5, 3), seed + 1, dtype)
    sigma = torch.full((5,), 10.0**log_sigma, dtype=torch.float64)
    s = sigma[:, None]
    x = (D.double() + s * draws((5, 3), seed + 2)).to(dtype)
    y = torch.tensor([0, 1, 0, -1, 1])
    sign = float64([1, -1, 1, 0, -1])[:, None]
    found = ClassifierGuided(lambda x, sigma: D, linear(g), y, w)(x, sigma)
    q = to_form(form, D.double(), x.double(), s) + w * pull(form, s) * sign * g.double()
    wanted = from_form(form, q, x.double(), s)
    terms = D.abs().double() + abs(w) * s**2 * g.abs().double()
    assert_within(found, wanted, terms, 6, dtype, plus=gamma(24) * (x.abs().double() + terms))


@pytest.mark.parametrize("form", FORMS)
def test_the_factor_of_a_classifier_is_sigma_squared_times_the_slope(form: str) -> None:
    s = torch.logspace(-4, 4, 33, dtype=torch.float64)
    assert_within(pull(form, s), s**2 * slope(named(form), s, SD), pull(form, s), 24)


def test_forms_are_what_they_are_for_the_library() -> None:
    """The tables above are those of `convert`, at points where neither loses digits."""
    sigma, D = torch.tensor([0.5, 2.0]).double(), draws((2, 3), 1)
    x = D + sigma[:, None] * draws((2, 3), 2)
    for form in FORMS:
        found = testbed.convert(D, "x0", named(form), x=x, sigma=sigma, sigma_data=SD)
        assert torch.allclose(found, to_form(form, D, x, sigma[:, None]), rtol=1e-13, atol=1e-13)


# --- the exact conditional oracles --------------------------------------------------------------


def test_sampling_with_components_gives_the_samples_and_their_components() -> None:
    """The samples of `sample`, bit for bit; whitened by their component, they are N(0, I)."""
    x0, k = mixture().sample_labelled(4000, stream(0, "s"))
    assert torch.equal(x0, mixture().sample(4000, stream(0, "s")))
    z = (x0 - MEANS[k]) / SPREADS[k]
    assert stats.kstest(z.numpy().ravel(), "norm").pvalue > 1e-6
    counts = torch.bincount(k, minlength=4).double()
    assert stats.chisquare(counts.numpy(), (4000 * PI).numpy()).pvalue > 1e-6


def test_impossible_conditions_and_unknown_names_are_told() -> None:
    found, x = conditional(), torch.zeros(2, 3).double()
    with pytest.raises(InputError, match=r"label = 0, group = 1: no part of the data has it"):
        found.given({"label": 0, "group": 1})
    with pytest.raises(UnknownName, match=r"condition 'lable'. Did you mean 'label'\?"):
        found.denoise(x, 1.0, {"lable": torch.zeros(2).long()})
    with pytest.raises(UnknownName, match="condition 'shape'"):
        found.log_classes("shape", x, 1.0)
    for wrong in ([], [1, 1], [4], [-1]):
        with pytest.raises(ValueError, match="expected different ones of 0 to 3"):
            mixture().restricted(wrong)
    for classes in (torch.arange(3), torch.arange(4.0), torch.tensor([0, 1, 2, -1])):
        with pytest.raises(ValueError, match=r"components\['label'\]"):
            Conditional(mixture(), {"label": classes})
    for p in (torch.ones(4, 2).double(), torch.tensor([[1.5, -0.5]] * 4).double()):
        with pytest.raises(ValueError, match="expected rows of probabilities"):
            Conditional(mixture(), {"caption": p})
    with pytest.raises(InputError, match="caption = 3: no part of the data has it"):
        found.given({"caption": 3})
    with pytest.raises(InputError, match="label = 2, caption = 0: no part of the data has it"):
        found.given({"label": 2, "caption": 0})


# --- classifier guidance of exact parts ---------------------------------------------------------


# --- guided sampling ----------------------------------------------------------------------------

WIDTH, NARROW, MEAN = 1.0, 0.4, 0.7


def end_of_path(x: np.ndarray, top: float, w: float) -> np.ndarray:
    """The end at 0 of dx/dsigma = (x - D_w)/sigma for N(0, WIDTH^2) guided to N(MEAN, NARROW^2).

    x' = a(sigma) x - b(sigma) with a = sigma ((1 - w)/(WIDTH^2 + sigma^2) + w/(NARROW^2 + sigma^2))
    and b = w sigma MEAN/(NARROW^2 + sigma^2); so x(0) = h(0) (x(top)/h(top) + int_0^top b/h), where
    h = (WIDTH^2 + sigma^2)^((1 - w)/2) (NARROW^2 + sigma^2)^(w/2).
    """

    def h(s: float) -> float:
        return (WIDTH**2 + s**2) ** ((1 - w) / 2) * (NARROW**2 + s**2) ** (w / 2)

    pulled, _ = integrate.quad(
        lambda s: w * s * MEAN / (NARROW**2 + s**2) / h(s), 0, top, epsabs=1e-13, epsrel=1e-13,
        limit=500,
    )  # fmt: skip
    return h(0) * (x / h(top) + pulled)


def guided_gaussian(w: float) -> ClassifierFree:
    wide = Gaussian(torch.zeros(1), torch.eye(1) * WIDTH**2)
    narrow = Gaussian(torch.full((1,), MEAN), torch.eye(1).double() * NARROW**2)

    def denoiser(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        given = torch.full((1,), -1) if condition is None else condition["label"]
        on = given.expand(len(x))[:, None] >= 0
        return torch.where(on, narrow.denoise(x, sigma), wide.denoise(x, sigma))

    return ClassifierFree(denoiser, [({"label": FIRST}, w)])


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "heun", "lms", "dpmpp_2m", "ddim"])
@pytest.mark.parametrize("w", [0.5, 1.0, 2.0, 4.0])
def test_guided_sampling_converges_to_the_guided_path(sampler: str, w: float) -> None:
    """Against the linear ODE of two Gaussians in closed form: halved steps, the error falls."""
    x, top = 20.0 * draws((50, 1), 5), 20.0
    exact = torch.from_numpy(end_of_path(x.numpy(), top, w))
    errors = [
        float((testbed.sample(guided_gaussian(w), x, karras_sigmas(n, 1e-4, top), sampler) - exact)
              .abs().max())
        for n in (100, 200, 400)
    ]  # fmt: skip
    order = 1 if sampler in ("euler", "ddim") else 2
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > order - 0.3
    assert errors[-1] < (0.05 if order == 1 else 2e-3)


# --- the classifier -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data() -> testbed.Data:
    return REGISTRY.dataset("mixture", dim=3, n=4000, test=1000)()


@pytest.mark.slow
def test_a_classifier_learns_the_exact_one(data: testbed.Data) -> None:
    """Its KL from p(y|x) is a small part of that of equal odds, and its guess as often right."""
    settings = classifier.ClassifierSettings(steps=800, width=32)
    model = classifier.train(data, "label", 0.01, 20.0, settings, 0)
    assert data.conditional is not None
    for sigma in (0.02, 0.3, 1.0, 4.0):
        x = data.test + sigma * draws(tuple(data.test.shape), 8, torch.float32)
        log_p = data.conditional.log_classes("label", x.double(), sigma)
        with torch.no_grad():
            log_q = model(x, torch.full((len(x),), sigma)).double()
        p = log_p.exp()
        kl = float((p * (log_p - log_q)).sum(1).mean())
        equal = float((p * (log_p + math.log(4))).sum(1).mean())
        assert 0 < kl < 0.15 * equal
        right, best = ((log.argmax(1) == data.test_labels).double() for log in (log_q, log_p))
        # Paired: the difference of the two is that of the samples they disagree on.
        apart = best - right
        assert float(apart.mean()) <= 0.02 + 4 * float(apart.std()) / len(x) ** 0.5


@pytest.mark.slow
def test_a_classifier_is_that_of_its_seed_alone(data: testbed.Data) -> None:
    settings = classifier.ClassifierSettings(steps=60, width=8, depth=1, batch=16)
    before = torch.get_rng_state()
    one, two, other = (
        classifier.train(data, "group", 0.01, 20.0, settings, seed).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["first.weight"], other["first.weight"])
    assert one["last.weight"].shape == (2, 8)


def test_a_classifier_starts_from_equal_odds_and_depends_on_the_noise(data: testbed.Data) -> None:
    model = classifier.Classifier((3,), 4, 0.5, classifier.ClassifierSettings(width=8, depth=1))
    x, sigma = data.test[:5], torch.logspace(-2, 1, 5)
    assert_within(
        model(x, sigma).exp(), torch.full((5, 4), 0.25), torch.ones(5, 4), 8, torch.float32
    )
    torch.nn.init.normal_(model.last.weight, generator=stream(0, "w"))
    with torch.no_grad():
        found = torch.stack([model(x[:1], s[None])[0] for s in sigma])
    assert len(found.unique(dim=0)) == 5


def test_bad_settings_of_a_classifier_are_told(data: testbed.Data) -> None:
    for wrong, message in (
        ({"steps": 0}, "steps = 0 is out of range"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"width": 0}, "width = 0, depth = 2: expected"),
    ):
        with pytest.raises(InputError, match=message):
            classifier.ClassifierSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="condition 'shape'"):
        classifier.train(data, "shape", 0.01, 20.0, classifier.ClassifierSettings(steps=1), 0)


def test_the_synthetic_mixture_tells_its_components(data: testbed.Data) -> None:
    """Labels and groups are those of the points: exact odds of the clean data say so."""
    assert data.classes == {"label": 4, "group": 2}
    assert data.conditional is not None
    assert data.train_labels is not None
    log_p = data.conditional.log_classes("label", data.train.double(), 0.01)
    wrong = (log_p.argmax(1) != data.train_labels).double().mean()
    expected = 1 - log_p.amax(1).exp().mean()
    assert float(wrong) <= float(expected) + 4 * math.sqrt(float(expected) / len(log_p)) + 1e-9
    group = data.condition("train", ["group"])["group"]
    assert torch.equal(group, (data.train_labels >= 2).long())


# --- reference outputs --------------------------------------------------------------------------
