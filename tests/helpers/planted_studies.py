"""Studies whose numbers are planted, and what a report says of them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from helpers.paths import FIXTURES
from safetensors.numpy import save_file

from testbed.metrics import denoising
from testbed.report import comparisons, finding, reading, results
from testbed.report.comparisons import Comparisons
from testbed.report.page_tables import PageTable
from testbed.report.results import Results

SIGMA = (0.01, 0.1, 1.0, 10.0)
WIENER = (1e-4, 8e-3, 0.2, 0.4)
STEPS, BATCH = 9, 128
DRAWS = STEPS * BATCH
"""What the training of a planted study draws."""
DEFAULT_SIGMA_DATA = {"digits": 0.846745, "mixture": 0.46873}
LEARNT = 20.0
"""How far the best linear denoiser is above a planted loss of value 1."""
Value = float | str
Label = tuple[str, str, str]
Planted = Mapping[Label, Sequence[Value]]


def plant(
    folder: Path,
    planted: Planted,
    baseline: str = "b",
    oracle: bool = False,
    shape: Callable[[str, int], float] = lambda variant, level: 1.0,
    order: Callable[[list[Any]], list[Any]] = lambda trials: trials,
    trained: Mapping[str, tuple[float, float]] | None = None,
    shares: Mapping[str, Sequence[float]] | None = None,
    **study: Any,
) -> Path:
    """A study's folder in which (case, arm, variant) has these primary metrics, one per seed.

    A word instead of a number is the trial's status. `shape` multiplies a variant's loss by level.
    `trained` has the range of levels that a variant's training draws, where it is not the whole,
    and `shares` the share of its DRAWS draws around each level, where it is not a quarter.
    """
    trials = []
    for number, (label, values) in enumerate(planted.items()):
        for seed, value in enumerate(values):
            labels = [dict(zip(results.LABEL, label, strict=True))]
            trials.append({"id": f"t{number:02}{seed:02}", "labels": labels})
            at = folder / "trials" / trials[-1]["id"]
            _trial(at, labels, seed, value, oracle, shape, (trained or {}).get(label[2]))
    record = {
        "name": "planted",
        "title": "Planted",
        "report": {"baseline": baseline, "primary": "", "level": 0.95},
        "trials": order(trials),
        "equal_objectives": [],
        **study,
    }
    _json(folder / "study.json", record)
    for case in dict.fromkeys(label[0] for label in planted):
        facts = {"oracle": oracle, "shape": [2], "train": 9, "test": 9}
        _json(folder / "data" / f"{case}.json", {**facts, "floors": {"energy": {"mean": 0.1}}})
        real = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
        save_file({"real": real}, folder / "data" / f"{case}.safetensors")
    _json(folder / "tweedie.json", {"rows": [_row(0.5), _row(math.nan, "no bound")]})
    columns = dict.fromkeys(["c_skip", "c_out", "c_in", "c_noise", "target_rms", "weight_eps"], 1.0)
    known = [
        {**dict(zip(results.LABEL, label, strict=True)), "sigma": s, **columns, "loss_start": s}
        for label in planted
        for s in SIGMA
    ]
    pd.DataFrame(known).to_csv(folder / "coefficients.csv", index=False)
    drawn = [
        {**dict(zip(results.LABEL, label, strict=True)), "level": level, "share": share}
        for label in planted
        for level, share in zip(SIGMA, (shares or {}).get(label[2], [0.25] * 4), strict=True)
    ]
    pd.DataFrame(drawn).to_csv(folder / "drawn.csv", index=False)
    return folder


def _trial(
    at: Path,
    labels: list[dict[str, str]],
    seed: int,
    value: Value,
    oracle: bool,
    shape: Callable[[str, int], float],
    trained: tuple[float, float] | None,
) -> None:
    config = {
        "parameterization": "v",
        "dataset": "moons",
        "sigma_data": 0.5,
        "sigma_data_measured": 0.5,
        "seed": seed,
        "training_range": trained,
        "training": {"learning_rate": 0.001, "steps": STEPS, "batch": BATCH},
    }
    _json(at / "trial.json", {"id": at.name, "config": config, "labels": labels})
    status = value if isinstance(value, str) else "finished"
    if status == "interrupted":
        (at / "checkpoint").write_text("")
    if status in ("interrupted", "new"):
        return
    ended: dict[str, Any] = {"status": status, "metrics": {}}
    if status == "failed":
        ended["error"] = "ValueError: <i>broken</i>"
    if status == "diverged":
        ended["diverged_at"] = 7
    if isinstance(value, float):
        factor = [value * shape(labels[0]["variant"], i) for i in range(len(SIGMA))]
        ended["metrics"] = _measured(at, value, factor, oracle)
        draws = np.random.default_rng(seed).normal(size=(32, 2)).astype("float32")
        save_file({"samples": draws}, at / "samples.safetensors")
        _json(at / "tweedie.json", {"rows": []})
        rows = [
            {"step": step, "loss": value / step, "gradient_norm": 1.0, "gradient_norm_cv": 0.1}
            for step in (1, 2, 3)
        ]
        (at / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _json(at / "result.json", ended)


def _measured(at: Path, value: float, factor: list[float], oracle: bool) -> dict[str, float]:
    """Writes the losses by level, and returns the metrics."""
    metrics = {"loss_vs_wiener": value, "energy": value / 10, "mmd": value - 1}
    table: dict[str, Any] = {"sigma": SIGMA, "loss": np.multiply(WIENER, factor)}
    table |= {"wiener": np.multiply(WIENER, LEARNT)}
    table |= {"output_rms": [value] * 4, "target_rms": [1.0] * 4}
    if oracle:
        metrics["excess_nats"] = value
        table |= {"excess": np.multiply(WIENER, factor) / 2, "optimum": WIENER}
    pd.DataFrame(table).to_csv(at / "levels.csv", index=False)
    return metrics


def plant_points(
    folder: Path,
    planted: Planted,
    points: Mapping[str, Mapping[str, Sequence[float | None]]],
    **training: Any,
) -> None:
    """Adds what was measured of the trials of a planted study at points of their training.

    Args:
        folder: where `plant` wrote the study; its trainings have 9 steps.
        planted: what `plant` was given.
        points: for each variant the values of its seeds by the point's name, such as "3" or
            "9-0.1"; None for one that was not measured.
        training: settings of every training.
    """
    steps = [int(name) for name in next(iter(points.values())) if "-" not in name]
    widths = [float(name[2:]) for name in next(iter(points.values())) if "-" in name]
    for number, (label, seeds) in enumerate(planted.items()):
        for seed in range(len(seeds)):
            at = folder / "trials" / f"t{number:02}{seed:02}"
            record = json.loads((at / "trial.json").read_text())
            record["config"]["evaluation"] = {"points": steps, "widths": widths}
            record["config"]["training"] |= training
            _json(at / "trial.json", record)
            for name, values in points[label[2]].items():
                value = values[seed]
                if value is None or isinstance(seeds[seed], str):
                    continue
                place = at / "points" / name
                place.mkdir(parents=True)
                metrics = _measured(place, value, [value] * len(SIGMA), oracle=False)
                step, _, width = name.partition("-")
                found = {"step": int(step), "width": float(width) if width else None}
                _json(place / "result.json", {**found, "metrics": metrics})


def _row(ratio: float, reason: str = "", law: str = "a law") -> dict[str, Any]:
    number = None if math.isnan(ratio) else ratio
    names = {"law": law, "subject": "b", "dtype": "float64", "reason": reason}
    return {**names, "sigma": 1.0, "error": number, "bound": 1.0, "ratio": number}


def _json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def noisy(mean: float, seeds: int = 5, sd: float = 0.01, stream: int = 0) -> list[float]:
    """`mean` times a strong factor of the seed, equal in every variant, times a weak own one."""
    common = np.random.default_rng(99).normal(0, 0.5, seeds)
    own = np.random.default_rng(stream).normal(0, sd, seeds)
    return [float(v) for v in mean * np.exp(common + own)]


def said(folder: Path) -> str:
    """Everything that the finding says about a folder."""
    return says(reading.read(folder))


def says(read: Results, compared: Comparisons | None = None) -> str:
    compared = compared or comparisons.make(read)
    found = [(one.title, one.sentences) for one in finding.make(read, compared)]
    parts = [*found, *finding.notes(read, compared)]
    return " ".join(" ".join([case, *said]) for case, said in parts)


def plant_default(folder: Path) -> Path:
    """The default study as it was on 2026-11-29, from its tables by level (five digits)."""
    table = pd.read_csv(FIXTURES / "default_levels.csv.gz", keep_default_na=True)
    shapes = {"digits": [1, 8, 8], "mixture": [8]}
    trials = []
    for number, (key, levels) in enumerate(table.groupby([*results.LABEL, "seed"], sort=False)):
        case, _, variant, seed = key
        label, name = dict(zip(results.LABEL, key[:3], strict=True)), f"t{number:02}"
        trials.append({"id": name, "labels": [label]})
        config = {
            "parameterization": variant,
            "dataset": case,
            "sigma_data": 0.5,
            "sigma_data_measured": DEFAULT_SIGMA_DATA[case],
            "seed": int(seed),
            "training": {"learning_rate": 0.001, "steps": 3000},
            "training_range": levels[["low", "high"]].iloc[0].tolist(),
        }
        at = folder / "trials" / name
        _json(at / "trial.json", {"id": name, "config": config, "labels": [label]})
        own = levels.dropna(axis=1).assign(sigma=levels["level"])
        found = denoising.summary(own, math.prod(shapes[case]))
        metrics = {metric: one.value for metric, one in found.items()}
        _json(at / "result.json", {"status": "finished", "metrics": metrics})
        own.drop(columns=[*results.LABEL, "seed", "low", "high"]).to_csv(at / "levels.csv")
    for case, shape in shapes.items():
        _json(folder / "data" / f"{case}.json", {"oracle": case == "mixture", "shape": shape})
    report = {"baseline": "edm"}
    _json(folder / "study.json", {"name": "default", "report": report, "trials": trials})
    return folder


def lead(folder: Path) -> str:
    """The sentences of the finding about a folder, without titles and notes."""
    read = reading.read(folder)
    return " ".join(s for one in finding.make(read, comparisons.make(read)) for s in one.sentences)


def claims_of(read: Results) -> PageTable:
    """The table of claims of a study of one case."""
    (table,) = (one.claims for one in finding.make(read, comparisons.make(read)) if one.claims)
    return table


WINNER: Planted = {
    ("c", "", "a"): noisy(0.8, stream=1),
    ("c", "", "b"): noisy(1.0, stream=2),
    ("c", "", "d"): noisy(1.5, stream=3),
}
