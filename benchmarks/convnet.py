"""What convolutions are worth on digits: python benchmarks/convnet.py [--seconds 55] [--out FILE].

Trains `convnet` and the default `mlp`, each parameterization by its own recipe, for equal CPU
seconds of one thread. Prints loss_vs_wiener of both and their ratio: 0.9 or less is wanted in every
one. `--rates` are the learning rates of `mlp`, of which the better counts, and of `convnet`.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from trials import REGISTRY, data

import testbed
from testbed.diffusion.inputs import noise_kind
from testbed.metrics import denoising
from testbed.training.curve import Window
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer, TrainingJob
from testbed.trial import recipes

SIX = ("eps", "v", "edm", "x0", "score", "flow")
CPU = torch.device("cpu")


def training_job(name: str, network: str, seed: int, rate: float) -> TrainingJob:
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
    return TrainingJob(
        denoiser, objective, Training(steps=10**6, batch=128, learning_rate=rate), seed
    )


def trained(job: TrainingJob, stops: list[float]) -> list[tuple[float, int, float]]:
    """(CPU seconds, steps, loss_vs_wiener of the averaged weights) at each stop."""
    loop, found = Trainer.of(job, data(), CPU), []
    table = job.objective.table
    low = 0.002 if table is None else max(0.002, float(table.sigmas[0]))
    pairs = denoising.held_out_pairs(data(), denoising.log_spaced(low, 80.0, 16), 360)
    window, spent = Window.empty(1, loop.BINS, CPU), 0.0
    for stop in stops:
        while spent < stop:
            start = time.process_time()
            loop._block(window, loop.step + BLOCK)
            spent += time.process_time() - start
        average = copy.deepcopy(loop.denoiser).eval()
        with torch.no_grad():
            parts = loop.weights.views(loop.ema[0])
            for weights, part in zip(average.parameters(), parts, strict=True):
                weights.copy_(part)
        table_of_levels = denoising.per_level(average, pairs, CPU)
        ratio = denoising.summary(table_of_levels, data().train[0].numel())["loss_vs_wiener"].value
        found.append((spent, loop.step, ratio))
    return found


def main() -> None:
    """Prints a row for each parameterization and stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 20.0, 40.0, 55.0])
    parser.add_argument("--names", nargs="+", default=SIX)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs=3, default=[1e-3, 5e-3, 5e-3])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    ways = list(zip(("mlp", "mlp", "convnet"), asked.rates, strict=True))
    for name in asked.names:
        every = [
            trained(training_job(name, network, asked.seed, rate), asked.seconds)
            for network, rate in ways
        ]
        for stop, found in zip(asked.seconds, zip(*every, strict=True), strict=True):
            *mlps, convnet = [ratio for _, _, ratio in found]
            row = {
                "parameterization": name,
                "seconds": stop,
                "steps": [steps for _, steps, _ in found],
                "loss_vs_wiener": [ratio for _, _, ratio in found],
                "ratio": convnet / min(mlps),
            }
            rows.append(row)
            said = "  ".join(
                f"{network} ({rate:g}) {ratio:.4f} in {steps} steps"
                for (network, rate), (_, steps, ratio) in zip(ways, found, strict=True)
            )
            print(f"{name:6} {stop:5.1f} s  {said}  ratio {row['ratio']:.3f}", flush=True)
    if asked.out is not None:
        asked.out.write_text(
            json.dumps({"torch": torch.__version__, "ways": ways, "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
