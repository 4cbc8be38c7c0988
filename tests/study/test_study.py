"""A study from end to end, on a tiny budget: what it leaves, runs again, repeats bit for bit."""

import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import run_here
from helpers.ended_studies import ONE_BY_ONE, Finished, curve, files, put, result, trials, weights
from helpers.studies import TINY
from safetensors.torch import load_file
from scipy import stats

import testbed
from testbed.metrics import denoising
from testbed.registry import default_registry
from testbed.trial.folders import Folder


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
        f"All {told[1]} Tweedie identity checks, that "
        in (finished.folder / "report.html").read_text()
    )
    assert re.search(r"MLflow: [\d.]+ s of CPU, beside \d+ s of training. See it: ", out)
    assert "Report: runs/tiny/report.html" in out
    shown = re.search(r"Next: open the report, or testbed sample (\w+) ", out)
    trial = {at.name: key for key, at in trials(finished.folder).items()}
    assert shown
    assert trial[shown[1]][1] == "edm"  # the baseline, and not the first trial
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
            "schedule.json", "tweedie.json", "weights.safetensors", "system.jsonl",
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


# --- the same command again -----------------------------------------------------------------------


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
    assert len(untouched) == 9 * 8 + 3 * 3  # the trials of images keep what their pictures show
    made = ("identities.json", "report.json", "report.html", "tables/", "figures/")
    untouched += [name for name in finished.before if name.startswith(made)]
    for name in untouched:
        assert finished.after[name] == finished.before[name], name


@pytest.mark.slow
@pytest.mark.process
def test_the_same_command_again_gives_the_same_results(finished: Finished) -> None:
    assert set(finished.after) == set(finished.before)
    for name, (_, digest) in finished.before.items():
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
    assert set(found) == {"folder", "page", "tables", "paper", "claims"}
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


# --- bit for bit ----------------------------------------------------------------------------------


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


# --- numbers --------------------------------------------------------------------------------------


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
