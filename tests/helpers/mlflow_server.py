"""MLflow's own server on 127.0.0.1, which is killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from helpers.command_line import environment


def free_port() -> int:
    """One on 127.0.0.1 that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Server:
    """Its artifacts and its log lie in `folder`.

    Args:
        folder: where it runs.
        store: the address of its database; of a SQLite file in the folder where it is empty.
        words: more of its command.
        variables: more of its environment.
        destination: where it keeps the files of runs; `artifacts` where it is empty.
        port: where it answers.
    """

    folder: Path
    store: str = ""
    words: Sequence[str] = ()
    variables: dict[str, str] = field(default_factory=dict)
    destination: str = ""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> Path:
        """The folder that it keeps the files of runs in."""
        return self.folder / "artifacts"

    def start(self) -> None:
        """Returns when it answers.

        Raises:
            TimeoutError: it does not within two minutes.
        """
        words = ["server", "--workers", "1", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--artifacts-destination", self.destination or str(self.artifacts), *self.words]
        own = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            # Not in the command, which everyone on the machine may read.
            "MLFLOW_BACKEND_STORE_URI": self.store or f"sqlite:///{self.folder / 'server.db'}",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                cwd=self.folder,
                env=environment(**own, **self.variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
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
def serving(server: Server) -> Iterator[Server]:
    """A server that is gone in the end."""
    server.start()
    try:
        yield server
    finally:
        server.kill()
