"""Each mutant of the catalogue is seen by the check meant for it and by no other than it says."""

from collections import Counter

import pytest
from helpers.paths import DOCS
from mutants import catalogue
from mutants.catalogue import FAMILIES, MUTANTS
from mutants.mutation import TOLD, Mutant
from mutants.self_tests import SELF_TESTS

GUIDE = DOCS / "maintainers" / "mutants.md"
RIGHT = [(family, name) for family in FAMILIES for name in FAMILIES[family].right]


@pytest.mark.parametrize(("family", "name"), RIGHT)
def test_what_is_not_mutated_passes(family: str, name: str) -> None:
    assert FAMILIES[family].tried(FAMILIES[family].right[name]) == set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: f"{one.family}: {one.mistake}")
def test_mutant_is_caught_by_these_checks(mutant: Mutant) -> None:
    assert mutant.failed() == {mutant.meant} | mutant.also
    if mutant.told:
        assert mutant.told in TOLD[id(mutant.subject)]


def test_no_mistake_is_entered_twice() -> None:
    entered = Counter((one.family, one.mistake) for one in MUTANTS)
    assert max(entered.values()) == 1


def test_every_family_has_mutants_and_there_are_many() -> None:
    assert {one.family for one in MUTANTS} == set(FAMILIES)
    assert len(MUTANTS) >= 40


def test_every_law_of_the_audit_and_about_it_is_the_one_meant_or_sees_something() -> None:
    seen = {check for one in MUTANTS for check in (one.meant, *one.also)}
    assert set(catalogue.LAWS.values()) | set(SELF_TESTS) <= seen


def test_the_table_in_the_guide_is_the_catalogue() -> None:
    assert GUIDE.read_text() == catalogue.markdown(), (
        "The page of mutants differs from the catalogue. Write it again: python tests/mutants"
    )
