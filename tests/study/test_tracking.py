"""What MLflow gets and where: the store in the cache, cut texts, tags, times, pictures."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable
from errno import ENOSPC, ESTALE
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from helpers.command_line import run_here
from helpers.studies import ONE_TRIAL, planned

from testbed.errors import InputError
from testbed.study import tracking, tracking_content, tracking_pictures, tracking_store
from testbed.study.plan import Trial
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import Busy, LeaseLost, StoreAway

LABEL = {"case": "mixture", "variant": "edm"}


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return TrialFolder.at(tmp_path)


def trial(*arms: str) -> Trial:
    config = SimpleNamespace(training=SimpleNamespace(steps=200))
    labels = [{**LABEL, "arm": arm} for arm in arms]
    return cast(Trial, SimpleNamespace(id="t", labels=labels, config=config))


# --- the store ------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the empty store, where migrating is forbidden."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tracking_store.sys, "platform", "linux")
    monkeypatch.setattr(tracking_store, "_migrate", lambda *words: pytest.fail("it migrates"))
    empty = tmp_path / "cache" / "testbed"
    empty.mkdir(parents=True)
    version = tracking_store.importlib.metadata.version("mlflow")
    file = empty / f"mlflow-{version}-{tracking_store.migration_head()}.db"
    with sqlite3.connect(template) as database, sqlite3.connect(file) as copy:
        database.backup(copy)
    database.close()
    copy.close()
    return file


def experiments(file: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(file) as database:
        found = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
    database.close()
    return found


def test_a_store_from_the_cache_has_its_own_artifacts(cache: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        file = tmp_path / name / "mlflow.db"
        tracking_store.prepare(f"sqlite:///{file}")
        assert experiments(file) == [("Default", f"{tmp_path / name / 'mlartifacts'}/0")]
        assert {one.name for one in file.parent.iterdir()} <= {"mlflow.db", "mlflow.db.lock"}
    with sqlite3.connect(tmp_path / "one" / "mlflow.db") as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        (when,) = database.execute("SELECT creation_time FROM experiments").fetchone()
    database.close()
    assert mode == "wal"
    assert time.time() - 60 < when / 1000 <= time.time()


@pytest.mark.slow
def test_the_head_is_what_mlflow_itself_migrates_to(template: Path) -> None:
    with sqlite3.connect(template) as database:
        (head,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    database.close()
    assert tracking_store.migration_head() == head


@pytest.mark.parametrize("harm", ["missing", "cut short", "of another version", "used"])
def test_an_empty_store_that_is_not_one_is_made_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    whole = cache.read_bytes()
    if harm == "missing":
        cache.unlink()
    elif harm == "cut short":
        cache.write_bytes(whole[: len(whole) // 2])
    else:
        command = (
            "UPDATE alembic_version SET version_num = 'before'"
            if harm == "of another version"
            else "INSERT INTO runs (run_uuid, experiment_id) VALUES ('a', 0)"
        )
        with sqlite3.connect(cache) as database:
            database.execute(command)
        database.close()
    made = []

    def migrate(file: Path, artifacts: Path, lock: int) -> None:
        made.append(file)
        file.write_bytes(whole)

    monkeypatch.setattr(tracking_store, "_migrate", migrate)
    assert tracking_store.empty_store() == cache
    assert made == [cache.with_name(f"{cache.name}.new")]
    assert cache.read_bytes() == whole
    assert tracking_store.empty_store() == cache
    assert len(made) == 1


def test_without_a_cache_the_store_itself_is_migrated(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cache.read_bytes()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made there
    monkeypatch.setattr(
        tracking_store, "_migrate", lambda file, artifacts, lock: file.write_bytes(whole)
    )
    file = tmp_path / "mlflow.db"
    tracking_store.prepare(f"sqlite:///{file}")
    assert experiments(file) == [("Default", f"{tmp_path / 'mlartifacts'}/0")]


# --- names and values -----------------------------------------------------------------------------


def test_a_cut_text_says_so_and_how_long_it_was() -> None:
    assert tracking_content.cut("x" * 100, 100) == "x" * 100
    text = tracking_content.cut("x" * 101, 100)
    assert len(text) == 100
    assert text.endswith("x ... [cut: 101 characters in all]")
    (pair,) = tracking_content.flat({"long": "y" * 7000})
    assert len(pair[1]) == 6000
    assert pair[1].endswith("[cut: 7000 characters in all]")


def test_each_arm_has_a_tag_of_its_own() -> None:
    tags = tracking_content.tags(trial("published", "equal"))
    assert (tags["testbed.arm.published"], tags["testbed.arm.equal"]) == ("published", "equal")
    assert tracking_content.tags(trial("a/b"))["testbed.arm.a_b"] == "a/b"
    assert not any("arm" in key for key in tracking_content.tags(trial("")))


def test_why_a_trial_did_not_finish() -> None:
    def reason(**result: Any) -> str:
        return tracking_content.reason(trial(""), result)

    assert reason(status="finished") == ""
    assert reason(status="failed", error="ValueError: no") == "ValueError: no"
    assert "at step 31 of 200" in reason(status="diverged", diverged_at=31)


def test_only_finite_metrics_of_a_trained_model_are_sent() -> None:
    result = {
        "status": "finished",
        "metrics": {"energy": 0.5, "excess_nats": math.inf, "mmd": None},
        "errors": {"energy": {"error": 0.1, "p": None}},
    }
    assert tracking_content.final(result) == {
        "evaluation/energy": 0.5,
        "evaluation/energy_error": 0.1,
        "evaluation/diverged": 0.0,
    }
    assert tracking_content.final({"status": "failed", "error": "x"}) == {}


def test_a_trial_of_a_group_began_before_the_whole_groups_first_steps(folder: TrialFolder) -> None:
    """A row has the trial's share of the seconds that its group took."""
    assert tracking_content.began(folder) is None
    folder.append_row({"step": 1, "time": 100.0, "seconds": 2.0})
    folder.append_row({"step": 2, "time": 200.0, "seconds": 2.0})
    assert tracking_content.began(folder) == 98.0
    assert tracking_content.ended(folder) == 200.0
    folder.put_json("group.json", {"group": "g", "trained_together": 4})
    assert tracking_content.began(folder) == 92.0
    folder.put_json("result.json", {"status": "finished", "trained_together": 3, "ended": 250.0})
    assert tracking_content.began(folder) == 94.0
    assert tracking_content.ended(folder) == 250.0


