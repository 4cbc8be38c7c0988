"""The layers that a trial's settings come from: which one wins, and what it takes the place of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def origin(layers: Mapping[str, Mapping[str, Any]], key: str) -> str:
    """The layer that a dotted key came from: the last that has it, or else the table it is in."""
    words = key.split(".")
    for depth in range(len(words), 0, -1):
        for name, layer in reversed(list(layers.items())):
            if _has(layer, words[:depth]):
                return f"{name}.{key}" if name != "--set" else f"--set {key}"
    return f"base.{key}"


def _has(layer: Any, words: Sequence[str]) -> bool:
    """Whether a layer sets what the words of a dotted key lead to."""
    for word in words:
        if not isinstance(layer, Mapping) or word not in layer:
            return False
        layer = layer[word]
    return True
