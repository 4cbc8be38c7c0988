"""A network disk that goes away in the middle of a study, and comes back."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from errno import EACCES, EIO, ELOOP, ENOTCONN, ESTALE
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here
from helpers.ended_studies import ONE, put, the_trial
from helpers.studies import ONE_TRIAL, planned

from testbed.registry import default_registry
from testbed.study import outage, runner, session, sharing
from testbed.study.dispatch import Outcome, Progress
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.orders import Orders
from testbed.study.outage import Outage
from testbed.study.telling import Telling
from testbed.trial import storage, worker
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import Busy, LocalDisk, StoreAway
from testbed.trial.storage.base import accessing
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
        @accessing
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
    monkeypatch.setattr(outage, "AGAIN", 0.01)
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [ESTALE, EIO, ENOTCONN, 0])
def test_a_study_outlasts_a_disk_that_goes_away(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, trials_only: None, number: int
) -> None:
    disk.number = number
    law_a_study_outlasts_it(tmp_path, disk, monkeypatch)


@pytest.mark.slow
def test_a_driver_that_takes_it_for_a_failure_is_caught(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, trials_only: None
) -> None:
    monkeypatch.setattr(outage, "StoreAway", Busy)
    with pytest.raises(AssertionError):
        law_a_study_outlasts_it(tmp_path, disk, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (session, "_lead"),
        (session, "_describe"),
        (Orders, "_pass_over"),
        (session, "_checked"),
        (session, "_write_tables"),
        (session, "_report"),
        (session, "results"),
    ],
)
def test_a_study_that_begins_or_ends_outlasts_it_too(
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    trials_only: None,
    owner: Any,
    name: str,
) -> None:
    genuine, calls = getattr(owner, name), list[int]()

    def step(*words: Any) -> Any:
        calls.append(1)
        disk.away = len(calls) == 1
        return genuine(*words)

    monkeypatch.setattr(owner, name, step)
    put(tmp_path, "one.toml", ONE.replace("steps = 200", "steps = 50"))
    done = run_here(tmp_path, *WORDS)
    assert done.code == 0, done.out + done.err
    assert done.out.count("The study's folder is away") == 1
    assert done.out.count("is there again") == 1
    assert (len(calls), disk.looks) == (2, 0)


@pytest.mark.slow
def test_a_driver_that_waits_for_another_outlasts_it(tmp_path: Path, disk: Disk) -> None:
    storage.begin(tmp_path / "out", 0.8)
    made, said = planned(ONE_TRIAL, tmp_path), list[str]()
    through = Outage(made, said.append, Outcome()).through
    with made.files.own():
        signs = sharing._signs(made, through)
        assert next(signs)
        disk.away = True
        assert next(signs)
    assert [line.partition(" folder is ")[2][:5] for line in said] == ["away ", "there"]


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
    parts = executor, Telling(None), Progress(say=said.append)
    outcome = runner.execute(made, default_registry(), engine, *parts)
    assert outcome.statuses == {one.id: "finished" for one in made.trials}
    assert executor.submitted == [one.id for one in made.trials]
    assert len(said) == 2


class TooLarge(Ends):
    """An executor that has too little memory for more than two trials."""

    def submit(self, job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if len(job.trial_dirs) > 2:
            future.set_exception(torch.OutOfMemoryError("too large"))
            return future
        for name in (path.name for path in job.trial_dirs):
            self.files.trial(name).put_json("result.json", {"status": "finished"})
        future.set_result(["finished"] * len(job.trial_dirs))
        return future


def test_a_group_is_split_once_though_the_disk_goes_away_meanwhile(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, writes = ExecutionPlan.write, list[Path]()

    def write(self: ExecutionPlan, folder: Path) -> None:
        writes.append(folder)
        disk.away = len(writes) == 1
        genuine(self, folder)

    monkeypatch.setattr(ExecutionPlan, "write", write)
    made = planned(ONE_TRIAL, tmp_path, seeds=4)
    runner.describe(made, default_registry())
    said = list[str]()
    engine = ExecutionPlan("batched", 1, 1, [Group([*made.trials])])
    parts = TooLarge(made.files, disk), Telling(None), Progress(say=said.append)
    outcome = runner.execute(made, default_registry(), engine, *parts)
    assert outcome.statuses == {one.id: "finished" for one in made.trials}
    assert [len(ids) for ids in made.files.json("plan.json")["groups"]] == [2, 2]
    assert sum("out of memory" in line for line in said) == 1


@pytest.mark.slow
def test_a_trial_whose_disk_was_away_for_a_moment_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = planned(ONE_TRIAL, tmp_path).trials

    def law(at: Path) -> None:
        with pytest.raises(OSError, match="Stale"):
            worker.run(one.config, at)
        assert not TrialFolder.at(at).has("result.json")

    @accessing
    def gone(self: LocalDisk, name: str, content: bytes) -> None:
        raise OSError(ESTALE, "Stale file handle")

    monkeypatch.setattr(LocalDisk, "append", gone)
    law(tmp_path / "one")
    monkeypatch.setattr(worker, "StoreAway", Busy)
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
    made, tried = planned(ONE_TRIAL, tmp_path), list[Exception]()

    def failing(problem: Exception) -> Callable[[], None]:
        def step() -> None:
            tried.append(problem)
            raise problem

        return step

    for problem, times in (
        (PermissionError(EACCES, "Permission denied"), 1),
        (OSError(EIO, "one sector of the data"), 1),
        (StoreAway(EIO, "one sector of the folder"), outage.ROUNDS + 1),
    ):
        tried.clear()
        with pytest.raises(type(problem)):
            Outage(made, lambda line: None, Outcome()).through(failing(problem))
        assert tried == [problem] * times


def test_ctrl_c_ends_the_wait(tmp_path: Path, disk: Disk) -> None:
    made = planned(ONE_TRIAL, tmp_path)
    disk.away, disk.looks = True, 10**9
    with pytest.raises(StoreAway, match="Stale"):
        Outage(made, lambda line: None, Outcome(interrupted=True)).through(made.files.claim)


@pytest.mark.parametrize("name", [*ACCESSES, "flush", "sweep", "_locked"])
def test_a_disk_that_is_away_is_told_from_any_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store, number = LocalDisk(tmp_path), [ESTALE]
    words = {"put": ("a", b""), "append": ("a", b""), "rename": ("a", "b"), "names": ()}
    words |= {"flush": (), "_locked": ()}

    def fails(*rest: Any, **more: Any) -> Any:
        raise OSError(number[0], os.strerror(number[0]))

    monkeypatch.setattr(Path, "mkdir", lambda *rest, **more: None)
    for call in ("open", "stat", "unlink", "glob"):
        monkeypatch.setattr(Path, call, fails)
    for call in ("open", "replace", "scandir"):
        monkeypatch.setattr(os, call, fails)
    access = partial(getattr(store, name), *words.get(name, ("a",)))
    with pytest.raises(StoreAway, match="Stale file handle"):
        access()
    number[0] = ELOOP
    with pytest.raises(OSError, match="symbolic links") as raised:
        access()
    assert not isinstance(raised.value, StoreAway)


AWAY_DATA = """
import errno
import testbed

calls = 0

def away(prediction, target):
    global calls
    calls += 1
    if calls > 10:
        raise OSError(errno.ETIMEDOUT, "the plugin's server does not answer")
    return (prediction - target) ** 2

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("away", away, elicits_mean=True)
"""


@pytest.mark.slow
def test_what_a_plugin_cannot_reach_is_its_trials_failure_and_not_the_studys_disk(
    tmp_path: Path, trials_only: None
) -> None:
    put(tmp_path, "away.py", AWAY_DATA)
    put(tmp_path, "one.toml", ONE.replace("seeds = 1", 'seeds = 1\nloss = "away"'))
    done = run_here(tmp_path, *WORDS, "-p", "away.py")
    assert done.code == 1, done.out + done.err
    assert "away (" not in done.out
    result = TrialFolder.at(the_trial(tmp_path / "runs" / "one")).result()
    assert result["status"] == "failed"
    assert "the plugin's server does not answer" in result["error"]
