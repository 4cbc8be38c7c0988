"""Laws of the loss: per sample, mean over dimensions of k(sigma) m(q_hat, q)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, exact, gamma, rounded
from helpers.strategies import Case, case, column, draws, float64
from laws.conversions import FROM_D, TRUTH
from laws.parameterizations import FLOW, TABLE
from laws.weightings import SPACES, WEIGHTS
from scipy import integrate, stats
from torch import Tensor

import testbed
from testbed.registry import default_registry
from testbed.training.objective import Objective

SIGMA_DATA = 0.5
ALL_SPACES = ["x0", "eps", "score", "v", "flow", "F"]
Loss = Callable[[Tensor, Case], Tensor]


def parameterization(name: str) -> testbed.Parameterization:
    return FLOW if name == "flow" else default_registry().parameterization(name)


def objective(name: str, space: str, weighting: str | None, loss: str = "l2") -> Objective:
    registry = default_registry()
    return Objective(
        parameterization(name),
        None if weighting is None else registry.weighting(weighting),
        registry.loss(loss, space=space),
        registry.density("lognormal"),
        SIGMA_DATA,
    )


def levels() -> Case:
    """Nine noise levels over the support of the density, five dimensions."""
    return case((9, 5), torch.logspace(-2.6, 1.8, 9, dtype=torch.float64), SIGMA_DATA, seed=3)


def row(name: str, c: Case) -> tuple[Any, Any]:
    """(c_skip, c_out) of the table, shaped to multiply x."""
    if name == "flow":
        return 1 / (1 + c.S), -c.S / (1 + c.S)
    return TABLE[name](c.S, c.SD)[:2]


def squared_slope(name: str, space: str, c: Case) -> Any:
    """|dq/dD|^2 = 1/B_q^2; of the output, 1/c_out^2."""
    return 1 / row(name, c)[1] ** 2 if space == "F" else SPACES[space](c.S)


def lambda_(name: str, space: str, weighting: str | None, c: Case) -> Any:
    """The weight on |D - x0|^2: the named one, or 1/B_q^2 without."""
    if weighting is None:
        return squared_slope(name, space, c)
    low, high = (stats.norm.cdf((np.log(edge) + 1.2) / 1.2) for edge in (0.002, 80.0))
    p = stats.norm.pdf(np.log(c.sigma.numpy()), -1.2, 1.2) / (high - low)
    if weighting in WEIGHTS:
        return WEIGHTS[weighting](c.S, c.SD, exact(column(p, c.x0)))
    found = default_registry().weighting(weighting)  # another plugin's: taken as it is
    registered = found(
        c.sigma, sigma_data=c.sigma_data, density=default_registry().density("lognormal")
    )
    return column(exact(registered), c.x0)


def target_terms(name: str, c: Case) -> tuple[Any, Any]:
    """F* = a x0 + b eps: its two terms."""
    skip, out = row(name, c)
    return (1 - skip) / out * c.X0, -skip * c.S / out * c.EPS


def denoised(name: str, F: Any, c: Case) -> Any:
    skip, out = row(name, c)
    return skip * c.X + out * F


def in_space(name: str, space: str, F: Any, c: Case) -> tuple[Any, Any]:
    """(q_hat, q) from the columns "from D" and the definitions of the kinds."""
    if space == "F":
        return F + 0 * c.X0, sum(target_terms(name, c))
    q = TRUTH[space](c.X0, c.EPS, c.S, c.SD) + 0 * c.X0
    return FROM_D[space](denoised(name, F, c), c.X, c.S), q


METRICS: dict[str, Callable[[Any, Any], Any]] = {
    "l2": lambda d, one: d**2,
    "l1": lambda d, one: np.abs(d),
    "huber": lambda d, one: np.where(np.abs(d) <= 1, d**2 / 2, np.abs(d) - one / 2),
}


def law_gradient_is_that_of_the_weighted_error(
    o: Objective, name: str, space: str, weighting: str | None
) -> None:
    """d loss/dF = autograd of lambda |D - x0|^2/d in float64, D from the table.

    The objective's coefficients are rounded to float32 (a and b, then k: 2), F - F* adds float64
    roundings only: gamma_3(float32) 2 K (|F| + |a x0| + |b eps|)/d with K = lambda c_out^2. The
    other side forms D - x0, whose terms (|c_skip x| + |c_out F| + |x0|) carry 20 float64 roundings.
    """
    c = levels()
    F = draws(tuple(c.x0.shape), 99).requires_grad_()
    d = F[0].numel()
    (found,) = torch.autograd.grad(o(F, c.x0, c.eps, c.sigma).sum(), F)

    weight = lambda_(name, space, weighting, c)
    skip, out = row(name, c)
    D = rounded(skip) * rounded(c.X) + rounded(out) * F
    loss = (rounded(weight) * (D - c.x0) ** 2).sum() / d
    (wanted,) = torch.autograd.grad(loss, F)

    G = exact(F)
    K = 2 * weight * out**2 / d
    terms = K * (np.abs(G) + sum(np.abs(term) for term in target_terms(name, c)))
    wide = 2 * weight * np.abs(out) / d * (np.abs(skip * c.X) + np.abs(out * G) + np.abs(c.X0))
    plus = exact(gamma(20)) * wide
    assert_within(found, exact(wanted), terms, 3, torch.float32, plus=plus)


def law_loss_is_k_times_the_discrepancy(
    o: Objective, name: str, space: str, weighting: str | None, loss: str
) -> None:
    """Per sample: mean of lambda B_q^2 m(q_hat - q), q_hat and q from explicit formulas.

    Float32 coefficients as above: e = gamma_4(float32) |gain| (|F| + |a x0| + |b eps|) bounds the
    error of q_hat - q up to float64 rounding of q, which is added. |m'| is at most 1 for l1 and
    huber, 2 |q_hat - q| + e for l2; k is rounded once more.
    """
    c = levels()
    F = draws(tuple(c.x0.shape), 99)
    found = o(F, c.x0, c.eps, c.sigma)
    assert found.shape == c.sigma.shape

    q_hat, q = in_space(name, space, exact(F), c)
    slope2 = squared_slope(name, space, c)
    k = lambda_(name, space, weighting, c) / slope2
    m = METRICS[loss](q_hat - q, exact(1))
    gain = np.abs(row(name, c)[1]) * slope2**0.5
    e = (
        exact(gamma(4, torch.float32))
        * gain
        * (np.abs(exact(F)) + sum(np.abs(term) for term in target_terms(name, c)))
    )
    e = e + exact(gamma(20)) * np.abs(q)
    slack = e * (2 * np.abs(q_hat - q) + e) if loss == "l2" else e
    plus = (k * slack).mean(1)
    assert_within(found, (k * m).mean(1), (k * m).mean(1), 4, torch.float32, plus=plus)


def law_space_does_not_matter_for_weighted_l2(make: Callable[[str], Objective]) -> None:
    """With a weighting the l2 loss is lambda |D - x0|^2 whatever the space: same bits, up to the
    rounding of k (B_q^2 divided out again): gamma_1(float32)."""
    c = levels()
    F = draws(tuple(c.x0.shape), 99)
    one = make("x0")(F, c.x0, c.eps, c.sigma)
    for space in ALL_SPACES:
        found = make(space)(F, c.x0, c.eps, c.sigma)
        assert_within(found, exact(one), exact(one), 2, torch.float32)


def law_small_residual_keeps_its_digits(loss: Loss) -> None:
    """float32 at sigma = 0.002, F within 1e-3 of F*: the loss is right to the digits that F* has.

    r = F - F* has error gamma_5 (|F| + |a x0| + |b eps|): coefficients and F* 4, difference 1. The
    loss, mean k r^2, gets 2 |r| e + e^2 of it, and 12 roundings of its own (10 summands).
    """
    c = case((64, 10), torch.full((64,), 0.002), SIGMA_DATA, torch.float32, seed=5)
    terms = target_terms("edm", c)
    F = rounded(sum(terms), torch.float32) + 1e-3 * draws((64, 10), 99, torch.float32)
    found = loss(F, c)
    assert found.dtype == torch.float32
    k = column(WEIGHTS["edm"](c.S, c.SD, None), c.x0) * row("edm", c)[1] ** 2
    r = exact(F) - sum(terms)
    e = exact(gamma(5, torch.float32)) * (np.abs(exact(F)) + sum(np.abs(t) for t in terms))
    wanted = (k * r**2).mean(1)
    plus = (k * e * (2 * np.abs(r) + e)).mean(1)
    assert_within(found, wanted, wanted, 12, torch.float32, plus=plus)


def naive(F: Tensor, c: Case) -> Tensor:
    """lambda |D - x0|^2, formed as it is written."""
    p, registry = parameterization("edm"), default_registry()
    D = p.denoise(F, c.x, c.sigma, sigma_data=c.sigma_data)
    weight = registry.weighting("edm")(c.sigma, sigma_data=c.sigma_data)
    return weight * (D - c.x0).square().mean(1)


def cloud() -> testbed.Data:
    """Anisotropic data off centre."""
    z = draws((512, 4), 7) * float64([0.2, 0.5, 0.9, 0.4]) + float64([0.1, -0.3, 0.2, 0.0])
    return testbed.Data(z.float(), z[:8].float())


def law_scale_is_the_expected_loss_at_zero(
    o: Objective, name: str, space: str, weighting: str | None
) -> None:
    """scale = E[lambda c_out^2 Var F*], an integral over the closed-form density.

    lambda c_out^2 Var F* = lambda ((1 - c_skip)^2 sd^2 + c_skip^2 sigma^2). The estimate has 8192
    draws, stratified in u; its standard error is at most that of 8192 draws that are not, whose
    spread is taken from 1024 others. 4.9 standard errors leave a chance of 1e-6.
    """
    data = cloud()
    sd2 = float(data.train.double().square().mean())
    o = replace(o, sigma_data=sd2**0.5)
    low, high = np.log(0.002), np.log(80.0)
    law = stats.norm(-1.2, 1.2)
    total = law.cdf(high) - law.cdf(low)

    def at(y: Any) -> tuple[Any, Any, Any]:
        c = Case(float64([[0.0]]), float64([[0.0]]), float64([np.exp(y)]), sd2**0.5)
        skip, _ = row(name, c)
        weight = lambda_(name, space, weighting, c)
        return (float(np.ravel(t)[0]) for t in (weight, (1 - skip) ** 2, (skip * c.S) ** 2))

    def integrand(y: float) -> float:
        weight, clean, noise = at(y)
        return weight * (clean * sd2 + noise) * law.pdf(y) / total

    wanted, quadrature = integrate.quad(integrand, low, high, epsrel=1e-6, limit=100)
    rng = np.random.default_rng(0)
    y = law.ppf(law.cdf(low) + rng.random(1024) * total)
    x0 = data.train.double().numpy()[rng.integers(len(data.train), size=1024)]
    eps = rng.standard_normal(x0.shape)
    weight, clean, noise = np.array([list(at(value)) for value in y]).T[..., None]
    loss = (weight * (clean**0.5 * x0 - noise**0.5 * eps) ** 2).mean(1)
    error = loss.std(ddof=1) / 8192**0.5
    assert 4.9 * error < 0.1 * wanted, "too noisy to tell"
    assert abs(o.scale(data) - wanted) <= 4.9 * error + quadrature
