"""The layers that a trial's settings come from: which one wins, and what it takes the place of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


def axes(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """TOML reads an unquoted dotted key as nested tables; both forms mean the same here."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from axes(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`; a table with a name replaces a component, one without adds options."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and "name" not in value:
            if isinstance(under, str):
                under = {"name": under}
            if isinstance(under, Mapping):
                value = merge(under, value)
        merged[key] = value
    return merged


def replaced(
    raw: Mapping[str, Any], everywhere: Mapping[str, Any], arms: Iterable[str]
) -> Iterable[str]:
    """A sentence for each setting of the arms or the grid that a later layer takes the place of."""
    below = {
        arm: set(_paths(table)) for arm, table in (raw.get("arms") or {}).items() if arm in arms
    }
    grid = {
        key: {path for value in values for path in _paths({key: value})}
        for key, values in axes(raw.get("grid", {}))
    }
    layers = [("grid.", sorted(set().union(*grid.values())))]
    layers.append(("--set ", sorted({*_paths(everywhere)} - {"seeds"})))
    for layer, paths in layers:
        for path in (p for p in paths if not _covered(p, [q for q in paths if q != p])):
            names = [arm for arm, held in below.items() if any(_covered(p, [path]) for p in held)]
            places = [f"the {path} of {'arm' if len(names) == 1 else 'the arms'} "
                      f"{', '.join(names)}"] if names else []  # fmt: skip
            if layer != "grid.":
                places += [f"grid.{key}" for key, held in grid.items()
                           if any(_covered(p, [path]) for p in held)]  # fmt: skip
            if places:
                yield f"{layer}{path} takes the place of {' and of '.join(places)}."


def _paths(table: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """The dotted keys that a table sets; a named component both itself and its options."""
    for key, value in table.items():
        if not isinstance(value, Mapping) or "name" in value:
            yield prefix + key
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _covered(path: str, above: Iterable[str]) -> bool:
    """Whether one of the paths `above` is this one or holds it."""
    return any(path == one or path.startswith(f"{one}.") for one in above)


@dataclass(frozen=True)
class Layers:
    """The layers that the settings of one trial come from.

    Args:
        stated: the tables by the names of the layers, the lowest first.
        point: which value of each axis of the grid the trial has, by the axis's dotted key.
        overridden: the dotted keys of the file that `--set` has changed.
    """

    stated: Mapping[str, Mapping[str, Any]]
    point: Mapping[str, int]
    overridden: Sequence[str] = ()

    @cached_property
    def merged(self) -> dict[str, Any]:
        """The settings: each from the last layer that has it."""
        found: dict[str, Any] = {}
        for layer in self.stated.values():
            found = merge(found, layer)
        return found

    def value(self, key: str) -> Any:
        """What a dotted key leads to in the settings; None where there is nothing."""
        return _value(self.merged, key)

    def place(self, key: str) -> str:
        """Where the value of a dotted key stands: in the last layer that has it; "" in none.

        Of a component it is the layer that names it, not one that changes its options.
        """
        having = {
            name: found
            for name, layer in reversed(list(self.stated.items()))
            if (found := _value(layer, key)) is not None
        }
        named = (n for n, one in having.items() if not isinstance(one, Mapping) or "name" in one)
        name = next(named, next(iter(having), ""))
        if name in ("", "--set"):
            return f"{name} {key}" if name else ""
        return set_(self._of_grid(key) if name == "grid" else f"{name}.{key}", self.overridden)

    def origin(self, key: str) -> str:
        """As `place`, but of a key in no layer where it would stand: in the table it is of."""
        words = key.split(".")
        for depth in range(len(words), 0, -1):
            if found := self.place(".".join(words[:depth])):
                return ".".join([found, *words[depth:]])
        return f"base.{key}"

    def _of_grid(self, key: str) -> str:
        """`grid.density[1].std`: the axis, which of its values, and the rest of the key."""
        for axis, index in self.point.items():
            if _covered(key, [axis]) or _covered(axis, [key]):
                return f"grid.{axis}[{index}]{key[len(axis) :]}"
        return f"grid.{key}"


NOWHERE = Layers({}, {})


def set_(place: str, overridden: Iterable[str]) -> str:
    """The place of a value in a file, as a word of `--set` where it is from there."""
    said = any(_covered(re.sub(r"\[\d+\]", "", place), [key]) for key in overridden)
    return f"--set {place}" if said else place


def _value(table: Any, key: str) -> Any:
    """What a dotted key leads to in a table; None where there is nothing."""
    for word in key.split("."):
        table = table.get(word) if isinstance(table, Mapping) else None
    return table
