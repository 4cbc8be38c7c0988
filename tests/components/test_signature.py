"""Functions that ask for quantities by name, and options that take the type of their default."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
import torch

import testbed
from testbed.components.signature import Limits, Signature, bind
from testbed.errors import InputError


def formula(function: Callable[..., Any], leading: int = 0) -> Signature:
    return Signature("weighting 'mine'", function, ("sigma", "sigma_data", "p"), leading)


# --- what a function asks for -----------------------------------------------------------------


def test_only_the_quantities_named_are_passed() -> None:
    found = formula(lambda p, sigma: (p, sigma))
    assert found.inputs == ("p", "sigma")
    assert found(options={}, sigma=1, sigma_data=2, p=3) == (3, 1)


def test_a_function_may_ask_for_nothing() -> None:
    assert formula(lambda: 7)(options={}, sigma=1) == 7


def test_a_quantity_may_be_keyword_only() -> None:
    def function(*, sigma: int, gamma: int = 2) -> int:
        return sigma * gamma

    assert formula(function)(options={"gamma": 5}, sigma=3) == 15


def test_a_quantity_with_a_default_is_still_a_quantity() -> None:
    found = formula(lambda sigma, sigma_data=0.5: sigma_data)
    assert found.defaults == {}
    assert found(options={"sigma_data": 9}, sigma=1, sigma_data=2) == 2


def test_leading_arguments_go_by_position_whatever_their_name() -> None:
    found = formula(lambda q_hat, sigma, p, gamma=1: (q_hat, sigma, p, gamma), leading=2)
    assert found.inputs == ("p",)
    assert found("a", "b", options={}, sigma=1, p=2) == ("a", "b", 2, 1)


def test_options_are_the_arguments_with_a_default() -> None:
    assert formula(lambda sigma, gamma=5.0, k=1: 0).defaults == {"gamma": 5.0, "k": 1}


def test_an_option_given_replaces_the_default() -> None:
    assert formula(lambda sigma, gamma=5.0: gamma)(options={"gamma": 2.0}, sigma=1) == 2.0


def test_options_of_other_functions_are_left_out() -> None:
    assert formula(lambda sigma, gamma=5.0: gamma)(options={"other": 1}, sigma=1) == 5.0


def test_a_callable_object_is_a_function() -> None:
    class Doubled:
        def __call__(self, sigma: int) -> int:
            return 2 * sigma

    assert formula(Doubled())(options={}, sigma=4) == 8


def test_a_missing_sigma_data_is_a_type_error_that_names_both() -> None:
    with pytest.raises(TypeError, match=r"weighting 'mine' needs sigma_data; give sigma_data="):
        formula(lambda sigma, sigma_data: 0)(options={}, sigma=1)


def test_a_sigma_data_of_none_is_missing() -> None:
    with pytest.raises(TypeError, match="needs sigma_data"):
        formula(lambda sigma, sigma_data: 0)(options={}, sigma=1, sigma_data=None)


def test_a_quantity_of_zero_is_not_missing() -> None:
    assert formula(lambda sigma: sigma)(options={}, sigma=0) == 0


def test_a_missing_sigma_data_that_nobody_names_is_fine() -> None:
    assert formula(lambda sigma: sigma)(options={}, sigma=1, sigma_data=None) == 1


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (3, "expected a function, got 3"),
        (lambda sigma, gamma: 0, "'gamma' is not supplied and has no default.*sigma, sigma_data"),
        (lambda sigma, *rest: 0, "'\\*rest' takes anything"),
        (lambda sigma, **rest: 0, "'\\*\\*rest' takes anything"),
        (lambda sigma, /: 0, "'sigma' is positional only"),
        (torch.ones_like, "has no signature"),
    ],
)
def test_a_signature_that_cannot_be_supplied_is_refused_where_it_is_written(
    function: Any, says: str
) -> None:
    with pytest.raises(InputError, match=f"weighting 'mine'.*{says}"):
        formula(function)


@pytest.mark.parametrize(
    "function", [lambda prediction: 0, lambda prediction, *, target: 0, lambda: 0]
)
def test_a_function_without_its_leading_arguments_is_refused(function: Any) -> None:
    with pytest.raises(InputError, match="must take 2 arguments by position first"):
        formula(function, leading=2)


def test_a_leading_argument_may_be_positional_only() -> None:
    assert formula(lambda prediction, target, /: prediction - target, leading=2)(
        5, 3, options={}
    ) == 2  # fmt: skip


@pytest.mark.parametrize(
    ("component", "function"),
    [
        (testbed.Weighting, lambda sigma, **rest: 0),
        (testbed.Loss, lambda prediction, target, **rest: 0),
        (testbed.Dataset, lambda **rest: 0),
        (testbed.Sampler, lambda a, b, c, d, e, f, **rest: 0),
        (testbed.Metric, lambda samples, data, generator, **rest: 0),
    ],
)
def test_a_component_refuses_a_catch_all_where_it_is_written(
    component: Any, function: Callable[..., Any]
) -> None:
    with pytest.raises(InputError, match=r"'mine'.*takes anything"):
        component("mine", function)


def test_two_defaults_of_one_option_are_refused() -> None:
    with pytest.raises(InputError, match="option 'width' has two defaults"):
        testbed.Density("mine", lambda u, width=1.0: u, lambda sigma, width=2.0: sigma)


def test_an_option_of_two_functions_reaches_both() -> None:
    found = testbed.Density("mine", lambda u, k=1.0: k * u, lambda sigma, k=1.0: k + 0 * sigma)
    bound = found.bound({"k": 2.0, "sigma_min": 0.5, "sigma_max": 1.0})
    # u from 1/4 to 1/2 is cut out: sigma(1/2) = 2 * 3/8, and the density is doubled ... by 1/4.
    assert float(bound.sigma(torch.tensor(0.5))) == pytest.approx(0.75, abs=4 * 2.0**-52)
    assert float(bound.pdf_over_log_sigma(0.7)) == pytest.approx(8.0, rel=8 * 2.0**-52)


# --- bind -------------------------------------------------------------------------------------

DEFAULTS = {"real": 1.5, "count": 3, "flag": False, "word": "x0", "pair": (1, 2), "free": None}


def test_nothing_given_gives_the_defaults() -> None:
    assert bind("mine", DEFAULTS, {}) == DEFAULTS


def test_the_defaults_are_left_as_they_were() -> None:
    defaults = dict(DEFAULTS)
    bind("mine", defaults, {"count": 4})
    assert defaults == DEFAULTS


@pytest.mark.parametrize(
    ("name", "value", "resolved"),
    [
        ("real", 2, 2.0),
        ("real", math.inf, math.inf),
        ("count", -1, -1),
        ("flag", True, True),
        ("word", "v", "v"),
        ("pair", [3, 4], (3, 4)),
        ("pair", (5,), (5,)),
        ("free", "anything", "anything"),
        ("free", 3, 3),
    ],
)
def test_a_value_of_the_default_s_type_is_taken(name: str, value: Any, resolved: Any) -> None:
    found = bind("mine", DEFAULTS, {name: value})[name]
    assert (found, type(found)) == (resolved, type(resolved))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("real", True),
        ("real", "1.5"),
        ("real", None),
        ("count", 3.0),
        ("count", True),
        ("flag", 1),
        ("flag", "true"),
        ("word", 0),
        ("pair", 1),
        ("pair", "ab"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any) -> None:
    wanted = {
        "real": "a number",
        "count": "a whole number",
        "flag": "true or false",
        "word": "a text",
        "pair": "a list",
    }
    with pytest.raises(InputError, match=f"mine: option {name} = .*must be {wanted[name]} "):
        bind("mine", DEFAULTS, {name: value})


def test_an_option_that_is_annotated_by_several_types_takes_each() -> None:
    def function(sigma: float, negative: int | str = -1, gamma: float = 1.0) -> None: ...

    unions = Signature("mine", function, ("sigma",)).unions
    assert unions == {"negative": (int, str)}
    defaults = {"negative": -1}
    for value in (3, "two blobs"):
        assert bind("mine", defaults, {"negative": value}, {}, unions)["negative"] == value
    for value in (True, 0.5, None):
        with pytest.raises(InputError, match=r"negative = .* must be a whole number or a text"):
            bind("mine", defaults, {"negative": value}, {}, unions)


@pytest.mark.parametrize(
    ("limits", "taken", "refused", "words"),
    [
        (Limits(), (-1e300, 0, 7), (math.inf, -math.inf, math.nan), "finite"),
        (Limits(above=0), (1e-300, 3), (0, -1.0, math.inf, math.nan), "above 0 and finite"),
        (Limits(least=0), (0, 3.5), (-1e-300, math.inf, math.nan), "at least 0 and finite"),
        (Limits(least=0, below=1), (0, 0.5), (-0.1, 1, math.nan), "at least 0 and below 1"),
        (Limits(least=0, most=1), (0, 1), (-0.1, 1.1, math.nan), "at least 0 and at most 1"),
    ],
)
def test_an_option_takes_the_numbers_of_its_limits_alone(
    limits: Limits, taken: Sequence[float], refused: Sequence[float], words: str
) -> None:
    def function(sigma: float, std: Annotated[float, limits] = 0.5, gamma: float = 1.0) -> None: ...

    found = Signature("mine", function, ("sigma",)).limits
    assert found == {"std": limits}
    for value in taken:
        assert bind("mine", {"std": 0.5}, {"std": value}, limits=found) == {"std": value}
    for value in refused:
        message = f"mine: option std = {float(value)!r} must be {words} (default 0.5)."
        with pytest.raises(InputError, match=re.escape(message)):
            bind("mine", {"std": 0.5}, {"std": value}, limits=found)


def test_nan_is_no_number_of_any_option() -> None:
    with pytest.raises(InputError, match=r"mine: option real = nan must be a number \(default"):
        bind("mine", DEFAULTS, {"real": math.nan})
    assert bind("mine", DEFAULTS, {"real": math.inf})["real"] == math.inf


def test_an_unknown_option_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"mine: Unknown option 'reel'\. Did you mean 'real'"):
        bind("mine", DEFAULTS, {"reel": 1.0})


def test_the_values_of_an_option_are_those_of_its_literal() -> None:
    def function(
        sigma: float, kind: Literal["a", "b"] = "a", n: Literal[1, 2, 3] = 2, gamma: float = 1.0
    ) -> None: ...

    assert formula(function).choices == {"kind": ("a", "b"), "n": (1, 2, 3)}
    assert formula(lambda sigma, kind="a": sigma).choices == {}


def test_annotations_that_mean_nothing_are_no_values() -> None:
    def function(sigma: float, kind: "Nowhere" = 1) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert formula(function).choices == {}


def test_the_fields_of_a_dataclass_are_options_with_their_values() -> None:
    @dataclass(frozen=True)
    class Method:
        kind: Literal["a", "b"] = "b"
        scale: float = 2.0

    found = Signature("guidance 'mine'", Method, ())
    assert found.defaults == {"kind": "b", "scale": 2.0}
    assert found.choices == {"kind": ("a", "b")}
