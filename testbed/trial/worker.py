"""One trial in a worker: builds its components, trains, measures. Knows neither MLflow nor Ray."""

from __future__ import annotations

import contextlib
import functools
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from testbed.components.dataset import Data
from testbed.errors import disk_is_full, one_line
from testbed.registry import Registry
from testbed.training import memory
from testbed.training.batch import Batch
from testbed.training.checkpoint import Contents
from testbed.training.parallel import ProcessGroup
from testbed.training.trainer import Loop, Trainer, TrainingJob
from testbed.trial import evaluate, points, process_group, usage
from testbed.trial.build import data_of, module_of, registry_of, training_job
from testbed.trial.config import TrialConfig
from testbed.trial.folders import Folder, GroupFolder, TrainingFolder, TrialFolder
from testbed.trial.storage import Busy, StoreAway

CHECKPOINT_SECONDS = 15.0


ORPHANED = 60.0
"""Seconds within which the worker of a driver that was killed has ended."""


def owned(folder: Folder) -> AbstractContextManager[None]:
    """Owns a folder, where need be after the worker of a driver that was killed.

    A file lock does not tell such a worker from another driver's, and a lease does.

    Raises:
        Busy: another process is at work on it.
    """
    return folder.own(0.0 if folder.lease else ORPHANED)


def run(
    config: TrialConfig,
    at: Path,
    plugins: Sequence[str] = (),
    plugin_dirs: Sequence[str] = (),
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    devices: Sequence[str] = (),
) -> str:
    """Trains and measures one trial in its directory; resumes from its checkpoint.

    A trial that has ended is left as it is. With several `devices` it trains on all of them, and is
    measured on `device`, the first.

    Returns:
        "finished", "diverged", "interrupted" (stop() became true), "cancelled", or "failed" with
        error.txt.

    Raises:
        Busy: another process is at work on it, or has taken it over meanwhile.
        OSError: the disk is full or away, which no trial is to blame for.
    """
    trial, where = TrialFolder.at(at), torch.device(device)
    with owned(trial), usage.sampled([trial], where):
        if trial.ended():  # another driver was faster
            return str(trial.result()["status"])
        try:
            registry = registry_of(tuple(plugins), tuple(plugin_dirs))
            joined = process_group.of(config, plugins, plugin_dirs, devices)
            parts = config, trial, registry, where
            return _run(*parts, lambda: stop() or trial.cancelled, joined)
        except Exception as problem:
            if _is_elsewhere(problem):
                raise
            return _failed(trial, problem)


def _is_elsewhere(problem: Exception) -> bool:
    """Whether no trial is to blame: a disk is full or away, or the folder another's."""
    return disk_is_full(problem) or isinstance(problem, Busy | StoreAway)


def _stopped(trial: TrialFolder) -> str:
    """The status of a trial that was stopped at a checkpoint."""
    return "cancelled" if trial.cancelled else "interrupted"


def _failed(trial: TrialFolder, problem: Exception) -> str:
    """Keeps the traceback and the message of what ended a trial."""
    trial.fail("".join(traceback.format_exception(problem)), one_line(problem))
    return "failed"


def run_together(
    configs: Sequence[TrialConfig],
    trial_dirs: Sequence[Path],
    group: Path,
    plugins: Sequence[str] = (),
    plugin_dirs: Sequence[str] = (),
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
    compiled: bool = False,
    half: bool = False,
) -> list[str]:
    """Trains trials as one batch and measures each; resumes from the group's checkpoint.

    Those that differ in their evaluation only are one training. Where training raises, each is run
    alone: then it fails alone, and the others do not.

    Args:
        configs, trial_dirs: of each trial, as for `run`.
        group: the folder of their common checkpoint.
        compiled: see `training.batch.Batch`.
        half: whether the group is a part of one for which there was too little memory.

    Returns:
        each trial's status, as from `run`.

    Raises:
        torch.OutOfMemoryError: of a group that is not a half already, and can be split.
    """
    trials, together = [TrialFolder.at(at) for at in trial_dirs], GroupFolder.at(group)
    with contextlib.ExitStack() as locks:
        for trial in trials:
            locks.enter_context(owned(trial))
        locks.enter_context(owned(together))
        if all(trial.ended() for trial in trials):  # another driver was faster
            return [str(trial.result()["status"]) for trial in trials]
        try:
            registry = registry_of(tuple(plugins), tuple(plugin_dirs))
            where = torch.device(device)
            with usage.sampled(trials, where):
                return _run_together(configs, trials, together, registry, where, stop, compiled)
        except Exception as problem:
            several = len({config.training_text for config in configs}) > 1
            splits = isinstance(problem, torch.OutOfMemoryError) and several and not half
            if _is_elsewhere(problem) or splits:
                raise
            together.dissolve(traceback.format_exc())
    sources = tuple(plugins), tuple(plugin_dirs), device, stop
    return [
        str(trial.result()["status"]) if trial.ended() else run(config, trial.path, *sources)
        for config, trial in zip(configs, trials, strict=True)
    ]


