"""How a study's cost grows with its trials: plan, driver, report and resume, without any training.

    python benchmarks/scale.py measure --trials 100 1000 10000 --out benchmarks/results/scale.json

Trials that have ended are written through the folders' own interface, with numbers that are drawn.
`seeds` has 20 variants with ever more seeds, or as many variants as it takes with 10,000 each, and
`variants` 10 seeds of ever more variants. Each figure is of a process of its own: wall and CPU
seconds of the part, and the process's largest memory with all imports.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from testbed.registry import Registry, default_registry
from testbed.study import engines, grouping, looks, runner, study_file
from testbed.study import plan as plans
from testbed.study.engines import ExecutionPlan
from testbed.study.identities import Identities
from testbed.study.plan import Plan
from testbed.study.telling import Telling
from testbed.study.tracking import Tracker
from testbed.trial.folders import TrialFolder

SHAPES = ("seeds", "variants")
MOST_SEEDS = 10_000
"""Of a case, in a study file."""
PARTS = ("plan", "driver", "report", "resume")
TRACKED = "tracked"
STUDY = """
[study]
name = "scale"
[base]
dataset = {{ name = "mixture", dim = 2, n = 512, test = 256 }}
network = {{ name = "mlp", width = 16, depth = 1 }}
training = {{ steps = 2000, batch = 64, points = 20 }}
evaluation = {{ levels = 16, draws = 64, samples = 64, steps = 6, metrics = ["energy"] }}
seeds = {seeds}
[arms]
equal = {{ weighting = "edm", density = "lognormal", loss = "l2", c_in = "shared" }}
[grid]
parameterization = ["eps", "v", "edm", "x0", "score"]
"training.learning_rate" = {rates}
[report]
baseline = "edm"
"""


def study(shape: str, trials: int, folder: Path) -> Path:
    """The study file of so many trials."""
    variants = max(20, trials // MOST_SEEDS) if shape == "seeds" else trials // 10
    rates = [float(f"{rate:.6g}") for rate in np.geomspace(1e-4, 1e-2, max(1, variants // 5))]
    file = folder / "scale.toml"
    file.write_text(STUDY.format(seeds=trials // variants, rates=rates))
    return file


def planned(shape: str, trials: int, folder: Path, registry: Registry) -> Plan:
    """The plan over what lies in the folder."""
    read = study_file.read(study(shape, trials, folder))
    return plans.make(read, registry, folder / "out", "cpu")


def end(trial: TrialFolder, steps: int) -> None:
    """Writes the curve, the levels and the result of a trial that has ended."""
    draw = np.random.default_rng(int(trial.name, 16))
    now = time.time()
    rows = [
        {
            "step": step,
            "loss": float(draw.lognormal(-step / steps, 0.1)),
            "seconds": 0.1,
            "gradient_norm": 1.0,
            "gradient_norm_cv": 0.1,
            "time": now,
        }
        for step in range(steps // 20, steps + 1, steps // 20)
    ]
    trial.store.put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    sigma = np.geomspace(0.002, 80, 16)
    wiener = 0.25 * sigma**2 / (sigma**2 + 0.25)
    loss = wiener * draw.lognormal(-0.2, 0.1, 16)
    table = {"sigma": sigma, "loss": loss, "wiener": wiener, "optimum": wiener * 0.5}
    table |= {"excess": loss - wiener * 0.5}
    table |= dict.fromkeys(("output_rms", "target_rms"), np.ones(16))
    trial.put_table("levels.csv", pd.DataFrame(table))
    trial.put_json("tweedie.json", {"rows": []})
    metrics = {
        "excess_nats": float(draw.lognormal(2, 0.1)),
        "energy": float(draw.lognormal(-3, 0.2)),
    }
    metrics["loss_vs_wiener"] = float(np.mean(loss / wiener))
    result = {"status": "finished", "metrics": metrics, "errors": {}, "steps": steps, "ended": now}
    result |= {"diverged_at": None, "parameters": 1000, "training_seconds": 2.0}
    result |= {"measuring_seconds": 1.0, "curve": trial.curve_mark()[1], "final_loss": 0.4}
    trial.put_json("result.json", result)


@contextmanager
def without_sync() -> Iterator[None]:
    """Lets files be written without waiting for the disk, which a fixture need not."""
    with patch.object(os, "fsync"):
        yield


class Ending:
    """An executor whose trials end at once: what remains is what the driver does."""

    slots = 8

    def __init__(self) -> None:
        self.seconds = 0.0

    def submit(self, job: Any) -> Future[Any]:
        """The job's trials, ended; the time that their files take is counted apart."""
        future: Future[Any] = Future()
        start = time.perf_counter()
        with without_sync():
            for config, at in zip(job.configs, job.trial_dirs, strict=True):
                end(TrialFolder.at(at), config.training.steps)
        self.seconds += time.perf_counter() - start
        future.set_result(["finished"] * len(job.configs))
        return future

    def advance(self) -> None:
        """Nothing waits."""

    def stop(self) -> None:
        """Nothing runs."""

    def close(self, kill: bool = False) -> None:
        """Nothing to end."""


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, **more: float) -> dict[str, float]:
        """The seconds, the largest memory of the process in MB, and what else was found."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": wall, "cpu_seconds": cpu, "mb": memory, **more}


def without_checks(plan: Plan, registry: Registry) -> Identities:
    """The identities of a study whose checks are done: they do not grow with the trials."""
    found = Identities(plan, registry)
    found._waiting.clear()
    return found


def plan(shape: str, trials: int, folder: Path) -> dict[str, float]:
    """A new study's plan, and the groups that it trains in."""
    registry = default_registry()
    planned(shape, 100, folder, registry)  # what is imported and built once
    clock = Clock()
    made = planned(shape, trials, folder, registry)
    assert len(made.trials) == trials, len(made.trials)
    found = clock.read()
    grouped = Clock()
    grouping.of_plan(made.pending(), registry, made, "sequential", 8)
    return found | {"groups_cpu_seconds": grouped.read()["cpu_seconds"]}


