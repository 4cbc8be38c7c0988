"""The laws of losses m(q_hat, q), elementwise discrepancies."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from testbed.components.loss import Loss
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.testing import behaviour
from testbed.testing.cases import awaken, draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import options_matter

LAWS = Group("loss")
SHAPES = ((3,), (3, 4), (2, 3, 4, 4))
SCALES = (1e-4, 1.0, 1e4)


def _m(m: Loss, q_hat: Tensor, q: Tensor) -> Tensor:
    """m of copies, with a new state."""
    return m(q_hat.clone(), q.clone(), m.build())


def _no_statistics(m: Loss) -> None:
    """Skipped for a state with buffers."""
    state = m.build()
    if state is not None and list(state.buffers()):
        raise Skipped("its state has buffers, which may gather statistics of the batch")


def _pair(shape: tuple[int, ...], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """(prediction, target), float64."""
    return scale * draws(shape, 51), scale * draws(shape, 52)


@LAWS.law("The space is a kind, or F.")
def metadata(m: Loss, context: Context) -> str:
    demand(
        m.space in ("F", *PREDICTION_TYPES),
        f"space = {m.space!r}, expected F, {', '.join(PREDICTION_TYPES)}.",
    )
    return m.space


@LAWS.law("m has the shape and dtype of its arguments.")
def shape(m: Loss, context: Context) -> None:
    for dims in SHAPES:
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            q_hat, q = (value.to(dtype) for value in _pair(dims))
            for few in (slice(None), slice(0)):
                found = _m(m, q_hat[few], q[few])
                demand(
                    found.shape == q[few].shape and (m.state is not None or found.dtype == dtype),
                    f"m is {tuple(found.shape)} {found.dtype} for {tuple(q[few].shape)} {dtype}.",
                )


@LAWS.law("m is finite for errors from 1e-4 to 1e4.")
def finite(m: Loss, context: Context) -> None:
    for scale in SCALES:
        q_hat, q = _pair((64,), scale)
        found = _m(m, q_hat, q)
        bad = ~torch.isfinite(found)
        if bool(bad.any()):
            at = int(bad.nonzero()[0])
            raise CheckFailed(
                f"m({float(q_hat[at]):.4g}, {float(q[at]):.4g}) = {float(found[at])}."
            )


@LAWS.law("m(q_hat, q) >= 0, and 0 where q_hat = q.")
def zero_at_target(m: Loss, context: Context) -> None:
    for scale in SCALES:
        q_hat, q = _pair((64,), scale)
        low = _m(m, q_hat, q)
        demand(bool((low >= 0).all()), f"m is {float(low.min()):.4g} < 0.")
        at = _m(m, q.clone(), q)
        demand(not bool(at.any()), f"m(q, q) is {float(at.abs().max()):.4g}, not 0.")


@LAWS.law("m(q_hat, q) > 0 where q_hat differs from q: an error is never free.")
def sees_errors(m: Loss, context: Context) -> None:
    for scale in SCALES:
        q_hat, q = _pair((64,), scale)
        for side in (q_hat, q + (q - q_hat)):
            found = _m(m, side, q)
            if not bool((found > 0).all()):
                at = int((~(found > 0)).nonzero()[0])
                raise CheckFailed(
                    f"m({float(side[at]):.4g}, {float(q[at]):.4g}) = {float(found[at]):.4g}."
                )


@LAWS.law("Elementwise: an element of m depends on that element of q_hat and q alone.")
def elementwise(m: Loss, context: Context) -> None:
    _no_statistics(m)
    q_hat, q = _pair((6, 8))
    whole = _m(m, q_hat, q)
    for i in range(len(q)):
        other = torch.arange(len(q))[:, None] != i
        found = _m(m, torch.where(other, 3 * q_hat, q_hat), torch.where(other, -q, q))
        demand(
            torch.equal(found[i], whole[i]),
            f"row {i} changes by {float((found[i] - whole[i]).abs().max()):.4g} with the others.",
        )
        column = torch.arange(q.shape[1])[None] != i
        found = _m(m, torch.where(column, 3 * q_hat, q_hat), torch.where(column, -q, q))
        demand(
            torch.equal(found[:, i], whole[:, i]),
            f"column {i} changes by {float((found[:, i] - whole[:, i]).abs().max()):.4g} with the "
            "others.",
        )


@LAWS.law("Autograd gives the derivative of m in q_hat, away from kinks (gradcheck).")
def differentiable(m: Loss, context: Context) -> str:
    _no_statistics(m)
    state = m.build()
    state = state.double() if state is not None else None
    q = draws((12,), 52)
    # Errors that are no round numbers, where kinks are.
    q_hat = q + torch.tensor([-2.87, -1.31, -0.717, -0.377, -0.113, -0.0137] * 2).double() * (
        torch.tensor([1.0, -1.0]).repeat_interleave(6).double()
    )
    q_hat.requires_grad_()
    try:
        torch.autograd.gradcheck(lambda value: m(value, q, copy.deepcopy(state)), (q_hat,))
    except Exception as problem:
        raise CheckFailed(" ".join(str(problem).split())[:300]) from problem
    return "torch.autograd.gradcheck, float64"


@LAWS.law("m is on the device of its arguments.")
def device(m: Loss, context: Context) -> str:
    if m.state is not None:
        raise Skipped("its state is moved by the engine")
    return behaviour.on_device(lambda a, b: m(a, b), _pair((3, 4)))


@LAWS.law("Pure: arguments and global state stay as they were; equal states give the same bits.")
def pure(m: Loss, context: Context) -> None:
    state = m.build()
    awaken(state)
    behaviour.pure(lambda a, b: m(a, b, copy.deepcopy(state)), _pair((6, 8)))


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(m: Loss, context: Context) -> str:
    return options_matter(m)


@LAWS.law("A state that is saved and restored goes on with the same bits.")
def state_round_trip(m: Loss, context: Context) -> str:
    state = m.build()
    if state is None:
        raise Skipped("it has no state")
    awaken(state)
    q_hat, q = _pair((6, 8))
    for _ in range(3):
        m(q_hat, q, state)
    again = m.build()
    assert again is not None
    # A copy: what state_dict returns shares memory with the module.
    again.load_state_dict(copy.deepcopy(state.state_dict()))
    for call in range(3):
        a, b = m(q_hat * (call + 1), q, state), m(q_hat * (call + 1), q, again)
        demand(
            behaviour.same(a.detach(), b.detach()),
            f"call {call + 1} after restoring differs by {float((a - b).abs().max()):.4g}: what it "
            "changes must be a parameter or a buffer.",
        )
    return f"{len(state.state_dict())} tensors"


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(m: Loss, context: Context) -> str:
    return behaviour.equal_elsewhere(m, context)
