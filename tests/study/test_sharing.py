"""Drivers that share the trials of one study: who takes what, and what is refused."""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here
from helpers.ended_studies import ONE, curve, of_kind, put, stored
from helpers.forked import Command, start
from helpers.shared import once
from helpers.studies import ONE_TRIAL, planned

from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import engines, orders, runner, session, sharing, waiting
from testbed.study.dispatch import Dispatch
from testbed.study.engines import Group
from testbed.study.orders import Orders
from testbed.study.plan import Plan
from testbed.study.telling import Telling
from testbed.study.waiting import ALIVE, Waiting
from testbed.trial import storage, worker
from testbed.trial.storage import Busy, leases
from testbed.trial.study_folder import StudyFolder

LEASE = 0.8
Elsewhere = Callable[[], None]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """From a call on, this process owns nothing that it owned: it acts as another one."""
    return lambda: monkeypatch.setattr(leases.Leased, "held", {})


@pytest.fixture
def four(tmp_path: Path) -> Plan:
    """A study of four trials whose folder has leases."""
    storage.begin(tmp_path / "out", LEASE)
    return planned(ONE_TRIAL, tmp_path, seeds=4)


def singles(made: Plan) -> list[Group]:
    return [Group([one]) for one in made.trials]


def ends(made: Plan, group: Group, status: str = "finished") -> None:
    """Another driver's worker brings a trial to its end."""
    made.files.trial(group.trials[0].id).put_json("result.json", {"status": status, "ended": 1.0})


