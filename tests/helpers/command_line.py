"""The command line in a folder, in this process or in one of its own."""

import functools
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
from helpers.paths import ROOT

import testbed.ext
from testbed.cli import app
from testbed.study import identities

OURS = ("MLFLOW_", "TESTBED_", "NOX_")
COMMAND = functools.cache(typer.main.get_command)
"""The command line as click has it, which typer makes anew at each call."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """The variables of a command: none of MLflow's, nox's or ours but `more`; wide output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    # In a subprocess with another working directory, a relative PYTHONPATH leads nowhere.
    kept |= {"PYTHONPATH": str(ROOT), "COLUMNS": "250", "OMP_NUM_THREADS": "1"}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", **more}


@contextmanager
def trials_only() -> Iterator[None]:
    """A study in this process neither checks its identities nor draws the report.

    Both cost more than a small study's training, and are not what most tests are about.
    """
    from testbed import report

    with pytest.MonkeyPatch.context() as patch, without_identities():
        patch.setattr(report, "renew", lambda folder: folder / "report.html")
        yield


@contextmanager
def without_identities() -> Iterator[None]:
    """A study in this process checks the identities of its trials, and none of its variants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identities, "subjects", lambda plan, registry: {})
        yield


@contextmanager
def blank_figures() -> Iterator[None]:
    """A report in this process has all of its figures, and each of them is blank.

    They are made as ever; to place and to write their letters is most of what a report costs.
    """
    from testbed.report import drawing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "lay_out", lambda figure: None)
        patch.setattr(drawing, "text_of", lambda figure, name: f'<svg role="img" id="{name}"/>')
        yield


@contextmanager
def unplaced_figures() -> Iterator[None]:
    """What a figure in this process consists of is drawn where matplotlib puts it at first.

    To find out where nothing overlaps takes longer than to draw it.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConstrainedLayoutEngine, "execute", lambda engine, figure: None)
        yield


def run_here(folder: Path, *words: object, **more: str) -> Done:
    """`testbed WORDS` with `folder` as working directory, in this process, which is faster."""
    out, err = io.StringIO(), io.StringIO()
    from testbed.trial import build

    # Its key is only the words, which mean something else here.
    build.registry_of.cache_clear()
    path, modules = list(testbed.ext.__path__), set(sys.modules)
    before, code = dict(os.environ), 0
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["testbed", *map(str, words)])
            patch.setattr(typer.main, "get_command", COMMAND)
            os.environ.clear()
            os.environ.update(environment(**more))
            try:
                app.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os.environ.clear()
        os.environ.update(before)
        testbed.ext.__path__[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("testbed.ext."):
                del sys.modules[name]
    return Done(code, out.getvalue(), err.getvalue())


def run_process(folder: Path, *words: object, **more: str) -> Done:
    """`python -m testbed WORDS` with `folder` as working directory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *map(str, words)],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)
