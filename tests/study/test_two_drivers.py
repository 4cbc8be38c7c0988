"""Two drivers on one study whose folder is owned by leases, one of which sleeps."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command_line import run_here
from helpers.ended_studies import ONE, put
from helpers.forked import Command, start

from testbed.trial import worker
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import LeaseLost
from testbed.trial.study_folder import StudyFolder

LEASE = 2.0
WORDS = ("study", "one.toml", "-p", "waiting_loss.py", "--jobs", "0", "--no-mlflow")

# A loss that waits in the driver that sleeps, and writes a checkpoint after every block of steps.
WAITING = """
import os
import time
from pathlib import Path
import testbed
from testbed.trial import worker

HERE = Path(__file__).parent
calls = 0

def waiting(prediction, target):
    global calls
    if "SLEEPY" in os.environ:
        worker.CHECKPOINT_SECONDS = 0.0
        calls += 1
        while calls > 120 and not (HERE / "go").exists():
            (HERE / "waits").touch()
            time.sleep(0.02)
    return (prediction - target) ** 2

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("waiting", waiting, elicits_mean=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "waiting_loss.py", WAITING)
    put(tmp_path, "one.toml", ONE.replace("seeds = 1", 'seeds = 1\nloss = "waiting"'))
    return tmp_path


@pytest.fixture
def sleepy(root: Path) -> Iterator[Command]:
    """A driver that waits in the middle of its trial."""
    process = start(root, "sleepy", *WORDS, "--lease", LEASE, SLEEPY="yes")
    end = time.monotonic() + 90
    while not (root / "waits").exists() and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    yield process
    process.kill()
    process.communicate()


def content(study: StudyFolder) -> dict[str, bytes | None]:
    """All that is seen of a study and its trials."""
    stores = study.store, *(trial.store for trial in study.trials())
    return {
        f"{at.path()}/{name}": at.get(name) for at in stores for name in at.names() if at.has(name)
    }


@pytest.mark.process
@pytest.mark.slow
def test_a_driver_that_slept_is_replaced_and_harms_nothing(
    root: Path, sleepy: Command, trials_only: None
) -> None:
    study = StudyFolder.at(root / "runs" / "one")
    (first,) = study.trials()
    sleepy.send_signal(signal.SIGSTOP)
    done = run_here(root, *WORDS)
    assert done.code == 0, done.out + done.err
    assert study.state(first.name) == "finished"
    seen = content(study)
    (root / "go").touch()
    sleepy.send_signal(signal.SIGCONT)
    _, said = sleepy.communicate(timeout=90)
    assert sleepy.returncode == 2, said
    assert "was taken over by another process while this one stood still" in " ".join(said.split())
    assert "Traceback" not in said
    assert content(study) == seen
    again = run_here(root, *WORDS, "--out", "undisturbed")
    assert again.code == 0, again.err
    undisturbed = TrialFolder.at(root / "undisturbed" / "trials" / first.name)
    for name in ("weights.safetensors", "levels.csv", "samples.safetensors"):
        assert first.store.get(name) == undisturbed.store.get(name), name


@pytest.mark.slow
def test_a_lost_trial_is_not_a_failed_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, trials_only: None
) -> None:
    """The driver is awake; its trial was given to another one meanwhile, which died."""
    genuine = TrialFolder.append_row
    once: list[int] = []

    def taken(self: TrialFolder, row: object) -> None:
        if not once:
            once.append(1)
            self.store.take(self.store.claim())
            with pytest.raises(LeaseLost, match="was taken over by another process"):
                genuine(self, row)
        genuine(self, row)

    monkeypatch.setattr(TrialFolder, "append_row", taken)
    done = run_here(root, *WORDS, "--lease", LEASE)
    assert (done.code, once) == (0, [1]), done.err
    (trial,) = StudyFolder.at(root / "runs" / "one").trials()
    assert not trial.has("error.txt")
    assert trial.ended()
    assert worker.CHECKPOINT_SECONDS == 15.0
