"""Assignments of a cluster's workers: what comes from files, and what a worker refuses."""

import json
from concurrent.futures import Future
from errno import EIO
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.studies import SMALL, planned

from testbed import registry
from testbed.errors import InputError
from testbed.study import dispatch, engines, runner
from testbed.study.executors.assignments import AssignmentFolder
from testbed.study.executors.base import Job, WorkerLost
from testbed.trial import environment, sources, worker
from testbed.trial.storage import Busy, StoreAway

PLUGIN = """
import testbed

def plain(prediction, target):
    return (prediction - target) ** 2

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("plain", plain, elicits_mean=True)
"""
SETS = (
    "loss=plain",
    "training.steps=50",
    'dataset={ name = "mixture", dim = 2, n = 64, test = 64 }',
)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """The job of a study's only trial, with its description on disk."""
    (tmp_path / "plain.py").write_text(PLUGIN)
    known = registry.Registry([str(tmp_path / "plain.py")])
    made = planned(SMALL, tmp_path, *SETS, registry=known)
    runner.describe(made, known)
    chosen = engines.choose(made, known, "sequential", 1)
    return dispatch.job_of(made, known, chosen, chosen.groups[0])


@pytest.fixture
def assignment(job: Job, tmp_path: Path) -> AssignmentFolder:
    assignment = AssignmentFolder.of(tmp_path / "out", job)
    assignment.begin(job, 1)
    return assignment


def refusal(assignment: AssignmentFolder) -> str:
    """Why the worker refuses the assignment."""
    answer = assignment.follow()
    assert answer is not None
    assert answer["raised"] == "refused"
    return answer["message"]


def change(assignment: AssignmentFolder, **changed: Any) -> None:
    assignment.put_json("assignment.json", assignment.json("assignment.json") | changed)


@pytest.mark.slow
def test_a_job_comes_back_from_its_files(
    job: Job, assignment: AssignmentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run(config: Any, at: Path, *rest: Any) -> str:
        seen.append((config, at, *rest[:3]))
        return "finished"

    monkeypatch.setattr(worker, "run", run)
    assert assignment.follow() == {}
    ((config, at, *rest),) = seen
    assert config.record() == job.configs[0].record()
    assert at == job.trial_dirs[0].resolve()
    assert rest == [(*job.plugins,), (*job.plugin_dirs,), job.device]


def test_other_packages_and_sources_are_refused_by_name(assignment: AssignmentFolder) -> None:
    recorded = assignment.json("assignment.json")["environment"]
    assert recorded["torch"] == torch.__version__
    trainer = "testbed.training.trainer"
    change(assignment, environment=recorded | {"torch": "2.0.0", trainer: "0" * 16})
    said = refusal(assignment)
    assert f"torch is 2.0.0 in the driver and {torch.__version__[:12]} here" in said
    assert f"{trainer} is 000000000000 in the driver and {recorded[trainer][:12]} here" in said
    assert "numpy" not in said


def test_every_module_that_the_trials_id_covers_is_compared(job: Job) -> None:
    known = registry.Registry(job.plugins)
    names = set(environment.record(known))
    assert {sources.WORKER, "testbed.data.synthetic", "testbed.networks.mlp"} <= names


@pytest.mark.slow
def test_another_plugin_is_refused_by_name(assignment: AssignmentFolder, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLUGIN.replace("** 2", "** 4"))
    # A worker is a process of its own, which reads the plugin anew.
    worker.registry_of.cache_clear()
    assert "plugin plain is " in refusal(assignment)
    (tmp_path / "plain.py").unlink()
    worker.registry_of.cache_clear()
    assert "plain.py" in refusal(assignment)


@pytest.mark.slow
def test_other_data_are_refused_by_name(
    assignment: AssignmentFolder, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = environment.build.data_of

    class Other:
        digest = "other"

    monkeypatch.setattr(environment.build, "data_of", lambda config, registry: Other)
    digest = genuine(job.configs[0], registry.Registry(job.plugins)).digest
    assert f"the data mixture is {digest[:12]} in the driver and other here" in refusal(assignment)


@pytest.mark.slow
def test_a_description_of_another_trial_is_refused(assignment: AssignmentFolder, job: Job) -> None:
    file = job.trial_dirs[0] / "trial.json"
    description = json.loads(file.read_text())
    description["config"]["seed"] = 7
    file.write_text(json.dumps(description))
    assert f"{file.resolve()}: has the settings of trial" in refusal(assignment)


@pytest.mark.slow
def test_a_warned_worker_leaves_the_assignment_open_unless_it_is_to_stop(
    assignment: AssignmentFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "run", lambda *rest: "interrupted" if rest[5]() else "finished")
    assert assignment.follow(lambda: True) is None
    assert assignment.follow() == {}
    assignment.ask_to_stop()
    monkeypatch.delattr(worker, "run")
    assert assignment.follow(lambda: True) == {}


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (torch.OutOfMemoryError("too large"), torch.OutOfMemoryError),
        (Busy("taken"), Busy),
        (OSError(28, "No space left on device"), OSError),
        (OSError("no number"), OSError),
        (StoreAway("the store does not answer"), StoreAway),
    ],
)
def test_what_no_trial_is_to_blame_for_reaches_the_driver(
    assignment: AssignmentFolder,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    kind: type[Exception],
) -> None:
    def run(*rest: Any) -> str:
        raise raised

    monkeypatch.setattr(worker, "run", run)
    answer = assignment.follow()
    assert answer is not None
    assignment.answer(answer)
    future: Future[list[str]] = Future()
    assignment.settle(future, job, WorkerLost("lost"))
    assert type(future.exception(timeout=0)) is kind
    if isinstance(raised, OSError):
        assert getattr(future.exception(), "errno", None) == (raised.errno or EIO)


def test_a_refused_assignment_ends_the_study(assignment: AssignmentFolder, job: Job) -> None:
    assignment.answer({"raised": "refused", "message": "torch is another"})
    with pytest.raises(InputError, match="torch is another"):
        assignment.settle(Future(), job, WorkerLost("lost"))


def test_what_another_driver_has_stopped_goes_on(assignment: AssignmentFolder, job: Job) -> None:
    assignment.answer({})
    stopped, lost = Future[list[str]](), Future[list[str]]()
    assignment.settle(lost, job, WorkerLost("lost"))
    assert isinstance(lost.exception(timeout=0), WorkerLost)
    assignment.ask_to_stop()
    assignment.settle(stopped, job, WorkerLost("lost"))
    assert stopped.result(timeout=0) == ["interrupted"]
