"""What the laws of conversions are tried on, and arithmetic with more digits than they test.

Capital letters are exact: the numbers of a tensor in numpy.longdouble, whose 64 bits (x86) or 113
(aarch64) exceed float64's 53. Where it has no more than float64 the laws leave float64 out.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from helpers.strategies import DTYPES, Case, column, draws, seeds
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

import testbed
from testbed.registry import default_registry

U_LONG = float(np.finfo(np.longdouble).eps) / 2
LONGER = U_LONG < 2.0**-60
TESTED = DTYPES if LONGER else tuple(d for d in DTYPES if d != torch.float64)

# (a, b) of q = a x0 + b eps: the kinds, and the outputs F of the published parameterizations.
PAIRS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "x0": lambda s, sd: (1, 0),
    "eps": lambda s, sd: (0, 1),
    "score": lambda s, sd: (0, -1 / s),
    "v": lambda s, sd: (-s / (1 + s**2) ** 0.5, 1 / (1 + s**2) ** 0.5),
    "flow": lambda s, sd: (-1, 1),
    "F of x0": lambda s, sd: (1, 0),
    "F of eps": lambda s, sd: (0, 1),
    "F of score": lambda s, sd: (0, -1 / s),
    "F of v": lambda s, sd: (-s / (1 + s**2) ** 0.5, 1 / (1 + s**2) ** 0.5),
    "F of edm": lambda s, sd: (
        s / (sd * (s**2 + sd**2) ** 0.5),
        -sd / (s**2 + sd**2) ** 0.5,
    ),
}


def u(dtype: torch.dtype) -> float:
    """The unit roundoff: half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


def combination(dtype: torch.dtype) -> float:
    """The roundings of one a x + b y, which is computed in float32 or wider.

    In float64 a coefficient carries at most 12 (EDM's c_skip/c_out: 7, 4 and the quotient's 1; its
    b/n: 5, 6 and 1), then come a product and a sum. In float32 the coefficient is one rounding of
    that.
    """
    wide = torch.promote_types(dtype, torch.float32)
    return 14 * u(wide) if wide == torch.float64 else 3 * u(wide) + 12 * u(torch.float64)


def long(value: Any) -> Any:
    """The same numbers in numpy.longdouble."""
    if isinstance(value, Tensor):
        value = value.detach().double().numpy()
    return np.asarray(value, dtype=np.longdouble)


def nearest(value: Any, dtype: torch.dtype) -> Tensor:
    """Exact numbers to the nearest of `dtype`."""
    return torch.as_tensor(np.asarray(value, dtype=np.float64)).to(dtype)


def kind(name: str) -> Any:
    """What `convert` takes for this name."""
    output = name.removeprefix("F of ")
    return name if output == name else parameterization(output)


def parameterization(name: str) -> testbed.Parameterization:
    return default_registry().parameterization(name)


def registered() -> list[str]:
    """Every parameterization with coefficients that are defined at all noise levels drawn here."""
    found = map(parameterization, default_registry().names("parameterization"))
    return [p.name for p in found if p.affine and p.sigma_range == (0, np.inf)]


class State(Case):
    """A case whose exact numbers are numpy.longdouble."""

    @cached_property
    def X0(self) -> Any:
        return long(self.x0)

    @cached_property
    def EPS(self) -> Any:
        return long(self.eps)

    @cached_property
    def S(self) -> Any:
        """Sigma, shaped to multiply x0."""
        return column(long(self.sigma), self.x0)

    @cached_property
    def SD(self) -> Any:
        return np.longdouble(self.sigma_data)

    @cached_property
    def x(self) -> Tensor:
        """x0 + sigma eps, rounded once."""
        return nearest(self.X, self.dtype)

    @cached_property
    def given(self) -> dict[str, Any]:
        """What `convert` is told of the state."""
        return {"x": self.x, "sigma": self.sigma, "sigma_data": self.sigma_data}

    def pair(self, name: str) -> tuple[Any, Any]:
        """(a, b) of a kind at this state's sigma."""
        return PAIRS[name](self.S, self.SD)

    def q(self, name: str) -> Tensor:
        """The kind's value a x0 + b eps, rounded once."""
        a, b = self.pair(name)
        return nearest(a * self.X0 + b * self.EPS, self.dtype)

    def convert(self, q: Tensor, source: str, target: str) -> Tensor:
        return testbed.convert(q, kind(source), kind(target), **self.given)

    def size(self, source: str, target: str, q: Any, x: Any) -> Any:
        """The sum of the absolute values of what is added on the way from q to `target`.

        With n = b - sigma a, x0 = (b x - sigma q)/n and eps = (q - a x)/n, then a' x0 + b' eps.
        """
        (a, b), (a_t, b_t) = self.pair(source), self.pair(target)
        q, x, n = np.abs(q), np.abs(x), np.abs(b - self.S * a)
        x0, eps = (self.S * q + np.abs(b) * x) / n, (q + np.abs(a) * x) / n
        return np.abs(a_t) * x0 + np.abs(b_t) * eps

    def gain(self, source: str, target: str) -> Any:
        """|d target/d source| at fixed x: how much a conversion multiplies an error."""
        (a, b), (a_t, b_t) = self.pair(source), self.pair(target)
        return np.abs((a_t * self.S - b_t) / (a * self.S - b))


