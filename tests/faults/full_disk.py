"""A limit on the size of files, and a small disk that is full: what is stored stays whole."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

from faults import checker, kills
from faults.subject import SEQUENTIAL, Ended, command, lay_out, start
from faults.verdict import Scenario, Verdict

from testbed.trial.folders import Folder

SMALLEST = (20_000, 40_000)
"""Bytes of the largest file that may be written: less than a checkpoint has."""
SIZES = ("96k", "192k", "320k")
"""Of a disk; a finished study has about a megabyte."""


def told(ended: Ended, found: Verdict, reason: str) -> None:
    """It ended with one message: which file, why, and what to do."""
    found.cases += 1
    found.hold(ended.code == 2, f"exit code {ended.code}: {ended.said[-1500:]}")
    found.hold("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
    found.hold(ended.err.count("testbed: ") == 1 and reason in ended.err, f"said: {ended.err}")
    found.hold("the same command goes on" in ended.err, f"no advice: {ended.err}")


def whole(at: Path, found: Verdict) -> None:
    """No trial is called failed, and no file is half written."""
    for file in at.glob("trials/*/*.json"):
        found.hold(
            bool(Folder.at(file.parent).json_or_empty(file.name)), f"{file.name} is half written"
        )
    failed = [file for file in at.glob("trials/*/error.txt") if file.stat().st_size]
    found.hold(not failed, "a trial is called failed")
    found.hold(not list(at.rglob("*.tmp")), "temporary files are left")


def limited(folder: Path) -> Verdict:
    """No file may grow beyond a limit, twice; then without."""
    lay_out(folder)
    found, at = Verdict(), folder / "runs" / "small"
    words = command((*SEQUENTIAL, "--no-mlflow"))
    for limit in SMALLEST:

        def before(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        told(start(folder, *words, before=before).wait(), found, "File too large")
        whole(at, found)
    kills.clean(start(folder, *words).wait(), found)
    found.problems += checker.differences(at, kills.reference("sequential")) + checker.strays(at)
    return found


def without_mlflow(folder: Path) -> Verdict:
    """A limit that MLflow's store exceeds: the study goes on, and sync sends it later."""
    lay_out(folder)
    found = Verdict()

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))

    ended = start(folder, *command(SEQUENTIAL), before=before).wait()
    found.hold(ended.code == 0, f"exit code {ended.code}: {ended.said[-1500:]}")
    found.hold(ended.out.count("does not answer") == 1, f"said: {ended.said[-1500:]}")
    found.hold("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
    ended = start(folder, *command((), "sync")).wait()
    kills.clean(ended, found)
    kills.checked(folder, "sequential", found)
    return found


def mounted(folder: Path) -> Verdict:
    """A disk in memory that is full at one size after the other; then one with room."""
    lay_out(folder)
    found, disk = Verdict(), folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZES[0]}", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        found.skipped = "only root may mount a disk"
        return found
    try:
        words = command((*SEQUENTIAL, "--no-mlflow", "--out", str(disk / "small")))
        for size in SIZES:
            subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
            told(start(folder, *words).wait(), found, "No space left on device")
            whole(disk / "small", found)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        kills.clean(start(folder, *words).wait(), found)
        found.problems += checker.differences(disk / "small", kills.reference("sequential"))
        found.problems += checker.strays(disk / "small")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return found


SCENARIOS: dict[str, Scenario] = {
    "full disk: a limit on files": limited,
    "full disk: MLflow's store": without_mlflow,
    "full disk: a small disk": mounted,
}
