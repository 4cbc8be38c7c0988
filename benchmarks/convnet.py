"""What convolutions are worth on digits: python benchmarks/convnet.py [--seeds 1 2] [--out FILE].

Trains `convnet` and the default `mlp`, each parameterization by its own recipe, for equal CPU
seconds of one thread. Prints loss_vs_wiener of both and their ratio: 0.9 or less is wanted in every
one. `--rates` are the learning rates of `mlp`, of which the better counts, and of `convnet`. The
rows that FILE has of other parameterizations, seeds and seconds stay in it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from trials import REGISTRY, data

import testbed
from testbed.diffusion.inputs import noise_kind
from testbed.metrics import denoising
from testbed.training.curve import Window
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer, TrainingJob
from testbed.trial import recipes
from testbed.trial.worker import device_title

SIX = ("eps", "v", "edm", "x0", "score", "flow")
CPU = torch.device("cpu")
Row = dict[str, Any]


def training_job(name: str, network: str, seed: int, rate: float, batch: int = 128) -> TrainingJob:
    """A trial by the parameterization's own recipe, without an end."""
    p = REGISTRY.parameterization(name)
    recipe = REGISTRY.recipe_of(p)
    assert recipe is not None
    objective = recipes.published(p, REGISTRY, data().sigma_data)
    kind = noise_kind(recipe.c_noise, p)
    module = REGISTRY.network(network)(data().shape, 0, seed, noise_kind=kind)
    denoiser = testbed.Denoiser(
        module,
        objective.parameterization,
        data().sigma_data,
        c_in=recipe.c_in,
        c_noise=recipe.c_noise,
        table=objective.table,
    )
    training = Training(steps=10**6, batch=batch, learning_rate=rate)
    return TrainingJob(denoiser, objective, training, seed)


class Stop(NamedTuple):
    """A training at a stop."""

    seconds: float
    """of CPU time, by then"""
    steps: int
    loss_vs_wiener: float
    """of the averaged weights"""


def trained(job: TrainingJob, seconds: Sequence[float]) -> list[Stop]:
    """The training at each stop; measuring takes no part in the time."""
    loop, found = Trainer.of(job, data(), CPU), []
    table = job.objective.table
    low = 0.002 if table is None else max(0.002, float(table.sigmas[0]))
    pairs = denoising.held_out_pairs(data(), denoising.log_spaced(low, 80.0, 16), 360)
    window, spent = Window.empty(1, loop.BINS, CPU), 0.0
    for stop in seconds:
        while spent < stop:
            start = time.process_time()
            loop._block(window, loop.step + BLOCK)
            spent += time.process_time() - start
        average = copy.deepcopy(loop.denoiser).eval()
        with torch.no_grad():
            parts = loop.weights.views(loop.ema[0])
            for weights, part in zip(average.parameters(), parts, strict=True):
                weights.copy_(part)
        levels = denoising.per_level(average, pairs, CPU)
        ratio = denoising.summary(levels, data().train[0].numel())["loss_vs_wiener"].value
        found.append(Stop(spent, loop.step, ratio))
    return found


def rows(name: str, seed: int, seconds: Sequence[float], rates: Sequence[float]) -> list[Row]:
    """A row for each stop: both trainings of `mlp`, that of `convnet`, and the ratio."""
    networks = ("mlp", "mlp", "convnet")
    every = [
        trained(training_job(name, network, seed, rate), seconds)
        for network, rate in zip(networks, rates, strict=True)
    ]
    found = []
    for second, (*mlps, convnet) in zip(seconds, zip(*every, strict=True), strict=True):
        ratio = convnet.loss_vs_wiener / min(mlp.loss_vs_wiener for mlp in mlps)
        trainings = [
            {"network": network, "learning_rate": rate, **stop._asdict()}
            for network, rate, stop in zip(networks, rates, (*mlps, convnet), strict=True)
        ]
        labels = {"parameterization": name, "seed": seed, "budget": second}
        found.append({**labels, "ratio": ratio, "trainings": trainings})
    return found


def printed(row: Row) -> str:
    """A row as a line."""
    said = "  ".join(
        "{network} ({learning_rate:g}) {loss_vs_wiener:.4f} in {steps} steps".format(**one)
        for one in row["trainings"]
    )
    start = "{parameterization:6} seed {seed} {budget:5.1f} s".format(**row)
    return f"{start}  {said}  ratio {row['ratio']:.3f}"


def keep(new: Sequence[Row], file: Path) -> None:
    """Writes the rows, beside those of other parameterizations, seeds and budgets in the file."""

    def key(row: Row) -> tuple[Any, ...]:
        return row["parameterization"], row["seed"], row["budget"]

    old = json.loads(file.read_text())["rows"] if file.exists() else []
    kept = {key(row): row for row in (*old, *new)}
    described = {"device": device_title(CPU), "threads": 1, "torch": torch.__version__}
    every = [kept[one] for one in sorted(kept)]
    file.write_text(json.dumps(described | {"rows": every}, indent=1) + "\n")


def main() -> None:
    """Prints a row for each parameterization, seed and stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[20.0])
    parser.add_argument("--names", nargs="+", default=SIX)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs=3, default=[5e-3, 1e-2, 1e-2])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed, name in itertools.product(given.seeds, given.names):
        found = rows(name, seed, given.seconds, given.rates)
        print(*map(printed, found), sep="\n", flush=True)
        if given.out is not None:
            keep(found, given.out)


if __name__ == "__main__":
    main()
