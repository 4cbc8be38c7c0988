"""A few of the faults, and tests of the checker: what it must catch, it catches.

All of them: `nox -s faults`.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import damage, kills, mistakes
from faults.subject import Moment, command, lay_out, left, start
from faults.verdict import Verdict

from testbed.study import tracking_store
from testbed.trial.study_folder import StudyFolder

THE_DRIVER = Moment("driver", "os.rename", "checkpoint")
IN_A_WORKER = Moment("self", "open", "checkpoint.tmp", 2)
WORDS = kills.ENGINES["batched"]
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, template: Path) -> tuple[Path, Verdict]:
    """A study whose driver was killed, and then a worker of the next; what is wrong with it."""
    folder = lay_out(tmp_path_factory.mktemp("killed"))
    shutil.copyfile(template, folder / "mlflow.db")
    found = Verdict()
    sessions = []
    for moment in (THE_DRIVER, IN_A_WORKER):
        ended = start(folder, *command(WORDS), moment=moment).wait()
        found.kills += ended.fired
        sessions.append(ended.session)
    kills.clean(ended, found)
    found.hold(not left(sessions), "processes are left")
    kills.checked(folder, "batched", found)
    return folder, found


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_study_loses_and_doubles_nothing(killed: tuple[Path, Verdict]) -> None:
    _, found = killed
    assert found.problems == []
    assert found.kills == 2


@pytest.mark.process
@pytest.mark.slow
def test_a_damaged_checkpoint_loses_nothing() -> None:
    found = damage.resumed("batched", 0)
    assert found.problems == []
    assert found.cases == 2 * len(damage.HARMS)


# --- the checker ----------------------------------------------------------------------------------


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def sql(folder: Path, command: str) -> None:
    """Changes MLflow's tables behind its back."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute(command).rowcount > 0
    database.close()


def altered(folder: Path) -> Path:
    """A trial of the study."""
    return min((folder / "runs" / "small" / "trials").iterdir())


def flip(folder: Path) -> None:
    file = altered(folder) / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def forget(folder: Path) -> None:
    file = altered(folder) / "rows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def round_off(folder: Path) -> None:
    file = altered(folder) / "result.json"
    result = json.loads(file.read_text())
    result["metrics"]["energy"] *= 1 + 2**-52
    file.write_text(json.dumps(result))


def double(folder: Path) -> None:
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store(folder))
    experiment = client.get_experiment_by_name("testbed/small")
    (run, *_) = client.search_runs([experiment.experiment_id], "tags.`testbed.kind` = 'trial'")
    client.create_run(experiment.experiment_id, tags=run.data.tags)


MISTAKES: dict[str, tuple[Change, str]] = {
    "a bit of a weight": (flip, "weights.safetensors differs"),
    "a row of a curve": (forget, "another curve, 17 for 18 rows"),
    "the last bit of a metric": (round_off, "another result"),
    "a trial that is gone": (lambda at: shutil.rmtree(altered(at)), "is missing"),
    "a checkpoint that is left": (
        lambda at: (altered(at) / "checkpoint").write_bytes(b""),
        "checkpoint is left",
    ),
    "a group that is left": (
        lambda at: (at / "runs" / "small" / "groups" / "x").mkdir(),
        "groups/x is left",
    ),
    "no report": (lambda at: (at / "runs" / "small" / "report.html").unlink(), "no report"),
    "a point less": (
        lambda at: sql(at, "DELETE FROM metrics WHERE key = 'training/loss' AND step = 100"),
        "training/loss has 17 points for 18, 0 of them twice",
    ),
    "a point twice": (
        lambda at: sql(
            at,
            "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan "
            "FROM metrics WHERE key = 'evaluation/energy'",
        ),
        "energy has 2 points for 1, 1 of them twice",
    ),
    "another value": (
        lambda at: sql(at, "UPDATE metrics SET value = value + 1 WHERE key = 'evaluation/energy'"),
        "energy has 1 points for 1",
    ),
    "a run twice": (double, "has 2 runs"),
    "a run that goes on": (
        lambda at: sql(at, "UPDATE runs SET status = 'RUNNING'"),
        "a trial's run is RUNNING",
    ),
    "no parameters": (lambda at: sql(at, "DELETE FROM params"), "other parameters"),
}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("change", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_what_the_checker_must_catch_it_catches(
    killed: tuple[Path, Verdict], tmp_path: Path, change: Change, problem: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(killed[0], folder)
    key = StudyFolder.at(folder / "runs" / "small").key()
    change(folder)
    assert StudyFolder.at(folder / "runs" / "small").key() == key
    found = Verdict()
    kills.checked(folder, "batched", found)
    assert any(problem in one for one in found.problems), found.problems


@pytest.mark.slow
@pytest.mark.process
def test_a_moment_is_counted_and_comes_once(tmp_path: Path) -> None:
    """The hook ends the process before the third file, and not without its variable."""
    script = "for i in range(5): open(f'{i}.json', 'w').close()\nopen('0.json').close()"
    lay_out(tmp_path)
    (tmp_path / "testbed.py").write_text(script)
    done = start(tmp_path, PYTHONPATH=str(tmp_path)).wait()
    assert (done.code, done.fired) == (0, False)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    moment = Moment("self", "open", ".json", 3)
    done = start(tmp_path, moment=moment, PYTHONPATH=str(tmp_path)).wait()
    assert (done.code, done.fired) == (-9, True)
    assert {file.name for file in tmp_path.glob("*.json")} == {"0.json", "1.json"}


def test_the_mistakes_are_in_the_plugins() -> None:
    for source, word in ((mistakes.RAISES, "raise ValueError"), (mistakes.NAN, "float('nan')")):
        assert word in source
        assert "ACTION" not in source
