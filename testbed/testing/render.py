"""`testbed check`: what is checked, and how it is shown."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from testbed.components.base import Component
from testbed.components.network import Network
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import ComponentError
from testbed.plugin_files import is_file
from testbed.registry import AXES, Registry
from testbed.testing import networks
from testbed.testing.checks import Context
from testbed.testing.options import option_points
from testbed.testing.probes import probe
from testbed.testing.running import Outcome, iter_checks, run, suggest_claims
from testbed.trial.specs import ComponentSpec

COLOURS = {"passed": "green", "skipped": "dim", "failed": "red"}
PATIENCE = 1.0


def subjects(word: str, registry: Registry) -> list[Component]:
    """The components of a plugin file, which `registry` has loaded, or all of a name.

    A table, `{name = "min_snr", gamma = 3}`, names those that take its options.

    Raises:
        InputError: the file registers no component; a table that does not fit.
        UnknownName: no component of that name on any axis.
    """
    if is_file(word):
        found = registry.of_file(word)
        return [getattr(registry, one.axis)(one.name) for one in found]
    spec = ComponentSpec.parse(word)
    return registry.called(spec.name, spec.options, AXES)


def outcomes(
    components: Sequence[Component], registry: Registry, console: Console
) -> list[Outcome]:
    """Every outcome of every component; a progress bar where it takes longer than a second.

    Raises:
        InputError: a component that gives no numbers at all: none of its laws could be checked.
    """
    for one in components:
        runs(one)
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


def runs(component: Component) -> None:
    """InputError if a component whose functions are cheap to call gives no numbers."""
    if component.axis in ("dataset", "network", "sampler", "metric"):
        return
    try:
        probe(component)
    except ComponentError:
        raise
    except Exception:  # the checks say what is wrong, and where
        return


def notes(components: Sequence[Component]) -> list[str]:
    """What the checks that passed do not say."""
    without = [
        f"{one.label}: no target is stated: the formulas are not held against a second source."
        for one in components
        if isinstance(one, Parameterization) and one.stated_target is None
    ]
    unedited = [
        f"{one.label}: reference = {reference!r}: say where the formulas are from."
        for one in components
        if (reference := str(getattr(one, "reference", ""))).startswith("EDIT")
    ]
    tried = [
        f"{one.label}: every law was checked {'; '.join(others)} as well."
        for one in components
        if (others := [point.where for point in option_points(one)[1:]])
    ]
    return (
        without + unedited + tried + [_start(one) for one in components if isinstance(one, Network)]
    )


def _start(network: Network) -> str:
    """What F at the start means for a comparison: advice, no law."""
    try:
        zero = networks.zero_at_start(network)
    except Exception:  # the checks say what is wrong
        return f"{network.label}: whether F = 0 before training is not known."
    if zero:
        return (
            f"{network.label}: F = 0 before training, so that equal objectives train as exact "
            "mirrors. Where the best linear prediction of the target is 0, F = 0 is a plateau that "
            "training may never leave: a study says of such a variant that it learnt nothing."
        )
    return (
        f"{network.label}: F is not 0 before training, so that equal objectives (v and edm at "
        "sigma_data = 1) do not train as exact mirrors. A last layer that starts at zero makes "
        "them mirrors, at the price of a plateau at F = 0 on symmetric data."
    )


def folded(found: Sequence[Outcome]) -> list[tuple[Outcome, str]]:
    """Each outcome with its message; of failures that say the same, the first alone."""
    rows: list[tuple[Outcome, str]] = []
    alike = Counter(one.message for one in found if one.status == "failed")
    for one in found:
        if one.status != "failed":
            rows.append((one, one.message))
        elif more := alike.pop(one.message, 0):
            word = "so did" if "raised " in one.message else "the same in"
            tail = f"; {word} {more - 1} more." if more > 1 else ""
            rows.append((one, one.message.rstrip("." if tail else "") + tail))
    return rows


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
    broken: list[Outcome] = []
    for subject in dict.fromkeys(one.subject for one in found):
        table = Table(box=None, title=subject, title_justify="left", pad_edge=False)
        for column in ("check", "status", "found"):
            table.add_column(column, overflow="fold")
        rows = folded([one for one in found if one.subject == subject])
        for one, message in rows:
            status = f"[{COLOURS.get(one.status, 'red')}]{one.status}[/]"
            table.add_row(one.check.id, status, escape(message))
        broken += [one for one, _ in rows if not one.ok]
        console.print(table)
        console.print()
    failed = [one for one in found if not one.ok]
    for one in broken:
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
