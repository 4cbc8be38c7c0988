"""Studies from end to end, on a tiny budget: what is trained, kept, resumed, reported, logged."""

import hashlib
import html
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import Done, environment, run_here, run_process
from helpers.studies import TINY
from safetensors.torch import load_file
from scipy import stats

import testbed
from testbed.metrics import denoising
from testbed.registry import default_registry
from testbed.study import runner, tracking_store
from testbed.trial import worker
from testbed.trial.folders import Folder, StudyFolder, TrialFolder

ONE = """
[study]
name = "one"
[base]
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 200, batch = 16, points = 4 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 3, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["v"]
"""

DIARY = """
import os
from pathlib import Path
import testbed

@testbed.hookimpl
def testbed_study_finished(study, results):
    line = f"{os.getpid()} {study.header.name} {len(results)} {' '.join(results.columns)}"
    with (Path(__file__).parent / "diary.txt").open("a") as file:
        print(line, file=file)
"""

BROKEN = "raise RuntimeError('broken on purpose [/x]')\n"

RAISING = """
import testbed

calls = 0

def raising(prediction, target):
    global calls
    calls += 1
    if calls > 10:
        raise RuntimeError("raised on purpose [/x]")
    return (prediction - target) ** 2

def unbuilt(shape, labels):
    raise RuntimeError("not built")

def unmeasured(samples, data, generator):
    raise RuntimeError("not measured")

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("raising", raising, elicits_mean=True)

@testbed.hookimpl
def testbed_networks():
    yield testbed.Network("unbuilt", unbuilt, noise={"log_sigma": (-30, 30)})

@testbed.hookimpl
def testbed_metrics():
    yield testbed.Metric("unmeasured", unmeasured)
"""

# A loss that, in a worker and where a file says so, waits, or ends its process as the kernel would.
MORTAL = """
import multiprocessing
import os
import signal
import time
from pathlib import Path
import testbed
from testbed.trial import worker

HERE = Path(__file__).parent
calls = 0

def mortal(prediction, target):
    if multiprocessing.parent_process() is not None:
        disturb()
    return (prediction - target) ** 2

def disturb():
    global calls
    calls += 1
    (HERE / f"calls_{os.getpid()}").write_text(str(calls))
    while (HERE / "wait").exists() and calls > 120:
        time.sleep(0.02)
    if (HERE / "slow").exists():
        time.sleep(0.01)
    if (HERE / "deaths").exists():
        words = (HERE / "deaths").read_text().split()
        deaths, at, worker.CHECKPOINT_SECONDS = map(float, words)
        if deaths and calls > at:
            (HERE / "deaths").write_text(f"{deaths - 1:.0f} {at} {worker.CHECKPOINT_SECONDS}")
            os.kill(os.getpid(), signal.SIGKILL)

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("mortal", mortal, elicits_mean=True)
"""

WRONG = """
import torch
import testbed

def scaling(sigma):
    alpha = 1 / torch.sqrt(1 + sigma**2)
    return testbed.Coefficients(skip=alpha**2, out=-sigma * alpha, in_=alpha, noise=sigma)

def target(x0, eps, sigma):
    alpha = 1 / torch.sqrt(1 + sigma**2)
    return sigma * alpha * x0 - alpha * eps  # the other sign

@testbed.hookimpl
def testbed_parameterizations():
    recipe = testbed.Recipe(density="cosine", loss="v")
    yield testbed.Parameterization(
        "wrong", scaling, target=target, recipe=recipe, noise_kind="sigma"
    )
"""


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def trials(folder: Path) -> dict[tuple[str, str, int], Path]:
    """The folder of every trial by (case, variant, seed) and arms."""
    found = {}
    for described in StudyFolder.at(folder).descriptions():
        first = described["labels"][0]
        arms = "+".join(label["arm"] for label in described["labels"])
        key = (f"{first['case']}/{arms}", first["variant"], described["config"]["seed"])
        found[key] = folder / "trials" / described["id"]
    return found


def the_trial(folder: Path) -> Path:
    (found,) = (folder / "trials").iterdir()
    return found


def result(at: Path) -> dict[str, Any]:
    return Folder.at(at).json("result.json")


def weights(at: Path) -> bytes:
    return (at / "weights.safetensors").read_bytes()


