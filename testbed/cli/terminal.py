"""The terminal: text and JSON documents on it, and commands that a reader can type there."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

NOX = "NOX_CURRENT_SESSION"
"""The variable that nox sets for what it runs."""
SESSIONS = ("study", "ui")
"""The commands that are also sessions of nox."""


def console() -> Console:
    """A rich console on the standard output, which breaks no line."""
    from rich.console import Console

    return Console(soft_wrap=True)


def span(seconds: float) -> str:
    """A time in words: `45 s`, `3 min 20 s`, `5 h 10 min` or `12 d 3 h`."""
    whole = round(seconds)
    for large, small, unit, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "min")):
        if whole >= large:
            return f"{whole // large} {unit} {whole % large // small} {part}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{seconds:.3g} s"


def next_step(words: str, purpose: str = "") -> None:
    """Prints the command to type next, and what it is for where that is not plain."""
    from rich.markup import escape

    console().print(f"Next: [bold]{escape(words)}[/]{escape(purpose)}", highlight=False)


def document(content: dict[str, Any]) -> None:
    """Prints what `--json` asks for."""
    typer.echo(json.dumps(content, indent=2))


@contextlib.contextmanager
def text_on_stderr(active: bool) -> Iterator[None]:
    """Sends what is printed inside to the standard error, by processes started there as well.

    So a JSON document is alone on the standard output, whatever a plugin prints.
    """
    if not active:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def command(*words: str) -> str:
    """`testbed WORDS`, or what does the same in a checkout where nox runs testbed."""
    if NOX not in os.environ or not Path("noxfile.py").is_file():
        return shlex.join(["testbed", *words])
    if words[0] in SESSIONS:
        return shlex.join(["nox", "-s", words[0], *(["--", *words[1:]] if words[1:] else [])])
    return shlex.join([os.path.relpath(sys.executable), "-m", "testbed", *words])


def words_after(name: str, *otherwise: str) -> list[str]:
    """What stands behind the name of the command that runs; `otherwise` where it was not typed."""
    return sys.argv[2:] if sys.argv[1:2] == [name] else list(otherwise)
