"""The study that is disturbed, and the command that runs it in a session of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helpers.command_line import environment

HOOK = Path(__file__).parent / "hook"
LIMIT = 180.0

SMALL = """
[study]
name = "small"

[base]
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 900, batch = 16, points = 18 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 3, metrics = ["energy"] }
seeds = 2

[grid]
parameterization = ["eps", "v", "edm"]

[[cases]]
name = "fixed"
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }

[[cases]]
name = "learned"
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
weighting = "edm2"
seeds = 1
"""
"""Six trials that train as two groups, and three that learn a weighting and train alone."""

HASTY = """
import multiprocessing
import testbed
from testbed.trial import worker

worker.CHECKPOINT_SECONDS = 0.0
if multiprocessing.parent_process() is None:
    from testbed.study import identities, telling

    telling.TRACK = 0.3
    identities.subjects = lambda plan, registry: {}
else:
    from testbed.report import drawing

    drawing.lay_out = lambda figure: None
    drawing.text_of = lambda figure, name: f'<svg role="img" id="{name}"/>'

@testbed.hookimpl
def testbed_study_finished(study, results):
    pass
"""
"""A plugin with which every row has a checkpoint, and MLflow is told often.

What costs most of a study so small is left out: its identities, and the letters of its figures.
"""

BATCHED = ("--engine", "batched", "--jobs", "2")
SEQUENTIAL = ("--engine", "sequential", "--jobs", "2")


@dataclass(frozen=True)
class Moment:
    """Where a process is ended: at the `count`-th `event` of sys.audit on a path like `path`."""

    victim: str
    event: str
    path: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.victim} at {self.event} {self.path} {self.count}"


@dataclass
class Ended:
    """How a command ended, what it said, and the moment that came, if one did."""

    code: int
    out: str
    err: str
    seconds: float
    fired: bool = False
    session: int = 0

    @property
    def said(self) -> str:
        """All of it."""
        return self.out + self.err


@dataclass
class Running:
    """A command in a session of its own, whose number is its process's."""

    process: subprocess.Popen[str]
    log: Path
    mark: Path
    start: float = field(default_factory=time.monotonic)

    @property
    def session(self) -> int:
        """Its own number, and that of everything that it starts."""
        return self.process.pid

    def runs(self, seconds: float) -> bool:
        """Whether it runs on after so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=seconds)
        return self.process.poll() is None

    def wait(self, seconds: float = LIMIT) -> Ended:
        """Its end, or that of everything after so long."""
        if self.runs(seconds):
            self.kill("group")
            self.process.wait()
        return Ended(
            self.process.returncode,
            self.log.with_suffix(".out").read_text(),
            self.log.with_suffix(".err").read_text(),
            time.monotonic() - self.start,
            self.mark.exists(),
            self.session,
        )

    def kill(self, victim: str) -> bool:
        """SIGKILL to everything, to the driver, or to one of the workers; whether there was one."""
        targets = [self.session] if victim != "worker" else workers(self.session)[:1]
        for one in targets:
            try:
                (os.killpg if victim == "group" else os.kill)(one, signal.SIGKILL)
            except ProcessLookupError:
                return False
        return bool(targets)


def status(process: int) -> tuple[str, int, int]:
    """State, parent and session of a process; ("", 0, 0) where it is gone."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0, 0
    return words[0], int(words[1]), int(words[3])


def session(number: int) -> list[int]:
    """The processes of a session, without those that only wait to be buried."""
    found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [one for one in found if (s := status(one))[2] == number and s[0] not in ("Z", "X")]


def left(numbers: Iterable[int], seconds: float = 20.0) -> list[int]:
    """What still runs of these sessions after a while."""
    end = time.monotonic() + seconds
    while (found := [one for number in numbers for one in session(number)]) and (
        time.monotonic() < end
    ):
        time.sleep(0.05)
    return found


def workers(number: int) -> list[int]:
    """The workers of a session: the driver's grandchildren, by way of the fork server."""
    inside = session(number)
    return [one for one in inside if status(status(one)[1])[1] == number]


def lay_out(folder: Path, text: str = SMALL, **plugins: str) -> Path:
    """A folder with the study, the hasty plugin and others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.toml").write_text(text)
    for name, source in plugins.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "hasty.py").write_text(HASTY)
    return folder


def start(
    folder: Path,
    *words: str,
    moment: Moment | None = None,
    before: Callable[[], None] | None = None,
    **more: str,
) -> Running:
    """Starts `testbed WORDS` in `folder`; `before` runs in the child."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    number = len(list(logs.glob("*.out")))
    log, mark = logs / f"{number:03}", logs / f"{number:03}.mark"
    env = environment(**more)
    if moment is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(HOOK), env["PYTHONPATH"]])
        env["FAULT"] = json.dumps({**asdict(moment), "mark": str(mark)})
    with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "testbed", *words],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
            preexec_fn=before,
        )
    return Running(process, log, mark)


def command(words: Sequence[str], name: str = "study") -> tuple[str, ...]:
    """The words of a study command."""
    return (name, "small.toml", "-p", "hasty.py", *words)


def study(folder: Path, words: Sequence[str], moment: Moment | None = None, **more: str) -> Ended:
    """Runs the study of a folder to its end, or to the moment."""
    return start(folder, *command(words), moment=moment, **more).wait()
