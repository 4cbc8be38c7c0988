"""What a study's folder says of a study that runs, and what a driver and its workers are told."""

import errno
import json
import shlex
import signal
import time
from concurrent.futures import BrokenExecutor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here
from helpers.ended_studies import result
from helpers.pages import BLOCK
from helpers.paths import DOCS
from helpers.studies import ONE_TRIAL, planned
from helpers.watched_studies import SEEDS, STEPS, watched

from testbed.cli import studies
from testbed.errors import InputError, UnknownName
from testbed.registry import default_registry
from testbed.study import dispatch, orders, plan, runner, tracking_content, watching
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.executors.base import NodeLost, WorkerLost
from testbed.study.telling import Telling
from testbed.trial import usage, worker
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import StoreAway


def test_a_folder_says_what_runs_how_fast_and_when_it_ends(tmp_path: Path) -> None:
    found = watching.read(watched(tmp_path).files)
    counts = {state: found.count(state) for state in watching.STATES}
    assert counts == {
        "running": 1, "waiting": 1, "finished": 2, "diverged": 0, "failed": 1, "cancelled": 1,
    }  # fmt: skip
    assert found.driven
    assert found.rate == pytest.approx(1.0)
    # 20 and 50 steps are left at one a second; two evaluations of a second follow.
    assert found.seconds_left == pytest.approx(72.0)
    (cost,) = found.costs()
    assert (cost.training, cost.evaluation) == (3.0, 1.0)
    running = next(one for one in found.trials if one.state == "running")
    assert (running.step, running.steps, running.memory_mb) == (30, STEPS, 100.0)


def test_what_no_driver_runs_waits(tmp_path: Path) -> None:
    made = watched(tmp_path, driven=False)
    found = watching.read(made.files)
    assert (found.count("running"), found.count("waiting"), found.driven) == (0, 2, False)
    assert found.seconds_left is None
    made.files.put_json(orders.FILE, {"seen": time.time() - orders.SILENT - 1})
    assert not orders.driven(made.files)


def test_trials_that_ended_are_read_once(tmp_path: Path) -> None:
    files, known = watched(tmp_path).files, dict[str, watching.WatchedTrial]()
    watching.read(files, known)
    (one, _) = known
    files.trial(one).store.put("rows.jsonl", b"damaged\n")
    assert watching.read(files, known).count("finished") == 2
    files.trial(one).store.remove("result.json")
    assert watching.read(files, known).count("finished") == 1


def test_an_id_that_is_none_or_several_is_refused(tmp_path: Path) -> None:
    found = watching.read(watched(tmp_path).files)
    first = found.trials[0].id
    assert watching.chosen(found, [first[:8]])[0].id == first
    with pytest.raises(UnknownName, match=f"Did you mean '{first}'"):
        watching.chosen(found, [f"{first[:-1]}x"])
    with pytest.raises(UnknownName, match="could be several"):
        watching.chosen(found, [""])


@pytest.mark.slow
def test_status_shows_it_and_says_what_is_next(tmp_path: Path) -> None:
    made = watched(tmp_path)
    page = tmp_path / "status.html"
    done = run_here(tmp_path, "status", "out", "--page", page)
    assert (done.code, done.err) == (0, "")
    for words in ("2 finished", "1 running", "1 step", "30/50", "100 MB", "on purpose [/x]"):
        assert words in done.out, words
    failed = next(one.id for one in made.trials if one.state == "failed")
    assert f"Next: testbed log out {failed}" in done.out
    text = page.read_text()
    assert '<meta http-equiv="refresh" content="5">' in text
    assert "ValueError: on purpose [/x]" in text
    made.files.store.remove(orders.FILE)
    run_here(tmp_path, "status", "out", "--page", page)
    assert "http-equiv" not in page.read_text()
    page.unlink()
    found = json.loads(run_here(tmp_path, "status", "out", "--json", "--page", page).out)
    assert page.exists()
    assert found["counts"]["finished"] == 2
    assert len(found["trials"]) == SEEDS
    done = run_here(tmp_path, "status", "out", "--json", "--watch")
    assert (done.code, "leave one out" in done.err) == (2, True)


