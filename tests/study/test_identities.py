"""The identities of a study: on idle slots, in the plan's order, kept until something changes."""

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from helpers.studies import SMALL, planned

from testbed import audit
from testbed.audit import LawCheck
from testbed.errors import ComponentError
from testbed.registry import Registry, default_registry
from testbed.study import identities, runner
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.executors import base, local
from testbed.study.identities import Identities
from testbed.study.plan import Plan
from testbed.study.telling import Telling
from testbed.trial.build import component, dataset

NAMES = ("first", "second", "third")


class Stub(NamedTuple):
    """A subject with one row; `calls` is told of each run."""

    name: str
    calls: list[str]
    ratio: float = 0.5
    problem: Exception | None = None

    def run(self, stop: Callable[[], bool]) -> list[LawCheck]:
        self.calls.append(self.name)
        if self.problem is not None:
            raise self.problem
        return [LawCheck("a law", self.name, math.nan, "float64", 1 / 3, 1.0, self.ratio)]


class Slots:
    """Futures that a test finishes, in the order it wants."""

    slots = 2

    def __init__(self) -> None:
        self.given: list[tuple[Stub, Future[Any]]] = []

    def submit(self, job: Any) -> Future[Any]:
        self.given.append((job, Future()))
        return self.given[-1][1]

    def finish(self, name: str, problem: Exception | None = None) -> None:
        (job, future) = next(one for one in self.given if one[0].name == name)
        self.given.remove((job, future))
        if problem is None:
            future.set_result(job.run(lambda: False))
        else:
            future.set_exception(problem)


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def made(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Identities]:
    """The identities of three stubs, in one folder."""
    plan = planned(SMALL, tmp_path)

    def make(**changed: Stub) -> Identities:
        stubs = {name: changed.get(name, Stub(name, calls)) for name in NAMES}
        monkeypatch.setattr(identities, "subjects", lambda plan, registry: stubs)
        return Identities(plan, default_registry())

    return make


def finish(found: Identities) -> list[str]:
    """Checks what is left in this process; the subjects of the rows."""
    while found.pending:
        found.advance(local.InProcessExecutor(), 1)
    return [row.subject for row in found.rows()]


def test_the_rows_have_the_plans_order_whatever_ends_first(
    made: Callable[..., Identities],
) -> None:
    found, slots = made(), Slots()
    found.advance(cast(base.Executor, slots), 2)
    assert [job.name for job, _ in slots.given] == ["first", "second"]
    found.advance(cast(base.Executor, slots), 2)
    assert len(found.running) == 2
    slots.finish("second")
    found.advance(cast(base.Executor, slots), 2)
    assert [job.name for job, _ in slots.given] == ["first", "third"]
    for name in ("third", "first"):
        slots.finish(name)
    found.advance(cast(base.Executor, slots), 2)
    assert not found.pending
    assert [row.subject for row in found.rows()] == [*NAMES]


def test_no_slot_is_taken_from_a_training(made: Callable[..., Identities]) -> None:
    found, slots = made(), Slots()
    found.advance(cast(base.Executor, slots), 0)
    assert not slots.given
    assert found.pending
    found.advance(cast(base.Executor, slots), 1)
    assert [job.name for job, _ in slots.given] == ["first"]


def test_what_is_done_is_taken_where_no_slot_is_free(made: Callable[..., Identities]) -> None:
    found, slots = made(), Slots()
    found.advance(cast(base.Executor, slots), 1)
    slots.finish("first")
    found.advance(cast(base.Executor, slots), 0)
    assert not found.running
    assert not slots.given


class Late:
    """Jobs that end a moment after they were given; no more at a time than there are slots."""

    def __init__(self, slots: int, deaths: int) -> None:
        self.slots, self.deaths = slots, deaths
        self.open: list[Future[Any]] = []
        self.order: list[str] = []

    def submit(self, job: Any) -> Future[Any]:
        self.open = [one for one in self.open if not one.done()]
        assert len(self.open) < self.slots
        future: Future[Any] = Future()
        self.open.append(future)
        self.order.append(job.name if isinstance(job, Stub) else "trial")

        def end() -> None:
            if isinstance(job, Stub):
                future.set_result(job.run(lambda: False))
            elif self.deaths:
                self.deaths -= 1
                future.set_exception(BrokenProcessPool())
            else:
                future.set_result(["finished"])

        threading.Timer(0.03 if isinstance(job, Stub) else 0.05, end).start()
        return future

    def advance(self) -> None: ...

    def stop(self) -> None: ...

    def close(self, kill: bool = False) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("deaths", [0, 2])