def curve(at: Path) -> list[dict[str, Any]]:
    """The rows of a trial without what the clock says."""
    clocks = ("time", "seconds")
    return [{k: v for k, v in row.items() if k not in clocks} for row in TrialFolder.at(at).rows()]


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and digest of every file."""
    return {
        str(file.relative_to(folder)): (
            file.stat().st_mtime_ns,
            hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@dataclass(frozen=True)
class Run:
    """An MLflow run as it is stored."""

    id: str
    experiment: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    artifacts: set[str]
    seconds: tuple[float, float]
    data: list[tuple[str, str, str]]


def stored(address: str, study: str) -> list[Run]:
    """Everything that MLflow holds of a study."""
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name(f"testbed/{study}")
    found = []
    for run in client.search_runs([experiment.experiment_id]):
        id_ = run.info.run_id
        metrics = {
            name: [(m.step, m.value) for m in client.get_metric_history(id_, name)]
            for name in run.data.metrics
        }
        artifacts = set()
        for one in client.list_artifacts(id_):
            inside = client.list_artifacts(id_, one.path) if one.is_dir else [one]
            artifacts |= {artifact.path for artifact in inside}
        info, tags = run.info, dict(run.data.tags)
        seconds = info.start_time / 1000, info.end_time / 1000
        inputs = [one.dataset for one in run.inputs.dataset_inputs]
        data = sorted((one.name, one.digest, one.profile) for one in inputs)
        found.append(
            Run(
                id_,
                info.experiment_id,
                info.status,
                tags,
                dict(run.data.params),
                metrics,
                artifacts,
                seconds,
                data,
            )
        )
    return found


def is_in(run: Run, arm: str) -> bool:
    return run.tags.get(f"testbed.arm.{arm}") == arm


def totals(parent: Run) -> dict[str, list[tuple[int, float]]]:
    """A study's own metrics, without those of its machine."""
    return {k: points for k, points in parent.metrics.items() if not k.startswith("system/")}


def of_kind(runs: list[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.tags["testbed.kind"] == kind]


# --- one finished study, run once ---------------------------------------------------------------


ONE_BY_ONE = ("--engine", "sequential")
"""Bit for bit on CPU whatever else is in the study; see test_batch.py for the batched engine."""


@dataclass(frozen=True)
class Finished:
    """A study that was run by `python -m testbed`, and once more by the same command."""

    root: Path
    address: str
    first: Done
    second: Done
    before: dict[str, tuple[int, str]]
    after: dict[str, tuple[int, str]]
    logged: list[Run]
    logged_again: list[Run]

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "tiny"


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]
) -> Finished:
    root = tmp_path_factory.mktemp("finished")
    put(root, "tiny.toml", TINY)
    put(root / "extra", "diary.py", DIARY)
    put(root / "extra", "broken_one.py", BROKEN)
    address = new_store(root)
    words = ("study", "tiny.toml", "--plugin-dir", "extra", "--jobs", 1, *ONE_BY_ONE)
    first = run_process(root, *words, MLFLOW_TRACKING_URI=address)
    assert first.code == 0, first.err
    folder = root / "runs" / "tiny"
    before, logged = files(folder), stored(address, "tiny")
    second = run_here(root, *words, MLFLOW_TRACKING_URI=address)
    after, logged_again = files(folder), stored(address, "tiny")
    return Finished(root, address, first, second, before, after, logged, logged_again)


@pytest.fixture
def again(trained: Path) -> Path:
    """The trials of the same study, run in one process in another folder."""
    return trained / "runs" / "tiny"


@pytest.mark.process
@pytest.mark.slow
def test_a_study_says_what_it_does_and_how_it_ended(finished: Finished) -> None:
    out = finished.first.out
    assert re.search(r"Study tiny: 9 trials \(9 new\) on cpu \(.*\); folder runs/tiny", out)
    assert "Trained once because they are equal in several arms: 3 of the trials." in out
    assert "9 finished in" in out
    told = re.search(r"All (\d+) Tweedie identities hold within their bounds\.", out)
    assert told
    # The same count in the report: a row without a number is one row, too.
    assert (
        f"All {told[1]} Tweedie identity checks hold"
        in (finished.folder / "report.html").read_text()
    )
    assert re.search(r"MLflow: [\d.]+ s of CPU, [\d.]+% of the study's", out)
    assert "Report: runs/tiny/report.html" in out
    assert "\x1b" not in out


