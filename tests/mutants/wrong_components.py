"""The families of wrong components, with the unusual right ones that no check may reject."""

import importlib
from functools import partial

from mutants.registry import FAMILIES, MUTANTS, Family, kit
from mutants.right_components import RIGHT
from mutants.wrong import family
from mutants.wrong_processes import OTHER_PROCESSES

from testbed.testing import Context

for name in (
    "wrong_options",
    "wrong_values",
    "wrong_recipes",
    "wrong_condition_tables",
):  # each enters its mutants
    importlib.import_module(f"mutants.{name}")
CONTEXT = Context.of(OTHER_PROCESSES)
CATALOGUE = [one for one in MUTANTS if one.family.startswith("components: ")]
for mutant in CATALOGUE:
    axis = mutant.subject.axis
    FAMILIES[mutant.family] = Family(
        f"a {axis}, by the checks that `testbed check NAME` makes of it",
        # What costs a process has tests of its own.
        partial(kit, context=CONTEXT, without=(".spawned",)),
        {name: one for name, one in RIGHT.items() if family(one) == mutant.family},
    )
