"""Running the checks of a component and saying how each ended."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from testbed.components.base import Component
from testbed.errors import InputError, unknown
from testbed.registry import AXES, Registry
from testbed.testing import (
    claims,
    datasets,
    densities,
    guidances,
    losses,
    metrics,
    network_tables,
    networks,
    noises,
    parameterizations,
    recipes,
    samplers,
    schedules,
    tables,
    values,
    weightings,
)
from testbed.testing.checks import Check, Context
from testbed.testing.failures import CheckFailed, Skipped

Status = Literal["passed", "failed", "skipped", "xfailed", "xpassed"]

GROUPS: dict[str, list[Check]] = {}
"""The laws of each axis."""
for _module in (
    parameterizations,
    weightings,
    losses,
    densities,
    datasets,
    networks,
    network_tables,
    samplers,
    schedules,
    guidances,
    tables,
    noises,
    recipes,
    metrics,
):
    GROUPS.setdefault(_module.LAWS.axis, []).extend(_module.LAWS)


@dataclass(frozen=True)
class Outcome:
    """How one check of one component ended.

    `status`: "passed", "failed", "skipped", "xfailed" (failed, as expected) or "xpassed" (passed,
    where a failure was expected). `message`: the measured numbers, or the reason.
    """

    subject: str
    check: Check
    status: Status
    message: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing unexpected happened."""
        return self.status not in ("failed", "xpassed")

    def __str__(self) -> str:
        who = f"{self.subject}, {self.check.id}: {self.status}"
        law = f" Law: {self.check.law} Found:" if self.status == "failed" else ""
        return f"{who}.{law} {self.message}".rstrip()


def iter_checks(subject: Component) -> list[Check]:
    """The checks of a component: the laws of its axis, a bundled name's values, and its claims.

    Raises:
        InputError: no component.
    """
    if not isinstance(subject, Component) or subject.axis not in GROUPS:
        raise InputError(
            f"expected a component ({', '.join(kind.__name__ for kind in AXES.values())}), "
            f"got {subject!r}."
        )
    return [*GROUPS[subject.axis], *values.made(subject), *claims.made(subject)]


def suggest_claims(subject: Component) -> list[str]:
    """The claims that hold and are not made, as ids of checks; none for most axes."""
    found = []
    for check in claims.unmade(subject):
        try:
            check(subject)
        except (CheckFailed, Skipped):
            continue
        found.append(check.id)
    return found


def check_component(
    subject: Component,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
    registry: Registry | None = None,
) -> list[Outcome]:
    """Runs every check of a component.

    Args:
        subject: any component of `testbed`.
        expected_failures: `{check id: reason}`. Strict: one that passes is a failure.
        on_fail: "raise" one CheckFailed with every failure, "warn" for each, or None.
        registry: the other components; the default one otherwise.

    Returns:
        one Outcome per check, in order.

    Raises:
        CheckFailed: with on_fail="raise".
        InputError: no component, an unknown check id, an empty reason, or another on_fail.
    """
    checks = iter_checks(subject)
    expected = known(expected_failures or {}, checks)
    if on_fail not in ("raise", "warn", None):
        raise InputError(f"on_fail = {on_fail!r}: expected 'raise', 'warn' or None.")
    outcomes = list(run(subject, checks, Context.of([subject], registry), expected))
    bad = [str(outcome) for outcome in outcomes if not outcome.ok]
    if bad and on_fail == "raise":
        raise CheckFailed("\n".join([f"{len(bad)} of {len(outcomes)} checks failed.", *bad]))
    if on_fail == "warn":
        for message in bad:
            warnings.warn(message, stacklevel=2)
    return outcomes


def known(expected: Mapping[str, str], checks: Iterable[Check]) -> Mapping[str, str]:
    """`expected`, every key an id of `checks`.

    Raises:
        InputError: with the nearest id; an empty reason.
    """
    ids = [check.id for check in checks]
    for name, reason in expected.items():
        if name not in ids:
            raise InputError(f"expected_failures: {unknown('check', name, ids)}")
        if not reason.strip():
            raise InputError(f"expected_failures: {name} needs a reason.")
    return expected


def run(
    subject: Component,
    checks: Iterable[Check],
    context: Context,
    expected: Mapping[str, str],
    say: Callable[[str], None] = lambda name: None,
) -> Iterable[Outcome]:
    """The outcomes one by one; `say` hears each id before it is run."""
    for check in checks:
        say(check.id)
        start = time.perf_counter()
        status, message = _end(replace(check, context=context), subject, expected.get(check.id))
        yield Outcome(subject.label, check, status, message, time.perf_counter() - start)


def _end(check: Check, subject: Component, reason: str | None) -> tuple[Status, str]:
    try:
        number = check(subject)
    except Skipped as skipped:
        return "skipped", str(skipped)
    except CheckFailed as broken:
        return ("failed", broken.numbers) if reason is None else ("xfailed", reason)
    if reason is None:
        return "passed", number
    return "xpassed", f"expected to fail ({reason}), and it holds: take it off the list."
