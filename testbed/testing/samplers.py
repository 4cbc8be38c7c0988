"""The laws of samplers, solvers of dx/dsigma = (x - D)/sigma."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from testbed.audit.rows import gamma
from testbed.components.sampler import Sampler
from testbed.diffusion.noise_levels import karras_sigmas
from testbed.oracles import Gaussian
from testbed.random import stream
from testbed.sampling.loop import sample
from testbed.testing import behaviour
from testbed.testing.cases import draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import Skipped
from testbed.testing.options import options_matter
from testbed.testing.rounding import Worst

LAWS = Group("sampler")
START, END = 10.0, 0.1
STEPS = (32, 64, 128, 256)


def _levels(n: int) -> Tensor:
    """n steps from START to END."""
    return karras_sigmas(n + 1, END, START)[:-1]


def _oracle() -> Gaussian:
    """Off-centre, with variances of every size and correlated."""
    mean = torch.tensor([1.0, -0.5, 2.0, 0.25], dtype=torch.float64)
    root = torch.tensor(
        [[1.5, 0.0, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0], [-0.3, 0.2, 0.2, 0.0], [0.1, 0.0, 0.05, 0.05]]
    ).double()
    return Gaussian(mean, root @ root.T)


def _with_noise(s: Sampler, factor: float) -> Sampler:
    """The sampler with the option that its noise is multiplied by at `factor`."""
    return s.bound({**s.options, s.noise: factor}) if s.noise else s


def _generator(s: Sampler, seed: int = 0) -> torch.Generator | None:
    """One for a sampler that draws."""
    return None if s.deterministic else stream(seed, "testing/sampler")


def _once(law: Callable[[Sampler], str], s: Sampler, context: Context) -> str:
    """What a law says of a sampler; it is asked once where several points come down to one."""
    for other, sampler, said in context.kept:
        if other is law and sampler == s:
            return said
    context.kept.append((law, s, law(s)))
    return context.kept[-1][2]


def _curved(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that is not linear: x0 = +1 or -1 in every dimension."""
    return torch.tanh(x / sigma[:, None] ** 2)


def _exact(oracle: Gaussian, x: Tensor, sigma: float) -> Tensor:
    """The ODE's solution: every eigen-coordinate is c0 sqrt((L + sigma^2)/(L + START^2))."""
    c = (x - oracle.m) @ oracle.Q
    c = c * torch.sqrt((oracle.L + sigma**2) / (oracle.L + START**2))
    return oracle.m + c @ oracle.Q.mT


@LAWS.law(
    "It converges to the probability-flow ODE's solution: the error at least halves when the steps "
    "double (order 1 or more, on a Gaussian; noise that an option multiplies is off)."
)
def order(s: Sampler, context: Context) -> str:
    s = _with_noise(s, 0.0)
    if not s.deterministic:
        raise Skipped("stochastic: its path is not the ODE's")
    return _once(_order, s, context)


def _order(s: Sampler) -> str:
    """The measured order in words; CheckFailed where it is below 1."""
    oracle = _oracle()
    x = START * draws((16, 4), 71)
    wanted = _exact(oracle, x, END)
    errors = [
        float((sample(oracle.denoise, x.clone(), _levels(n), s) - wanted).abs().max())
        for n in STEPS
    ]
    floor = gamma(64 * STEPS[-1], torch.float64) * float(x.abs().max())
    if errors[-1] <= floor:
        return f"exact to rounding: error {errors[-1]:.2g}"
    demand(all(map(math.isfinite, errors)), f"errors {errors} are not finite.")
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    # Measured orders approach the limit as 1/n: their last change is left, and no more.
    limit, left = 2 * orders[-1] - orders[-2], abs(orders[-1] - orders[-2])
    shown = (
        f"error {', '.join(f'{e:.3g}' for e in errors)} for {', '.join(map(str, STEPS))} steps: "
        f"order {limit:.3g} ± {left:.1g}"
    )
    demand(limit >= 1 - left and left < 0.5, f"{shown}, less than 1.")
    return shown


@LAWS.law(
    "One that draws keeps the marginals, with its own noise and with the whole of it: draws of a "
    "Gaussian at sigma_0 end with mean and variance of x0 + sigma eps, within 5 standard errors "
    "and what twice the steps change (noise that an option inflates is not inflated)."
)
def marginal(s: Sampler, context: Context) -> str:
    s = s.bound({**s.options, s.inflation: 1.0}) if s.inflation else s
    drawing = {str(one.options): one for one in (s, _with_noise(s, 1.0)) if not one.deterministic}
    if not drawing:
        raise Skipped("deterministic: its order says more")
    return "; ".join(_once(_marginal, one, context) for one in drawing.values())


def _marginal(s: Sampler) -> str:
    """How far mean and variance of draws are off at END, in words; CheckFailed where too far."""
    oracle, n = _oracle(), 8192
    generator = stream(0, "testing/marginal")
    x = oracle.sample(n, generator)
    x = x + START * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    biases = []
    for steps in (64, 128):
        end = sample(oracle.denoise, x.clone(), _levels(steps), s, _generator(s))
        z = (end - oracle.m) @ oracle.Q / torch.sqrt(oracle.L + END**2)
        biases.append(torch.stack([z.mean(0), (z**2).mean(0) - 1]))
    error = torch.tensor([[1 / math.sqrt(n)], [math.sqrt(2 / n)]], dtype=torch.float64)
    bound = 5 * error + (biases[1] - biases[0]).abs()
    worst = float((biases[1].abs() / bound).nan_to_num(nan=math.inf).max())
    shown = (
        f"mean off by {float(biases[1][0].abs().max()):.2g} deviations, "
        f"variance by {float(biases[1][1].abs().max()):.2g}"
    )
    demand(worst <= 1, f"{shown}: {worst:.3g} times what is allowed.")
    return shown


