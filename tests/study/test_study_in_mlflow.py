"""What MLflow holds of a study, and a study without it."""

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import environment, run_here
from helpers.ended_studies import (
    ONE,
    Finished,
    Run,
    Troubled,
    curve,
    files,
    is_in,
    of_kind,
    put,
    result,
    stored,
    totals,
    trials,
)

from testbed.study import tracking_store
from testbed.trial.folders import Folder, TrialFolder


@pytest.mark.slow
def test_a_store_is_made_whole_by_its_first_study(template: Path) -> None:
    import sqlite3

    names = {file.name for file in template.parent.iterdir()}
    assert names <= {"mlflow.db", "mlflow.db.lock"}
    with sqlite3.connect(template) as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    database.close()
    assert mode == "wal"
    assert tables > 40
    before = template.stat().st_mtime_ns
    tracking_store.prepare(f"sqlite:///{template}")
    assert template.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_holds_one_parent_and_a_nested_run_for_each_trial(finished: Finished) -> None:
    (parent,) = of_kind(finished.logged, "study")
    nested = of_kind(finished.logged, "trial")
    assert len(nested) == 9
    assert {run.status for run in finished.logged} == {"FINISHED"}
    assert parent.tags["mlflow.runName"] == "A tiny study"
    assert {run.tags["mlflow.parentRunId"] for run in nested} == {parent.id}
    assert {run.tags["testbed.trial"] for run in nested} == {
        at.name for at in trials(finished.folder).values()
    }
    assert {run.tags["testbed.status"] for run in nested} == {"finished"}
    assert all(run.tags["testbed.device"].startswith("cpu") for run in nested)
    # By an arm's own tag all its trials are found, the baseline that stands in two arms, too.
    by_arm = {
        arm: sorted(run.tags["testbed.variant"] for run in nested if is_in(run, arm))
        for arm in ("published", "equal")
    }
    assert by_arm == dict.fromkeys(by_arm, ["edm"] * 3 + ["v"] * 3)
    assert sum(is_in(run, "published") and is_in(run, "equal") for run in nested) == 3


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_holds_the_configuration_and_the_numbers_of_each_trial(finished: Finished) -> None:
    by_id = {at.name: at for at in trials(finished.folder).values()}
    for run in of_kind(finished.logged, "trial"):
        at = by_id[run.tags["testbed.trial"]]
        config = Folder.at(at).json("trial.json")["config"]
        assert run.params["parameterization"] == config["parameterization"]["name"]
        assert run.params["training.steps"] == "100"
        assert run.params["network.width"] == "16"
        assert run.params["seed"] == str(config["seed"])
        assert float(run.params["sigma_data"]) == config["sigma_data"]
        for name in ("loss", "gradient_norm", "gradient_norm_cv"):
            expected = [(row["step"], row[name]) for row in curve(at)]
            assert run.metrics[f"training/{name}"] == expected
        for name, value in result(at)["metrics"].items():
            assert run.metrics[f"evaluation/{name}"] == [(100, value)]
        for what, value in result(at)["errors"]["energy"].items():
            assert run.metrics[f"evaluation/energy_{what}"] == [(100, value)]
        assert run.metrics["evaluation/diverged"] == [(100, 0.0)]
        # MLflow's pages have a section for each prefix, by the alphabet.
        sections = [name.partition("/")[0] for name in sorted(run.metrics)]
        assert list(dict.fromkeys(sections)) == ["evaluation", "system", "training"]
        assert {"system/worker_memory_mb"} <= run.metrics.keys()
        pictures = {name for name in run.artifacts if name.startswith("images/")}
        images = config["dataset"]["name"] == "digits"
        of_images = {"denoised.safetensors", "neighbours.safetensors", "pictures.json"}
        assert run.artifacts - pictures == {
            "trial.json", "result.json", "levels.csv", "levels.json", "tweedie.json",
            "rows.parquet", "weights.safetensors", "schedule.json", "samples.safetensors",
            *(of_images if images else ()),
        }  # fmt: skip
        for kind in ("samples", "denoised") if images else ("samples",):
            own = {name for name in pictures if name.startswith(f"images/{kind}+step+100+")}
            assert sorted(name.rpartition(".")[2] for name in own) == ["png", "webp"]
            pictures -= own
        assert pictures == set()


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_holds_the_report_the_tables_and_the_plugins(finished: Finished) -> None:
    (parent,) = of_kind(finished.logged, "study")
    assert {"study.json", "report.html", "coefficients.csv", "tweedie.json"} <= parent.artifacts
    assert {"tables/results.csv", "tables/comparisons.csv"} <= parent.artifacts
    assert {"plugins/v.py", "plugins/edm.py", "plugins/diary.py"} <= parent.artifacts
    assert any(name.startswith("figures/") for name in parent.artifacts)
    counts = {"trials_finished": 9.0, "trials_diverged": 0.0, "trials_failed": 0.0}
    assert totals(parent) == {name: [(0, value)] for name, value in counts.items()}


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_describes_the_study_by_its_finding(finished: Finished) -> None:
    (parent,) = of_kind(finished.logged, "study")
    text = parent.tags["mlflow.note.content"]
    finding = (finished.folder / "tables" / "finding.md").read_text()
    assert text.startswith(finding)
    page = re.sub(r"<[^>]+>|\s+", "", html.unescape((finished.folder / "report.html").read_text()))
    paragraphs = finding.replace("*", "").split("\n\n")
    rows = [line for one in paragraphs if one.startswith("|") for line in one.splitlines()[2:]]
    assert rows
    for text in (*rows, *(one for one in paragraphs if not one.startswith("|"))):
        assert re.sub(r"\s+|\|", "", text) in page


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_has_the_machine_and_the_data_of_the_study(finished: Finished) -> None:
    (parent,) = of_kind(finished.logged, "study")
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes"):
        assert all(value >= 0 for _, value in parent.metrics[f"system/{name}"])
    assert [name for name, _, _ in parent.data] == ["digits", "mixture"]
    for name, _, profile in parent.data:
        facts = json.loads(profile)
        stored = Folder.at(finished.folder / "data").json(f"{name}.json")
        measured = {"floors", "features"}
        assert facts == {key: value for key, value in stored.items() if key not in measured}
    for run in of_kind(finished.logged, "trial"):
        assert run.data == [one for one in parent.data if one[0] == run.tags["testbed.case"]]


