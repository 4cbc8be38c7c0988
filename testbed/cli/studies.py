"""The commands of studies: run, plan, report, bring MLflow up to date, and look at its pages."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import completion, options, seeds_added, terminal
from testbed.errors import InputError, one_line

if TYPE_CHECKING:
    from testbed.registry import Registry
    from testbed.study.engines import ExecutionPlan
    from testbed.study.plan import Plan
    from testbed.study.runner import Progress
    from testbed.study.session import Ending

LONG_STEPS = 50_000
"""Steps of all trials below which a study would wait for the import of torch's compiler."""

UntilDecided = Annotated[
    bool,
    typer.Option(
        "--until-decided",
        help="Add seeds, one at a time, to the variants whose comparison with their baseline is "
        'undecided, until none is. The study needs report.looks = "sequential".',
    ),
]
AtMost = Annotated[
    int | None,
    typer.Option(
        "--at-most",
        metavar="N",
        help=f"Most seeds that --until-decided gives a variant; {seeds_added.AT_MOST} by default.",
    ),
]
OneTrial = Annotated[
    str,
    typer.Option(
        metavar="ID",
        help="Run only the trial with this id, anew.",
        autocompletion=completion.trials,
    ),
]
NoMLflow = Annotated[bool, typer.Option("--no-mlflow", help="Do not log the study to MLflow.")]
ReportOut = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The folder that the page, tables/ and figures/ are written to; the study's own by "
        "default.",
    ),
]
Width = Annotated[
    str,
    typer.Option(
        metavar="WIDTH",
        help="Also write paper/: every figure as PDF and SVG at this width, the column's of your "
        "paper, for example 84mm or 3.25in, and the tables as LaTeX.",
    ),
]
Lease = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Own the study's folder by leases of so many seconds, which hold on a disk that "
        "several machines share, and not by file locks. It is said when the study begins, and "
        "holds for it from then on.",
    ),
]
Port = Annotated[int, typer.Option(help="The port on 127.0.0.1 that the pages are served at.")]


def study(
    context: typer.Context,
    file: options.StudyName = Path("default"),
    set_: options.Sets = None,
    only: options.Only = "",
    seeds: options.Seeds = None,
    device: options.Device = "auto",
    jobs: options.Jobs = None,
    engine: options.Engine = "auto",
    executor: options.Executor = "",
    out: options.StudyOut = None,
    lease: Lease = None,
    tracking_uri: options.TrackingURI = "",
    no_mlflow: NoMLflow = False,
    trial: OneTrial = "",
    until_decided: UntilDecided = False,
    at_most: AtMost = None,
    as_json: options.AsJSON = False,
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
    strict: options.Strict = False,
) -> None:
    """Run a study: train every trial, check, report. The same command again resumes.

    It writes to its folder and to one MLflow store, and names both before it begins. Ctrl-C stops
    at a checkpoint; a second one stops at once.

    Exit codes: 0 done (diverged trials are results), 1 a trial failed, 2 bad input, 3 a Tweedie
    identity failed, 130 interrupted.

    The document of --json has the keys study, folder, tracking_uri (null where nothing is logged),
    device, exit_code, interrupted, seconds, trials (id, title, labels, seed, status, error),
    identities (held, failed), report (the path of its page, null where it was interrupted) and
    claims (as in the document of `testbed report`).
    """
    from testbed.cli.ending import show as show_ending
    from testbed.trial import storage

    with terminal.text_on_stderr(as_json):
        registry = options.registry(plugin, plugin_dir, strict, file)
        most = seeds_added.most(until_decided, at_most, trial)
        sets = options.with_executor(set_, executor)
        replan = partial(_plan, file, sets, only, seeds, device, out, registry, most)
        made = replan()
        storage.begin(out or made.folder, lease)
        slots = made.study.executor.slots(jobs)
        _prepare_workers(made, slots)
        if trial:
            _choose(made, trial)
        store = _store(tracking_uri, no_mlflow)
        _show_plan(made, registry, store, details=False)
        if not store and not no_mlflow:
            terminal.console().print("mlflow is not installed: the study runs without it.")
        ending, undecided = _run(made, registry, engine, slots, store), ""
        if most is not None:
            go_on = partial(_run, registry=registry, engine=engine, slots=slots, store=store)
            made, ending, undecided = seeds_added.until_decided(made, ending, most, replan, go_on)
        seconds = time.monotonic() - context.obj
        show_ending(made, ending, registry, seconds, tracking_uri, undecided)
    if as_json:
        from testbed.cli import documents

        terminal.document(documents.study(made, ending, store, seconds))
    raise typer.Exit(ending.exit_code)