def test_trials_come_first_and_never_meet_a_slot_that_is_taken(
    made: Callable[..., Identities], tmp_path: Path, slots: int, deaths: int
) -> None:
    """Also one that is begun again, because its worker died, when identities are on their way."""
    plan, late = planned(SMALL, tmp_path), Late(slots, deaths)
    engine = ExecutionPlan("sequential", slots, 1, [Group(plan.trials)])
    words = default_registry(), engine, late, Telling(None), runner.Progress(), [made()]
    outcome = runner.execute(plan, *words)
    assert list(outcome.statuses.values()) == ["finished"]
    assert sorted(late.order) == sorted(["trial"] * (1 + deaths) + [*NAMES])
    assert late.order[0] == "trial"
    if slots == 1:
        assert late.order == ["trial"] * (1 + deaths) + [*NAMES]
    assert not words[-1][0].pending
    assert outcome.seconds > 0


@pytest.mark.slow
def test_a_study_that_trains_nothing_takes_no_time(
    made: Callable[..., Identities], tmp_path: Path
) -> None:
    plan = planned(SMALL, tmp_path)
    for trial in plan.trials:
        trial.state = "finished"
    words = Late(1, 0), Telling(None), runner.Progress(), [made()]
    engine = ExecutionPlan("sequential", 1, 1)
    assert runner.execute(plan, default_registry(), engine, *words).seconds == 0.0


def test_what_holds_is_kept_to_the_last_digit_and_not_checked_again(
    made: Callable[..., Identities], calls: list[str]
) -> None:
    first = made()
    assert finish(first) == [*NAMES]
    assert calls == [*NAMES]
    again = made()
    assert not again.pending
    assert repr(again.rows()) == repr(first.rows())
    assert calls == [*NAMES]


@pytest.mark.parametrize("ratio", [2.0, math.inf, math.nan])
def test_a_law_that_failed_is_checked_again(
    made: Callable[..., Identities], calls: list[str], ratio: float
) -> None:
    for _ in range(2):
        calls.clear()
        found = made(second=Stub("second", calls, ratio))
        assert finish(found) == [*NAMES]
        assert [row.passed for row in found.rows()] == [True, False, True]
        assert "second" in calls
    assert calls == ["second"]


