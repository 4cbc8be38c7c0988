"""A trial at points of its training and with averages of other lengths: kept, then measured.

What is kept follows from the evaluation, and changes no number of the training. Where a trial
differs from a trained one in its evaluation alone, and the averages that it needs were kept there,
it takes them over and is measured without being trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from testbed.components.dataset import Data
from testbed.registry import Registry
from testbed.training import averages
from testbed.training.averages import OWN, Profile
from testbed.training.trainer import Loop, TrainingJob
from testbed.trial import evaluate
from testbed.trial.build import module_of
from testbed.trial.config import TrialConfig
from testbed.trial.folders import TrialFolder
from testbed.trial.specs import Point


def kept(config: TrialConfig) -> dict[int, set[str]]:
    """The names of the averages that a trial's evaluation needs, by the step they are taken at."""
    steps = config.training.steps
    found: dict[int, set[str]] = {step: {OWN} for step in config.evaluation.at(steps)}
    if config.evaluation.widths:
        for step, width in averages.stored(steps):
            found.setdefault(step, set()).add(str(width))
    return found


def keep(loop: Loop, configs: Sequence[TrialConfig]) -> None:
    """Makes a training keep what the evaluation of any of its trials needs."""
    wanted = [kept(config) for config in configs]
    widths = averages.WIDTHS if any(config.evaluation.widths for config in configs) else ()
    loop.keep((step for one in wanted for step in one), widths)


def store(loop: Loop, trials: Sequence[TrialFolder | None], of: Sequence[int]) -> None:
    """Writes the snapshots of the last window; trial i gets those of training job of[i]."""
    for trial, i in zip(trials, of, strict=True):
        if trial is not None:
            for step, rows in loop.snapshots_of(i):
                trial.put_averages(step, rows)


def available(config: TrialConfig, trial: TrialFolder) -> bool:
    """Whether a trained trial's folder has all averages that an evaluation needs."""
    return trial.has("weights.safetensors") and all(
        trial.has_averages(step, names) for step, names in kept(config).items()
    )


def measure(
    config: TrialConfig,
    trial: TrialFolder,
    registry: Registry,
    data: Data,
    trained: TrainingJob,
    device: torch.device,
    diverged_at: int | None = None,
) -> None:
    """Measures a trial at each of its points; each has a folder of its own.

    The network has the weights of the last point afterwards. A training that diverged is measured
    at the points before that, and with no average of another length: these are of its end.

    Raises:
        FileNotFoundError: an average is missing.
        checkpoint.Damaged: an average is damaged.
    """
    network = module_of(trained.denoiser)
    for point, weights in _weights(config, trial, diverged_at):
        averages.place(network, weights.to(device))
        folder = trial.point(point.name)
        found = evaluate.measure(config, folder, registry, data, trained, device)
        values = {"metrics": found.metrics, "errors": found.errors}
        record = {"step": point.step, "width": point.width, **values}
        folder.put_json("result.json", record)


def _weights(
    config: TrialConfig, trial: TrialFolder, diverged_at: int | None
) -> Iterator[tuple[Point, torch.Tensor]]:
    """Each point of measurement but the end of training, with the weights (P,) to measure."""
    steps = config.training.steps
    for step in config.evaluation.at(steps):
        if diverged_at is None or step <= diverged_at:
            yield Point(step), trial.averages(step)[OWN]
    if config.evaluation.widths and diverged_at is None:
        profiles = averages.stored(steps)
        rows = {step: trial.averages(step) for step in averages.spaced(steps)}
        snapshots = {one: rows[one.step][str(one.width)] for one in profiles}
        for width in config.evaluation.widths:
            wanted = Profile(steps, width)
            yield Point(steps, width), averages.reconstruct(snapshots, wanted)
