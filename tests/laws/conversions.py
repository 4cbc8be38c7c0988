"""Laws of `testbed.convert`: the prediction types."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact, gamma, rounded
from helpers.strategies import Case, case
from torch import Tensor

from testbed.registry import default_registry

Convert = Callable[..., Tensor]


# What each kind is of the pair (x0, eps), and of D at x. Written for this file.
def v(x0: Any, eps: Any, sigma: Any, sd: Any = None) -> Any:
    return (eps - sigma * x0) / (1 + sigma**2) ** 0.5


def edm_target(x0: Any, eps: Any, sigma: Any, sd: Any) -> Any:
    return (sigma * x0 - sd**2 * eps) / (sd * (sigma**2 + sd**2) ** 0.5)


TRUTH: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "x0": lambda x0, eps, sigma, sd: x0,
    "eps": lambda x0, eps, sigma, sd: eps,
    "score": lambda x0, eps, sigma, sd: -eps / sigma,
    "v": v,
    "flow": lambda x0, eps, sigma, sd: eps - x0,
    "F of eps": lambda x0, eps, sigma, sd: eps,
    "F of v": v,
    "F of edm": edm_target,
    "F of x0": lambda x0, eps, sigma, sd: x0,
    "F of score": lambda x0, eps, sigma, sd: -eps / sigma,
}
FROM_D: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x0": lambda D, x, sigma: D,
    "eps": lambda D, x, sigma: (x - D) / sigma,
    "score": lambda D, x, sigma: (D - x) / sigma**2,
    "v": lambda D, x, sigma: (x - (1 + sigma**2) * D) / (sigma * (1 + sigma**2) ** 0.5),
    "flow": lambda D, x, sigma: (x - D) / sigma - D,
}
# Roundings of one conversion. float32: input 1, first combination 3 (coefficient, product, sum),
# second 3, so 7. float64: a coefficient (a, b)/n carries up to 14 of its own (EDM's b/n), the
# second one 6: 1 + 14 + 2 + 6 + 2. Narrower: input 1, result 1, and the float32 arithmetic between
# them, together less than 1.
K = {torch.float64: 25, torch.float32: 7, torch.bfloat16: 3, torch.float16: 3}


def kind(name: str) -> Any:
    """What `convert` takes for this name."""
    output = name.removeprefix("F of ")
    return name if output == name else default_registry().parameterization(output)


def weights(name: str, c: Case) -> tuple[Any, Any]:
    """(a, b) of q = a x0 + b eps, exact."""
    one, zero = exact(1), exact(0)
    return TRUTH[name](one, zero, c.S, c.SD), TRUTH[name](zero, one, c.S, c.SD)


def size(name: str, c: Case) -> Any:
    """|a x0| + |b eps|."""
    a, b = weights(name, c)
    return np.abs(a * c.X0) + np.abs(b * c.EPS)


def terms(source: str, target: str, c: Case) -> Any:
    """The sum of the absolute values of what is added on the way through the pair (x0, eps)."""
    (a, b), (a_t, b_t), q = weights(source, c), weights(target, c), size(source, c)
    n = np.abs(b - c.S * a)
    x0 = (c.S * q + np.abs(b) * c.X_SIZE) / n
    eps = (q + np.abs(a) * c.X_SIZE) / n
    return np.abs(a_t) * x0 + np.abs(b_t) * eps


def gain(source: str, target: str, c: Case) -> Any:
    """|d target/d source| at fixed x."""
    (a, b), (a_t, b_t) = weights(source, c), weights(target, c)
    return np.abs((a_t * c.S - b_t) / (a * c.S - b))


def truth(name: str, c: Case) -> Any:
    return TRUTH[name](c.X0, c.EPS, c.S, c.SD) + 0 * c.X0


def run(convert: Convert, source: str, target: str, c: Case) -> Tensor:
    """The conversion of the kind `source` that belongs to the case, rounded once."""
    q = rounded(truth(source, c), c.dtype)
    return convert(q, kind(source), kind(target), x=c.x, sigma=c.sigma, sigma_data=c.sigma_data)


def law_conversion_gives_the_kind(convert: Convert, source: str, target: str, c: Case) -> None:
    """From the kind and x made of (x0, eps) to the other kind made of the same (x0, eps)."""
    found = run(convert, source, target, c)
    assert found.dtype == c.dtype
    assert_within(found, truth(target, c), terms(source, target, c), K[c.dtype], c.dtype)


def law_triangle(convert: Convert, one: str, two: str, three: str, c: Case) -> None:
    """Through a third kind is as good as directly, up to what rounding the third one costs.

    The first leg's error gamma T_12 reaches the end multiplied by |d q_3/d q_2|; then come the
    errors of the second leg and of the direct way, T_23 and T_13.
    """
    middle = run(convert, one, two, c)
    given = {"x": c.x, "sigma": c.sigma, "sigma_data": c.sigma_data}
    end = convert(middle, kind(two), kind(three), **given)
    direct = run(convert, one, three, c)
    T = gain(two, three, c) * terms(one, two, c) + terms(two, three, c) + terms(one, three, c)
    assert_within(end, exact(direct), T, K[c.dtype], c.dtype)


def law_round_trip(convert: Convert, there: str, back: str, c: Case) -> None:
    """To another kind and back; bound as for the triangle."""
    q = rounded(truth(there, c), c.dtype)
    given = {"x": c.x, "sigma": c.sigma, "sigma_data": c.sigma_data}
    end = convert(run(convert, there, back, c), kind(back), kind(there), **given)
    T = gain(back, there, c) * terms(there, back, c) + terms(back, there, c)
    assert_within(end, exact(q), T, K[c.dtype], c.dtype)


def law_each_sample_has_its_sigma(convert: Convert, source: str, target: str, c: Case) -> None:
    """A batch with one sigma per sample is bit for bit its samples one by one.

    Every operation is elementwise and one of + - * / sqrt, which IEEE 754 rounds correctly.
    """
    given: dict[str, Any] = {"sigma_data": c.sigma_data}
    ends = kind(source), kind(target)
    whole = convert(c.eps, *ends, x=c.x0, sigma=c.sigma, **given)
    for i in range(len(c.x0)):
        row = slice(i, i + 1)
        for sigma in (c.sigma[row], c.sigma[i]):
            alone = convert(c.eps[row], *ends, x=c.x0[row], sigma=sigma, **given)
            assert torch.equal(whole[row], alone)


def law_pair_keeps_digits(convert: Convert) -> None:
    """v -> eps in float32 at sigma = 1e-4 is right to some u; through x0 alone it is 3e-4 off."""
    c = case((1000,), torch.tensor(1e-4), dtype=torch.float32)
    error = np.abs(exact(run(convert, "v", "eps", c)) - truth("eps", c))
    assert max(error / terms("v", "eps", c)) <= gamma(K[torch.float32], torch.float32)
    assert max(error) < 1e-6
