"""A server in the foreground, which ends when the command that started it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence

PATIENCE = 10.0
"""Seconds that a server is given to end of itself."""
POLL = 0.2


def serve(command: Sequence[str]) -> int:
    """Runs a server until it ends, or until SIGINT or SIGTERM ends it and its own processes.

    Returns:
        Its exit code, or 128 and the number of the signal.
    """
    signals: list[int] = []
    stopped = threading.Event()

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        stopped.set()

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    # A session of its own: a Ctrl-C reaches it by way of us, once.
    server = subprocess.Popen(command, start_new_session=True)
    try:
        while server.poll() is None and not stopped.wait(POLL):
            pass
    finally:
        _end(server)
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + signals[0] if signals else server.returncode


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the processes of a server's session: asked first, then at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
