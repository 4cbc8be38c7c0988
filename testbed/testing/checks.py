"""What a check is: one law about a component, with a name, and how it is broken or left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from testbed.components.base import Component
from testbed.errors import InputError, one_line
from testbed.registry import Registry, default_registry
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.processes import Courier


@dataclass(frozen=True)
class Context:
    """What a check needs besides its subject.

    Args:
        registry: the other components: what to convert to, what a recipe may name.
        courier: takes components to another process.
    """

    registry: Registry
    courier: Courier

    @classmethod
    def of(cls, components: Sequence[Component], registry: Registry | None = None) -> Context:
        """A context in which one process serves all `components`."""
        registry = registry or default_registry()
        return cls(registry, Courier(components, registry))


Run = Callable[[Any, Context], str | None]


@dataclass(frozen=True)
class Check:
    """One law of one axis.

    Args:
        id: for example "parameterization.round_trip" or "claim.unit_target".
        axis: the components it is about: "parameterization", "weighting", ...
        law: one sentence, with the equation.
        run: `run(component, context)` returns what to show besides "passed" and raises CheckFailed
            or Skipped.
        context: set where several checks share one.
    """

    id: str
    axis: str
    law: str
    run: Run = field(repr=False)
    context: Context | None = field(default=None, repr=False, compare=False)

    def __call__(self, component: Component) -> str:
        """Checks the component and returns the measured number, in words.

        Raises:
            CheckFailed: the law is broken, or the component raised something.
            Skipped: the law cannot be checked, for the stated reason.
        """
        context = self.context or Context.of([component])
        try:
            return self.run(component, context) or ""
        except Skipped:
            raise
        except CheckFailed as broken:
            raise self._failed(component, broken.numbers) from broken.__cause__
        except InputError as problem:
            numbers = _brief(str(problem).removeprefix(f"{component.label}: "))
            raise self._failed(component, numbers) from problem.__cause__ or problem
        except Exception as problem:
            raise self._failed(component, f"raised {_brief(one_line(problem))}") from problem

    def _failed(self, component: Component, numbers: str) -> CheckFailed:
        sentence = f"{component.label} breaks {self.id}. Law: {self.law} Found: {numbers}"
        return CheckFailed(sentence, numbers)


def _brief(text: str, most: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."


class Group:
    """The checks of one axis, in the order in which they are written."""

    def __init__(self, axis: str, prefix: str = "") -> None:
        self.axis, self.prefix = axis, prefix or axis
        self.checks: list[Check] = []

    def law(self, sentence: str) -> Callable[[Run], Run]:
        """Enters a function under the law that it checks; its name is the check's."""

        def enter(run: Run) -> Run:
            name = f"{self.prefix}.{run.__name__.rstrip('_')}"
            self.checks.append(Check(name, self.axis, sentence, run))
            return run

        return enter

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)


def demand(held: bool, numbers: str) -> None:
    """CheckFailed with the numbers unless the law held."""
    if not held:
        raise CheckFailed(numbers)
