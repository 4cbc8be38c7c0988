"""The options of a component: at which of their values it is checked, and that each has an effect.

for point in testbed.testing.option_points(component):
    ...  # point.component, bound to the values that point.where names
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from testbed.components.base import Component
from testbed.components.guidance import Guidance
from testbed.errors import ComponentError
from testbed.testing import behaviour
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.guided_cases import mixture_data, trained_conditions
from testbed.testing.probes import probe


@dataclass(frozen=True)
class OptionPoint:
    """A component bound to values of its options, and these in words.

    `where` reads "with phi = 0.39"; it is empty for the component as it was bound.
    """

    where: str
    component: Component


def option_points(component: Component) -> list[OptionPoint]:
    """The component as it is bound, and at other values of its options: where every law must hold.

    The numbers are moved together, one above its own value and the next below, and then the other
    way round, so that every number is tried on both sides and their ratios change; every other
    name of an option is taken alone (`other_values`). What the component refuses by a ValueError
    is left out; a number that it refuses beside its own names is tried beside each other name. The
    space of a loss is not tried: its function does not see it.
    """
    others = (point for changes in _changes(component) for point in _bound(component, changes))
    return [OptionPoint("", component), *others, *_beside_other_names(component)]


class OptionPoints:
    """The `option_points` of components, worked out once for each of them when it is called for."""

    def __init__(self) -> None:
        self._of: dict[int, list[OptionPoint]] = {}

    def __call__(self, component: Component) -> list[OptionPoint]:
        """The values of the component's options at which it is checked, its own the first."""
        points = self._of.get(id(component))
        # An id may be that of another component by now.
        if points is None or points[0].component is not component:
            points = self._of[id(component)] = option_points(component)
        return points


def other_values(component: Component, name: str) -> list[Any]:
    """Other values of an option: all names, both truths, and a number above its own and one below.

    A float v gives 1.5 v and v/2, and 0.5 and -0.5 for 0; an integer v + 1 and v//2, which stays
    above 0; a tuple of numbers those of all its members. Text that names no choices, None and
    what is not finite have no other values.
    """
    value = {**component.defaults, **component.options}[name]
    choices = component.choices.get(name, ())
    if choices:
        return [other for other in choices if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple) and value and all(map(_is_number, value)):
        both = [_beside(member) for member in value]
        return [tuple(side) for side in zip(*both, strict=True)]
    if not _is_number(value):
        return []
    return [other for other in dict.fromkeys(_beside(value)) if other != value]


def options_matter(component: Any) -> str:
    """The options that have an effect, in words.

    Raises:
        CheckFailed: an option's own value changes something, or another one changes nothing.
        Skipped: the component gives other numbers at every call.
    """
    here = probe(component)
    if not all(map(behaviour.same, here, probe(component))):
        raise Skipped("gives other numbers at every call, whatever the options")
    options = {**component.defaults, **component.options}
    if not all(map(behaviour.same, here, probe(component.bound(options)))):
        raise CheckFailed("bound to its own options it gives other numbers.")
    effective = []
    for name in sorted({name for one in component.signatures() for name in one.defaults}):
        alike: list[Any] = []
        # Beside another name only where all values are refused beside the component's own.
        for names in ({}, *_other_names(component, name)):
            own = _numbers(component, {**options, **names}) if names else here
            if own is None:
                continue
            effect, alike = _effect(component, own, {**options, **names}, name)
            if effect:
                effective.append(name)
            if effect or alike:
                break
        if alike and name not in effective:
            raise CheckFailed(
                f"option {name!r} does nothing: {options[name]!r} and "
                f"{' and '.join(map(repr, alike))} give the same numbers."
            )
    return f"{', '.join(effective)}: each has an effect" if effective else "no numeric option"


def _effect(
    component: Any, own: list[Tensor], options: dict[str, Any], name: str
) -> tuple[bool, list[Any]]:
    """Whether another value of an option has an effect, and the values that had none until then.

    Neither where all are refused. `own` is what the component gives with these options.
    """
    alike: list[Any] = []
    for other in other_values(component, name):
        there = _numbers(component, {**options, name: other})
        if there is None:
            continue
        if len(there) != len(own) or not all(map(behaviour.same, own, there)):
            return True, alike
        alike.append(other)
    return False, alike


