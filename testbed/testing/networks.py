"""The laws of networks, called as network(x, c_noise, condition)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from testbed.components.network import Network
from testbed.testing import behaviour
from testbed.testing.cases import awaken, draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.network_cases import (
    CLASSES,
    awake,
    batch,
    condition_of,
    conditions_of,
    kinds,
    labels_of,
    noise_levels,
)
from testbed.testing.options import options_matter
from testbed.testing.rounding import Worst
from testbed.training.batch import skeleton

LAWS = Group("network")


@LAWS.law("F has the shape and dtype of x, for every shape, kind of noise and condition.")
def shape(n: Network, context: Context) -> str:
    for dims in n.shapes:
        for labels in {0, labels_of(n)}:
            for kind in kinds(n):
                module = n(dims, labels, 0, noise_kind=kind)
                for count in (1, 5):
                    x, noise = (
                        draws((count, *dims), 61, torch.float32),
                        noise_levels(n, kind, count),
                    )
                    for condition in conditions_of(labels, count):
                        F = module(x, noise, condition)
                        demand(
                            F.shape == x.shape and F.dtype == x.dtype,
                            f"F is {tuple(F.shape)} {F.dtype} for x {tuple(x.shape)} {x.dtype}.",
                        )
    return f"{len(n.shapes)} shapes; {', '.join(kinds(n))}"


@LAWS.law("F is finite over the declared range of every kind of c_noise, for x from 1e-3 to 1e3.")
def finite(n: Network, context: Context) -> str:
    for dims in n.shapes:
        for kind in kinds(n):
            module = awake(n, dims, kind=kind)
            noise = noise_levels(n, kind, 17)
            for scale in (1e-3, 1.0, 1e3):
                F = module(scale * draws((17, *dims), 61, torch.float32), noise, None)
                bad = ~torch.isfinite(F).flatten(1).all(1)
                if bool(bad.any()):
                    raise CheckFailed(
                        f"F is not finite at {kind} = {float(noise[bad][0]):.4g}, x of size "
                        f"{scale:g}."
                    )
    return ", ".join(f"{kind} {low:g} to {high:g}" for kind, (low, high) in kinds(n).items())


@LAWS.law("F depends on c_noise over its declared range: the network can tell the levels apart.")
def sees_noise(n: Network, context: Context) -> str:
    x = draws((1, *n.shapes[0]), 61, torch.float32)
    for kind in kinds(n):
        module = awake(n, n.shapes[0], kind=kind)
        noise = noise_levels(n, kind, 17)
        F = torch.cat([module(x, level[None], None) for level in noise]).flatten(1)
        if n.blind:
            demand(
                behaviour.same(F, F[:1].expand_as(F)), f"F differs with {kind}, and it is blind."
            )
            continue
        same = torch.cdist(F, F).fill_diagonal_(1) == 0
        if bool(same.any()):
            i, j = same.nonzero()[0].tolist()
            raise CheckFailed(
                f"F is the same at {kind} = {float(noise[i]):.4g} and {float(noise[j]):.4g}."
            )
    return "it sees none" if n.blind else ", ".join(n.noise)


def zero_at_start(n: Network) -> bool:
    """Whether F = 0 before training: then twins train as exact mirrors, from D = c_skip x."""
    shape = n.shapes[0]
    x, noise = batch(n, shape)
    with torch.no_grad():
        every = [
            n(shape, labels_of(n), 0)(100 * x, noise, condition)
            for condition in conditions_of(labels_of(n), len(x))
        ]
    return not any(bool(F.any()) for F in every)


@LAWS.law("The kind of c_noise changes no weight: equal architectures start alike.")
def one_start(n: Network, context: Context) -> str:
    if n.blind:
        raise Skipped("it sees no noise level")
    first, *others = (n(n.shapes[0], CLASSES, 0, noise_kind=kind) for kind in n.noise)
    weights = dict(first.named_parameters())
    for kind, other in zip(list(n.noise)[1:], others, strict=True):
        found = dict(other.named_parameters())
        held = found.keys() == weights.keys() and all(
            behaviour.same(found[name], weights[name]) for name in weights
        )
        demand(held, f"the weights for {kind} are not those for {next(iter(n.noise))}.")
    return f"{len(n.noise)} kinds"


@LAWS.law("Equal seeds give equal weights, others others; the global generators stay as they were.")
def seeded(n: Network, context: Context) -> None:
    with behaviour.harmless():
        first = n(n.shapes[0], CLASSES, 0).state_dict()
        again = n(n.shapes[0], CLASSES, 0).state_dict()
        other = n(n.shapes[0], CLASSES, 1).state_dict()
    demand(
        all(behaviour.same(first[name], again[name]) for name in first),
        "two networks of one seed have different weights.",
    )
    demand(
        any(not behaviour.same(first[name], other[name]) for name in first),
        "networks of different seeds have the same weights.",
    )


@LAWS.law("Pure: arguments and global state stay as they were, the same call gives the same bits.")
def pure(n: Network, context: Context) -> None:
    module = awake(n, n.shapes[0], labels_of(n))
    x, noise = batch(n, n.shapes[0])
    for mode in (module.eval(), module.train()):
        for condition in conditions_of(labels_of(n), len(x)):
            behaviour.pure(lambda x, c, m=mode, k=condition: m(x, c, k), (x.clone(), noise.clone()))


@LAWS.law("Per sample: F of a row depends on that row alone, in training mode too.")
def per_sample(n: Network, context: Context) -> None:
    for dims in n.shapes:
        module = awake(n, dims, labels_of(n))
        x, noise = batch(n, dims)
        condition = condition_of(labels_of(n), len(x))
        for mode in (module.eval(), module.train()):
            whole = mode(x.clone(), noise, condition).detach()
            for i in range(len(x)):
                mine = torch.arange(len(x)) == i
                others = condition and {
                    name: torch.where(mine, label, (label + 1) % CLASSES)
                    for name, label in condition.items()
                }
                other = mode(
                    torch.where(mine.view(-1, *[1] * len(dims)), x, 2 * x.flip(0) + 1),
                    torch.where(mine, noise, noise.flip(0)),
                    others,
                ).detach()
                # The same shapes run the same sums: equal bits, not merely close ones.
                demand(
                    behaviour.same(other[i], whole[i]),
                    f"row {i} changes by {float((other[i] - whole[i]).abs().max()):.3g} with the "
                    f"others ({'training' if mode.training else 'evaluation'} mode).",
                )


@LAWS.law("Gradients reach every parameter within a few steps, the classes' too.")
def learns(n: Network, context: Context) -> str:
    module = n(n.shapes[0], labels_of(n), 0).train()
    x, noise = batch(n, n.shapes[0], 8)
    condition, goal = condition_of(labels_of(n), 8), draws((8, *n.shapes[0]), 62, torch.float32)

    def loss() -> Tensor:
        F: Tensor = module(x.clone(), noise, condition)
        return (F - goal).square().mean()

    return behaviour.reached(module, loss)


@LAWS.law("A class changes F; one of -1 switches its condition off: the same bits as without it.")
def conditions(n: Network, context: Context) -> str:
    """Of a network that takes any condition two are tried, as are all ways to leave one out."""
    classes = {name: CLASSES for name in ("label", "other") if n.takes(name)}
    if not classes:
        raise Skipped("it takes no condition")
    further = {name: count for name, count in classes.items() if name != "label"}
    module = n(n.shapes[0], labels_of(n), 0, further)
    awaken(module)
    x, noise = batch(n, n.shapes[0])
    given = {name: torch.arange(len(x)) % count for name, count in classes.items()}
    off = {name: torch.full_like(label, -1) for name, label in given.items()}
    with torch.no_grad():
        whole, without = (module.eval()(x.clone(), noise, c) for c in (given, None))
        for name in classes:
            others = {key: label for key, label in given.items() if key != name}
            left_out = module(x.clone(), noise, others)
            demand(
                not bool((whole == left_out).flatten(1).all(1).any()),
                f"F is the same with and without condition {name!r}.",
            )
            demand(
                behaviour.same(module(x.clone(), noise, {**given, name: off[name]}), left_out),
                f"F differs between a class of -1 of condition {name!r} and none.",
            )
        demand(
            behaviour.same(module(x.clone(), noise, off), without),
            "F differs with all switched off.",
        )
    return ", ".join(classes)


def _noise_of_float32(
    n: Network, module: nn.Module, x: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """F in float64, and how far float32 is from it: an error of another kind is far larger."""
    narrow = module(x.clone(), noise, None)
    wide = module.double()(x.double(), noise.double(), None)
    return wide, (narrow.double() - wide).abs().nan_to_num().max() + 2.0**-24 * wide.abs()


@LAWS.law("torch.compile traces it in one piece, without a graph break, to equal values.")
def compile_(n: Network, context: Context) -> str:
    module, worst = awake(n, n.shapes[0]), Worst(same=True)
    x, noise = batch(n, n.shapes[0])
    wanted, bound = _noise_of_float32(n, module, x, noise)
    found = behaviour.compiled(lambda x, c: module(x, c, None), (x.double(), noise.double()))
    worst.compare("F", found, wanted, bound)
    return "equal in float64 to float32's rounding"


@LAWS.law("torch.func.vmap over stacked parameters equals the networks one by one.")
def vmap(n: Network, context: Context) -> str:
    """One is for the first kind of c_noise and one for the last, as trials of a batch may be."""
    ends = [(list(n.noise) or [""])[end] for end in (0, -1)]
    modules = [n(n.shapes[0], 0, seed, noise_kind=kind) for seed, kind in enumerate(ends)]
    worst = Worst(same=True)
    for module in modules:
        awaken(module)
        module.eval()
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.mul_(0.5)
    x, noise = batch(n, n.shapes[0])
    wanted = [_noise_of_float32(n, module, x, noise) for module in modules]
    stacked = torch.func.stack_module_state(modules)
    shared = skeleton(modules[0])

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(
            shared, (parameters, buffers), (x.double(), noise.double(), None)
        )
        return found

    with sdpa_kernel(SDPBackend.MATH):  # as in a batch: the fused kernels have no rule for vmap
        together = torch.func.vmap(one)(*stacked)
    for F, (value, bound) in zip(together, wanted, strict=True):
        worst.compare("F", F, value, bound)
    return "equal in float64 to float32's rounding"


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(n: Network, context: Context) -> str:
    return options_matter(n)


@LAWS.law("A worker process that loads the same plugins builds the same network.")
def spawned(n: Network, context: Context) -> str:
    return behaviour.equal_elsewhere(n, context)
