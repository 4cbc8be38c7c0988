"""Trials that train as one in a study: who with whom, what is kept, and what a crash leaves."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers.command_line import Done, run_here, trials_only
from helpers.studies import TINY
from rich.console import Console

import testbed
from testbed.cli import render
from testbed.errors import InputError, UnknownName
from testbed.registry import default_registry
from testbed.study import engines, grouping, plan, runner, step_times, study_file
from testbed.study.plan import Plan
from testbed.training import step_program
from testbed.training.batch import Batch
from testbed.training.trainer import BLOCK, Loop
from testbed.trial import build, devices, evaluate, storage, worker
from testbed.trial.config import TrialConfig
from testbed.trial.folders import Folder, TrialFolder
from testbed.trial.study_folder import StudyFolder

REGISTRY = default_registry()
QUIET = ("--jobs", 0, "--no-mlflow")

RAISES = """
import testbed, torch
calls = 0

def scaling(sigma):
    global calls
    if sigma.numel() % 800 == 0:  # a block of training: 50 steps of 16
        calls += 1
        if calls > {calls}:
            raise ValueError("enough")
    one = torch.ones_like(sigma)
    return testbed.Coefficients(skip=one, out=-sigma, in_=one / (1 + sigma), noise=torch.log(sigma))

@testbed.hookimpl
def testbed_parameterizations():
    recipe = testbed.Recipe(density="lognormal", weighting="edm")
    yield testbed.Parameterization("raises", scaling, recipe=recipe, noise_kind="log_sigma")
"""


def made(folder: Path, *sets: str, grid: str = "", only: Sequence[str] = ()) -> Plan:
    """The tiny study with `sets`, or with another line in its grid."""
    (folder / "tiny.toml").write_text(TINY.replace("[grid]", f"[grid]\n{grid}"))
    study = study_file.read(folder / "tiny.toml", sets, only)
    return plan.make(study, REGISTRY, folder / "runs" / "tiny", "cpu")


def sizes(engine: engines.ExecutionPlan) -> list[int]:
    return [len(group.trials) for group in engine.groups]


def ids(engine: engines.ExecutionPlan) -> list[list[str]]:
    return [[one.id for one in group.trials] for group in engine.groups]


# --- who trains with whom -------------------------------------------------------------------------


@pytest.mark.slow
def test_trials_of_a_case_train_together_and_each_once(tmp_path: Path) -> None:
    tiny = made(tmp_path)
    found = engines.choose(tiny, REGISTRY, "batched", 1)
    assert sizes(found) == [6, 3]
    assert sorted(itertools.chain(*ids(found))) == sorted(one.id for one in tiny.trials)
    for group in found.groups:
        assert len({one.config.dataset.name for one in group.trials}) == 1
    assert found.groups[0].title == "6 trials as one · mixture"


@pytest.mark.slow
def test_every_worker_has_its_part(tmp_path: Path) -> None:
    assert sizes(engines.choose(made(tmp_path), REGISTRY, "batched", 2)) == [3, 3, 3]
    # Three trials of digits are one and two; one alone would be no batch.
    assert sizes(engines.choose(made(tmp_path), REGISTRY, "batched", 3)) == [3, 2, 2, 2]
    shared = engines.choose(made(tmp_path, "executor.drivers=3"), REGISTRY, "batched", 1)
    assert (sizes(shared), shared.slots) == ([3, 2, 2, 2], 1)


@pytest.mark.slow
def test_one_by_one_where_that_is_asked_for(tmp_path: Path) -> None:
    found = engines.choose(made(tmp_path), REGISTRY, "sequential", 2)
    assert (found.name, found.slots, sizes(found)) == ("sequential", 2, [1] * 9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "parts"),
    [
        ('"training.batch" = [8, 16]', [6, 6, 3, 3]),
        ('"network.width" = [8, 16]', [6, 6, 3, 3]),
        ('"training.precision" = ["float32", "bfloat16"]', [6, 6, 3, 3]),
        ('"training.learning_rate" = [1e-3, 1e-2]', [12, 6]),
        ('"training.ema" = [0.9, 0.99]', [12, 6]),
    ],
)
def test_what_differs_in_more_than_its_own_settings_trains_apart(
    tmp_path: Path, grid: str, parts: list[int]
) -> None:
    found = engines.choose(made(tmp_path, grid=grid), REGISTRY, "batched", 1)
    assert sizes(found) == parts


def test_what_depends_on_more_than_sigma_trains_alone(tmp_path: Path) -> None:
    """The arm `equal` has a weighting of its own, the other the learned one."""
    found = engines.choose(made(tmp_path, "base.weighting=edm2"), REGISTRY, "batched", 1)
    assert sizes(found) == [4, 2, *[1] * 6]


STEPS = '"evaluation.steps" = [3, 5]'


@pytest.mark.slow
def test_trials_that_differ_in_their_evaluation_only_are_one_training(tmp_path: Path) -> None:
    tiny = made(tmp_path, grid=STEPS)
    one_by_one = engines.choose(tiny, REGISTRY, "sequential")
    assert sizes(one_by_one) == [2] * 9
    for group in one_by_one.groups:
        assert len(group.trainings) == 1
        assert [one.config.evaluation.steps for one in group.trials] == [3, 5]
    batched = engines.choose(tiny, REGISTRY, "batched", 1)
    assert (sizes(batched), [len(g.trainings) for g in batched.groups]) == ([12, 6], [6, 3])
    assert "18 trials of 9 trainings" in render.engine_line(batched)
    split = engines.choose(tiny, REGISTRY, "batched", 2)
    assert (sizes(split), [len(g.trainings) for g in split.groups]) == ([6, 6, 6], [3, 3, 3])


def test_what_a_training_is_is_written_out_once_for_all_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan of a million trials would take minutes for it."""
    planned, genuine, texts = made(tmp_path), TrialConfig.training_text, list[int]()
    variants = {one.config.of_seed(0).identity for one in planned.trials}

    def text(config: TrialConfig) -> str:
        texts.append(config.seed)
        return cast(str, cast(Any, genuine).fget(config))

    monkeypatch.setattr(TrialConfig, "training_text", property(text))
    groups = grouping.of_trainings(planned.trials)
    assert [len(group) for group in groups] == [1] * len(planned.trials)
    assert len(texts) == len(variants) < len(planned.trials)


