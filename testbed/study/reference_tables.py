"""Tables of a study that need no training.

They hold coefficients, weights, equal objectives and the floors of the real data.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch

from testbed.components.dataset import Data
from testbed.metrics import linear_baseline
from testbed.oracles import Oracle
from testbed.random import stream
from testbed.registry import Registry
from testbed.study import equal_objectives
from testbed.study.plan import Plan
from testbed.trial.build import assemble, component, data_of, dataset
from testbed.trial.config import TrialConfig
from testbed.trial.validity import levels_of

REPEATS = 8
ENTROPY_DRAWS = 8192
"""Of the oracle, for the entropy of the data."""


def write(plan: Plan, registry: Registry) -> list[dict[str, Any]]:
    """Writes coefficients.csv and data/<case>.*; returns all groups of equal objectives."""
    tables: list[pd.DataFrame] = []
    known: set[tuple[str, str, str]] = set()
    cases: dict[str, TrialConfig] = {}
    for trial in plan.trials:
        config = trial.config
        data = data_of(config, registry)
        try:
            denoiser, objective = assemble(config, registry, data)
        except Exception:
            if trial.state != "failed":
                raise
            continue  # it failed for the same reason, and has told it
        for label in trial.labels:
            cases.setdefault(label["case"], config)
            key = (label["case"], label["arm"], label["variant"])
            if key not in known and objective.parameterization.affine:
                tables.append(_coefficients(label, denoiser, objective, data))
            known.add(key)
    if tables:
        plan.files.put_table("coefficients.csv", pd.concat(tables))
    for case, config in cases.items():
        _real(plan, case, config, registry)
    return equal_objectives.find(plan, registry)


def _coefficients(label: dict[str, str], denoiser: Any, objective: Any, data: Data) -> pd.DataFrame:
    """One row per level: the four coefficients, target size, effective weights, loss at F = 0."""
    sigma = denoiser.level(levels_of(objective.density, 129))
    p, sd = objective.parameterization, objective.sigma_data
    c = p.coefficients(sigma, sigma_data=sd)
    c_in, c_noise = denoiser.inputs(sigma)
    a, b = p.pair_weights(sigma, sigma_data=sd)
    target = torch.sqrt(a**2 * data.sigma_data**2 + b**2 * objective.noise.variance)
    columns = {
        "sigma": sigma,
        "c_skip": c.skip,
        "c_out": c.out,
        "c_in": c_in,
        "c_noise": c_noise,
        "target_rms": target,
        "weight": objective.effective_weight(sigma),
        "weight_eps": objective.effective_weight(sigma) * sigma**2,
    }
    if objective.loss.quadratic:
        columns["loss_start"] = objective.terms(sigma).k * target**2 / objective.scale(data)
    table = pd.DataFrame(
        {name: values.detach().double().numpy() for name, values in columns.items()}
    )
    for column, value in reversed(label.items()):
        table.insert(0, column, value)
    return table


def _real(plan: Plan, case: str, config: TrialConfig, registry: Registry) -> None:
    """The real samples and, for each metric's floor: the other split in place of a model."""
    data, folder, file = dataset(registry, config.dataset), plan.files.data, case or "data"
    baseline = linear_baseline.fit(data)
    n = config.evaluation.samples
    floors = {}
    for spec in config.evaluation.metrics:
        metric = component(registry, "metric", spec)
        values = []
        for repeat in range(REPEATS):
            generator = stream(repeat, f"floor/{metric.name}")
            stand_in = data.train if metric.against == "test" else data.test
            index = torch.randperm(len(stand_in), generator=generator)[:n]
            try:
                values.append(metric(stand_in[index], data, generator))
            except Exception:  # a plugin's: its trials have failed and told why
                values.append(math.nan)
        column = torch.tensor(values, dtype=torch.float64)
        floors[metric.name] = {"mean": float(column.mean()), "sd": float(column.std())}
    described = {
        **config.dataset.model_dump(),
        "shape": list(data.shape),
        "train": len(data.train),
        "test": len(data.test),
        "labels": data.labels,
        "sigma_data": data.sigma_data,
        "variance": float(data.train.double().flatten(1).var(0, correction=0).mean()),
        "oracle": data.oracle is not None,
        "linear_baseline": {"estimator": baseline.estimator, "sound": baseline.sound},
        "notes": plan.data_notes.get(case, []),
        "entropy": data.oracle and _entropy(data.oracle, config.measured[0]),
        "floors": floors,
    }
    folder.put_json(f"{file}.json", described)
    folder.put_tensors(f"{file}.safetensors", {"real": data.test[:n]}, {"case": file})


def _entropy(oracle: Oracle, sigma: float) -> dict[str, float]:
    """The entropy of x0 + sigma eps in nats, -E log p over draws, with its standard error."""
    generator = stream(0, "entropy")
    x0 = oracle.sample(ENTROPY_DRAWS, generator).double()
    x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    log_p = oracle.log_density(x, sigma)
    error = float(log_p.std()) / math.sqrt(ENTROPY_DRAWS)
    return {"value": -float(log_p.mean()), "error": error, "sigma": sigma}
