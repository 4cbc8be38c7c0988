"""The laws of networks with conditions that stand for values, called as the others are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from testbed.components.condition import ConditionTable
from testbed.components.network import Network
from testbed.testing import behaviour
from testbed.testing.cases import draws
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import Skipped
from testbed.testing.probes import awaken
from testbed.testing.rounding import Worst

LAWS = Group("network")
ROWS, TOKENS = 4, 3
Tables = dict[str, ConditionTable]


def tables_for(n: Network, shape: tuple[int, ...]) -> Tables:
    """A table of ROWS values of each kind that the network takes for samples of this shape.

    An image has the size of a sample, or of 8 pixels a side where samples are no images.
    """
    size = shape[1:] if len(shape) == 3 else (8, 8)
    # The second value of tokens has padding.
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    mask[1, -1] = False
    found = {
        "vector": ConditionTable("vector", draws((ROWS, 5), 71, torch.float32)),
        "tokens": ConditionTable("tokens", draws((ROWS, TOKENS, 6), 72, torch.float32), mask),
        "image": ConditionTable("image", draws((ROWS, 2, *size), 73, torch.float32)),
    }
    tables = {f"a_{kind}": found[kind] for kind in n.condition_kinds}
    if not tables:
        raise Skipped("it takes no values of conditions")
    return tables


def built(n: Network, tables: Mapping[str, ConditionTable]) -> nn.Module:
    """The network with these tables, no parameter at zero."""
    module = n(n.shapes[0], 0, 0, tables=tables)
    awaken(module)
    return module.eval()


def inputs(n: Network, count: int = 5) -> tuple[Tensor, Tensor]:
    """x (count, *shape) and c_noise (count,) of the first declared kind."""
    kind, (low, high) = next(iter(n.noise.items()))
    noise = torch.linspace(low, high, count)
    x = draws((count, *n.shapes[0]), 61, torch.float32)
    return x, noise.round() if kind == "index" else noise


def numbers(tables: Mapping[str, ConditionTable], count: int = 5) -> dict[str, Tensor]:
    """A row of each table for each sample; the first three have all rows but the last."""
    return {name: torch.arange(count) % (ROWS - 1) for name in tables}


def _call(module: nn.Module, n: Network, condition: Mapping[str, Tensor] | None) -> Tensor:
    x, noise = inputs(n)
    with torch.no_grad():
        F: Tensor = module(x, noise, condition)
    return F


@LAWS.law("F has the shape and dtype of x, for every shape and kind of condition.")
def tables_shape(n: Network, context: Context) -> str:
    for dims in n.shapes:
        tables = tables_for(n, dims)
        module, (_, noise) = n(dims, 0, 0, tables=tables), inputs(n)
        for count in (1, 5):
            x = draws((count, *dims), 61, torch.float32)
            F = module(x, noise[:count], numbers(tables, count))
            demand(
                F.shape == x.shape and F.dtype == x.dtype,
                f"F is {tuple(F.shape)} {F.dtype} for x {tuple(x.shape)} {x.dtype}.",
            )
    return ", ".join(n.condition_kinds)


@LAWS.law("A value changes F; a class of -1 switches its condition off: the same bits as without.")
def tables_matter(n: Network, context: Context) -> str:
    tables = tables_for(n, n.shapes[0])
    module, given = built(n, tables), numbers(tables)
    whole, without = (_call(module, n, one) for one in (given, None))
    for name in tables:
        others = {key: rows for key, rows in given.items() if key != name}
        left_out = _call(module, n, others)
        off = torch.full_like(given[name], -1)
        demand(
            not bool((whole == left_out).flatten(1).all(1).any()),
            f"F is the same with and without condition {name!r}.",
        )
        other = _call(module, n, {**given, name: (given[name] + 1) % ROWS})
        demand(
            not bool((whole == other).flatten(1).all(1).any()),
            f"F is the same for two values of condition {name!r}.",
        )
        demand(
            behaviour.same(_call(module, n, {**given, name: off}), left_out),
            f"F differs between a class of -1 of condition {name!r} and none.",
        )
        some = torch.where(torch.arange(len(off)) % 2 == 0, off, given[name])
        mixed = _call(module, n, {**given, name: some})
        demand(
            behaviour.same(mixed[0::2], left_out[0::2])
            and behaviour.same(mixed[1::2], whole[1::2]),
            f"F of a row changes where another has condition {name!r} switched off.",
        )
    everything = {name: torch.full_like(rows, -1) for name, rows in given.items()}
    demand(
        behaviour.same(_call(module, n, everything), without),
        "F differs with all switched off.",
    )
    return ", ".join(n.condition_kinds)


def _tokens(n: Network) -> tuple[str, ConditionTable]:
    """The name and the table of tokens, with padding at the end of two rows."""
    name, table = "a_tokens", tables_for(n, n.shapes[0]).get("a_tokens")
    if table is None:
        raise Skipped("it takes no tokens")
    return name, table


@LAWS.law("What stands in the place of padding changes nothing: the same bits.")
def padding(n: Network, context: Context) -> None:
    name, table = _tokens(n)
    assert table.mask is not None
    rows = torch.where(table.mask[..., None], table.rows, 1e3 + table.rows)
    other = built(n, {name: ConditionTable("tokens", rows, table.mask)})
    module, given = built(n, {name: table}), {name: torch.arange(5) % ROWS}
    demand(
        behaviour.same(_call(other, n, given), _call(module, n, given)),
        "F depends on the values of tokens that the mask leaves out.",
    )


@LAWS.law("How much padding there is, and where it stands, changes nothing but the rounding.")
def padding_place(n: Network, context: Context) -> str:
    """In float64, against what float32 is off: an error of another kind is far larger."""
    name, table = _tokens(n)
    assert table.mask is not None
    x, noise = inputs(n)
    given = {name: torch.arange(5) % ROWS}
    module, worst = built(n, {name: table}), Worst(same=True)
    with torch.no_grad():
        narrow = module(x.clone(), noise, given)
        wanted = module.double()(x.double(), noise.double(), given)
        bound = (narrow.double() - wanted).abs().max() + 2.0**-24 * wanted.abs()
        gap = torch.zeros(ROWS, 2, table.shape[-1])
        none = torch.zeros(ROWS, 2, dtype=torch.bool)
        longer = torch.cat([table.rows, gap], 1), torch.cat([table.mask, none], 1)
        first = torch.cat([gap, table.rows], 1), torch.cat([none, table.mask], 1)
        for rows, mask in (longer, first):
            other = built(n, {name: ConditionTable("tokens", rows, mask)}).double()
            worst.compare("F", other(x.double(), noise.double(), given), wanted, bound)
    return "equal in float64 to float32's rounding"


@LAWS.law("The values are no weights: with further rows the weights and the F of others are equal.")
def further_rows(n: Network, context: Context) -> str:
    tables = tables_for(n, n.shapes[0])
    more = {
        name: ConditionTable(
            table.kind,
            torch.cat([table.rows, 3 * table.rows[:1]]),
            None if table.mask is None else torch.cat([table.mask, table.mask[:1]]),
        )
        for name, table in tables.items()
    }
    one, two = (n(n.shapes[0], 0, 0, tables=of) for of in (tables, more))
    mine, theirs = one.state_dict(), two.state_dict()
    demand(
        mine.keys() == theirs.keys()
        and all(behaviour.same(value, theirs[name]) for name, value in mine.items()),
        "its weights, or what it stores with them, differ with the number of rows.",
    )
    awaken(one)
    awaken(two)
    given = numbers(tables)
    demand(
        behaviour.same(_call(one.eval(), n, given), _call(two.eval(), n, given)),
        "F of a value changes with further rows.",
    )
    return "a trained network takes further values"


@LAWS.law("Gradients reach every parameter within a few steps, those of the values' too.")
def tables_learn(n: Network, context: Context) -> str:
    tables = tables_for(n, n.shapes[0])
    module = n(n.shapes[0], 0, 0, tables=tables).train()
    x, noise = inputs(n, 8)
    goal = draws((8, *n.shapes[0]), 62, torch.float32)

    def loss() -> Tensor:
        F: Tensor = module(x.clone(), noise, numbers(tables, 8))
        return (F - goal).square().mean()

    return behaviour.reached(module, loss)


@LAWS.law("torch.func.vmap over stacked parameters equals the networks one by one, with values.")
def tables_vmap(n: Network, context: Context) -> str:
    tables = tables_for(n, n.shapes[0])
    modules, worst = [built(n, tables) for _ in range(2)], Worst(same=True)
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.mul_(0.5)
    (x, noise), given = inputs(n), numbers(tables)
    given = {name: torch.where(torch.arange(5) == 2, -1, rows) for name, rows in given.items()}
    narrow = [_call(module, n, given) for module in modules]
    wide = [module.double()(x.double(), noise.double(), given) for module in modules]
    stacked = torch.func.stack_module_state(modules)
    skeleton = modules[0]

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], *classes: Tensor) -> Tensor:
        condition = dict(zip(given, classes, strict=True))
        found: Tensor = torch.func.functional_call(
            skeleton, (parameters, buffers), (x.double(), noise.double(), condition)
        )
        return found

    together = torch.func.vmap(one)(*stacked, *(torch.stack([k, k]) for k in given.values()))
    for F, wanted, near in zip(together, wide, narrow, strict=True):
        bound = (near.double() - wanted).abs().max() + 2.0**-24 * wanted.abs()
        worst.compare("F", F, wanted, bound)
    return "equal in float64 to float32's rounding"
