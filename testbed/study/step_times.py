"""How long a step of a trial takes in each engine, measured before a study begins."""

from __future__ import annotations

import math
import os
import shutil
import sysconfig
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from testbed.components.dataset import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import ComponentError, InputError
from testbed.registry import Registry
from testbed.study.plan import Trial
from testbed.training.batch import Batch
from testbed.training.trainer import BLOCK, Loop, Trainer, TrainingJob
from testbed.trial import build

MEASURED = 32
"""How many trials a measurement takes: a trial's step among more is hardly cheaper."""
LONG_STEP_SECONDS = 0.05
"""Seconds of a step from which trials train one by one without a measurement: a batch saves the
calls of small operations, which are some milliseconds of a step."""
BACKWARD = 2.0
"""The time of a backward pass over that of the forward one."""
FUSED = 0.5
"""The time of a compiled step over that of a batched one, products of matrices apart: 0.45 to 0.60
for MLPs on two processors (docs/maintainers/benchmarks.md)."""
COMPILE_SECONDS, CACHED_SECONDS = 12.0, 0.5
"""What a compiled step takes to start in a worker, at first and from the cache; Inductor itself is
imported before, by the server that workers are forked from."""


class EngineChoice(NamedTuple):
    """An engine on so many worker processes, of so many threads each."""

    name: str
    slots: int
    threads: int

    @property
    def title(self) -> str:
        """What a measurement is called."""
        return self.name if self.threads == 1 else f"{self.name} on {self.threads} threads"


class StepTime(NamedTuple):
    """Milliseconds of one step of one trial, and those of its products of matrices, where known."""

    ms: float
    products: float = math.nan

    @property
    def compiled(self) -> float:
        """About the milliseconds of a compiled step: its products take what they take."""
        return self.products + FUSED * (self.ms - self.products)


NEVER = StepTime(math.inf)


def compiles(trial: Trial) -> bool:
    """Whether a step can be compiled on the CPU, by a look at it: that of Adam, with a compiler.

    The compiler needs the headers of this Python too, which some systems have in a package apart.
    """
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    adam = trial.config.training.optimizer != "sgd"
    return adam and compiler is not None and headers.exists()


def long_step(trial: Trial, registry: Registry, device: str) -> float:
    """About the seconds of a trial's step where they are LONG_STEP_SECONDS or more, else 0.0.

    They are those of the forward pass of its batch and of its backward pass. On a CPU one sample is
    tried first: where it takes as long, so does the batch, and a study that is made for a GPU is
    planned in seconds.
    """
    where, threads = torch.device(device), torch.get_num_threads()
    batch = trial.config.training.batch
    torch.set_num_threads(1)
    try:
        data = build.data_of(trial.config, registry)
        denoiser = build.training_job(trial.config, registry, data).denoiser
        build.module_of(denoiser).to(where)
        for n in (1, batch) if where.type == "cpu" else (batch,):
            seconds = (1 + BACKWARD) * _forward_seconds(denoiser, data, n, where)
            if seconds >= LONG_STEP_SECONDS:
                return seconds * batch / n
    except Exception:  # a plugin's: the measurement meets it again
        return 0.0
    finally:
        torch.set_num_threads(threads)
    return 0.0


def _forward_seconds(denoiser: Denoiser, data: Data, n: int, device: torch.device) -> float:
    """Of n samples, the shortest of a few: the first one may import or compile."""
    x = data.train[torch.arange(n) % len(data.train)].to(device)
    sigma = torch.full((n,), data.sigma_data, dtype=torch.float64, device=device)
    times, clock = [], clock_of(device)
    with torch.no_grad():
        for _ in range(3):
            start = clock()
            denoiser(x, sigma).cpu()  # it waits for the device
            times.append(clock() - start)
    return min(times)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds of the CPU where this thread does all the work, else those of the day.

    What else runs on the machine takes turns with the thread, which the time of day would add to
    one engine's steps and not to the other's.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def measure(
    way: EngineChoice, trials: Sequence[Trial], registry: Registry, device: str, wanted: str
) -> StepTime:
    """The time of one step of one trial, this way in one process; infinite where it cannot be.

    Raises:
        InputError: torch.compile was wanted and cannot compile the step here.
    """
    threads, where = torch.get_num_threads(), torch.device(device)
    torch.set_num_threads(way.threads)
    # All where that is compiled: the workers then find it in torch's cache.
    some = trials if way.name == "compiled" else trials[:MEASURED]
    data = build.data_of(some[0].config, registry)
    try:
        if way.name == "sequential":
            job = _few_steps(build.training_job(some[0].config, registry, data))
            return StepTime(_milliseconds(Trainer.of(job, data, where)))
        many = [_few_steps(build.training_job(one.config, registry, data)) for one in some]
        batch = Batch(many, data, where, way.name == "compiled")
        batch.traced_from = 0
        with warnings.catch_warnings(action="ignore"):  # a failure is told below
            ms = _milliseconds(batch)
        if batch.failure is not None:
            raise batch.failure
        return StepTime(ms, 1000 * batch.product_seconds() / len(many))
    except Exception as problem:
        if way.name == "sequential" and refused(problem):
            raise
        if way.name == "compiled" == wanted:
            said = str(problem).strip().splitlines()[0]
            raise InputError(f"--engine compiled: torch.compile failed: {said}") from None
        return NEVER
    finally:
        torch.set_num_threads(threads)


def _few_steps(job: TrainingJob) -> TrainingJob:
    """The job for a block of steps, without a decay that would begin after them."""
    short = replace(job.training, steps=BLOCK, points=1, schedule="constant", hold=0)
    return job._replace(training=short)


def _milliseconds(loop: Loop) -> float:
    """Of one step of one trial: in the fastest window, since one may import, trace or compile."""
    loop.interval = BLOCK // 2
    times, clock = [], clock_of(loop.device)
    start = clock()
    for _ in loop.windows():
        times.append(clock() - start)
        start = clock()
    return 1000 * min(times) / loop.interval / len(loop.diverged)


def refused(problem: Exception) -> bool:
    """Bad input, and no plugin's mistake: of that the trial itself will fail and say why."""
    return isinstance(problem, InputError) and not isinstance(problem, ComponentError)
