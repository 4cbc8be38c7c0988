"""Between a kill and the next run somebody edits a plugin, the study, or testbed itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from faults import checker, kills
from faults.subject import SEQUENTIAL, SMALL, Moment, command, lay_out, start
from faults.verdict import Scenario, Verdict
from helpers.paths import ROOT

from testbed.trial.folders import Folder
from testbed.trial.study_folder import StudyFolder

OWN = """
import torch, testbed

def weighting(sigma, sigma_data):
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2

@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("own", weighting)
"""
TEXT = SMALL.replace('weighting = "edm2"\n', "").replace(
    'name = "fixed"\n', 'name = "fixed"\nweighting = "own"\n'
)
WORDS = (*SEQUENTIAL, "-p", "own.py")
HALF = Moment("group", "open", "rows.jsonl", 11)
Edit = Callable[[Path], None]


def edited(file: str, old: str, new: str) -> Edit:
    """Exchanges words in a file of the folder."""

    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return edit


def package(folder: Path) -> dict[str, str]:
    """A copy of testbed in the folder, which can be edited."""
    for name in ("testbed", "plugins", "studies"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "copy" / name, ignore=ignored)
    return {"PYTHONPATH": str(folder / "copy")}


def changed(folder: Path, edit: Edit, key: str, cases: set[str]) -> Verdict:
    """Killed, edited, run again: told, and what results is what an edited study alone gives.

    Args:
        folder: where.
        edit: what is changed.
        key: of the configuration, as the message names it.
        cases: whose trials it makes stale.
    """
    found = Verdict(cases=1)
    lay_out(folder, TEXT, own=OWN)
    more = package(folder)
    address = f"sqlite:///{folder / 'mlflow.db'}"
    ended = start(folder, *command(WORDS), moment=HALF, **more).wait()
    found.kills += ended.fired
    before = {at.name for at in (folder / "runs" / "small" / "trials").iterdir()}
    edit(folder)
    ended = start(folder, *command(WORDS), **more).wait()
    kills.clean(ended, found)
    found.hold("stale: " in ended.out, f"not told: {ended.said}")
    found.hold(f"{key}: " in ended.out and "it is trained anew." in ended.out, ended.said)
    at = folder / "runs" / "small"
    listed = {one["id"] for one in Folder.at(at).json("study.json")["trials"]}
    described = {one["id"]: one for one in StudyFolder.at(at).descriptions()}
    for id_ in before:
        case = described[id_]["labels"][0]["case"]
        found.hold((id_ in listed) != (case in cases), f"a trial of {case}: {id_ in listed}")
    other = folder / "anew"
    ended = start(folder, *command((*WORDS, "--no-mlflow", "--out", str(other))), **more).wait()
    kills.clean(ended, found)
    for id_ in before - listed:
        shutil.rmtree(at / "trials" / id_)
    found.problems += checker.differences(at, checker.trials(other))
    tracked = checker.statuses(address, "small")
    found.hold("RUNNING" not in tracked, f"runs are {tracked}")
    found.hold(tracked.count("FINISHED") == 1 + len(listed), f"runs are {tracked}")
    return found


BOTH = {"fixed", "learned"}
PLUGIN = edited("own.py", "import torch, testbed", "import torch, testbed  # edited")
STUDY = edited("small.toml", "batch = 16", "batch = 32")
TRAINING = edited("copy/testbed/training/engine.py", "BLOCK = 50", "BLOCK = 50  # edited")

SCENARIOS: dict[str, Scenario] = {
    "changed: plugin": lambda at: changed(at, PLUGIN, "plugins.own", {"fixed"}),
    "changed: study": lambda at: changed(at, STUDY, "training.batch", BOTH),
    "changed: training source": lambda at: changed(at, TRAINING, "sources", BOTH),
}
