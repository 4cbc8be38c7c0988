"""The `testbed` command. Heavy imports wait until a command needs them, and help needs none."""

from __future__ import annotations

import atexit
import gc
import inspect
import sys
import time
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from testbed import __version__
from testbed.cli import (
    checkpoints,
    components,
    installation,
    models,
    samples,
    sharing,
    studies,
    watching,
)
from testbed.errors import InputError, disk_is_full

OBJECTS = 100_000
"""How many new objects there are before the garbage collector looks at them; Python's own number is
700, at which looking takes a fifth of the time of the imports."""


class Commands(TyperGroup):
    """The commands, whose help lists them by panel, each with the whole of its first paragraph."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes a section for each panel."""
        panels: dict[str, list[tuple[str, str]]] = {}
        names = self.list_commands(ctx)
        for name in names:
            command: Any = self.get_command(ctx, name)
            first, _, _ = inspect.cleandoc(command.help).partition("\n\n")
            row = name.ljust(max(map(len, names))), " ".join(first.split())
            panels.setdefault(command.rich_help_panel, []).append(row)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words before the command; a wrong one is told below the usage of the whole."""
        try:
            return super().parse_args(ctx, args)
        except Exception as problem:
            if getattr(problem, "ctx", ctx) is None:
                problem.ctx = ctx  # type: ignore[attr-defined]
            raise

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; a word that its options cannot have is told below the command's usage.

        Raises:
            InputError: a plugin asks for the end of the program, which is the user's to say.
        """
        try:
            return super().invoke(ctx)
        except SystemExit as problem:
            if isinstance(problem.__context__, BrokenPipeError):  # `| head` has read enough
                raise
            *_, last = traceback.extract_tb(problem.__traceback__)
            raise InputError(
                f"{last.filename}, line {last.lineno}: it ends the program (SystemExit: "
                f"{problem.code}); expected an exception that says what is wrong."
            ) from problem
        except Exception as problem:
            # The parser of options does not know the command that it is of.
            if getattr(problem, "ctx", ctx) is None:
                name = ctx.invoked_subcommand
                command: Any = self.get_command(ctx, name)
                problem.ctx = command.context_class(  # type: ignore[attr-defined]
                    command, info_name=name, parent=ctx, **command.context_settings
                )
            raise


app = typer.Typer(
    cls=Commands,
    help="Compare parameterizations of diffusion models: same data, same draws, same initial "
    "weights, numbers with error bars, and a proof that they are the same denoiser.",
    epilog="First steps: testbed study default | testbed explain v | testbed plugins",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes as long to import as all the rest
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"testbed {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a mistake; allowed anywhere.")
    ] = False,
) -> None:
    """The options that stand before the name of a command."""


for panel, commands in (
    ("Studies", (studies.study, studies.plan, studies.report, studies.sync, studies.ui)),
    ("Watching", (watching.status, watching.log, watching.cancel, watching.retry)),
    ("Results", (sharing.compare, sharing.pack, sharing.verify)),
    ("Components", (components.plugins, components.explain, components.check, components.new)),
    ("Denoisers", (models.audit, samples.sample, checkpoints.export)),
    ("Installation", (installation.selftest,)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Runs the command line: one message and the exit code for what a user can cause."""
    start = time.monotonic()
    gc.set_threshold(OBJECTS, 20, 20)
    atexit.register(gc.freeze)  # else the process takes a second more to end
    debug = "--debug" in sys.argv[1:]
    # Accepted anywhere, also behind a command's name.
    sys.argv[1:] = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        app(prog_name="testbed", obj=start)
    except (InputError, OSError) as problem:
        if debug:
            raise
        advice = "\nWhat was written before is whole: make room, and the same command goes on."
        sys.stderr.write(f"testbed: {problem}{advice if disk_is_full(problem) else ''}\n")
        raise SystemExit(InputError.exit_code) from None
    except KeyboardInterrupt:
        sys.stderr.write("testbed: interrupted\n")
        raise SystemExit(130) from None
