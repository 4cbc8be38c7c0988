"""One trial in a worker: builds its components, trains, measures. Knows neither MLflow nor Ray."""

from __future__ import annotations

import contextlib
import functools
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from testbed.components.dataset import Data
from testbed.errors import disk_is_full, one_line
from testbed.registry import Registry
from testbed.training import checkpoint
from testbed.training.batch import Batch
from testbed.training.trainer import Loop, Trainer, TrainingJob
from testbed.trial import evaluate, storage
from testbed.trial.build import dataset, module_of, registry_of, training_job
from testbed.trial.config import TrialConfig

CHECKPOINT_SECONDS = 15.0


ORPHANED = 60.0
"""Seconds within which the worker of a driver that was killed has ended."""


def run(
    config: TrialConfig,
    at: Path,
    plugins: Sequence[str] = (),
    folders: Sequence[str] = (),
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Trains and measures one trial in its directory; resumes from its checkpoint.

    Returns:
        "finished", "diverged", "interrupted" (stop() became true), or "failed" with error.txt.

    Raises:
        Busy: another process is at work on it.
        OSError: the disk is full, which no trial is to blame for.
    """
    with storage.locked(at, ORPHANED):
        try:
            registry = registry_of(tuple(plugins), tuple(folders))
            return _run(config, at, registry, torch.device(device), stop)
        except Exception as problem:
            if disk_is_full(problem):
                raise
            return _failed(at, problem)


def _failed(at: Path, problem: Exception) -> str:
    """Keeps the traceback and the message of what ended a trial."""
    (at / "error.txt").write_text("".join(traceback.format_exception(problem)))
    storage.write_json(at / "result.json", {"status": "failed", "error": one_line(problem)})
    return "failed"


def run_together(
    configs: Sequence[TrialConfig],
    places: Sequence[Path],
    group: Path,
    plugins: Sequence[str] = (),
    folders: Sequence[str] = (),
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    compiled: bool = False,
) -> list[str]:
    """Trains trials as one batch and measures each; resumes from the group's checkpoint.

    Those that differ in their evaluation only are one training. Where training raises, each is run
    alone: then it fails alone, and the others do not.

    Args:
        configs, places: of each trial, as for `run`.
        group: the folder of their common checkpoint.
        compiled: see `training.batch.Batch`.

    Returns:
        each trial's status, as from `run`.
    """
    with contextlib.ExitStack() as locks:
        for at in places:
            locks.enter_context(storage.locked(at, ORPHANED))
        try:
            registry = registry_of(tuple(plugins), tuple(folders))
            where = torch.device(device)
            return _run_together(configs, places, group, registry, where, stop, compiled)
        except Exception as problem:
            if disk_is_full(problem):
                raise
            group.mkdir(parents=True, exist_ok=True)
            (group / "error.txt").write_text(traceback.format_exc())
            checkpoint.remove(group / "checkpoint")
    sources = tuple(plugins), tuple(folders), device, stop
    return [
        str(storage.result(at)["status"]) if storage.ended(at) else run(config, at, *sources)
        for config, at in zip(configs, places, strict=True)
    ]


def _run(
    config: TrialConfig,
    at: Path,
    registry: Registry,
    device: torch.device,
    stop: Callable[[], bool],
) -> str:
    for name in ("error.txt", "result.json", "group.json"):
        (at / name).unlink(missing_ok=True)
    data = dataset(registry, config.dataset)
    one = training_job(config, registry, data)
    trainer = Trainer.of(one, data, device)
    if not _train(trainer, [at], at / "checkpoint", stop):
        return "interrupted"
    facts = {"diverged_at": trainer.diverged_at, "steps": trainer.step, "scale": trainer.scale}
    trained = one._replace(denoiser=trainer.averaged())
    status = _conclude(config, at, registry, data, trained, device, facts)
    checkpoint.remove(at / "checkpoint")
    return status


def _run_together(
    configs: Sequence[TrialConfig],
    places: Sequence[Path],
    group: Path,
    registry: Registry,
    device: torch.device,
    stop: Callable[[], bool],
    compiled: bool,
) -> list[str]:
    group.mkdir(parents=True, exist_ok=True)
    # A killed group may have measured some of its trials already.
    concluded = [storage.ended(at) for at in places]
    for at, done in zip(places, concluded, strict=True):
        if not done:
            (at / "error.txt").unlink(missing_ok=True)
            (at / "result.json").unlink(missing_ok=True)
            storage.write_json(at / "group.json", {"group": group.name, "trials": len(places)})
    data = dataset(registry, configs[0].dataset)
    known = {config.training_text: config for config in configs}
    of = [list(known).index(config.training_text) for config in configs]
    contestants = [training_job(config, registry, data) for config in known.values()]
    loop: Trainer | Batch
    if len(contestants) == 1:
        (one,) = contestants
        loop = Trainer.of(one, data, device)
    else:
        loop = Batch(contestants, data, device, compiled)
    curves = [None if done else at for at, done in zip(places, concluded, strict=True)]
    if not _train(loop, curves, group / "checkpoint", stop, of):
        return ["interrupted"] * len(places)
    statuses = []
    for i, (config, at) in enumerate(zip(configs, places, strict=True)):
        if concluded[i]:
            statuses.append(str(storage.result(at)["status"]))
            continue
        if stop():
            statuses.append("interrupted")
            continue
        facts = {
            "diverged_at": loop.diverged[of[i]],
            "steps": loop.steps(of[i]),
            "scale": loop.scale_of(of[i]),
            "trained_together": len(contestants),
        }
        trained = contestants[of[i]]._replace(denoiser=loop.averaged(of[i]))
        try:
            statuses.append(_conclude(config, at, registry, data, trained, device, facts))
        except Exception as problem:
            if disk_is_full(problem):
                raise
            statuses.append(_failed(at, problem))
    if "interrupted" not in statuses:
        shutil.rmtree(group)
        for at in places:
            (at / "group.json").unlink(missing_ok=True)
    return statuses


def resumable(
    file: Path, places: Sequence[Path | None], say: Callable[[str], None] = lambda line: None
) -> checkpoint.Contents | None:
    """What training goes on from: the newest whole checkpoint whose rows are all in the curves.

    Args:
        file: the checkpoint.
        places: of its trials; None for one whose curve is done with.
        say: told what is damaged, and from where training goes on then.
    """
    damaged: list[str] = []
    for tensors, facts in checkpoint.intact(file, damaged.append):
        torn = [
            f"{at / 'rows.jsonl'} is cut short or damaged."
            for at, (size, digest) in zip(places, facts["rows"], strict=True)
            if at is not None and storage.digest(at, size) != digest
        ]
        if not torn:
            if damaged:
                say(f"{' '.join(damaged)} Training goes on from step {facts['step']}.")
            return tensors, facts
        damaged += torn[:1]
    if damaged:
        say(f"{' '.join(dict.fromkeys(damaged))} Training begins anew.")
    return None


def _train(
    loop: Loop,
    places: Sequence[Path | None],
    file: Path,
    stop: Callable[[], bool],
    of: Sequence[int] = (0,),
) -> bool:
    """Trains to the end; False where stop() ended it before.

    Place i gets the rows of contestant of[i].
    """
    stored = resumable(file, places)
    sizes = [0] * len(places)
    if stored is not None:
        loop.restore(*stored)
        sizes = [size for size, _ in stored[1]["rows"]]
    for at, size in zip(places, sizes, strict=True):
        if at is not None:
            storage.cut_rows(at, size)
    saved = time.monotonic()
    for rows in loop.windows():
        now = time.time()
        for at, i in zip(places, of, strict=True):
            if at is not None and (row := rows[i]) is not None:
                storage.append_row(at, {**asdict(row), "time": now})
        stopping = stop()
        if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
            _store(loop, places, file)
            saved = time.monotonic()
        if stopping:
            return False
    if len(places) > 1:  # what follows takes a while, and may be killed
        _store(loop, places, file)
    return True


def _store(loop: Loop, places: Sequence[Path | None], file: Path) -> None:
    """A checkpoint, with the lengths and digests of the curves that belong to it."""
    tensors, facts = loop.state()
    rows = [(storage.length(at), storage.digest(at)) if at else (0, "") for at in places]
    checkpoint.write(file, tensors, {**facts, "rows": rows})


def _conclude(
    config: TrialConfig,
    at: Path,
    registry: Registry,
    data: Data,
    trained: TrainingJob,
    device: torch.device,
    facts: dict[str, Any],
) -> str:
    """Stores the weights, measures, and writes the result."""
    status = "finished" if facts["diverged_at"] is None else "diverged"
    denoiser, objective = trained.denoiser, trained.objective
    since = time.perf_counter()
    checkpoint.save_weights(
        at / "weights.safetensors", module_of(denoiser).state_dict(), {"status": status}
    )
    if objective.states is not None:
        checkpoint.save_weights(
            at / "states.safetensors", objective.states.state_dict(), {"status": status}
        )
    metrics: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    if status != "diverged":
        metrics, errors = evaluate.measure(config, at, registry, data, trained, device)
    curve = storage.rows(at)[0]
    storage.write_json(
        at / "result.json",
        {
            "status": status,
            **facts,
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "metrics": metrics,
            "errors": errors,
            "final_loss": curve[-1]["loss"] if curve else None,
            "curve": storage.digest(at),
            "training_seconds": sum(row["seconds"] for row in curve),
            "measuring_seconds": time.perf_counter() - since,
            "device": device_title(device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    )
    return status


def device_title(device: torch.device) -> str:
    """The device with its hardware's name."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({_processor()})"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
