"""What a check is: one law about a component, with a name, and how it is broken or left out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.components.base import Component
from testbed.errors import InputError, MissingExtra, one_line
from testbed.registry import Registry, default_registry
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import OptionPoint, OptionPoints
from testbed.testing.processes import Courier


@dataclass(frozen=True)
class Context:
    """What a check needs besides its subject.

    Args:
        registry: the other components: what to convert to, what a recipe may name.
        courier: takes components to another process.
        points: gives the values of a component's options at which it is checked.
        kept: laws, components and what was found, for laws that come to a component twice.
    """

    registry: Registry
    courier: Courier
    points: OptionPoints
    kept: list[tuple[Any, Component, str]] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, components: Sequence[Component], registry: Registry | None = None) -> Context:
        """A context in which one process serves all `components`, at all values of options."""
        registry, points = registry or default_registry(), OptionPoints()
        return cls(registry, Courier(components, registry, points), points)


Run = Callable[[Any, Context], str | None]


@dataclass(frozen=True)
class Check:
    """One law of one axis, which holds at every value of a component's options.

    Args:
        id: for example "parameterization.round_trip" or "claim.unit_target".
        axis: the components it is about: "parameterization", "weighting", ...
        law: one sentence, with the equation.
        run: `run(component, context)` returns what to show besides "passed" and raises CheckFailed
            or Skipped.
        own: whether the law is checked at the component's own options alone.
        context: set where several checks share one.
    """

    id: str
    axis: str
    law: str
    run: Run = field(repr=False)
    own: bool = False
    context: Context | None = field(default=None, repr=False, compare=False)

    def __call__(self, component: Component) -> str:
        """Checks the component at several values of its options.

        Returns:
            The measured number in words, that of its own options where the law applies there.

        Raises:
            CheckFailed: the law is broken, or the component raised something.
            Skipped: the law cannot be checked, for the stated reason.
        """
        context = self.context or Context.of([component])
        points = context.points(component)[: 1 if self.own else None]
        reason: Skipped | None = None
        found: list[str] = []
        for point in points:
            try:
                found.append(self._at(point, context))
            except Skipped as skipped:
                reason = reason or skipped
        if reason is not None and not found:
            raise reason
        return found[0]

    def _at(self, point: OptionPoint, context: Context) -> str:
        component, broken = point.component, functools.partial(self._failed, point)
        try:
            return self.run(component, context) or ""
        except Skipped:
            raise
        except CheckFailed as found:
            raise broken(found.numbers) from found.__cause__
        except MissingExtra as problem:
            raise Skipped(str(problem)) from None
        except InputError as problem:
            numbers = _brief(str(problem).removeprefix(f"{component.label}: "))
            raise broken(numbers) from problem.__cause__ or problem
        except Exception as problem:
            raise broken(f"raised {_brief(one_line(problem))}") from problem

    def _failed(self, point: OptionPoint, numbers: str) -> CheckFailed:
        if point.where:
            numbers = f"{point.where}: {numbers}"
        sentence = f"{point.component.label} breaks {self.id}. Law: {self.law} Found: {numbers}"
        return CheckFailed(sentence, numbers)


def _brief(text: str, most: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


class Group:
    """The checks of one axis, in the order in which they are written."""

    def __init__(self, axis: str, prefix: str = "") -> None:
        self.axis, self.prefix = axis, prefix or axis
        self.checks: list[Check] = []

    def law(self, sentence: str, own: bool = False) -> Callable[[Run], Run]:
        """Enters a function under the law that it checks; its name is the check's.

        `own`: whether it is checked at the component's own options alone.
        """

        def enter(run: Run) -> Run:
            name = f"{self.prefix}.{run.__name__.rstrip('_')}"
            self.checks.append(Check(name, self.axis, sentence, run, own))
            return run

        return enter

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)


def demand(held: bool, numbers: str) -> None:
    """CheckFailed with the numbers unless the law held."""
    if not held:
        raise CheckFailed(numbers)
