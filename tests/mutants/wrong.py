"""Components that are wrong on purpose, each with the checks that must reject it, and no others."""

from __future__ import annotations

from dataclasses import dataclass

from testbed.components.base import Component


@dataclass(frozen=True)
class Wrong:
    """A mistake, the component that makes it, and the ids of the checks that see it."""

    mistake: str
    component: Component
    fails: frozenset[str]

    @property
    def id(self) -> str:
        return f"{self.component.axis}: {self.mistake}"


CATALOGUE: list[Wrong] = []


def wrong(mistake: str, component: Component, *fails: str) -> None:
    """Enters a component; a check's id without an axis is one of its own axis."""
    ids = {one if "." in one else f"{component.axis}.{one}" for one in fails}
    CATALOGUE.append(Wrong(mistake, component, frozenset(ids)))
