"""A plugin that raises at a step, and one that gives NaN from a step on: alone it suffers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from faults import checker, kills
from faults.subject import SMALL, command, lay_out, start
from faults.verdict import Scenario, Verdict

from testbed.trial.folders import Folder

FIXED = SMALL.partition('[[cases]]\nname = "learned"')[0].replace("seeds = 2", "seeds = 1")
GUILTY = FIXED.replace('"edm"]', '"edm", "guilty"]')
SOURCE = """
import multiprocessing, torch, testbed

calls = 0

def scaling(sigma):
    global calls
    one = torch.ones_like(sigma)
    # For a block of 50 steps with 16 samples it is called a few times.
    if sigma.numel() % 800 == 0 and multiprocessing.parent_process() is not None:
        calls += 1
        if calls > 8:
            ACTION
    noise = torch.log(sigma) / 4
    return testbed.Coefficients(skip=one, out=-sigma, in_=one / (1 + sigma), noise=noise)

@testbed.hookimpl
def testbed_parameterizations():
    recipe = testbed.Recipe(density="lognormal", weighting="edm")
    yield testbed.Parameterization("guilty", scaling, recipe=recipe, noise_kind="log_sigma")
"""
RAISES = SOURCE.replace("ACTION", 'raise ValueError("enough")')
NAN = SOURCE.replace("ACTION", "one = one * float('nan')")
ULP = 2.0**-23
STEPS = 900


def near(one: Any, other: Any) -> bool:
    """Equal but for rounding: one unit in the last place a step (training/test_batch.py)."""
    return math.isclose(one, other, rel_tol=STEPS * ULP)


def alone(folder: Path, source: str, engine: str) -> Verdict:
    """The guilty trial fails or diverges, and the others are what they are without it."""
    found, words = Verdict(cases=1), ("-p", "guilty.py", "--no-mlflow")
    folders = {}
    for name, text in (("with", GUILTY), ("without", FIXED)):
        here = lay_out(folder / name, text, guilty=source)
        ended = start(here, *command((*kills.ENGINES[engine], *words))).wait()
        found.hold("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
        failing = name == "with" and source is RAISES
        found.hold(ended.code == int(failing), f"{name}: exit code {ended.code}: {ended.said}")
        if name == "with":
            said = "ValueError: enough" if failing else "diverged: guilty"
            found.hold(said in ended.out, f"it says {ended.said[-800:]}")
        folders[name] = here / "runs" / "small"
    kept, reference = checker.trials(folders["with"]), checker.trials(folders["without"])
    for id_, other in reference.items():
        one = kept.pop(id_)
        if engine == "sequential":
            found.hold(one == other, f"trial {id_} is another with the guilty one beside it")
            continue
        for key, value in other.result["metrics"].items():
            metric = one.result["metrics"][key]
            found.hold(near(metric, value), f"trial {id_}: {key} = {metric} for {value}")
    (guilty,) = kept
    result = Folder.at(folders["with"] / "trials" / guilty).json("result.json")
    status = "failed" if source is RAISES else "diverged"
    found.hold(result["status"] == status, f"the guilty trial is {result['status']}")
    if status == "diverged":
        at = result["diverged_at"]
        found.hold(0 < at < STEPS and at % 50 == 0, f"it diverged at {at}")
    return found


SCENARIOS: dict[str, Scenario] = {
    "plugin: raises, batched": lambda at: alone(at, RAISES, "batched"),
    "plugin: raises, sequential": lambda at: alone(at, RAISES, "sequential"),
    "plugin: NaN, batched": lambda at: alone(at, NAN, "batched"),
    "plugin: NaN, sequential": lambda at: alone(at, NAN, "sequential"),
}
