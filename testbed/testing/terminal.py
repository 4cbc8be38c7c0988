"""`testbed check`: what is checked, and how it is shown."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from testbed.components import Component
from testbed.errors import InputError, UnknownName, unknown
from testbed.registry import AXES, Registry
from testbed.testing.checks import Context
from testbed.testing.running import Outcome, iter_checks, run, suggest_claims

COLOURS = {"passed": "green", "skipped": "dim", "failed": "red"}
PATIENCE = 1.0


def is_file(word: str) -> bool:
    """Whether `testbed check WORD` means a plugin file rather than a name."""
    return word.endswith(".py") or os.sep in word


def subjects(word: str, registry: Registry) -> list[Component]:
    """The components of a plugin file, which `registry` has loaded, or all of a name.

    Raises:
        InputError: the file registers no component.
        UnknownName: no component of that name on any axis.
    """
    every = [getattr(registry, axis)(name) for axis in AXES for name in registry.names(axis)]
    if is_file(word):
        origin = str(Path(word).resolve())
        found = [one for one in every if registry.source(one).origin == origin]
        if not found:
            raise InputError(f"{word} registers no component, so there is nothing to check.")
        return found
    found = [one for one in every if one.name == word]
    if not found:
        raise UnknownName(unknown("component", word, {one.name for one in every}))
    return found


def outcomes(
    components: Sequence[Component], registry: Registry, console: Console
) -> list[Outcome]:
    """Every outcome of every component; a progress bar where it takes longer than a second."""
    checks = {id(one): iter_checks(one) for one in components}
    total = sum(map(len, checks.values()))
    context, start = Context.of(components, registry), time.monotonic()
    found: list[Outcome] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("checking", total=total, visible=False)
        for one in components:

            def say(name: str, one: Component = one) -> None:
                late = time.monotonic() - start > PATIENCE
                progress.update(
                    task, completed=len(found), visible=late, description=f"{one.name}-{name}"
                )

            for outcome in run(one, checks[id(one)], context, {}, say):
                found.append(outcome)
    return found


def suggestions(components: Sequence[Component]) -> dict[str, list[str]]:
    """By label, the claims that hold and are not made."""
    return {one.label: names for one in components if (names := suggest_claims(one))}


def document(found: Sequence[Outcome], claims: dict[str, list[str]] | None) -> dict[str, Any]:
    """What `--json` prints; `suggested_claims` only where they were asked for."""
    rows = [
        {
            "subject": one.subject,
            "check": one.check.id,
            "law": one.check.law,
            "status": one.status,
            "message": one.message,
            "seconds": round(one.seconds, 4),
        }
        for one in found
    ]
    return {"outcomes": rows} | ({} if claims is None else {"suggested_claims": claims})


def show(found: Sequence[Outcome], claims: dict[str, list[str]] | None, console: Console) -> None:
    """A table for every component, the laws that are broken, and one line that sums up."""
    for subject in dict.fromkeys(one.subject for one in found):
        table = Table(box=None, title=subject, title_justify="left", pad_edge=False)
        for column in ("check", "status", "found"):
            table.add_column(column, overflow="fold")
        for one in found:
            if one.subject == subject:
                status = f"[{COLOURS.get(one.status, 'red')}]{one.status}[/]"
                table.add_row(one.check.id, status, escape(one.message))
        console.print(table)
        console.print()
    failed = [one for one in found if not one.ok]
    for one in failed:
        console.print(f"[red]{one.check.id}[/] of {one.subject}: {escape(one.check.law)}")
    for label, names in (claims or {}).items():
        words = ", ".join(name.removeprefix("claim.") for name in names)
        console.print(f"{label} could also claim: {words}.")
    if claims == {}:
        console.print("No further claim holds.")
    skipped = sum(one.status == "skipped" for one in found)
    seconds = sum(one.seconds for one in found)
    console.print(
        f"{len(found) - len(failed) - skipped} passed, {len(failed)} failed, {skipped} skipped "
        f"in {seconds:.1f} s."
    )