def test_what_is_no_longer_asked_for_is_dropped(
    made: Callable[..., Identities], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finish(made())
    stub = {"another": Stub("another", [])}
    monkeypatch.setattr(identities, "subjects", lambda plan, registry: stub)
    plan = planned(SMALL, tmp_path)
    finish(Identities(plan, default_registry()))
    assert list(plan.files.checked(identities.FILE)) == ["another"]


@pytest.mark.parametrize("harm", ["damaged", "altered"])
def test_a_file_that_is_not_as_it_was_written_is_not_believed(
    made: Callable[..., Identities], calls: list[str], tmp_path: Path, harm: str
) -> None:
    finish(made())
    (file,) = tmp_path.rglob(identities.FILE)
    text = file.read_text()
    file.write_text(text[:-9] if harm == "damaged" else text.replace("0.5", "0.25"))
    calls.clear()
    assert finish(made()) == [*NAMES]
    assert calls == [*NAMES]


@pytest.mark.parametrize("deaths", [1, 2, 3])
def test_a_worker_that_is_killed_is_worth_two_more_tries(
    made: Callable[..., Identities], deaths: int
) -> None:
    found, slots = made(), Slots()
    for _ in range(deaths):
        found.advance(cast(base.Executor, slots), 1)
        slots.finish("first", BrokenProcessPool())
    found.advance(cast(base.Executor, slots), 1)
    while slots.given:
        slots.finish(slots.given[0][0].name)
        found.advance(cast(base.Executor, slots), 1)
    assert not found.pending
    if deaths < 3:
        assert [row.subject for row in found.rows()] == [*NAMES]
    else:
        with pytest.raises(BrokenProcessPool):
            found.rows()


def test_what_a_component_raises_is_told_at_the_end(
    made: Callable[..., Identities], calls: list[str]
) -> None:
    found = made(first=Stub("first", calls, problem=ComponentError("raised on purpose")))
    with pytest.raises(ComponentError, match="raised on purpose"):
        finish(found)
    assert calls == [*NAMES]


# --- what they depend on --------------------------------------------------------------------------

TWO = SMALL.replace('["v"]', '["v", "eps"]')


def digests(folder: Path, *sets: str, text: str = TWO, seeds: int = 1) -> list[str]:
    registry = Registry()
    plan: Plan = planned(text, folder, *sets, registry=registry, seeds=seeds)
    return list(identities.subjects(plan, registry))


@pytest.mark.slow
def test_each_parameterization_of_a_case_is_checked_once(tmp_path: Path) -> None:
    assert len(digests(tmp_path)) == 2
    assert digests(tmp_path, seeds=3) == digests(tmp_path)
    arms = '[arms]\npublished = {}\nequal = { weighting = "edm" }\n'
    assert digests(tmp_path, text=TWO + arms) == digests(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    [
        "base.dataset.dim=3",
        "base.sigma_data={assumed = 0.3}",
        'base.output="x0"',
        'base.evaluation.sampler="euler"',
    ],
)
def test_another_subject_is_checked(tmp_path: Path, word: str) -> None:
    assert not {*digests(tmp_path, word)} & {*digests(tmp_path)}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["sources", "torch"])
def test_other_sources_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    before = digests(tmp_path)
    if part == "torch":
        monkeypatch.setattr(identities.torch, "__version__", "another")
    else:
        monkeypatch.setattr(identities.sources, "digest", lambda modules: "another")
    assert not {*digests(tmp_path)} & {*before}


@pytest.mark.slow
def test_a_plugin_that_changed_is_checked(tmp_path: Path) -> None:
    text = SMALL.replace('["v"]', '["mine"]').replace("dim = 2 }", 'dim = 2 }\nloss = "l2"')
    text = text.replace("[grid]", 'weighting = "edm"\ndensity = "lognormal"\n[grid]')
    plugin = tmp_path / "mine.py"
    lines = (
        "import testbed",
        "def scaling(sigma):",
        "    one = 1 + 0 * sigma",
        "    return testbed.Coefficients(skip=one, out=-sigma, in_=one, noise=sigma)",
        "@testbed.hookimpl",
        "def testbed_parameterizations():",
        '    yield testbed.Parameterization("mine", scaling)',
    )
    found = []
    for more in ("", "# another version\n"):
        plugin.write_text("\n".join(lines) + "\n" + more)
        registry = Registry([str(plugin)])
        plan = planned(text, tmp_path, registry=registry)
        found.append(list(identities.subjects(plan, registry)))
    assert found[0] != found[1]


# --- their numbers --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_finds_the_rows_of_this_process(tmp_path: Path) -> None:
    registry = Registry()
    plan = planned(SMALL, tmp_path, registry=registry)
    config = plan.trials[0].config
    p = component(registry, "parameterization", config.parameterization)
    sd, sampler = config.sigma_data, component(registry, "sampler", config.evaluation.sampler)
    here = audit.check_parameterization(p, sd) + audit.check_sampler(p, sd, [sampler])
    here += audit.check_parameterization(p, sd, dataset(registry, config.dataset).oracle)
    workers = local.ProcessExecutor(1, threads=2)
    found = Identities(plan, registry)
    try:
        while found.pending:
            found.advance(workers, 1)
    finally:
        workers.close()
    assert bits(found.rows()) == bits(here)
    assert bits(Identities(plan, registry).rows()) == bits(here)


def bits(rows: list[LawCheck]) -> list[str]:
    """Rows to the last digit, whether a number is Python's or numpy's."""
    return [json.dumps(asdict(row)) for row in rows]
