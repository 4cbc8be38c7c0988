"""What a kill, damage, a full disk or a second driver leaves, made by hand: found and put right.

The kills themselves are in tests/faults.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import Done, run_here, trials_only

from testbed.registry import default_registry
from testbed.study import dispatch, engines, plan, runner, study_file, tracking, tracking_store
from testbed.study.executors import base, local
from testbed.trial import storage, worker
from testbed.trial.folders import Folder, TrialFolder
from testbed.trial.storage import LeaseLost, StoreAway
from testbed.trial.study_folder import StudyFolder

STUDY = """
[study]
name = "one"
[base]
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 2 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 3, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["v", "edm"]
"""
REGISTRY = default_registry()
NewStore = Callable[[Path], str]


pytestmark = pytest.mark.usefixtures("trials_only")


def study(folder: Path, *words: object, engine: str = "sequential", **more: str) -> Done:
    """The study in this process, without MLflow unless its address is given."""
    (folder / "one.toml").write_text(STUDY)
    quiet = () if more else ("--no-mlflow",)
    return run_here(
        folder, "study", "one.toml", "--jobs", 0, "--engine", engine, *quiet, *words, **more
    )


@pytest.fixture(scope="module")
def by_engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each engine, with the study that it has run to its end."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("sequential", "batched")}
    with trials_only():
        assert [study(folder, engine=name).code for name, folder in folders.items()] == [0, 0]
    return folders


@pytest.fixture
def ended(tmp_path: Path, by_engine: dict[str, Path]) -> Path:
    """A copy of the study that was run one by one."""
    return Path(shutil.copytree(by_engine["sequential"], tmp_path, dirs_exist_ok=True))


@pytest.fixture
def ended_together(tmp_path: Path, by_engine: dict[str, Path]) -> Path:
    """A copy of the study whose trials were one batch."""
    return Path(shutil.copytree(by_engine["batched"], tmp_path, dirs_exist_ok=True))


def places(folder: Path) -> list[Path]:
    """The directories of the study's trials."""
    return sorted((folder / "runs" / "one" / "trials").iterdir())


def made(folder: Path) -> plan.Plan:
    """The plan of the study as it stands on disk."""
    (folder / "one.toml").write_text(STUDY)
    return plan.make(study_file.read(folder / "one.toml"), REGISTRY, folder / "runs" / "one", "cpu")


def points(address: str) -> dict[str, Any]:
    """Every run of the study by kind or trial: status, and the points of each metric.

    The system's own metrics are left out, of which every driver adds some.
    """
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("testbed/one")
    runs = client.search_runs([experiment.experiment_id])
    found = {}
    for run in runs:
        metrics = {
            key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
            if not key.startswith("system/")
        }
        name = run.data.tags.get("testbed.trial", "study")
        found[name] = (run.info.run_id, run.info.status, metrics)
    assert len(found) == len(runs), "a trial has two runs"
    return found


# --- MLflow ---------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("lost", [["mlflow.json"], ["study.json"]])
def test_a_driver_that_forgot_what_it_sent_sends_nothing_twice(
    tmp_path: Path, new_store: NewStore, lost: list[str]
) -> None:
    """It was killed after MLflow's answer and before its note."""
    address = new_store(tmp_path)
    assert study(tmp_path, MLFLOW_TRACKING_URI=address).code == 0
    before = points(address)
    assert len(before) == 3
    for name in lost:
        (tmp_path / "runs" / "one" / name).unlink()
    assert study(tmp_path, MLFLOW_TRACKING_URI=address).code == 0
    assert points(address) == before


@pytest.mark.slow
def test_rows_that_were_trained_again_are_not_sent_again(
    tmp_path: Path, new_store: NewStore
) -> None:
    """Sent, not noted, and made again after the kill, with another time of day."""
    address = new_store(tmp_path)
    assert study(tmp_path, MLFLOW_TRACKING_URI=address).code == 0
    before = points(address)
    sent = tmp_path / "runs" / "one" / "mlflow.json"
    record = Folder.at(sent.parent).json(sent.name)
    for entry in record["trials"].values():
        entry |= {"step": 0, "ended": ""}
    Folder.at(sent.parent).put_json(sent.name, record)
    for at in places(tmp_path):
        (at / "result.json").unlink()
    assert study(tmp_path, MLFLOW_TRACKING_URI=address).code == 0
    assert points(address) == before