@pytest.mark.slow
def test_one_training_is_measured_each_way_and_has_the_bits_of_one_alone(
    tmp_path: Path, trials_only: None
) -> None:
    """Whatever the engine: the same curve and weights, and each way's own samples."""
    folders, alone = {}, tmp_path / "alone"
    for name in ("batched", "sequential"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.toml").write_text(TINY.replace("[grid]", f"[grid]\n{STEPS}"))
        words = (*QUIET, "--only", "v,mixture", "--seeds", 1, "--engine", name)
        done = run_here(tmp_path / name, "study", "tiny.toml", *words)
        assert done.code == 0, done.out + done.err
        folders[name] = tmp_path / name / "runs" / "tiny"
    of: dict[str, list[Path]] = {}
    for one in StudyFolder.at(folders["sequential"]).descriptions():
        at = folders["sequential"] / "trials" / one["id"]
        config = TrialConfig.model_validate(one["config"])
        of.setdefault(config.training_text, []).append(at)
        worker.run(config, alone / one["id"])
        for name in ("weights.safetensors", "samples.safetensors", "levels.csv"):
            assert (at / name).read_bytes() == (alone / one["id"] / name).read_bytes(), name
    assert [len(same) for same in of.values()] == [2, 2]  # of either arm
    for first, second in of.values():
        assert weights(first) == weights(second)
        assert (first / "samples.safetensors").read_bytes() != (
            second / "samples.safetensors"
        ).read_bytes()
    # No two trainings are taken for one another.
    assert len({weights(first) for first, _ in of.values()}) == 2
    for same in of.values():
        mine, its = (weights(folders["batched"] / "trials" / at.name) for at in same)
        assert mine == its


@pytest.mark.slow
def test_trials_with_equal_settings_are_neighbours(tmp_path: Path) -> None:
    tiny = made(tmp_path, grid='"training.learning_rate" = [1e-3, 1e-2]')
    for group in engines.choose(tiny, REGISTRY, "batched", 1).groups:
        rates = [one.config.training.learning_rate for one in group.trials]
        assert rates == sorted(rates)


@pytest.mark.slow
def test_auto_measures_and_takes_the_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slow, name in (("Trainer", "batched"), ("Batch", "sequential")):
        monkeypatch.setattr(
            step_times, "_milliseconds", lambda loop, slow=slow: 1.0 + (type(loop).__name__ == slow)
        )
        found = engines.choose(made(tmp_path), REGISTRY, "auto", 1)
        assert found.name == name
        assert sorted(found.measured.values()) == [1.0, 2.0]
        assert found.seconds() == pytest.approx(9 * 100 * 1.0 / 1000)


def paced(
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[str, float],
    products: float = math.nan,
    cores: int = 2,
) -> None:
    """Every way takes these milliseconds, one by one as many on all threads as on one."""
    monkeypatch.setattr(devices, "cores", lambda: cores)
    every = rates | {f"sequential on {cores} threads": rates["sequential"]}
    times = {title: step_times.StepTime(ms, products) for title, ms in every.items()}
    monkeypatch.setattr(step_times, "measure", lambda way, *rest: times[way.title])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("together", "slots", "threads", "parts"),
    [(0.3, 8, 1, [3, 2, 2, 2]), (0.2, 1, 8, [6, 3])],
)
def test_one_process_with_all_threads_is_measured_against_one_for_each_group(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    together: float,
    slots: int,
    threads: int,
    parts: list[int],
) -> None:
    """Four groups occupy four of eight cores."""
    rates = {"sequential": 9.0, "batched": 1.0, "batched on 8 threads": together}
    paced(monkeypatch, rates, cores=8)
    found = engines.choose(made(tmp_path), REGISTRY)
    assert (found.slots, found.threads, sizes(found)) == (slots, threads, parts)
    # The largest of four groups has three trials; one process has all nine.
    assert found.seconds() == pytest.approx(100 * (3 * 1.0 if slots == 8 else 9 * together) / 1000)
    described(made(tmp_path))
    found.write(tmp_path / "runs" / "tiny")
    begun(made(tmp_path), ids(found))
    again = engines.choose(made(tmp_path), REGISTRY)
    assert (again.slots, again.threads, ids(again)) == (slots, threads, ids(found))


