"""The levels that a claim is over, the bands it hangs on, and the linear denoiser there."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.command_line import run_here
from helpers.planted_studies import (
    DRAWS,
    LEARNT,
    SIGMA,
    WINNER,
    Planted,
    claims_of,
    lead,
    noisy,
    plant,
)

from testbed import report
from testbed.metrics import curves
from testbed.report import (
    comparisons,
    finding,
    ranges,
    reading,
)

WHOLE = (1.05**3 / 3) ** 0.25
"""0.788, the geometric mean of a third, once, and 1.05, three times."""


def very_low(variant: str, level: int) -> float:
    """Of a variant a with WHOLE: a third at the lowest of four levels, and 1.05 at the others."""
    return [1 / 3, 1.05, 1.05, 1.05][level] / WHOLE if variant == "a" else 1.0


@pytest.mark.slow
def test_a_sentence_says_which_band_it_hangs_on(tmp_path: Path) -> None:
    means = {"b": 1.0, "a": WHOLE, "d": 1.0}
    planted = {
        ("c", "", name): noisy(mean, stream=stream)
        for stream, (name, mean) in enumerate(means.items())
    }
    text = lead(plant(tmp_path, planted, shape=very_low))
    assert re.search(r" a is better than b \(−21 % \[−2., −20\]; hangs on very low noise\)\.", text)
    unless = "(not without very low noise)"
    assert f" a is lowest {unless}, and better than d {unless} and b." in text
    even = lead(plant(tmp_path / "even", planted))
    assert "is better" in even
    assert "noise)" not in even.partition("An effect is")[0].partition("By noise level")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ((100.0, 1.0, 1.0, 1.0), "98 % of the excess risk in nats of b and a lies below 0.1"),
        ((1.0, 1.0, 20.0, 1.0), "75 % of the excess risk in nats of b and a lies between 1 and 10"),
        ((1.0, 1.0, 1.0, 1e4), "93 % of the excess risk in nats of b and a lies above 10"),
        ((1.0, 0.5, 1.0, 1.0), ""),
    ],
)
def test_the_lead_says_where_most_of_the_metric_lies(
    tmp_path: Path, factors: tuple[float, ...], said: str
) -> None:
    """Of excess/sigma^2 with weights 1/2, 1, 1, 1/2: 0.25, 0.4, 0.1 and 0.001 times the factors."""
    planted = {("c", "", "a"): noisy(1.1, stream=1), ("c", "", "b"): noisy(1.0, stream=2)}
    folder = plant(tmp_path, planted, oracle=True, shape=lambda _, level: factors[level])
    text = lead(folder)
    assert f"{said} σ_data." in text if said else " of b and a lies " not in text


@pytest.mark.slow
def test_an_average_over_levels_is_not_said_to_lie_anywhere(tmp_path: Path) -> None:
    assert "lies" not in lead(plant(tmp_path, WINNER, shape=very_low))


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(("draws", "counts"), [(9.9, False), (10.1, True), (0.0, False)])
def test_a_level_counts_from_ten_expected_draws_on(
    tmp_path: Path, draws: float, counts: bool
) -> None:
    shares = {"a": [0.4, 0.4, 0.2, draws / DRAWS]}
    planted = {("c", "", name): WINNER["c", "", name] for name in "ab"}
    folder = plant(tmp_path, planted, shares=shares)
    read, text = reading.read(folder), lead(folder)
    assert ranges.inside(read, ("c", "", "a"), np.array(SIGMA)).tolist() == [True] * 3 + [counts]
    assert ranges.inside(read, ("c", "", "b"), np.array(SIGMA)).all()
    said = "ewer than 10 draws of a whole training are expected around 1 of 4 levels (σ = 10) for a"
    assert (said in text) == (not counts)
    assert ("; over the 3 of 4 levels, σ = 0.01 to 1, that both were trained on" in text) != counts
    report.write(folder)
    levels = pd.read_csv(folder / "tables" / "levels.csv")
    assert levels["trained"].all() == counts


@pytest.mark.slow
def test_a_study_that_did_not_record_its_draws_says_so(tmp_path: Path) -> None:
    folder = plant(tmp_path, WINNER)
    (folder / "drawn.csv").unlink()
    read = reading.read(folder)
    assert ranges.inside(read, ("c", "", "a"), np.array(SIGMA)).all()
    assert any("drawn.csv is not there" in line for line in read.missing)


@pytest.mark.slow
def test_every_claim_has_its_own_levels(tmp_path: Path) -> None:
    """Those of most claims are said above the table; where all are over all levels, nothing is."""

    def said(name: str, planted: Planted, **trained: tuple[float, float]) -> list[Any]:
        read = reading.read(plant(tmp_path / name, planted, trained=trained))
        (case,) = (one for one in finding.make(read, comparisons.make(read)) if one.title)
        table = claims_of(read)
        rows = [[row[0].text, row[-1].text] for row in table.rows[1:]]
        above = "".join(case.opening).partition("Effects are against the baseline, b")[2]
        return [above, table.head[-1], *rows]

    planted = {**WINNER, ("c", "", "f"): noisy(2.0, stream=5)}
    most = ", over 3 of 4 levels, σ = 0.1 to 10, that both sides were trained on"
    part, other = (0.1, 80.0), "0.1–10"
    assert said("one", planted, a=part) == [
        *(", over all levels, where no other σ is named.", "other σ"),
        *(["a", other], ["d", "–"], ["f", "–"]),
    ]
    assert said("two", planted, a=part, d=part) == [
        *(f"{most}, where no other σ is named.", "other σ"),
        *(["a", "–"], ["d", "–"], ["f", "all"]),
    ]
    assert said("three", planted, a=part, d=part, f=part)[:2] == [f"{most}.", "hangs on"]
    assert said("none", planted)[:2] == [".", "hangs on"]
    lost = "No verdict on d: both were trained on 1 of 4 levels, σ = 1 to 1 only (effect not "
    lost += "judged: 50 % [46, 54] at σ = 1 to 1)."
    assert said("lost", WINNER, d=(0.5, 5.0))[1:] == ["hangs on", ["a", "–"], [lost, lost]]


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("agreeing", [True, False])
def test_what_the_linear_denoiser_limits_stands_before_the_claims(
    tmp_path: Path, agreeing: bool
) -> None:
    """It is better than the planted losses at the highest level only, of one arm or of both."""

    def shape(variant: str, level: int) -> float:
        return 2 * LEARNT if level == 3 and (agreeing or variant != "b") else 1.0

    names = {"x": "b", "y": "b" if agreeing else "d"}
    planted = {("c", arm, name): noisy(1.0, stream=1) for arm, name in names.items()}
    planted |= {("c", arm, "a"): noisy(0.8, stream=2) for arm in names}
    folder = plant(tmp_path, planted, shape=shape)
    read = reading.read(folder)
    (case,) = (one for one in finding.make(read, comparisons.make(read)) if one.title)
    (limit,) = [text for text in case.opening if "Wiener is better" in text]
    whole = "Wiener is better than {} at very high noise (not tested; also without any one "
    whole += "seed)."
    assert limit == (whole.format("b") if agreeing else "In “y”, " + whole.format("d"))
    page = report.write(folder).read_text()
    assert page.count(limit) == 1
    assert page.index(limit) < page.index('class="best"') < page.index("<figure ")


@pytest.mark.slow
@pytest.mark.parametrize(("above", "said"), [(1.02, True), (0.98, False)])
def test_the_lead_says_where_the_fitted_linear_denoiser_loses_to_the_input(
    tmp_path: Path, above: float, said: bool
) -> None:
    """Of 1024 draws in 2 dimensions, 3 standard errors of D = x are 3 sqrt(2/2048) = 9.4 %."""
    folder = plant(tmp_path, WINNER)
    limit = 1 + 3 * math.sqrt(2 / 2048)
    for file in folder.glob("trials/*/levels.csv"):
        levels = pd.read_csv(file)
        levels["wiener"] = [*(limit * above * levels["sigma"][:2] ** 2), 0.2, 0.4]
        levels.to_csv(file, index=False)
    wanted = "the noisy input itself has less held-out loss at 2 of 4 levels, σ = 0.01 to 0.1."
    assert (wanted in lead(folder)) == said


@pytest.mark.parametrize(("last", "better"), [(1.2, True), (4.0, False)])
def test_the_linear_denoiser_is_better_without_any_one_seed(
    tmp_path: Path, last: float, better: bool
) -> None:
    """Loss over Wiener loss of three seeds: the mean is above 1, with 4.0 by one seed alone."""
    first = 1.2 if better else 0.9
    b = [LEARNT * ratio for ratio in (first, first, last)]
    losses = {("c", "", "b"): b, ("c", "", "a"): [2.0, 2.1, 2.2]}
    read = reading.read(plant(tmp_path, losses, baseline="b"))
    levels = ranges.common(read, ("c", "", "b"), ("c", "", "a"))
    assert levels is not None
    found = ranges.linear_is_better(read, ("c", "", "b"), "loss_vs_wiener", levels)
    assert found == better


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_verdict_is_taken_over_the_levels_that_both_were_trained_on(tmp_path: Path) -> None:
    def shape(variant: str, level: int) -> float:
        return 100.0 if variant == "a" and level == 0 else 1.0

    pair = {name: WINNER["c", "", name] for name in "ab"}
    planted = {("c", "", name): values for name, values in pair.items()}
    folder = plant(tmp_path, planted, shape=shape, trained={"a": (0.1, 80.0)})
    said = "a is better than b (−19.6 % [−20.5, −18.7]; over the 3 of 4 levels, σ = 0.1 to 10, that"
    assert said in lead(folder)
    page = report.write(folder).read_text()
    assert "(common: 3 of 4 levels, σ = 0.1 to 10)" in page
    levels = pd.read_csv(folder / "tables" / "levels.csv")
    untrained = levels[~levels["trained"]]
    assert untrained[["variant", "sigma"]].to_numpy().tolist() == [["a", 0.01]]


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_less_than_half_of_the_levels_gives_no_verdict(tmp_path: Path) -> None:
    trained = {"a": (0.5, 5.0)}
    planted = {("c", "", name): WINNER["c", "", name] for name in "ab"}
    text = lead(plant(tmp_path, planted, trained=trained))
    assert "No verdict on a: both were trained on 1 of 4 levels" in text
    apart = {"a": (0.5, 5.0), "b": (5.0, 80.0)}
    folder = plant(tmp_path / "apart", planted, trained=apart)
    assert "No verdict on a: both were trained on 0 of 4 levels." in lead(folder)
    assert "0 of 4 levels" in report.write(folder).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("trials_only")
def test_training_ranges_are_recorded(tmp_path: Path) -> None:
    """The recipe `ve` draws from 0.04 to 200 times sigma_data, that of EDM from 0.002 to 80."""
    (tmp_path / "one.toml").write_text(
        """