def _run(
    config: TrialConfig,
    trial: TrialFolder,
    registry: Registry,
    device: torch.device,
    stop: Callable[[], bool],
    joined: AbstractContextManager[ProcessGroup | None],
) -> str:
    trial.begin()
    data = data_of(config, registry)
    one = training_job(config, registry, data)
    if trial.has("training.json"):
        return _measure_anew(config, trial, registry, data, one, device)
    memory.require([one], data, device)
    trainer = Trainer.of(one, data, device)
    points.keep(trainer, [config])
    with joined as trainer.process_group:
        if not _train(trainer, [trial], trial, stop):
            return _stopped(trial)
    facts = {"diverged_at": trainer.diverged_at, "steps": trainer.step, "scale": trainer.scale}
    trained = one._replace(denoiser=trainer.averaged())
    status = _conclude(config, trial, registry, data, trained, device, facts)
    trial.remove_checkpoint()
    return status


def _measure_anew(
    config: TrialConfig,
    trial: TrialFolder,
    registry: Registry,
    data: Data,
    job: TrainingJob,
    device: torch.device,
) -> str:
    """Measures a trial with the training that it has taken over, or a fixed model."""
    facts = trial.json("training.json")
    if config.fixed is None:
        module_of(job.denoiser).load_state_dict(trial.tensors("weights.safetensors"))
    if job.objective.states is not None:
        job.objective.states.load_state_dict(trial.tensors("states.safetensors"))
    trained = job._replace(denoiser=job.denoiser.to(device).eval())
    status = _conclude(config, trial, registry, data, trained, device, facts)
    trial.store.remove("training.json")
    return status


def _run_together(
    configs: Sequence[TrialConfig],
    trials: Sequence[TrialFolder],
    group: GroupFolder,
    registry: Registry,
    device: torch.device,
    stop: Callable[[], bool],
    compiled: bool,
) -> list[str]:
    # A killed group may have measured some of its trials already.
    concluded = [trial.ended() for trial in trials]
    known = {config.training_text: config for config in configs}
    for trial, done in zip(trials, concluded, strict=True):
        if not done:
            trial.begin(group.path.name, len(known))
    data = data_of(configs[0], registry)
    of = [list(known).index(config.training_text) for config in configs]
    jobs = [training_job(config, registry, data) for config in known.values()]
    memory.require(jobs, data, device)
    loop: Trainer | Batch
    if len(jobs) == 1:
        (one,) = jobs
        loop = Trainer.of(one, data, device)
    else:
        loop = Batch(jobs, data, device, compiled)
    points.keep(loop, configs)
    curves = [None if done else trial for trial, done in zip(trials, concluded, strict=True)]

    def stopping() -> bool:
        return stop() or all(trial is None or trial.cancelled for trial in curves)

    if not _train(loop, curves, group, stopping, of):
        return [_stopped(trial) for trial in trials]
    statuses = []
    for i, (config, trial) in enumerate(zip(configs, trials, strict=True)):
        if concluded[i]:
            statuses.append(str(trial.result()["status"]))
            continue
        if stop() or trial.cancelled:
            statuses.append(_stopped(trial))
            continue
        facts = {
            "diverged_at": loop.diverged[of[i]],
            "steps": loop.steps(of[i]),
            "scale": loop.scale_of(of[i]),
            "trained_together": len(jobs),
        }
        trained = jobs[of[i]]._replace(denoiser=loop.averaged(of[i]))
        try:
            statuses.append(_conclude(config, trial, registry, data, trained, device, facts))
        except Exception as problem:
            if _is_elsewhere(problem):
                raise
            statuses.append(_failed(trial, problem))
    if not {"interrupted", "cancelled"} & set(statuses):
        group.remove()
        for trial in trials:
            trial.leave()
    return statuses


