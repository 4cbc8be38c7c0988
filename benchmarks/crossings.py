"""How often the interval of a crossing holds it, and how often one is claimed where there is none.

    testbed study benchmarks/crossings.toml --out runs/crossings --no-mlflow
    python benchmarks/crossings.py measure runs/crossings    noise of log ratios between seeds
    python benchmarks/crossings.py simulate [--studies 1000]

`measure` writes the covariance over seeds, between steps, of the log ratios of each variant to its
baseline to results/crossings.json. `simulate` draws studies whose noise is Gaussian with one of
these covariances, scaled to a mean variance of 1 over the steps, another one in each study. In what
follows sd is that unit, and x runs from 0 at the first step to 1 at the last, in log step.

The mean curve rises by RISE sd from the first step to the last. A bent one is beside its chord by
at most `bend` sd: as a parabola, as 1 - exp(-4x), as tanh(2.5 (x - 1/2)), and, which interpolation
cannot see, with a corner at 0.4, between two measured steps. It crosses zero at an x that is
uniform between 0.1 and 0.9. Coverage is that of all studies, where an undecided one has the steps
at which no sign is shown; that of those which claim a crossing; and of these, that of the measured
steps around it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from testbed.metrics.crossings import Crossings, crossings
from testbed.report import reading
from testbed.report.results import Results

Array = NDArray[np.float64]
Curve = Callable[[Array], Array]
FILE = Path(__file__).parent / "results" / "crossings.json"
RISE = 32.0
SEEDS = (3, 5, 8, 12)
BENDS: dict[str, Curve] = {
    "parabola": lambda x: x * (1 - x),
    "exponential": lambda x: (1 - np.exp(-4 * x)) / (1 - np.exp(-4)) - x,
    "S": lambda x: np.tanh(2.5 * (x - 0.5)) / np.tanh(1.25) / 2 + 0.5 - x,
    "corner": lambda x: np.minimum(x / 0.4, (1 - x) / 0.6),
}
"""The distance from the chord, up to a factor."""
APART: dict[str, Curve] = {
    "0 throughout": lambda x: 0 * x,
    "1/2 sd throughout": lambda x: 0 * x + 0.5,
    "falls from 8 sd to 0": lambda x: 8 * (1 - x),
    "falls from 8 sd to 0 at half": lambda x: 8 * np.maximum(1 - 2 * x, 0),
    "touches 0 at half": lambda x: 8 * np.abs(2 * x - 1) ** 2,
}
"""Curves that do not cross zero."""


def at_points(read: Results, case: str, variant: str, metric: str) -> tuple[list[int], Array]:
    """The steps (K,), and the metric (S, K) at each, of a study's folder; the end is the last."""
    (arm,) = read.arms(case)
    rows: list[list[float]] = []
    steps: list[int] = []
    for trial in read.of(case, arm, variant).itertuples():
        at = read.folder / "trials" / str(trial.id)
        files = [json.loads(one.read_text()) for one in at.glob("points/*/result.json")]
        files = sorted(files, key=lambda one: one["step"])
        steps = [one["step"] for one in files] + [read.configs[str(trial.id)].training.steps]
        end = json.loads((at / "result.json").read_text())
        rows.append([one["metrics"][metric] for one in (*files, end)])
    return steps, np.array(rows)


def measure(folder: Path) -> None:
    """Writes the covariances of a study's log ratios to the baseline."""
    read = reading.read(folder)
    record: dict[str, object] = {}
    found = []
    for case in read.cases:
        base, *others = read.variants(case)
        steps, b = at_points(read, case, base, read.primary(case))
        for variant in others:
            _, a = at_points(read, case, variant, read.primary(case))
            r = np.log(a / b)
            correlation = np.corrcoef(r.T).round(2).tolist()
            found.append({
                "contest": f"{case}, {variant} over {base}",
                "seeds": len(r),
                "mean": r.mean(0).round(3).tolist(),
                "sd": r.std(0, ddof=1).round(4).tolist(),
                "correlation": correlation,
            })  # fmt: skip
            print(found[-1])
        record = {"steps": steps, "contests": found}
    _put(record)


def covariances() -> tuple[Array, list[Array]]:
    """The steps (K,), and a covariance (K, K) of mean variance 1 for each contest."""
    record = json.loads(FILE.read_text())
    found = []
    for one in record["contests"]:
        sd = np.array(one["sd"])
        C = np.array(one["correlation"]) * sd[:, None] * sd
        found.append(C / np.trace(C) * len(C))
    return np.array(record["steps"], dtype=float), found


