"""Worker processes of one thread each, with trials that stay in them between rounds."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any

import torch
from trials import data, run_blocks, trainer, training_jobs

from testbed.training.batch import Batch
from testbed.training.trainer import Trainer

_held: list[Trainer] | Batch = []


def _hold(engine: str, trials: int, width: int, batch: int) -> None:
    global _held
    torch.set_num_threads(1)
    many = training_jobs(trials, width, batch)
    if engine == "sequential":
        _held = [trainer(one) for one in many]
    else:
        _held = Batch(many, data(), torch.device("cpu"), engine == "compiled")


def _run(blocks: int) -> None:
    for loop in _held if isinstance(_held, list) else [_held]:
        run_blocks(loop, blocks)


class WorkerPool:
    """`workers` processes that train equal parts of `trials`, "sequential" or by a Batch."""

    def __init__(self, engine: str, workers: int, trials: int, width: int, batch: int) -> None:
        context = multiprocessing.get_context("spawn")
        part = (engine, trials // workers, width, batch)
        self._workers = [ProcessPoolExecutor(1, context, _hold, part) for _ in range(workers)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._workers:
            one.shutdown()

    def run(self, blocks: int) -> Any:
        """Trains all of them for `blocks` blocks of steps, and waits."""
        for future in [one.submit(_run, blocks) for one in self._workers]:
            future.result()
