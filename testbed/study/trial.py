"""One trial in a worker: builds its components, trains, measures. Knows neither MLflow nor Ray."""

from __future__ import annotations

import functools
import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from testbed import audit
from testbed.data.base import Data
from testbed.denoiser import Denoiser
from testbed.errors import InputError
from testbed.metrics import denoising
from testbed.noise import karras_sigmas
from testbed.random import stream
from testbed.registry import Registry
from testbed.sampling.loop import sample
from testbed.study import journal
from testbed.training import checkpoint
from testbed.training.engine import Trainer, Training
from testbed.training.objective import Objective

CHECKPOINT_SECONDS = 15.0


@functools.lru_cache(maxsize=1)
def registry_of(plugins: tuple[str, ...], folders: tuple[str, ...]) -> Registry:
    """The worker's registry, made once."""
    return Registry(plugins, folders)


@functools.lru_cache(maxsize=4)
def dataset(name: str, options: str, registry: Registry) -> Data:
    """The data of a data set, built once a process; `options` in JSON."""
    return registry.dataset(name, **json.loads(options))()


@functools.lru_cache(maxsize=4)
def _held(
    name: str, options: str, registry: Registry, low: float, high: float, levels: int, draws: int
) -> denoising.Held:
    return denoising.held(dataset(name, options, registry), low, high, levels, draws)


def component(registry: Registry, axis: str, named: dict[str, Any]) -> Any:
    """The component that a resolved `{"name": ..., "options": ...}` stands for."""
    return getattr(registry, axis)(named["name"], **named["options"])


def objective_of(config: Mapping[str, Any], registry: Registry) -> Objective:
    """The objective of a resolved configuration, its states not started."""
    axes = ("parameterization", "weighting", "loss", "density")
    parts = {axis: config[axis] and component(registry, axis, config[axis]) for axis in axes}
    return Objective(**parts, sigma_data=config["sigma_data"])


def assemble(config: dict[str, Any], registry: Registry, data: Data) -> tuple[Denoiser, Objective]:
    """The untrained denoiser and the objective of a resolved configuration."""
    states = stream(config["seed"], "states").initial_seed()
    objective = objective_of(config, registry).started(states)
    p = objective.parameterization
    weights = stream(config["seed"], "weights").initial_seed()
    network = component(registry, "network", config["network"])(data.shape, 0, weights)
    denoiser = Denoiser(
        network, p, config["sigma_data"], c_in=config["c_in"], c_noise=config["c_noise"]
    )
    return denoiser, objective


def _module(denoiser: Denoiser) -> torch.nn.Module:
    assert isinstance(denoiser.network, torch.nn.Module)
    return denoiser.network