def test_a_log_has_the_curve_and_how_it_ended(tmp_path: Path) -> None:
    made = watched(tmp_path)
    ids = {state: one.id for one in made.trials for state in [one.state]}
    done = run_here(tmp_path, "log", "out", ids["finished"], "--follow")
    assert done.code == 0
    assert "step       10  loss 1" in done.out
    assert "finished: energy 0.5" in done.out
    done = run_here(tmp_path, "log", "out", ids["failed"])
    assert done.code == 1
    assert "Traceback\nValueError: on purpose [/x]" in done.out
    assert run_here(tmp_path, "log", "out", "nothing").code == 2


@pytest.mark.slow
def test_cancel_and_retry_refuse_what_they_cannot_do(tmp_path: Path) -> None:
    made = watched(tmp_path, driven=False)
    ids = {one.state: one.id for one in made.trials}
    done = run_here(tmp_path, "cancel", "out", ids["finished"])
    assert (done.code, "has finished" in done.err) == (2, True)
    done = run_here(tmp_path, "cancel", "out")
    assert (done.code, "no study runs" in done.err) == (2, True)
    done = run_here(tmp_path, "retry", "out", ids["finished"])
    assert (done.code, "is finished" in done.err) == (2, True)
    done = run_here(tmp_path, "retry", "out")
    assert done.code == 0
    assert "Next: testbed study" in done.out
    states = [made.files.state(one.id) for one in made.trials]
    assert {"failed", "cancelled"}.isdisjoint(states)


@pytest.mark.parametrize(
    ("group", "said"), [("", "stops at its next checkpoint"), ("abc", "and is not evaluated")]
)
def test_cancel_says_what_becomes_of_a_running_trial(tmp_path: Path, group: str, said: str) -> None:
    made = watched(tmp_path)
    (running,) = (one for one in watching.read(made.files).trials if one.state == "running")
    trial = made.files.trial(running.id)
    trial.begin(group, 2)
    done = run_here(tmp_path, "cancel", "out", running.id)
    assert (done.code, said in done.out, trial.cancelled) == (0, True, True)


# --- the driver ---------------------------------------------------------------------------------


