"""What a worker's process uses, left in its trials' folders: processor, memory, accelerator.

The last line of it also says when the worker was last seen at work.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from testbed.trial.folders import TrialFolder
from testbed.trial.storage import Busy

SECONDS = 10.0
"""Between two samples."""
MEGABYTE = 1e6


@contextlib.contextmanager
def sampled(trials: Sequence[TrialFolder], device: torch.device) -> Iterator[None]:
    """Leaves a sample in the folder of every trial at once, and then every SECONDS."""
    ended = threading.Event()

    def keep() -> None:
        before = time.monotonic(), _processor_seconds()
        # The loss of its folder, or a disk that stays full, stops the trial itself, which says so.
        with contextlib.suppress(Busy):
            while True:
                with contextlib.suppress(OSError):
                    for trial in trials:
                        trial.append_sample(_sample(before, device))
                before = time.monotonic(), _processor_seconds()
                if ended.wait(SECONDS):
                    return

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _sample(before: tuple[float, float], device: torch.device) -> dict[str, float]:
    """The time, the processor's use since `before` in per cent of a core, and memory in MB."""
    passed = time.monotonic() - before[0]
    found = {"time": time.time(), "memory_mb": _memory() / MEGABYTE}
    if passed > SECONDS / 2:
        found["cpu_percent"] = 100 * (_processor_seconds() - before[1]) / passed
    if device.type == "cuda":
        found["accelerator_memory_mb"] = torch.cuda.memory_reserved(device) / MEGABYTE
    return found


def _processor_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _memory() -> float:
    """The bytes that the process has in memory; where the system does not tell, had at most."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(most if sys.platform == "darwin" else 1024 * most)
    return float(pages * resource.getpagesize())