def run(
    config: dict[str, Any],
    at: Path,
    plugins: Sequence[str] = (),
    folders: Sequence[str] = (),
    device: str = "cpu",
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Trains and measures one trial in its directory; resumes from its checkpoint.

    Returns:
        "finished", "diverged", "interrupted" (stop() became true), or "failed" with error.txt.
    """
    with journal.locked(at):
        try:
            return _run(config, at, registry_of(tuple(plugins), tuple(folders)), device, stop)
        except Exception as problem:
            (at / "error.txt").write_text(traceback.format_exc())
            message = f"{type(problem).__name__}: {problem}"
            journal.write_json(at / "result.json", {"status": "failed", "error": message})
            return "failed"


def _run(
    config: dict[str, Any],
    at: Path,
    registry: Registry,
    device_name: str,
    stop: Callable[[], bool],
) -> str:
    (at / "error.txt").unlink(missing_ok=True)
    (at / "result.json").unlink(missing_ok=True)
    device = torch.device(device_name)
    named = config["dataset"]["name"], json.dumps(config["dataset"]["options"]), registry
    data = dataset(*named)
    denoiser, objective = assemble(config, registry, data)
    training = Training(**{**config["training"], "betas": tuple(config["training"]["betas"])})
    trainer = Trainer(denoiser, objective, data, training, config["seed"], device)
    stored = checkpoint.newest(at / "checkpoint")
    if stored is not None:
        trainer.restore(*stored)
    journal.cut_rows(at, trainer.step)
    saved = time.monotonic()
    for row in trainer:
        journal.append_row(at, {**asdict(row), "time": time.time()})
        stopping = stop()
        if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
            checkpoint.write(at / "checkpoint", *trainer.state())
            saved = time.monotonic()
        if stopping:
            return "interrupted"
    status = "finished" if trainer.diverged_at is None else "diverged"
    measured = time.perf_counter()
    trained = trainer.averaged()
    checkpoint.save_weights(
        at / "weights.safetensors", _module(trained).state_dict(), {"status": status}
    )
    if objective.states is not None:
        checkpoint.save_weights(
            at / "states.safetensors", objective.states.state_dict(), {"status": status}
        )
    metrics = {} if status == "diverged" else _measure(config, at, registry, data, trained, device)
    curve = journal.rows(at)[0]
    journal.write_json(
        at / "result.json",
        {
            "status": status,
            "diverged_at": trainer.diverged_at,
            "steps": trainer.step,
            "scale": trainer.scale,
            "parameters": sum(p.numel() for p in trained.parameters()),
            "metrics": metrics,
            "final_loss": curve[-1]["loss"] if curve else None,
            "training_seconds": sum(row["seconds"] for row in curve),
            "measuring_seconds": time.perf_counter() - measured,
            "device": device_title(device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    )
    for file in (at / "checkpoint", checkpoint.previous(at / "checkpoint")):
        file.unlink(missing_ok=True)
    return status


def _measure(
    config: dict[str, Any],
    at: Path,
    registry: Registry,
    data: Data,
    trained: Denoiser,
    device: torch.device,
) -> dict[str, float]:
    """Per-sigma table, identity rows of the trained model, samples and their metrics."""
    evaluation, density = config["evaluation"], config["density"]["options"]
    low, high = density["sigma_min"], density["sigma_max"]
    named = config["dataset"]["name"], json.dumps(config["dataset"]["options"]), registry
    against = _held(*named, low, high, evaluation["levels"], evaluation["draws"])
    levels = denoising.per_level(trained, against, device)
    levels.to_csv(at / "levels.csv", index=False)
    metrics = denoising.summary(levels, data.train[0].numel())

    few = 8
    sigma = against.sigma.repeat_interleave(few).to(device)
    x0, eps = (t[:few].repeat(len(against.sigma), *[1] * (t.ndim - 1)).to(device)
               for t in (against.x0, against.eps))  # fmt: skip
    checked = audit.check_model(trained, x0, eps, sigma)
    journal.write_json(at / "tweedie.json", {"rows": [asdict(row) for row in checked]})

    samples = draw(
        trained, data, config, evaluation["samples"], stream(0, "samples"), device, registry
    )
    # One entry: safetensors writes several in any order, and the file would differ each time.
    facts = {"sampler": f"{evaluation['sampler']['name']}, {evaluation['steps']} steps"}
    checkpoint.save_weights(at / "samples.safetensors", {"samples": samples}, facts)
    for named_metric in evaluation["metrics"]:
        metric = component(registry, "metric", named_metric)
        metrics[metric.name] = metric(samples.cpu(), data, stream(0, f"metric/{metric.name}"))
    return metrics


def draw(
    denoiser: Denoiser,
    data: Data,
    config: dict[str, Any],
    n: int,
    generator: torch.Generator,
    device: torch.device,
    registry: Registry,
    callback: Callable[[int, float, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """n samples by the configuration's own sampler and levels; (n, *shape)."""
    evaluation, density = config["evaluation"], config["density"]["options"]
    sigmas = karras_sigmas(evaluation["steps"], density["sigma_min"], density["sigma_max"])
    sampler = component(registry, "sampler", evaluation["sampler"])
    # The prior at sigma_max: noise and the data's second moment.
    top = (float(sigmas[0]) ** 2 + denoiser.sigma_data**2) ** 0.5
    x = top * torch.randn(n, *data.shape, generator=generator)
    with torch.no_grad():
        return sample(denoiser, x.to(device), sigmas, sampler, generator, callback)


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


def find(trial: str | Path) -> Path:
    """The directory of a trial given by path, or by the first letters of its id below ./runs.

    Raises:
        InputError: none, or several.
    """
    if (Path(trial) / "trial.json").is_file():
        return Path(trial)
    found = [
        path.parent
        for path in sorted(Path("runs").glob("*/trials/*/trial.json"))
        if path.parent.name.startswith(str(trial))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(map(str, found[:4]))
        raise InputError(f"trial {str(trial)!r} fits {len(found)} trials: {several} ...")
    raise InputError(f"trial {str(trial)!r} is neither a trial's folder nor an id below ./runs.")


def load(trial: str | Path, device: str = "cpu") -> Denoiser:
    """The trained Denoiser of a trial, with its averaged weights, in evaluation mode.

    Args:
        trial: its folder, or the first letters of its id below ./runs.
        device: where to put it.

    Raises:
        InputError: no such trial, or one without weights yet.
        UnknownName: its plugins are not loaded.
    """
    denoiser, _, _, _ = restore(trial, device)
    return denoiser


def restore(
    trial: str | Path, device: str = "cpu"
) -> tuple[Denoiser, Data, dict[str, Any], Registry]:
    """The trained Denoiser, its data, its configuration and its registry; see `load`."""
    at = find(trial)
    described = journal.read_json(at / "trial.json")
    config, weights = described["config"], at / "weights.safetensors"
    if not weights.is_file():
        state = journal.state(at.parents[1], at.name)
        raise InputError(f"trial {at} has no weights yet: it is {state}.")
    registry = registry_of(tuple(described["plugins"]), tuple(described["plugin_dirs"]))
    data = dataset(config["dataset"]["name"], json.dumps(config["dataset"]["options"]), registry)
    denoiser, _ = assemble(config, registry, data)
    _module(denoiser).load_state_dict(checkpoint.load_weights(weights)[0])
    return denoiser.to(device).eval(), data, config, registry
