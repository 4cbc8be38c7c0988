"""Level 1, algebra: a parameterization against itself and the kinds, on no distribution at all."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from testbed.audit.reach import pushed
from testbed.audit.reference import mixture, noisy
from testbed.audit.rows import Row, gamma, rows, skipped
from testbed.diffusion.noise_levels import COSINE, FLOW, VP, NoiseSchedule
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES, convert, pair_weights
from testbed.tensors import per_sample

CONSISTENT = "denoise(target(x0, eps), x) = x0"
CONVERSION = "conversion of the target to every kind"
ROUND_TRIP = "round trip through every kind"
TRIANGLE = "target -> one kind -> another = target -> another"
EQUIVARIANCE = "the same x0 from a VE, VP, cosine and flow state"
LIMITS = "denoise(target(x0, eps), x) = x0 at both ends of sigma"


def check(
    p: Parameterization,
    sigma_data: float,
    levels: Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.bfloat16),
    samples: int = 16,
) -> list[Row]:
    """Every law of this level, at `levels` (L,) float64, in each dtype."""
    x0, eps, sigma = noisy(mixture(), levels, samples)
    found: list[Row] = []
    for dtype in dtypes:
        narrow = x0.to(dtype), eps.to(dtype), sigma.to(torch.promote_types(dtype, torch.float32))
        found += consistency(CONSISTENT, p, sigma_data, *narrow)
        found += conversions(p, sigma_data, *narrow)
        found += round_trips(p, sigma_data, *narrow)
    found += triangles(p, sigma_data, x0, eps, sigma)
    found += equivariance(p, sigma_data, x0, eps, sigma)
    low, high = p.sigma_range
    near, far = max(1e-8, low * (1 + 1e-8)), min(1e8, high / (1 + 1e-8))
    ends = torch.tensor([near, far], dtype=torch.float64)
    found += consistency(LIMITS, p, sigma_data, *noisy(mixture(), ends, samples))
    return found


def consistency(
    law: str, p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[Row]:
    """Scaling and stated target agree; error <= gamma_12 (|c_skip x| + |c_out a x0| + ...).

    x = x0 + sigma eps itself is rounded, by at most gamma_2 of |x0| + |sigma eps|.
    """
    s = per_sample(sigma, x0)
    x = (x0.to(s.dtype) + s * eps.to(s.dtype)).to(x0.dtype)
    through = p.denoise(
        p.target(x0, eps, sigma, sigma_data=sigma_data), x, sigma, sigma_data=sigma_data
    )
    _, by = pushed(p, sigma_data, x0.double(), eps.double(), x.double(), sigma.double())
    terms = x0.double().abs(), eps.double().abs()
    size = by.x * (terms[0] + s.double() * terms[1]) + by.x0 * terms[0] + by.eps * terms[1]
    bound = gamma(12, x0.dtype) * size
    return rows(law, p.name, sigma.double(), through, x0.double(), bound)


def expected(x0: Tensor, eps: Tensor, s: Tensor) -> dict[str, Tensor]:
    """Every kind in its own words, float64: not by the table of weights that convert uses."""
    x0, eps, s = x0.double(), eps.double(), s.double()
    return {
        "x0": x0,
        "eps": eps,
        "score": -eps / s,
        "v": (eps - s * x0) / torch.sqrt(1 + s**2),
        "flow": eps - x0,
    }


class Sizes:
    """Sums of the absolute values of the terms that a conversion from p's F adds, float64."""

    def __init__(self, p: Parameterization, sd: float, x0: Tensor, eps: Tensor, sigma: Tensor):
        self.like, self.sigma, s = x0, sigma.double(), per_sample(sigma, x0).double()
        a, b = p.pair_weights(sigma, sigma_data=sd)
        self.n = per_sample(b - self.sigma * a, x0).abs()
        a, b = per_sample(a, x0).abs(), per_sample(b, x0).abs()
        self.s = s
        self.x = x0.double().abs() + s * eps.double().abs()
        self.F = a * x0.double().abs() + b * eps.double().abs()
        self.x0 = (s * self.F + b * self.x) / self.n
        self.eps = (self.F + a * self.x) / self.n

    def weights(self, kind: str) -> tuple[Tensor, Tensor]:
        """(|a|, |b|) of a kind."""
        a, b = pair_weights(kind, self.sigma)
        return per_sample(a, self.like).abs(), per_sample(b, self.like).abs()

    def kind(self, name: str) -> Tensor:
        """|a_q| |x0| + |b_q| |eps|, with x0 and eps as sums of what F and x add to them."""
        a, b = self.weights(name)
        return a * self.x0 + b * self.eps

    def back(self, name: str) -> Tensor:
        """Of the pair when it is read from kind `name` instead of F: that kind's n and size."""
        signed_a, signed_b = pair_weights(name, self.sigma)
        n = per_sample(signed_b - self.sigma * signed_a, self.like).abs()
        a, b = self.weights(name)
        q = self.kind(name)
        return torch.stack([(self.s * q + b * self.x) / n, (q + a * self.x) / n])


