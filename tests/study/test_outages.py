"""A network disk that goes away in the middle of a study, and comes back."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from errno import EACCES, EIO, ENOTCONN, ESTALE
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import run_here
from helpers.ended_studies import ONE, put, the_trial
from helpers.studies import ONE_TRIAL, planned

from testbed.registry import default_registry
from testbed.study import dispatch, runner
from testbed.study.dispatch import Outage, Outcome, Progress
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.identities import Identities
from testbed.study.telling import Telling
from testbed.trial import worker
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import LocalDisk, StoreAway
from testbed.trial.study_folder import StudyFolder

WORDS = ("study", "one.toml", "--jobs", "0", "--no-mlflow")
ACCESSES = ("get", "put", "append", "rename", "remove", "names", "has")


@dataclass
class Disk:
    """A disk that may be away, and is there again when a driver has looked so often.

    The number is that of the error, or 0 for that of an object store.
    """

    number: int = ESTALE
    away: bool = False
    looks: int = 3

    def wrap(self, genuine: Callable[..., Any]) -> Callable[..., Any]:
        def access(at: LocalDisk, *words: Any, **more: Any) -> Any:
            if self.away and not self.number:
                raise StoreAway(f"{at.at}: the store does not answer")
            if self.away:
                raise OSError(self.number, os.strerror(self.number), str(at.at))
            return genuine(at, *words, **more)

        return access


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    for name in ACCESSES:
        monkeypatch.setattr(LocalDisk, name, disk.wrap(getattr(LocalDisk, name)))
    answers = Outage._answers

    def looked(self: Outage) -> bool:
        disk.looks -= 1
        disk.away = disk.away and disk.looks > 0
        return answers(self)

    monkeypatch.setattr(Outage, "_answers", looked)
    monkeypatch.setattr(dispatch, "AGAIN", 0.01)
    yield disk
    disk.away = False


def law_a_study_outlasts_it(root: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on from its checkpoint, says so once, and ends with the bits of one undisturbed."""
    genuine, rows = TrialFolder.append_row, [0]

    def row(self: TrialFolder, content: Any) -> None:
        rows[0] += 1
        disk.away = rows[0] == 3
        genuine(self, content)

    put(root, "one.toml", ONE)
    calm = run_here(root, *WORDS, "--out", "calm")
    assert calm.code == 0, calm.err
    with monkeypatch.context() as patch:
        patch.setattr(TrialFolder, "append_row", row)
        done = run_here(root, *WORDS, "--out", "out")
    assert done.code == 0, done.out + done.err
    assert done.out.count("The study's folder is away") == 1
    assert done.out.count("is there again") == 1
    assert disk.looks == 0
    for name in ("weights.safetensors", "levels.csv", "samples.safetensors"):
        one, other = (the_trial(root / at) / name for at in ("calm", "out"))
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("number", [ESTALE, EIO, ENOTCONN, 0])
def test_a_study_outlasts_a_disk_that_goes_away(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, trials_only: None, number: int
) -> None:
    disk.number = number
    law_a_study_outlasts_it(tmp_path, disk, monkeypatch)


def test_a_driver_that_takes_it_for_a_failure_is_caught(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, trials_only: None
) -> None:
    monkeypatch.setattr(dispatch, "away", lambda problem: False)
    with pytest.raises(AssertionError):
        law_a_study_outlasts_it(tmp_path, disk, monkeypatch)


class Ends:
    """An executor whose trials end at once; the disk then is away to the driver."""

    slots = 1

    def __init__(self, files: StudyFolder, disk: Disk) -> None:
        self.files, self.disk, self.submitted = files, disk, list[str]()

    def submit(self, job: Any) -> Future[Any]:
        (name,) = (path.name for path in job.trial_dirs)
        self.submitted.append(name)
        self.files.trial(name).put_json("result.json", {"status": "finished"})
        self.disk.away = len(self.submitted) == 1
        future: Future[Any] = Future()
        future.set_result(["finished"])
        return future

    def advance(self) -> None: ...

    def stop(self) -> None: ...

    def close(self, kill: bool = False) -> None: ...


def test_a_driver_that_sees_no_disk_forgets_nothing(tmp_path: Path, disk: Disk) -> None:
    made = planned(ONE_TRIAL, tmp_path, seeds=3)
    runner.describe(made, default_registry())
    executor, said = Ends(made.files, disk), list[str]()
    engine = ExecutionPlan("sequential", 1, 1, [Group([one]) for one in made.trials])
    nothing = Identities(made, default_registry(), leads=False)
    parts = executor, Telling(None), Progress(say=said.append), nothing
    outcome = runner.execute(made, default_registry(), engine, *parts)
    assert outcome.statuses == {one.id: "finished" for one in made.trials}
    assert executor.submitted == [one.id for one in made.trials]
    assert len(said) == 2


def test_a_trial_whose_disk_was_away_for_a_moment_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = planned(ONE_TRIAL, tmp_path).trials

    def law(at: Path) -> None:
        with pytest.raises(OSError, match="Stale"):
            worker.run(one.config, at)
        assert not TrialFolder.at(at).has("result.json")

    def gone(self: TrialFolder, row: Any) -> None:
        raise OSError(ESTALE, "Stale file handle")

    monkeypatch.setattr(TrialFolder, "append_row", gone)
    law(tmp_path / "one")
    monkeypatch.setattr(worker, "away", lambda problem: False)
    with pytest.raises(pytest.fail.Exception):
        law(tmp_path / "other")


def test_what_is_unreadable_says_nothing_of_a_trial(tmp_path: Path, disk: Disk) -> None:
    trial = TrialFolder.at(tmp_path)
    trial.put_json("result.json", {"status": "finished"})
    disk.away = True
    with pytest.raises(OSError, match="Stale file handle"):
        trial.result()
    disk.away = False
    assert trial.ended()


def test_another_error_or_one_that_stays_ends_the_study(tmp_path: Path) -> None:
    files = StudyFolder.at(tmp_path)
    files.put_json("study.json", {})
    outage = Outage(files, Progress(), Outcome())
    with pytest.raises(PermissionError):
        outage.outlast(PermissionError(EACCES, "Permission denied"))
    outage.over()
    for _ in range(dispatch.TRIES):
        outage.outlast(OSError(EIO, "one sector"))
    with pytest.raises(OSError, match="one sector"):
        outage.outlast(OSError(EIO, "one sector"))


def test_ctrl_c_ends_the_wait(tmp_path: Path, disk: Disk) -> None:
    outage = Outage(StudyFolder.at(tmp_path), Progress(), Outcome(interrupted=True))
    disk.away, disk.looks = True, 10**9
    with pytest.raises(OSError, match="gone"):
        outage.outlast(OSError(ENOTCONN, "gone"))