def test_the_table_of_levels_keeps_every_digit(folder: TrialFolder) -> None:
    import pandas as pd

    folder.put_table("levels.csv", pd.DataFrame({"sigma": [0.002, 1 / 3], "loss": [1.0, math.nan]}))
    table = json.loads(tracking_content.level_table(folder))
    assert table["columns"] == ["sigma", "loss"]
    assert table["data"] == [[0.002, 1.0], [pytest.approx(1 / 3, abs=5e-16), None]]


# --- a trial that is trained again ----------------------------------------------------------------

ONE = """
[study]
name = "one"
note = "Why it was run."
[base]
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 4 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 3, metrics = ["energy"] }
loss = "fragile"
seeds = 1
[grid]
parameterization = ["v"]
"""
FRAGILE = """
from pathlib import Path
import testbed

def fragile(prediction, target):
    if (Path(__file__).parent / "broken").exists():
        raise RuntimeError("broken on purpose")
    return (prediction - target) ** 2

@testbed.hookimpl
def testbed_losses():
    return [testbed.Loss("fragile", fragile)]
"""


@pytest.mark.slow
def test_a_trial_that_ends_well_at_last_has_no_reason(
    tmp_path: Path, new_store: Callable[[Path], str], trials_only: None
) -> None:
    address = new_store(tmp_path)
    (tmp_path / "one.toml").write_text(ONE)
    (tmp_path / "fragile.py").write_text(FRAGILE)
    (tmp_path / "broken").touch()
    words = ("study", "one.toml", "-p", "fragile.py", "--jobs", 0)
    found = []
    for code in (1, 0):
        assert run_here(tmp_path, *words, MLFLOW_TRACKING_URI=address).code == code
        (run,) = runs(address, "trial")
        found.append((run.info.status, run.data.tags.get("testbed.reason"), run.info.run_id))
        assert run.data.tags.get("mlflow.note.content") == run.data.tags.get("testbed.reason")
        (tmp_path / "broken").unlink(missing_ok=True)
    (failed, why, first), (finished, none, second) = found
    assert (failed, finished, none) == ("FAILED", "FINISHED", None)
    assert "broken on purpose" in why
    assert first == second
    (parent,) = runs(address, "study")
    assert parent.data.tags["mlflow.note.content"] == "Why it was run."


def runs(address: str, kind: str) -> list[Any]:
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("testbed/one")
    query = f"tags.`testbed.kind` = '{kind}'"
    return list(client.search_runs([experiment.experiment_id], query))


# --- pictures -------------------------------------------------------------------------------------


