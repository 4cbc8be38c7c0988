"""Tests of the checks: wrong components are rejected by the checks meant for them and no others,
unusual right ones by none."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from mutants.right_components import RIGHT
from mutants.wrong_components import CATALOGUE, OTHER_PROCESSES, Wrong

import testbed
from testbed.components.base import Component
from testbed.testing import CheckFailed, Context, Skipped, iter_checks, plugin
from testbed.testing.claims import GROUPS as CLAIMS
from testbed.testing.running import GROUPS, run

CONTEXT = Context.of(OTHER_PROCESSES)


def failed(component: Component) -> set[str]:
    """The checks that reject it; `spawned`, which costs a process, has tests of its own."""
    checks = [check for check in iter_checks(component) if not check.id.endswith(".spawned")]
    return {one.check.id for one in run(component, checks, CONTEXT, {}) if not one.ok}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", CATALOGUE, ids=lambda wrong: wrong.id)
def test_wrong_component_is_rejected_by_these_checks(wrong: Wrong) -> None:
    assert failed(wrong.component) == wrong.fails


@pytest.mark.parametrize("name", RIGHT)
def test_right_component_is_rejected_by_none(name: str) -> None:
    assert failed(RIGHT[name]) == set()


@pytest.mark.parametrize("component", OTHER_PROCESSES, ids=lambda one: one.axis)
def test_another_number_in_another_process(component: Component) -> None:
    (check,) = [one for one in iter_checks(component) if one.id.endswith(".spawned")]
    with pytest.raises(CheckFailed, match="another process computes other numbers"):
        replace(check, context=CONTEXT)(component)


def test_what_no_other_process_can_load() -> None:
    loose = testbed.Weighting("wrong", lambda sigma: 1 / sigma)
    (check,) = [one for one in iter_checks(loose) if one.id.endswith(".spawned")]
    with pytest.raises(CheckFailed, match=r"in no plugin and cannot be pickled"):
        check(loose)
    with plugin(loose) as registry, pytest.raises(CheckFailed, match="cannot be pickled"):
        replace(check, context=Context.of([loose], registry))(loose)


def test_every_check_rejects_something() -> None:
    every = {check.id for check in chain(*CLAIMS.values(), *GROUPS.values())}
    rejecting = set(chain.from_iterable(wrong.fails for wrong in CATALOGUE))
    rejecting |= {f"{component.axis}.spawned" for component in OTHER_PROCESSES}
    assert every - rejecting == set()
    assert rejecting - every == set()


def test_the_catalogue_is_no_list_of_repetitions() -> None:
    ids = [wrong.id for wrong in CATALOGUE]
    assert len(set(ids)) == len(ids) >= 40
    assert all(wrong.fails for wrong in CATALOGUE)


def test_no_mistake_is_skipped() -> None:
    """A check that skips cannot reject: none of the wrong components gets by that way."""
    for wrong in CATALOGUE:
        for check in iter_checks(wrong.component):
            if check.id in wrong.fails and "claim" in check.id:
                with pytest.raises(CheckFailed):
                    replace(check, context=CONTEXT)(wrong.component)


def test_the_claims_of_a_non_affine_one_are_skipped_with_a_reason() -> None:
    p = testbed.Parameterization(
        "wrong",
        target=lambda x0, eps, sigma: eps,
        denoise=lambda F, x, sigma: x - sigma * F,
        reference="wrong on purpose",
        claims=("unit_target",),
    )
    (claim,) = [check for check in iter_checks(p) if check.id == "claim.unit_target"]
    with pytest.raises(Skipped, match="not affine"):
        claim(p)


def test_a_grid_of_levels_is_never_empty() -> None:
    from testbed.testing.cases import levels, moderate

    for low, high in [(0.0, torch.inf), (0.002, 80.0), (1e5, torch.inf), (0.0, 1e-6), (3.0, 3.1)]:
        for grid in (levels((low, high)), moderate((low, high), 4)):
            assert len(grid) >= 4
            assert bool(((grid > low) & (grid < high)).all())
            assert bool((grid.diff() > 0).all())
