"""A server in the foreground, which ends when the command that started it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

PATIENCE = 10.0
"""Seconds that a server is given to end of itself."""
POLL = 0.2
GUARD = f"""
import os, signal, sys, time
sys.stdin.read()
try:
    for number in [signal.SIGTERM, *[0] * {round(PATIENCE / POLL)}, signal.SIGKILL]:
        os.killpg(int(sys.argv[1]), number)
        time.sleep({POLL})
except ProcessLookupError:
    pass
"""
"""Ends the processes of a session when its input is closed, as the end of who holds it does."""


def serve(command: Sequence[str]) -> int:
    """Runs a server until it ends, or until SIGINT or SIGTERM ends it and its own processes.

    Where SIGKILL ends this process, a guard, a process of its own, ends those of the server.

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
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", GUARD, str(server.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while server.poll() is None and not stopped.wait(POLL):
            pass
    finally:
        guard.kill()
        guard.communicate()
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
