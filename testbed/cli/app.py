"""The `testbed` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from testbed.errors import InputError, disk_is_full, one_line

if TYPE_CHECKING:
    from testbed.registry import Registry
    from testbed.study.plan import Plan

app = typer.Typer(
    help="Compare parameterizations of diffusion models: same data, same draws, same initial "
    "weights, numbers with error bars, and a proof that they are the same denoiser.",
    epilog="First steps:  testbed study default  |  testbed explain v  |  testbed plugins",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", "-p", help="Load a module or file, or leave one out: no:NAME."),
]
PluginDirs = Annotated[
    list[Path] | None,
    typer.Option("--plugin-dir", help="A further folder of plugin files."),
]
Strict = Annotated[bool, typer.Option("--strict", help="A broken plugin is fatal.")]
StudyArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A study file, or the name of a bundled study.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override, for example training.steps=500 (every trial) or base.network.width=64.",
    ),
]
Only = Annotated[
    str, typer.Option("--only", help="Keep these parameterizations, cases or arms: eps,v,digits.")
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="Seeds in every case.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="The study's folder; runs/NAME by default.")
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Holds the options of every command."""


@app.command()
def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
    strict: Strict = False,
) -> None:
    """List the components by axis, the plugins they come from, and what failed to load."""
    registry = _registry(plugin, plugin_dir, strict)
    from testbed.registry import AXES

    components = [
        {"axis": axis, "name": name, "plugin": source.plugin}
        for axis in AXES
        for name in registry.names(axis)
        for source in [registry.source(getattr(registry, axis)(name))]
    ]
    if as_json:
        from dataclasses import asdict

        found = {
            "components": components,
            "plugins": [asdict(source) for source in registry.provenance],
            "failures": [asdict(source) for source in registry.failures],
        }
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, title="Components", title_justify="left", pad_edge=False)
    for column in ("axis", "names"):
        table.add_column(column, overflow="fold")
    for axis in AXES:
        table.add_row(axis, ", ".join(registry.names(axis)))
    sources = Table(box=None, title="Plugins", title_justify="left", pad_edge=False)
    for column in ("name", "kind", "version or sha256", "origin"):
        sources.add_column(column, overflow="fold")
    for source in registry.provenance:
        version = source.version[:12] if source.kind == "file" else source.version
        sources.add_row(source.plugin, source.kind, version, source.origin)
    console = _console()
    console.print(table)
    console.print()
    console.print(sources)
    for failure in registry.failures:
        what = escape(f"{failure.plugin} ({failure.origin}): {failure.error}")
        console.print(f"[red]not loaded[/] {what}")
    console.print("\nNext: [bold]testbed explain NAME[/], or drop a file into plugins/.")
    if registry.failures:
        raise typer.Exit(1)


@app.command()
def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE|NAME", help="A parameterization, weighting, loss or density, or its file."
        ),
    ],
    sigma_data: Annotated[float, typer.Option(help="Standard deviation of the data.")] = 0.5,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the plot (.svg or .png).")
    ] = None,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
) -> None:
    """Show a component's coefficients, target and effective weight: a table and a plot."""
    named = _named(name)
    registry = _registry([*(plugin or ()), *named], plugin_dir)
    from testbed.cli import explanation

    file = out or Path(f"{Path(name).stem if named else name}.svg")
    text = explanation.explain(name, registry, sigma_data, file)
    _console().print(text, highlight=False)
    _console().print(f"Plot: [bold]{file}[/]")