@pytest.mark.parametrize(("alone", "name"), [(1.9, "sequential"), (2.1, "batched")])
def test_a_batch_that_leaves_a_core_idle_must_be_faster_than_both_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: float, name: str
) -> None:
    """Three trials train as one on one core, or two at a time on both."""
    paced(monkeypatch, {"sequential": alone, "batched": 1.0, "batched on 2 threads": 9.0})
    three = made(tmp_path, only=["digits"])
    assert sizes(engines.choose(three, REGISTRY, "batched")) == [3]
    assert engines.choose(three, REGISTRY).name == name


@pytest.mark.parametrize(
    ("batched", "products", "name"),
    [(1.0, 0.0, "batched"), (1e4, 0.0, "compiled"), (1e4, 1e4, "batched")],
)
def test_auto_compiles_what_takes_long_enough_and_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batched: float, products: float, name: str
) -> None:
    """Nothing is compiled for the choice: what lies between the products takes half the time."""
    paced(monkeypatch, {"sequential": 2 * batched, "batched": batched}, products)
    monkeypatch.setattr(step_times, "compiles", lambda trial: True)
    found = engines.choose(made(tmp_path), REGISTRY)
    assert (found.name, sizes(found)) == (name, [3, 3, 3])
    assert ("compiled" in found.measured) == (batched > 1)
    if name == "compiled":
        assert found.measured["compiled"] == batched / 2
        # Two groups share a program: the worker that has one of them has the other program too.
        assert found.starts() == [12.0, 12.0, 0.5]
        steps = 100 * 3 * batched / 2 / 1000
        assert found.seconds() == pytest.approx(2 * steps + 12.0 + 0.5)
        said = render.engine_line(found)
        assert "that counts 24 s in which workers compile 2 different steps" in said, said