def driver(shape: str, trials: int, folder: Path, store: str = "") -> dict[str, float]:
    """The driver's loop from the first trial to the last, without what a trial does."""
    registry = default_registry()
    made = planned(shape, trials, folder, registry)
    executor = Ending()
    identities = without_checks(made, registry)
    groups = grouping.of_plan(made.pending(), registry, made, "sequential", 8)
    engine = ExecutionPlan("sequential", 8, 1, groups)
    tracker = Tracker(made, store, print, "later") if store else None
    clock = Clock()
    runner.describe(made, registry)
    engine.write(made.folder)
    described = clock.read()["seconds"]
    tell = Telling(tracker)
    parts = executor, tell, runner.Progress(), [identities]
    runner.execute(made, registry, engine, *parts)
    tell.finish()
    found = clock.read(describing=described, trials_own=executor.seconds)
    if tracker is not None:
        for one in made.trials:  # what the thread had no time for
            tracker.end(one, one.state)
        found |= {"mlflow_cpu_seconds": tracker.seconds}
    a_trial = 1000 * (found["seconds"] - executor.seconds) / trials
    return found | {"ms_a_trial": a_trial}


def tracked(shape: str, trials: int, folder: Path) -> dict[str, float]:
    """The driver with an MLflow store of its own."""
    return driver(shape, trials, folder, f"sqlite:///{folder / 'mlflow.db'}")


def ended(shape: str, trials: int, folder: Path, registry: Registry) -> Plan:
    """The plan of a study whose trials have all ended."""
    made = planned(shape, trials, folder, registry)
    with without_sync():
        looks.begin(made.files, made.study.report.looks)
        for one in made.trials:
            end(made.files.trial(one.id), one.config.training.steps)
        runner.describe(made, registry)
        made.files.put_json("tweedie.json", {"rows": []})
        facts = {"oracle": True, "shape": [2], "train": 512, "test": 256, "floors": {}}
        made.files.data.put_json("data.json", facts)
    return made


def report(shape: str, trials: int, folder: Path) -> dict[str, float]:
    """The report of a study whose trials have all ended."""
    from testbed.report import page

    ended(shape, trials, folder, default_registry())
    clock = Clock()
    said: list[tuple[float, str]] = []
    page.write(folder / "out", lambda line: said.append((time.process_time(), line)))
    found = clock.read()
    times = [at for at, _ in said] + [time.process_time()]
    for (at, line), after in zip(said, times[1:], strict=True):
        found[f"cpu: {line}"] = after - at
    return found


