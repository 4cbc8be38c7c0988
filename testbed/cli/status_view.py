"""How a watched study looks: on a terminal, and as a page that a browser reloads by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from testbed.cli import terminal
from testbed.study.watching import STATES, State, Watched, WatchedTrial
from testbed.trial.storage import LocalDisk

STYLES: dict[State, str] = {
    "running": "bold cyan",
    "waiting": "dim",
    "finished": "green",
    "diverged": "yellow",
    "failed": "bold red",
    "cancelled": "magenta",
}
MOST = 50
"""The most trials that are listed where not all are asked for."""
ATTENTION: tuple[State, ...] = ("running", "failed", "cancelled")
Rows = list[list[str]]


def summary(watched: Watched) -> str:
    """How fast it goes, and when it will end."""
    waiting, running = watched.count("waiting"), watched.count("running")
    if not waiting + running:
        return "Nothing is left to run."
    if not watched.driven:
        return "No study runs in this folder: what waits is resumed by the study's command."
    speed = f"{watched.rate:.3g} steps a second" if watched.rate else "a rate not known yet"
    left = watched.seconds_left
    if left is None:
        return f"It runs at {speed}; when it will end is not known yet."
    end = time.strftime("%Y-%m-%d %H:%M", time.localtime(watched.now + left))
    return f"It runs at {speed} and will end in about {terminal.span(left)}, at {end}."


def variant_rows(watched: Watched) -> tuple[list[str], Rows]:
    """A row per variant: its states, and the mean cost of a trial that ended."""
    states = [state for state in STATES if watched.count(state)]
    head = ["case", "arm", "variant", *states, "training", "evaluation"]
    rows = []
    for one in watched.costs():
        ended = one.states["finished"] + one.states["diverged"]
        seconds = [terminal.span(own) if ended else "–" for own in (one.training, one.evaluation)]
        rows.append([*one.label, *(str(one.states[state]) for state in states), *seconds])
    return _without_empty(head, rows)


def trial_rows(watched: Watched, all_of_them: bool) -> tuple[list[str], Rows]:
    """A row per trial that runs, failed or was cancelled, or per trial."""
    members = [one for one in watched.trials if all_of_them or one.state in ATTENTION]
    head = ["trial", "what", "state", "step", "steps/s", "memory", "processor", "by", "error"]
    return _without_empty(head, [_trial_row(one) for one in members])


def _trial_row(one: WatchedTrial) -> list[str]:
    return [
        one.id,
        one.title,
        one.state,
        f"{one.step}/{one.steps}",
        f"{one.rate:.3g}" if one.rate else "",
        f"{one.memory_mb:.0f} MB" if one.memory_mb else "",
        f"{one.cpu_percent:.0f} %" if one.cpu_percent else "",
        one.owner,
        one.error,
    ]


def _without_empty(head: list[str], rows: Rows) -> tuple[list[str], Rows]:
    """A table without the columns that are empty in every row."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def parts(watched: Watched, all_of_them: bool = False) -> RenderableType:
    """What a terminal shows."""
    return Group(*_parts(watched, all_of_them))


def _parts(watched: Watched, all_of_them: bool) -> Iterator[RenderableType]:
    counts = [
        (f"{watched.count(state)} {state}", STYLES[state])
        for state in STATES
        if watched.count(state)
    ]
    line = Text.assemble("Study ", (watched.name, "bold"), f": {len(watched.trials)} trials, ")
    yield line + Text(", ").join(Text(text, style) for text, style in counts)
    yield Text(summary(watched))
    yield _table(*variant_rows(watched))
    head, rows = trial_rows(watched, all_of_them)
    shown = rows if all_of_them else rows[:MOST]
    if shown:
        yield Text()
        yield _table(head, shown)
    if len(rows) > len(shown):
        yield Text(f"and {len(rows) - len(shown)} more: --trials lists all")


def _table(head: list[str], rows: Rows) -> Table:
    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    styles = {str(status): style for status, style in STYLES.items()}
    for row in rows:
        table.add_row(*(Text(cell, styles.get(cell, "")) for cell in row))
    return table


def write_page(watched: Watched, file: Path, every: float) -> None:
    """Writes the page, which a browser reloads every so many seconds while a study runs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    head, rows = trial_rows(watched, all_of_them=False)
    text = environment.get_template("status.html.j2").render(
        name=watched.name,
        total=len(watched.trials),
        counts=[(state, watched.count(state)) for state in STATES if watched.count(state)],
        summary=summary(watched),
        reload=max(1, round(every)) if watched.driven else 0,
        written=time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(watched.now)),
        tables=[variant_rows(watched), (head, rows[:MOST])],
        states=STATES,
        more=len(rows) - min(len(rows), MOST),
    )
    # A browser that reloads it meanwhile finds the old page or the new one.
    LocalDisk(file.parent).put(file.name, text.encode(), durable=False)