[study]
name = "one"
[base]
dataset = { name = "mixture", dim = 2 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 2, batch = 8, points = 1 }
evaluation = { levels = 8, draws = 32, samples = 8, steps = 2, metrics = [] }
seeds = 1
[grid]
parameterization = ["score", "edm"]
"""
    )
    done = run_here(tmp_path, "study", "one.toml", "--no-mlflow", "--jobs", "0")
    assert done.code == 0, done.err
    read = reading.read(tmp_path / "runs" / "one")
    sigma_data = next(iter(read.configs.values())).sigma_data
    found = read.trained(("", "", "score"))
    assert found == pytest.approx((0.04 * sigma_data, 200 * sigma_data))
    assert read.trained(("", "", "edm")) == pytest.approx((0.002, 80.0))
    labels = ("", "", "score"), ("", "", "edm")
    levels = ranges.common(read, *labels)
    assert levels is not None
    assert levels.text == "0 of 8 levels"  # 16 draws of a training, 10 around none of them
    read = replace(read, drawn=read.drawn.assign(share=1.0))
    levels = ranges.common(read, *labels)
    assert levels is not None
    assert levels.text == "6 of 8 levels, σ = 0.041 to 80"
    # Over all levels the parts are the metric that the trial stored.
    for label in labels:
        found = ranges.parts(read, label, "excess_nats", levels.untrained_too)
        assert found is not None
        stored = read.values(*label, "excess_nats").to_numpy()
        assert curves.total("excess_nats", found.parts) == pytest.approx(stored, rel=1e-12)


@pytest.mark.slow
def test_the_lowest_is_not_below_another_over_the_levels_of_the_two(tmp_path: Path) -> None:
    """Against b: a 0.8 over three levels; d 0.9 over four, of which it is 0.7 over a's three."""
    at_others = [0.9**3 / 0.7**3, *[0.7 / 0.9] * 3]
    planted = {
        ("c", "", name): noisy(mean, stream=stream)
        for stream, (name, mean) in enumerate({"b": 1.0, "a": 0.8, "d": 0.9}.items())
    }
    folder = plant(
        tmp_path,
        planted,
        shape=lambda variant, level: at_others[level] if variant == "d" else 1.0,
        trained={"a": (0.1, 80.0)},
    )
    unless = "(not without very low noise)"
    said = f" a is lowest {unless}: better than b, but not below d over the levels of the two."
    assert said in lead(folder)
