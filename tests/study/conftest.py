"""Studies that several modules look at, each run once."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.clusters import losing_a_node, put_study, stand_ins
from helpers.command_line import blank_figures, run_here, run_process, trials_only
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


@pytest.fixture(scope="session")
def run_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small study that an executor ran, once for each."""

    def run(name: str) -> Path:
        def make(root: Path) -> Path:
            words = (*put_study(root), "--executor", name)
            more = stand_ins(root) if name == "slurm" else {}
            with trials_only(), contextlib.ExitStack() as stack:
                if name == "ray":
                    address = stack.enter_context(losing_a_node(root))
                    words = (*words, "--set", f"executor.ray.address={address}")
                done = run_here(root, *words, **more)
            assert done.code == 0, done.err + done.out
            return root / "runs" / "small"

        return once(tmp_path_factory, f"run_on_{name}", Path, make)

    return run