def test_auto_does_not_compile_for_less_than_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of 36 s is less than the 12.5 s of two starts, and a quarter of 96 s is more."""
    monkeypatch.setattr(step_times, "compiles", lambda trial: True)
    for b, name in ((60.0, "batched"), (160.0, "compiled")):
        paced(monkeypatch, {"sequential": 9 * b, "batched": b}, products=b / 2)
        assert engines.choose(made(tmp_path), REGISTRY).name == name


def test_without_a_compiler_auto_does_not_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paced(monkeypatch, {"sequential": 9e4, "batched": 1e4}, 0.0)
    monkeypatch.setenv("CXX", str(tmp_path / "no compiler"))
    found = engines.choose(made(tmp_path), REGISTRY)
    assert (found.name, "compiled" in found.measured) == ("batched", False)


def test_only_the_products_of_a_step_are_timed_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second: two products take one each, the sine and the sum none."""
    clock = itertools.count()
    monkeypatch.setattr(step_program.time, "thread_time", lambda: float(next(clock)))
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    module = step_program.traced(lambda a, b: torch.bmm(torch.bmm(a, b).sin(), b) + a, x, x)
    products = step_program.Products(module)
    assert torch.equal(products.run(x, x), module(x, x))
    assert products.seconds == 2.0


def test_groups_of_a_compiled_engine_have_whole_seeds_and_one_size(tmp_path: Path) -> None:
    """Of five seeds two workers have five groups of one seed, and not halves of 8 and 7 trials."""
    five = made(tmp_path, "cases.mixture.seeds=5")
    for name, sizes, programs in (("batched", [8, 7], 2), ("compiled", [3] * 5, 1)):
        every = grouping.of_plan(five.pending(), REGISTRY, five, name, 2)
        found = [one for one in every if one.trials[0].config.dataset.name == "mixture"]
        assert [len(one.trials) for one in found] == sizes
        assert len({grouping.program_of(one) for one in found}) == programs
        seeds = {len({trial.config.seed for trial in one.trials}) for one in found}
        assert (seeds == {1}) == (name == "compiled")


@pytest.mark.slow
def test_a_step_that_cannot_be_compiled_trains_by_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no compiler\nin sight")

    monkeypatch.setattr(torch._inductor, "standalone_compile", fail)
    monkeypatch.setattr(step_times, "_milliseconds", speed)
    found = engines.choose(made(tmp_path), REGISTRY, "batched", 1).groups[0]
    data = build.data_of(found.trials[0].config, REGISTRY)
    jobs = [build.training_job(one.config, REGISTRY, data) for one in found.trials]
    batches = [Batch(jobs, data, torch.device("cpu"), compiled) for compiled in (True, False)]
    for batch in batches:
        batch.traced_from = 0
    with pytest.warns(UserWarning, match=r"torch\.compile failed \(.*no compiler"):
        list(batches[0].windows())
    list(batches[1].windows())
    assert isinstance(batches[0].failure, RuntimeError)
    assert torch.equal(batches[0].ema, batches[1].ema)
    with pytest.raises(InputError, match=r"torch\.compile failed: no compiler$"):
        engines.choose(made(tmp_path), REGISTRY, "compiled", 1)


def speed(loop: Loop) -> float:
    """A batch faster than one by one, whatever this machine is at."""
    list(loop.windows())
    return 1.0 if isinstance(loop, Batch) else 2.0


@pytest.mark.parametrize(("alone", "parts"), [(1.0, [6, 1, 1, 1]), (3.0, [6, 3])])
def test_each_network_trains_as_one_only_where_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: float, parts: list[int]
) -> None:
    """Of two networks the one with fewer trials takes `alone` ms one by one, 2 ms in a batch."""

    def rate(
        way: step_times.EngineChoice, trials: list[plan.Trial], *rest: Any
    ) -> step_times.StepTime:
        few = alone if len(trials) < 6 else 3.0
        return step_times.StepTime(few if way.name == "sequential" else 2.0)

    monkeypatch.setattr(step_times, "measure", rate)
    found = engines.choose(made(tmp_path), REGISTRY, "auto", 1)
    assert (found.name, sizes(found)) == ("batched", parts)
    said = render.engine_line(found)
    assert ("up to 6 as one (one by one: mlp) on" in said) == (parts[-1] == 1), said


def test_a_network_that_torch_func_cannot_do_trains_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("vmap: it looks like you're calling .item() on a Tensor")

    monkeypatch.setattr(Batch, "_step", refuse)
    found = engines.choose(made(tmp_path), REGISTRY, "auto", 1)
    assert (found.name, sizes(found)) == ("sequential", [1] * 9)


