"""The commands that watch a study and tell it what to do: status, log, cancel and retry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import completion, options, terminal
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.study.watching import Watched, WatchedTrial
    from testbed.trial.folders import TrialFolder
    from testbed.trial.study_folder import StudyFolder

TrialId = Annotated[
    str,
    typer.Argument(
        metavar="TRIAL",
        help="The trial's id, or its beginning.",
        autocompletion=completion.trials,
    ),
]
TrialIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TRIAL...]",
        help="The ids of trials, or their beginnings.",
        autocompletion=completion.trials,
    ),
]
Watch = Annotated[
    bool, typer.Option("--watch", help="Refresh it in place until all has ended or Ctrl-C.")
]
A_DAY = 86_400
Every = Annotated[
    float, typer.Option("--every", metavar="SECONDS", help="Seconds between two refreshes.")
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--page",
        metavar="FILE",
        help="Also write it as a page that a browser reloads by itself; with --watch it is kept "
        "up to date.",
    ),
]
Trials = Annotated[
    bool, typer.Option("--trials", help="List every trial, not only those that run or failed.")
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on with new lines until the trial has ended.")
]


def status(
    folder: options.StudyFolder,
    watch: Watch = False,
    every: Every = 5.0,
    page: Page = None,
    trials: Trials = False,
    as_json: options.AsJSON = False,
) -> None:
    """Say how a study is doing: what runs, ended and waits, how fast, and when it will end.

    It also says what each variant costs: seconds of training and of evaluation, as means over its
    trials that ended. It reads the trials' folders alone and changes nothing, so that it may run
    beside the study, on any machine that sees the folder.

    Exit codes: 0 done, 2 bad input, 130 after Ctrl-C.

    The document of --json has the keys study, driven, counts (by state), steps_per_second,
    seconds_left (null where it is not known), variants (case, arm, variant, states,
    training_seconds, evaluation_seconds) and trials (id, title, state, step, steps, owner: the
    machine and process that trains it where the study has leases, error).
    """
    from testbed.study import watching
    from testbed.trial.study_folder import begun

    if not 0 < every <= A_DAY:
        raise InputError(f"--every {every:g} must be above 0 and at most {A_DAY} seconds, a day.")
    if watch and as_json:
        raise InputError("--watch refreshes a terminal; --json prints one document: leave one out.")
    files, ended = begun(folder), dict[str, "WatchedTrial"]()
    found = watching.read(files, ended)
    from testbed.cli import status_view

    if page is not None:
        status_view.write_page(found, page, every)
    if as_json:
        from testbed.cli import documents

        terminal.document(documents.status(found))
        return
    if watch:
        from rich.live import Live

        shown = status_view.parts(found, trials)
        with Live(shown, console=terminal.console(), auto_refresh=False) as live:
            while found.driven and (found.count("running") or found.count("waiting")):
                time.sleep(every)
                found = watching.read(files, ended)
                live.update(status_view.parts(found, trials), refresh=True)
                if page is not None:
                    status_view.write_page(found, page, every)
    else:
        terminal.console().print(status_view.parts(found, trials))
    _next_of_status(files, found, page)


def _name(files: StudyFolder) -> str:
    """The folder of a study as the command line takes it: a path, or its URL."""
    from testbed.trial.storage import address

    return address(files.path)


def _next_of_status(files: StudyFolder, found: Watched, page: Path | None) -> None:
    folder = _name(files)
    failed = next((one.id for one in found.trials if one.state == "failed"), "")
    if failed:
        terminal.next_step(terminal.command("log", folder, failed), " says why it failed.")
    elif found.driven:
        words = ["status", folder, "--watch", *(["--page", str(page)] if page else [])]
        terminal.next_step(terminal.command(*words))
    elif found.count("waiting"):
        terminal.next_step(terminal.command(*found.command[1:]), " resumes it.")
    elif found.count("cancelled"):
        terminal.next_step(terminal.command("retry", folder), " takes up what was cancelled.")
    elif "://" in folder:
        terminal.next_step(terminal.command("report", folder, "--out", "page"))
    else:
        terminal.next_step(f"open {files.path / 'report.html'}")


def log(folder: options.StudyFolder, trial: TrialId, follow: Follow = False) -> None:
    """Print what a trial has written: its curve, what it uses, and how it ended.

    Of a trial that failed the traceback comes last.

    Exit codes: 0 done, 1 the trial failed, 2 bad input, 130 after Ctrl-C.
    """
    from testbed.study import watching
    from testbed.trial.study_folder import begun

    files = begun(folder)
    (one,) = watching.chosen(watching.read(files), [trial])
    console, at = terminal.console(), files.trial(one.id)
    console.print(f"{one.title} ({one.id}), {one.steps} steps", markup=False, highlight=False)
    shown: set[tuple[float, str]] = set()
    while True:
        state = files.state(one.id)
        for line in (line for line in sorted(_lines(at)) if line not in shown):
            shown.add(line)
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line[0]))
            console.print(f"{clock}  {line[1]}", markup=False, highlight=False)
        if not follow or state not in ("new", "interrupted"):
            break
        time.sleep(1.0)
    console.print(f"state: {state}", markup=False, highlight=False)
    if state == "failed":
        said = at.store.get("error.txt") or b""
        console.print(said.decode(errors="replace").rstrip(), markup=False, highlight=False)
        again = terminal.command("retry", _name(files), one.id)
        terminal.next_step(again, " makes it run again.")
        raise typer.Exit(1)
    if state in ("new", "interrupted"):
        terminal.next_step(terminal.command("log", _name(files), one.id, "--follow"))
    elif state == "cancelled":
        terminal.next_step(terminal.command("retry", _name(files), one.id), " takes it up again.")
    elif state == "finished":
        sampled = terminal.command("sample", one.id, "--out", "samples.png")
        terminal.next_step(sampled)


def _lines(at: TrialFolder) -> Iterator[tuple[float, str]]:
    """What a trial has written, each with its time."""
    for row in at.rows():
        loss = row.get("loss")
        said = "not finite" if loss is None else f"{loss:.4g}"
        norm = row.get("gradient_norm")
        more = "" if norm is None else f"  gradient {norm:.3g}"
        yield row["time"], f"step {row['step']:>8}  loss {said}{more}"
    for sample in at.samples():
        cpu = sample.get("cpu_percent")
        used = "" if cpu is None else f", {cpu:.0f} % of a core"
        yield sample["time"], f"worker: {sample['memory_mb']:.0f} MB{used}"
    result = at.result()
    if "ended" in result:
        metrics = (result.get("metrics") or {}).items()
        said = ", ".join(f"{name} {value:.4g}" for name, value in metrics if value is not None)
        yield result["ended"], f"{result['status']}{': ' if said else ''}{said}"


def cancel(folder: options.StudyFolder, trial: TrialIds = None) -> None:
    """Stop trials at a checkpoint, or without an id the whole study.

    A running study is told and goes on with its other trials; those that train as one with others
    go on with them and are not evaluated. A cancelled trial runs again after testbed retry only.
    Without an id the study stops as after Ctrl-C, and the same command resumes it.

    Exit codes: 0 the trials are cancelled or the study was told, 2 bad input.
    """
    from testbed.study import orders, watching
    from testbed.trial.folders import ENDED
    from testbed.trial.study_folder import begun

    files = begun(folder)
    found = watching.read(files)
    console = terminal.console()
    if not trial:
        if not found.driven:
            raise InputError(
                f"{_name(files)}: no study runs in this folder, so there is none to stop."
            )
        orders.stop(files)
        console.print("The study was told to stop at a checkpoint.")
        terminal.next_step(terminal.command(*found.command[1:]), " resumes it.")
        return
    asked = watching.chosen(found, trial)
    late = [one for one in asked if one.state in (*ENDED, "failed")]
    if late:
        said = "; ".join(f"{one.id} has {one.state}" for one in late)
        raise InputError(f"Only a trial that has not ended can be cancelled: {said}.")
    for one in asked:
        at = files.trial(one.id)
        at.cancel()
        then = "stops at its next checkpoint" if one.state == "running" else "will not run"
        if one.state == "running" and at.group:
            then = "goes on with those that it trains as one with, and is not evaluated"
        console.print(f"{one.title} ({one.id}) {then}.", markup=False, highlight=False)
    words = ["retry", _name(files), *(one.id for one in asked)]
    terminal.next_step(terminal.command(*words), " takes it up again.")


def retry(folder: options.StudyFolder, trial: TrialIds = None) -> None:
    """Make trials that failed or were cancelled run again; without an id, all of them.

    They go on from their checkpoint, or from the start where they have none. A study that runs
    takes them up at once; else the command that is printed does.

    Exit codes: 0 they will run again, 2 bad input.
    """
    from testbed.study import orders, watching
    from testbed.trial.study_folder import begun

    files = begun(folder)
    found = watching.read(files)
    again = ("failed", "cancelled")
    asked = watching.chosen(found, trial) if trial else list(found.trials)
    lost = [one for one in asked if one.state in again]
    if not lost or (trial and len(lost) < len(asked)):
        said = "; ".join(f"{one.id} is {one.state}" for one in asked if one.state not in again)
        what = said if trial else "no trial failed or was cancelled"
        raise InputError(f"Only trials that failed or were cancelled can run again: {what}.")
    for one in lost:
        files.trial(one.id).retry()
        terminal.console().print(
            f"{one.title} ({one.id}) runs again.", markup=False, highlight=False
        )
    if found.driven:
        orders.retry(files, [one.id for one in lost])
        terminal.next_step(terminal.command("status", _name(files), "--watch"))
    else:
        terminal.next_step(terminal.command(*found.command[1:]), " runs them.")
