"""How a study ended, on the terminal: its first screen, its counts and paths, and the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape

from testbed.cli import first_screen, terminal
from testbed.registry import Registry
from testbed.report import claims
from testbed.study import baseline, tracking_store
from testbed.study.invocation import record
from testbed.study.plan import Plan
from testbed.study.session import Ending
from testbed.trial import storage


def show(
    made: Plan,
    ending: Ending,
    registry: Registry,
    seconds: float,
    tracking_uri: str,
    undecided: str,
) -> None:
    """How the study ended, and what to do next; `undecided` says what seeds were too few for."""
    console = terminal.console()
    if ending.report is not None:
        first_screen.show(claims.stored(ending.report), ending.report)
    for line in _lines(made, ending, seconds, pages(tracking_uri)):
        console.print(line)
    states = {one.state: one.id for one in reversed(made.trials)}
    words = record(made, registry, tracking_uri)["command"][2:]
    again = terminal.command("study", *words)
    if ending.outcome.interrupted:
        terminal.next_step(again, " resumes.")
    elif "failed" in states:
        terminal.next_step(again, " trains those that failed again.")
    elif undecided:
        console.print(undecided, markup=False, highlight=False)
        words[words.index("--at-most") + 1] = str(2 * (made.study.asked.at_most or 1))
        terminal.next_step(terminal.command("study", *words), " adds further seeds.")
    elif "finished" in states:
        finished: dict[str, str] = {}
        for one in made.trials:
            if one.state == "finished":
                finished.setdefault(one.labels[0]["variant"], one.id)
        id_ = finished[baseline.chosen(made.study.report.baseline, [*finished])]
        where = storage.address(made.folder)
        trial = f"{where}/trials/{id_}" if "://" in where else id_
        sampled = terminal.command("sample", trial, "--out", "samples.png")
        terminal.next_step("open the report", f", or {sampled}")
    else:
        terminal.next_step("open the report", ", which says what each trial did.")


def _lines(plan: Plan, ending: Ending, seconds: float, pages: str) -> Iterator[RenderableType]:
    """How a study ended.

    Args:
        plan: with the states that its trials have now.
        ending: from `session.run`.
        seconds: what the whole command took.
        pages: the command or the address that shows MLflow's pages.
    """
    states = Counter(trial.state for trial in plan.trials)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    if ending.outcome.interrupted:
        yield f"Interrupted: {counts}. What is finished is kept."
        return
    yield f"{counts} in {terminal.span(round(seconds))}."
    for trial in plan.trials:
        if trial.state == "failed":
            folder = plan.files.trial(trial.id)
            said = folder.result().get("error", "it runs again with the next command")
            what = escape(f"{trial.title}: {said} (traceback in {folder.store.path('error.txt')})")
            yield f"[red]failed[/] {what}"
    checked = [row for row in ending.identities if not row.reason]
    broken = [row for row in checked if not row.passed]
    if broken:
        worst = max(broken, key=lambda row: row.ratio)
        yield (
            f"[red]{len(broken)} of {len(checked)} Tweedie identities FAILED[/]; worst: "
            f"{worst.law} for {worst.subject} at sigma = {worst.sigma:g}, error {worst.error:.2g} "
            f"against a bound of {worst.bound:.2g}."
        )
    else:
        yield f"All {len(checked)} Tweedie identities hold within their bounds."
    if ending.tracked:
        trained = terminal.span(round(ending.outcome.seconds))
        yield (
            f"MLflow: {ending.logging_seconds:.1f} s of CPU, beside {trained} of training. "
            f"See it: {escape(pages)}"
        )
    yield f"Report: [bold]{ending.report}[/]"


def pages(tracking_uri: str) -> str:
    """Returns what shows a store's MLflow pages: a command, or the address of a server."""
    store = tracking_store.uri(tracking_uri)
    if store.startswith("http"):
        return store
    return terminal.command("ui", *(["--tracking-uri", store] if tracking_uri else []))
