"""`nox -s bench`: what training costs here, as ratios measured side by side in one run.

python benchmarks/bench.py [NAME ...] [--rounds N] [--out FILE.json] [--against FILE.json]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hand import loop as hand_loop
from rich.console import Console
from rich.table import Table
from side import Figure, interleaved, machine, ratios
from trials import (
    data,
    operations,
    run_blocks,
    trainer,
    training_job,
    training_jobs,
)
from worker_pool import WorkerPool

from testbed.oracles import Empirical
from testbed.training.batch import Batch
from testbed.training.trainer import BLOCK

CPU = torch.device("cpu")


def hand(rounds: int) -> Iterator[Figure]:
    """One trial of EDM against a loop that is written for it alone."""
    one = trainer(training_job("edm", 0, 64, 64))
    other = training_job("edm", 0, 64, 64)
    found = interleaved(
        {"ours": lambda: run_blocks(one, 4), "hand": lambda: hand_loop(other, 4 * BLOCK)}, rounds
    )
    yield Figure(
        "hand", "our step / a hand-written one", ratios(found["ours"], found["hand"]), -1.03,
        {"ms a step": 1000 * min(found["ours"]) / 4 / BLOCK},
    )  # fmt: skip


def azula(rounds: int) -> Iterator[Figure]:
    """One trial of EDM against azula's KarrasDenoiser.loss with the same network and batch."""
    try:
        from azula.denoise import KarrasDenoiser
        from azula.noise import VESchedule
    except ImportError as problem:
        yield Figure("azula", f"not measured: {problem}", [float("nan")])
        return
    ours = trainer(training_job("edm", 0, 64, 64))
    other = training_job("edm", 0, 64, 64)
    network, training = other.denoiser.network, other.training
    assert isinstance(network, torch.nn.Module)
    denoiser = KarrasDenoiser(_Takes(network), VESchedule(0.002, 80.0))
    parameters = list(network.parameters())
    averages = [p.detach().clone() for p in parameters]
    adam = torch.optim.Adam(parameters, lr=training.learning_rate, betas=training.betas, fused=True)

    def theirs() -> None:
        for _ in range(4 * BLOCK):
            x0 = data().train[torch.randint(len(data().train), (training.batch,))]
            loss = denoiser.loss(x0, torch.rand(training.batch))
            adam.zero_grad()
            loss.backward()
            adam.step()
            torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - training.ema)

    found = interleaved({"ours": lambda: run_blocks(ours, 4), "azula": theirs}, rounds)
    yield Figure(
        "azula", "our step / azula's", ratios(found["ours"], found["azula"]), -0.90,
        {"ms a step": 1000 * min(found["azula"]) / 4 / BLOCK},
    )  # fmt: skip


