"""What a trained trial is measured by: levels, identities, samples and what is made of them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.audit.trained import check_model
from testbed.components.dataset import Data
from testbed.components.guidance import Denoise
from testbed.components.metric import Metric, MetricValue
from testbed.diffusion.ddpm import Chain
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising, likelihood
from testbed.metrics.guidance import end_points, ode_ends
from testbed.metrics.resampling import mean
from testbed.random import stream
from testbed.registry import Registry
from testbed.sampling.guidance import ConditionedDenoiser
from testbed.sampling.loop import sample
from testbed.training.objective import Objective
from testbed.training.trainer import TrainingJob
from testbed.trial import class_conditions, pictures
from testbed.trial.build import component, measured_levels, sampling_levels
from testbed.trial.config import TrialConfig
from testbed.trial.folders import Folder
from testbed.trial.guided import Guide

MOST_ENDS = 64
"""How many samples are compared with the ends of the exact guided ODE."""


class Measured(NamedTuple):
    """What a model was measured by.

    Args:
        metrics: the value of each metric.
        errors: the sampling error and p of those that have one.
        sampling_seconds: how long its samples took, decoding included.
    """

    metrics: dict[str, float]
    errors: dict[str, dict[str, float]]
    sampling_seconds: float


@functools.lru_cache(maxsize=4)
def _held_out(
    data: Data, levels: tuple[float, ...], draws: int, conditions: tuple[str, ...]
) -> denoising.HeldOutPairs:
    sigma = torch.tensor(levels, dtype=torch.float64)
    return denoising.held_out_pairs(data, sigma, draws, conditions)


def measure(
    config: TrialConfig,
    trial: Folder,
    registry: Registry,
    data: Data,
    training_job: TrainingJob,
    device: torch.device,
) -> Measured:
    """Per-sigma table, identity rows of the trained model, samples and their metrics."""
    trained, objective = training_job.denoiser, training_job.objective
    evaluation = config.evaluation
    conditions, d = config.conditions, data.train[0].numel()
    sigma = tuple(measured_levels(config).tolist())
    against = _held_out(data, sigma, evaluation.draws, tuple(conditions))
    counted = _counted(config, sigma)
    noise = component(registry, "noise", config.noise)
    dropped = class_conditions.drops_all(conditions)
    levels = denoising.per_level(trained, against, device, dropped, noise)
    found = denoising.summary(levels[counted], d)
    guide = Guide(config, registry, data, trained, device)
    of_guidance, table = guide.measured(against, levels, counted)
    found |= of_guidance
    if table is not None:
        trial.put_table("classifier.csv", table)
    trial.put_table("levels.csv", levels)
    if evaluation.likelihood:
        of, settings = (trained, data, *config.measured, device), evaluation.likelihood.model_dump()
        found |= likelihood.held_out(*of, **settings, conditions=tuple(conditions))
    if evaluation.elbo != "off":
        found |= elbo(trained, objective, against, evaluation.elbo, device)

    trial.put_json("tweedie.json", {"rows": _identities(trained, against, device)})
    condition = guide.of_samples(evaluation.samples)

    def drawn(by: Denoise) -> torch.Tensor:
        generator, n = stream(0, "samples"), evaluation.samples
        return draw(trained, data, config, n, generator, device, registry, denoise=by)

    since = time.perf_counter()
    samples = drawn(guide.trained(condition))
    decoded = _decoded(samples, data)
    seconds = time.perf_counter() - since
    exactly = guide.exact(condition)
    if exactly is not None:
        found["guided_error"] = MetricValue(end_points(samples, drawn(exactly)))
        found |= _exact_ends(config, registry, guide, samples)
    # One entry: safetensors writes several in any order, and the file would differ each time.
    path = sampling_levels(config, registry)
    trial.put_json("schedule.json", {"sigmas": path.tolist()})
    words = evaluation.sampler.name, len(path) - 1, evaluation.schedule.name
    facts = {"sampler": "{}, {} steps, {}".format(*words)}
    if data.first_stage is not None:
        trial.put_tensors("latents.safetensors", {"latents": samples}, facts)
    trial.put_tensors("samples.safetensors", {"samples": decoded}, facts)
    metrics = [component(registry, "metric", spec) for spec in evaluation.metrics]
    images = data.pixels or data
    found |= of_samples([one for one in metrics if not one.conditional], decoded, images)
    if given := [one for one in metrics if one.conditional]:
        own = guide.of_samples(evaluation.samples, conditions)
        alone = _decoded(drawn(guide.unguided(own)), data) if guide.guides else decoded
        found |= of_samples(given, alone, images, own)
    pictures.keep(trial, trained, against, decoded, data, metrics, device)
    errors = {
        name: {"error": one.error, "p": one.p}
        for name, one in found.items()
        if not (math.isnan(one.error) and math.isnan(one.p))
    }
    return Measured({name: one.value for name, one in found.items()}, errors, seconds)


def _identities(
    trained: Denoiser, against: denoising.HeldOutPairs, device: torch.device
) -> list[dict[str, Any]]:
    """The rows of the Tweedie identities of a trained model, at a few held-out pairs a level."""
    few = min(8, len(against.x0))
    each = against.sigma.repeat_interleave(few).to(device)
    x0, eps = (t[:few].repeat(len(against.sigma), *[1] * (t.ndim - 1)).to(device)
               for t in (against.x0, against.eps))  # fmt: skip
    return [asdict(row) for row in check_model(trained, x0, eps, each)]


def of_samples(
    metrics: Sequence[Metric],
    samples: torch.Tensor,
    data: Data,
    condition: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, MetricValue]:
    """Each metric of samples (N, *shape), drawn with these classes, from a stream of its own."""
    return {
        metric.name: metric.estimate(samples, data, stream(0, f"metric/{metric.name}"), condition)
        for metric in metrics
    }


def _decoded(samples: torch.Tensor, data: Data) -> torch.Tensor:
    """Samples as images where they are latents; on the CPU, so that it waits for the device."""
    decoded = samples if data.first_stage is None else data.first_stage.decode(samples)
    return decoded.cpu()


def _counted(config: TrialConfig, levels: tuple[float, ...]) -> NDArray[np.bool_]:
    """Which of the levels (L,) the metrics of all levels are made of.

    A trial that is measured at those that it is asked for and at those of a table that it is
    compared with has the metrics of the former, so that no other trial changes them.
    """
    asked = set(config.asked_levels or levels)
    every = not asked <= set(levels)
    return np.array([every or level in asked for level in levels])


def elbo(
    denoiser: Denoiser,
    objective: Objective,
    against: denoising.HeldOutPairs,
    variance: str,
    device: torch.device,
) -> dict[str, MetricValue]:
    """The bound on -log p(x0) of the chain over the levels drawn, and its terms.

    All in nats per dimension; the matching terms are added.
    """
    given = ConditionedDenoiser(denoiser, against.on(device))
    x0 = against.x0.to(device)
    with torch.no_grad():
        terms = Chain(objective.levels).elbo(given, x0, stream(0, "elbo"), variance)
    each = {
        "elbo": terms.total,
        "elbo_reconstruction": terms.reconstruction,
        "elbo_matching": terms.matching.sum(0),
        "elbo_prior": terms.prior,
    }
    return {name: mean(term.cpu() / x0[0].numel()) for name, term in each.items()}


def draw(
    denoiser: Denoiser,
    data: Data,
    config: TrialConfig,
    n: int,
    generator: torch.Generator,
    device: torch.device,
    registry: Registry,
    denoise: Denoise | None = None,
) -> torch.Tensor:
    """n samples by the configuration's own sampler and levels; (n, *shape).

    They follow `denoise` in place of the denoiser where it is given.
    """
    sigmas = sampling_levels(config, registry)
    sampler = component(registry, "sampler", config.evaluation.sampler)
    x = _start(denoiser, data, float(sigmas[0]), n, generator)
    with torch.no_grad():
        return sample(denoise or denoiser, x.to(device), sigmas, sampler, generator)


def _start(
    denoiser: Denoiser, data: Data, sigma: float, n: int, generator: torch.Generator
) -> torch.Tensor:
    """n draws of the prior at the first level: noise and the data's second moment."""
    top = (sigma**2 + denoiser.sigma_data**2) ** 0.5
    x: torch.Tensor = top * torch.randn(n, *data.shape, generator=generator)
    return x


def _exact_ends(
    config: TrialConfig, registry: Registry, guide: Guide, samples: torch.Tensor
) -> dict[str, MetricValue]:
    """How far samples are from the ends of the exact guided ODE from the same noise.

    Nothing where it is not asked for, where the exact answer is not known, or for a sampler that
    draws noise, which follows no ODE. Its error is that of the ODE's own steps.
    """
    steps, path = config.evaluation.exact_ends, sampling_levels(config, registry)
    sampler = component(registry, "sampler", config.evaluation.sampler)
    if not steps or not sampler.deterministic:
        return {}
    n = min(len(samples), MOST_ENDS)
    exact = guide.exact({name: y[:n] for name, y in guide.of_samples(len(samples)).items()})
    if exact is None:
        return {}
    high, low = float(path[0]), float(path[-2])
    x = _start(guide.denoiser, guide.data, high, len(samples), stream(0, "samples"))[:n]
    ends = ode_ends(exact, x.to(guide.device), high, low, steps)
    return {"guided_ode_error": MetricValue(end_points(samples[:n], ends.x), ends.error)}
