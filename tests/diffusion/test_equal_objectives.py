"""Twins: which parameterizations differ by a constant factor of F, and what a report says."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.planted_studies import noisy, plant, said
from helpers.strategies import draws, sigma_datas
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import testbed
from testbed import report
from testbed.diffusion.equal_objectives import RESOLUTION, equal_objectives_of, factor
from testbed.diffusion.parameterization import Parameterization
from testbed.registry import default_registry
from testbed.report import comparisons, equal_objectives, reading

REGISTRY = default_registry()
EVERY = [REGISTRY.parameterization(name) for name in REGISTRY.names("parameterization")]
V, EDM, EPS = (REGISTRY.parameterization(name) for name in ("v", "edm", "eps"))

# --- of parameterizations -----------------------------------------------------------------------


def written(a: Callable[..., Any], b: Callable[..., Any], **more: Any) -> Parameterization:
    """A parameterization by its target a x0 + b eps; D = (b x - sigma F)/(b - sigma a)."""

    def scaling(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
        n = b(sigma, sigma_data) - sigma * a(sigma, sigma_data)
        one = torch.ones_like(sigma)
        return testbed.Coefficients(b(sigma, sigma_data) / n, -sigma / n, one, sigma)

    def target(x0: Tensor, eps: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
        return a(sigma, sigma_data) * x0 + b(sigma, sigma_data) * eps

    return Parameterization("written", scaling, target=target, **more)


def without_target(p: Parameterization) -> Parameterization:
    """The same scaling, the target left to follow from it."""
    return Parameterization("derived", p.scaling)


def test_the_twins_among_the_bundled_ones() -> None:
    """Karras et al. 2022 at sigma_data = 1 is -v; TrigFlow is v there and minus EDM anywhere."""
    for sigma_data in (1.0, 0.5):
        pairs = {
            (p.name, name): c
            for p in EVERY
            for name, c in equal_objectives_of(p, EVERY, sigma_data).items()
        }
        one = {("v", "edm"): -1, ("v", "trigflow"): 1} if sigma_data == 1 else {}
        known = {("eps", "minus_eps"): -1, ("edm", "trigflow"): -1, **one}
        assert pairs == known | {(b, a): c for (a, b), c in known.items()}


@pytest.mark.slow
@given(sigma_datas, st.sampled_from([-1.0, 2.0, -0.3, 1e-3, 1e3]))
def test_a_multiple_is_a_twin_with_its_factor(sigma_data: float, c: float) -> None:
    for p in EVERY:
        a, b = (
            lambda sigma, sd, i=i, p=p: c * p.pair_weights(sigma, sigma_data=sd)[i] for i in (0, 1)
        )
        (found,) = equal_objectives_of(p, [written(a, b)], sigma_data).values()
        # c is a sum of squares over one: 2 n roundings and a product each, n = 66.
        assert math.isclose(found, c, rel_tol=200 * 2.0**-53)


@given(sigma_datas)
def test_a_target_that_follows_from_the_scaling_is_a_twin_of_the_stated_one(
    sigma_data: float,
) -> None:
    """(1 - c_skip)/c_out cancels at small sigma, by less than the resolution."""
    for p in EVERY:
        assert equal_objectives_of(p, [without_target(p)], sigma_data) == {"derived": 1.0}


def angle(sigma: Tensor, sigma_data: float) -> Tensor:
    return torch.atan(sigma / sigma_data)


@given(sigma_datas)
def test_a_formula_that_loses_digits_is_still_found(sigma_data: float) -> None:
    """cos(t) near pi/2 is off by u/cos(t) = u sigma/sigma_data: 1e-11 at worst here."""
    trig = written(
        lambda sigma, sd: -torch.sin(angle(sigma, sd)) / sd,
        lambda sigma, sd: torch.cos(angle(sigma, sd)),
    )
    assert equal_objectives_of(EDM, [trig], sigma_data) == {"written": -1.0}


MUTANTS = {
    "a millionth in b": lambda sigma, a, b: (a, b * (1 + 1e-6)),
    "a millionth in a": lambda sigma, a, b: (a * (1 + 1e-6), b),
    "a factor that depends on sigma": lambda sigma, a, b: (a * sigma, b * sigma),
    "a slow factor": lambda sigma, a, b: (a * sigma**1e-6, b * sigma**1e-6),
    "the sign of b": lambda sigma, a, b: (a, -b),
    "the sign above 1": lambda sigma, a, b: ((1 - 2 * (sigma > 1)) * a, (1 - 2 * (sigma > 1)) * b),
    "one level": lambda sigma, a, b: (a * (1 + 1e-6 * (sigma == sigma.max())), b),
    "nothing": lambda sigma, a, b: (0 * a, 0 * b),
    "not a number": lambda sigma, a, b: (a * math.nan, b),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_off_is_no_twin(mutant: str) -> None:
    a, b = (
        lambda sigma, sd, i=i: MUTANTS[mutant](sigma, *V.pair_weights(sigma, sigma_data=sd))[i]
        for i in (0, 1)
    )
    assert equal_objectives_of(V, [written(a, b)], 1.0) == {}


@given(st.integers(0, 2**20), st.sampled_from([1.0, -1.0, 3.0]))
def test_the_resolution_is_two_roundings_to_float32(seed: int, c: float) -> None:
    """What training holds in float32 never makes strangers of twins, and little more makes it."""
    first = draws((2, 33), seed)
    assert factor(first.float().double(), (c * first).float().double()) == c
    for off, expected in ((RESOLUTION / 4, c), (8 * RESOLUTION, None)):
        second = c * first
        second[:, 5] *= 1 + off
        assert factor(first, second) == expected


def test_a_twin_of_another_name_and_itself() -> None:
    assert equal_objectives_of(V, [V], 1.0) == {}
    again = testbed.Registry().parameterization("v")
    assert equal_objectives_of(V, [again], 1.0) == {}
    assert equal_objectives_of(V, [Parameterization("v", V.scaling)], 1.0) == {"v": 1.0}


def test_only_levels_where_both_are_defined_are_compared() -> None:
    def low(sigma: Tensor, sd: float) -> Tensor:
        return torch.where(sigma < 1, 0.0, math.nan)

    half = written(low, lambda sigma, sd: torch.ones_like(sigma), sigma_range=(0.0, 1.0))
    whole = written(low, lambda sigma, sd: torch.ones_like(sigma))
    high = written(low, lambda sigma, sd: torch.ones_like(sigma), sigma_range=(1.0, math.inf))
    assert equal_objectives_of(EPS, [half], 1.0) == {"written": 1.0}
    assert equal_objectives_of(EPS, [whole], 1.0) == equal_objectives_of(half, [high], 1.0) == {}


def test_what_is_not_affine_has_no_twins() -> None:
    given_ = Parameterization("given", target=lambda x0, eps: eps, denoise=lambda F, x, sigma: x)
    assert equal_objectives_of(given_, EVERY, 1.0) == {}
    assert equal_objectives_of(EPS, [given_], 1.0) == {}


# --- in a report --------------------------------------------------------------------------------

WHY = "the same objective; F differs by the sign"


def group(*members: str, factors: tuple[float, ...] = (), why: str = WHY) -> dict[str, Any]:
    return {"case": "c", "arm": "", "members": members, "factors": factors, "why": why}


def planted(folder: Path, values: dict[str, Any], *groups: dict[str, Any], **more: Any) -> Path:
    return plant(
        folder, {("c", "", name): y for name, y in values.items()}, equal_objectives=groups, **more
    )


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_study_of_twins_alone_has_no_winner_and_says_how_alike_they_are(tmp_path: Path) -> None:
    y = [3.0, 4.0, 3.5, 4.5, 5.0]  # the planted mmd is y - 1
    for name, other, measured in (
        ("equal", y, ", and every metric of theirs is the same number at every seed."),
        ("close", [y[0] * (1 + 2e-7), *y[1:]], ", and their metrics differ by at most 3.00e-7 of"),
        ("unfinished", ["new"] * 5, "."),
    ):
        folder = planted(tmp_path / name, {"a": y, "b": other}, group("a", "b"), baseline="a")
        text = said(folder)
        assert f"Note that a and b are equal objectives ({WHY}){measured}" in text
        assert "is lowest" not in text
        assert "learning rate" not in text
        page = " ".join(report.write(folder).read_text().split())
        assert page.count(f"a and b are equal objectives ({WHY}){measured.rstrip('.')}") == 2


@pytest.mark.slow
def test_a_difference_of_any_metric_at_any_seed_shows(tmp_path: Path) -> None:
    y = noisy(1.0)
    for seed in range(5):
        other = [value * (1 + 1e-3 * (i == seed)) for i, value in enumerate(y)]
        folder = planted(tmp_path / str(seed), {"a": y, "b": other}, group("a", "b"), baseline="a")
        assert "at most" in said(folder)


def test_a_twin_that_diverged_alone_is_told(tmp_path: Path) -> None:
    other: list[Any] = noisy(1.0)
    other[2] = "diverged"
    folder = planted(tmp_path, {"a": noisy(1.0), "b": other}, group("a", "b"), baseline="a")
    assert "and yet at some seed only one of them diverged." in said(folder)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["a", "b", "d"])
def test_a_winner_with_a_twin_is_measured_against_the_others(tmp_path: Path, baseline: str) -> None:
    values = {"a": noisy(0.9), "b": noisy(0.9), "d": noisy(1.1, stream=1)}
    folder = planted(tmp_path, values, group("a", "b"), baseline=baseline)
    text = said(folder)
    effect = {
        "a": "d is worse than a (22 % [21, 24])",
        "b": "d is worse than b (22 % [21, 24])",
        "d": "a is better than d (−18 % [−19, −17])",
    }
    assert effect[baseline] in text
    assert ("equal objectives: not compared." in text) == (baseline != "d")
    assert (
        f"Note that a and b are equal objectives ({WHY}), and every metric of theirs is the same"
        in text
    )
    first = "b" if baseline == "b" else "a"
    assert f"{first} is lowest, and better than d." in text


@pytest.mark.slow
def test_a_twin_of_the_baseline_has_levels_against_the_next(tmp_path: Path) -> None:
    values = {"a": noisy(0.9), "b": noisy(0.9), "d": noisy(1.1, stream=1)}
    folder = planted(tmp_path, values, group("a", "b"), baseline="b")
    assert "By noise level, the loss / Wiener loss of d against b: worse at" in said(folder)


@pytest.mark.slow
def test_another_size_of_f_is_shown_and_compared(tmp_path: Path) -> None:
    why = "the same objective; F differs by the factor 2: compared all the same"
    one = group("a", "b", factors=(1.0, 2.0), why=why)
    folder = planted(tmp_path, {"a": noisy(0.9), "b": noisy(1.1, stream=1)}, one)
    text = said(folder)
    assert re.search(r"a is (better|worse|undecided|equivalent)|a differs", text)
    assert f"Note that a and b are equal objectives ({why})." in text
    versus = comparisons.make(reading.read(folder)).of("c", "", "a", "b")
    assert versus is not None
    assert versus.verdict == "better"


@pytest.mark.slow
def test_twins_of_one_place_are_none_of_another(tmp_path: Path) -> None:
    labels = [(case, arm, name) for case in "cd" for arm in "xy" for name in "ab"]
    twin = {**group("a", "b"), "arm": "x"}
    folder = plant(tmp_path, {label: noisy(1.0) for label in labels}, equal_objectives=[twin])
    read = reading.read(folder)
    found = [
        (case, arm)
        for case in "cd"
        for arm in "xy"
        if "b" in equal_objectives.equal_to(read, case, arm, "a")
    ]
    assert found == [("c", "x")]
    assert equal_objectives.equal_to(read, "c", "x", "a") == ["b"]
