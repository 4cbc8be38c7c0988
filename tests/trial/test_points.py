"""A trial that is measured at points of its training, and anew without being trained."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import studies
from helpers.studies import refusal

from testbed.study import engines, plan
from testbed.training.curve import Window
from testbed.trial import restore, worker
from testbed.trial.config import TrialConfig
from testbed.trial.folders import TrialFolder
from testbed.trial.points import available, kept
from testbed.trial.study_folder import StudyFolder

STUDY = """
[study]
name = "points"
[base]
network = { name = "mlp", width = 8, depth = 1 }
dataset = { name = "mixture", dim = 2, n = 200, test = 50 }
training = { steps = 100, batch = 8, points = 2 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 2, metrics = ["energy"] }
density = "lognormal"
weighting = "edm"
loss = "l2"
[grid]
parameterization = ["v"]
"""
POINTS = "evaluation.points=[30, 0.5]"
WIDTHS = "evaluation.widths=[0.05, 0.07]"
FILES = ("levels.csv", "samples.safetensors", "tweedie.json")


def config(folder: Path, *sets: str, **seeds: int) -> TrialConfig:
    return studies.config(STUDY, folder, *sets)


def trained(at: Path, one: TrialConfig, **more: Any) -> TrialFolder:
    assert worker.run(one, at, **more) == "finished", (at / "error.txt").read_text()
    return TrialFolder.at(at)


def together(at: Path, *configs: TrialConfig) -> list[TrialFolder]:
    paths = [at / f"trial{i}" for i in range(len(configs))]
    assert set(worker.run_together(configs, paths, at / "group")) == {"finished"}
    return list(map(TrialFolder.at, paths))


@pytest.mark.slow
def test_a_point_is_measured_as_a_training_that_ends_there(tmp_path: Path) -> None:
    """The learning rate is constant: a shorter training is the beginning of a longer one."""
    long = trained(tmp_path / "long", config(tmp_path, POINTS))
    assert [one.path.name for one in long.points()] == ["30", "50"]
    for steps in (30, 50):
        short = trained(tmp_path / "short", config(tmp_path, f"training.steps={steps}"))
        point = long.point(str(steps))
        for name in FILES:
            assert point.store.get(name) == short.store.get(name)
        found = point.json("result.json")
        assert found["metrics"] == short.result()["metrics"]
        assert (found["step"], found["width"]) == (steps, None)
        shutil.rmtree(short.path)
    without = trained(tmp_path / "without", config(tmp_path))
    for name in (*FILES, "weights.safetensors"):
        assert long.store.get(name) == without.store.get(name)
    assert long.result()["metrics"] == without.result()["metrics"]


@pytest.mark.slow
def test_a_batch_is_measured_at_its_points(tmp_path: Path) -> None:
    """As a batch that ends there; trials that differ in their points alone are one training."""
    names = ("v", "eps")
    many = [config(tmp_path, POINTS, f'grid.parameterization=["{name}"]') for name in names]
    more = config(tmp_path, WIDTHS, 'grid.parameterization=["eps"]')
    long = together(tmp_path / "long", *many, more)
    short = together(
        tmp_path / "short",
        *(config(tmp_path, "training.steps=30", f'grid.parameterization=["{n}"]') for n in names),
    )
    for one, other in zip(long, short, strict=False):
        for name in FILES:
            assert one.point("30").store.get(name) == other.store.get(name)
    assert [one.path.name for one in long[2].points()] == ["100-0.05", "100-0.07"]
    assert long[1].store.get("levels.csv") == long[2].store.get("levels.csv")


@pytest.mark.slow
def test_a_width_is_measured_as_a_training_with_that_average(tmp_path: Path) -> None:
    """What is kept as it is has the same numbers but for the last digits of its reconstruction."""
    one = trained(tmp_path / "one", config(tmp_path, WIDTHS))
    other = trained(tmp_path / "other", config(tmp_path, "training.ema_width=0.05"))
    found = one.point("100-0.05").json("result.json")
    assert found["width"] == 0.05
    assert found["metrics"] == pytest.approx(other.result()["metrics"], rel=1e-3)
    assert found["metrics"]["excess_nats"] != one.result()["metrics"]["excess_nats"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["", "averages/30", "averages/50"])
def test_an_interrupted_trial_resumes_with_its_averages(tmp_path: Path, lost: str) -> None:
    """Or begins anew where one of them is lost."""
    one = config(tmp_path, POINTS, WIDTHS)
    whole = trained(tmp_path / "whole", one)
    at = tmp_path / "resumed"
    assert worker.run(one, at, stop=lambda: True) == "interrupted"
    if lost:
        (at / lost).write_bytes(b"damaged")
    said: list[str] = []
    worker.resumable(TrialFolder.at(at), [TrialFolder.at(at)], said.append)
    assert bool(said) == bool(lost)
    if lost:
        assert f"{lost} is missing or damaged. Training begins anew." in said[0]
    resumed = trained(at, one)
    for step in kept(one):
        found, expected = resumed.averages(step), whole.averages(step)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for point in whole.points():
        for name in FILES:
            assert point.store.get(name) == resumed.point(point.path.name).store.get(name)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [False, True])
def test_a_trial_that_diverged_is_measured_at_the_points_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: bool
) -> None:
    """Of two windows of 50 steps the second has a loss that is not finite at its step 20."""
    more = "evaluation.points=[30, 0.5, 70, 71]", WIDTHS
    names = ("v", "eps") if batch else ("v",)
    configs = [config(tmp_path, *more, f'grid.parameterization=["{name}"]') for name in names]

    def ended(at: Path) -> TrialFolder:
        if batch:
            paths = [at / name for name in names]
            worker.run_together(configs, paths, at / "group")
            return TrialFolder.at(paths[0])
        worker.run(configs[0], at)
        return TrialFolder.at(at)

    whole = ended(tmp_path / "whole")
    first, calls = Window.first_nonfinite, itertools.count()

    def nonfinite(window: Window) -> list[int | None]:
        return [20, *first(window)[1:]] if next(calls) == 1 else first(window)

    monkeypatch.setattr(Window, "first_nonfinite", nonfinite)
    lost = ended(tmp_path / "lost")
    result = lost.result()
    assert (result["status"], result["diverged_at"], result["metrics"]) == ("diverged", 70, {})
    assert [one.path.name for one in lost.points()] == ["30", "50", "70"]
    for point in lost.points():
        other = whole.point(point.path.name)
        assert point.json("result.json") == other.json("result.json")
        for name in FILES:
            assert point.store.get(name) == other.store.get(name)


def study(folder: Path, *sets: str) -> plan.Plan:
    return studies.planned(STUDY, folder, *sets)


def finish(made: plan.Plan) -> None:
    """Trains the plan's trials one by one, and writes what the runner writes of them."""
    for one in made.trials:
        folder = made.files.trial(one.id)
        record = {"id": one.id, "config": one.config.record(), "labels": one.labels}
        folder.put_json("trial.json", {**record, "plugins": [], "plugin_dirs": []})
        trained(folder.path, one.config)