def resume(shape: str, trials: int, folder: Path) -> dict[str, float]:
    """The same command again over a study whose trials have all ended, up to the report."""
    registry = default_registry()
    ended(shape, trials, folder, registry)
    clock = Clock()
    made = planned(shape, trials, folder, registry)
    looked_up = clock.read()["seconds"]
    engine = engines.choose(made, registry)
    runner.describe(made, registry)
    engine.write(made.folder)
    made.files.tidy({group.id for group in engine.groups})
    spare = [without_checks(made, registry)]
    parts = Ending(), Telling(None), runner.Progress(), spare
    outcome = runner.execute(made, registry, engine, *parts)
    assert set(outcome.statuses.values()) == {"finished"}
    return clock.read(planning=looked_up)


MEASURES: dict[str, Callable[[str, int, Path], dict[str, float]]] = {
    "plan": plan,
    "driver": driver,
    TRACKED: tracked,
    "report": report,
    "resume": resume,
}


def measure(shapes: list[str], parts: list[str], counts: list[int], out: Path | None) -> None:
    """Every part of every shape at every number of trials, each in a process of its own."""
    known = json.loads(out.read_text()) if out is not None and out.is_file() else {}
    figures = known.setdefault("figures", {})
    for shape in shapes:
        for part in parts:
            for trials in counts:
                with tempfile.TemporaryDirectory() as name:
                    command = [sys.executable, __file__, "one", shape, part, str(trials), name]
                    said = subprocess.run(command, capture_output=True, text=True, check=True)
                    found = json.loads(said.stdout.splitlines()[-1])
                    own = figures.setdefault(shape, {}).setdefault(part, {})
                    own[str(trials)] = {key: round(value, 3) for key, value in found.items()}
                    print(f"{shape} {part} {trials}: {own[str(trials)]}", flush=True)
    for shape, of in figures.items():
        for part, by in of.items():
            print(f"{shape} {part}: grows as trials^{exponent(by):.2f}")
    if out is not None:
        known["machine"] = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        }
        known["machine"]["python"] = platform.python_version()
        out.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def exponent(by: dict[str, dict[str, float]]) -> float:
    """The slope of log CPU seconds over log trials, between the two largest counts."""
    counts = sorted(map(int, by))[-2:]
    if len(counts) < 2:
        return math.nan
    few, many = (max(by[str(n)]["cpu_seconds"], 1e-3) for n in counts)
    return math.log(many / few) / math.log(counts[1] / counts[0])


def draw(figures: Path, out: Path) -> None:
    """Draws CPU seconds over trials, and a line that is linear."""
    from matplotlib.figure import Figure

    from testbed.report.drawing import styled

    found = json.loads(figures.read_text())["figures"]["seeds"]
    with styled(None):
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = figure.subplots()
        for part in ("report", "resume", "plan"):
            counts = sorted(map(int, found[part]))
            axes.loglog(
                counts, [found[part][str(n)]["cpu_seconds"] for n in counts], "o-", label=part
            )
        axes.loglog([100, 10_000], [0.2, 20], ":", color="0.5", label="linear")
        axes.set(xlabel="trials", ylabel="CPU seconds")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
        axes.legend(frameon=False)
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("measure")
    many.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    many.add_argument("--parts", nargs="+", choices=[*MEASURES], default=[*PARTS])
    many.add_argument("--trials", nargs="+", type=int, default=[100, 1000, 10000])
    many.add_argument("--out", type=Path)
    one = commands.add_parser("one")
    one.add_argument("shape")
    one.add_argument("part")
    one.add_argument("trials", type=int)
    one.add_argument("folder", type=Path)
    picture = commands.add_parser("draw")
    picture.add_argument("--figures", type=Path, default=Path("benchmarks/results/scale.json"))
    picture.add_argument("--out", type=Path, default=Path("docs/scale.svg"))
    asked = parser.parse_args()
    if asked.command == "draw":
        draw(asked.figures, asked.out)
        return
    if asked.command == "one":
        print(json.dumps(MEASURES[asked.part](asked.shape, asked.trials, asked.folder)))
        return
    measure(asked.shapes, asked.parts, asked.trials, asked.out)


if __name__ == "__main__":
    main()