@app.command()
def check(
    subject: Annotated[
        str,
        typer.Argument(metavar="FILE|NAME", help="A plugin file, or a component's name, any axis."),
    ],
    suggest_claims: Annotated[
        bool, typer.Option("--suggest-claims", help="List claims that hold and are not made.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
) -> None:
    """Check components against the laws of their axis and their own claims.

    Exit codes: 0 every check holds or is skipped for a stated reason, 1 one fails, 2 bad input.
    """
    import torch

    from testbed.testing import render

    torch.set_num_threads(1)
    named = _named(subject)
    registry = _registry([*(plugin or ()), *named], plugin_dir)
    components, console = render.subjects(subject, registry), _console()
    found = render.outcomes(components, registry, console)
    hint = not as_json and all(one.ok for one in found)
    claims = render.suggestions(components) if suggest_claims or hint else None
    if not suggest_claims:
        claims = claims or None
    if as_json:
        typer.echo(json.dumps(render.document(found, claims), indent=2))
    else:
        render.show(found, claims, console)
        for note in render.notes(components):
            console.print(f"Note: {note}", markup=False, highlight=False)
        words = "".join(f" -p {word}" for word in [*(plugin or ()), *named])
        one = components[0]
        explained = one.axis in ("parameterization", "weighting", "loss", "density")
        following = f"explain {one.name}" if explained else "study default"
        console.print(
            f"Next: [bold]testbed {following}{words}[/]"
            if all(one.ok for one in found)
            else f"Next: mend what failed, then [bold]testbed check {subject}[/] again."
        )
    raise typer.Exit(int(not all(one.ok for one in found)))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the component is called, an identifier.")],
    axis: Annotated[
        str,
        typer.Option(
            help="parameterization, weighting, loss, density, sampler, dataset, network or metric."
        ),
    ] = "parameterization",
    out: Annotated[
        Path | None, typer.Option(help="The file to write; NAME.py in this folder by default.")
    ] = None,
) -> None:
    """Write a one-file plugin that passes its checks and says in comments what to edit."""
    from testbed import templates

    file = templates.write(name, axis, out, _registry(None, None))
    console = _console()
    console.print(f"Written: [bold]{file}[/]. Every comment EDIT says what is yours to change.")
    console.print("Next:")
    for command in templates.commands(name, axis, file):
        console.print(f"  {command}", markup=False, highlight=False)


@app.command()
def audit(
    subject: Annotated[
        str,
        typer.Argument(
            help="A parameterization, a trial (folder or id), or module:factory or "
            "file.py:factory of a denoiser (x, sigma) -> x0."
        ),
    ],
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this level: algebra, oracle, 'second order', learning or sampling."
        ),
    ] = None,
    returns: Annotated[
        str, typer.Option(help="What a denoiser returns: x0, eps, score, v, flow, or -flow.")
    ] = "x0",
    coordinates: Annotated[
        str, typer.Option(help="Of the state that it takes: ve, vp, cosine or flow.")
    ] = "ve",
    noise: Annotated[
        str, typer.Option(help="Its second argument: sigma, log_sigma, time, 1-time or index.")
    ] = "sigma",
    table: Annotated[
        Path | None, typer.Option(help="For --noise index: a .npy of ascending noise levels.")
    ] = None,
    around: Annotated[
        str, typer.Option(help="For factory(network): the parameterization of that network.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="A data set with an oracle, in place of the audit's own three.")
    ] = "",
    trained: Annotated[
        bool, typer.Option("--trained", help="A trained model: its errors are sizes, no failures.")
    ] = False,
    sigma_data: Annotated[float, typer.Option(help="Handed to parameterizations.")] = 0.5,
    out: Annotated[
        Path | None, typer.Option(help="Also write every check: .csv, or a picture .svg, .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
) -> None:
    """Check that a denoiser is what it claims to be: the law it breaks, by how much, and where.

    Every law has a bound from floating-point analysis; the table gives error over bound. A factory
    names what it wants: `oracle` (it returns the exact denoiser of that distribution, in its own
    code and conventions), `network` (it returns a denoiser around that network; give --around), or
    nothing. Exit codes: 0 every law holds, 3 one is broken, 2 bad input.
    """
    if out is not None and out.suffix not in (".csv", ".svg", ".png"):
        raise InputError(f"--out {out}: expected .csv, .svg or .png.")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}.")
    registry = _registry(plugin, plugin_dir)
    import torch

    from testbed.audit import Adapter, driver, render
    from testbed.trial import audited

    torch.set_num_threads(1)
    console = _console()
    adapter = Adapter(returns, coordinates, noise, driver.read_table(table))
    with console.status("auditing") as status:
        levels = level or driver.PARTS

        def say(text: str) -> None:
            status.update(f"auditing: {text}")

        if audited.is_trial(subject, registry):
            found = audited.run(subject, levels, say)
        else:
            found = driver.run(
                subject,
                levels=levels,
                adapter=adapter,
                oracle=driver.oracle_of(data, registry),
                trained=trained,
                around=around or None,
                sigma_data=sigma_data,
                registry=registry,
                say=say,
            )
    if out is not None and out.suffix == ".csv":
        found.table().to_csv(out, index=False)
    elif out is not None:
        render.draw(found, out)
    if as_json:
        typer.echo(found.json())
    else:
        for line in render.lines(found):
            console.print(line, highlight=False)
        where = f" Every check: [bold]{out}[/]." if out else " --out audit.svg draws it."
        console.print(f"Next:{where}")
    if not found.passed:
        raise typer.Exit(3)


@app.command()
def plan(
    file: StudyArgument,
    set_: Sets = None,
    only: Only = "",
    seeds: Seeds = None,
    device: Device = "auto",
    out: Out = None,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
    strict: Strict = False,
) -> None:
    """Say what a study would run: finished, stale, new and failed trials, and the time it takes."""
    from rich.markup import escape

    registry = _registry(plugin, plugin_dir, strict)
    made = _plan(file, set_, only, seeds, device, out, registry)
    _show_plan(made, registry, details=True)
    from testbed.cli.render import engine_line
    from testbed.study import engines

    _console().print(engine_line(engines.choose(made, registry)))
    words = sys.argv[2:] if sys.argv[1:2] == ["plan"] else [str(file)]
    _console().print(f"\nNext: [bold]testbed study {escape(shlex.join(words))}[/]")


@app.command()
def study(
    file: StudyArgument = Path("default"),
    set_: Sets = None,
    only: Only = "",
    seeds: Seeds = None,
    device: Device = "auto",
    jobs: Annotated[
        int | None,
        typer.Option(help="Workers at a time; 0 runs all in this process, for a debugger."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Train trials of one architecture as one batch: auto (measured), sequential, "
            "batched, or compiled (batched and fused, half a minute before the first step)."
        ),
    ] = "auto",
    out: Out = None,
    trial: Annotated[str, typer.Option(help="Run only the trial with this id.")] = "",
    no_mlflow: Annotated[bool, typer.Option("--no-mlflow", help="Do not log to MLflow.")] = False,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
    strict: Strict = False,
) -> None:
    """Run a study: train every trial, check, report. The same command again resumes.

    Ctrl-C stops at a checkpoint; a second one stops at once. Exit codes: 0 done (diverged trials
    are results), 1 a trial failed, 2 bad input, 3 a Tweedie identity failed, 130 interrupted.
    """
    if jobs is not None and jobs < 0:
        raise InputError(f"--jobs {jobs} must be 0 or more.")
    registry = _registry(plugin, plugin_dir, strict)
    made = _plan(file, set_, only, seeds, device, out, registry)
    from testbed.study import executors

    if jobs != 0 and made.pending():
        executors.prepare(made.device)
    if trial:
        again = [one for one in made.trials if one.id.startswith(trial)]
        if not again:
            raise InputError(f"--trial {trial}: no trial of this study has that id.")
        for one in again:
            one.state = "new"
        made.chosen = frozenset(one.id for one in again)
    from testbed.cli.render import Bars, engine_line
    from testbed.study import engines, session
    from testbed.study.executors import Executor, InProcessExecutor, ProcessExecutor

    console = _console()
    _show_plan(made, registry, details=False)
    with console.status("measuring the engines"):
        chosen = engines.choose(made, registry, engine, jobs)
    console.print(engine_line(chosen))
    executor: Executor = InProcessExecutor()
    if chosen.slots:
        executor = ProcessExecutor(max(1, chosen.workers), made.device, chosen.threads)
    track = not no_mlflow and _has_mlflow()
    if not track and not no_mlflow:
        console.print("mlflow is not installed: the study runs without it.")
    with Bars(chosen, console) as bars:
        ending = session.run(made, registry, chosen, executor, bars.progress(), bars.say, track)
    _conclude(made, ending, registry, console)
    raise typer.Exit(ending.exit_code)


@app.command()
def sample(
    trial: Annotated[str, typer.Argument(help="A trial's folder, or the start of its id.")],
    n: Annotated[int, typer.Option("-n", min=1, max=1_000_000, help="How many.")] = 64,
    out: Annotated[Path, typer.Option(help=".npy, .safetensors, .png or .svg.")] = Path(
        "samples.npy"
    ),
    seed: Annotated[int, typer.Option(help="Of the starting noise.")] = 0,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CLASS",
            help="Of a conditional or guided trial: the class that all samples have, for example "
            "label=3; -1 switches it off. Those of held-out data by default.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw samples from a trained trial, as numbers or as a picture."""
    from testbed.trial import sample

    if out.suffix not in sample.SUFFIXES:
        raise InputError(f"--out {out}: expected one of {', '.join(sample.SUFFIXES)}.")
    sample.draw(trial, n, out, seed, _device(device), _console(), condition or ())
    _console().print(f"{n} samples in [bold]{out}[/]")


@app.command()
def sync(
    file: StudyArgument = Path("default"),
    set_: Sets = None,
    only: Only = "",
    seeds: Seeds = None,
    device: Device = "auto",
    out: Out = None,
    plugin: Plugins = None,
    plugin_dir: PluginDirs = None,
) -> None:
    """Bring MLflow up to date from a study's trial directories: after it was away, or is new.

    Nothing is trained. What MLflow has already is not sent again.
    """
    if not _has_mlflow():
        raise InputError("mlflow is not installed: pip install mlflow.")
    registry = _registry(plugin, plugin_dir)
    made = _plan(file, set_, only, seeds, device, out, registry)
    from testbed.study import session, tracking

    known = [one for one in made.trials if one.state not in ("new", "stale")]
    if not known:
        raise InputError(f"{made.folder} has no trial of this study: run testbed study first.")
    console = _console()
    if not session.sync(made, registry, console.print):
        raise typer.Exit(1)
    console.print(f"{len(known)} of {len(made.trials)} trials are in MLflow at {tracking.uri()}.")
    console.print("Next: [bold]testbed ui[/]")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A study's folder, for example runs/default.")],
) -> None:
    """Rebuild a study's report from its trial directories, without training."""
    from testbed import report as reports

    if not (folder / "study.json").is_file():
        raise InputError(f"{folder} is not a study's folder: it has no study.json.")
    try:
        page = reports.write(folder)
    except InputError:
        raise
    except Exception as problem:  # a damaged file raises whatever its damage leads to
        raise InputError(f"{folder}: its files cannot be read: {one_line(problem)}") from problem
    _console().print(f"Report: [bold]{page}[/]")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = 5000,
) -> None:
    """Open MLflow's pages for the studies of this folder, on 127.0.0.1 only."""
    import subprocess

    if not _has_mlflow():
        raise InputError("mlflow is not installed: pip install mlflow.")
    from testbed.study import tracking

    tracking.silence()
    tracking.prepare(tracking.uri())
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    _console().print(f"MLflow: [bold]http://127.0.0.1:{port}[/]  (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking.uri()]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    raise typer.Exit(subprocess.call(command))


def main() -> None:
    """Runs the command line: one message and the exit code for what a user can cause."""
    debug = "--debug" in sys.argv[1:]
    # Accepted anywhere, also behind a command's name.
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app()
    except (InputError, OSError) as problem:
        if debug:
            raise
        advice = "\nWhat was written before is whole: make room, and the same command goes on."
        sys.stderr.write(f"testbed: {problem}{advice if disk_is_full(problem) else ''}\n")
        raise SystemExit(InputError.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("testbed: interrupted\n")
        raise SystemExit(130) from None


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def _named(word: str) -> list[str]:
    """The plugin file that a FILE|NAME means, if it means one.

    Raises:
        InputError: a file that does not exist.
    """
    from testbed.plugin_files import is_file, missing

    if not is_file(word):
        return []
    if not os.path.isfile(word):
        raise InputError(missing(word))
    return [word]


def _registry(
    words: list[str] | None, folders: list[Path] | None, strict: bool = False
) -> Registry:
    from testbed.registry import Registry

    registry = Registry(words or (), folders or (), strict)
    for failure in registry.failures:
        sys.stderr.write(
            f"testbed: plugin {failure.plugin} ({failure.origin}) is broken and left out: "
            f"{failure.error}\n"
        )
    return registry


def _device(word: str) -> str:
    import torch

    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(word)
    except RuntimeError:
        raise InputError(f"--device {word}: expected auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {word}: expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {word}: this torch ({torch.__version__}) sees no CUDA device.")
    return word


def _plan(
    file: Path,
    sets: list[str] | None,
    only: str,
    seeds: int | None,
    device: str,
    out: Path | None,
    registry: Registry,
) -> Plan:
    import torch

    from testbed.study import plan as plans
    from testbed.study import study_file

    torch.set_num_threads(1)
    words = [word.strip() for word in only.split(",") if word.strip()]
    read = study_file.read(file, sets or (), words, seeds)
    return plans.make(read, registry, out or Path("runs") / read.header.name, _device(device))


def _show_plan(made: Plan, registry: Registry, details: bool) -> None:
    from testbed.cli.render import plan_table
    from testbed.study.plan import notes

    console = _console()
    for line in plan_table(made, registry, details):
        console.print(line)
    for note in notes(made):
        console.print(note, markup=False, highlight=False)


def _has_mlflow() -> bool:
    import importlib.util

    return importlib.util.find_spec("mlflow") is not None


def _conclude(made: Plan, ending: Any, registry: Registry, console: Any) -> None:
    from testbed.cli.render import ending_lines
    from testbed.study.invocation import record

    for line in ending_lines(made, ending, shlex.join(record(made, registry)["command"])):
        console.print(line)
