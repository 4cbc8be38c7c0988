"""What logging to MLflow costs a study: wall time and CPU seconds with and without, in pairs.

    python benchmarks/tracking_cost.py                      # the default study, five pairs
    python benchmarks/tracking_cost.py --pairs 3 -- --set training.steps=300 --seeds 2

Each pair runs the study twice in fresh folders, with a fresh store and with --no-mlflow, in an
order that alternates. CPU seconds are those of the command itself, which logs, and not of its
workers. The words after `--` are those of `testbed study`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Wall time and CPU time of a command, in seconds."""

    wall: float
    cpu: float


def cost(words: list[str], folder: Path) -> Cost:
    """Runs a command of testbed in a folder.

    Raises:
        SystemExit: the command failed.
    """
    before, start = os.times(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *words], cwd=folder, capture_output=True, text=True
    )
    wall, after = time.monotonic() - start, os.times()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    cpu = after.children_user + after.children_system
    return Cost(wall, cpu - before.children_user - before.children_system)


def pair(words: list[str], with_first: bool) -> tuple[Cost, Cost]:
    """The costs with MLflow and without."""
    found = {}
    for logged in (True, False) if with_first else (False, True):
        folder = Path(tempfile.mkdtemp(prefix="tracking-"))
        try:
            more = [] if logged else ["--no-mlflow"]
            found[logged] = cost(["study", *words, *more], folder)
        finally:
            shutil.rmtree(folder)
    return found[True], found[False]


def main() -> None:
    """Prints each pair, and the medians of the differences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("words", nargs="*", default=["default"])
    options = parser.parse_args()
    pairs = []
    for i in range(options.pairs):
        one = pair(options.words or ["default"], i % 2 == 0)
        pairs.append(one)
        logged, plain = one
        print(
            f"pair {i + 1}: wall {logged.wall:.1f} s with, {plain.wall:.1f} s without "
            f"({logged.wall / plain.wall - 1:+.1%}); CPU {logged.cpu:.1f} s and {plain.cpu:.1f} s",
            flush=True,
        )
    wall = statistics.median(a.wall / b.wall - 1 for a, b in pairs)
    cpu = statistics.median(a.cpu - b.cpu for a, b in pairs)
    print(f"median: wall {wall:+.1%}, CPU {cpu:+.1f} s")


if __name__ == "__main__":
    main()
