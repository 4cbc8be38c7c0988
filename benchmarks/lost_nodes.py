"""A Ray of several local nodes that are killed at random moments, and the studies on it.

    python benchmarks/lost_nodes.py --kills 50

Studies run one after the other until as many nodes are killed; each killed node is replaced by a
new one. The results of every study are compared, file by file, with those of an undisturbed one:
weights, samples, levels and curves. The loss sleeps at every step, so that a trial takes seconds
and next to no CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from testbed.trial.study_folder import StudyFolder

NODES, TRIALS = 3, 6
PLUGIN = """
import time
from pathlib import Path
from typing import Any

import testbed


def paced(prediction, target):
    if Path(__file__).with_name("paced").exists():
        time.sleep(0.02)
    return (prediction - target) ** 2


@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("paced", paced, elicits_mean=True)
"""
STUDY = f"""
plugins = ["paced.py"]
[study]
name = "lost"
[base]
dataset = {{ name = "mixture", dim = 2, n = 256, test = 64 }}
network = {{ name = "mlp", width = 8, depth = 1 }}
training = {{ steps = 500, batch = 8, points = 10 }}
evaluation = {{ levels = 3, draws = 16, samples = 16, steps = 2, metrics = ["energy"] }}
seeds = {TRIALS // 2}
loss = "paced"
[grid]
parameterization = ["v", "edm"]
"""


def study(folder: Path, out: str, *words: str) -> subprocess.Popen[bytes]:
    """The command that runs the study."""
    command = [sys.executable, "-m", "testbed", "study", "lost.toml", "--no-mlflow"]
    command += ["--engine", "sequential", "--out", out, *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def results(folder: Path) -> dict[str, bytes | None]:
    """What the trials of a study leave, by trial and file."""
    found: dict[str, bytes | None] = {}
    for trial in StudyFolder.at(folder).trials():
        for name in ("weights.safetensors", "samples.safetensors", "levels.csv"):
            found[f"{trial.name}/{name}"] = trial.store.get(name)
        losses = [(row["step"], row["loss"]) for row in trial.rows()]
        found[f"{trial.name}/curve"] = repr(losses).encode()
    return found


def errors(folder: Path) -> list[str]:
    """What ended the trials that failed."""
    trials = StudyFolder.at(folder).trials()
    return [str(found["error"]) for one in trials if "error" in (found := one.result())]


def main() -> None:
    """Kills, compares and prints the tally as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8.0, help="between two kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=3600.0, help="seconds of the whole")
    asked = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    from ray.cluster_utils import Cluster

    chance, begun = random.Random(asked.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lost.toml").write_text(STUDY)
        (folder / "paced.py").write_text(PLUGIN)
        assert study(folder, "undisturbed", "--executor", "in-process").wait() == 0
        wanted = results(folder / "undisturbed")
        (folder / "paced").touch()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
        on_ray = ("--executor", "ray", "--set", f"executor.ray.address={cluster.address}")
        tally = {"kills": 0, "studies": 0, "equal": 0, "failed": 0, "trials": 0}
        while tally["kills"] < asked.kills and time.monotonic() - begun < asked.longest:
            driver = study(folder, f"run-{tally['studies']}", *on_ray)
            while driver.poll() is None and tally["kills"] < asked.kills:
                pause = time.monotonic() + chance.expovariate(1 / asked.seconds)
                while time.monotonic() < pause and driver.poll() is None:
                    time.sleep(0.05)
                if driver.poll() is None:
                    cluster.remove_node(nodes.pop(chance.randrange(NODES)), allow_graceful=False)
                    nodes.append(cluster.add_node(num_cpus=1))
                    tally["kills"] += 1
            code = driver.wait()
            found = results(folder / f"run-{tally['studies']}") if code == 0 else {}
            tally["studies"] += 1
            tally["trials"] += TRIALS
            tally["equal"] += found == wanted
            tally["failed"] += code != 0
            said: dict[str, Any] = {"seconds": round(time.monotonic() - begun)}
            if code != 0:
                said |= {"code": code, "errors": errors(folder / f"run-{tally['studies'] - 1}")}
            print(json.dumps(tally | said), flush=True)
        cluster.shutdown()


if __name__ == "__main__":
    main()
