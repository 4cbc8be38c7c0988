"""Ten drivers that send trials to MLflow as a study does, but for the training."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from testbed.registry import default_registry
from testbed.study import plan, runner, session, study_file, tracking
from testbed.trial.study_folder import StudyFolder

STUDY = """
[study]
name = "shared"
[base]
dataset = { name = "mixture", dim = 2, n = 64, test = 32 }
network = { name = "mlp", width = 4, depth = 1 }
training = { steps = 60, batch = 4, points = 6 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 3, metrics = ["energy"] }
seeds = 2
[grid]
parameterization = ["eps", "v"]
"""
FILE = "shared.toml"
TRIALS, ROWS, STEPS = 4, 6, 60
METRICS = {"energy": 0.25}
AGAIN = 1.0
"""Seconds after which a driver looks for the server again."""
PATIENCE = 90.0
BETWEEN = (0.0, 0.3)
"""The least and the most seconds between two rows."""


@dataclass(frozen=True)
class Driver:
    """A process with a study's folder of its own; all studies have one name.

    Args:
        folder: the study's.
        process: runs until MLflow has everything.
    """

    folder: Path
    process: BaseProcess


def start(root: Path, addresses: Sequence[str]) -> list[Driver]:
    """A driver for each address."""
    (root / FILE).write_text(STUDY)
    tracking.AGAIN = AGAIN
    processes = multiprocessing.get_context("fork")  # all that is imported is imported once
    drivers = []
    for seed, address in enumerate(addresses):
        folder = root / f"study-{seed}"
        words = (root, folder, seed, address)
        drivers.append(Driver(folder, processes.Process(target=_drive, args=words, daemon=True)))
    for one in drivers:
        one.process.start()
    return drivers


def said(driver: Driver) -> str:
    """What a driver has told its user."""
    file = driver.folder.with_suffix(".log")
    return file.read_text() if file.is_file() else ""


def folders(root: Path) -> list[Path]:
    """Those of the studies."""
    return sorted(at for at in root.glob("study-*") if at.is_dir())


def sync(
    root: Path, folder: Path, address: str, say: Callable[[str], None] = lambda text: None
) -> bool:
    """As `testbed sync` does it; whether MLflow answered."""
    registry = default_registry()
    made = plan.make(study_file.read(root / FILE), registry, folder, "cpu")
    return session.sync(made, registry, address, say)


def copy(folder: Path, to: Path) -> Path:
    """Another study, with the same trials, of which MLflow knows nothing."""
    shutil.copytree(folder, to)
    (to / "mlflow.json").unlink()
    made = StudyFolder.at(to)
    made.put_json("study.json", made.json("study.json") | {"key": uuid.uuid4().hex})
    return to


def _drive(root: Path, folder: Path, seed: int, address: str) -> None:
    with folder.with_suffix(".log").open("w", buffering=1) as log:
        try:
            _send(root, folder, random.Random(seed), address, lambda text: print(text, file=log))
        except BaseException:
            log.write(traceback.format_exc())
            raise


def _send(
    root: Path, folder: Path, draw: random.Random, address: str, say: Callable[[str], None]
) -> None:
    """Row by row and trial by trial, in an order of its own; then, if need be, by sync."""
    registry = default_registry()
    made = plan.make(study_file.read(root / FILE), registry, folder, "cpu")
    with made.files.own():
        runner.describe(made, registry)
        tracker = tracking.Tracker(made, address, say, "later")
        for trial in draw.sample(made.trials, len(made.trials)):
            at = made.files.trial(trial.id)
            for number in range(1, ROWS + 1):
                row = {"step": number * STEPS // ROWS, "loss": draw.random(), "seconds": 0.01}
                row |= {"gradient_norm": draw.random(), "gradient_norm_cv": 0.5}
                at.append_row({**row, "time": time.time()})
                tracker.update(trial)
                time.sleep(draw.uniform(*BETWEEN))
            ended = {"status": "finished", "metrics": METRICS, "ended": time.time()}
            at.put_json("result.json", ended)
            trial.state = "finished"
            tracker.end(trial, "finished")
        tracker.close("FINISHED", {})
    end, whole = time.monotonic() + PATIENCE, not tracker.away
    while not whole:
        if time.monotonic() > end:
            raise TimeoutError("MLflow does not come back")
        time.sleep(AGAIN)
        whole = sync(root, folder, address, say)