@LAWS.law(
    "On one data point y, D = y, the path x = y + (sigma/sigma_0)(x_0 - y) is exact, down to 0."
)
def data_point(s: Sampler, context: Context) -> str:
    worst = Worst()
    y, x = draws((1, 4), 72), START * draws((5, 4), 73)
    levels = [*_levels(9).tolist(), 0.0]
    size = y.abs() + x.abs()
    if s.deterministic:
        found = sample(lambda x, sigma: y.expand_as(x), x.clone(), levels[:-1], s)
        wanted = y + END / START * (x - y)
        # A step's rounding is of the size of x then; later steps shrink it with everything else.
        bound = gamma(16 * len(levels), torch.float64) * size * (START / END)
        worst.compare(f"x at sigma = {END:g}", found, wanted, bound)
    found = sample(lambda x, sigma: y.expand_as(x), x.clone(), levels, s, _generator(s))
    bound = gamma(16 * len(levels), torch.float64) * size * (START / END)
    worst.compare("x at sigma = 0", found, y.expand_as(x), bound)
    return str(worst)


@LAWS.law("D is never asked for at sigma = 0, nor outside of the step.")
def levels(s: Sampler, context: Context) -> str:
    asked: list[float] = []

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        asked.extend(sigma.tolist())
        return x / 2

    ladder = [10.0, 3.0, 1.0, 0.0]
    found = sample(watched, START * draws((2, 4), 74), ladder, s, _generator(s))
    demand(min(asked) > 0, "D was asked for at sigma = 0, where it is not defined.")
    demand(bool(torch.isfinite(found).all()), "the end at sigma = 0 is not finite.")
    if s.deterministic:
        demand(max(asked) <= ladder[0], f"D was asked for at sigma = {max(asked):.4g} > 10.")
    return f"{len(asked) // 2} calls for 3 steps"


@LAWS.law("x keeps its shape and dtype.")
def shape(s: Sampler, context: Context) -> None:
    for dims in ((3,), (2, 3), (2, 1, 4, 4), (0, 3)):
        for dtype in (torch.float64, torch.float32):
            x = START * draws(dims, 75, dtype)
            found = sample(lambda x, sigma: x / 2, x, [10.0, 1.0, 0.0], s, _generator(s))
            demand(
                found.shape == x.shape and found.dtype == dtype,
                f"x is {tuple(found.shape)} {found.dtype}, started as {dims} {dtype}.",
            )


@LAWS.law("Per sample: a path depends on its own start alone.")
def per_sample(s: Sampler, context: Context) -> None:
    x = START * draws((5, 4), 76)
    whole = sample(_curved, x.clone(), _levels(8), s, _generator(s))
    for i in range(len(x)):
        mine = (torch.arange(len(x)) == i)[:, None]
        other = sample(
            _curved, torch.where(mine, x, 2 * x.flip(0) + 1), _levels(8), s, _generator(s)
        )
        # The same shapes run the same sums: equal bits.
        demand(
            torch.equal(other[i], whole[i]),
            f"sample {i} moves by {float((other[i] - whole[i]).abs().max()):.3g} with the others.",
        )


@LAWS.law(
    "Pure: the start and global state stay as they were, and a second run gives the same bits."
)
def pure(s: Sampler, context: Context) -> None:
    x = START * draws((5, 4), 77)
    behaviour.pure(lambda x: sample(_curved, x, _levels(8), s, _generator(s)), (x,))


@LAWS.law(
    "A deterministic sampler draws nothing; another, and one whose noise is on, draws from its "
    "generator alone."
)
def generator(s: Sampler, context: Context) -> str:
    found = [_drawn(one) for one in ([s, _with_noise(s, 1.0)] if s.noise else [s])]
    demand(not s.noise or found[-1] != "deterministic", f"it draws nothing at {s.noise} = 1.")
    return ", ".join(dict.fromkeys(found))


def _drawn(s: Sampler) -> str:
    x = START * draws((5, 4), 78)
    given = stream(0, "testing/sampler")
    before = given.get_state()
    first = sample(_curved, x.clone(), _levels(8), s, given)
    drew = not torch.equal(given.get_state(), before)
    other = sample(_curved, x.clone(), _levels(8), s, stream(1, "testing/sampler"))
    differs = not torch.equal(first, other)
    demand(
        drew == differs == (not s.deterministic),
        f"deterministic = {s.deterministic}, but it {'drew' if drew else 'drew nothing'} and "
        f"another generator {'changed' if differs else 'did not change'} the result.",
    )
    return "deterministic" if s.deterministic else "reproducible with its generator"


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(s: Sampler, context: Context) -> str:
    return options_matter(_with_noise(s, 1.0))


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(s: Sampler, context: Context) -> str:
    return behaviour.equal_elsewhere(s, context)
