"""An MLflow server that goes away in the midst of a study, and comes back after it, or within."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import checker, kills
from faults.stores import training, until
from faults.subject import SEQUENTIAL, command, lay_out, start
from faults.verdict import Scenario, Verdict
from helpers.command_line import environment


def free_port() -> int:
    """One on 127.0.0.1 that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Server:
    """MLflow's own, over a store in `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        words = ["server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                cwd=self.folder,
                env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
                return
            time.sleep(0.2)
        raise TimeoutError(f"the server does not start: {self.folder / 'server.log'}")

    def kill(self) -> None:
        """All its processes."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that is gone in the end."""
    server = Server(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()


def gone(folder: Path, back: bool) -> Verdict:
    """Killed when the study trains; started again in the midst of it, or after it, with sync."""
    found = Verdict(cases=1)
    lay_out(folder)
    with serving(folder) as server:
        address = {"MLFLOW_TRACKING_URI": server.address}
        running = start(folder, *command(SEQUENTIAL), **address)
        found.hold(until(training(folder), running), "it does not train")
        server.kill()
        found.kills += 1
        if back:
            log = running.log.with_suffix(".out")
            found.hold(until(lambda: "does not answer" in log.read_text(), running), "no warning")
            server.start()
        ended = running.wait()
        found.hold(ended.code == 0, f"exit code {ended.code}: {ended.said[-1500:]}")
        found.hold(ended.out.count("does not answer") == 1, f"said: {ended.said[-1500:]}")
        found.hold("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
        at, reference = folder / "runs" / "small", kills.reference("sequential")
        if back:
            found.hold("answers again" in ended.out, f"said: {ended.said[-1500:]}")
            found.problems += checker.everything(at, reference, server.address)
        else:
            found.hold("testbed sync" in ended.out, f"said: {ended.said[-1500:]}")
            away = start(folder, *command((), "sync"), **address).wait()
            found.hold(away.code == 1, f"sync without a server: exit code {away.code}")
            found.hold("study goes on" not in away.said, f"sync says {away.said}")
            server.start()
        for _ in range(2):
            kills.clean(start(folder, *command((), "sync"), **address).wait(), found)
            found.problems += checker.everything(at, reference, server.address)
    return found


SCENARIOS: dict[str, Scenario] = {
    "server: away, then sync": lambda at: gone(at, back=False),
    "server: away and back": lambda at: gone(at, back=True),
}