def test_images_stand_in_a_sheet_with_a_pixel_between_them() -> None:
    real = np.array([0.0, 1.0])[:, None, None, None] * np.ones((2, 1, 3, 4))
    samples = np.array([0.0, 0.2, 1.0, 7.0, math.nan])[:, None, None, None] * np.ones((5, 1, 3, 4))
    pixels = tracking_pictures.picture(samples, real)
    assert pixels.shape == (2 * 4 - 1, 3 * 5 - 1, 3)
    corners = pixels[::4, ::5, 0].ravel().tolist()
    assert corners == [0, 51, 255, 255, 0, 255]
    assert (pixels[3] == 255).all()
    assert (pixels[:, 4] == 255).all()


def test_coloured_images_keep_their_colours() -> None:
    real = np.stack([np.zeros((3, 2, 2)), np.ones((3, 2, 2))])
    red = np.zeros((1, 3, 2, 2))
    red[:, 0] = 1
    assert tracking_pictures.picture(red, real)[0, 0].tolist() == [255, 0, 0]


def test_denoised_images_have_two_rows_a_level_and_their_noise_is_scaled() -> None:
    real = np.array([-1.0, 1.0])[:, None, None] * np.ones((2, 3, 4))  # E x^2 = 1
    sigma = np.array([0.75, 2.4])
    # x at the ends of its scaled range: sqrt(1 + sigma^2) = 1.25 and 2.6.
    x = np.array([[1.25, -1.25], [0.0, 2.6]])[..., None, None] * np.ones((2, 2, 3, 4))
    D = np.array([[-1.0, 0.0], [1.0, 9.0]])[..., None, None] * np.ones((2, 2, 3, 4))
    pixels = tracking_pictures.by_level(np.stack([x, D]), sigma, real)
    assert pixels.shape == (4 * 4 - 1, 2 * 5 - 1, 3)
    assert pixels[::4, ::5, 0].tolist() == [[255, 0], [0, 128], [128, 255], [255, 255]]


def test_vectors_are_points_of_the_real_datas_plane() -> None:
    real = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    half, side = 1.35 * real.max(0), tracking_pictures.SIDE
    inside, outside = 0.5 * half * [1, -1], [100.0, math.nan]
    pixels = tracking_pictures.picture(np.array([inside, outside]), real)
    drawn = np.argwhere((pixels == tracking_pictures.DRAWN).all(-1))
    # Row 0 is the top: half-way right and half-way down.
    assert drawn.mean(0) == pytest.approx([0.75 * (side - 1)] * 2, abs=0.5)
    assert len(drawn) == 9
    grey = np.argwhere((pixels == tracking_pictures.REAL).all(-1))
    assert len(grey) == 4 * 9


def test_data_of_one_dimension_have_a_picture_too() -> None:
    real = np.linspace(-1, 1, 5)[:, None]
    pixels = tracking_pictures.picture(real[:2], real)
    assert {tuple(one) for one in pixels.reshape(-1, 3).tolist()} == {
        (255, 255, 255),
        tracking_pictures.REAL,
        tracking_pictures.DRAWN,
    }


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (lambda at: ConnectionError("refused"), "does not answer (refused)"),
        (lambda at: OSError(ENOSPC, "No space", "/else/mlartifacts/x"), "does not answer ([Errno"),
        (
            lambda at: StoreAway("s3://bucket/x: the store does not answer"),
            "is not told, since the",
        ),
        (lambda at: Busy("another process is at work on it"), "is not told, since the study's"),
        (lambda at: OSError(ESTALE, "Stale", f"{at}/rows.jsonl"), "is not told, since the study's"),
        (
            lambda at: InputError(f"{at}/trial.json: cannot be read"),
            "is not told, since the study's",
        ),
        (lambda at: LeaseLost("taken over"), ""),
    ],
    ids=["refused", "full", "away", "busy", "stale", "damaged", "lost"],
)
def test_what_is_to_blame_is_named(
    tmp_path: Path, problem: Callable[[Path], Exception], said: str
) -> None:
    """A driver that was replaced says so itself, and sends nothing more."""
    made = planned(ONE_TRIAL, tmp_path)
    lines: list[str] = []
    tracker = tracking.Tracker(made, "http://127.0.0.1:1", lines.append, "the study goes on")
    for _ in range(2):
        with tracker._guarded():
            raise problem(made.folder)
    assert [f"MLflow at http://127.0.0.1:1 {said}" in line for line in lines] == [True] * bool(said)
    tracker.open()
    assert tracker.away
