"""Checks as pytest's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from testbed.components.base import Component
from testbed.registry import Registry
from testbed.testing.checks import Context
from testbed.testing.failures import CheckFailed
from testbed.testing.running import iter_checks, known


def parametrize_with_checks(
    components: Sequence[Component],
    expected_failures: Mapping[str, str] | None = None,
    registry: Registry | None = None,
) -> Any:
    """A pytest decorator that gives a test every (component, check) of `components`.

    The ids read "edm-parameterization.round_trip". One process serves the checks of all components
    that need another.

    Args:
        components: any components of `testbed`.
        expected_failures: `{id: reason}`, the id as above, or that of a check for every component
            that has it. Strict: one that passes fails the test.
        registry: the other components; the default one otherwise.

    Raises:
        InputError: no component, an unknown id, or an empty reason.
        ImportError: pytest is not installed.
    """
    import pytest

    context = Context.of(components, registry)
    pairs = [
        (one, replace(check, context=context)) for one in components for check in iter_checks(one)
    ]
    words = {f"{one.name}-{check.id}": (one, check) for one, check in pairs}
    names = [replace(check, id=word) for word, (_, check) in words.items()]
    expected = known(expected_failures or {}, [*names, *(check for _, check in pairs)])
    parameters = []
    for one, check in pairs:
        word = f"{one.name}-{check.id}"
        reason = expected.get(word, expected.get(check.id))
        marks = (
            []
            if reason is None
            else [pytest.mark.xfail(reason=reason, strict=True, raises=CheckFailed)]
        )
        parameters.append(pytest.param(one, check, id=word, marks=marks))
    return pytest.mark.parametrize(("component", "check"), parameters)