def plan(
    file: options.StudyName,
    set_: options.Sets = None,
    only: options.Only = "",
    seeds: options.Seeds = None,
    device: options.Device = "auto",
    out: options.StudyOut = None,
    tracking_uri: options.TrackingURI = "",
    as_json: options.AsJSON = False,
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
    strict: options.Strict = False,
) -> None:
    """Say what a study would run: finished, stale, new and failed trials, and the time it takes.

    It also says the smallest difference that the planned seeds can show: in per cent where the
    study's folder has results whose spread between seeds is known, else in standard deviations.

    Nothing is trained or written. Exit codes: 0 the study can run, 2 bad input.

    The document of --json has the keys study, folder, tracking_uri, device, trials (id, title,
    labels, seed, state, changed), engine (name, workers, threads, groups: the ids that train as
    one, seconds: about how long, or null), detectable (for each case the fewest seeds, the number
    of comparisons in the study, the effect in standard deviations of the log ratio, null where no
    effect can be shown, and ratios: the smallest by arm and variant) and notes.
    """
    from testbed.report.seeds import detectable

    with terminal.text_on_stderr(as_json):
        registry = options.registry(plugin, plugin_dir, strict, file)
        made = _plan(file, set_, only, seeds, device, out, registry)
        store = _store(tracking_uri)
        if not as_json:
            _show_plan(made, registry, store, details=True)
        chosen = _engine(made, registry, "auto", made.study.executor.slots(None))
        found = detectable(made)
    if as_json:
        from testbed.cli import documents

        terminal.document(documents.plan(made, chosen, store, found))
        return
    _show_engine(chosen)
    for one in found:
        terminal.console().print(one.sentence(), markup=False, highlight=False)
    terminal.console().print()
    words = terminal.words_after("plan", str(file))
    terminal.next_step(terminal.command("study", *words))


def report(
    folder: options.StudyFolder,
    out: ReportOut = None,
    width: Width = "",
    as_json: options.AsJSON = False,
) -> None:
    """Rebuild a study's report from its trial directories, without training.

    Exit codes: 0 the report is written, 2 bad input.

    The document of --json has the keys folder (the study's), page, tables, paper (the paths of
    what --width asks for) and claims (case, arm, variant, against: the baseline, verdict, or why
    there is none, effect: ratio, low and high, or null, hangs_on, levels, empty where the claim
    is over all, sigma: the lowest and the highest of these, or null, unjudged: the effect where
    there is no verdict, or null, and survivors: the ratios of the seeds that did not diverge).
    """
    from testbed import report as reports
    from testbed.cli import first_screen
    from testbed.report import claims, drawing, study_result
    from testbed.trial.study_folder import begun

    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: there is a file of this name, and a report needs a folder.")
    folder = begun(folder).path
    if width:
        drawing.inches(width)  # a mistake is told before anything is written
    paper: list[Path] = []
    with terminal.text_on_stderr(as_json):
        try:
            page = reports.write(folder, out=out)
            if width:
                paper = study_result.open(folder).write_paper((out or folder) / "paper", width)
        except (InputError, OSError):
            raise
        except Exception as problem:  # a damaged file raises whatever its damage leads to
            raise InputError(
                f"{folder}: its files cannot be read: {one_line(problem)}"
            ) from problem
    if as_json:
        from testbed.cli import documents

        terminal.document(documents.report(folder, page, paper, claims.stored(page)))
        return
    first_screen.show(claims.stored(page), page)
    terminal.console().print(f"Report: [bold]{page}[/]")
    if paper:
        terminal.console().print(f"For a paper: [bold]{paper[0].parent}[/], {len(paper)} files")
    terminal.next_step(f"open {page}", f"; its numbers are in {page.parent / 'tables'}.")


def sync(
    file: options.StudyName = Path("default"),
    set_: options.Sets = None,
    only: options.Only = "",
    seeds: options.Seeds = None,
    device: options.Device = "auto",
    out: options.StudyOut = None,
    tracking_uri: options.TrackingURI = "",
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
) -> None:
    """Bring MLflow up to date from a study's trial directories: after it was away, or is new.

    Nothing is trained. What MLflow has already is not sent again.

    Exit codes: 0 MLflow has everything, 1 it does not answer, 2 bad input.
    """
    _require_mlflow()
    registry = options.registry(plugin, plugin_dir, study=file)
    made = _plan(file, set_, only, seeds, device, out, registry)
    from testbed.cli.ending import pages
    from testbed.study import session, tracking_store

    known = [one for one in made.trials if one.state not in ("new", "stale")]
    if not known:
        raise InputError(f"{made.folder} has no trial of this study: run testbed study first.")
    console, store = terminal.console(), tracking_store.uri(tracking_uri)
    console.print(f"MLflow store: {store}", markup=False, highlight=False)
    if not session.sync(made, registry, store, console.print):
        raise typer.Exit(1)
    console.print(f"{len(known)} of {len(made.trials)} trials are in MLflow at {store}.")
    terminal.next_step(pages(tracking_uri))


