"""The part algebra: a parameterization and the prediction types, on no distribution at all."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from testbed.audit.reference import mixture, noisy
from testbed.audit.rows import LawCheck, gamma, rows, skipped
from testbed.audit.sensitivity import denoise_pair
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
) -> list[LawCheck]:
    """Checks every law of this part, at `levels` (L,) float64, in each dtype."""
    x0, eps, sigma = noisy(mixture(), levels, samples)
    checks: list[LawCheck] = []
    for dtype in dtypes:
        narrow = x0.to(dtype), eps.to(dtype), sigma.to(torch.promote_types(dtype, torch.float32))
        checks += consistency(CONSISTENT, p, sigma_data, *narrow)
        checks += conversions(p, sigma_data, *narrow)
        checks += round_trips(p, sigma_data, *narrow)
    checks += triangles(p, sigma_data, x0, eps, sigma)
    checks += equivariance(p, sigma_data, x0, eps, sigma)
    low, high = p.sigma_range
    near, far = max(1e-8, low * (1 + 1e-8)), min(1e8, high / (1 + 1e-8))
    ends = torch.tensor([near, far], dtype=torch.float64)
    return checks + consistency(LIMITS, p, sigma_data, *noisy(mixture(), ends, samples))


def consistency(
    law: str, p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[LawCheck]:
    """Checks that scaling and target agree; error <= gamma_12 (|c_skip x| + |c_out a x0| + ...).

    x = x0 + sigma eps itself is rounded, by at most gamma_2 of |x0| + |sigma eps|.
    """
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    D = p.denoise(F, x, sigma, sigma_data=sigma_data)
    _, by = denoise_pair(p, sigma_data, x0.double(), eps.double(), x.double(), sigma.double())
    s, terms = per_sample(sigma, x0).double(), (x0.double().abs(), eps.double().abs())
    size = by.x * (terms[0] + s * terms[1]) + by.x0 * terms[0] + by.eps * terms[1]
    bound = gamma(12, x0.dtype) * size
    return rows(law, p.name, sigma.double(), D, x0.double(), bound)


def expected(x0: Tensor, eps: Tensor, s: Tensor) -> dict[str, Tensor]:
    """Returns each prediction type by its own formula, float64, not by the weights of convert."""
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

    def weights(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Returns (|a|, |b|) of a prediction type q = a x0 + b eps."""
        a, b = pair_weights(prediction_type, self.sigma)
        return per_sample(a, self.like).abs(), per_sample(b, self.like).abs()

    def prediction(self, prediction_type: str) -> Tensor:
        """Returns |a_q| |x0| + |b_q| |eps|, x0 and eps being sums of what F and x add to them."""
        a, b = self.weights(prediction_type)
        return a * self.x0 + b * self.eps

    def pair(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """Returns the sizes of x0 and eps when they are solved from q and x instead of F and x."""
        signed_a, signed_b = pair_weights(prediction_type, self.sigma)
        n = per_sample(signed_b - self.sigma * signed_a, self.like).abs()
        a, b = self.weights(prediction_type)
        q = self.prediction(prediction_type)
        return (self.s * q + b * self.x) / n, (q + a * self.x) / n


def conversions(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[LawCheck]:
    """Checks p's target converted to every prediction type against that type's own formula."""
    if not p.affine:
        return [skipped(CONVERSION, p.name, "not affine: no bound is derived")]
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    sizes, exact = Sizes(p, sigma_data, x0, eps, sigma), expected(x0, eps, per_sample(sigma, x0))
    checks: list[LawCheck] = []
    for name in PREDICTION_TYPES:
        q = convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        bound = gamma(12, x0.dtype) * sizes.prediction(name)
        checks += rows(f"{CONVERSION}: {name}", p.name, sigma.double(), q, exact[name], bound)
    return checks


def target_and_state(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns (F*, x), the target and the noisy sample, in x0's dtype."""
    s = per_sample(sigma, x0)
    x = (x0.to(s.dtype) + s * eps.to(s.dtype)).to(x0.dtype)
    return p.target(x0, eps, sigma, sigma_data=sigma_data), x


def round_trips(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[LawCheck]:
    """Checks F -> q -> F: a conversion there and back loses what the prediction type lacks."""
    if not p.affine:
        return [skipped(ROUND_TRIP, p.name, "not affine: no bound is derived")]
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    sizes = Sizes(p, sigma_data, x0, eps, sigma)
    a, b = (per_sample(w, x0).abs() for w in p.pair_weights(sigma, sigma_data=sigma_data))
    checks: list[LawCheck] = []
    for name in PREDICTION_TYPES:
        q = convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        back = convert(q, name, p, x=x, sigma=sigma, sigma_data=sigma_data)
        size_x0, size_eps = sizes.pair(name)
        bound = gamma(24, x0.dtype) * (a * size_x0 + b * size_eps)
        checks += rows(f"{ROUND_TRIP}: {name}", p.name, sigma.double(), back, F.double(), bound)
    return checks


def triangles(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[LawCheck]:
    """Checks F -> one prediction type -> another against F -> the other."""
    if not p.affine:
        return [skipped(TRIANGLE, p.name, "not affine: no bound is derived")]
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    sizes = Sizes(p, sigma_data, x0, eps, sigma)
    direct = {
        name: convert(F, p, name, x=x, sigma=sigma, sigma_data=sigma_data)
        for name in PREDICTION_TYPES
    }
    checks: list[LawCheck] = []
    for first, second in itertools.permutations(PREDICTION_TYPES, 2):
        q = convert(direct[first], first, second, x=x, sigma=sigma)
        a, b = sizes.weights(second)
        size_x0, size_eps = sizes.pair(first)
        bound = gamma(24, x0.dtype) * (a * size_x0 + b * size_eps)
        checks += rows(f"{TRIANGLE}: {first}, {second}", p.name, sigma, q, direct[second], bound)
    return checks


def conditioning(schedule: NoiseSchedule, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Returns |d log sigma/d log t| and |d log alpha/d log t|, (B,) each, by autograd.

    They are the condition numbers by which a rounding of t moves sigma and x.
    """
    t = schedule.time(sigma).detach().requires_grad_()
    with torch.enable_grad():
        by_alpha, by_s = (
            torch.autograd.grad((torch.log(coefficient) + 0 * t).sum(), t)[0]
            for coefficient in (schedule.alpha(t), schedule.s(t))
        )
    t = t.detach()
    return ((by_s - by_alpha) * t).abs(), (by_alpha * t).abs()


def slopes(
    p: Parameterization, sigma_data: float, F: Tensor, x: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns |dD/dx| and |dD/dsigma| of p.denoise at fixed F, elementwise, by autograd."""

    def one(F: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        return p.denoise(F[None], x[None], sigma[None], sigma_data=sigma_data)[0]

    by = torch.func.vmap(torch.func.jacfwd(one, argnums=(1, 2)))(F, x, sigma)
    d = x[0].numel()
    by_x = by[0].reshape(len(x), d, d).diagonal(dim1=1, dim2=2).reshape(x.shape)
    return by_x.abs(), by[1].abs()


def equivariance(
    p: Parameterization, sigma_data: float, x0: Tensor, eps: Tensor, sigma: Tensor
) -> list[LawCheck]:
    """Checks that x carried to another schedule and back gives the same D (Kingma et al. 2021).

    The way rounds sigma by gamma_8 (1 + kappa_sigma) sigma and x by gamma_8 (1 + kappa_alpha) |x|,
    kappa the condition numbers of the schedule's own time; D moves by its slopes times these
    (sec. 5 there).
    """
    F, x = target_and_state(p, sigma_data, x0, eps, sigma)
    D = p.denoise(F, x, sigma, sigma_data=sigma_data)
    by_x, by_sigma = slopes(p, sigma_data, F, x, sigma)
    checks: list[LawCheck] = []
    for schedule in (VP, COSINE, FLOW):
        x_back, sigma_back = schedule.to_ve(*schedule.from_ve(x, sigma))
        D_back = p.denoise(F, x_back, sigma_back, sigma_data=sigma_data)
        kappa_sigma, kappa_alpha = (per_sample(k, x) for k in conditioning(schedule, sigma))
        s, unit = per_sample(sigma, x), gamma(8, x.dtype)
        bound = unit * ((1 + kappa_sigma) * s * by_sigma + (1 + kappa_alpha) * x.abs() * by_x)
        bound = bound + gamma(12, x.dtype) * (by_x * x.abs() + (D - by_x * x).abs())
        checks += rows(f"{EQUIVARIANCE}: {schedule.name}", p.name, sigma, D_back, D, bound)
    return checks
