"""Does a batch pay for networks of images? `python benchmarks/batching.py [--out FILE]`.

Milliseconds of one training step of one trial, one thread, on digits: trials one by one, and as one
batch, in turn; the least of the rounds. Beside them stands what `testbed plan` chooses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from convnet import CPU, training_job
from trials import data

from testbed.registry import default_registry
from testbed.study import engines, plan, study_file
from testbed.training.batch import Batch
from testbed.training.curve import Window
from testbed.training.trainer import BLOCK, Loop, Trainer
from testbed.trial.worker import device_title

NETWORKS = ("mlp", "convnet", "unet", "dit")
STUDY = """
[study]
name = "batching"
[base]
dataset = "digits"
network = "{network}"
training = {{ steps = 200, batch = {batch} }}
seeds = {trials}
[arms]
published = {{}}
[grid]
parameterization = ["edm"]
"""


def milliseconds(loop: Loop, steps: int) -> float:
    """CPU time of a step of one trial, over `steps` of them."""
    window = Window.empty(len(loop.diverged), loop.BINS, loop.device)
    start = time.process_time()
    for _ in range(steps // BLOCK):
        loop._block(window, loop.step + BLOCK)
    return 1000 * (time.process_time() - start) / steps / len(loop.diverged)


def row(network: str, trials: int, batch: int, rounds: int) -> dict[str, object]:
    """The times of both, and the engine that a study of such trials is trained by."""
    jobs = [training_job("edm", network, seed, 1e-3, batch) for seed in range(trials + 1)]
    one, many = Trainer.of(jobs[0], data(), CPU), Batch(jobs[1:], data(), CPU)
    milliseconds(many, 2 * BLOCK)  # traced in the second
    found = [(milliseconds(one, BLOCK), milliseconds(many, BLOCK)) for _ in range(rounds)]
    sequential, batched = (min(times) for times in zip(*found, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "batching.toml")
        file.write_text(STUDY.format(network=network, batch=batch, trials=trials))
        made = plan.make(study_file.read(file), default_registry(), Path(folder, "runs"), "cpu")
        chosen = engines.choose(made, default_registry(), slots=1)
    return {
        "network": network,
        "trials": trials,
        "batch": batch,
        "sequential_ms": sequential,
        "batched_ms": batched,
        "rounds": found,
        "engine": chosen.name,
        "engine_measured_ms": chosen.measured,
    }


def main() -> None:
    """Prints a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for network in given.networks:
        rows.append(found := row(network, given.trials, given.batch, given.rounds))
        print(
            f"{network:8} one by one {found['sequential_ms']:6.2f} ms  "
            f"as one {found['batched_ms']:6.2f} ms  engine: {found['engine']}",
            flush=True,
        )
        if given.out is not None:
            described = {"device": device_title(CPU), "torch": torch.__version__}
            given.out.write_text(json.dumps(described | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