def draw(curve: Array, seeds: int, roots: list[Array], rng: np.random.Generator) -> Array:
    """Metrics a over b = 1, (S, K), of a mean log ratio (K,)."""
    L = roots[rng.integers(len(roots))]
    return np.asarray(np.exp((curve + rng.standard_normal((seeds, len(curve))) @ L.T) / RISE))


def holds(found: Crossings, step: float) -> bool:
    """Whether what is said of where the curves cross holds this step."""
    if found.open is not None:
        return found.open[0] <= step <= found.open[1]
    return any(one.low <= step <= one.high for one in found.crossings)


def simulate(studies: int) -> None:
    """Prints and writes coverage and rates of false claims with Clopper-Pearson intervals."""
    steps, noise = covariances()
    roots: list[Array] = [np.asarray(np.linalg.cholesky(C), np.float64) for C in noise]
    cells: list[dict[str, object]] = []
    bends = [("line", 0.0), *((name, bend) for name in BENDS for bend in (4.0, 8.0))]
    x = np.linspace(0, 1, len(steps))
    print("| curve | seeds | claimed | coverage | of those claimed | measured steps around it |")
    print("|---|---|---|---|---|---|")
    for name, bend in bends:
        for seeds in SEEDS:
            rng = np.random.default_rng([seeds, int(bend), len(name)])
            held, claimed, around = np.zeros((3, studies), bool)
            for i in range(studies):
                tau = rng.uniform(0.1, 0.9)
                curve, at = _curve(name, bend, x), _curve(name, bend, np.array([tau]))
                a = draw(curve - at, seeds, roots, rng)
                found = crossings(steps, a, np.ones_like(a))
                step = steps[0] * (steps[-1] / steps[0]) ** tau
                held[i], claimed[i] = holds(found, step), found.verdict == "cross"
                around[i] = any(one.after <= step <= one.before for one in found.crossings)
            rates = {"claimed": claimed, "coverage": held, "coverage of claims": held[claimed]}
            rates["measured steps around"] = around[claimed]
            cells.append(_cell(f"{name} {bend:g} sd" if bend else name, seeds, rates))
    print("\n| without a crossing | seeds | claimed | said not to cross |\n|---|---|---|---|")
    for name, apart in APART.items():
        for seeds in SEEDS:
            rng = np.random.default_rng([seeds, len(name)])
            curve = apart(x)
            verdicts = []
            for _ in range(studies):
                a = draw(curve, seeds, roots, rng)
                verdicts.append(crossings(steps, a, np.ones_like(a)).verdict)
            said = np.array(verdicts)
            rates = {"claimed": said == "cross", "not crossing": said == "do not cross"}
            cells.append(_cell(name, seeds, rates))
    _put({**json.loads(FILE.read_text()), "studies": studies, "cells": cells})


def _curve(name: str, bend: float, x: Array) -> Array:
    """The mean log ratio in sd at places x, before it is moved to its crossing."""
    if not bend:
        return RISE * x
    shape = BENDS[name]
    largest = float(np.abs(shape(np.linspace(0, 1, 1001))).max())
    return np.asarray(RISE * x + bend * shape(x) / largest)


def _cell(name: str, seeds: int, rates: dict[str, NDArray[np.bool_]]) -> dict[str, object]:
    """Prints a row; returns it with the Clopper-Pearson intervals of 95 %."""
    cell: dict[str, object] = {"curve": name, "seeds": seeds}
    texts = []
    for what, hits in rates.items():
        k, n = int(hits.sum()), len(hits)
        low = float(stats.beta.ppf(0.025, k, n - k + 1)) if k else 0.0
        high = float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
        cell[what] = [round(float(one), 4) for one in (k / max(n, 1), low, high)]
        texts.append(f"{k / max(n, 1):.1%} [{low:.1%}, {high:.1%}]")
    print(f"| {name} | {seeds} | {' | '.join(texts)} |", flush=True)
    return cell


def _put(record: dict[str, object]) -> None:
    FILE.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("folder", type=Path)
    commands.add_parser("simulate").add_argument("--studies", type=int, default=1000)
    asked = parser.parse_args()
    if asked.command == "measure":
        measure(asked.folder)
    else:
        simulate(asked.studies)


if __name__ == "__main__":
    main()