def resumable(
    training: TrainingFolder,
    trials: Sequence[TrialFolder | None],
    say: Callable[[str], None] = lambda line: None,
) -> Contents | None:
    """What training goes on from: the newest whole checkpoint whose rows are all in the curves.

    Args:
        training: the folder of the checkpoint.
        trials: those that train; None for one whose curve is done with.
        say: told what is damaged, and from where training goes on then.
    """
    damaged: list[str] = []
    for tensors, facts in training.checkpoints(damaged.append):
        torn = [
            f"{trial.store.path('rows.jsonl')} is cut short or damaged."
            for trial, (size, digest) in zip(trials, facts["rows"], strict=True)
            if trial is not None and trial.curve_mark(size)[1] != digest
        ] + [
            f"{trial.path / 'averages' / str(step)} is missing or damaged."
            for trial in trials
            for step in facts.get("kept", ())
            if trial is not None and not trial.has_averages(step)
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
    trials: Sequence[TrialFolder | None],
    training: TrainingFolder,
    stop: Callable[[], bool],
    of: Sequence[int] = (0,),
) -> bool:
    """Trains to the end; False where stop() ended it before.

    Trial i gets the rows of training job of[i].
    """
    stored = resumable(training, trials)
    sizes = [0] * len(trials)
    if stored is not None:
        loop.restore(*stored)
        sizes = [size for size, _ in stored[1]["rows"]]
    for trial, size in zip(trials, sizes, strict=True):
        if trial is not None:
            trial.cut_curve(size)
    process_group.share(loop)
    saved = time.monotonic()
    for rows in loop.windows():
        now = time.time()
        for trial, i in zip(trials, of, strict=True):
            if trial is not None and (row := rows[i]) is not None:
                trial.append_row({**asdict(row), "time": now})
        points.store(loop, trials, of)
        stopping = stop()
        if loop.process_group is not None:
            stopping = loop.process_group.agreed(stopping, loop.device)
        if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
            _store(loop, trials, training)
            saved = time.monotonic()
        if stopping:
            return False
    if len(trials) > 1:  # what follows takes a while, and may be killed
        _store(loop, trials, training)
    return True


def _store(loop: Loop, trials: Sequence[TrialFolder | None], training: TrainingFolder) -> None:
    """A checkpoint, with the lengths and digests of the curves that belong to it."""
    tensors, facts = loop.state()
    rows = [trial.curve_mark() if trial else (0, "") for trial in trials]
    kept = sorted(stop for stop in loop.stops if stop <= loop.step)
    training.put_checkpoint(tensors, {**facts, "rows": rows, "kept": kept})


def _conclude(
    config: TrialConfig,
    trial: TrialFolder,
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
    told = {"status": status}
    trial.put_tensors("weights.safetensors", module_of(denoiser).state_dict(), told)
    if objective.states is not None:
        trial.put_tensors("states.safetensors", objective.states.state_dict(), told)
    measured = evaluate.Measured({}, {}, 0.0)
    if status != "diverged":
        measured = evaluate.measure(config, trial, registry, data, trained, device)
    points.measure(config, trial, registry, data, trained, device, facts["diverged_at"])
    curve = trial.rows()
    trial.put_json(
        "result.json",
        {
            "status": status,
            **facts,
            "parameters": sum(p.numel() for p in denoiser.parameters()),
            "metrics": measured.metrics,
            "errors": measured.errors,
            "final_loss": curve[-1]["loss"] if curve else None,
            "curve": trial.curve_mark()[1],
            "training_seconds": sum(row["seconds"] for row in curve),
            "sampling_seconds": measured.sampling_seconds,
            "measuring_seconds": time.perf_counter() - since,
            "ended": time.time(),
            "device": device_title(device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    )
    return status


def device_title(device: torch.device) -> str:
    """The device with its hardware's name."""
    if device.type == "cuda" and not torch.cuda.is_available():
        return "cuda (of another machine)"
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
