"""The kinds of prediction: q = a(sigma) x0 + b(sigma) eps at x = x0 + sigma eps.

Each law holds for every dtype, shape, sigma (one, or one per sample) and sigma_data that
`states` draws; D is any estimate of x0. Rounding: |error| <= e times the sum of the absolute values
of the added terms, see `assert_within`.
"""

import numpy as np
import torch
from hypothesis import strategies as st
from properties.states import (
    State,
    assert_within,
    combination,
    kind,
    kinds,
    law,
    long,
    nearest,
    states,
)

from testbed.diffusion.predictions import from_pair, to_pair

# --- definitions -----------------------------------------------------------------------------


@law(c=states())
def x0_is_the_clean_data(c: State) -> None:
    """q = x0, bit for bit."""
    assert torch.equal(from_pair(c.x0, c.eps, "x0", sigma=c.sigma), c.x0)


@law(c=states())
def eps_is_the_unit_noise(c: State) -> None:
    """q = eps, bit for bit."""
    assert torch.equal(from_pair(c.x0, c.eps, "eps", sigma=c.sigma), c.eps)


@law(c=states())
def score_is_minus_eps_over_sigma(c: State) -> None:
    """score = grad log N(x; x0, sigma^2) = -eps/sigma: one term."""
    found = from_pair(c.x0, c.eps, "score", sigma=c.sigma)
    assert_within(found, -c.EPS / c.S, c.EPS / c.S, combinations=1)


@law(c=states())
def v_is_alpha_eps_minus_s_x0(c: State) -> None:
    """v = alpha eps - s x0, alpha = 1/sqrt(1 + sigma^2), s = sigma alpha: two terms."""
    alpha = 1 / np.sqrt(1 + c.S**2)
    s = c.S * alpha
    found = from_pair(c.x0, c.eps, "v", sigma=c.sigma)
    terms = np.abs(alpha * c.EPS) + np.abs(s * c.X0)
    assert_within(found, alpha * c.EPS - s * c.X0, terms, combinations=1)


@law(c=states())
def flow_is_eps_minus_x0(c: State) -> None:
    """u = d/dt [(1 - t) x0 + t eps] = eps - x0: two terms."""
    found = from_pair(c.x0, c.eps, "flow", sigma=c.sigma)
    assert_within(found, c.EPS - c.X0, np.abs(c.EPS) + np.abs(c.X0), combinations=1)


# --- in terms of D ---------------------------------------------------------------------------
# Here D = x0 and x are given: two combinations, through the pair (D, (x - D)/sigma).


@law(c=states())
def x0_is_D(c: State) -> None:
    """x0 = D, bit for bit."""
    assert torch.equal(c.convert(c.x0, "x0", "x0"), c.x0)


@law(c=states())
def eps_is_x_minus_D_over_sigma(c: State) -> None:
    """eps = (x - D)/sigma: the terms x/sigma and D/sigma."""
    x, D = long(c.x), c.X0
    found = c.convert(c.x0, "x0", "eps")
    assert_within(found, (x - D) / c.S, (np.abs(x) + np.abs(D)) / c.S, combinations=2)


@law(c=states())
def score_is_D_minus_x_over_sigma_squared(c: State) -> None:
    """score = (D - x)/sigma^2: the terms D/sigma^2 and x/sigma^2."""
    x, D = long(c.x), c.X0
    found = c.convert(c.x0, "x0", "score")
    assert_within(found, (D - x) / c.S**2, (np.abs(x) + np.abs(D)) / c.S**2, combinations=2)


@law(c=states())
def v_is_x_minus_one_plus_sigma_squared_D_over_sigma_root(c: State) -> None:
    """v = (x - (1 + sigma^2) D)/(sigma sqrt(1 + sigma^2)) = alpha (x - D)/sigma - s D, as it is
    added: the terms alpha x/sigma, alpha D/sigma and s D."""
    x, D, alpha = long(c.x), c.X0, 1 / np.sqrt(1 + c.S**2)
    wanted = (x - (1 + c.S**2) * D) / (c.S * np.sqrt(1 + c.S**2))
    terms = alpha * ((np.abs(x) + np.abs(D)) / c.S + c.S * np.abs(D))
    assert_within(c.convert(c.x0, "x0", "v"), wanted, terms, combinations=2)


@law(c=states())
def flow_is_x_minus_D_over_sigma_minus_D(c: State) -> None:
    """u = (x - D)/sigma - D: the terms x/sigma, D/sigma and D."""
    x, D = long(c.x), c.X0
    terms = (np.abs(x) + np.abs(D)) / c.S + np.abs(D)
    assert_within(c.convert(c.x0, "x0", "flow"), (x - D) / c.S - D, terms, combinations=2)


# Here q = eps stands for any prediction: two combinations, the second one D = 1 D + 0 eps.


@law(c=states())
def D_is_x_minus_sigma_eps(c: State) -> None:
    """D = x - sigma eps: two terms."""
    x, q = long(c.x), c.EPS
    found = c.convert(c.eps, "eps", "x0")
    assert_within(found, x - c.S * q, np.abs(x) + np.abs(c.S * q), combinations=2)


@law(c=states())
def D_is_x_plus_sigma_squared_score(c: State) -> None:
    """D = x + sigma^2 score (Tweedie; Efron 2011): two terms."""
    x, q = long(c.x), c.EPS
    found = c.convert(c.eps, "score", "x0")
    assert_within(found, x + c.S**2 * q, np.abs(x) + np.abs(c.S**2 * q), combinations=2)