@pytest.mark.slow
def test_what_ended_as_interrupted_and_goes_on_has_each_metric_once(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = new_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "run", lambda config, at, *rest: "interrupted")
        study(tmp_path, MLFLOW_TRACKING_URI=address)
    assert {metrics.get("diverged") for _, _, metrics in points(address).values()} == {None}
    assert study(tmp_path, MLFLOW_TRACKING_URI=address).code == 0
    for name, (_, status, metrics) in points(address).items():
        assert status == "FINISHED"
        assert name == "study" or metrics["evaluation/diverged"] == [(100, 0.0)]


@pytest.mark.slow
def test_the_run_of_a_trial_that_another_has_replaced_does_not_stay_running(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = new_store(tmp_path)
    before = made(tmp_path)
    runner.describe(before, REGISTRY)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        tracker = tracking.Tracker(before, address, print, "")
        for one in before.trials:
            before.files.trial(one.id).append_row(ROW)
            tracker.update(one)  # and then the driver is killed
    assert {status for _, status, _ in points(address).values()} == {"RUNNING"}
    words = ("--set", "training.batch=8")
    assert study(tmp_path, *words, MLFLOW_TRACKING_URI=address).code == 0
    found = points(address)
    assert len(found) == 5
    for name, (_, status, _) in found.items():
        assert status == ("KILLED" if name in {one.id for one in before.trials} else "FINISHED")


Followed = tuple[str, plan.Plan, tracking.Tracker]


@pytest.fixture
def followed(tmp_path: Path, new_store: NewStore) -> Followed:
    """The address of a store, and the plan and the tracker of a study that has just begun."""
    address, planned = new_store(tmp_path), made(tmp_path)
    runner.describe(planned, REGISTRY)
    return address, planned, tracking.Tracker(planned, address, print, "")


@pytest.mark.slow
def test_a_trial_that_ended_shortly_before_mlflow_went_away_stays_finished(
    followed: Followed,
) -> None:
    """The note on disk of what was sent is older than the end of the trial."""
    address, planned, tracker = followed
    for one in planned.trials:
        folder = planned.files.trial(one.id)
        folder.append_row(ROW)
        folder.put_json("result.json", {"status": "finished", "metrics": {}, "ended": 1.8e9})
        one.state = "finished"
        tracker.end(one, "finished")
    before = points(address)
    tracker.away = True
    tracker.close("FINISHED", {})
    assert not tracker.away
    assert {status for _, status, _ in points(address).values()} == {"FINISHED"}
    assert before.keys() == points(address).keys() == {"study", *(t.id for t in planned.trials)}


@pytest.mark.slow
@pytest.mark.parametrize("status", ["finished", "failed"])
def test_a_trial_that_ends_so_once_more_does_not_stay_running(
    followed: Followed, status: str
) -> None:
    """It is tried again by the driver that had told MLflow of its end."""
    address, planned, tracker = followed
    ends = {"finished": "FINISHED", "failed": "FAILED"}
    for one in planned.trials:
        folder = planned.files.trial(one.id)
        folder.append_row(ROW)
        folder.put_json("result.json", {"status": status, "metrics": {}, "ended": 1.8e9})
        one.state = status
        tracker.end(one, status)
        tracker.update(one)
    assert {s for name, (_, s, _) in points(address).items() if name != "study"} == {"RUNNING"}
    for one in planned.trials:
        tracker.end(one, status)
    tracker.close(ends[status], {})
    assert {s for _, s, _ in points(address).values()} == {ends[status]}


@pytest.mark.slow
def test_a_trial_that_was_passed_over_while_mlflow_was_away_is_sent_at_the_end(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run is there already, without an end: it is not that of a trial that was replaced."""
    address, planned, tracker = followed
    for one in planned.trials:
        folder = planned.files.trial(one.id)
        folder.append_row(ROW)
        tracker.update(one)
        folder.put_json("result.json", {"status": "finished", "metrics": {}, "ended": 1.8e9})
        one.state = "finished"
    end, passed = tracker.end, list[str]()

    def once_away(trial: plan.Trial, status: str) -> None:
        if passed:
            end(trial, status)
        passed.append(trial.id)

    monkeypatch.setattr(tracker, "end", once_away)
    tracker.close("FINISHED", {})
    assert {status for _, status, _ in points(address).values()} == {"FINISHED"}


@pytest.mark.slow
def test_a_driver_that_was_replaced_closes_no_run(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are now the other driver's, whose note of what was sent stays too."""
    address, planned = new_store(tmp_path), made(tmp_path)
    storage.begin(planned.folder, 60.0)
    with contextlib.suppress(LeaseLost), planned.files.own():
        runner.describe(planned, REGISTRY)
        tracker = tracking.Tracker(planned, address, print, "")
        one = planned.trials[0]
        planned.files.trial(one.id).append_row(ROW)
        tracker.update(one)
        note = planned.files.json("mlflow.json")
        planned.files.store.take(planned.files.claim())  # type: ignore[attr-defined]
        one.state = "interrupted"
        tracker.close("KILLED", {})
    assert tracker.away
    assert planned.files.json("mlflow.json") == note
    assert {status for _, status, _ in points(address).values()} == {"RUNNING"}


@pytest.mark.slow
def test_a_disk_that_is_away_as_mlflow_is_told_ends_no_study(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, planned, tracker = followed
    tracker.open()
    planned.trials[0].state = "interrupted"

    def away(self: TrialFolder, *rest: Any) -> Any:
        raise StoreAway(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(TrialFolder, "rows", away)
    tracker.close("KILLED", {})
    assert tracker.away


ROW = {"step": 50, "loss": 1.0, "gradient_norm": 0.5, "gradient_norm_cv": 0.1}
ROW |= {"seconds": 2.0, "time": 1.7e9}


@pytest.mark.slow
def test_a_run_appears_with_the_first_row_of_its_trial_and_begins_with_it(
    tmp_path: Path, new_store: NewStore
) -> None:
    address = new_store(tmp_path)
    (tmp_path / "one.toml").write_text(STUDY)
    read = study_file.read(tmp_path / "one.toml", seeds=2)
    planned = plan.make(read, REGISTRY, tmp_path / "runs" / "one", "cpu")
    runner.describe(planned, REGISTRY)
    first, second, failed, *_ = planned.trials
    tracker = tracking.Tracker(planned, address, print, "")
    folders = [planned.files.trial(one.id) for one in planned.trials]
    for one in (first, second):
        tracker.update(one)
    tracker.end(second, "interrupted")
    assert set(points(address)) == {"study"}
    folders[0].begin("together", 3)
    folders[0].append_row(ROW)
    folders[1].append_row({**ROW, "time": 1.8e9})
    folders[2].fail("Traceback", "broken on purpose")
    for _ in range(2):
        tracker.update(first)
        tracker.end(second, "interrupted")
    tracker.end(failed, "failed")
    times = {one.data.tags["testbed.trial"]: one.info for one in nested(address)}
    assert set(times) == {first.id, second.id, failed.id}
    assert times[first.id].start_time == 1000 * (1_700_000_000 - 3 * 2)
    assert times[second.id].start_time == 1000 * (1_800_000_000 - 2)
    assert times[second.id].end_time == 1000 * 1_800_000_000
    assert times[failed.id].start_time == times[failed.id].end_time


def nested(address: str) -> list[Any]:
    """The runs of trials."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("testbed/one")
    query = "tags.`testbed.kind` = 'trial'"
    return list(client.search_runs([experiment.experiment_id], query))


@pytest.mark.slow
def test_an_experiment_that_another_study_creates_first_is_taken(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    address = new_store(tmp_path)
    MlflowClient(tracking_uri=address).create_experiment("testbed/one")
    genuine, calls = MlflowClient.get_experiment_by_name, iter([None])

    def get(self: MlflowClient, name: str) -> Any:
        return next(calls, genuine(self, name))

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", get)
    done = study(tmp_path, MLFLOW_TRACKING_URI=address)
    assert (done.code, "does not answer" in done.out) == (0, False)


@pytest.mark.slow
def test_mlflow_that_comes_back_within_a_study_gets_everything(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, genuine = new_store(tmp_path), tracking.Tracker.end
    calls = iter(range(100))

    def end(self: tracking.Tracker, *words: Any) -> None:
        with monkeypatch.context() as patch:
            if next(calls) == 0:
                patch.setattr(tracking_store, "prepare", lambda address: 1 / 0)
            genuine(self, *words)

    monkeypatch.setattr(tracking.Tracker, "end", end)
    done = study(tmp_path, MLFLOW_TRACKING_URI=address)
    assert done.code == 0
    assert done.out.count("does not answer") == 1
    assert done.out.count("answers again") == 1
    assert {status for _, status, _ in points(address).values()} == {"FINISHED"}
    assert len(points(address)) == 3


@pytest.mark.slow
def test_sync_does_not_speak_of_a_study_that_goes_on(ended: Path) -> None:
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_here(ended, "sync", "one.toml", **away)
    assert done.code == 1
    assert "nothing is lost: once it does, testbed sync sends all." in done.out
    assert "study goes on" not in done.out


@pytest.mark.process
@pytest.mark.slow
def test_what_a_killed_creation_of_the_store_left_is_not_read(tmp_path: Path) -> None:
    """SQLite would roll a journal of the old file back into the new one."""
    for name in ("mlflow.db.new", "mlflow.db.new-journal", "mlflow.db.new-wal"):
        (tmp_path / name).write_bytes(b"half written")
    tracking_store.prepare(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (tmp_path / "mlflow.db").is_file()
    assert not list(tmp_path.glob("mlflow.db.new*"))


# --- one driver at a time -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_driver_is_told_and_touches_nothing(ended: Path) -> None:
    (places(ended)[0] / "result.json").unlink()
    with Folder.at(ended / "runs" / "one").own():
        before = {file: file.stat().st_mtime_ns for file in (ended / "runs").rglob("*")}
        for done in (study(ended), run_here(ended, "sync", "one.toml")):
            assert done.code == 2
            assert done.err.startswith("testbed: runs/one is being worked on by another process")
            assert done.err.count("\n") == 1
        after = {file: file.stat().st_mtime_ns for file in (ended / "runs").rglob("*")}
    assert {k: v for k, v in after.items() if k.name != "lock"} == {
        k: v for k, v in before.items() if k.name != "lock"
    }


@pytest.mark.slow
def test_a_trial_in_other_hands_is_not_called_failed(
    ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose driver was killed may hold it a moment longer."""
    monkeypatch.setattr(worker, "ORPHANED", 0.0)
    at = places(ended)[0]
    (at / "result.json").unlink()
    with Folder.at(at).own():
        done = study(ended)
    assert done.code == 2
    assert f"trials/{at.name} is being worked on by another process" in done.err
    assert not (at / "result.json").exists()
    assert not (at / "error.txt").exists()


@pytest.mark.process
def test_a_worker_that_dies_between_two_jobs_is_replaced(tmp_path: Path) -> None:
    workers = local.ProcessExecutor(1)
    nothing = base.Job([], [], tmp_path / "group", (), (), "cpu", False)
    try:
        assert workers.submit(nothing).result(timeout=60) == []
        (pool,) = workers._pools
        assert pool is not None
        (process,) = pool._processes.values()
        process.kill()
        process.join()
        while not pool._broken:
            time.sleep(0.01)
        assert workers.submit(nothing).result(timeout=60) == []
    finally:
        workers.close()


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sequential", "batched"])
@pytest.mark.parametrize("name", ["rows.jsonl", "checkpoint", "weights.safetensors", "result.json"])
def test_a_full_disk_fails_no_trial_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, engine: str
) -> None:
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    genuine = Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if self.name in (name, f"{name}.tmp") and set(mode) & set("wa"):
            genuine(self, mode).close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(self, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        done = study(tmp_path, engine=engine)
    assert done.code == 2
    assert done.err.startswith("testbed: [Errno 28] No space left on device: 'runs/one/")
    assert f"{name}'\n" in done.err
    assert "make room, and the same command goes on." in done.err
    left = [file.name for file in (tmp_path / "runs").rglob("*")]
    assert not [file for file in left if file.endswith(".tmp") or file == "error.txt"]
    done = study(tmp_path, engine=engine)
    assert (done.code, "2 finished" in done.out) == (0, True)


# --- damage ---------------------------------------------------------------------------------------


def halved(file: Path) -> None:
    """As if a disk had lost the rest."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
def test_a_damaged_record_is_told_and_written_anew(ended: Path) -> None:
    at = ended / "runs" / "one"
    files = [at / "study.json", at / "plan.json", places(ended)[0] / "trial.json"]
    for file in files:
        halved(file)
    for command in (("plan", "one.toml"), ("study", "one.toml", "--jobs", 0, "--no-mlflow")):
        done = run_here(ended, *command)
        assert done.code == 0, done.err
        assert "2 finished" in done.out
        for file in files:
            assert f"{file.name}: cannot be read as JSON" in done.out
    for file in (files[0], files[2]):
        Folder.at(file.parent).json(file.name)


@pytest.mark.slow
def test_a_damaged_result_or_curve_is_told_and_made_anew(ended: Path) -> None:
    first, second = places(ended)
    expected = [(at / "weights.safetensors").read_bytes() for at in (first, second)]
    halved(first / "result.json")
    halved(second / "rows.jsonl")
    (first / "weights.safetensors").unlink()
    done = study(ended)
    assert done.code == 0
    assert f"{first.name}/result.json: cannot be read as JSON" in done.out
    assert f"{second.name}/rows.jsonl: is not the curve that the trial wrote" in done.out
    assert done.out.count("is trained anew.") == 2
    assert [(at / "weights.safetensors").read_bytes() for at in (first, second)] == expected
    assert [row["step"] for row in TrialFolder.at(second).rows()] == [50, 100]


@pytest.mark.slow
def test_a_lost_member_of_a_group_is_made_by_the_group(ended_together: Path) -> None:
    """Alone it would have other bits; the members that are kept are not touched."""
    lost, kept = places(ended_together)
    expected = (lost / "weights.safetensors").read_bytes()
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir() if file.name != "trial.json"}
    for name in ("result.json", "weights.safetensors"):
        (lost / name).unlink()
    assert study(ended_together, engine="batched").code == 0
    assert (lost / "weights.safetensors").read_bytes() == expected
    assert TrialFolder.at(lost).result()["trained_together"] == 2
    after = {file: file.stat().st_mtime_ns for file in before}
    assert {f.name for f in before if after[f] != before[f]} <= {"lock", "system.jsonl"}


@pytest.mark.slow
def test_a_trial_that_is_asked_for_by_its_id_runs_alone(ended_together: Path) -> None:
    at = places(ended_together)[0]
    done = study(ended_together, "--trial", at.name, engine="auto")
    assert (done.code, "1 trials one by one" in done.out) == (0, True)
    assert "trained_together" not in TrialFolder.at(at).result()


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_checkpoint_or_curve_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    """The curve that a checkpoint belongs to has to be there too."""
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", 0.0)
    begun = made(tmp_path)
    runner.describe(begun, REGISTRY)
    one, calls = begun.trials[0], iter([False, True])
    at = begun.folder / "trials" / one.id
    assert worker.run(one.config, at, stop=lambda: next(calls)) == "interrupted"
    rows = (at / "rows.jsonl").read_bytes().splitlines(keepends=True)
    assert len(rows) == 2
    (at / "rows.jsonl").write_bytes(b"".join(rows[: 0 if both else 1]))
    told: list[str] = []
    found = worker.resumable(TrialFolder.at(at), [TrialFolder.at(at)], told.append)
    what = f"{at / 'rows.jsonl'} is cut short or damaged."
    if both:
        assert (found, told) == (None, [f"{what} Training begins anew."])
    else:
        assert found is not None
        assert told == [f"{what} Training goes on from step 50."]
    assert worker.run(one.config, at) == "finished"
    assert [row["step"] for row in TrialFolder.at(at).rows()] == [50, 100]


@pytest.mark.slow
def test_a_study_tells_of_a_damaged_checkpoint(tmp_path: Path) -> None:
    begun = made(tmp_path)
    runner.describe(begun, REGISTRY)
    one = begun.trials[0]
    at = begun.folder / "trials" / one.id
    assert worker.run(one.config, at, stop=lambda: True) == "interrupted"
    halved(at / "checkpoint")
    done = study(tmp_path)
    assert done.code == 0
    assert "is cut short or not a checkpoint. Training begins anew." in done.out


# --- leftovers ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_kill_after_the_result_leaves_is_cleared_away(ended: Path) -> None:
    folder, (whole, other) = ended / "runs" / "one", places(ended)
    names = set(folder.rglob("*"))
    (other / "result.json").unlink()
    for at in (whole, other):
        TrialFolder.at(at).put_checkpoint({}, {})
        TrialFolder.at(at).put_checkpoint({}, {})
        (at / "checkpoint.tmp").write_bytes(b"half")
    for name in ("done", "begun"):
        checkpoint_of = folder / "groups" / name / "checkpoint"
        checkpoint_of.parent.mkdir(parents=True)
        checkpoint_of.write_bytes(b"")
    Folder.at(other).put_json("group.json", {"group": "begun", "trained_together": 2})
    Folder.at(whole).put_json("group.json", {"group": "done", "trained_together": 2})
    theirs = [folder / "groups" / "mine" / "notes.txt", folder / "a.tmp"]
    theirs[0].parent.mkdir()
    for file in theirs:  # --out may name a folder that holds more
        file.write_text("kept")
    StudyFolder.at(folder).tidy(set())
    assert all(file.read_text() == "kept" for file in theirs)
    shutil.rmtree(theirs[0].parent)
    theirs[1].unlink()
    left = {file.relative_to(folder).as_posix() for file in set(folder.rglob("*")) - names}
    mine = f"trials/{other.name}"
    assert left == {
        "groups", "groups/begun", "groups/begun/checkpoint", f"{mine}/checkpoint",
        f"{mine}/checkpoint.previous", f"{mine}/group.json",
    }  # fmt: skip


@pytest.mark.slow
def test_a_dissolved_group_stays_dissolved(tmp_path: Path) -> None:
    """What a kill left of its trials runs alone too: in a smaller batch it would differ."""
    first = made(tmp_path)
    runner.describe(first, REGISTRY)
    chosen = engines.choose(first, REGISTRY, "batched", 1)
    (group,) = chosen.groups
    chosen.write(first.folder)
    at = first.folder / "groups" / group.id
    at.mkdir(parents=True)
    (at / "error.txt").write_text("Traceback")
    again = engines.choose(made(tmp_path), REGISTRY, "batched", 1)
    assert [len(one.trials) for one in again.groups] == [1, 1]


def test_a_part_of_a_study_does_not_forget_the_groups_of_the_rest(tmp_path: Path) -> None:
    whole = made(tmp_path)
    engines.choose(whole, REGISTRY, "batched", 1).write(whole.folder)
    stored = Folder.at(whole.folder).json("plan.json")
    other = engines.ExecutionPlan("batched", 1, 1, [engines.Group([plan.Trial("other", {})])])
    other.write(whole.folder)
    kept = Folder.at(whole.folder).json("plan.json")["groups"]
    assert kept == [["other"], *stored["groups"]]


def test_the_key_of_a_study_survives_either_file(tmp_path: Path) -> None:
    assert StudyFolder.at(tmp_path).key() != StudyFolder.at(tmp_path).key()
    Folder.at(tmp_path).put_json("mlflow.json", {"key": "k"})
    assert StudyFolder.at(tmp_path).key() == "k"
    (tmp_path / "study.json").write_text("{")
    assert StudyFolder.at(tmp_path).key() == "k"
    shutil.copy(tmp_path / "mlflow.json", tmp_path / "study.json")
    (tmp_path / "mlflow.json").unlink()
    assert (
        json.loads((tmp_path / "study.json").read_text())["key"] == StudyFolder.at(tmp_path).key()
    )


@pytest.mark.slow
def test_a_broken_driver_does_not_leave_the_study_running(
    tmp_path: Path, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full, for example."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    address = new_store(tmp_path)
    monkeypatch.setattr(dispatch, "statuses_of", full)
    assert study(tmp_path, MLFLOW_TRACKING_URI=address).code == 2
    assert [status for _, status, _ in points(address).values()] == ["KILLED"]
