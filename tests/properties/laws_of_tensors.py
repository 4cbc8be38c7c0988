"""Shapes, dtypes and samples: what a conversion does to a tensor, whatever it means."""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from properties.states import State, kind, kinds, law, outputs, parameterization, states
from torch import Tensor

import testbed
from testbed.diffusion.noise_levels import COSINE, FLOW, VE, VP

schedules = st.sampled_from([VE, VP, COSINE, FLOW])


def ends(c: State) -> State:
    """The state at the smallest and at the largest sigma of its dtype, one after the other."""
    far = 1e2 if c.dtype == torch.float16 else 1e4
    sigma = torch.tensor([1 / far, far], dtype=torch.float64).repeat(len(c.x0))[: len(c.x0)]
    return replace(c, sigma=sigma)


@law(c=states(), source=kinds, target=kinds)
def batch_is_its_samples_one_by_one(c: State, source: str, target: str) -> None:
    """convert(q)_i = convert(q_i) with sigma_i, bit for bit: every operation is elementwise and one
    of + - * / sqrt, which IEEE 754 rounds correctly."""
    q = c.q(source)
    whole = c.convert(q, source, target)
    sigma = c.sigma.expand(len(c.x0))
    for i in range(len(c.x0)):
        given: dict[str, Any] = {"x": c.x[i : i + 1], "sigma_data": c.sigma_data}
        ways = kind(source), kind(target)
        alone = testbed.convert(q[i : i + 1], *ways, sigma=sigma[i], **given)
        assert torch.equal(whole[i : i + 1], alone)


@law(c=states(), source=kinds, target=kinds)
def one_sigma_is_the_same_sigma_for_every_sample(c: State, source: str, target: str) -> None:
    """A scalar sigma and the vector that repeats it give the same, bit for bit."""
    scalar = c.sigma.flatten()[0]
    one, each = (replace(c, sigma=sigma) for sigma in (scalar, scalar.repeat(len(c.x0))))
    q = c.q(source)
    assert torch.equal(one.convert(q, source, target), each.convert(q, source, target))


@law(c=states(), output=outputs)
def batch_of_outputs_is_its_samples_one_by_one(c: State, output: str) -> None:
    """The same of D(F, x) and of F*(x0, eps)."""
    p, sigma = parameterization(output), c.sigma.expand(len(c.x0))

    def both(row: slice, level: Tensor) -> tuple[Tensor, Tensor]:
        given: dict[str, Any] = {"sigma_data": c.sigma_data}
        return (
            p.denoise(c.eps[row], c.x[row], level, **given),
            p.target(c.x0[row], c.eps[row], level, **given),
        )

    whole = both(slice(None), c.sigma)
    for i in range(len(c.x0)):
        row = slice(i, i + 1)
        for batch, alone in zip(whole, both(row, sigma[i]), strict=True):
            assert torch.equal(batch[row], alone)


@law(c=states(), source=kinds, target=kinds)
def result_has_the_dtype_and_shape_of_the_prediction(c: State, source: str, target: str) -> None:
    """Whatever the dtype of sigma, one for all or one each."""
    found = c.convert(c.q(source), source, target)
    assert (found.dtype, found.shape) == (c.dtype, c.x0.shape)


@law(c=states(), output=outputs)
def D_and_F_have_the_dtype_and_shape_of_x(c: State, output: str) -> None:
    """D, F of D, and F*; a coefficient has sigma's shape and dtype, float32 or wider."""
    p = parameterization(output)
    for found in (
        p.denoise(c.eps, c.x, c.sigma, sigma_data=c.sigma_data),
        p.output(c.x0, c.x, c.sigma, sigma_data=c.sigma_data),
        p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data),
    ):
        assert (found.dtype, found.shape) == (c.dtype, c.x0.shape)
    for found in p.coefficients(c.sigma, sigma_data=c.sigma_data):
        assert (found.dtype, found.shape) == (c.sigma.dtype, c.sigma.shape)


@law(c=states(), schedule=schedules)
def x_t_has_the_dtype_and_shape_of_x(
    c: State, schedule: testbed.noise_levels.NoiseSchedule
) -> None:
    """And t those of sigma; back again, x and the score those of x_t."""
    x_t, t = schedule.from_ve(c.x, c.sigma)
    x, sigma = schedule.to_ve(x_t, t)
    for found, like in (
        (x_t, c.x),
        (t, c.sigma),
        (x, c.x),
        (sigma, c.sigma),
        (schedule.score_to_ve(c.eps, t), c.x),
    ):
        assert (found.dtype, found.shape) == (like.dtype, like.shape)


@law(c=states().map(ends), source=kinds, target=kinds)
def conversions_are_finite_at_both_ends(c: State, source: str, target: str) -> None:
    """At sigma = 1e-4 and 1e4, in float16 1e-2 and 1e2."""
    assert bool(c.convert(c.q(source), source, target).isfinite().all())


@law(c=states(), source=kinds, target=kinds)
def conversion_leaves_its_arguments_alone(c: State, source: str, target: str) -> None:
    """q, x and sigma are after the call what they were before."""
    q = c.q(source)
    given = (q, c.x, c.sigma)
    before = [tensor.clone() for tensor in given]
    c.convert(q, source, target)
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))