def soon(answer: Callable[[], Any]) -> Any:
    """The first answer that is not empty."""
    end = time.monotonic() + 20
    while not (found := answer()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_two_drivers_may_begin_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, calls = os.replace, list[int]()

    def replace(source: Path, to: Path) -> None:
        calls.append(1)
        if len(calls) == 1:
            storage.begin(tmp_path / "out", LEASE)  # the other one, in the middle of this one
        genuine(source, to)

    monkeypatch.setattr(os, "replace", replace)
    storage.begin(tmp_path / "out", LEASE)
    assert os.listdir(tmp_path / "out") == ["storage.json"]
    assert StudyFolder.at(tmp_path / "out").lease == LEASE


# --- what waits ---------------------------------------------------------------------------------


def law_what_another_trains_is_left_to_it(made: Plan, elsewhere: Elsewhere) -> None:
    """For as long as its worker lives; then it is anybody's."""
    first, *rest = groups = singles(made)
    here = Waiting(made, groups)
    with made.files.trial(first.trials[0].id).own():
        elsewhere()
        assert [here.next() for _ in rest] == rest
        assert list(here.ended()) == []
        assert (here.elsewhere, here.free) == ([first], False)
        end = time.monotonic() + 2 * LEASE
        while time.monotonic() < end:
            assert here.next() is None
            time.sleep(LEASE / 8)
    assert here.next() == first
    assert here.next() is None


@pytest.mark.slow
def test_what_another_trains_is_left_to_it(four: Plan, elsewhere: Elsewhere) -> None:
    law_what_another_trains_is_left_to_it(four, elsewhere)


@pytest.mark.parametrize("seen", [True, False])
def test_a_driver_that_sees_all_or_nothing_of_others_is_caught(
    four: Plan, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    monkeypatch.setattr(Waiting, "_taken", lambda self, group: seen)
    with pytest.raises(AssertionError):
        law_what_another_trains_is_left_to_it(four, elsewhere)


@pytest.mark.parametrize("place", range(4))
def test_a_group_is_left_to_whoever_trains_any_of_it(
    four: Plan, elsewhere: Elsewhere, place: int
) -> None:
    """A group that was dissolved trains one after the other, and owns one at a time."""
    here = Waiting(four, [Group([*four.trials])])
    with four.files.trial(four.trials[place].id).own():
        elsewhere()
        assert here.next() is None
        assert list(here.ended()) == []
        assert not here.free


def test_a_group_whose_worker_died_is_waited_for_once(
    four: Plan, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not once for each of its trials."""
    monkeypatch.setattr(leases.Leased, "_live", lambda self, lease: None)
    group = Group([*four.trials])
    here = Waiting(four, [group])
    with contextlib.suppress(Busy), contextlib.ExitStack() as stack:
        for one in four.trials:
            stack.enter_context(four.files.trial(one.id).own())
        elsewhere()
        start, now = time.monotonic(), [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: start + now[0])
        assert here.next() is None
        now[0] = ALIVE * LEASE + 0.01
        assert here.next() == group
        monkeypatch.undo()


def test_where_all_is_taken_a_driver_looks_now_and_then(
    four: Plan, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look is some requests, where a server keeps the folder."""
    groups, looks = singles(four), list[str]()
    genuine = Waiting._taken

    def taken(self: Waiting, group: Group) -> bool:
        looks.append(group.id)
        return genuine(self, group)

    monkeypatch.setattr(Waiting, "_taken", taken)
    here, now = Waiting(four, groups[:1]), [time.monotonic()]
    here._lease = 60.0
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    with four.files.trial(groups[0].trials[0].id).own():
        elsewhere()
        for _ in range(300):  # a minute of a driver's rounds
            now[0] += runner.POLL
            assert here.next() is None or now[0] > 30
    assert len(looks) <= 60 / waiting.IDLE + 1
    here.again(groups[:1])  # a worker of its own was lost
    assert here.next() == groups[0]


@pytest.mark.slow
def test_what_a_dead_driver_had_is_taken_after_a_while(
    four: Plan, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.Leased, "_live", lambda self, lease: None)
    first, *_ = singles(four)
    here, start = Waiting(four, [first]), time.monotonic()
    with contextlib.suppress(Busy), four.files.trial(first.trials[0].id).own():
        elsewhere()
        assert here.next() is None
        assert soon(here.next) == first
        assert ALIVE * LEASE <= time.monotonic() - start < 10


def test_a_worker_of_its_own_that_was_lost_is_not_waited_for(
    four: Plan, elsewhere: Elsewhere
) -> None:
    first, *rest = groups = singles(four)
    here = Waiting(four, groups)
    assert here.next() == first
    with four.files.trial(first.trials[0].id).own():
        elsewhere()
        here.again([first])
        assert here.next() == first
        here.later(first)
        assert [here.next() for _ in groups] == [*rest, None]


def law_what_others_have_ended_is_told_once(made: Plan, elsewhere: Elsewhere) -> None:
    first, second, third, _ = groups = singles(made)
    ends(made, second, "failed")
    second.trials[0].state = "failed"  # before this driver began, which runs it again
    here = Waiting(made, groups)
    here._due = 0.0
    with made.files.trial(first.trials[0].id).own():
        ends(made, first)
        elsewhere()
        assert list(here.ended()) == []  # its worker is not done with the folder yet
    ends(made, third, "failed")
    assert soon(lambda: list(here.ended())) == [(first, ["finished"]), (third, ["failed"])]
    made.files.trial(second.trials[0].id).put_json("result.json", {"status": "failed"})
    assert soon(lambda: list(here.ended())) == [(second, ["failed"])]
    assert here


@pytest.mark.slow
def test_what_others_have_ended_is_told_once(four: Plan, elsewhere: Elsewhere) -> None:
    law_what_others_have_ended_is_told_once(four, elsewhere)


def test_old_failures_that_count_as_new_are_caught(
    four: Plan, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status(self: Waiting, id_: str) -> str:
        return str(self._files.trial(id_).result().get("status", ""))

    monkeypatch.setattr(Waiting, "_status", status)
    with pytest.raises(AssertionError):
        law_what_others_have_ended_is_told_once(four, elsewhere)


def test_without_leases_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(ONE_TRIAL, tmp_path, seeds=2)
    groups = singles(made)
    here = Waiting(made, groups)
    ends(made, groups[0])
    monkeypatch.setattr(StudyFolder, "trial", None)
    assert list(here.ended()) == []
    assert [here.next(), here.next(), here.next()] == [*groups, None]


# --- the worker and the loop --------------------------------------------------------------------


def test_a_trial_that_has_ended_is_not_trained_again(four: Plan) -> None:
    first, second, *_ = four.trials
    folders = [four.files.trial(one.id) for one in (first, second)]
    for folder, status in zip(folders, ("finished", "diverged"), strict=True):
        folder.put_json("result.json", {"status": status})
    assert worker.run(first.config, folders[0].path) == "finished"
    configs, paths = [first.config, second.config], [one.path for one in folders]
    group = four.files.group("abc").path
    assert worker.run_together(configs, paths, group) == ["finished", "diverged"]
    assert not any(one.has("rows.jsonl") for one in folders)


@pytest.mark.slow
def test_a_group_that_another_driver_took_whole_since_is_split_here_nonetheless(
    four: Plan, elsewhere: Elsewhere
) -> None:
    """There was too little memory for it here; its checkpoint is left to that one."""
    whole = Group([*four.trials])
    engine = engines.ExecutionPlan("batched", 1, 1, [whole])
    executor: Any = Late(four)
    parts = executor, runner.Progress(), runner.Outcome()
    loop = Dispatch(four, default_registry(), engine, *parts, leads=False)
    folder = four.files.group(whole.id)
    folder.put_checkpoint({}, {"step": 1})
    assert loop.waiting.next() == whole
    with folder.own():
        elsewhere()
        loop._settle(too_large(), whole, lambda trial, status: None)
    assert [len(group.trials) for group in engine.groups] == [2, 2]
    assert folder.has("checkpoint")


def too_large() -> Future[list[str]]:
    future: Future[list[str]] = Future()
    future.set_exception(torch.OutOfMemoryError("too large"))
    return future


class Seen:
    """An executor that notes how many trials it was given at a time, and ends none."""

    slots = 9

    def __init__(self) -> None:
        self.submitted = list[int]()

    def submit(self, job: Any) -> Future[Any]:
        self.submitted.append(len(job.trial_dirs))
        return Future()


def law_a_split_is_every_drivers(made: Plan, elsewhere: Elsewhere) -> None:
    """What one driver has too little memory for is trained as its halves by all."""
    whole, executor = Group([*made.trials]), Seen()
    engines_of = [engines.ExecutionPlan("batched", 1, 1, [whole]) for _ in range(2)]
    engines_of[0].write(made.folder)
    parts: Any = executor, runner.Progress(), runner.Outcome()
    leads, helps = (
        Dispatch(made, default_registry(), engine, *parts, leads=leads)
        for engine, leads in zip(engines_of, (True, False), strict=True)
    )
    assert helps.waiting.next() == whole
    helps._settle(too_large(), whole, lambda trial, status: None)
    half = helps.waiting.next()
    assert half is not None
    with made.files.trial(half.trials[-1].id).own():  # its worker is at work on the last one
        elsewhere()
        assert list(leads.waiting.ended()) == []
        leads.fill(9)
    assert executor.submitted == [2]
    stored = made.files.json("plan.json")["groups"]
    assert [len(ids) for ids in stored] == [2, 2]
    engines_of[1].groups = [whole]  # the plan of a driver that was killed before it noted it
    engines_of[1].write(made.folder)
    begun = engines.shared(made, 1).groups
    assert [(len(one.trials), one.half) for one in begun] == [(2, True), (2, True)]
    made.files.tidy({one.id for one in begun})
    assert made.files.group(whole.id).split


def test_a_split_is_every_drivers(four: Plan, elsewhere: Elsewhere) -> None:
    law_a_split_is_every_drivers(four, elsewhere)


def test_a_driver_that_trains_the_whole_again_is_caught(
    four: Plan, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Waiting, "split", lambda self, group: False)
    with pytest.raises(AssertionError):
        law_a_split_is_every_drivers(four, elsewhere)


class Late:
    """An executor whose workers find the first trial taken by another driver, which ends it."""

    slots = 1

    def __init__(self, made: Plan) -> None:
        self.made, self.submitted = made, list[str]()

    def submit(self, job: Any) -> Future[Any]:
        future: Future[Any] = Future()
        (name,) = (path.name for path in job.trial_dirs)
        self.submitted.append(name)
        self.made.files.trial(name).put_json("result.json", {"status": "finished"})
        if len(self.submitted) == 1:
            future.set_exception(Busy("another process is at work on it"))
        else:
            future.set_result(["finished"])
        return future

    def advance(self) -> None: ...

    def stop(self) -> None: ...

    def close(self, kill: bool = False) -> None: ...


def execute(made: Plan, tracker: Any = None) -> tuple[runner.Outcome, list[str]]:
    engine = engines.ExecutionPlan("sequential", 1, 1, singles(made))
    late = Late(made)
    tell = Telling(tracker)
    parts = late, tell, runner.Progress()
    outcome = runner.execute(made, default_registry(), engine, *parts)
    tell.finish()
    return outcome, late.submitted


@pytest.mark.slow
def test_a_trial_that_another_driver_took_first_counts_as_it_ended_there(four: Plan) -> None:
    told: list[tuple[str, str]] = []

    class Tracker:
        def update(self, trial: Any) -> None: ...

        def end(self, trial: Any, status: str) -> None:
            told.append((trial.id, status))

        def tables(self) -> None: ...

    outcome, submitted = execute(four, Tracker())
    ids = [one.id for one in four.trials]
    assert submitted == ids
    assert outcome.statuses == dict.fromkeys(ids, "finished")
    assert sorted(told) == sorted((id_, "finished") for id_ in ids)


def test_with_file_locks_a_trial_of_another_process_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(Busy):
        execute(planned(ONE_TRIAL, tmp_path, seeds=2))


def test_every_driver_hears_an_order_and_none_hears_an_old_one(four: Plan) -> None:
    orders.stop(four.files)
    leads, helps = Orders(four), Orders(four, leads=False)
    with leads.heeded(), helps.heeded():
        for one in (leads, helps):
            one.read()
        assert (leads.stopped, helps.stopped) == (False, False)
        orders.stop(four.files)
        for one in (leads, helps):
            one.read()
        assert (leads.stopped, helps.stopped) == (True, True)


# --- who helps ----------------------------------------------------------------------------------


@pytest.fixture
def led(four: Plan, elsewhere: Elsewhere) -> Iterator[Callable[[], None]]:
    """Another driver leads the study and trains nothing, until it is told to end."""
    registry, ended = default_registry(), threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(four.files.own())
        runner.describe(four, registry)
        engine = engines.choose(four, registry, "sequential", 1)
        engine.write(four.folder)
        stack.enter_context(Orders(four).heeded())
        genuine = dict(leases.Leased.held)
        elsewhere()

        def end() -> None:
            if not ended.is_set():
                ended.set()
                genuine_held, leases.Leased.held = leases.Leased.held, genuine
                stack.close()
                leases.Leased.held = genuine_held

        yield end
        end()


def share(made: Plan) -> session.Ending:
    choose = partial(engines.choose, made, default_registry(), "sequential", 0)
    progress = runner.Progress()
    parts = choose, 0, lambda chosen: contextlib.nullcontext(progress)
    return sharing.run(made, default_registry(), *parts, lambda folder: folder / "report.html")


@pytest.mark.slow
def test_a_second_driver_trains_what_the_first_does_not(
    four: Plan, led: Callable[[], None], tmp_path: Path, trials_only: None
) -> None:
    made = planned(ONE_TRIAL, tmp_path, seeds=4)

    def end_at_last() -> None:
        soon(lambda: all(made.files.state(one.id) == "finished" for one in made.trials))
        led()

    thread = threading.Thread(target=end_at_last)
    thread.start()
    ending = share(made)
    thread.join()
    assert ending.exit_code == 0
    assert set(ending.outcome.statuses.values()) == {"finished"}
    assert made.files.has("tweedie.json")  # what the first has left undone
    assert ending.outcome.seconds > 0


@pytest.fixture
def one_alone(four: Plan) -> str:
    """The trial that the driver which leads runs alone."""
    first = four.trials[0].id
    four.chosen = frozenset([first])
    return first


@pytest.mark.slow
def test_what_the_first_driver_was_not_asked_for_is_trained_once_it_has_ended(
    four: Plan, one_alone: str, led: Callable[[], None], tmp_path: Path, trials_only: None
) -> None:
    made = planned(ONE_TRIAL, tmp_path, seeds=4)

    def end_at_last() -> None:
        soon(lambda: made.files.state(one_alone) == "finished")
        led()

    thread = threading.Thread(target=end_at_last)
    thread.start()
    ending = share(made)
    thread.join()
    assert [made.files.state(one.id) for one in made.trials] == ["finished"] * 4
    assert ending.outcome.statuses == {one.id: "finished" for one in made.trials}


@pytest.fixture
def one_failed(four: Plan) -> str:
    """A trial that had failed before the drivers began."""
    first = four.trials[0]
    four.files.trial(first.id).fail("raised", "raised")
    first.state = "failed"
    return first.id


@pytest.mark.slow
@pytest.mark.parametrize(("again", "exit_code"), [("failed", 1), ("finished", 0)])
def test_what_had_failed_counts_as_it_ended_with_the_driver_that_led(
    four: Plan,
    one_failed: str,
    led: Callable[[], None],
    tmp_path: Path,
    trials_only: None,
    again: str,
    exit_code: int,
) -> None:
    """That one runs it again, and who helps does not."""
    made = planned(ONE_TRIAL, tmp_path, seeds=4)

    def end_at_last() -> None:
        soon(lambda: all(made.files.state(one.id) == "finished" for one in made.trials[1:]))
        made.files.trial(one_failed).put_json("result.json", {"status": again, "metrics": {}})
        led()

    thread = threading.Thread(target=end_at_last)
    thread.start()
    ending = share(made)
    thread.join()
    assert ending.outcome.statuses[one_failed] == again
    assert made.trials[0].state == again
    assert ending.exit_code == exit_code


@pytest.mark.slow
def test_a_driver_that_waits_for_the_first_one_hears_that_the_study_is_to_stop(
    four: Plan,
    one_failed: str,
    led: Callable[[], None],
    tmp_path: Path,
    trials_only: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trial that the first one has stopped at a checkpoint is not taken up."""
    made, waits = planned(ONE_TRIAL, tmp_path, seeds=4), threading.Event()
    genuine = Orders.heeded

    @contextlib.contextmanager
    def heeded(self: Orders, *through: Any) -> Iterator[None]:
        with genuine(self, *through):
            if all(made.files.state(one.id) == "finished" for one in made.trials[1:]):
                waits.set()
            yield

    monkeypatch.setattr(Orders, "heeded", heeded)

    def stop_at_last() -> None:
        waits.wait(20)
        made.files.trial(one_failed).forget()
        orders.stop(made.files)
        led()

    thread = threading.Thread(target=stop_at_last)
    thread.start()
    ending = share(made)
    thread.join()
    assert ending.exit_code == 130
    assert made.files.state(one_failed) == "new"
    assert ending.report is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["training.steps=60"], r"training\.steps: \d+ -> 60"),
        (["report.level=0.9"], r"report\.level: 0\.95 -> 0\.9"),
        (["seeds=5"], "that one has no trial .* seed 4"),
        (["seeds=3"], "that one has 4 trials, and this one 3 of them"),
    ],
)
def test_a_driver_with_another_study_is_refused(
    led: Callable[[], None], tmp_path: Path, sets: list[str], said: str
) -> None:
    seeds = None if sets[0].startswith("seeds") else 4
    made = planned(ONE_TRIAL, tmp_path, *sets, seeds=seeds)
    with pytest.raises(InputError, match=rf"out is run by .*, process {os.getpid()}.*: {said}"):
        share(made)
    assert not any(made.files.trial(one.id).has("result.json") for one in made.trials)


@pytest.mark.slow
def test_a_driver_with_other_packages_is_refused(
    led: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(ONE_TRIAL, tmp_path, seeds=4)
    genuine = sharing.environment.versions
    monkeypatch.setattr(sharing.environment, "versions", lambda: {**genuine(), "torch": "9.9"})
    with pytest.raises(InputError, match=r"torch is .* in the driver and 9\.9 here"):
        share(made)


def test_the_records_of_another_version_are_no_obstacle(four: Plan) -> None:
    record = {"versions": {"testbed": "9.9"}, "trials": [{"id": "abc", "labels": [{"case": ""}]}]}
    four.files.trial("abc").put_json("trial.json", {"config": {"unknown": 1}})
    found = [*sharing._differences(four, record)]
    assert any(line.startswith("testbed is 9.9 in the driver and ") for line in found)
    assert any(line.startswith("that one has no trial ") for line in found)


@pytest.mark.slow
def test_a_driver_of_the_same_name_is_told_by_its_lease(
    four: Plan, led: Callable[[], None], tmp_path: Path
) -> None:
    """Containers have hosts and processes of one name: this is what an earlier one has written."""
    made = planned(ONE_TRIAL, tmp_path, seeds=4)
    through = sharing.Outage(made, print, runner.Outcome()).through
    assert sharing._described(made, through)
    own = orders.FILE
    store: Any = made.files.store
    at = store._disk(store._fence())
    at.put(own, at.get(own).replace(made.files.claim().id.encode(), b"0" * 32))

    def end_at_last() -> None:
        time.sleep(LEASE)
        led()

    thread = threading.Thread(target=end_at_last)
    thread.start()
    assert not sharing._described(made, through)
    thread.join()


@pytest.mark.slow
def test_one_trial_alone_is_not_shared(led: Callable[[], None], tmp_path: Path) -> None:
    made = planned(ONE_TRIAL, tmp_path, seeds=4)
    made.chosen = frozenset([made.trials[0].id])
    with pytest.raises(session.Led, match="is being worked on by another process"):
        share(made)


def test_the_report_is_written_by_the_process_that_owns_the_folder(
    four: Plan,
) -> None:
    """It notes there that the results were looked at, which no worker may."""

    def write(folder: Path) -> Path:
        assert StudyFolder.at(folder).store.root in leases.Leased.held  # type: ignore[attr-defined]
        return folder

    class Worker:
        def submit(self, job: Any) -> Future[Any]:
            future: Future[Any] = Future()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(leases.Leased, "held", {})
                future.set_result(job.run(lambda: False))
            return future

    worker_: Any = Worker()
    with four.files.own():
        assert session._report(four, worker_, runner.Outcome(seconds=1.0), write) == four.folder


# --- two processes ------------------------------------------------------------------------------

PACED = """
import time
from pathlib import Path
import testbed

CALLS, SLOW = (Path(__file__).with_name(name) for name in ("calls", "slow"))

def paced(prediction, target):
    if SLOW.exists():
        time.sleep(0.02)
    with CALLS.open("ab") as file:
        file.write(b".")
    return (prediction - target) ** 2

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("paced", paced, elicits_mean=True)
"""
WORDS = ("study", "one.toml", "-p", "paced.py", "--engine", "sequential", "--jobs", "0")
TRIALS = 3


@contextlib.contextmanager
def driver(root: Path, out: str, name: str, **more: str) -> Iterator[Command]:
    process = start(root, name, *WORDS, "--out", out, "--lease", 1.5, **more)
    yield process
    process.kill()
    process.communicate()


def put_paced(root: Path) -> None:
    """Writes the study that two drivers share."""
    put(root, "paced.py", PACED)
    text = ONE.replace("seeds = 1", f'seeds = {TRIALS}\nloss = "paced"')
    put(root, "one.toml", text.replace("steps = 200", "steps = 100"))


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory, trials_only: None) -> Path:
    """The folder in which one driver ran the whole study, undisturbed."""

    def make(root: Path) -> Path:
        put_paced(root)
        done = run_here(root, *WORDS, "--no-mlflow", "--out", "alone")
        assert done.code == 0, done.err
        return root

    return once(tmp_path_factory, "driven_alone", Path, make)


def pid(owner: str) -> int:
    return int(re.search(r"process (\d+)", owner)[1])  # type: ignore[index]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "victim"), [("disk", "leads"), ("disk", "helps"), ("object store", "leads")]
)
def test_two_drivers_share_a_study_and_one_is_killed(
    tmp_path: Path,
    new_store: Callable[[Path], str],
    alone: Path,
    victim: str,
    place: str,
    request: pytest.FixtureRequest,
) -> None:
    out, more = str(tmp_path / "out"), dict[str, str]()
    if place == "object store":
        request.getfixturevalue("proxy")
        out = f"s3://bucket/{tmp_path.name}/out"
        more = {name: word for name, word in os.environ.items() if name.startswith("AWS_")}
    put_paced(tmp_path)
    put(tmp_path, "slow", "")
    address, calls = new_store(tmp_path), tmp_path / "calls"
    undisturbed = StudyFolder.at(alone / "alone")
    every = (alone / "calls").stat().st_size
    more["MLFLOW_TRACKING_URI"] = address
    caches = [{**more, "XDG_CACHE_HOME": str(tmp_path / name)} for name in ("first", "second")]
    first, second = (partial(driver, tmp_path, out, f"driver{i}", **caches[i]) for i in range(2))
    with first() as one, second() as other:

        def both() -> set[int]:
            found = [trial.claim() for trial in StudyFolder.at(storage.local(out)).trials()]
            owners = {pid(claim.owner) for claim in found if claim and claim.owner != "unknown"}
            return owners if len(owners) == 2 else set()

        end, owners = time.monotonic() + 90, set[int]()
        while not owners and time.monotonic() < end:
            time.sleep(0.1)
            owners = both()
        assert owners == {one.pid, other.pid}
        study = StudyFolder.at(storage.local(out))
        claim = study.claim()
        assert claim is not None
        leads = pid(claim.owner)
        killed, left = (one, other) if (one.pid == leads) == (victim == "leads") else (other, one)
        killed.kill()
        (tmp_path / "slow").unlink()
        said, err = left.communicate(timeout=120)
        assert left.returncode == 0, said + err
    assert every <= calls.stat().st_size <= every * (1 + 1 / TRIALS)
    for trial in undisturbed.trials():
        shared = study.trial(trial.name)
        for name in ("weights.safetensors", "levels.csv", "samples.safetensors"):
            assert shared.store.get(name) == trial.store.get(name), name
        assert curve(shared.path) == curve(trial.path)
    runs = stored(address, "one")
    assert {run.status for run in runs} == {"FINISHED"}
    assert len(of_kind(runs, "study")) == 1
    ids = [run.tags["testbed.trial"] for run in of_kind(runs, "trial")]
    assert sorted(ids) == sorted(trial.name for trial in undisturbed.trials())