def conversions(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[Row]:
    """p's target converted to every kind, against that kind of the pair it was made from."""
    if not p.affine:
        return [skipped(CONVERSION, p.name, "not affine: no bound is derived")]
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    sizes, truth = Sizes(p, sigma_data, x0, eps, sigma), expected(x0, eps, per_sample(sigma, x0))
    found: list[Row] = []
    for name in PREDICTION_TYPES:
        got = convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        bound = gamma(12, x0.dtype) * sizes.kind(name)
        found += rows(f"{CONVERSION}: {name}", p.name, sigma.double(), got, truth[name], bound)
    return found


def target_and_state(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """(F*, x) in x0's dtype."""
    s = per_sample(sigma, x0)
    x = (x0.to(s.dtype) + s * eps.to(s.dtype)).to(x0.dtype)
    return p.target(x0, eps, sigma, sigma_data=sigma_data), x


def round_trips(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[Row]:
    """F -> kind -> F. A conversion there and back loses what the kind does not hold."""
    if not p.affine:
        return [skipped(ROUND_TRIP, p.name, "not affine: no bound is derived")]
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    sizes = Sizes(p, sigma_data, x0, eps, sigma)
    a, b = (per_sample(w, x0).abs() for w in p.pair_weights(sigma, sigma_data=sigma_data))
    found: list[Row] = []
    for name in PREDICTION_TYPES:
        there = convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        back = convert(there, name, p, x=x, sigma=sigma, sigma_data=sigma_data)
        pair = sizes.back(name)
        bound = gamma(24, x0.dtype) * (a * pair[0] + b * pair[1])
        found += rows(f"{ROUND_TRIP}: {name}", p.name, sigma.double(), back, F.double(), bound)
    return found


def triangles(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[Row]:
    """F -> kind -> another kind, against F -> the other kind."""
    if not p.affine:
        return [skipped(TRIANGLE, p.name, "not affine: no bound is derived")]
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    sizes = Sizes(p, sigma_data, x0, eps, sigma)
    direct = {
        name: convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        for name in PREDICTION_TYPES
    }
    found: list[Row] = []
    for first, second in itertools.permutations(PREDICTION_TYPES, 2):
        got = convert(direct[first], first, second, x=x, sigma=sigma)
        a, b = sizes.weights(second)
        pair = sizes.back(first)
        bound = gamma(24, x0.dtype) * (a * pair[0] + b * pair[1])
        found += rows(f"{TRIANGLE}: {first}, {second}", p.name, sigma, got, direct[second], bound)
    return found


def conditioning(schedule: NoiseSchedule, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(|d log sigma/d log t|, |d log alpha/d log t|): how the rounding of t moves sigma and x."""
    t = schedule.time(sigma).detach().requires_grad_()
    with torch.enable_grad():
        alpha = torch.log(schedule.alpha(t)) + 0 * t
        level = torch.log(schedule.s(t)) + 0 * t
        by_alpha, by_s = (
            torch.autograd.grad(part.sum(), t, retain_graph=True)[0] for part in (alpha, level)
        )
    t = t.detach()
    return ((by_s - by_alpha) * t).abs(), (by_alpha * t).abs()


def slopes(
    p: Parameterization, sigma_data: float, F: Tensor, x: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """(|dD/dx|, |dD/dsigma|) of p.denoise at fixed F, elementwise, by autograd."""

    def one(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return p.denoise(F[None], x[None], sigma[None], sigma_data=sigma_data)[0]

    by = torch.func.vmap(torch.func.jacfwd(one, argnums=(1, 2)))(F, x, sigma)
    d = x[0].numel()
    by_x = by[0].reshape(len(x), d, d).diagonal(dim1=1, dim2=2).reshape(x.shape)
    return by_x.abs(), by[1].abs()


def equivariance(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[Row]:
    """The state carried to another form and back says the same (Kingma et al. 2021, sec. 5).

    The way rounds sigma by gamma_8 (1 + kappa_sigma) sigma and x by gamma_8 (1 + kappa_alpha) |x|,
    kappa the condition numbers of the form's own time; D moves by its slopes times these.
    """
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    here = p.denoise(F, x, sigma, sigma_data=sigma_data)
    by_x, by_sigma = slopes(p, sigma_data, F, x, sigma)
    found: list[Row] = []
    for schedule in (VP, COSINE, FLOW):
        there, t = schedule.from_ve(x, sigma)
        back, level_back = schedule.to_ve(there, t)
        got = p.denoise(F, back, level_back, sigma_data=sigma_data)
        kappa_sigma, kappa_alpha = (per_sample(k, x) for k in conditioning(schedule, sigma))
        s, unit = per_sample(sigma, x), gamma(8, x.dtype)
        bound = unit * ((1 + kappa_sigma) * s * by_sigma + (1 + kappa_alpha) * x.abs() * by_x)
        own = gamma(12, x.dtype) * (by_x * x.abs() + (here - by_x * x).abs())
        found += rows(f"{EQUIVARIANCE}: {schedule.name}", p.name, sigma, got, here, bound + own)
    return found