class _Takes(torch.nn.Module):
    """Our network as azula calls it."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(x, t, None)
        return found


def together(
    name: str, trials: int, width: int, batch: int, wanted: float, rounds: int
) -> Iterator[Figure]:
    """Many trials as one computation against one after another, on all cores."""
    cores = os.cpu_count() or 1
    alone = [trainer(one) for one in training_jobs(5, width, batch)]

    def one_by_one(threads: int) -> None:
        torch.set_num_threads(threads)
        for loop in alone:
            run_blocks(loop, 1)
        torch.set_num_threads(1)

    with contextlib.ExitStack() as stack:
        pools = {
            f"{engine}, {workers} x 1 thread": stack.enter_context(
                WorkerPool(engine, workers, trials, width, batch)
            )
            for engine, workers in (("batched", cores), ("compiled", cores), ("sequential", cores))
        }
        works: dict[str, Callable[[], Any]] = {
            f"sequential, {threads} threads": functools.partial(one_by_one, threads)
            for threads in dict.fromkeys((1, cores))
        }
        works |= {key: functools.partial(pool.run, 1) for key, pool in pools.items()}
        works["matmul"] = functools.partial(_matmul, trials, width, batch)
        found = interleaved(works, rounds)
    # Milliseconds of one step of one trial.
    counts = {key: 5 if "threads" in key else trials for key in works}
    cost = {key: [1000 * s / BLOCK / counts[key] for s in found[key]] for key in works}
    middle = {key: sorted(values)[len(values) // 2] for key, values in cost.items()}
    base = min((key for key in cost if "threads" in key), key=lambda key: middle[key])
    best = min((key for key in cost if key.startswith(("batched", "compiled"))), key=middle.get)  # type: ignore[arg-type]
    facts = {f"ms, {key}": value for key, value in middle.items() if key != "matmul"}
    yield Figure(
        name, f"{base} / {best}: {trials} trials, width {width}, batch {batch}",
        ratios(cost[base], cost[best]), wanted, facts,
    )  # fmt: skip
    for key in pools:
        if key.startswith("batched") and key != best:
            yield Figure(name, f"{base} / {key}", ratios(cost[base], cost[key]), None)
    workers = f"sequential, {cores} x 1 thread"
    rest = (1.5, 0.6) if name == "batch128" else (None, None)
    yield Figure(name, f"{workers} / {best}", ratios(cost[workers], cost[best]), rest[0])
    yield Figure(
        name, "share of this machine's batched matmul rate",
        ratios(cost["matmul"], cost[best]), rest[1],
        {"GFLOP/s": operations(width, batch) / middle[best] / 1e6},
    )  # fmt: skip


@functools.cache
def _operands(trials: int, width: int, batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(trials, batch, width), torch.randn(trials, width, width)


def _matmul(trials: int, width: int, batch: int) -> None:
    """As many operations as a block of steps, by torch.bmm on all threads."""
    x, w = _operands(trials, width, batch)
    count = round(operations(width, batch) * BLOCK / (2 * batch * width * width))
    torch.set_num_threads(os.cpu_count() or 1)
    for _ in range(count):
        torch.bmm(x, w)
    torch.set_num_threads(1)


def flat(rounds: int) -> Iterator[Figure]:
    """The cost of a trial's step must not grow with the number of trials or steps."""
    loops = {n: Batch(training_jobs(n, 64, 64), data(), CPU) for n in (20, 100)}
    found = interleaved({str(n): functools.partial(run_blocks, loops[n], 1) for n in loops}, rounds)
    per = {n: [s / n for s in found[str(n)]] for n in loops}
    yield Figure("flat", "a trial's step among 100 / among 20", ratios(per[100], per[20]), -1.10)
    early, late = (trainer(training_job("edm", 0, 64, 64)) for _ in range(2))
    late.step = 10**5
    found = interleaved(
        {"early": lambda: run_blocks(early, 2), "late": lambda: run_blocks(late, 2)}, rounds
    )
    yield Figure(
        "flat", "a step from 1e5 on / from 0 on", ratios(found["late"], found["early"]), -1.10
    )
    one = trainer(training_job("edm", 0, 16, 16, 20000))
    rows = iter(one)
    next(rows)
    before = _memory()
    for _ in rows:
        pass
    yield Figure("flat", "memory after 2e4 steps / after 2e3", [_memory() / before], -1.05)


def _memory() -> float:
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def oracle(rounds: int) -> Iterator[Figure]:
    """E[x0|x] of 10,000 x 784 data at 256 queries against two matrix products of that size."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(10000, 784, generator=generator)
    exact, x = Empirical(y), torch.randn(256, 784, generator=generator)
    wide, queries = y.double(), x.double()
    sigma = torch.logspace(-2, 1, 256)

    def products() -> None:
        weights = queries @ wide.T
        weights @ wide

    before = _memory()
    exact.denoise(x, sigma)
    grown = (_memory() - before) / 1024
    found = interleaved({"oracle": lambda: exact.denoise(x, sigma), "products": products}, rounds)
    yield Figure(
        "oracle", "two float64 matrix products / the empirical denoiser",
        ratios(found["products"], found["oracle"]), 0.60, {"MiB grown": grown},
    )  # fmt: skip


def start(rounds: int) -> Iterator[Figure]:
    """From the command to the first training step: the first line of a trial's curve."""
    taken = []
    for _ in range(max(3, rounds // 3)):
        with tempfile.TemporaryDirectory() as folder:
            words = ["--set", "training.steps=50", "--no-mlflow", "--only", "edm,mixture"]
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "testbed", "study", "default", *words],
                cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )  # fmt: skip
            while not list(Path(folder).glob("runs/*/trials/*/rows.jsonl")):
                assert process.poll() is None, "the study ended without training"
                time.sleep(0.01)
            taken.append(time.perf_counter() - begun)
            process.kill()
            process.wait()
    yield Figure(
        "start", "seconds from `testbed study` to training / 4 s", [t / 4 for t in taken], -1.0
    )


def training(name: str, rounds: int, device: torch.device) -> Iterator[Figure]:
    """Training steps of an image network against the loop that a user of diffusers writes."""
    import image_training  # diffusers, whose import takes seconds and memory

    return image_training.training(name, rounds, device)