@pytest.mark.slow
@pytest.mark.process
def test_a_run_of_mlflow_has_the_times_of_its_trial(finished: Finished) -> None:
    by_id = {at.name: at for at in trials(finished.folder).values()}
    (parent,) = of_kind(finished.logged, "study")
    for run in of_kind(finished.logged, "trial"):
        at, (start, end) = by_id[run.tags["testbed.trial"]], run.seconds
        first, *_, last = TrialFolder.at(at).rows()
        # A row has a trial's share of the time of its group, as the engine that was chosen made it.
        together = result(at).get("trained_together") or 1
        # MLflow has whole milliseconds.
        assert start == pytest.approx(first["time"] - together * first["seconds"], abs=2e-3)
        assert end == pytest.approx(result(at)["ended"], abs=2e-3)
        assert parent.seconds[0] <= start < last["time"] <= end <= parent.seconds[1]
        assert end - start >= result(at)["training_seconds"] + result(at)["measuring_seconds"] - 0.1


@pytest.mark.slow
@pytest.mark.process
def test_mlflow_has_the_table_of_levels(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.address)
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=finished.address)
    run = of_kind(finished.logged, "trial")[0]
    assert json.loads(run.tags["mlflow.loggedArtifacts"]) == [
        {"path": "levels.json", "type": "table"}
    ]
    table = client.load_table(run.experiment, "levels.json", run_ids=[run.id])
    expected = pd.read_csv(finished.folder / "trials" / run.tags["testbed.trial"] / "levels.csv")
    pd.testing.assert_frame_equal(table, expected, check_dtype=False, rtol=1e-14)


@pytest.mark.slow
@pytest.mark.process
def test_the_same_command_again_logs_no_run_and_no_metric_twice(finished: Finished) -> None:
    def key(run: Run) -> str:
        return run.id

    for one, other in zip(
        sorted(finished.logged, key=key), sorted(finished.logged_again, key=key), strict=True
    ):
        assert one == other


@pytest.mark.slow
def test_while_mlflow_is_away_a_study_goes_on_and_a_later_one_catches_up(
    tmp_path: Path, new_store: Callable[[Path], str], trials_only: None
) -> None:
    put(tmp_path, "one.toml", ONE)
    words = ("study", "one.toml", "--jobs", 0, "--seeds", 2, "--set", "training.steps=100")
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_here(tmp_path, *words, **away)
    assert done.code == 0, done.err
    assert "2 finished" in done.out
    assert done.out.count("MLflow at http://127.0.0.1:9 does not answer") == 1
    assert "the study goes on without it" in done.out
    address = new_store(tmp_path)
    before = files(tmp_path / "runs" / "one" / "trials")
    done = run_here(tmp_path, *words, MLFLOW_TRACKING_URI=address)
    assert (done.code, "does not answer" in done.out) == (0, False)
    runs = stored(address, "one")
    assert len(of_kind(runs, "study")) == 1
    assert len(of_kind(runs, "trial")) == 2
    assert {run.status for run in runs} == {"FINISHED"}
    for run in of_kind(runs, "trial"):
        at = tmp_path / "runs" / "one" / "trials" / run.tags["testbed.trial"]
        assert run.metrics["training/loss"] == [(row["step"], row["loss"]) for row in curve(at)]
        name = f"{at.name}/weights.safetensors"
        assert files(at.parent)[name] == before[name]


