"""The laws of what networks declare: values of conditions, a second level, features, outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from testbed.components.network import F as FIRST
from testbed.components.network import Network
from testbed.testing import behaviour
from testbed.testing.cases import awaken, draws
from testbed.testing.checks import Context, demand
from testbed.testing.failures import Skipped
from testbed.testing.network_cases import (
    awake,
    batch,
    condition_of,
    labels_of,
    tables_of,
)
from testbed.testing.networks import LAWS

__all__ = ["LAWS"]

WIDEST = 1024
"""The most numbers of a sample at which the rank of F is tried."""


@LAWS.law("A value changes F; equal values give equal bits, and -1 those without the condition.")
def condition_values(n: Network, context: Context) -> str:
    """Padding of tokens changes nothing. The values are no part of the weights."""
    if not n.condition_kinds:
        raise Skipped("it takes classes alone" if n.takes("label") else "it takes no condition")
    shape = max(n.shapes, key=len)
    tables = tables_of(n, shape)
    for kind, table in tables.items():
        module = n(shape, 0, 0, tables={kind: table})
        kept = any(behaviour.same(value, table.rows) for value in module.state_dict().values())
        demand(not kept, f"the values of kind {kind!r} are part of the state that is kept.")
        awaken(module)
        x, noise = batch(n, shape, 1)
        with torch.no_grad():
            of = [module.eval()(x.clone(), noise, {kind: torch.tensor([i])}) for i in range(-1, 4)]
            without = module(x.clone(), noise, None)
        off, first, *others, again = of
        demand(behaviour.same(off, without), f"F differs between -1 of kind {kind!r} and none.")
        demand(
            behaviour.same(first, again),
            f"F differs between equal values of kind {kind!r} by {_far(first, again)}.",
        )
        demand(
            _distinct(torch.cat([off, first, *others])), f"F is the same at two of kind {kind!r}."
        )

        def call(x: Tensor, c: Tensor, m: nn.Module = module, name: str = kind) -> Tensor:
            F: Tensor = m(x, c, {name: torch.arange(len(x)) % 3})
            return F

        _reached(module, n, shape, call)
    return ", ".join(tables)


@LAWS.law("A second noise level changes F and no other weight; None gives the bits without one.")
def second(n: Network, context: Context) -> str:
    if not n.takes_second:
        raise Skipped("its build does not take `second`")
    shape, labels, count = n.shapes[0], labels_of(n), 9
    condition = condition_of(labels, count)
    for kind in n.noise:
        plain, module = (n(shape, labels, 0, noise_kind=kind, second=one) for one in (False, True))
        weights, mine = plain.state_dict(), module.state_dict()
        same = [name for name, value in weights.items() if behaviour.same(value, mine[name])]
        demand(len(same) == len(weights), "other weights start otherwise.")
        awaken(module)
        plain.load_state_dict({name: module.state_dict()[name] for name in same})
        x, noise = batch(n, shape, count, kind)
        with torch.no_grad():
            without = module.eval()(x.clone(), noise, condition)
            off = module(x.clone(), noise, condition, second=None)
            never = plain.eval()(x.clone(), noise, condition)
            one = x[:1]
            F = [module(one.clone(), noise[4:5], None, second=r[None]) for r in noise]
        demand(
            behaviour.same(without, off) and behaviour.same(without, never),
            "F with second = None differs from that of a network without one.",
        )
        demand(_distinct(torch.cat(F)), f"F is the same at two second levels of kind {kind}.")
    module = n(shape, labels, 0, second=True)

    def call(x: Tensor, c: Tensor) -> Tensor:
        F: Tensor = module(x, c, condition_of(labels, len(x)), second=c.flip(0))
        return F

    _reached(module, n, shape, call)
    return ", ".join(n.noise)


@LAWS.law("Features have the declared names; F is a call's, bit for bit, and depends on them.")
def features(n: Network, context: Context) -> str:
    names = n.feature_names
    if not names:
        raise Skipped("it declares no features")
    for shape in n.shapes:
        labels = labels_of(n)
        module = awake(n, shape, labels)
        x, noise = batch(n, shape)
        x.requires_grad_()
        condition = condition_of(labels, len(x))
        with_features: Any = module.with_features
        F, found = with_features(x, noise, condition)
        demand(tuple(found) == names, f"the names are {tuple(found)}, and declared are {names}.")
        plain = module(x, noise, condition)
        demand(
            behaviour.same(F.detach(), plain.detach()),
            f"F differs from a call's by {_far(F, plain)}.",
        )
        for name, h in found.items():
            demand(
                len(h) == len(x) and bool(h.isfinite().all()),
                f"feature {name!r} is {tuple(h.shape)} for {len(x)} samples, or not finite.",
            )
            (onward,) = torch.autograd.grad(F.sum(), h, retain_graph=True, allow_unused=True)
            (back,) = torch.autograd.grad(h.square().sum(), x, retain_graph=True, allow_unused=True)
            demand(onward is not None, f"F does not depend on feature {name!r}.")
            demand(
                back is not None and bool(back.flatten(1).any(1).all()),
                f"feature {name!r} does not depend on x.",
            )
    return ", ".join(names)


@LAWS.law("F of random weights lies in an affine space of no more dimensions than are declared.")
def rank(n: Network, context: Context) -> str:
    """More channels than `shapes` have where those do not reach the limit.

    In float64 what lies outside is rounding, and below half of the digits.
    """
    if n.rank is None:
        raise Skipped("it declares no rank")
    shape = max(n.shapes, key=math.prod)
    while (d := math.prod(shape)) <= (limit := n.rank_of(shape)):
        shape = (2 * shape[0], *shape[1:])
        if math.prod(shape) > WIDEST:
            raise Skipped(f"its rank limits no sample of up to {WIDEST} numbers")
    labels = labels_of(n)
    module = awake(n, shape, labels).double()
    x = draws((2 * d, *shape), 61, torch.float64)
    noise = batch(n, shape)[1][2:3].double().expand(len(x))
    with torch.no_grad():
        F = module(x, noise, condition_of(min(labels, 1), len(x))).flatten(1)
        spread = torch.linalg.svdvals(F - F.mean(0))
    outside = float(spread[limit:].norm() / spread.norm())
    bound = torch.finfo(torch.float64).eps ** 0.5
    demand(
        outside <= bound,
        f"F of samples of shape {shape} has {outside:.2g} of its size outside of any affine space "
        f"of {limit} dimensions, which are declared.",
    )
    return f"{limit} of {d}"


@LAWS.law("All outputs are returned, each channel its own; other weights start as with F alone.")
def outputs(n: Network, context: Context) -> str:
    if not n.takes_outputs:
        raise Skipped("its build does not take `outputs`")
    for shape in n.shapes:
        C = shape[0]
        alone, module = n(shape, 0, 0), n(shape, 0, 0, outputs={FIRST: C, "nu": C, "u": 1})
        mine = module.state_dict()
        same = sum(behaviour.same(value, mine[name]) for name, value in alone.state_dict().items())
        changed = len(mine) - same
        demand(changed <= 2, f"{changed} tensors of weights start otherwise: one layer may.")
        awaken(module)
        x, noise = batch(n, shape)
        found = module.eval()(x, noise, None)
        wanted = (len(x), 2 * C + 1, *shape[1:])
        demand(found.shape == wanted, f"it returns {tuple(found.shape)}, expected {wanted}.")
        demand(_distinct(found.detach().transpose(0, 1)), "two channels are one.")
    return "F, nu and a third"


@LAWS.law("Computed again or kept, activations give the same F and gradients, bit for bit.")
def checkpointing(n: Network, context: Context) -> str:
    if not n.takes_checkpointing:
        raise Skipped("its build does not take `checkpointing`")
    shape, labels = n.shapes[0], labels_of(n)
    x, noise = batch(n, shape)
    found: list[list[Tensor]] = []
    passes = []
    for one in (False, True):
        module = n(shape, labels, 0, checkpointing=one).train()
        awaken(module)
        calls: list[int] = []
        hooks = [
            part.register_forward_hook(lambda *_, c=calls: c.append(1))
            for part in module.modules()
            if isinstance(part, nn.Linear | nn.Conv2d)
        ]
        inputs = x.clone().requires_grad_()
        F = module(inputs, noise, condition_of(labels, len(x)))
        before = len(calls)
        gradients = torch.autograd.grad(F.square().sum(), [inputs, *module.parameters()])
        passes.append(len(calls) - before)
        for hook in hooks:
            hook.remove()
        found.append([F.detach(), *gradients])
    demand(all(map(behaviour.same, *found)), "F or a gradient differs.")
    demand(passes[1] > 0, "nothing is computed again in the backward pass.")
    return f"{passes[1]} layers again"


def _distinct(rows: Tensor) -> bool:
    """Whether no two rows (n, ...) are equal."""
    flat = rows.flatten(1)
    return not bool((torch.cdist(flat, flat).fill_diagonal_(1) == 0).any())


def _far(a: Tensor, b: Tensor) -> str:
    return f"{float((a - b).detach().abs().max()):.3g}" if a.shape == b.shape else "its shape"


def _reached(
    module: nn.Module, n: Network, shape: tuple[int, ...], call: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """CheckFailed unless gradients reach every parameter."""
    module.train()
    x, noise = batch(n, shape, 8)
    goal = x.flip(0)

    def loss() -> Tensor:
        return (call(x.clone(), noise) - goal).square().mean()

    behaviour.reached(module, loss)