def sampling(name: str, rounds: int, device: torch.device) -> Iterator[Figure]:
    """Samples of an image network against a pipeline of diffusers."""
    import image_sampling

    return image_sampling.sampling(name, rounds, device)


def jax(trials: int, width: int, batch: int, rounds: int, device: torch.device) -> Iterator[Figure]:
    """Both engines of batches against JAX's vmap of the same step."""
    import against_jax

    return against_jax.training(trials, width, batch, rounds, device)


def jax_start(rounds: int) -> Iterator[Figure]:
    """How long a compiled step takes to start, ours and JAX's."""
    import against_jax

    return against_jax.start(rounds)


def jax_products(rounds: int) -> Iterator[Figure]:
    """Batched products of matrices, torch's and XLA's."""
    import against_jax

    return against_jax.products(rounds)


FIGURES: dict[str, Callable[[int], Iterator[Figure]]] = {
    "hand": hand,
    "azula": azula,
    "batch64": functools.partial(together, "batch64", 20, 64, 64, 8.0),
    "batch128": functools.partial(together, "batch128", 20, 128, 256, 3.5),
    "batch100": functools.partial(together, "batch100", 100, 64, 64, 13.0),
    "flat": flat,
    "oracle": oracle,
    "start": start,
    "jax_start": jax_start,
    "jax_products": jax_products,
}
ON_A_DEVICE: dict[str, Callable[[int, torch.device], Iterator[Figure]]] = {
    "jax64": functools.partial(jax, 20, 64, 64),
    "jax100": functools.partial(jax, 100, 64, 64),
    "jax128": functools.partial(jax, 20, 128, 256),
    "train_unet": functools.partial(training, "unet"),
    "train_dit": functools.partial(training, "dit"),
    "sample_unet": functools.partial(sampling, "unet"),
    "sample_dit": functools.partial(sampling, "dit"),
}


def shown(figures: list[Figure], before: dict[str, float]) -> Table:
    """The table of a run, beside an earlier one's."""
    table = Table("figure", "ratio", "95 %", "wanted", "reached", box=None, pad_edge=False)
    if before:
        table.add_column("before")
    for one in figures:
        low, high = one.interval
        wanted = "" if one.wanted is None else f"{'≥' if one.wanted > 0 else '≤'} {abs(one.wanted)}"
        reached = {True: "yes", False: "[red]no[/]", None: ""}[one.reached]
        row = [
            f"{one.name}: {one.what}",
            f"{one.ratio:.3g}",
            f"{low:.3g} to {high:.3g}",
            wanted,
            reached,
        ]
        if before:
            row.append(f"{before[one.what]:.3g}" if one.what in before else "")
        table.add_row(*row)
        for name, value in one.facts.items():
            table.add_row(f"    {name}", f"{value:.3g}", "", "", "", *([""] if before else []))
    return table


def main() -> None:
    """Measures, prints and keeps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = [*FIGURES, *ON_A_DEVICE]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--device", default="cpu", type=torch.device,
        help=f"of {', '.join(ON_A_DEVICE)}, such as cuda; the others are measured on the CPU",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--against", type=Path, help="an earlier --out to show beside them")
    given = parser.parse_args()
    unknown = set(given.names) - set(names)
    if unknown:
        parser.error(f"no figure {', '.join(sorted(unknown))}: {', '.join(names)} are there.")
    torch.set_num_threads(1)
    console = Console()
    figures: list[Figure] = []
    described = machine(given.device)
    console.print(", ".join(f"{key} {value}" for key, value in described.items()))
    works: dict[str, Callable[[], Iterator[Figure]]] = {
        **{name: functools.partial(one, given.rounds) for name, one in FIGURES.items()},
        **{
            name: functools.partial(one, given.rounds, given.device)
            for name, one in ON_A_DEVICE.items()
        },
    }
    for name in given.names or works:
        with console.status(f"measuring {name}"):
            start = time.perf_counter()
            figures += works[name]()
        console.print(f"{name}: measured in {time.perf_counter() - start:.0f} s")
    before = {}
    if given.against:
        earlier = json.loads(given.against.read_text())
        before = {one["what"]: one["ratio"] for one in earlier["figures"]}
    console.print(shown(figures, before))
    if given.out:
        record = {
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "machine": described,
            "rounds": given.rounds,
            "figures": [
                {
                    **asdict(one),
                    "ratio": one.ratio,
                    "interval": one.interval,
                    "reached": one.reached,
                }
                for one in figures
            ],
        }
        given.out.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"Kept in {given.out}")


if __name__ == "__main__":
    main()