@pytest.mark.slow
def test_sync_brings_mlflow_up_to_date_and_sends_nothing_twice(
    tmp_path: Path, new_store: Callable[[Path], str], trials_only: None
) -> None:
    put(tmp_path, "one.toml", ONE)
    words = ("one.toml", "--seeds", 2, "--set", "training.steps=100")
    done = run_here(tmp_path, "study", *words, "--jobs", 0, "--no-mlflow")
    assert done.code == 0, done.err
    address = new_store(tmp_path)
    before = files(tmp_path / "runs" / "one" / "trials")
    for _ in range(2):
        done = run_here(tmp_path, "sync", *words, MLFLOW_TRACKING_URI=address)
        assert done.code == 0, done.err
        assert f"2 of 2 trials are in MLflow at {address}" in done.out
    runs = stored(address, "one")
    assert len(of_kind(runs, "study")) == 1
    assert {run.status for run in runs} == {"FINISHED"}
    for run in of_kind(runs, "trial"):
        at = tmp_path / "runs" / "one" / "trials" / run.tags["testbed.trial"]
        assert run.metrics["training/loss"] == [(row["step"], row["loss"]) for row in curve(at)]
    after = files(tmp_path / "runs" / "one" / "trials")
    assert {name: after[name] for name in before} == before


@pytest.mark.slow
def test_a_study_logs_to_the_store_that_is_asked_for(
    tmp_path: Path, new_store: Callable[[Path], str], trials_only: None
) -> None:
    put(tmp_path, "one.toml", ONE)
    (tmp_path / "elsewhere").mkdir()
    address = new_store(tmp_path / "elsewhere")
    words = ("one.toml", "--tracking-uri", address)
    done = run_here(
        tmp_path, "study", *words, "--jobs", 0, MLFLOW_TRACKING_URI="http://127.0.0.1:9"
    )
    assert done.code == 0, done.err
    assert f"MLflow store: {address}\n" in done.out
    assert f"See it: testbed ui --tracking-uri {address}\n" in done.out
    assert {run.status for run in stored(address, "one")} == {"FINISHED"}
    assert not list(tmp_path.glob("mlflow*"))
    done = run_here(tmp_path, "sync", *words)
    assert (done.code, f"1 of 1 trials are in MLflow at {address}." in done.out) == (0, True)


@pytest.mark.slow
def test_sync_without_trials_or_without_an_answer(tmp_path: Path, trials_only: None) -> None:
    put(tmp_path, "one.toml", ONE)
    done = run_here(tmp_path, "sync", "one.toml")
    assert done.code == 2
    assert "has no trial of this study: run testbed study first." in done.err
    words = ("one.toml", "--set", "training.steps=50")
    assert run_here(tmp_path, "study", *words, "--jobs", 0, "--no-mlflow").code == 0
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = run_here(tmp_path, "sync", *words, **away)
    assert done.code == 1
    assert "MLflow at http://127.0.0.1:9 does not answer" in done.out


WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mlflow":
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from testbed import report
report.renew = lambda folder: folder / "report.html"
from testbed.cli.app import main
main()
"""


@pytest.mark.process
@pytest.mark.slow
def test_without_mlflow_a_study_trains_and_says_so(tmp_path: Path) -> None:
    put(tmp_path, "one.toml", ONE)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "study", "one.toml", "--jobs", "0"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "mlflow is not installed: the study runs without it." in done.stdout
    assert "1 finished" in done.stdout
    assert not list(tmp_path.glob("mlflow*"))
    assert not list(tmp_path.rglob("mlflow.json"))


@pytest.mark.process
@pytest.mark.slow
def test_training_imports_neither_mlflow_nor_what_a_study_needs() -> None:
    code = """
import sys
import testbed.training.trainer, testbed.training.objective, testbed.sampling.loop, testbed.oracles
heavy = ("mlflow", "pydantic", "typer", "rich", "matplotlib", "jinja2", "pandas", "ray")
print([name for name in heavy if name in sys.modules])
print([name for name in sys.modules if name.startswith("testbed.study")])
import testbed.trial.worker
print([name for name in ("mlflow", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "[]", "[]"], done.stdout + done.stderr


@pytest.mark.slow
def test_mlflow_says_how_each_trial_ended(troubled: Troubled) -> None:
    found = {run.tags["testbed.case"]: run for run in of_kind(troubled.runs, "trial")}
    failed = dict.fromkeys(("raising", "unbuilt", "unmeasured"), "FAILED")
    expected = {**failed, "wild": "FAILED", "calm": "FINISHED"}
    assert {case: run.status for case, run in found.items()} == expected
    assert found["wild"].tags["testbed.status"] == "diverged"
    assert found["wild"].metrics["evaluation/diverged"] == [(200, 1.0)]
    at = trials(troubled.folder)["wild/", "v", 0]
    wild = found["wild"].tags["testbed.reason"]
    assert wild.startswith(f"The training diverged: at step {result(at)['diverged_at']} of 200 ")
    why = found["raising"].tags["testbed.reason"]
    assert why.startswith("loss 'raising': function raised RuntimeError: raised on purpose [/x]")
    for case, run in found.items():
        assert run.tags.get("mlflow.note.content") == run.tags.get("testbed.reason"), case
    assert "testbed.reason" not in found["calm"].tags
    assert "error.txt" in found["raising"].artifacts
    (parent,) = of_kind(troubled.runs, "study")
    assert parent.status == "FAILED"
    counts = {"trials_finished": 1.0, "trials_diverged": 1.0, "trials_failed": 3.0}
    assert totals(parent) == {name: [(0, value)] for name, value in counts.items()}
