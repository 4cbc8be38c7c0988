"""Slurm by submitit, on stand-ins for Slurm's commands that run the jobs as processes."""

import importlib.util
import json
import os
import pickletools
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from helpers.clusters import put_study, stand_ins
from helpers.command_line import Done, run_here

from testbed.errors import InputError
from testbed.study.executors import slurm
from testbed.study.executors.base import Job, WorkerLost
from testbed.study.executors.settings import ExecutorSettings, SlurmSettings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's stand-ins on PATH."""
    for name, value in stand_ins(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def jobs(study: Path) -> dict[str, dict[str, Any]]:
    """What the stand-in knows of each job of a study's."""
    files = sorted(study.parents[1].glob("jobs/*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


# --- a whole study --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.process
def test_a_warned_job_requeues_itself_and_a_killed_one_is_submitted_again(
    run_on: Callable[[str], Path],
) -> None:
    found = jobs(run_on("slurm"))
    # One array of two, and the task that was killed once more.
    assert list(found) == ["100_0", "100_1", "102"]
    assert (found["100_0"]["state"], found["100_0"]["runs"]) == ("COMPLETED", 2)
    assert (found["100_1"]["state"], found["100_1"]["runs"]) == ("TIMEOUT", 1)
    assert found["100_0"]["options"]["array"] == "0-1%2"
    assert found["100_0"]["options"]["signal"] == "USR2@480"


@pytest.mark.slow
@pytest.mark.process
def test_what_is_pickled_is_a_function_by_name_and_a_path(run_on: Callable[[str], Path]) -> None:
    folder = run_on("slurm") / "executor" / "submitit"
    (*_, file) = sorted(folder.glob("*_submitted.pkl"))
    found = list(pickletools.genops(file.read_bytes()))
    words = [str(argument) for code, argument, _ in found if isinstance(argument, str)]
    assert "testbed.study.executors.slurm" in words
    assert "perform" in words
    assert [word for word in words if word.startswith("/")] == [
        str(assignments(run_on("slurm"))[-1])
    ]
    # Classes and functions by name: submitit's own, and the one of ours; no code is in it.
    modules = {word for word in words if "." in word and not word.startswith("/")}
    assert modules == {"submitit.core.utils", "testbed.study.executors.slurm"}


def assignments(study: Path) -> list[Path]:
    """The folders of a study's assignments, those of the trial that was killed last."""
    found = [file.parent for file in (study / "executor").glob("*/job.json")]
    return sorted(found, key=lambda one: json.loads((one / "job.json").read_text())["id"])[::-1][:1]


@pytest.mark.slow
@pytest.mark.process
def test_the_folder_of_pickles_is_its_owners_alone(run_on: Callable[[str], Path]) -> None:
    for name in ("executor", "executor/submitit"):
        assert stat.S_IMODE((run_on("slurm") / name).stat().st_mode) == 0o700


# --- what cannot be had ---------------------------------------------------------------------------


def study(folder: Path, *words: str) -> Done:
    base = put_study(folder)
    return run_here(
        folder, *base, "--executor", "slurm", *words,
        PATH=os.environ["PATH"], SLURM_STAND_IN=str(folder),
    )  # fmt: skip


@pytest.mark.slow
def test_a_partition_that_does_not_exist_is_named_before_anything_runs(here: Path) -> None:
    done = study(here, "--set", "executor.slurm.partition=lang")
    assert done.code == 2
    assert "executor.slurm.partition: Unknown partition 'lang'. Did you mean 'long'?" in done.err
    assert not (here / "runs" / "small" / "trials").exists()


@pytest.mark.slow
def test_more_minutes_than_a_partition_allows_are_named(here: Path) -> None:
    done = study(here, "--set", "executor.slurm.minutes=300")
    assert done.code == 2
    assert "executor.slurm.minutes = 300: partition 'short' allows 240." in done.err
    assert slurm._minutes("2-00:00:00") == 2880
    assert slurm._minutes("UNLIMITED") is None


def test_a_warning_that_comes_as_a_job_starts_is_refused(here: Path) -> None:
    done = study(here, "--set", "executor.slurm.warning=600")
    assert done.code == 2
    assert "warning = 600 seconds before a limit of minutes = 10 would warn a job" in done.err


@pytest.mark.slow
def test_jobs_that_sbatch_refuses_fail_no_trial(here: Path) -> None:
    done = study(here, "--set", "executor.slurm.gpus=1")
    assert done.code == 2
    assert "executor.slurm: sbatch refused the jobs: " in done.err
    assert "Requested node configuration is not available" in done.err
    assert not list((here / "runs" / "small" / "trials").glob("*/result.json"))


def test_a_device_is_what_is_asked_of_the_cluster() -> None:
    assert ExecutorSettings(name="slurm").device("auto") == "cpu"
    with_gpu = ExecutorSettings(name="slurm", slurm=SlurmSettings(gpus=1))
    assert with_gpu.device("auto") == with_gpu.device("cuda") == "cuda"
    with pytest.raises(InputError, match=r"cuda: with executor\.slurm\.gpus = 0 trials run on cpu"):
        ExecutorSettings(name="slurm").device("cuda")
    assert ExecutorSettings(name="slurm").slots(None) == 16
    with pytest.raises(InputError, match="--jobs 0: the executor slurm runs nothing in this"):
        ExecutorSettings(name="slurm").slots(0)


def test_without_submitit_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'diffusion-testbed\[slurm\]'"):
        slurm.require(SlurmSettings())


def test_without_slurms_commands_the_first_is_named(here: Path) -> None:
    (here / "commands" / "srun").unlink()
    with pytest.raises(InputError, match="srun is not on PATH; run the study where"):
        slurm.require(SlurmSettings())


# --- jobs of an earlier driver, and lost ones -----------------------------------------------------


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The ids of the jobs that Slurm knows; what is submitted becomes one of them."""
    known: set[str] = set()

    def submit(assignments: list[Path], settings: SlurmSettings, jobs: int) -> list[str]:
        ids = [f"new_{i}" for i, _ in enumerate(assignments)]
        known.update(ids)
        return ids

    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(slurm, "_active", lambda: set(known))
    return known


def taken(folder: Path) -> tuple[slurm.SlurmExecutor, Future[list[str]], Path]:
    """An executor with one assignment, the assignment's future and its folder."""
    executor = slurm.SlurmExecutor(folder, SlurmSettings(poll=1e-9), 2, 1)
    job = Job([], [], folder / "groups" / "abc", (), (), "cpu", False)
    return executor, executor.submit(job), folder / "executor" / "abc"


@pytest.mark.slow
def test_a_job_of_an_earlier_driver_is_followed(here: Path, queue: set[str]) -> None:
    executor, _, assignment = taken(here)
    executor.advance()
    executor.stop()
    assert (assignment / "stop").exists()
    executor.close()
    executor, future, _ = taken(here)
    executor.advance()
    assert queue == {"new_0"}
    assert not (assignment / "stop").exists()
    (assignment / "outcome.json").write_text("{}")
    executor.advance()
    assert future.result(timeout=0) == []


@pytest.mark.slow
def test_a_job_that_is_gone_without_an_answer_is_lost(here: Path, queue: set[str]) -> None:
    executor, future, _ = taken(here)
    executor.advance()
    queue.clear()
    executor.advance()
    # The answer may still be on its way.
    executor.advance()
    assert isinstance(future.exception(timeout=0), WorkerLost)
    assert "Slurm's job new_0 ended without an answer" in str(future.exception())


@pytest.mark.slow
def test_a_job_that_has_answered_is_not_followed(here: Path, queue: set[str]) -> None:
    executor, _, assignment = taken(here)
    executor.advance()
    (assignment / "outcome.json").write_text("{}")
    executor, _, _ = taken(here)
    executor.advance()  # Slurm may list it for a while yet
    assert not (assignment / "outcome.json").exists()


def test_a_squeue_that_fails_now_and_then_ends_no_study(
    here: Path, queue: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> set[str]:
        raise InputError("squeue failed")

    executor, future, assignment = taken(here)
    executor.advance()
    (assignment / "outcome.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(slurm, "_active", fails)
        executor.advance()
        assert not future.done()
        patch.setattr(slurm, "SILENCE", -1.0)
        with pytest.raises(InputError, match="squeue failed"):
            executor.advance()
    executor.advance()
    assert future.result(timeout=0) == []


def test_what_is_stopped_before_it_was_submitted_is_not(here: Path, queue: set[str]) -> None:
    executor, future, _ = taken(here)
    executor.stop()
    executor.advance()
    assert isinstance(future.exception(timeout=0), WorkerLost)
    assert queue == set()


@pytest.mark.slow
def test_what_is_stopped_while_it_is_submitted_is_asked_to_stop(
    here: Path, queue: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, _, assignment = taken(here)
    submitted = slurm.submit

    def interrupted(*parts: Any) -> list[str]:
        executor.stop()
        return submitted(*parts)

    monkeypatch.setattr(slurm, "submit", interrupted)
    executor.advance()
    assert (assignment / "stop").exists()


@pytest.mark.slow
def test_a_study_that_was_stopped_does_not_wait_for_the_next_question(
    here: Path, queue: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that waits is cancelled without an answer, and asking is due at once, then often."""
    asked: list[float] = []
    executor, future, _ = taken(here)
    executor._settings = SlurmSettings(poll=3600)
    executor.advance()
    genuine = slurm._active
    monkeypatch.setattr(slurm, "_active", lambda: asked.append(time.monotonic()) or genuine())
    executor.advance()
    assert not asked
    executor.stop()
    executor.advance()
    assert not future.done()
    queue.clear()
    executor._due = min(executor._due, time.monotonic() + slurm.STOPPING) - slurm.STOPPING
    executor.advance()
    assert len(asked) == 2
    assert isinstance(future.exception(timeout=0), WorkerLost)