def _numbers(component: Any, options: dict[str, Any]) -> list[Tensor] | None:
    """What the component gives with these options, or None where it refuses them."""
    try:
        return probe(component.bound(options))
    except ValueError as problem:
        if not refuses(problem):
            raise
        return None


def refuses(problem: BaseException) -> bool:
    """Whether a component turned values down on purpose: by an InputError or a ValueError."""
    if isinstance(problem, ComponentError):
        return isinstance(problem.__cause__, ValueError)
    return isinstance(problem, ValueError)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _beside(value: float) -> tuple[float, float]:
    """A number above and one below; for an integer both are positive."""
    if isinstance(value, int):
        return value + 1, max(1, value // 2)
    return value * 1.5 + 0.5 * (value == 0), value / 2 - 0.5 * (value == 0)


def _changes(component: Component) -> Iterator[dict[str, Any]]:
    """The options to change, with their values: numbers in turn up and down, each other alone."""
    sides: tuple[dict[str, Any], ...] = ({}, {})
    alone: list[dict[str, Any]] = []
    turn = itertools.cycle((1, -1))
    for name in component.defaults:
        others = other_values(component, name)
        if name in component.choices or isinstance(others[0] if others else True, bool):
            alone += [{name: other} for other in others]
        else:
            for side, other in zip(sides[:: next(turn)], others, strict=False):
                side[name] = other
    yield from (side for side in (*sides, *alone) if side)


def _other_names(component: Component, apart: str) -> Iterator[dict[str, Any]]:
    """Each other name of an option but `apart`, alone."""
    for name in component.choices:
        if name != apart and name in component.defaults:
            yield from ({name: other} for other in other_values(component, name))


def _beside_other_names(component: Component) -> Iterator[OptionPoint]:
    """Numbers that the component refuses beside its own names, beside each other name."""
    for name in component.defaults:
        beside = [] if name in component.choices else list(_other_names(component, name))
        others = other_values(component, name) if beside else []
        if any(_accepted(component, {name: other}) is not None for other in others):
            continue
        for names, other in itertools.product(beside, others):
            changes = {**names, name: other}
            if (changed := _accepted(component, changes)) is not None:
                yield OptionPoint(
                    f"with {', '.join(map(_words, changes, changes.values()))}", changed
                )


def _bound(component: Component, changes: Mapping[str, Any]) -> Iterator[OptionPoint]:
    """The component with these changes, without those that it refuses alone.

    Where it refuses only some together, each is taken alone.
    """
    changed = _accepted(component, changes)
    if changed is not None:
        yield OptionPoint(_where(changes), changed)
    elif len(changes) > 1:
        alone = [{name: value} for name, value in changes.items()]
        kept = [change for change in alone if _accepted(component, change) is not None]
        if len(kept) < len(alone):
            kept = [{name: value for change in kept for name, value in change.items()}]
        for change in filter(None, kept):
            yield from _bound(component, change)


def _accepted(component: Component, changes: Mapping[str, Any]) -> Component | None:
    """The component with these changes, or None where it refuses them."""
    options = {**component.defaults, **component.options}
    try:
        changed = component.bound({**options, **changes})
    except ValueError as problem:
        if not refuses(problem):
            raise
        return None
    return None if _refused(changed) else changed


def _refused(component: Component) -> bool:
    """Whether the component refuses its options when it is used."""
    try:
        probe(component)
    except Exception as problem:  # what is no refusal, the laws find
        return refuses(problem)
    if isinstance(component, Guidance):
        return any(component.build().misfits(trained_conditions(mixture_data()), mixture_data()))
    return False


def _where(changes: Mapping[str, Any]) -> str:
    """`with phi = 0.39, k = 2`."""
    return "with " + ", ".join(map(_words, changes, changes.values()))


def _words(name: str, value: Any) -> str:
    return f"{name} = {value:.6g}" if isinstance(value, float) else f"{name} = {value!r}"
