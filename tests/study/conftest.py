"""Studies that several modules look at, each run once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.command_line import blank_figures, run_here, run_process
from helpers.ended_studies import ONE, ONE_BY_ONE, Finished, Troubled, files, put, stored
from helpers.shared import once
from helpers.studies import TINY

DIARY = """
import os
from pathlib import Path
import testbed

@testbed.hookimpl
def testbed_study_finished(study, results):
    line = f"{os.getpid()} {study.header.name} {len(results)} {' '.join(results.columns)}"
    with (Path(__file__).parent / "diary.txt").open("a") as file:
        print(line, file=file)
"""

BROKEN = "raise RuntimeError('broken on purpose [/x]')\n"

RAISING = """
import testbed

calls = 0

def raising(prediction, target):
    global calls
    calls += 1
    if calls > 10:
        raise RuntimeError("raised on purpose [/x]")
    return (prediction - target) ** 2

def unbuilt(shape, labels):
    raise RuntimeError("not built")

def unmeasured(samples, data, generator):
    raise RuntimeError("not measured")

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("raising", raising, elicits_mean=True)

@testbed.hookimpl
def testbed_networks():
    yield testbed.Network("unbuilt", unbuilt, noise={"log_sigma": (-30, 30)})

@testbed.hookimpl
def testbed_metrics():
    yield testbed.Metric("unmeasured", unmeasured)
"""


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]
) -> Finished:
    def make(root: Path) -> Finished:
        put(root, "tiny.toml", TINY)
        put(root / "extra", "diary.py", DIARY)
        put(root / "extra", "broken_one.py", BROKEN)
        address = new_store(root)
        words = ("study", "tiny.toml", "--plugin-dir", "extra", "--jobs", 1, *ONE_BY_ONE)
        first = run_process(root, *words, MLFLOW_TRACKING_URI=address)
        assert first.code == 0, first.err
        folder = root / "runs" / "tiny"
        before, logged = files(folder), stored(address, "tiny")
        second = run_here(root, *words, MLFLOW_TRACKING_URI=address)
        after, logged_again = files(folder), stored(address, "tiny")
        return Finished(root, address, first, second, before, after, logged, logged_again)

    return once(tmp_path_factory, "finished", Finished, make)


@pytest.fixture(scope="session")
def troubled(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]
) -> Troubled:
    def make(root: Path) -> Troubled:
        plugin = put(root, "raising_loss.py", RAISING)
        text = ONE + '[[cases]]\nname = "raising"\nloss = "raising"\n'
        text += '[[cases]]\nname = "unbuilt"\nnetwork = "unbuilt"\n'
        text += '[[cases]]\nname = "unmeasured"\nevaluation = { metrics = ["unmeasured"] }\n'
        text += '[[cases]]\nname = "wild"\ntraining = { learning_rate = 1e30 }\n'
        put(root, "one.toml", text + '[[cases]]\nname = "calm"\n')
        address = new_store(root)
        words = ("study", "one.toml", "--jobs", 0, "-p", plugin)
        with blank_figures():
            done = run_here(root, *words, MLFLOW_TRACKING_URI=address)
            folder = root / "runs" / "one"
            page, runs = (folder / "report.html").read_text(), stored(address, "one")
            without = run_here(root, *words, "--only", "wild,calm", "--no-mlflow")
        page_without = (folder / "report.html").read_text()
        return Troubled(folder, done, page, runs, without, page_without)

    return once(tmp_path_factory, "troubled", Troubled, make)
