"""The checks themselves: in another process, with a claim that is skipped, and their levels."""

from dataclasses import replace

import pytest
import torch
from mutants.wrong_components import CATALOGUE, CONTEXT
from mutants.wrong_processes import OTHER_PROCESSES

import testbed
from testbed.components.base import Component
from testbed.testing import CheckFailed, Context, Skipped, iter_checks, plugin


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("component", OTHER_PROCESSES, ids=lambda one: one.axis)
def test_another_number_in_another_process(component: Component) -> None:
    (check,) = [one for one in iter_checks(component) if one.id.endswith(".spawned")]
    with pytest.raises(CheckFailed, match="another process computes other numbers"):
        replace(check, context=CONTEXT)(component)


@pytest.mark.process
@pytest.mark.slow
def test_what_no_other_process_can_load() -> None:
    loose = testbed.Weighting("wrong", lambda sigma: 1 / sigma)
    (check,) = [one for one in iter_checks(loose) if one.id.endswith(".spawned")]
    with pytest.raises(CheckFailed, match=r"in no plugin and cannot be pickled"):
        check(loose)
    with plugin(loose) as registry, pytest.raises(CheckFailed, match="cannot be pickled"):
        replace(check, context=Context.of([loose], registry))(loose)


def test_no_mistake_is_skipped() -> None:
    """A check that skips cannot reject: none of the wrong components gets by that way."""
    for mutant in CATALOGUE:
        for check in iter_checks(mutant.subject):
            if check.id in mutant.caught_by and "claim" in check.id:
                with pytest.raises(CheckFailed):
                    replace(check, context=CONTEXT)(mutant.subject)


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