def ui(port: Port = 5000, tracking_uri: options.TrackingURI = "") -> None:
    """Serve MLflow's pages for the studies of this folder, on 127.0.0.1 only, until Ctrl-C.

    Exit codes: that of MLflow's server, 2 bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    _require_mlflow()
    from testbed.cli.server import serve
    from testbed.study import tracking_store

    store = tracking_store.uri(tracking_uri)
    tracking_store.require(store)
    tracking_store.silence()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    console = terminal.console()
    console.print(f"MLflow store: {store}", markup=False, highlight=False)
    terminal.next_step(f"open http://127.0.0.1:{port}", " in a browser; Ctrl-C ends it.")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    raise typer.Exit(serve(command))


def _plan(
    file: Path,
    sets: list[str] | None,
    only: str,
    seeds: int | None,
    device: str,
    out: Path | None,
    registry: Registry,
    at_most: int | None = None,
) -> Plan:
    import torch

    from testbed.study import plan as plans
    from testbed.study import study_file
    from testbed.trial import storage

    torch.set_num_threads(1)
    words = [word.strip() for word in only.split(",") if word.strip()]
    read = study_file.read(file, sets or (), words, seeds, at_most)
    folder = storage.local(out) if out else Path("runs") / read.header.name
    return plans.make(read, registry, folder, read.executor.device(device))


def _show_plan(made: Plan, registry: Registry, store: str, details: bool) -> None:
    """The trials of a plan, and where its study would write; an empty `store` is none."""
    from testbed.cli.render import plan_table
    from testbed.study.plan import notes

    console = terminal.console()
    for line in plan_table(made, registry, details):
        console.print(line)
    console.print(f"MLflow store: {store or 'none'}", markup=False, highlight=False)
    for note in notes(made):
        console.print(note, markup=False, highlight=False)


def _has_mlflow() -> bool:
    return importlib.util.find_spec("mlflow") is not None


def _require_mlflow() -> None:
    if not _has_mlflow():
        raise InputError("mlflow is not installed: pip install mlflow.")


def _store(tracking_uri: str, no_mlflow: bool = False) -> str:
    """The address of a study's MLflow store; empty where nothing is logged."""
    from testbed.study import tracking_store

    return "" if no_mlflow or not _has_mlflow() else tracking_store.uri(tracking_uri)


def _prepare_workers(made: Plan, slots: int | None) -> None:
    """Lets the server that workers are forked from import while all else goes on."""
    from testbed.study.executors import local

    if slots != 0 and (pending := made.pending()):
        long = sum(one.config.training.steps for one in pending) > LONG_STEPS
        compilers = ("torch._inductor.compile_fx",) if long else ()
        local.prepare(made.device, "testbed.report.page", *compilers)


def _choose(made: Plan, id_: str) -> None:
    """Makes the trials whose id begins so the only ones that run, and as new.

    Raises:
        InputError: there is none, or one was cancelled.
    """
    again = [one for one in made.trials if one.id.startswith(id_)]
    if not again:
        raise InputError(f"--trial {id_}: no trial of this study has that id.")
    if cancelled := [one.id for one in again if one.state == "cancelled"]:
        words = terminal.command("retry", str(made.folder), *cancelled)
        raise InputError(f"--trial {id_}: {cancelled[0]} was cancelled; {words} first.")
    for one in again:
        one.state = "new"
    made.chosen = frozenset(one.id for one in again)


def _engine(made: Plan, registry: Registry, name: str, slots: int | None) -> ExecutionPlan:
    from testbed.study import engines

    with terminal.console().status("measuring the engines"):
        return engines.choose(made, registry, name, slots)


def _show_engine(chosen: ExecutionPlan) -> None:
    from testbed.cli.render import engine_line

    terminal.console().print(engine_line(chosen))


def _run(made: Plan, registry: Registry, engine: str, slots: int | None, store: str) -> Ending:
    from testbed.cli.render import Bars
    from testbed.study import sharing

    @contextlib.contextmanager
    def showing(chosen: ExecutionPlan) -> Iterator[Progress]:
        _show_engine(chosen)
        with Bars(chosen, terminal.console()) as bars:
            yield bars.progress()

    choose = partial(_engine, made, registry, engine, slots)
    return sharing.run(made, registry, choose, slots, showing, _write_report, store)


def _write_report(folder: Path) -> Path:
    """Its imports take a second, which training does not wait for."""
    from testbed import report as reports

    return reports.renew(folder)
