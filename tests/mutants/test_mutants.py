"""Each mutant is caught by exactly the checks that it names; what is right passes them all."""

from collections import Counter
from itertools import chain

import pytest
from helpers.paths import DOCS
from laws.audit import SELF_TESTS
from mutants import catalogue
from mutants.registry import FAMILIES, LAWS, MUTANTS, TOLD, Mutant
from mutants.wrong_processes import OTHER_PROCESSES
from properties.states import LAWS as PROPERTIES

from testbed.testing.claims import GROUPS as CLAIMS
from testbed.testing.running import GROUPS
from testbed.testing.values import CHECKS as VALUES

SLOW = {
    *("conversion", "coefficients", "target", "chain", "denoiser", "audit"),
    *("sampler", "named sampler", "laws: likelihood", "laws: sample quality", "laws: statistics"),
    *("laws: recipes", "laws: clipping", "laws: crossings", "properties", "oracle", "installation"),
    *("components: parameterization", "components: density", "components: noise"),
}
"""Families whose checks take a tenth of a second or more, each time."""


def row(family: str, *values: object, id: str) -> object:
    return pytest.param(*values, id=id, marks=[pytest.mark.slow] * (family in SLOW))


RIGHT = [
    row(family, family, name, id=f"{family}: {name}")
    for family in FAMILIES
    for name in FAMILIES[family].right
]
ROWS = [row(one.family, one, id=f"{one.family}: {one.mistake}") for one in MUTANTS]
CAUGHT = {check for one in MUTANTS for check in one.caught_by}


@pytest.mark.parametrize(("family", "name"), RIGHT)
def test_what_is_not_mutated_passes(family: str, name: str) -> None:
    assert FAMILIES[family].failed(FAMILIES[family].right[name]) == set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", ROWS)
def test_mutant_is_caught_by_exactly_these_checks(mutant: Mutant) -> None:
    assert mutant.failed() == mutant.caught_by
    if mutant.told:
        assert mutant.told in TOLD[id(mutant.subject)]


def test_no_mistake_is_entered_twice() -> None:
    entered = Counter((one.family, one.mistake, one.meant) for one in MUTANTS)
    assert max(entered.values()) == 1


def test_every_family_has_mutants_and_what_is_right() -> None:
    assert {one.family for one in MUTANTS} == set(FAMILIES)
    assert all(one.about for one in FAMILIES.values())
    assert len(MUTANTS) >= 800


def test_every_law_of_the_audit_about_it_and_of_what_is_drawn_rejects_something() -> None:
    assert set(LAWS.values()) | set(SELF_TESTS) | {f"tests.{law}" for law in PROPERTIES} <= CAUGHT


def test_every_law_of_the_tests_rejects_something() -> None:
    assert set(catalogue.laws_of_tests()) - CAUGHT == set()


def test_every_check_of_the_kit_rejects_something_and_each_is_known() -> None:
    every = {check.id for check in chain(*CLAIMS.values(), *GROUPS.values(), VALUES.values())}
    kit = [one for one in MUTANTS if one.family.startswith("components: ")]
    rejecting = set(chain.from_iterable(one.caught_by for one in kit))
    rejecting |= {f"{component.axis}.spawned" for component in OTHER_PROCESSES}
    assert rejecting == every


def test_the_page_is_the_catalogue() -> None:
    (page,) = DOCS.rglob("mutants.md")
    assert page.read_text() == catalogue.markdown(), (
        f"{page} is not the catalogue. Write it again: python tests/mutants"
    )
