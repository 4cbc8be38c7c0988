"""Components that are wrong on purpose, each with the checks that must reject it, and no others."""

from mutants import registry

from testbed.components.base import Component


def family(component: Component) -> str:
    """The name of the family of the components of an axis."""
    return f"components: {component.axis}"


def wrong(mistake: str, component: Component, *fails: str) -> None:
    """Enters a component; a check's id without an axis is one of its own axis."""
    ids = (one if "." in one else f"{component.axis}.{one}" for one in fails)
    registry.wrong(family(component), mistake, component, *ids)
