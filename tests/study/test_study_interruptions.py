"""Studies that are interrupted, whose workers are killed, or whose files are damaged."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.command_line import environment, run_here
from helpers.ended_studies import (
    ONE,
    curve,
    of_kind,
    put,
    status_of,
    stored,
    the_trial,
    trials,
    weights,
)
from helpers.forked import Command, start

from testbed.study import runner, telling
from testbed.trial import worker
from testbed.trial.folders import Folder, TrialFolder

# A loss that, in a worker and where a file says so, waits, or ends its process as the kernel would.
MORTAL = """
import multiprocessing
import os
import signal
import time
from pathlib import Path
import testbed
from testbed.trial import worker

HERE = Path(__file__).parent
calls = 0

def mortal(prediction, target):
    if multiprocessing.parent_process() is not None:
        disturb()
    return (prediction - target) ** 2

def disturb():
    global calls
    calls += 1
    (HERE / f"calls_{os.getpid()}").write_text(str(calls))
    while (HERE / "wait").exists() and calls > 120:
        time.sleep(0.02)
    if (HERE / "slow").exists():
        time.sleep(0.01)
    if (HERE / "deaths").exists():
        words = (HERE / "deaths").read_text().split()
        deaths, at, worker.CHECKPOINT_SECONDS = map(float, words)
        if deaths and calls > at:
            (HERE / "deaths").write_text(f"{deaths - 1:.0f} {at} {worker.CHECKPOINT_SECONDS}")
            os.kill(os.getpid(), signal.SIGKILL)

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("mortal", mortal, elicits_mean=True)
"""


@pytest.fixture
def uninterrupted(tmp_path: Path, trials_only: None) -> Callable[[Path], Path]:
    """Runs the study of a folder elsewhere, undisturbed, and returns its trial's folder."""

    def run(root: Path) -> Path:
        other = tmp_path / "undisturbed"
        other.mkdir()
        shutil.copy(root / "one.toml", other)
        plugin = put(other, "mortal_loss.py", MORTAL)
        words = ("--jobs", 0, "--no-mlflow", "-p", plugin)
        done = run_here(other, "study", "one.toml", *words)
        assert done.code == 0, done.err
        return the_trial(other / "runs" / "one")

    return run


def mortal(root: Path, steps: int = 200) -> Path:
    """A folder with a study of one trial, whose loss the files beside it command."""
    put(root, "mortal_loss.py", MORTAL)
    text = ONE.replace("steps = 200", f"steps = {steps}").replace("points = 4", "points = 100")
    put(root, "one.toml", text.replace("seeds = 1", 'seeds = 1\nloss = "mortal"'))
    return root


@pytest.fixture
def started() -> Iterator[Callable[..., Command]]:
    """Starts `testbed study one.toml` in a folder; nothing of it outlives the test."""
    running: list[Command] = []

    def begin(root: Path, **more: str) -> Command:
        words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 1)
        store = () if more else ("--no-mlflow",)
        running.append(start(root, "driver", *words, *store, **more))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], bool], process: Command, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def rows_at_least(root: Path, n: int) -> Callable[[], bool]:
    def reached() -> bool:
        found = list((root / "runs" / "one" / "trials").glob("*/rows.jsonl"))
        return bool(found) and len(TrialFolder.at(found[0].parent).rows()) >= n

    return reached


@pytest.mark.process
@pytest.mark.slow
def test_an_interrupted_study_resumes_to_the_same_bits(
    tmp_path: Path,
    started: Callable[..., Command],
    uninterrupted: Callable[[Path], Path],
    new_store: Callable[[Path], str],
) -> None:
    root = mortal(tmp_path / "here", steps=600)
    address = new_store(root)
    put(root, "slow", "")
    process = started(root, MLFLOW_TRACKING_URI=address)
    wait_for(rows_at_least(root, 2), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "Interrupted: 1 interrupted. What is finished is kept." in out
    assert "Next: testbed study one.toml -p mortal_loss.py resumes." in out
    assert "Traceback" not in err
    at = the_trial(root / "runs" / "one")
    assert (at / "checkpoint").is_file()
    assert not (at / "result.json").exists()
    assert 100 <= curve(at)[-1]["step"] < 600
    assert {run.status for run in stored(address, "one")} == {"KILLED"}
    made = TrialFolder.at(at).rows()

    (root / "slow").unlink()
    words = ("one.toml", "-p", "mortal_loss.py")
    assert re.search(r"\ninterrupted|interrupted  ", run_here(root, "plan", *words).out)
    done = run_here(root, "study", *words, "--jobs", 0, MLFLOW_TRACKING_URI=address)
    assert done.code == 0, done.err
    assert TrialFolder.at(at).rows()[: len(made)] == made
    assert not (at / "checkpoint").exists()
    undisturbed = uninterrupted(root)
    assert at.name == undisturbed.name
    assert weights(at) == weights(undisturbed)
    assert curve(at) == curve(undisturbed)
    assert (at / "levels.csv").read_bytes() == (undisturbed / "levels.csv").read_bytes()
    runs = stored(address, "one")
    assert len(runs) == 2
    assert {run.status for run in runs} == {"FINISHED"}
    (nested,) = of_kind(runs, "trial")
    assert nested.metrics["training/loss"] == [(row["step"], row["loss"]) for row in curve(at)]


@pytest.mark.process
@pytest.mark.slow
def test_a_second_interrupt_ends_a_study_at_once(
    tmp_path: Path, started: Callable[..., Command]
) -> None:
    root = mortal(tmp_path)
    put(root, "wait", "")
    process = started(root)
    wait_for(rows_at_least(root, 2), process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)  # the trial waits: it cannot reach its checkpoint
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Stopped at once. The same command resumes from the checkpoints." in err
    (worker,) = (int(file.name.partition("_")[2]) for file in root.glob("calls_*"))
    gone = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < gone:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [0.0, 1000.0])