@pytest.mark.slow
def test_a_change_of_the_evaluation_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(study(tmp_path, POINTS))
    other = ("evaluation.points=[50]", "evaluation.draws=20", "evaluation.sampler=euler")
    changed = study(tmp_path, *other)
    (one,) = changed.trials
    (before,) = changed.files.trials()
    assert one.state == "stale"
    assert one.training == before.name
    assert "none of it is trained" in plan.notes(changed)[-1]
    engine = engines.choose(changed, studies.default_registry(), slots=0)
    assert [group.trials for group in engine.groups] == [[one]]
    folder = changed.files.trial(one.id)
    folder.take_over(before)
    with monkeypatch.context() as patch:
        patch.setattr(worker.Trainer, "of", None)
        trained(folder.path, one.config)
    assert not folder.has("training.json")
    anew = trained(tmp_path / "anew", one.config)
    facts = ("status", "metrics", "errors", "steps", "scale", "diverged_at", "final_loss")
    assert [folder.result()[key] for key in facts] == [anew.result()[key] for key in facts]
    assert folder.store.get("weights.safetensors") == anew.store.get("weights.safetensors")
    for name in FILES:
        assert folder.point("50").store.get(name) == anew.point("50").store.get(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    ["evaluation.points=[40]", WIDTHS, "training.learning_rate=0.01", "training.steps=101"],
)
def test_what_lacks_averages_or_is_another_training_is_trained(tmp_path: Path, change: str) -> None:
    finish(study(tmp_path, POINTS))
    (one,) = study(tmp_path, change).trials
    assert one.state == "stale"
    assert not one.training


@pytest.mark.slow
def test_a_damaged_average_is_not_taken_over(tmp_path: Path) -> None:
    finish(study(tmp_path, POINTS))
    (folder,) = StudyFolder.at(tmp_path / "out").trials()
    wanted = config(tmp_path, "evaluation.points=[50]")
    assert available(wanted, folder)
    file = folder.path / "averages" / "50"
    file.write_bytes(file.read_bytes()[:-1])
    assert not available(wanted, folder)


@pytest.mark.slow
def test_a_trial_with_points_is_loaded_with_its_last_weights(tmp_path: Path) -> None:
    finish(study(tmp_path, POINTS))
    (folder,) = StudyFolder.at(tmp_path / "out").trials()
    loaded = torch.cat([p.flatten() for p in restore.load(folder.path).parameters()])
    expected = folder.tensors("weights.safetensors").values()
    assert sorted(loaded.tolist()) == sorted(torch.cat([t.flatten() for t in expected]).tolist())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("evaluation.points=[101]", "evaluation.points = 101 is beyond the end: training.steps"),
        ("evaluation.points=[0]", "whole numbers of steps from 1 on"),
        ("evaluation.points=[1.0]", "fractions above 0 and below 1"),
        ("evaluation.points=[true]", "must be a list"),
        ("evaluation.points=0.5", "must be a list"),
        ("evaluation.widths=[0.01]", "evaluation.widths = 0.01 cannot be reconstructed"),
        ("evaluation.widths=[0.3]", "must be different numbers above 0 and up to 0.289"),
        ("evaluation.widths=[0.1, 0.1]", "must be different numbers"),
    ],
)
def test_points_that_cannot_be_are_refused(tmp_path: Path, change: str, words: str) -> None:
    assert words in refusal(STUDY, tmp_path, change)


def test_points_are_steps_or_fractions_and_never_the_end() -> None:
    evaluation = TrialConfig.model_fields["evaluation"].default.model_copy(
        update={"points": (0.25, 100, 10, 0.001, 25)}
    )
    assert evaluation.at(100) == (1, 10, 25)
    assert evaluation.at(1000) == (1, 10, 25, 100, 250)