@pytest.mark.slow
def test_an_unknown_engine_and_one_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'batched'"):
        engines.choose(made(tmp_path), REGISTRY, "batchd")
    lonely = made(tmp_path, "base.weighting=edm2", only=["published"])
    with pytest.raises(InputError, match="no two of the pending trials can be batched"):
        engines.choose(lonely, REGISTRY, "batched")
    done = run_here(tmp_path, "study", "tiny.toml", "--engine", "turbo")
    assert done.code == 2
    assert "Unknown engine 'turbo'" in done.err
    assert "Traceback" not in done.err


# --- plan.json ------------------------------------------------------------------------------------


def begun(tiny: Plan, groups: list[list[str]]) -> None:
    """As if these groups had written a checkpoint and been killed."""
    for members in groups:
        group = engines.Group([one for id_ in members for one in tiny.trials if one.id == id_])
        at = tiny.folder / "groups" / group.id
        at.mkdir(parents=True)
        (at / "checkpoint").write_bytes(b"")
        for id_ in members:
            Folder.at(tiny.folder / "trials" / id_).put_json("group.json", {"group": at.name})


def described(tiny: Plan) -> None:
    runner.describe(tiny, REGISTRY)


def interrupted(folder: Path, workers: int) -> engines.ExecutionPlan:
    """The groups of the study for so many workers, all of which were killed in training."""
    first = made(folder)
    described(first)
    chosen = engines.choose(first, REGISTRY, "batched", workers)
    chosen.write(first.folder)
    begun(first, ids(chosen))
    return chosen


@pytest.mark.slow
def test_a_resumed_study_takes_up_its_groups(tmp_path: Path) -> None:
    chosen = interrupted(tmp_path, 2)
    again = made(tmp_path)
    assert {one.state for one in again.trials} == {"interrupted"}
    found = engines.choose(again, REGISTRY)
    assert (found.name, found.slots, ids(found)) == ("batched", 2, ids(chosen))


@pytest.mark.slow
def test_more_workers_than_trials_are_kept_as_asked_for(tmp_path: Path) -> None:
    """Else the same command would not find its own plan again."""
    chosen = interrupted(tmp_path, 40)
    assert chosen.workers == len(chosen.groups) < 40
    assert ids(engines.choose(made(tmp_path), REGISTRY, "auto", 40)) == ids(chosen)


@pytest.mark.slow
def test_what_is_new_gets_groups_of_its_own(tmp_path: Path) -> None:
    chosen = interrupted(tmp_path, 1)
    found = engines.choose(made(tmp_path, "cases.mixture.seeds=4"), REGISTRY)
    assert ids(found)[:2] == ids(chosen)
    assert sizes(found) == [6, 3, 6]


@pytest.mark.slow
def test_a_group_that_has_lost_a_member_is_made_anew(tmp_path: Path) -> None:
    chosen = interrupted(tmp_path, 1)
    found = engines.choose(made(tmp_path, "cases.mixture.seeds=1"), REGISTRY)
    assert ids(found)[0] == ids(chosen)[1]
    assert sizes(found) == [3, 3]


@pytest.mark.slow
def test_other_trials_in_the_same_folder_are_measured_anew(tmp_path: Path) -> None:
    """What a step of the first network takes says nothing of that of another."""
    interrupted(tmp_path, 1)
    other = made(tmp_path, "base.network.width=8")
    assert {one.state for one in other.trials} == {"stale"}
    with pytest.MonkeyPatch.context() as patch:
        paced(patch, {"sequential": 1.0, "batched": 7.0, "batched on 2 threads": 9.0})
        assert engines.choose(other, REGISTRY).measured["batched"] == 7.0


@pytest.mark.slow
def test_another_engine_or_number_of_workers_begins_anew(tmp_path: Path) -> None:
    first = made(tmp_path)
    described(first)
    engines.choose(first, REGISTRY, "batched", 1).write(first.folder)
    assert sizes(engines.choose(first, REGISTRY, "sequential")) == [1] * 9
    assert sizes(engines.choose(first, REGISTRY, "batched", 2)) == [3, 3, 3]


# --- a batched study ------------------------------------------------------------------------------


def study(folder: Path, *words: object) -> Done:
    (folder / "tiny.toml").write_text(TINY)
    return run_here(folder, "study", "tiny.toml", *QUIET, *words)