class Scripted:
    """An executor whose jobs end at once as they are told to, each time the next way."""

    slots = 1

    def __init__(self, act: Any) -> None:
        self.act, self.submitted, self.stopped = act, list[str](), False

    def submit(self, job: Any) -> Future[Any]:
        trial = worker.TrialFolder.at(job.trial_dirs[0])
        self.submitted.append(trial.name)
        future: Future[Any] = Future()
        try:
            future.set_result([self.act(trial, self.submitted.count(trial.name))])
        except BrokenExecutor as problem:
            future.set_exception(problem)
        return future

    def advance(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True

    def close(self, kill: bool = False) -> None: ...


def end(trial: Any, time_: int) -> str:
    trial.put_json("result.json", {"status": "finished"})
    return "finished"


def executed(made: plan.Plan, act: Any) -> tuple[runner.Outcome, Scripted]:
    executor = Scripted(act)
    engine = ExecutionPlan("sequential", 1, 1, [Group([one]) for one in made.pending()])
    parts = executor, Telling(None), runner.Progress()
    return runner.execute(made, default_registry(), engine, *parts), executor


@pytest.fixture
def three(tmp_path: Path) -> plan.Plan:
    return planned(ONE_TRIAL, tmp_path, seeds=3)


def test_a_cancelled_trial_does_not_start_until_it_is_retried(three: plan.Plan) -> None:
    first, second, third = three.trials
    files = three.files

    def act(trial: Any, time_: int) -> str:
        if trial.name == first.id:
            files.trial(second.id).cancel()
        return end(trial, time_)

    outcome, executor = executed(three, act)
    assert executor.submitted == [first.id, third.id]
    assert outcome.statuses[second.id] == "cancelled"
    again = plan.make(three.study, default_registry(), three.folder, "cpu")
    assert again.pending() == []
    with pytest.raises(InputError, match=f"{second.id} was cancelled; .*testbed retry"):
        studies._choose(again, second.id[:8])
    files.trial(second.id).retry()
    again = plan.make(three.study, default_registry(), three.folder, "cpu")
    assert [one.id for one in again.pending()] == [second.id]


def test_a_driver_takes_up_what_is_retried(three: plan.Plan) -> None:
    first, second, third = (one.id for one in three.trials)
    files = three.files

    def act(trial: Any, time_: int) -> str:
        if trial.name == first and time_ == 1:
            trial.fail("on purpose", "on purpose")
            return "failed"
        if trial.name == second:
            files.trial(first).retry()
            orders.retry(files, [first, first, third, "nothing"])
        return end(trial, time_)

    outcome, executor = executed(three, act)
    assert executor.submitted == [first, second, third, first]
    assert set(outcome.statuses.values()) == {"finished"}
    assert not files.has(orders.FILE)


def test_a_trial_is_retried_when_its_group_has_ended(three: plan.Plan) -> None:
    first, *_ = three.trials
    told = orders.Orders(three)
    orders.retry(three.files, [first.id])
    told.read()
    assert told.retried() == []  # its group still runs
    first.state = "failed"
    assert told.retried() == [first]
    assert told.retried() == []


def test_a_driver_stops_where_it_is_told_to(three: plan.Plan) -> None:
    orders.stop(three.files)  # told to an earlier driver
    files = three.files

    def act(trial: Any, time_: int) -> str:
        assert orders.driven(files)
        if trial.name == three.trials[1].id:
            orders.stop(files)
        return end(trial, time_)

    outcome, executor = executed(three, act)
    assert (outcome.interrupted, executor.stopped) == (True, True)
    assert executor.submitted == [one.id for one in three.trials[:2]]


def test_a_worker_whose_disk_was_away_for_a_moment_is_seen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would count as gone for the rest of its trial."""
    trial, genuine, calls = TrialFolder.at(tmp_path), TrialFolder.append_sample, list[int]()

    def once_away(self: TrialFolder, sample: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise StoreAway(errno.ESTALE, "Stale file handle")
        genuine(self, sample)

    monkeypatch.setattr(TrialFolder, "append_sample", once_away)
    monkeypatch.setattr(usage, "SECONDS", 0.01)
    with usage.sampled([trial], torch.device("cpu")):
        end = time.monotonic() + 20
        while not trial.samples() and time.monotonic() < end:
            time.sleep(0.01)
    assert trial.samples()


@pytest.mark.parametrize(
    ("goes_on", "problem", "tries"),
    [
        (True, BrokenProcessPool("the node is lost"), 5),
        (False, BrokenProcessPool("the node is lost"), dispatch.TRIES),
        (False, WorkerLost("Ray: WorkerCrashedError"), dispatch.TRIES),
        (False, NodeLost("Ray: NodeDiedError"), 5),
    ],
)
def test_a_trial_that_goes_on_is_not_blamed_for_lost_nodes(
    three: plan.Plan, goes_on: bool, problem: Exception, tries: int
) -> None:
    first = three.trials[0].id

    def act(trial: Any, time_: int) -> str:
        if trial.name == first and time_ <= 4:
            trial.append_row({"step": time_ if goes_on else 1})
            raise problem
        return end(trial, time_)

    outcome, executor = executed(three, act)
    assert outcome.statuses[first] == ("finished" if tries == 5 else "failed")
    assert executor.submitted.count(first) == tries


def test_nodes_are_not_lost_for_ever(three: plan.Plan) -> None:
    first = three.trials[0].id

    def act(trial: Any, time_: int) -> str:
        if trial.name == first:
            raise NodeLost("Ray: NodeDiedError")
        return end(trial, time_)

    outcome, executor = executed(three, act)
    assert outcome.statuses[first] == "failed"
    assert executor.submitted.count(first) == dispatch.NODES


def test_what_is_stopped_has_not_failed(three: plan.Plan) -> None:
    first = three.trials[0].id

    def act(trial: Any, time_: int) -> str:
        if time_ == dispatch.TRIES:
            signal.raise_signal(signal.SIGINT)
        raise BrokenProcessPool("the node is lost")

    outcome, executor = executed(three, act)
    assert executor.submitted == [first] * dispatch.TRIES
    assert (outcome.interrupted, outcome.statuses) == (True, {})


# --- the worker ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_stops_a_cancelled_trial_at_a_checkpoint(tmp_path: Path) -> None:
    (one,) = planned(ONE_TRIAL, tmp_path, "training.steps=200", "training.points=20").trials
    at = tmp_path / "trial"
    trial = worker.TrialFolder.at(at)
    asked: list[bool] = []

    def stop() -> bool:  # asked at each window: somebody cancels at the second
        asked.append(True)
        if len(asked) == 2:
            trial.cancel()
        return False

    assert worker.run(one.config, at, stop=stop) == "cancelled"
    assert trial.has("checkpoint")
    step = trial.last_step()
    assert 0 < step < 200
    trial.retry()
    assert worker.run(one.config, at) == "finished"
    assert result(at)["status"] == "finished"
    rows = trial.rows()
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    (first, *_) = trial.samples()
    assert abs(first["time"] - time.time()) < 60
    assert 10 < first["memory_mb"] < 100_000


def together(made: plan.Plan, at: Path, cancelled: int | None) -> list[worker.TrialFolder]:
    """Trains trials as one, the one of this number cancelled at the second window."""
    folders = [worker.TrialFolder.at(at / one.id) for one in made.trials]
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(True)
        if len(asked) == 2 and cancelled is not None:
            folders[cancelled].cancel()
        return False

    configs, paths = [one.config for one in made.trials], [one.path for one in folders]
    statuses = worker.run_together(configs, paths, at / "group", stop=stop)
    assert [s for i, s in enumerate(statuses) if i != cancelled] == ["finished"] * (
        len(folders) - (cancelled is not None)
    )
    return folders


def law_the_others_of_a_batch_keep_their_bits(made: plan.Plan, folder: Path) -> None:
    """And the one that was cancelled goes on with its group, from where it was."""
    whole, left = together(made, folder / "whole", None), together(made, folder / "left", 1)
    for i, (one, other) in enumerate(zip(whole, left, strict=True)):
        if i != 1:
            for name in ("weights.safetensors", "samples.safetensors", "levels.csv"):
                assert one.store.get(name) == other.store.get(name), (i, name)
    assert not left[1].has("result.json")
    left[1].retry()
    configs, paths = [one.config for one in made.trials], [one.path for one in left]
    statuses = worker.run_together(configs, paths, folder / "left" / "group")
    assert set(statuses) == {"finished"}
    assert whole[1].store.get("weights.safetensors") == left[1].store.get("weights.safetensors")


SHORT = "training.steps=60", "training.points=12"


@pytest.mark.slow
def test_the_others_of_a_batch_keep_their_bits(tmp_path: Path) -> None:
    made = planned(ONE_TRIAL, tmp_path, *SHORT, seeds=2)
    law_the_others_of_a_batch_keep_their_bits(made, tmp_path)


@pytest.mark.slow
def test_a_batch_that_forgets_who_was_cancelled_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(ONE_TRIAL, tmp_path, *SHORT, seeds=2)
    monkeypatch.setattr(worker.TrialFolder, "cancelled", False)
    with pytest.raises(AssertionError):
        law_the_others_of_a_batch_keep_their_bits(made, tmp_path)


def test_a_store_that_is_away_fails_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = planned(ONE_TRIAL, tmp_path).trials
    at = tmp_path / "trial"

    def away(*rest: Any) -> str:
        raise StoreAway("s3://bucket/x: the store does not answer")

    monkeypatch.setattr(worker, "_run", away)
    with pytest.raises(StoreAway):
        worker.run(one.config, at)
    assert not worker.TrialFolder.at(at).has("result.json")


def test_a_sample_is_a_metric_of_its_trial() -> None:
    sample = {"time": 12.0, "memory_mb": 3.0, "cpu_percent": None}
    found = list(tracking_content.system([sample], since=2.0))
    assert found == [("system/worker_memory_mb", 3.0, 12_000, 10)]


def test_a_torn_sample_is_left_out(tmp_path: Path) -> None:
    trial = worker.TrialFolder.at(tmp_path)
    trial.append_sample({"time": 1.0, "memory_mb": float("nan")})
    trial.store.append("system.jsonl", b'{"time": 2')
    assert trial.samples() == [{"time": 1.0, "memory_mb": None}]
    assert usage._processor_seconds() > 0


# --- the page -----------------------------------------------------------------------------------


def test_the_page_on_watching_shows_what_its_commands_show(tmp_path: Path) -> None:
    watched(tmp_path)
    text = (DOCS / "how-to" / "watching.md").read_text()
    shown = [
        run_here(tmp_path, *shlex.split(body)[1:])
        for language, body in BLOCK.findall(text)
        if language == "sh"
    ]
    assert [one.code for one in shown] == [0, 0, 0]
    (said,) = (body for _, body in BLOCK.findall(text) if body.startswith("Study learned"))
    for line in said.splitlines():
        assert line in shown[0].out
    assert (tmp_path / "status.html").is_file()
    for state in watching.STATES:
        assert f"| {state} |" in text