@law(c=states())
def D_is_alpha_squared_x_minus_s_v(c: State) -> None:
    """D = (x - sigma sqrt(1 + sigma^2) v)/(1 + sigma^2) = alpha^2 x - s v: two terms."""
    x, q = long(c.x), c.EPS
    wanted = (x - c.S * np.sqrt(1 + c.S**2) * q) / (1 + c.S**2)
    terms = (np.abs(x) + c.S * np.sqrt(1 + c.S**2) * np.abs(q)) / (1 + c.S**2)
    assert_within(c.convert(c.eps, "v", "x0"), wanted, terms, combinations=2)


@law(c=states())
def D_is_x_minus_sigma_flow_over_one_plus_sigma(c: State) -> None:
    """D = (x - sigma u)/(1 + sigma): two terms."""
    x, q = long(c.x), c.EPS
    terms = (np.abs(x) + c.S * np.abs(q)) / (1 + c.S)
    found = c.convert(c.eps, "flow", "x0")
    assert_within(found, (x - c.S * q) / (1 + c.S), terms, combinations=2)


# --- conversions -----------------------------------------------------------------------------


@law(c=states(), source=kinds, target=kinds)
def every_kind_gives_every_other(c: State, source: str, target: str) -> None:
    """a x0 + b eps becomes a' x0 + b' eps, given x = x0 + sigma eps, both rounded once."""
    (a, b), (a_t, b_t) = c.pair(source), c.pair(target)
    found = c.convert(c.q(source), source, target)
    terms = c.size(source, target, np.abs(a * c.X0) + np.abs(b * c.EPS), c.X_SIZE)
    assert_within(found, a_t * c.X0 + b_t * c.EPS, terms, combinations=2, inputs=1)


@law(c=states(), there=kinds, back=kinds)
def round_trip_returns_the_prediction(c: State, there: str, back: str) -> None:
    """q -> q' -> q: the first leg's error times the condition number |dq/dq'|, and the second's."""
    q = c.q(there)
    middle = c.convert(q, there, back)
    end = c.convert(middle, back, there)
    first = c.size(there, back, long(q), long(c.x))
    second = c.size(back, there, long(middle), long(c.x))
    assert_within(end, long(q), c.gain(back, there) * first + second, combinations=2)


@law(c=states(), one=kinds, two=kinds, three=kinds)
def triangle_through_a_third_kind_is_the_direct_way(
    c: State, one: str, two: str, three: str
) -> None:
    """q -> q' -> q'' is q -> q'': the first leg's error times |dq''/dq'|, the second's, the direct
    way's."""
    q, x = c.q(one), long(c.x)
    middle = c.convert(q, one, two)
    end, direct = c.convert(middle, two, three), c.convert(q, one, three)
    first, second = c.size(one, two, long(q), x), c.size(two, three, long(middle), x)
    terms = c.gain(two, three) * first + second + c.size(one, three, long(q), x)
    assert_within(end, long(direct), terms, combinations=2)


@law(c=states(), source=kinds)
def pair_of_a_prediction_makes_x(c: State, source: str) -> None:
    """x0(q, x) + sigma eps(q, x) = x for any q; summed exactly, each term is one combination."""
    wide = torch.promote_types(c.dtype, torch.float32)
    q, x = c.eps.to(wide), c.x.to(wide)
    x0, eps = to_pair(q, kind(source), x=x, sigma=c.sigma, sigma_data=c.sigma_data)
    terms = sum(
        weight * c.size(source, part, c.EPS, long(x)) for part, weight in (("x0", 1), ("eps", c.S))
    )
    assert_within(long(x0) + c.S * long(eps), long(x), terms, drift=combination(wide))


@law(c=states(torch.float16), source=kinds, w=st.floats(0, 8))
def guidance_is_the_same_in_every_kind(c: State, source: str, w: float) -> None:
    """D(q + w (q' - q)) = D(q) + w (D(q') - D(q)) (Ho and Salimans 2022): every kind is affine in
    D with coefficients of sigma alone. float16 overflows at D = sigma^2 score."""
    q, other, x = c.q(source), c.eps, long(c.x)
    Q, OTHER = long(q), long(other)
    guided = nearest(Q + w * (OTHER - Q), c.dtype)
    parts = [c.convert(part, source, "x0") for part in (q, other)]
    wanted = long(parts[0]) + w * (long(parts[1]) - long(parts[0]))
    sizes = [c.size(source, "x0", part, x) for part in (long(guided), Q, OTHER)]
    terms = sizes[0] + abs(1 - w) * sizes[1] + w * sizes[2]
    found = c.convert(guided, source, "x0")
    assert_within(found, wanted, terms, combinations=2, inputs=1)


@law(c=states())
def v_tends_to_eps_as_sigma_vanishes(c: State) -> None:
    """|v - eps| <= sigma |x0| + sigma^2/2 |eps|, as 1 - alpha <= sigma^2/2."""
    limit = c.S * np.abs(c.X0) + c.S**2 / 2 * np.abs(c.EPS)
    terms = np.abs(c.EPS) + limit
    found = from_pair(c.x0, c.eps, "v", sigma=c.sigma)
    assert_within(found, c.EPS, terms, combinations=1, plus=limit)


@law(c=states())
def v_tends_to_minus_x0_as_sigma_grows(c: State) -> None:
    """|v + x0| <= |eps|/sigma + |x0|/(2 sigma^2), as 1 - s <= 1/(2 sigma^2)."""
    limit = np.abs(c.EPS) / c.S + np.abs(c.X0) / (2 * c.S**2)
    terms = np.abs(c.X0) + limit
    found = from_pair(c.x0, c.eps, "v", sigma=c.sigma)
    assert_within(found, -c.X0, terms, combinations=1, plus=limit)
