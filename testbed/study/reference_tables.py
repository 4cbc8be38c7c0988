"""Tables of a study that need no training.

They hold coefficients, weights, shares of draws, equal objectives and the floors of the real data.
`reference.json` in the study's folder holds the digests of what they were made of and of what was
written, so that a study that runs again does not make them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from testbed.components.dataset import Data
from testbed.metrics import linear_baseline
from testbed.oracles import Oracle
from testbed.random import stream
from testbed.registry import Registry
from testbed.study import drawn_levels, equal_objectives
from testbed.study.plan import Plan
from testbed.tensors import blocks
from testbed.trial import sources
from testbed.trial.build import assemble, component, data_of
from testbed.trial.config import TrialConfig
from testbed.trial.specs import canonical
from testbed.trial.validity import levels_of

FILE = "reference.json"
REPEATS = 8
ENTROPY_DRAWS = 8192
"""Of the oracle, for the entropy of the data."""


def write(plan: Plan, registry: Registry) -> list[dict[str, Any]]:
    """Writes coefficients.csv, drawn.csv and data/<case>.*; returns groups of equal objectives.

    Nothing is written where all of it is there already.
    """
    made_of = _made_of(plan)
    kept = plan.files.checked(FILE)
    if kept and (kept["made_of"], kept["written"]) == (made_of, _written(plan)):
        return list(kept["equal_objectives"])
    groups = _make(plan, registry)
    record = {"made_of": made_of, "written": _written(plan), "equal_objectives": groups}
    plan.files.put_checked(FILE, record)
    return groups


def _made_of(plan: Plan) -> str:
    """The digest of all that the tables depend on."""
    parts = {
        "trials": [[one.config.record(), one.labels, one.state == "failed"] for one in plan.trials],
        "notes": plan.data_notes,
        "sources": sources.digest([__name__]),
        "torch": torch.__version__,
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]


def _written(plan: Plan) -> str:
    """The digest of the tables."""
    sha = hashlib.sha256()
    for name in ("coefficients.csv", "drawn.csv"):
        sha.update(plan.files.store.get(name) or b"")
    for case in dict.fromkeys(label["case"] for one in plan.trials for label in one.labels):
        for kind in ("json", "safetensors"):
            sha.update(plan.files.data.store.get(f"{case or 'data'}.{kind}") or b"")
    return sha.hexdigest()[:16]


def _make(plan: Plan, registry: Registry) -> list[dict[str, Any]]:
    tables: list[pd.DataFrame] = []
    drawn: list[pd.DataFrame] = []
    known: set[tuple[str, str, str]] = set()
    cases: dict[str, TrialConfig] = {}
    for trial in plan.trials:
        config = trial.config
        data = data_of(config, registry)
        if config.fixed is not None:
            continue  # it has no objective
        try:
            denoiser, objective = assemble(config, registry, data)
        except Exception:
            if trial.state != "failed":
                raise
            continue  # it failed for the same reason, and has told it
        for label in trial.labels:
            cases.setdefault(label["case"], config)
            key = (label["case"], label["arm"], label["variant"])
            if key in known:
                continue
            known.add(key)
            own = dict(zip(("case", "arm", "variant"), key, strict=True))
            drawn.append(_labelled(own, drawn_levels.table(config, objective)))
            if objective.parameterization.affine:
                tables.append(_labelled(label, _coefficients(denoiser, objective, data)))
    if tables:
        plan.files.put_table("coefficients.csv", pd.concat(tables))
    if drawn:
        plan.files.put_table("drawn.csv", pd.concat(drawn))
    for case, config in cases.items():
        _real(plan, case, config, registry)
    return equal_objectives.find(plan, registry)


def _labelled(label: dict[str, str], table: pd.DataFrame) -> pd.DataFrame:
    """The table with the labels as its first columns."""
    for column, value in reversed(label.items()):
        table.insert(0, column, value)
    return table


def _coefficients(denoiser: Any, objective: Any, data: Data) -> pd.DataFrame:
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
    return pd.DataFrame(
        {name: values.detach().double().numpy() for name, values in columns.items()}
    )


def _real(plan: Plan, case: str, config: TrialConfig, registry: Registry) -> None:
    """The real samples and, for each metric's floor: the other split in place of a model.

    Of latents the samples are images; no sample of theirs can be nearer to the data than the held
    out images are that went through the first stage, whose metric is the floor "decoded".
    """
    data, folder, file = (
        data_of(config, registry),
        plan.files.data,
        case or "data",
    )
    shown = data.pixels or data
    baseline = linear_baseline.fit(data)
    n = config.evaluation.samples
    floors, spaces = {}, {}
    for spec in config.evaluation.metrics:
        metric = component(registry, "metric", spec)
        values = []
        for repeat in range(REPEATS):
            generator = stream(repeat, f"floor/{metric.name}")
            other = "train" if metric.against == "test" else "test"
            stand_in = shown.train if other == "train" else shown.test
            index = torch.randperm(len(stand_in), generator=generator)[:n]
            try:
                classes = shown.condition(other, config.conditions if metric.conditional else ())
                told = {name: y[index] for name, y in classes.items()}
                values.append(metric(stand_in[index], shown, generator, told))
            except Exception:  # a plugin's: its trials have failed and told why
                values.append(math.nan)
        column = torch.tensor(values, dtype=torch.float64)
        with contextlib.suppress(Exception):
            if (space := metric.embedding(shown)) is not None:
                spaces[metric.name] = space.about
        floors[metric.name] = {"mean": float(column.mean()), "sd": float(column.std())}
        if data.first_stage is not None:
            decoded = data.first_stage.decode(data.test[:n])
            generator = stream(0, f"floor/{metric.name}")
            names = config.conditions if metric.conditional else ()
            told = {name: y[:n] for name, y in shown.condition("test", names).items()}
            floors[metric.name]["decoded"] = float(metric(decoded, shown, generator, told))
    described = {
        **config.dataset.model_dump(),
        "shape": list(data.shape),
        "train": len(data.train),
        "test": len(data.test),
        "labels": data.labels,
        "sigma_data": data.sigma_data,
        "variance": _variance(data.train),
        "oracle": data.oracle is not None,
        "linear_baseline": {"estimator": baseline.estimator, "sound": baseline.sound},
        "notes": plan.data_notes.get(case, []),
        "entropy": data.oracle and _entropy(data.oracle, config.measured[0]),
        "floors": floors,
        "features": spaces,
    }
    folder.put_json(f"{file}.json", described)
    folder.put_tensors(f"{file}.safetensors", {"real": shown.test[:n]}, {"case": file})


def _variance(x: Tensor) -> float:
    """The mean over dimensions of the variance of x (N, *shape)."""
    mean = sum(y.double().sum(0) for y in blocks(x)) / len(x)
    return sum(float((y.double() - mean).square().sum()) for y in blocks(x)) / x.numel()


def _entropy(oracle: Oracle, sigma: float) -> dict[str, float]:
    """The entropy of x0 + sigma eps in nats, -E log p over draws, with its standard error."""
    generator = stream(0, "entropy")
    x0 = oracle.sample(ENTROPY_DRAWS, generator).double()
    x = x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    log_p = oracle.log_density(x, sigma)
    error = float(log_p.std()) / math.sqrt(ENTROPY_DRAWS)
    return {"value": -float(log_p.mean()), "error": error, "sigma": sigma}
