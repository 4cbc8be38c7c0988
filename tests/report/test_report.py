"""The report says what the numbers say: planted studies, and mutants that must be caught."""

import html
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import run_here
from helpers.planted_studies import SIGMA, WINNER, Planted, _json, _row, noisy, plant, said, says
from helpers.studies import TINY
from scipy import stats

from testbed import report
from testbed.errors import InputError
from testbed.oracles import Gaussian
from testbed.report import (
    comparisons,
    drawing,
    files,
    finding,
    reading,
    results,
    summaries,
    words,
)
from testbed.report.results import Results
from testbed.study import reference_tables

CASE = "c & <e>"


DRAW: Planted = {
    ("c", "", "a"): noisy(0.99, sd=0.1, stream=1),
    ("c", "", "b"): noisy(1.0, sd=0.1, stream=2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built report of two arms with everything that can happen in it."""
    planted = {
        (CASE, "first", "a"): noisy(0.8, stream=1),
        (CASE, "first", "b"): noisy(1.0, stream=2),
        (CASE, "first", "d"): [*noisy(4.0, stream=3)[:4], "diverged"],
        (CASE, "second", "a"): [*noisy(0.9, stream=4)[:4], "failed"],
        (CASE, "second", "b"): noisy(1.0, stream=5),
    }
    folder = plant(
        tmp_path_factory.mktemp("whole"),
        planted,
        oracle=True,
        title="<script>alert(1)</script>",
        note="a < b & c",
        file="[study] # <u>",
        plugins=[
            {"plugin": "mine", "kind": "file", "origin": "/secret/mine.py", "version": "f" * 64}
        ],
        seconds=10.0,
    )
    report.write(folder)
    return folder


# --- the finding ------------------------------------------------------------------------------


def law_pairs_by_seed(folder: Path) -> None:
    """A ratio hidden under a factor of the seed is found, whatever the order of the trials."""
    text = said(plant(folder, WINNER, order=lambda trials: trials[::-1]))
    assert "a is better than b (−19.6 % [−20.5, −18.7])." in text


@pytest.mark.slow
def test_winner_is_found_however_the_trials_are_ordered(tmp_path: Path) -> None:
    law_pairs_by_seed(tmp_path)


@pytest.mark.slow
def test_pairing_law_catches_unpaired_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = Results.values

    def shuffled(self: Results, case: str, arm: str, variant: str, metric: str) -> Any:
        found = straight(self, case, arm, variant, metric)
        turned = np.roll(found.to_numpy(), sum(map(ord, variant)))
        return pd.Series(turned, index=found.index)

    monkeypatch.setattr(Results, "values", shuffled)
    with pytest.raises(AssertionError):
        law_pairs_by_seed(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_what_divides_the_loss_is_told_where_the_optimiser_feels_it(
    tmp_path: Path, optimizer: str
) -> None:
    found = reading.read(plant(tmp_path, WINNER))
    training = replace(next(iter(found.configs.values())).training, optimizer=optimizer)
    configs = {i: c.model_copy(update={"training": training}) for i, c in found.configs.items()}
    text = " ".join(finding._rates(replace(found, configs=configs)))
    assert ("the steps of sgd are proportional" in text) == (optimizer == "sgd")
    assert (
        f"optimizer {optimizer}"
        in dict(summaries.setup(replace(found, configs=configs)))["training"][0]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("width", "row"), [(0.0, "ema 0.999"), (0.1, "ema width 0.1")])
def test_the_average_that_acts_is_the_one_in_the_settings(
    tmp_path: Path, width: float, row: str
) -> None:
    found = reading.read(plant(tmp_path, WINNER))
    training = replace(next(iter(found.configs.values())).training, ema_width=width)
    configs = {i: c.model_copy(update={"training": training}) for i, c in found.configs.items()}
    (shown,) = dict(summaries.setup(replace(found, configs=configs)))["training"]
    assert [words for words in shown.split(", ") if words.startswith("ema")] == [row]


@pytest.mark.slow
def test_finding_states_the_numbers_of_scipy(tmp_path: Path) -> None:
    text = said(plant(tmp_path, WINNER))
    r = np.log(WINNER["c", "", "a"]) - np.log(WINNER["c", "", "b"])  # type: ignore[arg-type]
    test = stats.ttest_1samp(r, 0)
    low, high = np.exp(test.confidence_interval())
    effect = words.effect_text(float(np.exp(r.mean())), float(low), float(high))
    assert f"a is better than b ({effect}). d is worse than b (50 % [46, 54])." in text
    assert " a is lowest, and better than every other." in text
    assert "5 seeds" in text
    assert "All trained at one learning rate, 0.001" in text
    assert "cannot fall below p = 0.0625" in text


@pytest.mark.slow
def test_no_difference_is_not_a_winner(tmp_path: Path) -> None:
    text = said(plant(tmp_path, DRAW))
    assert "is undecided against" in text
    assert "is lowest, but not shown to be better than" in text
    assert "is better than" not in text


@pytest.mark.slow
def test_best_of_two_that_beat_the_baseline_is_no_winner(tmp_path: Path) -> None:
    planted = {**WINNER, ("c", "", "a2"): noisy(0.8, sd=0.02, stream=7)}
    text = said(plant(tmp_path, planted))
    assert "a is better than b (−19.6 % [−20.5, −18.7])." in text
    assert "a2 is better than b (−20 % [−22, −19])." in text
    assert "a2 is lowest: better than b and d, and equivalent to a." in text


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_show_nothing(tmp_path: Path, seeds: int) -> None:
    planted = {label: values[:seeds] for label, values in WINNER.items()}
    text = said(plant(tmp_path, planted))
    assert "a is untested against b, on too few seeds (" in text
    assert f"; only {seeds} seed" in text
    assert "is better than" not in text
    assert not re.search(r"\bnan\b", text)


def law_corrects(folder: Path) -> None:
    """Of ten variants one has p < 0.05 uncorrected, and is not called better."""
    rng = np.random.default_rng(5)
    planted = {("c", "", "b"): [1.0] * 6}
    for i in range(9):
        r = rng.normal(size=6)
        r = (r - r.mean()) / r.std(ddof=1)
        t = 3.0 if i == 0 else 0.1  # p = 0.03 with five degrees of freedom
        planted["c", "", f"v{i}"] = [float(v) for v in np.exp(0.1 * (r - t / math.sqrt(6)))]
    read = reading.read(plant(folder, planted))
    one = comparisons.make(read).to_baseline("c", "", "v0")
    assert one is not None
    assert one.comparison is not None
    assert one.comparison.p == pytest.approx(2 * stats.t.sf(3.0, 5), rel=1e-9)
    assert one.comparison.high < 1
    assert one.verdict == "undecided"


@pytest.mark.slow
def test_verdicts_are_corrected(tmp_path: Path) -> None:
    law_corrects(tmp_path)


@pytest.mark.slow
def test_correction_law_catches_raw_p_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        comparisons, "correct", lambda family: [replace(c, p_holm=c.p) for c in family]
    )
    with pytest.raises(AssertionError, match="better"):
        law_corrects(tmp_path)


@pytest.mark.slow
def test_divergence_stays_in_the_count(tmp_path: Path) -> None:
    planted = {**WINNER, ("c", "", "a"): [*WINNER["c", "", "a"][:4], "diverged"]}
    folder = plant(tmp_path, planted)
    text = said(folder)
    assert re.search(
        r"No verdict: a diverged in 1 of 5 seeds \(effect not judged: −\d+.* 4 other seeds\)", text
    )
    assert not re.search(r"\ba (is|differs)\b", text)
    table = comparisons.result_table(reading.read(folder))
    (row,) = table[(table["variant"] == "a") & (table["metric"] == "energy")].to_dict("records")
    assert (row["n"], row["diverged"], row["missing"]) == (5, 1, 0)
    assert math.isnan(row["value"])


@pytest.mark.slow
def test_failed_and_waiting_trials_are_missing_not_ignored(tmp_path: Path) -> None:
    lost = ["failed", "interrupted", "new"]
    folder = plant(tmp_path, {**WINNER, ("c", "", "a"): [*WINNER["c", "", "a"][:2], *lost]})
    text = said(folder)
    assert "Of 15 trials: 1 failed, 1 interrupted and 1 new" in text
    assert "a is untested against b, on too few seeds" in text
    assert [row[2] for row in summaries.failures(reading.read(folder))] == lost


@pytest.mark.slow
def test_ranks_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    """The best variant lost its easiest seed: over its own seeds alone it would look worse."""
    a, b = noisy(0.9, stream=1), noisy(1.0, stream=2)
    easy = int(np.argmin(a))
    lost = [*a[:easy], "failed", *a[easy + 1 :]]
    assert stats.gmean([v for v in lost if v != "failed"]) > stats.gmean(b)
    text = said(plant(tmp_path, {("c", "", "a"): lost, ("c", "", "b"): b}))
    assert "a is lowest, and better than b." in text


@pytest.mark.slow
def test_nothing_finished(tmp_path: Path) -> None:
    folder = plant(tmp_path, {("c", "", "a"): ["new"] * 3, ("c", "", "b"): ["diverged"] * 3})
    assert "No verdict on a: no comparison: no seed of both has ended." in said(folder)
    assert "diverged in 3 of 3" in report.write(folder).read_text()


@pytest.mark.slow
def test_twins_are_never_compared(tmp_path: Path) -> None:
    twins = [{"case": "c", "arm": "", "members": ["b", "a"], "why": "mirrors"}]
    folder = plant(tmp_path, WINNER, equal_objectives=twins)
    one = comparisons.make(reading.read(folder)).of("c", "", "a", "b")
    assert one is not None
    assert one.comparison is None
    text = said(folder)
    assert (
        "Note that b and a are equal objectives (mirrors), and their metrics differ by at most"
        in text
    )
    assert " b is lowest, and better than d." in text, "the only other one"
    assert "No verdict on a: equal objectives: not compared." in text
    assert comparisons.per_level(reading.read(folder), "c", "", "a", "b") == {}


@pytest.mark.slow
def test_the_folder_of_an_older_study_has_its_equal_objectives(tmp_path: Path) -> None:
    """In it study.json has them under the key `twins`."""
    groups = [{"case": "c", "arm": "", "members": ["b", "a"], "why": "mirrors"}]
    folder = plant(tmp_path, WINNER, equal_objectives=groups)
    record = json.loads((folder / "study.json").read_text())
    record["twins"] = record.pop("equal_objectives")
    (folder / "study.json").write_text(json.dumps(record))
    assert reading.read(folder).study["equal_objectives"] == groups


def in_both_arms(folder: Path, *variants: str) -> Path:
    """The folder with every trial of these variants (of all, without any) in the arms x and y."""
    record = json.loads((folder / "study.json").read_text())
    known = files.csv_table((folder / "coefficients.csv").read_bytes())
    for trial in record["trials"]:
        (label,) = trial["labels"]
        if not variants or label["variant"] in variants:
            trial["labels"] = [{**label, "arm": arm} for arm in ("x", "y")]
    _json(folder / "study.json", record)
    arms = [known.assign(arm=arm) for arm in ("x", "y")]
    pd.concat(arms).to_csv(folder / "coefficients.csv", index=False)
    return folder


@pytest.mark.slow
def test_equal_trials_of_two_arms_are_not_compared(tmp_path: Path) -> None:
    planted = {(c, "x" if a == "d" else arm, a): v for (c, arm, a), v in WINNER.items()}
    folder = in_both_arms(plant(tmp_path, planted), "a", "b")
    read = reading.read(folder)
    assert read.arms("c") == ["x", "y"]
    between = comparisons.make(read).between_arms("c")
    assert {one.verdict for one in between} == {"the same trials"}


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_arms_of_the_same_trials_are_one_arm(tmp_path: Path) -> None:
    """Nothing is said, drawn or tabled twice, nor an arm compared with itself."""
    twins = [{"case": "c", "arm": arm, "members": ["d", "b"], "why": "w"} for arm in ("x", "y")]
    folder = in_both_arms(plant(tmp_path, WINNER, equal_objectives=twins, oracle=True))
    read = reading.read(folder)
    assert read.arms("c") == ["x = y"]
    assert len(read.coefficients) == len(WINNER) * len(SIGMA)
    assert len(read.trials) == len(read.metrics["seed"]) / 4 == 15
    compared = comparisons.make(read)
    assert compared.between_arms("c") == []
    assert [twin["arm"] for twin in read.study["equal_objectives"]] == ["x = y"]
    assert says(read, compared).count("a is better than b (") == 1
    page = report.write(folder).read_text()
    assert "The same variant between arms" not in page
    assert "and 0 between arms" in page
    assert [row[0] for row in summaries.recipes(read)] == ["x = y"]


@pytest.mark.slow
def test_bands_name_where_the_best_is_better(tmp_path: Path) -> None:
    def shape(variant: str, level: int) -> float:
        return [0.5, 0.5, 1.6, 1.25][level] if variant == "a" else 1.0

    text = said(plant(tmp_path, WINNER, shape=shape))
    assert "better at very low noise (25 % of the levels; 0.402 times [0.398, 0.407])" in text
    assert "worse at high noise (25 % of the levels; 29 % [27, 30])" in text
    rows = comparisons.make(reading.read(tmp_path)).table()
    here = rows[(rows["variant"] == "a") & (rows["band"] != "") & (rows["kind"] == "baseline")]
    assert here["verdict"].tolist() == ["better", "better", "worse", "equivalent"]


WEIGHTINGS: Planted = {
    ("c", "", "b weighting=b"): noisy(1.0, stream=1),
    ("c", "", "b weighting=min_snr gamma=5"): noisy(1.5, stream=2),
    ("c", "", "b weighting=min_snr gamma=1"): noisy(1.6, stream=3),
}


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_parameterization_that_fits_several_variants_is_one_baseline_the_first(
    tmp_path: Path,
) -> None:
    folder = plant(tmp_path, WEIGHTINGS)
    read = reading.read(folder)
    compared = comparisons.make(read)
    first, *others = (variant for _, _, variant in WEIGHTINGS)
    assert comparisons.baseline_of(read, "c", "") == first
    with_first = compared.with_baseline("c", "")
    assert [(one.variant, one.against) for one in with_first] == [(o, first) for o in others]
    assert [one.verdict for one in with_first] == ["worse", "worse"]
    assert len(compared.pairs) == 1
    text = said(folder)
    assert f"The baseline b fits 3 variants ({', '.join([first, *others])}): the first" in text
    assert """--set 'report.baseline="b weighting=min_snr gamma=5"' takes another.""" in text
    for other in others:
        assert f"{other} is worse than {first} (" in text
    page = report.write(folder).read_text()
    assert page.count('<td class="quiet">baseline</td>') == 1
    assert page.count('<td class="bad">worse</td>') == 4, "on the first screen and in the results"


@pytest.mark.slow
def test_a_baseline_named_in_full_is_that_variant(tmp_path: Path) -> None:
    last = "b weighting=min_snr gamma=1"
    folder = plant(tmp_path, WEIGHTINGS, baseline=last)
    assert comparisons.baseline_of(reading.read(folder), "c", "") == last
    assert "The baseline b" not in said(folder)


@pytest.mark.slow
def test_a_grid_of_two_axes_has_one_baseline(tmp_path: Path) -> None:
    planted = {("c", "", f"{name} width={w}"): noisy(1.0) for name in "ab" for w in (1, 2)}
    read = reading.read(plant(tmp_path, planted))
    assert comparisons.baseline_of(read, "c", "") == "b width=1"
    made = comparisons.make(read)
    with_first = made.with_baseline("c", "")
    assert {one.against for one in with_first} == {"b width=1"}
    assert (len(with_first), len(made.pairs)) == (3, 3)


@pytest.mark.slow
def test_a_baseline_that_was_left_out_is_replaced_and_said(tmp_path: Path) -> None:
    text = said(plant(tmp_path, WINNER, baseline="edm"))
    assert "The baseline edm is not among them: a, the first, takes its place." in text
    assert "takes its place" not in said(plant(tmp_path / "other", WINNER))


@pytest.mark.slow
def test_baseline_defaults_to_the_first_variant(tmp_path: Path) -> None:
    read = reading.read(plant(tmp_path, WINNER, baseline=""))
    assert comparisons.baseline_of(read, "c", "") == "a"


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_tables_equal_scipy(whole: Path) -> None:
    table = pd.read_csv(whole / "tables" / "results.csv")
    value = {"first": noisy(1.0, stream=2), "second": noisy(1.0, stream=5)}
    for arm, values in value.items():
        for metric, scale in (("excess_nats", 1.0), ("energy", 0.1)):
            chosen = results.Rows(table)[CASE, arm, "b"].set_index("metric").loc[metric]
            y = np.log(values) + math.log(scale)
            half = stats.sem(y) * stats.t.ppf(0.975, len(y) - 1)
            expected = np.exp([y.mean(), y.mean() - half, y.mean() + half])
            np.testing.assert_allclose(chosen[["value", "low", "high"]].astype(float), expected)
    mmd = results.Rows(table)[CASE, "first", "b"].set_index("metric").loc["mmd"]
    assert mmd["mean"] == "arithmetic", "a metric that can be negative has no geometric mean"
    assert mmd["value"] == pytest.approx(np.mean(value["first"]) - 1)


@pytest.mark.slow
def test_comparisons_equal_scipy(whole: Path) -> None:
    table = pd.read_csv(whole / "tables" / "comparisons.csv")
    a, b = noisy(0.8, stream=1), noisy(1.0, stream=2)
    whole = table[(table["kind"] == "baseline") & table["band"].isna()]
    (row,) = whole[(whole["arm"] == "first") & (whole["variant"] == "a")].to_dict("records")
    assert row["p"] == pytest.approx(stats.ttest_rel(np.log(a), np.log(b)).pvalue)
    # One lost its test to a divergence, and stays in the family with its bands.
    family = table[table["kind"].isin(["baseline", "arm"]) & table["seeds"].notna()]
    assert len(family) == 3 * (1 + len(SIGMA)) + 2
    smaller = family[family["p"] < row["p"] * (1 - 1e-9)]
    assert row["p_holm"] == pytest.approx(min(1, row["p"] * (len(family) - len(smaller))))
    assert list(whole["seeds"]) == [5, 5, 4]


def test_levels_and_learning(whole: Path) -> None:
    levels = pd.read_csv(whole / "tables" / "levels.csv")
    here = results.Rows(levels)[CASE, "first", "a"].set_index("sigma")
    values = np.array(noisy(0.8, stream=1))
    assert here.loc[1.0, "loss"] == pytest.approx(0.2 * stats.gmean(values))
    learning = pd.read_csv(whole / "tables" / "learning.csv")
    row = results.Rows(learning)[CASE, "first", "a"].set_index("sigma").loc[10.0]
    rms = np.sqrt(0.4 * values / 2) / 10
    assert row["eps_rms"] == pytest.approx(stats.gmean(rms))
    assert row["fisher_nats"] == pytest.approx(2 * stats.gmean(rms) ** 2 / 100)
    diverged = results.Rows(levels)[CASE, "first", "d"]
    assert set(diverged["n"]) == {4}
    assert set(diverged["diverged"]) == {1}


def test_parquet_holds_the_same_tables(whole: Path) -> None:
    files = sorted((whole / "tables").glob("*.csv"))
    assert len(files) == 8
    for file in files:
        assert len(pd.read_csv(file)) == len(pd.read_parquet(file.with_suffix(".parquet")))


# --- the page ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_rebuilds_byte_for_byte_anywhere(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("report.html", "figures", "tables"))
    report.write(copy)
    written = [
        p.relative_to(whole) for p in whole.rglob("*") if p.suffix in (".html", ".svg", ".csv")
    ]
    assert len(written) > 12
    for file in written:
        assert (copy / file).read_bytes() == (whole / file).read_bytes(), file


def test_page_is_complete_and_self_contained(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    for heading in ("Results", "Figures", "Equal objectives", "Failures", "Provenance"):
        assert f">{heading}</h2>" in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert "@import" not in page
    assert "diverged in 1 of 5" in page
    assert "loss not finite at step 7" in page
    assert "<th>wall clock</th><td>10.0 s</td>" in page
    assert str(whole) not in page
    assert "/secret" not in page
    assert page.count("<svg") == len(list((whole / "figures").glob("*.svg"))) == 10
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    # An image stands under the digest of its pixels: equal ones may share an id.
    ids = [name for name in ids if "-image" not in name]
    assert len(ids) == len(set(ids))


def test_text_is_escaped(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a &lt; b &amp; c" in page
    assert "[study] # &lt;u&gt;" in page
    for raw in ("<i>broken", "<u>", "<e>"):
        assert raw not in page


ASKED = {
    "command": [
        "testbed",
        "study",
        "my file.toml",
        "--set",
        'grid.loss=["l1", "l2"]',
        "--only",
        "a",
    ],
    "set": ['grid.loss=["l1", "l2"]', "training.steps=1", "report.level=0.9", "a=1", "b=2"],
    "only": ["a", "c"],
    "seeds": 5,
    "plugins": [],
}
COMMAND = """testbed study 'my file.toml' --set 'grid.loss=["l1", "l2"]' --only a"""


def shown(page: str) -> str:
    """What a reader sees of a page's markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_report_of_a_part_says_so_and_how_to_run_it_again(tmp_path: Path) -> None:
    page = report.write(plant(tmp_path, WINNER, asked=ASKED, note="n", file="[study]")).read_text()
    part = "part of it: a, c, 5 seeds; changed: grid.loss, training.steps, report.level, and 2 more"
    assert f"<title>Planted ({part})</title>" in page
    assert f"<h1>Planted ({part})</h1>" in page
    assert f"(This is said of the whole study file; here: {part}.)" in page
    assert shown(page).count(COMMAND) == 2, "in the provenance and at the foot"
    assert f"{COMMAND} resumes what is missing" in shown(page)
    (flags, file) = re.findall(r"<pre>(.*?)</pre>", page, flags=re.DOTALL)
    assert shown(flags).splitlines() == [
        """--set 'grid.loss=["l1", "l2"]'""", "--set training.steps=1", "--set report.level=0.9",
        "--set a=1", "--set b=2", "--only a,c", "--seeds 5",
    ]  # fmt: skip
    assert file == "[study]"
    assert "The study file, as it is without that:" in page


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_report_of_a_whole_file_says_nothing_of_parts(tmp_path: Path) -> None:
    asked = {"command": ["testbed", "study", "f.toml"], "set": [], "only": [], "seeds": None}
    page = report.write(plant(tmp_path, WINNER, asked=asked, note="n", file="[study]")).read_text()
    assert "<h1>Planted</h1>" in page
    assert "whole study file" not in page
    assert "<p>The study file:</p>" in page
    assert page.count("testbed study f.toml") == 2


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_title_or_note_that_was_given_for_the_part_stands(tmp_path: Path) -> None:
    asked = {**ASKED, "set": ["study.title=Planted", "study.note=n"]}
    page = report.write(plant(tmp_path, WINNER, asked=asked, note="n")).read_text()
    assert "<h1>Planted</h1>" in page
    assert "<p>n</p>" in page


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_study_over_a_weighting_gives_its_ratio_and_a_command_that_finds_it_finished(
    tmp_path: Path,
) -> None:
    (tmp_path / "a study.toml").write_text(TINY)
    sets = ['grid.parameterization=["edm"]', 'grid.weighting=["edm","min_snr"]']
    flags = [word for text in sets for word in ("--set", text)]
    flags += ["--only", "mixture", "--seeds", "3"]
    done = run_here(tmp_path, "study", "a study.toml", *flags, "--no-mlflow", "--jobs", "0")
    assert done.code == 0, done.err
    assert "grid.weighting takes the place of the weighting of arm equal.\n" in done.out
    folder = tmp_path / "runs" / "tiny"
    table = pd.read_csv(folder / "tables" / "comparisons.csv")
    assert set(table["kind"]) == {"baseline"}
    (row,) = table[table["band"].isna()].to_dict("records")
    assert (row["kind"], row["variant"]) == ("baseline", "edm weighting=min_snr")
    assert (row["arm"], row["against"]) == ("published = equal", "edm weighting=edm")
    assert 0 < row["low"] < row["ratio"] < row["high"]
    verdicts = ("better", "worse", "equivalent", "undecided")
    assert row["verdict"] in verdicts or "learnt nothing beyond" in row["verdict"]
    page = shown((folder / "report.html").read_text())
    assert "A tiny study (part of it: mixture, 3 seeds; changed: grid.p" in page
    (line,) = re.findall(r"^testbed (study .*) resumes", page, flags=re.MULTILINE)
    words = shlex.split(line)[1:]
    assert words == ["a study.toml", *flags]
    assert "6 trials (6 finished)" in run_here(tmp_path, "plan", *words).out


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_failed_identity_is_red(tmp_path: Path) -> None:
    folder = plant(tmp_path, {("c", "", "b"): [1.0]})
    rows = [_row(0.5), _row(2.0, law="broken"), _row(math.nan, law="not a number")]
    _json(folder / "tweedie.json", {"rows": rows})
    assert "2 of 3 Tweedie identity checks FAILED: broken (b); not a number (b)" in said(folder)
    page = report.write(folder).read_text()
    assert '<td class="bad">broken</td>' in page
    assert '<td class="bad">not a number</td>' in page
    assert "<td>a law</td>" in page


@pytest.mark.slow
def test_skipped_identity_is_not_a_failure(whole: Path) -> None:
    assert "All 1 Tweedie identity checks, that the param" in said(whole)


def test_trial_rows_of_the_study_table_count_once(tmp_path: Path) -> None:
    folder = plant(tmp_path, {("c", "", "b"): [1.0]})
    _json(folder / "trials" / "t0000" / "tweedie.json", {"rows": [_row(0.5), _row(0.25)]})
    assert "All 2 Tweedie identity checks, that the param" in said(folder)


PIECES = (
    ("study.json",),
    ("coefficients.csv", "trials/*/levels.csv"),
    ("data", "trials/*/samples.safetensors"),
    ("tweedie.json", "trials/*/rows.jsonl", "trials/*/result.json"),
)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [*PIECES, sum(PIECES, ())], ids=str)
def test_missing_pieces_are_named_and_do_not_raise(tmp_path: Path, pieces: tuple[str, ...]) -> None:
    folder = plant(tmp_path, {label: values[:1] for label, values in DRAW.items()})
    for piece in pieces:
        for path in folder.glob(piece):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = report.write(folder).read_text()
    for piece in pieces:
        if piece.endswith((".json", ".csv")) and "*" not in piece:
            assert f"{piece} is not there" in page
    assert not re.search(r"\bnan\b", page.split(">Figures</h2>")[0])


@pytest.mark.slow
def test_damaged_pieces_do_not_raise(tmp_path: Path) -> None:
    folder = plant(tmp_path, {label: values[:1] for label, values in DRAW.items()})
    (folder / "coefficients.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "tweedie.json").write_text("{")
    (folder / "trials" / "t0000" / "rows.jsonl").write_text("{broken}\n")
    (folder / "trials" / "t0000" / "samples.safetensors").write_bytes(b"xx")
    assert report.write(folder).read_text().count("cannot be read") == 3


def test_empty_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no study"):
        report.write(tmp_path)


@pytest.mark.slow
@pytest.mark.process
def test_reads_without_plugins_training_or_mlflow() -> None:
    code = (
        "import sys, testbed.report\n"
        "bad = {'mlflow', 'ray', 'matplotlib.pyplot', 'testbed.registry'}\n"
        "bad |= {'testbed.training.trainer', 'testbed.trial.worker', 'testbed.ext'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- small parts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.00"), (0.02, "0.0200"), (123.4, "123"), (1234.5, "1234"), (math.nan, "–"),
     (1.25e-5, "1.25e-5"), (-9.64e-4, "-9.64e-4"), (2.5e7, "2.50e7"), (math.inf, "∞")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.slow
def test_a_single_panel_does_not_fill_the_page(tmp_path: Path, whole: Path) -> None:
    """The first figure of a study with one arm, and of one with two."""
    one = report.write(plant(tmp_path, WINNER)).read_text()
    two = (whole / "report.html").read_text()
    widths = [
        re.findall(r'<svg role="img" style="max-width: (\d+)px"', page) for page in (one, two)
    ]
    assert "690" in widths[0]
    assert "690" not in widths[1]


def test_labels_do_not_collide() -> None:
    moved = drawing.apart([0.5, 0.5, 0.51, 0.99, 0.99])
    assert moved == sorted(moved)
    assert min(np.diff(moved)) > 0.06
    assert 0 <= moved[0] <= moved[-1] <= 1


def test_a_variant_keeps_its_colour() -> None:
    names = [f"v{i}" for i in range(12)]
    looks = [str(drawing.ink(name, names)) for name in names]
    assert len(set(looks)) == len(names)


def test_the_entropy_is_the_oracle_s_with_its_monte_carlo_error(tmp_path: Path) -> None:
    """Gaussian data of variances 1 and 4: h = log(2 pi e) + (log(1 + s^2) + log(4 + s^2))/2."""
    covariance = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    oracle = Gaussian(torch.zeros(2, dtype=torch.float64), covariance)
    entropy = reference_tables._entropy(oracle, 0.01)
    h = math.log(2 * math.pi * math.e) + (math.log(1 + 1e-4) + math.log(4 + 1e-4)) / 2
    assert 0.005 < entropy["error"] < 0.02
    # -log p is half a chi squared of two dimensions: its error is sqrt(d/2/n).
    assert entropy["error"] == pytest.approx(1 / math.sqrt(8192), rel=0.1)
    assert abs(entropy["value"] - h) < 4 * entropy["error"]
    found = reading.read(plant(tmp_path, {("c", "", "b"): [1.0]}, oracle=True))
    assert dict(summaries.setup(found))["entropy"] == ["not known"]
    known = replace(found, facts={"c": {**found.facts["c"], "entropy": entropy}})
    assert dict(summaries.setup(known))["entropy"] == [
        f"{entropy['value']:.3g} nats at σ = 0.01, ± 0.011 (standard error)"
    ]