def test_a_killed_worker_is_resumed_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[Path], Path],
    new_store: Callable[[Path], str],
    checkpoint: float,
) -> None:
    """From its last checkpoint, or from the start where there is none yet."""
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", worker.CHECKPOINT_SECONDS)
    monkeypatch.setattr(telling, "TRACK", 0.0)
    monkeypatch.setattr(runner, "POLL", 0.02)
    root = mortal(tmp_path / "here")
    put(root, "slow", "")
    put(root, "deaths", f"1 130 {checkpoint}")
    address = new_store(root)
    words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 1)
    done = run_here(root, *words, MLFLOW_TRACKING_URI=address)
    assert done.code == 0, done.out + done.err
    at = the_trial(root / "runs" / "one")
    assert (root / "deaths").read_text().startswith("0 ")
    first, second = sorted(int(file.read_text()) for file in root.glob("calls_*"))
    assert (first, second) == ((101, 131) if checkpoint == 0 else (131, 201))
    undisturbed = uninterrupted(root)
    assert weights(at) == weights(undisturbed)
    assert curve(at) == curve(undisturbed)
    runs = stored(address, "one")
    assert {run.status for run in runs} == {"FINISHED"}
    (nested,) = of_kind(runs, "trial")
    assert nested.metrics["training/loss"] == [(row["step"], row["loss"]) for row in curve(at)]


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_dies_every_time_fails_its_trial_after_three(
    tmp_path: Path, trials_only: None
) -> None:
    root = mortal(tmp_path)
    put(root, "deaths", "9 20 1000")
    text = (root / "one.toml").read_text().replace('loss = "mortal"', "")
    text += '[[cases]]\nname = "deadly"\nloss = "mortal"\n[[cases]]\nname = "calm"\n'
    put(root, "one.toml", text)
    words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 1, "--no-mlflow")
    done = run_here(root, *words)
    assert done.code == 1
    assert (root / "deaths").read_text().startswith("6 ")
    assert status_of(root / "runs" / "one") == {"deadly": "failed", "calm": "finished"}
    at = trials(root / "runs" / "one")["deadly/", "v", 0]
    assert "the worker died 3 times" in (at / "error.txt").read_text()


@pytest.mark.process
@pytest.mark.slow
def test_a_trial_in_the_hands_of_another_process_is_left_alone(tmp_path: Path) -> None:
    with Folder.at(tmp_path / "t").own():
        script = (
            "from pathlib import Path; from testbed.trial.folders import Folder\n"
            f"with Folder.at(Path({str(tmp_path / 't')!r})).own(): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
        )
    assert "is being worked on by another process" in done.stderr
    with Folder.at(tmp_path / "t").own():
        pass


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, trials_only: None, uninterrupted: Callable[[Path], Path]
) -> None:
    root = mortal(tmp_path / "here", steps=100)
    words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 0, "--no-mlflow")
    assert run_here(root, *words).code == 0
    at = the_trial(root / "runs" / "one")
    expected = weights(at)
    (at / "result.json").unlink()
    (at / "weights.safetensors").unlink()
    (at / "checkpoint").write_bytes(b"TESTBED1 cut short")
    put(at, "rows.jsonl", (at / "rows.jsonl").read_text()[:-9])  # torn by a crash
    assert run_here(root, *words).code == 0
    assert weights(at) == expected
    assert [row["step"] for row in curve(at)] == [50, 100]
    assert json.loads((at / "result.json").read_text())["status"] == "finished"
