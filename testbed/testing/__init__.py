"""The conformance kit: what every component must obey, and what it claims, tried by numbers.

    testbed.testing.check_component(component)

    @testbed.testing.parametrize_with_checks([component])
    def test_conforms(component, check):
        check(component)

A check is one law, with the equation; a failure names who, which law, the error beside its bound
and the noise level. On the command line: `testbed check FILE`. Neither pytest nor Hypothesis is
needed until `parametrize_with_checks` or `strategies` is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from testbed.testing.checks import Check, Context
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import OptionPoint, option_points
from testbed.testing.plugins import plugin
from testbed.testing.pytests import parametrize_with_checks
from testbed.testing.running import Outcome, check_component, iter_checks, suggest_claims

if TYPE_CHECKING:
    from testbed.testing import strategies

__all__ = [
    "Check",
    "CheckFailed",
    "Context",
    "OptionPoint",
    "Outcome",
    "Skipped",
    "check_component",
    "iter_checks",
    "option_points",
    "parametrize_with_checks",
    "plugin",
    "strategies",
    "suggest_claims",
]


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return importlib.import_module("testbed.testing.strategies")
    raise AttributeError(f"module 'testbed.testing' has no attribute {name!r}")
