"""Coordinates: x_t = alpha_t x0 + s_t eps in the variance exploding (VE), variance preserving (VP),
cosine and flow forms. sigma = s_t/alpha_t, x = x_t/alpha_t: the same SNR is the same state.

Rounding: alpha, s and time are elementary functions, right to a unit in the last place each, of
something with at most 4 roundings (VP's int beta, the cosine's angle). With kappa = d log sigma /
d log t the roundings of sigma(t), and as many of alpha(t), are below 4 kappa + 8, those of t(sigma)
below 10, and these reach sigma kappa-fold.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from helpers.strategies import column
from hypothesis import strategies as st
from properties.states import (
    PAIRS,
    State,
    assert_within,
    kind,
    kinds,
    law,
    long,
    nearest,
    states,
    u,
)

import testbed
from testbed.diffusion.noise_levels import COSINE, FLOW, VE, NoiseSchedule, vp

SCHEDULES: dict[str, NoiseSchedule] = {"ve": VE, "vp": vp(), "cosine": COSINE, "flow": FLOW}
names = st.sampled_from(list(SCHEDULES))

BETA = np.longdouble(0.1)
SLOPE = np.longdouble(20.0 - 0.1)
HALF_PI = np.longdouble("1.57079632679489661923132169163975144")


# (alpha, s) of exact t, and of exact sigma; kappa of exact sigma.
def vp_of_time(t: Any) -> tuple[Any, Any]:
    y = BETA * t + SLOPE * t**2 / 2
    return np.exp(-y / 2), np.sqrt(-np.expm1(-y))


def vp_condition(s: Any) -> Any:
    """sigma^2 = e^y - 1, y = int beta: d log sigma/d log t = (dy/d log t) (1 + 1/sigma^2)/2."""
    y = np.log1p(s**2)
    t = 2 * y / (BETA + np.sqrt(BETA**2 + 2 * SLOPE * y))
    return (BETA * t + SLOPE * t**2) * (1 + 1 / s**2) / 2


OF_TIME: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "ve": lambda t: (np.ones_like(t), t),
    "vp": vp_of_time,
    "cosine": lambda t: (np.cos(HALF_PI * t), np.sin(HALF_PI * t)),
    "flow": lambda t: (1 - t, t),
}
OF_SIGMA: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "ve": lambda s: (np.ones_like(s), s),
    "vp": lambda s: (1 / np.sqrt(1 + s**2), s / np.sqrt(1 + s**2)),
    "cosine": lambda s: (1 / np.sqrt(1 + s**2), s / np.sqrt(1 + s**2)),
    "flow": lambda s: (1 / (1 + s), s / (1 + s)),
}
CONDITION: dict[str, Callable[[Any], Any]] = {
    "ve": np.ones_like,
    "vp": vp_condition,
    "cosine": lambda s: np.arctan(s) * (s + 1 / s),
    "flow": lambda s: 1 + s,
}
TIME = 10


def of_time(name: str, s: Any) -> Any:
    """The roundings of sigma(t), or of alpha(t)."""
    return 4 * CONDITION[name](s) + 8


@law(c=states(), name=names)
def x_t_is_alpha_x0_plus_s_eps(c: State, name: str) -> None:
    """x = x0 + sigma eps becomes alpha_t x0 + s_t eps, alpha and s of sigma alone.

    x is rounded, alpha and their product; t has TIME roundings, alpha(t) its own and those of t, at
    most kappa-fold.
    """
    x_t, _ = SCHEDULES[name].from_ve(c.x, c.sigma)
    alpha, s = OF_SIGMA[name](c.S)
    drift = (TIME * CONDITION[name](c.S) + of_time(name, c.S)) * u(c.sigma.dtype)
    terms = alpha * c.X_SIZE
    assert_within(x_t, alpha * c.X0 + s * c.EPS, terms, inputs=3, drift=drift)


@law(c=states(), name=names, source=kinds)
def same_state_in_every_coordinate_gives_the_same_x0(c: State, name: str, source: str) -> None:
    """SNR equivariance: whatever the form x_t = alpha_t x0 + s_t eps, a prediction q gives x0.

    x_t is rounded, alpha, their quotient and x. Each coefficient of D in x and q varies at most as
    sigma^2, so it takes sigma's relative error twice; x takes alpha's.
    """
    schedule, t = SCHEDULES[name], SCHEDULES[name].time(c.sigma)
    T = column(long(t), c.x0)
    alpha, s = OF_TIME[name](T)
    S = s / alpha
    a, b = PAIRS[source](S, c.SD)
    q, x_t = (nearest(value, c.dtype) for value in (a * c.X0 + b * c.EPS, alpha * c.X0 + s * c.EPS))
    x, sigma = schedule.to_ve(x_t, t)
    found = testbed.convert(q, kind(source), "x0", x=x, sigma=sigma, sigma_data=c.sigma_data)
    n, size = np.abs(b - S * a), np.abs(c.X0) + S * np.abs(c.EPS)
    terms = (np.abs(b) * size + S * (np.abs(a * c.X0) + np.abs(b * c.EPS))) / n
    drift = 3 * of_time(name, S) * u(t.dtype)
    assert_within(found, c.X0, terms, combinations=2, inputs=4, drift=drift)


@law(c=states(), name=names)
def sigma_to_t_to_sigma_returns_sigma(c: State, name: str) -> None:
    """sigma(t(sigma)) = sigma: t's roundings kappa-fold, and those of sigma(t)."""
    schedule, s = SCHEDULES[name], long(c.sigma)
    found = schedule.sigma(schedule.time(c.sigma))
    k = TIME * CONDITION[name](s) + of_time(name, s)
    assert_within(found, s, s, drift=k * u(found.dtype))


