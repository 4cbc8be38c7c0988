"""Batches of trials against JAX's vmap of the same step, side by side in one process.

A block of steps of ours is what `Batch` does: the draws and the functions of sigma, the steps, the
losses by noise level. JAX's is `vmapped.Vmapped` with the same draws, made by the same code.
`python benchmarks/against_jax.py compiled 20 64 64` (or `jax`) says how long the first step takes
in this process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from side import Figure, clock_of, interleaved, ratios, wait
from trials import data, run_blocks, trainer, training_jobs

from testbed.training.batch import Batch
from testbed.training.trainer import BLOCK

WANTED = -0.95
FIRST_SECONDS, CACHED_SECONDS = 8.0, 2.0
"""How long a compiled step may take to start, without a cache and with it."""
STARTS = 3


@contextlib.contextmanager
def one_core(device: torch.device) -> Iterator[None]:
    """All threads of the process on one core, where the CPU trains: XLA keeps a pool of them."""
    if device.type != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), {min(before)})
        yield
    finally:
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), before)


def _block(loop: Any, device: torch.device) -> None:
    run_blocks(loop, 1)
    wait(device)


def training(
    trials: int, width: int, batch: int, rounds: int, device: torch.device
) -> Iterator[Figure]:
    """A trial's step by either engine over JAX's, with the draws and without them."""
    name, size = f"jax{trials if trials > 20 else width}", f"{trials} trials, {width}, {batch}"
    try:
        with one_core(device):
            import jax
            import vmapped
        if device.type != "cpu" and jax.default_backend() == "cpu":
            raise ImportError("this JAX has no GPU")
    except ImportError as problem:
        yield Figure(name, f"not measured: {problem}", [float("nan")])
        return

    def made(compiled: bool = False) -> Batch:
        return Batch(training_jobs(trials, width, batch), data(), device, compiled)

    source, ours = made(), made()
    theirs = vmapped.Vmapped(source)
    theirs.run(*source._inputs(BLOCK))
    _block(ours, device)
    mine, its = ours.weights.W.cpu(), theirs.weights()
    apart = float((mine - its).norm() / mine.norm())

    def jax_block() -> None:
        theirs.run(*_draws())

    def _draws() -> Any:
        source.step += BLOCK
        return source._inputs(source.step + BLOCK)

    alone = [trainer(one, str(device)) for one in training_jobs(5, width, batch)]

    def one_by_one() -> None:
        for one in alone:
            _block(one, device)

    works: dict[str, Callable[[], Any]] = {
        "JAX": jax_block,
        "compiled": functools.partial(_block, made(True), device),
        "batched": functools.partial(_block, ours, device),
        "one by one": one_by_one,
        "the draws": _draws,
    }
    with one_core(device):
        day = time.perf_counter(), time.process_time()
        found = interleaved(works, rounds, clock_of(device))
        busy = (time.process_time() - day[1]) / (time.perf_counter() - day[0])
    counts = {"one by one": len(alone)}
    cost = {
        key: [1000 * s / BLOCK / counts.get(key, trials) for s in values]
        for key, values in found.items()
    }
    facts = {f"ms, {key}": sorted(values)[rounds // 2] for key, values in cost.items()}
    facts |= {"apart": apart, "CPU s in a second": busy}
    for engine in ("compiled", "batched"):
        yield Figure(
            name, f"{engine} / JAX's vmap: {size}", ratios(cost[engine], cost["JAX"]), WANTED,
            facts if engine == "compiled" else {},
        )  # fmt: skip
        steps = {
            key: [whole - part for whole, part in zip(cost[key], cost["the draws"], strict=True)]
            for key in (engine, "JAX")
        }
        what = f"the same without the draws, {engine}: {size}"
        yield Figure(name, what, ratios(steps[engine], steps["JAX"]))
    what = f"one by one / compiled: {size}"
    yield Figure(name, what, ratios(cost["one by one"], cost["compiled"]))


def products(rounds: int) -> Iterator[Figure]:
    """The products of a layer, x W^T of 20 trials, by either library on one thread."""
    import jax
    import vmapped  # noqa: F401  its settings of XLA

    for width, batch in ((64, 64), (128, 256)):
        x, W = torch.randn(20, batch, width), torch.randn(20, width, width)
        out, turned = torch.empty_like(x), W.transpose(1, 2)
        its = [jax.numpy.asarray(one.numpy()) for one in (x, W)]
        product = jax.jit(lambda x, W: jax.numpy.einsum("kbi,koi->kbo", x, W))
        times = 2**26 // (batch * width * width)

        def ours(x: Any = x, W: Any = turned, out: Any = out, times: int = times) -> None:
            for _ in range(times):
                torch.bmm(x, W, out=out)

        def theirs(its: Any = its, product: Any = product, times: int = times) -> None:
            for _ in range(times):
                found = product(*its)
            jax.block_until_ready(found)

        with one_core(torch.device("cpu")):
            found = interleaved({"torch": ours, "XLA": theirs}, rounds, time.process_time)
        giga = 2e-9 * 20 * batch * width * width * times
        facts = {f"GFLOP/s, {key}": giga / min(several) for key, several in found.items()}
        yield Figure(
            "jax_products",
            f"torch.bmm / XLA's product: 20 x ({batch}, {width}) ({width}, {width})",
            ratios(found["torch"], found["XLA"]), None, facts,
        )  # fmt: skip


def first_step(engine: str, trials: int, width: int, batch: int) -> dict[str, float]:
    """Seconds from the weights to the end of the first block of steps, by both clocks.

    CPU seconds are those of this process and of the compilers that it starts.
    """
    loop = Batch(training_jobs(trials, width, batch), data(), torch.device("cpu"), True)
    inputs = loop._inputs(BLOCK)
    if engine == "jax":
        import vmapped

        vmapped.cached(Path(os.environ["BENCHMARK_CACHE"]))
    before, day = os.times(), time.perf_counter()
    if engine == "jax":
        vmapped.Vmapped(loop).run(*inputs)
    else:
        loop._advance(inputs[0][0])
    after = os.times()
    return {"CPU s": sum(after[:4]) - sum(before[:4]), "s": time.perf_counter() - day}


def start(rounds: int) -> Iterator[Figure]:
    """The first compiled step, in processes that begin with an empty cache, and with a full one."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(max(STARTS, rounds // 5)):
        for engine in ("compiled", "jax"):
            with tempfile.TemporaryDirectory() as folder:
                keys = ("TORCHINDUCTOR_CACHE_DIR", "BENCHMARK_CACHE")
                env = {**os.environ, **dict.fromkeys(keys, folder), "OMP_NUM_THREADS": "1"}
                for cache in ("empty cache", "from the cache"):
                    words = [sys.executable, __file__, engine, "20", "64", "64"]
                    ended = subprocess.run(
                        words, env=env, stdout=subprocess.PIPE, check=True, text=True
                    )
                    said = json.loads(ended.stdout.splitlines()[-1])
                    found.setdefault((engine, cache), []).append(said)
    for cache, limit in (("empty cache", FIRST_SECONDS), ("from the cache", CACHED_SECONDS)):
        ours, theirs = found["compiled", cache], found["jax", cache]
        facts = {
            f"{key}, {who}": sorted(one[key] for one in several)[len(several) // 2]
            for who, several in (("ours", ours), ("JAX", theirs))
            for key in several[0]
        }
        yield Figure(
            "jax_start", f"CPU s of the first compiled step, {cache} / {limit:.0f} s",
            [one["CPU s"] / limit for one in ours], -1.0, facts,
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        measured = first_step(sys.argv[1], *map(int, sys.argv[2:5]))
    print(json.dumps(measured))
