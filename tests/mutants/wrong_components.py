"""The families of wrong components, with the unusual right ones that no check may reject."""

import importlib

from mutants.registry import FAMILIES, MUTANTS, SLOW, Family, kit
from mutants.right_components import RIGHT
from mutants.wrong import family
from mutants.wrong_processes import OTHER_PROCESSES

from testbed.components.base import Component
from testbed.testing import Context

for name in (
    "wrong_options",
    "wrong_values",
    "wrong_recipes",
    "wrong_networks",
):  # each enters its mutants
    importlib.import_module(f"mutants.{name}")
CONTEXT = Context.of(OTHER_PROCESSES)
CATALOGUE = [one for one in MUTANTS if one.family.startswith("components: ")]
UNTRACED = {
    id(one.subject)
    for one in CATALOGUE
    if not any(check.endswith(".compile") for check in one.caught_by)
}
"""Mutants that a compiler is not there to reject. It is asked of the others, and of what is right:
it takes longer than all other checks together."""


def failed(component: Component) -> set[str]:
    """The checks that reject a component; what costs a process has tests of its own."""
    return kit(component, CONTEXT, SLOW if id(component) in UNTRACED else (".spawned",))


for mutant in CATALOGUE:
    axis = mutant.subject.axis
    FAMILIES[mutant.family] = Family(
        f"a {axis}, by the checks that `testbed check NAME` makes of it",
        failed,
        {name: one for name, one in RIGHT.items() if family(one) == mutant.family},
    )
