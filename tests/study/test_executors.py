"""Executors: how one is chosen, and that all of them leave the same study."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import pytest
from helpers.clusters import results
from helpers.command_line import run_here
from helpers.studies import SMALL

from testbed.errors import InputError
from testbed.study import dispatch, engines, study_file
from testbed.study.executors.base import NodeLost, WorkerLost
from testbed.study.executors.settings import ExecutorSettings
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import StoreAway


def settings(folder: Path, section: str, *sets: str) -> ExecutorSettings:
    """What a study file with this section says of its executor."""
    file = folder / "small.toml"
    file.write_text(SMALL + section)
    return study_file.read(file, sets).executor


def test_a_study_file_names_its_executor_and_the_command_line_another(tmp_path: Path) -> None:
    assert settings(tmp_path, "").name == "processes"
    section = '[executor]\nname = "in-process"\n'
    assert settings(tmp_path, section).name == "in-process"
    assert settings(tmp_path, section, "executor.name=processes").name == "processes"


def test_an_unknown_executor_and_an_unknown_key_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"executor\.name = 'process': .*mean 'processes'"):
        settings(tmp_path, '[executor]\nname = "process"\n')
    with pytest.raises(InputError, match=r"executor\.job = 2: unknown key\. Did you mean 'jobs'"):
        settings(tmp_path, "[executor]\njob = 2\n")


def test_the_number_of_jobs_is_the_command_lines_or_the_files() -> None:
    assert ExecutorSettings().slots(None) is None
    assert ExecutorSettings(jobs=3).slots(None) == 3
    assert ExecutorSettings(jobs=3).slots(2) == 2
    assert ExecutorSettings(name="in-process", jobs=3).slots(None) == 0
    with pytest.raises(InputError, match="--jobs 4: the executor in-process runs one"):
        ExecutorSettings(name="in-process").slots(4)
    with pytest.raises(InputError, match=r"--jobs -1 must be 0 or more"):
        ExecutorSettings().slots(-1)


def test_the_option_is_the_setting_that_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    done = run_here(tmp_path, "study", "small.toml", "--executor", "in-proces", "--no-mlflow")
    assert done.code == 2
    assert "Unknown executor 'in-proces'. Did you mean 'in-process'?" in done.err


class Curve:
    """A trial's folder whose training has got so far."""

    def __init__(self, step: int) -> None:
        self.step = step

    def last_step(self) -> int:
        return self.step


def lost(problem: Exception) -> Future[list[str]]:
    future: Future[list[str]] = Future()
    future.set_exception(problem)
    return future


def test_lost_jobs_are_counted_anew_when_training_has_got_further() -> None:
    jobs, group = dispatch.LostJobs(), engines.Group([])
    counted = []
    for step in (0, 0, 50, 50, 40, 60):
        trials = cast(list[TrialFolder], [Curve(step)])
        future = lost(WorkerLost("killed"))
        counted.append(jobs.without_progress(group, trials, future))
        assert jobs.without_progress(group, trials, future) == counted[-1]  # asked again
    assert counted == [1, 2, 1, 2, 3, 1]


def test_a_trial_is_not_blamed_for_the_nodes_that_died_with_it() -> None:
    jobs, group = dispatch.LostJobs(), engines.Group([])
    trials = cast(list[TrialFolder], [Curve(0)])
    ways = [NodeLost("node")] * 5 + [StoreAway("disk"), WorkerLost("killed"), NodeLost("node")]
    counted = [jobs.without_progress(group, trials, lost(one)) for one in ways]
    assert counted == [1, 2, 3, 4, 5, 1, 1, 6]
    assert dispatch.statuses_of(lost(ways[-2]), trials, counted[-2]) is None


# --- the same study on each -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_by_one(run_on: Callable[[str], Path]) -> dict[str, bytes]:
    """What the study leaves that ran in one process."""
    return results(run_on("in-process"))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("name", ["processes", "slurm", "ray"])
def test_every_executor_leaves_the_same_study_bit_for_bit(
    name: str, one_by_one: dict[str, bytes], run_on: Callable[[str], Path]
) -> None:
    found = results(run_on(name))
    assert len(found) > 10
    assert found == one_by_one
    # Slurm's tests say what their jobs went through; of Ray a node was killed in the middle.
    assert (name != "ray") or not (run_on(name).parents[1] / "paced").exists()