# One choice instead of five: Hypothesis takes longer to draw a state than a law to hold for it.
SHAPES = [(1,), (3,), (2, 1), (2, 3), (3, 3), (2, 2, 3), (3, 3, 2, 1)]
FORMS = [
    (dtype, shape, each, wide)
    for dtype in TESTED
    for shape in SHAPES
    for each in (False, True)
    for wide in (False, True)
]
exponents = st.floats(-1, 1)


def state(form: Any, powers: tuple[float, ...], size: float, seed: int) -> State:
    """Log-uniform sigma in [1e-4, 1e4], in float16 [1e-2, 1e2], and sigma_data in [0.1, 10]."""
    dtype, shape, each, wide = form
    far = 1e2 if dtype == torch.float16 else 1e4
    found = [far**power for power in powers[: shape[0]]] if each else far ** powers[0]
    precision = torch.float64 if wide else torch.promote_types(dtype, torch.float32)
    x0, eps = draws((2, *shape), seed, dtype)
    return State(x0, eps, torch.tensor(found, dtype=precision), 10**size)


def states(*without: torch.dtype) -> st.SearchStrategy[State]:
    """Any dtype, shape, sigma_data and noise levels: one for all samples or one each."""
    forms = [form for form in FORMS if form[0] not in without]
    powers = st.tuples(exponents, exponents, exponents)
    return st.builds(state, st.sampled_from(forms), powers, exponents, seeds)


kinds = st.sampled_from(list(PAIRS))
outputs = st.sampled_from(registered())


LAWS: dict[str, Any] = {}
"""The laws by name; they are entered where they are written."""


def law(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A law: a test for everything the strategies draw. Its `few` is the same on few examples."""

    def decorate(statement: Callable[..., None]) -> Any:
        test: Any = given(**strategies)(statement)
        few = settings(
            max_examples=100,
            database=None,
            derandomize=True,
            deadline=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
        test.few = few(given(**strategies)(statement))
        LAWS[statement.__name__] = test
        return test

    return decorate


def roundings(
    dtype: torch.dtype, *, combinations: int = 0, inputs: int = 0, results: int = 1
) -> float:
    """The sum e of all relative roundings on the longest way to a result.

    Args:
        combinations: how many a x + b y lie on the way.
        inputs: values on the way that are given rounded to the dtype.
        results: values on the way that are stored in the dtype; they count where it is narrower
            than float32, in which the combinations are computed.

    The truth has 32 of its own at most, in numpy.longdouble.
    """
    narrow = torch.promote_types(dtype, torch.float32) != dtype
    stored = inputs + (results if narrow else 0)
    return stored * u(dtype) + combinations * combination(dtype) + 32 * U_LONG


def bound(e: Any, terms: Any) -> Any:
    """e/(1 - e) terms: the error of a sum of `terms` with relative roundings that add up to e
    (Higham 2002, lemma 3.1)."""
    assert np.all(e < 1), "the bound is empty"
    return e / (1 - e) * np.abs(terms)


def assert_within(
    found: Any, truth: Any, terms: Any, *, drift: Any = 0, plus: Any = 0, **counts: int
) -> None:
    """|found - truth| <= e/(1 - e) terms + plus, elementwise; and half the smallest subnormal
    number, for a result that underflows (Higham 2002, eq. 2.8).

    `counts` are those of `roundings`, `drift` is a relative and `plus` an absolute error of another
    origin. A shape that differs, no element and NaN fail.
    """
    dtype = found.dtype if isinstance(found, Tensor) else torch.float64
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    found = long(found)
    assert found.shape == np.shape(truth), f"shape {found.shape}, not {np.shape(truth)}"
    assert found.size > 0, "nothing was compared"
    error = np.abs(found - truth)
    limit = bound(roundings(dtype, **counts) + drift, terms) + plus + tiny
    assert np.all(error <= limit), (
        f"error is {np.max(error / limit):.3g} times its bound; {found} for {truth}"
    )