@pytest.mark.slow
@pytest.mark.process
def test_every_trial_leaves_its_record(finished: Finished) -> None:
    found = trials(finished.folder)
    assert set(found) == {
        *((f"mixture/{arm}", "v", seed) for arm in ("published", "equal") for seed in (0, 1)),
        *(("mixture/published+equal", "edm", seed) for seed in (0, 1)),
        ("digits/published", "v", 0),
        ("digits/equal", "v", 0),
        ("digits/published+equal", "edm", 0),
    }
    for (case, variant, seed), at in found.items():
        names = {file.name for file in at.iterdir()} - {"rows.parquet", "lock"}
        of_images = {"denoised.safetensors", "neighbours.safetensors", "pictures.json"}
        assert names == {
            "trial.json", "result.json", "rows.jsonl", "levels.csv", "samples.safetensors",
            "schedule.json", "tweedie.json", "weights.safetensors",
            *(of_images if "digits" in case else ()),
        }  # fmt: skip
        described, ended = Folder.at(at).json("trial.json"), result(at)
        config = described["config"]
        assert described["id"] == at.name
        assert (config["parameterization"]["name"], config["seed"]) == (variant, seed)
        assert (ended["status"], ended["steps"], ended["diverged_at"]) == ("finished", 100, None)
        expected = {"energy", "loss_vs_wiener"} | ({"excess_nats"} if "mix" in case else set())
        assert set(ended["metrics"]) == expected
        assert all(math.isfinite(value) for value in ended["metrics"].values())
        assert set(ended["errors"]) == expected - {"loss_vs_wiener"}
        assert ended["errors"]["energy"]["error"] > 0
        assert 0 < ended["errors"]["energy"]["p"] <= 1
        assert [row["step"] for row in curve(at)] == [50, 100]
        assert ended["final_loss"] == curve(at)[-1]["loss"]
        levels = pd.read_csv(at / "levels.csv")
        assert levels["sigma"].tolist() == pytest.approx(np.geomspace(0.002, 80, 4), rel=1e-12)
        shape = (2,) if "mixture" in case else (1, 8, 8)
        samples = load_file(at / "samples.safetensors")["samples"]
        assert samples.shape == (16, *shape)
        assert samples.isfinite().all()
        assert all(row["ratio"] <= 1 for row in Folder.at(at).json("tweedie.json")["rows"])
        assert ended["parameters"] == sum(
            t.numel() for t in load_file(at / "weights.safetensors").values()
        )