def weights(at: Path) -> bytes:
    return (at / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained_together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, whose trials were trained as one for each case."""
    folder = tmp_path_factory.mktemp("batched")
    with trials_only():
        done = study(folder, "--engine", "batched")
    assert done.code == 0, done.out + done.err
    return folder / "runs" / "tiny"


@pytest.mark.slow
def test_a_batched_study_leaves_what_one_by_one_leaves(
    trained_together: Path, trained: Path
) -> None:
    assert not list((trained_together / "groups").iterdir())
    for one in StudyFolder.at(trained_together).descriptions():
        mine, its = (
            at / "trials" / one["id"] for at in (trained_together, trained / "runs" / "tiny")
        )
        assert {f.name for f in mine.iterdir()} == {f.name for f in its.iterdir()}
        result, other = (Folder.at(at).json("result.json") for at in (mine, its))
        assert result["trained_together"] == (6 if "mixture" in str(one["labels"]) else 3)
        assert result["steps"] == other["steps"] == 100
        for name, value in other["metrics"].items():
            # As the weights: one unit in the last place a step (tests/training/test_batch.py).
            assert result["metrics"][name] == pytest.approx(value, rel=100 * 2.0**-23)


Stop = Callable[[], bool]


def after(count: int) -> Stop:
    """True from the call after `count` on."""
    calls = iter(range(10**9))
    return lambda: next(calls) >= count


def together(tiny: Plan, stop: Stop) -> list[str]:
    """The group of the mixture's trials, run in this process."""
    group = engines.choose(tiny, REGISTRY, "batched", 1).groups[0]
    return worker.run_together(
        [one.config for one in group.trials],
        [tiny.folder / "trials" / one.id for one in group.trials],
        tiny.folder / "groups" / group.id,
        stop=stop,
    )


@pytest.mark.slow
def test_a_stopped_group_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Stopped in training, then while its trials are measured, then to the end."""
    plans = {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        plans[name] = made(tmp_path / name)
        described(plans[name])
    assert together(plans["whole"], lambda: False) == ["finished"] * 6
    assert together(plans["stopped"], after(0)) == ["interrupted"] * 6
    assert {one.state for one in made(tmp_path / "stopped").trials[:6]} == {"interrupted"}
    partly = together(plans["stopped"], after(3))
    assert sorted(partly) == ["finished"] * 2 + ["interrupted"] * 4
    assert together(plans["stopped"], lambda: False) == ["finished"] * 6
    for one in engines.choose(plans["whole"], REGISTRY, "batched", 1).groups[0].trials:
        mine, its = (p.folder / "trials" / one.id for p in plans.values())
        for name in ("weights.safetensors", "levels.csv", "samples.safetensors"):
            assert (mine / name).read_bytes() == (its / name).read_bytes(), name
        rows = [
            [{**row, "seconds": 0, "time": 0} for row in TrialFolder.at(at).rows()]
            for at in (mine, its)
        ]
        assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_damaged_checkpoint_of_a_group_is_not_used(tmp_path: Path) -> None:
    tiny = made(tmp_path)
    described(tiny)
    assert together(tiny, after(0)) == ["interrupted"] * 6
    (file,) = tiny.folder.glob("groups/*/checkpoint")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert together(tiny, lambda: False) == ["finished"] * 6
    for one in engines.choose(tiny, REGISTRY, "batched", 1).groups[0].trials:
        rows = TrialFolder.at(tiny.folder / "trials" / one.id).rows()
        assert [row["step"] for row in rows] == [50, 100]


@pytest.mark.slow
@pytest.mark.parametrize("calls", [0, 2])
def test_what_raises_fails_alone(tmp_path: Path, trials_only: None, calls: int) -> None:
    """At once, or in the midst of training: the group is dissolved, and only the guilty fails."""
    (tmp_path / "raises.py").write_text(RAISES.format(calls=calls))
    words = ("-p", "raises.py", "--set", 'grid.parameterization=["v","raises","edm"]')
    done = study(tmp_path, *words, "--only", "mixture,equal", "--engine", "batched")
    assert done.code == 1, done.err
    assert "Engine: batched, 6 trials up to 6 as one" in done.out
    found = StudyFolder.at(tmp_path / "runs" / "tiny").descriptions()
    assert len(found) == 6
    for one in found:
        at = tmp_path / "runs" / "tiny" / "trials" / one["id"]
        guilty = one["config"]["parameterization"]["name"] == "raises"
        assert Folder.at(at).json("result.json")["status"] == ("failed" if guilty else "finished")
        assert (at / "error.txt").is_file() == guilty
        if guilty:
            assert "ValueError: enough" in (at / "error.txt").read_text()


@pytest.mark.slow
def test_what_raises_in_measuring_fails_alone_and_nobody_trains_again(
    tmp_path: Path, trials_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = evaluate.measure

    def measure(config: TrialConfig, *rest: Any) -> evaluate.Measured:
        if config.seed == 1:
            raise ValueError("cannot be measured")
        return genuine(config, *rest)

    monkeypatch.setattr(evaluate, "measure", measure)
    monkeypatch.setattr(worker, "run", None)
    done = study(tmp_path, "--only", "mixture", "--engine", "batched")
    assert done.code == 1
    found = StudyFolder.at(tmp_path / "runs" / "tiny").descriptions()
    assert len(found) == 6
    for one in found:
        at = tmp_path / "runs" / "tiny" / "trials" / one["id"]
        guilty = one["config"]["seed"] == 1
        result = Folder.at(at).json("result.json")
        assert result["status"] == ("failed" if guilty else "finished")
        assert (at / "error.txt").is_file() == guilty
        if guilty:
            assert result["error"] == "ValueError: cannot be measured"


@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_options_that_a_network_refuses_end_the_plan(tmp_path: Path, engine: str) -> None:
    words = ("--set", "network.width=0", "--seeds", 1, "--only", "v,mixture,published")
    done = study(tmp_path, *words, "--engine", engine)
    assert done.code == 2
    assert "network 'mlp': width = 0" in done.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_trained_trial_of_a_group_loads(trained_together: Path) -> None:
    for one in StudyFolder.at(trained_together).descriptions()[:2]:
        at = trained_together / "trials" / one["id"]
        denoiser = testbed.load(at)
        spec = one["config"]["dataset"]
        x = torch.ones(2, *REGISTRY.dataset(spec["name"], **spec["options"])().shape)
        assert bool(denoiser(x, 1.0).isfinite().all())
        assert json.loads((at / "result.json").read_text())["parameters"] > 0


@pytest.mark.slow
def test_a_group_that_is_being_measured_shows_how_far_it_is(tmp_path: Path) -> None:
    """A bar of its trials takes the place of the one of its steps; without a terminal, a line."""
    engine = engines.choose(made(tmp_path, grid=STEPS), REGISTRY, "batched", 1)
    group = engine.groups[0]
    shown = []
    for terminal_ in (True, False):
        out = io.StringIO()
        bars = render.Bars(engine, Console(file=out, force_terminal=terminal_, width=100))
        for step, measured_ in ((50, 0), (group.steps, 0), (group.steps, 5), (group.steps, 12)):
            bars._show(group, step, measured_)
            task = bars._bars.tasks[-1]
            shown.append((task.description, task.completed, task.total, task.visible))
    title = group.title
    assert shown[:4] == shown[4:] == [
        (title, 50, group.steps, True),
        (f"{title} · measuring", 0, 12, True),
        (f"{title} · measuring", 5, 12, True),
        (f"{title} · measuring", 5, 12, False),
    ]  # fmt: skip
    assert out.getvalue() == f"measured 5 of {title}\n"


@pytest.mark.usefixtures("whole_measurement")
def test_what_the_first_step_alone_takes_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports and compilation: 9 s in the first half, 1 s in the other, for 4 trials."""

    class Warming:
        interval, diverged, device = 50, (None,) * 4, torch.device("cpu")

        def windows(self) -> Iterator[None]:
            yield from (None, None)

    clock = iter([0.0, 9.0, 9.0, 10.0, 10.0])
    monkeypatch.setattr(step_times.time, "thread_time", lambda: next(clock))
    loop = Warming()
    found = step_times._milliseconds(cast(Loop, loop))
    assert (loop.interval, found) == (BLOCK // 2, 1000 / (BLOCK // 2) / 4)


class Clocks:
    """The thread's clock, and that of the day on a machine that gives others a turn now and then.

    A batch takes 0.8 of the CPU that one by one does, but the others come while it runs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.thread = self.day = 0.0
        monkeypatch.setattr(step_times.time, "thread_time", lambda: self.thread)
        monkeypatch.setattr(step_times.time, "perf_counter", lambda: self.day)

    def windows(self, loop: Loop) -> Iterator[None]:
        together = isinstance(loop, Batch)
        for _ in range(4):
            self.thread += (0.8 if together else 1.0) * len(loop.diverged)
            self.day += (3.0 if together else 1.0) * len(loop.diverged)
            yield


@pytest.mark.slow
@pytest.mark.usefixtures("whole_measurement")
@pytest.mark.parametrize(("threads", "name"), [(1, "batched"), (2, "sequential")])
def test_on_one_thread_other_work_on_the_machine_does_not_choose_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, name: str
) -> None:
    """By the time of day the other engine would be taken, as it is where threads share the work."""
    clocks = Clocks(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(Loop, "windows", lambda loop: clocks.windows(loop))
    monkeypatch.setattr(step_times, "long_step", lambda *rest: 0.0)
    assert engines.choose(made(tmp_path), REGISTRY, "auto", 1).name == name


@pytest.mark.slow
@pytest.mark.usefixtures("whole_measurement")
def test_trials_of_a_long_step_train_one_by_one_without_a_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass of n samples takes n tenths of a second: a step of all, three such passes."""
    tried: list[int] = []

    def forward(denoiser: Any, data: Any, n: int, device: Any) -> float:
        tried.append(n)
        return pace * n

    monkeypatch.setattr(step_times, "_forward_seconds", forward)
    batch, pace = made(tmp_path).trials[0].config.training.batch, 0.1
    found = engines.choose(made(tmp_path), REGISTRY, "auto", 1)
    assert (found.name, tried, sizes(found)) == ("sequential", [1], [1] * 9)
    assert found.measured == {"sequential": pytest.approx(300 * batch)}
    tried.clear()
    pace = step_times.LONG_STEP_SECONDS / (2 * batch)
    assert engines.choose(made(tmp_path), REGISTRY, "auto", 1).name == "sequential"
    assert tried == [1, batch]
    pace /= 2
    assert step_times.long_step(made(tmp_path).trials[0], REGISTRY, "cpu") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("whole_measurement")
def test_a_batch_is_measured_by_the_trace_that_the_training_runs_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first block of steps has none, and takes up to twice as long."""
    traced: list[bool] = []
    milliseconds = step_times._milliseconds

    def spy(loop: Loop) -> float:
        found = milliseconds(loop)
        if isinstance(loop, Batch):
            traced.append(loop._traced is not None)
            assert loop.step - BLOCK // 2 >= BLOCK
        return found

    monkeypatch.setattr(step_times, "_milliseconds", spy)
    engines.choose(made(tmp_path), REGISTRY, "batched", 2)
    assert traced
    assert all(traced)


# --- drivers that share a study -------------------------------------------------------------------


@pytest.mark.slow
def test_a_driver_that_helps_takes_the_groups_of_the_plan_on_its_own_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.begin(tmp_path / "runs" / "tiny", 60.0)
    led = made(tmp_path)
    first = engines.choose(led, REGISTRY, "batched", 3)
    first.write(led.folder)
    monkeypatch.setattr(devices, "cores", lambda: 5)
    helps = engines.shared(made(tmp_path), None)
    assert (helps.name, helps.slots, ids(helps)) == ("batched", 5, ids(first))
    assert engines.shared(made(tmp_path), 2).slots == 2
    # Who leads after the first had died does so too, whatever the number of its workers.
    follows = engines.choose(made(tmp_path), REGISTRY, "auto", 1)
    assert (follows.slots, ids(follows)) == (1, ids(first))
    record = led.files.json("plan.json") | {"threads": 2}
    led.files.put_json("plan.json", record)
    assert engines.shared(made(tmp_path), None).slots == 2


@pytest.mark.slow
def test_a_driver_that_helps_leaves_alone_what_ended_or_failed(tmp_path: Path) -> None:
    storage.begin(tmp_path / "runs" / "tiny", 60.0)
    led = made(tmp_path)
    first = engines.choose(led, REGISTRY, "sequential", 1)
    first.write(led.folder)
    runner.describe(led, REGISTRY)
    one, other, *rest = led.trials
    led.files.trial(one.id).put_json("result.json", {"status": "finished"})
    led.files.trial(other.id).put_json("result.json", {"status": "failed"})
    helps = engines.shared(made(tmp_path), 1)
    assert sorted(ids(helps)) == sorted([trial.id] for trial in rest)
