"""A small study for every executor, and Slurm's commands as stand-ins on PATH."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

from testbed.report import comparisons, reading, tables
from testbed.trial.study_folder import StudyFolder

STUDY = """
plugins = ["paced.py"]
[study]
name = "small"
[base]
dataset = { name = "mixture", dim = 2, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 250, batch = 8, points = 5 }
evaluation = { levels = 3, draws = 16, samples = 16, steps = 2, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["v"]
[[cases]]
name = "slow"
loss = "slow"
[[cases]]
name = "stuck"
loss = "stuck"
[executor.slurm]
partition = "short"
minutes = 10
warning = 480
poll = 0.2
[executor.ray]
address = "local"
"""
PLUGIN = '''
"""l2, which takes its time in a job of Slurm's that has a time limit to meet."""
import os
import time
from pathlib import Path

import testbed

calls = 0


def pace(seconds, after):
    global calls
    calls += 1
    if Path(__file__).with_name("paced").exists():
        time.sleep(0.02)
    first_run = os.environ.get("SLURM_RESTART_COUNT") == "0"
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if first_run and task is not None and calls > after:
        job = os.environ["SLURM_ARRAY_JOB_ID"] + "_" + task
        clock = Path(os.environ["SLURM_STAND_IN"]) / "clock" / job
        clock.parent.mkdir(exist_ok=True)
        clock.touch()
        time.sleep(seconds)


def slow(prediction, target):
    pace(0.02, 0)
    return (prediction - target) ** 2


def stuck(prediction, target):
    pace(60, 60)
    return (prediction - target) ** 2


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("slow", slow, elicits_mean=True)
    yield testbed.Loss("stuck", stuck, elicits_mean=True)
'''
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")


def put_study(folder: Path) -> tuple[str, ...]:
    """Writes the study into a folder; the words that run it one by one."""
    (folder / "small.toml").write_text(STUDY)
    (folder / "paced.py").write_text(PLUGIN)
    return "study", "small.toml", "--engine", "sequential", "--no-mlflow"


def stand_ins(folder: Path, *left_out: str) -> dict[str, str]:
    """Makes Slurm's commands in a folder; the environment in which they are found."""
    commands = folder / "commands"
    commands.mkdir()
    script = ROOT / "tests" / "fixtures" / "slurm.py"
    for name in COMMANDS:
        if name not in left_out:
            (commands / name).write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -SE "{script}" {name} "$@"\n'
            )
            (commands / name).chmod(0o755)
    # This machine's own Slurm, if it has one, must not take its place.
    system = [at for at in os.environ["PATH"].split(":") if not (Path(at) / "sbatch").exists()]
    shell = folder / "shell"
    shell.mkdir()
    for name in ("bash", "sh"):
        (shell / name).symlink_to(f"/bin/{name}")
    path = ":".join([str(commands), str(shell), *system])
    return {"PATH": path, "SLURM_STAND_IN": str(folder)}


@contextlib.contextmanager
def losing_a_node(folder: Path) -> Iterator[str]:
    """The address of a Ray of two nodes, one of which is killed while it trains.

    Args:
        folder: where the study runs; its trials take their time until the node is killed.
    """
    from ray.cluster_utils import Cluster

    own = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    (folder / "paced").touch()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        other = cluster.add_node(num_cpus=1)
    killed = threading.Event()

    def kill() -> None:
        curves: list[Path] = []
        while len(curves) < 2 and not killed.is_set():
            curves = [at for at in folder.glob("runs/*/trials/*/rows.jsonl") if at.stat().st_size]
            time.sleep(0.02)
        if len(curves) == 2:  # each node has a trial
            cluster.remove_node(other, allow_graceful=False)
            (folder / "paced").unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield cluster.address
    finally:
        killed.set()
        killer.join()
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)


def results(folder: Path) -> dict[str, bytes]:
    """The tables of a study's report, and the weights, curves and samples of its trials."""
    found = reading.read(folder)
    made = tables.make(found, comparisons.make(found))
    kept = {name: table.to_csv(index=False).encode() for name, table in made.items()}
    for trial in StudyFolder.at(folder).trials():
        for name in ("weights.safetensors", "samples.safetensors", "levels.csv"):
            kept[f"{trial.name}/{name}"] = (trial.path / name).read_bytes()
        rows = trial.rows()
        losses = [(row["step"], row["loss"]) for row in rows]
        kept[f"{trial.name}/curve"] = repr(losses).encode()
    return kept