@pytest.mark.slow
@pytest.mark.process
def test_the_study_leaves_its_record(finished: Finished) -> None:
    record = Folder.at(finished.folder).json("study.json")
    assert record["file"] == TINY
    report = {"baseline": "edm", "primary": "", "level": 0.95, "looks": "fixed"}
    verdicts = {"smallest_effect": 0.05, "bands": [0.1, 1.0, 10.0]}
    assert record["report"] == report | verdicts
    assert {trial["id"] for trial in record["trials"]} == {
        at.name for at in trials(finished.folder).values()
    }
    assert record["versions"]["torch"] == torch.__version__
    assert {"v", "edm", "diary"} <= {source["plugin"] for source in record["plugins"]}
    assert [failure["plugin"] for failure in record["failures"]] == ["broken_one"]
    assert record["equal_objectives"] == []
    page = (finished.folder / "report.html").read_text()
    assert "A tiny study" in page
    assert {file.name for file in (finished.folder / "data").iterdir()} == {
        "mixture.json", "mixture.safetensors", "digits.json", "digits.safetensors",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.process
def test_a_broken_plugin_of_a_folder_is_told_and_the_others_work(finished: Finished) -> None:
    line = "is broken and left out: RuntimeError: broken on purpose [/x]"
    assert finished.first.err.count(line) == 1
    assert "Traceback" not in finished.first.err
    page = (finished.folder / "report.html").read_text()
    assert "broken on purpose [/x]" in page


@pytest.mark.slow
@pytest.mark.process
def test_the_finished_hook_is_called_once_in_the_driver(finished: Finished) -> None:
    first, second = (finished.root / "extra" / "diary.txt").read_text().splitlines()
    pid, name, rows, *columns = first.split()
    assert (name, rows) == ("tiny", "12")  # trials and labels
    assert columns[:6] == ["id", "case", "arm", "variant", "seed", "status"]
    assert {"energy", "loss_vs_wiener", "excess_nats"} <= set(columns)
    assert int(pid) != os.getpid()
    assert int(second.split()[0]) == os.getpid()


# --- the same command again ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.process
def test_the_same_command_again_repeats_nothing(finished: Finished) -> None:
    assert finished.second.code == 0, finished.second.err
    assert "Study tiny: 9 trials (9 finished)" in finished.second.out
    assert re.search(r"^9 finished in \d+ s\.$", finished.second.out, flags=re.MULTILINE)
    untouched = [
        name for name in finished.before
        if name.startswith("trials/") and not name.endswith(("trial.json", "rows.parquet"))
    ]  # fmt: skip
    assert len(untouched) == 9 * 8
    for name in untouched:
        assert finished.after[name] == finished.before[name], name


@pytest.mark.slow
@pytest.mark.process
def test_the_same_command_again_gives_the_same_results(finished: Finished) -> None:
    assert set(finished.after) == set(finished.before)
    for name, (_, digest) in finished.before.items():
        # study.json holds how long things took.
        if name not in ("study.json", "report.html", "mlflow.json"):
            assert finished.after[name][1] == digest, name


@pytest.mark.process
@pytest.mark.slow
def test_the_report_is_rebuilt_without_training(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished.folder, folder)
    kept = {"report.html": (folder / "report.html").read_bytes()}
    for part in ("tables", "figures"):
        kept |= {f"{part}/{f.name}": f.read_bytes() for f in (folder / part).iterdir()}
        shutil.rmtree(folder / part)
    (folder / "report.html").unlink()
    before = files(folder)
    done = run_here(tmp_path, "report", "runs/tiny")
    assert (done.code, done.err) == (0, "")
    assert "Report: runs/tiny/report.html" in done.out
    after = files(folder)
    assert {name: (folder / name).read_bytes() for name in after if name not in before} == kept
    assert {name: after[name] for name in before} == before


@pytest.mark.process
@pytest.mark.slow
def test_a_report_is_written_where_out_says_and_named_in_a_document(
    finished: Finished, tmp_path: Path
) -> None:
    before = files(finished.folder)
    done = run_here(tmp_path, "report", finished.folder, "--out", "deep/there", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found) == {"folder", "page", "tables", "paper"}
    assert (found["folder"], found["page"]) == (str(finished.folder), "deep/there/report.html")
    page = (tmp_path / "deep" / "there" / "report.html").read_bytes()
    assert page == (finished.folder / "report.html").read_bytes()
    names = {file.name for file in (finished.folder / "tables").iterdir()}
    assert names > {"results.csv", "results.parquet"}
    assert set(found["tables"]) == {f"deep/there/tables/{name}" for name in names}
    assert all((tmp_path / name).is_file() for name in found["tables"])
    assert files(finished.folder) == before


@pytest.mark.process
@pytest.mark.slow
def test_one_trial_runs_again_alone_by_its_id(
    finished: Finished, tmp_path: Path, trials_only: None
) -> None:
    shutil.copytree(finished.folder, tmp_path / "runs" / "tiny")
    put(tmp_path, "tiny.toml", TINY)
    chosen = trials(tmp_path / "runs" / "tiny")["digits/equal", "v", 0]
    expected = weights(chosen)
    for file in ("weights.safetensors", "levels.csv", "rows.jsonl"):
        (chosen / file).unlink()
    others = {k: v for k, v in files(chosen.parent).items() if not k.startswith(chosen.name)}
    words = ("study", "tiny.toml", "--trial", chosen.name[:6], "--jobs", 0, "--no-mlflow")
    # One trial is a group of one, whatever the engine.
    assert run_here(tmp_path, *words).code == 0
    assert weights(chosen) == expected
    assert others == {
        k: v for k, v in files(chosen.parent).items() if not k.startswith(chosen.name)
    }


# --- bit for bit --------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.slow
def test_a_study_is_the_same_bit_for_bit_in_another_folder_and_executor(
    finished: Finished, again: Path
) -> None:
    one, other = trials(finished.folder), trials(again)
    assert {key: at.name for key, at in one.items()} == {key: at.name for key, at in other.items()}
    for key, at in one.items():
        assert weights(at) == weights(other[key]), key
        assert curve(at) == curve(other[key]), key
        for name in ("levels.csv", "samples.safetensors", "tweedie.json"):
            assert (at / name).read_bytes() == (other[key] / name).read_bytes(), (key, name)
        assert result(at)["metrics"] == result(other[key])["metrics"]


@pytest.mark.slow
def test_seeds_arms_and_parameterizations_differ(again: Path) -> None:
    found = [weights(at) for at in trials(again).values()]
    assert len(set(found)) == len(found)


@pytest.mark.slow
def test_other_parameterizations_change_no_trial_bit_for_bit(
    again: Path, tmp_path: Path, trials_only: None
) -> None:
    put(tmp_path, "tiny.toml", TINY)
    words = ["--set", 'grid.parameterization=["x0", "v"]', "--only", "mixture,published"]
    words += ["--seeds", 1, "--jobs", 0, "--no-mlflow", *ONE_BY_ONE]
    done = run_here(tmp_path, "study", "tiny.toml", *words)
    assert done.code == 0, done.err
    found, known = trials(tmp_path / "runs" / "tiny"), trials(again)
    assert len(found) == 2
    at, before = found["mixture/published", "v", 0], known["mixture/published", "v", 0]
    assert at.name == before.name
    assert weights(at) == weights(before)
    assert curve(at) == curve(before)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.process
def test_a_loaded_trial_gives_the_losses_of_its_table(finished: Finished) -> None:
    for case, arms in (("mixture", "published"), ("digits", "published+equal")):
        variant = "v" if arms == "published" else "edm"
        at = trials(finished.folder)[f"{case}/{arms}", variant, 0]
        denoiser = testbed.load(at)
        assert isinstance(denoiser, testbed.Denoiser)
        assert not denoiser.training
        config = Folder.at(at).json("trial.json")["config"]
        data = default_registry().dataset(case, **config["dataset"]["options"])()
        held = denoising.held_out_pairs(data, denoising.log_spaced(0.002, 80.0, 4), 32)
        table = pd.read_csv(at / "levels.csv")
        for i, row in table.iterrows():
            sigma = held.sigma[i].expand(32)
            x = held.x0 + held.sigma[i].float() * held.eps
            with torch.no_grad():
                error = denoiser(x, sigma).double() - held.x0
            assert float(error.square().mean()) == pytest.approx(row["loss"], rel=1e-6)
            if data.oracle is not None:
                best = data.oracle.denoise(x.double(), held.sigma[i])
                excess = float((error + held.x0 - best).square().mean())
                assert excess == pytest.approx(row["excess"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.process
def test_the_metrics_of_a_trial_follow_from_its_table(finished: Finished) -> None:
    for (case, _, _), at in trials(finished.folder).items():
        table, metrics = pd.read_csv(at / "levels.csv"), result(at)["metrics"]
        ratio = math.prod(table["loss"] / table["wiener"]) ** (1 / 4)
        assert metrics["loss_vs_wiener"] == pytest.approx(ratio, rel=1e-12)
        if "mixture" in case:
            rate = 2 * table["excess"] / table["sigma"] ** 2
            steps = np.diff(np.log(table["sigma"]))
            area = sum((rate[i] + rate[i + 1]) / 2 * steps[i] for i in range(3))
            assert metrics["excess_nats"] == pytest.approx(area, rel=1e-12)


@pytest.mark.slow
@pytest.mark.process
def test_the_tables_of_the_report_follow_from_the_trials(finished: Finished) -> None:
    table = pd.read_csv(finished.folder / "tables" / "results.csv")
    levels = pd.read_csv(finished.folder / "tables" / "levels.csv")
    values: dict[tuple[str, str, str, str], list[float]] = {}
    errors: dict[tuple[str, str, str, str], list[float]] = {}
    losses: dict[tuple[str, str, str, int], list[float]] = {}
    for (place, variant, _), at in sorted(trials(finished.folder).items()):
        case, arms = place.split("/")
        for arm in arms.split("+"):
            for metric, value in result(at)["metrics"].items():
                values.setdefault((case, arm, variant, metric), []).append(value)
            for metric, one in result(at)["errors"].items():
                errors.setdefault((case, arm, variant, metric), []).append(one["error"])
            for i, loss in enumerate(pd.read_csv(at / "levels.csv")["loss"]):
                losses.setdefault((case, arm, variant, i), []).append(loss)
    assert len(table) == len(values) == 2 * 2 * 3 + 2 * 2 * 2
    for row in table.itertuples():
        found = values[row.case, row.arm, row.variant, row.metric]
        assert (row.n, row.diverged, row.missing) == (len(found), 0, 0)
        known = errors.get((row.case, row.arm, row.variant, row.metric), [math.nan])
        assert row.sampling_error == pytest.approx(stats.tmean(np.square(known)) ** 0.5,
                                                   rel=1e-9, nan_ok=True)  # fmt: skip
        log = row.mean == "geometric"
        assert log == all(
            v > 0 for key, vs in values.items() if key[0] == row.case and key[3] == row.metric
            for v in vs
        )  # fmt: skip
        y = np.log(found) if log else np.array(found)
        back = math.exp if log else float
        assert row.value == pytest.approx(back(y.mean()), rel=1e-9)
        if len(found) == 1:
            assert math.isnan(row.low)
            continue
        half = stats.t.ppf(0.975, 1) * abs(y[0] - y[1]) / 2
        assert row.low == pytest.approx(back(y.mean() - half), rel=1e-9)
        assert row.high == pytest.approx(back(y.mean() + half), rel=1e-9)
    for (case, arm, variant), group in levels.groupby(["case", "arm", "variant"]):
        for i, value in enumerate(group.sort_values("sigma")["loss"]):
            found = losses[case, arm, variant, i]
            assert value == pytest.approx(math.prod(found) ** (1 / len(found)), rel=1e-9)


@pytest.mark.slow
@pytest.mark.process
def test_samples_are_drawn_as_numbers_or_a_picture(finished: Finished, tmp_path: Path) -> None:
    digits = trials(finished.folder)["digits/equal", "v", 0]
    moved = tmp_path / "runs" / "tiny" / "trials"
    shutil.copytree(digits, moved / digits.name)
    words = ("sample", digits.name[:8], "-n", 5)
    for name in ("one.npy", "two.npy", "deep/three.safetensors", "four.png"):
        done = run_here(tmp_path, *words, "--out", name)
        assert done.code == 0, done.err
        assert f"5 samples in {name}" in done.out
    one = np.load(tmp_path / "one.npy")
    assert one.shape == (5, 1, 8, 8)
    assert np.isfinite(one).all()
    assert np.array_equal(one, np.load(tmp_path / "two.npy"))
    third = load_file(tmp_path / "deep" / "three.safetensors")["samples"]
    assert np.array_equal(one, third.numpy())
    assert (tmp_path / "four.png").read_bytes().startswith(b"\x89PNG")
    run_here(tmp_path, *words, "--seed", 1, "--out", "other.npy")
    assert not np.array_equal(one, np.load(tmp_path / "other.npy"))
    plane = trials(finished.folder)["mixture/equal", "v", 0]
    done = run_here(tmp_path, "sample", plane, "-n", 7, "--out", "plane.svg")
    assert done.code == 0, done.err
    assert "<svg" in (tmp_path / "plane.svg").read_text()


# --- MLflow -------------------------------------------------------------------------------------


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
        assert list(dict.fromkeys(sections)) == ["evaluation", "training"]
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
    for paragraph in finding.replace("*", "").split("\n\n"):
        assert re.sub(r"\s+", "", paragraph) in page


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
report.write = lambda folder: folder / "report.html"
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


# --- what goes wrong ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Troubled:
    """A study with a calm, a diverging and three failing trials; then without those three."""

    folder: Path
    done: Done
    page: str
    runs: list[Run]
    without: Done
    page_without: str


@pytest.fixture(scope="session")
def troubled(
    tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]
) -> Troubled:
    root = tmp_path_factory.mktemp("troubled")
    plugin = put(root, "raising_loss.py", RAISING)
    text = ONE + '[[cases]]\nname = "raising"\nloss = "raising"\n'
    text += '[[cases]]\nname = "unbuilt"\nnetwork = "unbuilt"\n'
    text += '[[cases]]\nname = "unmeasured"\nevaluation = { metrics = ["unmeasured"] }\n'
    text += '[[cases]]\nname = "wild"\ntraining = { learning_rate = 1e30 }\n'
    put(root, "one.toml", text + '[[cases]]\nname = "calm"\n')
    address = new_store(root)
    words = ("study", "one.toml", "--jobs", 0, "-p", plugin)
    done = run_here(root, *words, MLFLOW_TRACKING_URI=address)
    folder = root / "runs" / "one"
    page, runs = (folder / "report.html").read_text(), stored(address, "one")
    without = run_here(root, *words, "--only", "wild,calm", "--no-mlflow")
    return Troubled(folder, done, page, runs, without, (folder / "report.html").read_text())


def status_of(folder: Path) -> dict[str, str]:
    return {place.strip("/"): result(at)["status"] for (place, _, _), at in trials(folder).items()}


@pytest.mark.slow
def test_a_trial_that_raises_fails_with_its_traceback_and_the_others_go_on(
    troubled: Troubled,
) -> None:
    assert troubled.done.code == 1
    failed = dict.fromkeys(("raising", "unbuilt", "unmeasured"), "failed")
    assert status_of(troubled.folder) == {**failed, "wild": "diverged", "calm": "finished"}
    at = trials(troubled.folder)["raising/", "v", 0]
    error = (at / "error.txt").read_text()
    assert error.startswith("Traceback")
    assert "raising_loss.py" in error
    said = "loss 'raising': function raised RuntimeError: raised on purpose [/x]"
    assert re.search(re.escape(said) + r" \(raising_loss.py, line \d+\)$", error.rstrip())
    assert re.fullmatch(re.escape(said) + r" \(raising_loss.py, line \d+\)", result(at)["error"])
    assert re.search(rf"failed .*raising.*: {re.escape(said)}", troubled.done.out)
    assert "1 diverged, 3 failed, 1 finished" in troubled.done.out
    assert "Traceback" not in troubled.done.err
    for error in ("raised on purpose [/x]", "not built", "not measured"):
        assert f"RuntimeError: {error}" in troubled.page


@pytest.mark.slow
def test_a_trial_that_diverges_is_a_result(troubled: Troubled) -> None:
    assert troubled.without.code == 0, troubled.without.err
    at = trials(troubled.folder)["wild/", "v", 0]
    ended = result(at)
    assert (ended["status"], ended["metrics"]) == ("diverged", {})
    assert 0 <= ended["diverged_at"] < 50
    assert all(t.isfinite().all() for t in load_file(at / "weights.safetensors").values())
    assert "diverged" in troubled.without.out
    assert "diverged in 1 of 1" in troubled.page_without
    table = pd.read_csv(troubled.folder / "tables" / "results.csv")
    wild = table[table["case"] == "wild"]
    assert len(wild)
    assert wild["diverged"].eq(1).all()
    assert wild["value"].isna().all()


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


@pytest.mark.slow
def test_a_failed_identity_has_its_own_exit_code_and_is_red(tmp_path: Path) -> None:
    put(tmp_path, "one.toml", ONE)
    plugin = put(tmp_path, "wrong_sign.py", WRONG)
    words = ("-p", plugin, "--set", 'grid.parameterization=["wrong"]', "--jobs", 0, "--no-mlflow")
    done = run_here(tmp_path, "study", "one.toml", *words, "--set", "training.steps=50")
    assert done.code == 3
    assert re.search(r"\d+ of \d+ Tweedie identities FAILED; worst: .* for wrong", done.out)
    page = (tmp_path / "runs" / "one" / "report.html").read_text()
    assert re.search(r'<td class="bad">FAILED at \d+ of \d+</td>', page)
    table = pd.read_csv(tmp_path / "runs" / "one" / "tables" / "tweedie.csv")
    assert not table.loc[table["law"].str.startswith("Tweedie"), "passed"].all()


# --- interrupted and killed ---------------------------------------------------------------------


@pytest.fixture
def uninterrupted(tmp_path: Path, trials_only: None) -> Callable[[Path], Path]:
    """Runs the study of a folder elsewhere, undisturbed, and returns its trial's folder."""

    def run(root: Path) -> Path:
        other = tmp_path / "undisturbed"
        other.mkdir()
        shutil.copy(root / "one.toml", other)
        plugin = put(other, "mortal_loss.py", MORTAL)
        words = ("--jobs", 0, "--no-mlflow", "-p", plugin)
        done = run_here(other, "study", "one.toml", *words)
        assert done.code == 0, done.err
        return the_trial(other / "runs" / "one")

    return run


def mortal(root: Path, steps: int = 200) -> Path:
    """A folder with a study of one trial, whose loss the files beside it command."""
    put(root, "mortal_loss.py", MORTAL)
    text = ONE.replace("steps = 200", f"steps = {steps}").replace("points = 4", "points = 100")
    put(root, "one.toml", text.replace("seeds = 1", 'seeds = 1\nloss = "mortal"'))
    return root


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `python -m testbed study one.toml` in a folder; nothing of it outlives the test."""
    running: list[subprocess.Popen[str]] = []

    def start(root: Path, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "testbed", "study", "one.toml", "-p", "mortal_loss.py"]
        process = subprocess.Popen(
            [*command, "--jobs", "1", *(() if more else ("--no-mlflow",))],
            cwd=root,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)


def rows_at_least(root: Path, n: int) -> Callable[[], bool]:
    def reached() -> bool:
        found = list((root / "runs" / "one" / "trials").glob("*/rows.jsonl"))
        return bool(found) and len(TrialFolder.at(found[0].parent).rows()) >= n

    return reached


@pytest.mark.process
@pytest.mark.slow
def test_an_interrupted_study_resumes_to_the_same_bits(
    tmp_path: Path,
    started: Callable[..., subprocess.Popen[str]],
    uninterrupted: Callable[[Path], Path],
    new_store: Callable[[Path], str],
) -> None:
    root = mortal(tmp_path / "here", steps=600)
    address = new_store(root)
    put(root, "slow", "")
    process = started(root, MLFLOW_TRACKING_URI=address)
    wait_for(rows_at_least(root, 2), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, err
    assert "Interrupted: 1 interrupted. What is finished is kept." in out
    assert "Next: testbed study one.toml -p mortal_loss.py resumes." in out
    assert "Traceback" not in err
    at = the_trial(root / "runs" / "one")
    assert (at / "checkpoint").is_file()
    assert not (at / "result.json").exists()
    assert 100 <= curve(at)[-1]["step"] < 600
    assert {run.status for run in stored(address, "one")} == {"KILLED"}
    made = TrialFolder.at(at).rows()

    (root / "slow").unlink()
    words = ("one.toml", "-p", "mortal_loss.py")
    assert re.search(r"\ninterrupted|interrupted  ", run_here(root, "plan", *words).out)
    done = run_here(root, "study", *words, "--jobs", 0, MLFLOW_TRACKING_URI=address)
    assert done.code == 0, done.err
    assert TrialFolder.at(at).rows()[: len(made)] == made
    assert not (at / "checkpoint").exists()
    undisturbed = uninterrupted(root)
    assert at.name == undisturbed.name
    assert weights(at) == weights(undisturbed)
    assert curve(at) == curve(undisturbed)
    assert (at / "levels.csv").read_bytes() == (undisturbed / "levels.csv").read_bytes()
    runs = stored(address, "one")
    assert len(runs) == 2
    assert {run.status for run in runs} == {"FINISHED"}
    (nested,) = of_kind(runs, "trial")
    assert nested.metrics["training/loss"] == [(row["step"], row["loss"]) for row in curve(at)]


@pytest.mark.process
@pytest.mark.slow
def test_a_second_interrupt_ends_a_study_at_once(
    tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    root = mortal(tmp_path)
    put(root, "wait", "")
    process = started(root)
    wait_for(rows_at_least(root, 2), process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)  # the trial waits: it cannot reach its checkpoint
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Stopped at once. The same command resumes from the checkpoints." in err
    (worker,) = (int(file.name.partition("_")[2]) for file in root.glob("calls_*"))
    gone = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < gone:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [0.0, 1000.0])
def test_a_killed_worker_is_resumed_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[Path], Path],
    new_store: Callable[[Path], str],
    checkpoint: float,
) -> None:
    """From its last checkpoint, or from the start where there is none yet."""
    monkeypatch.setattr(worker, "CHECKPOINT_SECONDS", worker.CHECKPOINT_SECONDS)
    monkeypatch.setattr(runner, "TRACK", 0.0)
    monkeypatch.setattr(runner, "POLL", 0.02)
    root = mortal(tmp_path / "here")
    put(root, "slow", "")
    put(root, "deaths", f"1 130 {checkpoint}")
    address = new_store(root)
    words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 1)
    done = run_here(root, *words, MLFLOW_TRACKING_URI=address)
    assert done.code == 0, done.out + done.err
    at = the_trial(root / "runs" / "one")
    assert (root / "deaths").read_text().startswith("0 ")
    first, second = sorted(int(file.read_text()) for file in root.glob("calls_*"))
    assert (first, second) == ((101, 131) if checkpoint == 0 else (131, 201))
    undisturbed = uninterrupted(root)
    assert weights(at) == weights(undisturbed)
    assert curve(at) == curve(undisturbed)
    runs = stored(address, "one")
    assert {run.status for run in runs} == {"FINISHED"}
    (nested,) = of_kind(runs, "trial")
    assert nested.metrics["training/loss"] == [(row["step"], row["loss"]) for row in curve(at)]


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_dies_every_time_fails_its_trial_after_three(
    tmp_path: Path, trials_only: None
) -> None:
    root = mortal(tmp_path)
    put(root, "deaths", "9 20 1000")
    text = (root / "one.toml").read_text().replace('loss = "mortal"', "")
    text += '[[cases]]\nname = "deadly"\nloss = "mortal"\n[[cases]]\nname = "calm"\n'
    put(root, "one.toml", text)
    words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 1, "--no-mlflow")
    done = run_here(root, *words)
    assert done.code == 1
    assert (root / "deaths").read_text().startswith("6 ")
    assert status_of(root / "runs" / "one") == {"deadly": "failed", "calm": "finished"}
    at = trials(root / "runs" / "one")["deadly/", "v", 0]
    assert "the worker died 3 times" in (at / "error.txt").read_text()


@pytest.mark.process
@pytest.mark.slow
def test_a_trial_in_the_hands_of_another_process_is_left_alone(tmp_path: Path) -> None:
    with Folder.at(tmp_path / "t").own():
        script = (
            "from pathlib import Path; from testbed.trial.folders import Folder\n"
            f"with Folder.at(Path({str(tmp_path / 't')!r})).own(): pass"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), capture_output=True, text=True
        )
    assert "is being worked on by another process" in done.stderr
    with Folder.at(tmp_path / "t").own():
        pass


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, trials_only: None, uninterrupted: Callable[[Path], Path]
) -> None:
    root = mortal(tmp_path / "here", steps=100)
    words = ("study", "one.toml", "-p", "mortal_loss.py", "--jobs", 0, "--no-mlflow")
    assert run_here(root, *words).code == 0
    at = the_trial(root / "runs" / "one")
    expected = weights(at)
    (at / "result.json").unlink()
    (at / "weights.safetensors").unlink()
    (at / "checkpoint").write_bytes(b"TESTBED1 cut short")
    put(at, "rows.jsonl", (at / "rows.jsonl").read_text()[:-9])  # torn by a crash
    assert run_here(root, *words).code == 0
    assert weights(at) == expected
    assert [row["step"] for row in curve(at)] == [50, 100]
    assert json.loads((at / "result.json").read_text())["status"] == "finished"
