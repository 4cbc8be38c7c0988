"""`testbed WORDS` in a process of its own that begins with everything imported.

It is forked from a server of the tests, which has imported torch, MLflow and the command line once.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import forkserver, process
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any
from unittest import mock

import torch
from helpers.command_line import environment, trials_only

from testbed.cli import app, studies
from testbed.study import session
from testbed.study.plan import Plan

SERVER = forkserver.ForkServer()
SERVER.set_forkserver_preload([__name__, "testbed.trial.worker", "testbed.study.tracking_runs"])


@dataclass(frozen=True)
class Command:
    """A command that runs, as `subprocess.Popen` has it."""

    process: ForkServerProcess
    said: tuple[Path, Path]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutExpired(self.process.name, timeout or 0.0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed on its two outputs, once it has ended."""
        self.wait(timeout)
        out, err = (file.read_text() for file in self.said)
        return out, err


def start(folder: Path, name: str, *words: object, **more: str) -> Command:
    """Starts a command whose study ends with its trials; `name` is that of its two outputs."""
    said = folder / f"{name}.out", folder / f"{name}.err"
    arguments = folder, [*map(str, words)], environment(**more), said
    context = multiprocessing.get_context("forkserver")
    begun = context.Process(target=_run, args=arguments, name=" ".join(arguments[1]))
    with mock.patch.object(forkserver, "connect_to_new_process", SERVER.connect_to_new_process):
        begun.start()
    return Command(begun, said)


def _no_report(plan: Plan, *rest: Any) -> Path:
    return plan.folder / "report.html"


def _run(folder: Path, words: list[str], env: Mapping[str, str], said: tuple[Path, Path]) -> None:
    """What the process does: as for a user, nobody has started it."""
    process._parent_process = None  # type: ignore[attr-defined]
    for descriptor, file in zip((1, 2), said, strict=True):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["testbed", *words]
    with (
        trials_only(),
        mock.patch.object(session, "_report", _no_report),  # else a worker would draw it
        mock.patch.object(studies, "_prepare_workers"),  # for which it would need much
    ):
        app.main()