@law(c=states(), name=names)
def t_to_sigma_to_t_returns_t(c: State, name: str) -> None:
    """t(sigma(t)) = t: sigma's roundings divided by kappa, and those of t(sigma)."""
    schedule = SCHEDULES[name]
    t = schedule.time(c.sigma)
    sigma = schedule.sigma(t)
    s = long(sigma)
    k = of_time(name, s) / CONDITION[name](s) + TIME
    assert_within(schedule.time(sigma), long(t), long(t), drift=k * u(t.dtype))


@law(c=states(), name=names)
def score_in_x_t_is_the_score_in_x_over_alpha(c: State, name: str) -> None:
    """grad log p(x_t) = grad log p(x)/alpha_t: that of N(alpha x0, s^2) is -eps/s, ours -eps/sigma.

    The score is rounded, alpha and their product.
    """
    schedule, t = SCHEDULES[name], SCHEDULES[name].time(c.sigma)
    alpha, s = OF_TIME[name](column(long(t), c.x0))
    S = s / alpha
    found = schedule.score_to_ve(nearest(-c.EPS / s, c.dtype), t)
    drift = of_time(name, S) * u(t.dtype)
    assert_within(found, -c.EPS / S, c.EPS / S, inputs=3, drift=drift)


def preserved(c: State, name: str, power: int) -> None:
    """alpha^p + s^p = 1. A relative rounding of VP's int beta or of the cosine's angle moves either
    square by at most pi/2, one of flow's t nothing; 4 such roundings and 8 others, squared."""
    t = SCHEDULES[name].time(c.sigma)
    alpha, s = long(SCHEDULES[name].alpha(t)), long(SCHEDULES[name].s(t))
    one = np.ones_like(alpha)
    assert_within(alpha**power + s**power, one, 1, drift=2 * (2 * 4 + 8) * u(t.dtype))


@law(c=states(), name=st.sampled_from(["vp", "cosine"]))
def alpha_squared_plus_s_squared_is_1_where_variance_is_preserved(c: State, name: str) -> None:
    """alpha^2 + s^2 = 1."""
    preserved(c, name, 2)


@law(c=states())
def alpha_plus_s_is_1_in_flow(c: State) -> None:
    """(1 - t) + t = 1."""
    preserved(c, "flow", 1)


@law(c=states(), name=names)
def snr_falls_as_t_grows(c: State, name: str) -> None:
    """sigma(t/2) < sigma(t): t = 0 is the data."""
    t = SCHEDULES[name].time(c.sigma)
    near, far = (long(SCHEDULES[name].sigma(time)) for time in (t * 0.5, t))
    assert np.all(near < far)
