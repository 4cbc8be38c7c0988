"""The first screen says what holds: its rules, each on a study whose numbers are planted."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.command_line import run_here
from helpers.paths import ROOT
from helpers.planted_studies import (
    DEFAULT_SIGMA_DATA,
    DRAWS,
    LEARNT,
    SIGMA,
    Planted,
    Value,
    noisy,
    plant,
    plant_default,
)

from testbed import report
from testbed.metrics import curves
from testbed.metrics.multiple_comparisons import correct
from testbed.report import (
    claims,
    comparisons,
    drawing,
    effects,
    finding,
    galleries,
    ranges,
    reading,
    result_tables,
    words,
)
from testbed.report.claims import ArmClaims, Claim, Effect, Finding
from testbed.report.comparisons import Versus
from testbed.report.page_tables import PageTable
from testbed.report.results import Results
from testbed.report.robustness import LeaveOneOut

WINNER: Planted = {
    ("c", "", "a"): noisy(0.8, stream=1),
    ("c", "", "b"): noisy(1.0, stream=2),
    ("c", "", "d"): noisy(1.5, stream=3),
}


def claims_of(read: Results) -> PageTable:
    (table,) = (one.claims for one in finding.make(read, comparisons.make(read)) if one.claims)
    return table


def lead(folder: Path) -> str:
    read = reading.read(folder)
    return " ".join(s for one in finding.make(read, comparisons.make(read)) for s in one.sentences)


def test_a_sentence_says_which_seed_it_hangs_on(tmp_path: Path) -> None:
    base = noisy(1.0, seeds=6, stream=1)
    tilted = [b * f for b, f in zip(base, (0.955, 0.95, 0.96, 0.925, 0.95, 0.955), strict=True)]
    text = lead(plant(tmp_path, {("c", "", "b"): base, ("c", "", "a"): tilted}))
    # -0.0525 on the log scale in the mean; without seed 3, -0.0471.
    assert "a is better than b (−5.1 % [−6.4, −3.8]; hangs on seed 3)." in text
    assert "only" not in text


WHOLE = (1.05**3 / 3) ** 0.25
"""0.788, the geometric mean of a third, once, and 1.05, three times."""


def very_low(variant: str, level: int) -> float:
    """Of a variant a with WHOLE: a third at the lowest of four levels, and 1.05 at the others."""
    return [1 / 3, 1.05, 1.05, 1.05][level] / WHOLE if variant == "a" else 1.0


def test_a_sentence_says_which_band_it_hangs_on(tmp_path: Path) -> None:
    means = {"b": 1.0, "a": WHOLE, "d": 1.0}
    planted = {
        ("c", "", name): noisy(mean, stream=stream)
        for stream, (name, mean) in enumerate(means.items())
    }
    text = lead(plant(tmp_path, planted, shape=very_low))
    assert re.search(r" a is better than b \(−21 % \[−2., −20\]; hangs on very low noise\)\.", text)
    assert "With b as the baseline, a is lowest (this hangs on very low noise), and " in text
    even = lead(plant(tmp_path / "even", planted))
    assert "is better" in even
    assert "noise)" not in even.partition("An effect is")[0].partition("By noise level")[0]


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


def test_an_average_over_levels_is_not_said_to_lie_anywhere(tmp_path: Path) -> None:
    assert "lies" not in lead(plant(tmp_path, WINNER, shape=very_low))


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


def test_a_study_that_did_not_record_its_draws_says_so(tmp_path: Path) -> None:
    folder = plant(tmp_path, WINNER)
    (folder / "drawn.csv").unlink()
    read = reading.read(folder)
    assert ranges.inside(read, ("c", "", "a"), np.array(SIGMA)).all()
    assert any("drawn.csv is not there" in line for line in read.missing)


def test_every_claim_has_its_own_levels(tmp_path: Path) -> None:
    """Those of most claims are said above the table; where all are over all levels, nothing is."""

    def said(name: str, planted: Planted, **trained: tuple[float, float]) -> list[Any]:
        read = reading.read(plant(tmp_path / name, planted, trained=trained))
        (case,) = (one for one in finding.make(read, comparisons.make(read)) if one.title)
        table = claims_of(read)
        rows = [[row[0].text, row[-1].text] for row in table.rows[1:]]
        above = "".join(case.opening).partition("Effects are over the levels both sides were ")[2]
        return [above, table.head[-1], *rows]

    planted = {**WINNER, ("c", "", "f"): noisy(2.0, stream=5)}
    most = "trained on: 3 of 4 levels, σ = 0.1 to 10"
    part, other = (0.1, 80.0), "0.1 to 10"
    assert said("one", planted, a=part) == [
        *("trained on: all, where no other σ is named.", "other σ"),
        *(["a", other], ["d", "–"], ["f", "–"]),
    ]
    assert said("two", planted, a=part, d=part) == [
        *(f"{most}, where no other σ is named.", "other σ"),
        *(["a", "–"], ["d", "–"], ["f", "all"]),
    ]
    assert said("three", planted, a=part, d=part, f=part)[:2] == [f"{most}.", "hangs on"]
    assert said("none", planted)[:2] == ["", "hangs on"]
    lost = "No verdict on d: both were trained on 1 of 4 levels, σ = 1 to 1 only."
    assert said("lost", WINNER, d=(0.5, 5.0))[1:] == ["hangs on", ["a", "–"], [lost, lost]]


@pytest.mark.usefixtures("blank_figures")
def test_what_several_learnt_nothing_beyond_is_said_once(tmp_path: Path) -> None:
    """Twice and three times the linear denoiser's loss; a diverged one has a reason of its own."""
    lost = {"e": LEARNT * 2, "f": LEARNT * 3}
    planted = {**WINNER, **{("c", "", name): noisy(v, stream=9) for name, v in lost.items()}}
    planted["c", "", "g"] = ["diverged", *noisy(1.0, stream=5)[1:]]
    folder = plant(tmp_path, planted)
    read = reading.read(folder)
    *_, learnt, diverged = claims_of(read).rows
    said = [
        "No verdict: e and f learnt nothing beyond the linear denoiser.",
        "No verdict on g: diverged: g in 1 of 5 seeds.",
    ]
    assert [cell.text for cell in (*learnt, *diverged)] == said
    page = report.write(folder).read_text()
    markdown = (folder / "tables" / "finding.md").read_text().split("\n\n")
    for text in said:
        assert page.count(f">{text}</td>") == 1
        assert text in lead(folder)
        assert text in markdown


def arm(*claims_: tuple[str, str], against: str = "d", hangs: str = "") -> ArmClaims:
    """Claims with these verdicts; one that is no verdict has no effect."""
    effect = Effect(1.0, 0.9, 1.1)
    made = [
        Claim(name, against, said, effect if said in claims.SAID else None, [*hangs])
        for name, said in claims_
    ]
    return ArmClaims("", "", made)


def test_verdicts_are_counted_over_cases_and_arms() -> None:
    first = arm(("a", "worse"), ("b", "worse"), ("c", "better"), ("e", words.LESS))
    second = arm(("a", "diverged"), ("b", "diverged"), ("c", "better"), ("e", "undecided"))
    found = [Finding("one", [], "c", [first]), Finding("two", [], "d", [second])]
    assert claims.counted(found) == [
        "Of 2 comparisons with d, a and b are worse in 1 and without a verdict in 1; c is better "
        "in all 2; e is undecided in 1 and apart by less than matters in 1."
    ]
    hanging = Finding("three", [], "d", [arm(("a", "worse"), hangs="s")])
    *_, last = claims.counted([*found, hanging])
    assert last == "What 1 of the 9 claims hang on is named below."
    assert claims.counted(found[:1]) == []
    assert claims.counted([*found, Finding("", [], "", [arm(("a", "worse"), against="c")])]) == []
    many = [arm(*((f"v{i}", "worse" if i > j else "better") for i in range(6))) for j in range(6)]
    assert claims.counted([Finding("", [], "", many)]) == []


def test_a_row_and_a_sentence_and_markdown_say_the_same(default: Results) -> None:
    """Each claim of the default study: its cells are in its sentence, and in the table of both."""
    found = finding.make(default, comparisons.make(default))
    text = claims.markdown(found)
    for one in found:
        table = one.claims
        if table is None:
            assert not one.arms
            continue
        rows = [row for row in table.rows if len(row) == len(table.head)]
        alone = [cell.text for row in table.rows if len(row) < len(table.head) for cell in row]
        assert alone == [words for arm in one.arms for words in (arm.best, *arm.unjudged)]
        assert all(words in text.split("\n\n") for words in alone)
        made = [claim for arm in one.arms for claim in arm.claims]
        lost = [claim for claim in made if claim.effect is None]
        for claim in lost:
            assert claim.verdict.startswith(f"{claim.variant} learnt nothing beyond the linear")
        for claim, row in zip((c for c in made if c not in lost), rows, strict=True):
            assert f"| {' | '.join(cell.text for cell in row)} |" in text
            name, effect, _, hangs, sigma = (cell.text for cell in row)
            sentence = claim.sentence
            assert sentence.startswith(f"{name} ")
            assert f"({effect}" in sentence
            assert (f"hangs on {hangs})." in sentence) == (hangs != "–")
            assert (f" of 16 levels, σ = {sigma}, that both" in sentence) == (sigma != "–")
            assert (sigma != "–") == (name in ("eps", "score") and claim in one.arms[0].claims)


def test_what_is_stored_is_what_was_made(default: Results, tmp_path: Path) -> None:
    """Of one seed an effect has no interval, and no JSON has a number that is none."""
    single = reading.read(plant(tmp_path / "one", {k: v[:1] for k, v in WINNER.items()}))
    for number, read in enumerate((default, single)):
        made = finding.make(read, comparisons.make(read))
        tables = tmp_path / str(number) / "tables"
        tables.mkdir(parents=True)
        claims.write(made, tables)
        assert claims.stored(tables.parent / "report.html") == made
        text = (tables / claims.FILE).read_text()
        json.loads(text, parse_constant=lambda name: pytest.fail(name))
    effect = made[1].arms[0].claims[0].effect
    assert effect is not None
    assert (effect.low, effect.high) == (None, None)
    assert claims.stored(tmp_path / "report.html") == []
    damaged = tmp_path / "tables" / claims.FILE
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_text('[{"title": 1}')
    assert claims.stored(tmp_path / "report.html") == []


@pytest.mark.parametrize(
    ("oracle", "primary", "said"),
    [
        (True, "", "c: excess risk in nats over the exact denoiser;"),
        (False, "", "c: loss / Wiener loss (no exact denoiser);"),
        (True, "loss_vs_wiener", "c: loss / Wiener loss (the exact denoiser is known);"),
        (False, "energy", "c: energy distance (no exact denoiser);"),
    ],
)
def test_a_title_says_whether_the_case_is_exact(
    tmp_path: Path, oracle: bool, primary: str, said: str
) -> None:
    settings = {"baseline": "b", "primary": primary, "level": 0.95}
    read = reading.read(plant(tmp_path, WINNER, oracle=oracle, report=settings))
    (case,) = (one for one in finding.make(read, comparisons.make(read)) if one.title)
    assert case.title == f"{said} lower is better; 5 seeds"


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
    whole = "Wiener is better than {} at very high noise (means over seeds, also without any one; "
    whole += "not tested)."
    assert limit == (whole.format("b") if agreeing else "In “y”, " + whole.format("d"))
    page = report.write(folder).read_text()
    assert page.count(limit) == 1
    assert page.index(limit) < page.index('class="best"') < page.index("<figure ")


@pytest.mark.usefixtures("blank_figures")
def test_the_page_says_below_its_title_what_to_do_next(tmp_path: Path) -> None:
    page = report.write(plant(tmp_path, WINNER)).read_text()
    _, below = page.split("</h1>\n")
    line, _, _ = below.partition("</p>")
    assert re.findall("<code>(.*?)</code>", line) == [
        "testbed report FOLDER",
        "tables/",
        "testbed compare FOLDER OTHER",
    ]
    assert "(trials.csv)" in line
    assert (tmp_path / "tables" / "trials.csv").is_file()
    for command in ("report", "compare"):
        assert run_here(tmp_path, command, "--help").code == 0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (1.5, "a is lowest, and better than b."),
        (1.01, "a is lowest, and equivalent to b."),
        (1.04, "a is lowest, and better than b by less than matters."),
        ([0.9, 1.2, 1.1, 0.95, 1.1], "a is lowest, and not shown to be better than b."),
        (["diverged", 1.0, 1.0, 1.0, 1.0], "no variant has a verdict."),
    ],
)
def test_how_the_best_stands_to_the_others(
    tmp_path: Path, other: float | list[Value], said: str
) -> None:
    """Ratios without noise but for the fourth: 1.04 is beyond no edge, and its TOST fails."""
    own = noisy(1.0, seeds=5, stream=1)
    wobble = np.array([0.99, 1.01, 1.0, 0.992, 1.008])
    factors = other if isinstance(other, list) else [float(other * w) for w in wobble]
    b = [f if isinstance(f, str) else v * f for v, f in zip(own, factors, strict=True)]
    text = lead(plant(tmp_path, {("c", "", "a"): own, ("c", "", "b"): b}, baseline="b"))
    assert f"With b as the baseline, {said}" in text


def test_the_best_is_better_than_those_with_a_verdict(tmp_path: Path) -> None:
    planted = {**WINNER, ("c", "", "e"): ["diverged", *noisy(0.1, stream=5)[1:]]}
    text = lead(plant(tmp_path, planted))
    assert "a is lowest, and better than every other with a verdict." in text
    assert "No verdict on e: diverged: e in 1 of 5 seeds." in text


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
    wanted = "D = x has less held-out loss at 2 of 4 levels, σ = 0.01 to 0.1."
    assert (wanted in lead(folder)) == said


@pytest.mark.parametrize(("seeds", "said"), [(3, "only 3 seeds"), (4, "4 seeds")])
def test_few_seeds_are_said(tmp_path: Path, seeds: int, said: str) -> None:
    planted = {label: values[:seeds] for label, values in WINNER.items()}
    read = reading.read(plant(tmp_path, planted))
    (case,) = (one for one in finding.make(read, comparisons.make(read)) if one.title)
    assert case.title.endswith(f"; lower is better; {said}")


def test_an_equivalence_is_said_with_its_size(tmp_path: Path) -> None:
    b = noisy(1.0, seeds=6, stream=1)
    a = [v * f for v, f in zip(b, (1.008, 1.012, 1.01, 1.009, 1.011, 1.01), strict=True)]
    text = lead(plant(tmp_path, {("c", "", "b"): b, ("c", "", "a"): a}))
    assert "a is equivalent to b (1.0 % [0.9, 1.1])." in text


def test_an_effect_that_is_shown_and_small_is_said_to_be_both(tmp_path: Path) -> None:
    """-4.3 % of six seeds, log ratios of sd 0.01: it differs, and its TOST has p = 0.1."""
    b = noisy(1.0, seeds=6, stream=1)
    logs = -0.044 + 0.01 * np.array([1.2, -1.2, 0.4, -0.4, 1.0, -1.0])
    a = [v * math.exp(log) for v, log in zip(b, logs, strict=True)]
    text = lead(plant(tmp_path, {("c", "", "b"): b, ("c", "", "a"): a}))
    assert "a differs from b by less than matters, and is not shown to be equivalent (" in text
    assert "a is lowest, and better than b by less than matters." in text
    assert "undecided" not in text.partition("By noise level")[0]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            '[arms]\npublished = {}\nequal = { loss = "l2", density = { name = "lognormal", mean = 1 } }',  # noqa: E501
            "Arms: “published” leaves every variant its own recipe; “equal” gives all variants "
            "loss l2 and density lognormal (mean 1).",
        ),
        (
            '[base]\nloss = "l1"\n[arms]\na = {}\nb = { training = { steps = 5 } }',
            "Arms: “a” has what all trials have; “b” gives all variants training steps 5.",
        ),
        ("[arms]\na = {}", ""),
        ("arms = 3", ""),
        ("no [ toml", ""),
    ],
)
def test_the_lead_says_what_the_arms_are(tmp_path: Path, file: str, said: str) -> None:
    folder = plant(tmp_path, WINNER)
    at = folder / "study.json"
    at.write_text(json.dumps({**json.loads(at.read_text()), "file": file}))
    text = lead(folder)
    assert said in text
    assert ("Arms:" in text) == bool(said)


def test_a_small_effect_says_which_seed_it_hangs_on(tmp_path: Path) -> None:
    """Without seed 0 the mean of the log ratios is -0.052: more than the smallest effect."""
    b = noisy(1.0, seeds=6, stream=1)
    logs = np.array([-0.03, -0.05, -0.052, -0.054, -0.05, -0.054])
    assert abs(logs.mean()) < 0.05 < abs(logs[1:].mean())
    a = [v * math.exp(log) for v, log in zip(b, logs, strict=True)]
    text = lead(plant(tmp_path, {("c", "", "b"): b, ("c", "", "a"): a}))
    assert re.search(r"a differs from b by less than matters.*; hangs on seed 0\)\.", text)


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


def test_the_lead_says_what_its_intervals_are(tmp_path: Path) -> None:
    text = lead(plant(tmp_path, WINNER))
    assert "paired by seed, with an uncorrected 95% interval over seeds" in text
    assert (
        "Verdicts are corrected for 10 tests (Holm); an effect of 5.1 % or −4.9 % matters" in text
    )
    assert "bands part at σ/σ_data = 0.1, 1 and 10." in text
    assert "All trained at one learning rate, 0.001, which need not suit every" in text


@pytest.mark.usefixtures("blank_figures")
def test_no_one_wins_against_what_learnt_nothing(tmp_path: Path) -> None:
    """The trials of cases/cross.toml: EDM at F = 0, where the linear denoiser is."""
    planted = {("", "", "v"): [0.03, 0.031, 0.029], ("", "", "edm"): [20.0, 20.0, 20.0]}
    folder = plant(tmp_path, planted, baseline="edm", oracle=True)
    for file in folder.glob("trials/*/levels.csv"):
        levels = pd.read_csv(file)
        ratio = levels["loss"] / levels["wiener"]
        levels.assign(error_rms=levels["target_rms"] * np.sqrt(ratio)).to_csv(file, index=False)
    text = lead(folder)
    assert "No verdict on v: edm learnt nothing beyond the linear denoiser (F = 0)." in text
    assert "With edm as the baseline, no variant has a verdict." in text
    for word in ("better", "worse", "lowest"):
        assert word not in text
    page = report.write(folder).read_text()
    assert "p < 0.001" not in page


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


def test_the_family_holds_the_bands_and_the_arms(tmp_path: Path) -> None:
    planted = {
        ("c", arm, name): noisy(1.0, stream=i)
        for i, (arm, name) in enumerate((arm, name) for arm in "xy" for name in "abd")
        if (arm, name) != ("y", "d")
    }
    read = reading.read(plant(tmp_path, planted))
    made = comparisons.make(read)
    assert made.tests == {"baseline": 3, "arm": 2, "pair": 1, "band": 12}
    tested = [one.comparison for one in made.judged if one.comparison is not None]
    assert [c.p_holm for c in tested] == pytest.approx(
        [c.p_holm for c in correct(tested)], nan_ok=True
    )


@pytest.mark.parametrize(
    ("ratio", "low", "high", "text"),
    [
        (1.0102, 1.008, 1.0124, "1.0 % [0.8, 1.2]"),
        (0.88, 0.85, 0.92, "−12 % [−15, −8]"),
        (39.5, 28.1, 55.5, "3800 % [2700, 5400]"),
        (1.501, 1.499, 1.503, "50.1 % [49.9, 50.3]"),
        (1.3771, 1.3695, 1.3848, "37.7 % [36.9, 38.5]"),
        (1.38, 1.369, 1.391, "38 % [37, 39]"),
        (1.0, 1.0, 1.0, "0 % [0, 0]"),
        (1.2, math.nan, math.nan, "20 %"),
    ],
)
def test_effects_are_per_cents_with_two_digits(
    ratio: float, low: float, high: float, text: str
) -> None:
    assert words.per_cent(ratio, low, high) == text


@pytest.mark.parametrize(
    ("low", "high"), [(0.3, 0.9), (1.2, 1.9), (0.5, 20.0), (1e-8, 1e8), (0.97, 1.02), (2.1, 2.2)]
)
def test_a_log_axis_has_two_labels_at_least(low: float, high: float) -> None:
    ticks = drawing.LogTicks().tick_values(low, high)
    assert 2 <= len(ticks) <= 9
    assert all(low <= tick <= high for tick in ticks)
    assert list(ticks) == sorted(set(ticks))


def test_samples_in_colour_are_pictures() -> None:
    colour = np.random.default_rng(0).uniform(size=(5, 3, 6, 4))
    seen = galleries.images_of(colour)
    assert seen is not None
    np.testing.assert_array_equal(seen[2, 1, 3], colour[2, :, 1, 3])
    assert galleries.images_of(colour[:, :2]) is None


@pytest.mark.usefixtures("blank_figures")
def test_a_study_without_arms_has_every_figure(tmp_path: Path) -> None:
    page = report.write(plant(tmp_path, WINNER)).read_text()
    for kind in (
        "forest",
        "ratio",
        "wiener",
        "sizes",
        "start",
        "training",
        "weights",
        "coefficients",
    ):
        assert f'<figure id="{kind}_c">' in page


def test_an_effect_over_other_levels_is_marked(tmp_path: Path) -> None:
    read = reading.read(plant(tmp_path, WINNER, trained={"a": (0.1, 80.0)}))
    made = comparisons.make(read)
    found = {
        one.variant: effects.over_other_levels(read, one) for one in made.with_baseline("c", "")
    }
    assert found == {"a": True, "d": False}
    with drawing.styled():
        picture = effects.forest(read, made, "c")
    assert picture is not None
    assert "Hollow: an effect that is not over all levels" in picture.caption
    assert "(a 3 of 4 levels, σ = 0.1 to 10)" in picture.caption
    whole = reading.read(plant(tmp_path / "whole", WINNER))
    with drawing.styled():
        picture = effects.forest(whole, comparisons.make(whole), "c")
    assert picture is not None
    assert "Hollow" not in picture.caption


def test_a_common_range_of_all_marks_no_effect(tmp_path: Path) -> None:
    """The baseline itself is trained on three levels, and every effect is over these."""
    read = reading.read(plant(tmp_path, WINNER, trained={"b": (0.1, 80.0)}))
    made = comparisons.make(read)
    assert not any(effects.over_other_levels(read, one) for one in made.with_baseline("c", ""))


def test_seeds_beyond_the_scale_are_arrows_at_its_edge() -> None:
    found = effects.beyond(np.array([0.1, 0.5, 1.0, 2.0, 7.0, 9.0]), (0.5, 2.0))
    assert {marker: at.tolist() for marker, at in found.items()} == {
        ".": [0.5, 1.0, 2.0],
        "<": [0.5],
        ">": [2.0, 2.0],
    }
    assert list(effects.beyond(np.array([1.0]), (0.5, 2.0))) == ["."]


@pytest.mark.parametrize("number", [2, 5, 6, 11])
def test_tables_of_results_are_narrow_however_many_metrics_there_are(
    tmp_path: Path, number: int
) -> None:
    """At most eight columns of the primary metric; the others have five variants side by side."""
    planted = {("c", arm, f"v{i}"): noisy(1.0, stream=i) for arm in "xy" for i in range(number)}
    folder = plant(tmp_path, planted, baseline="v0")
    read = reading.read(folder)
    made = comparisons.make(read)
    table = comparisons.result_table(read)
    first = result_tables.primary(read, made, table, "c")
    assert len(first.head) <= 8
    assert all(len(row) == len(first.head) for row in first.rows)
    others = list(result_tables.others(read, table, "c"))
    assert [arm for arm, _ in others] == ["x"] * -(-number // 5) + ["y"] * -(-number // 5)
    for _, other in others:
        assert len(other.head) <= 7
        assert [row[0].text for row in other.rows] == ["energy distance", "MMD²"]
    shown = [name for arm, other in others if arm == "x" for name in other.head[1:-1]]
    assert shown == [f"v{i}" for i in range(number)]


def test_the_scale_is_that_of_the_variants_in_the_running(tmp_path: Path) -> None:
    planted = {**WINNER, ("c", "", "far"): noisy(15.0, stream=8)}
    planted["c", "", "lost"] = ["diverged", *noisy(9.0, stream=9)[1:]]
    read = reading.read(plant(tmp_path, planted))
    made = comparisons.make(read)
    low, high = effects.window(read, effects.running(made, "c", ""))
    assert 0.7 < low < 0.8
    assert 1.5 < high < 1.7


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return reading.read(plant_default(tmp_path_factory.mktemp("default")))


def test_the_lead_of_the_default_study(default: Results) -> None:
    """What a careful reader finds in its tables, and no sentence on a spread."""
    found = finding.make(default, comparisons.make(default))
    digits, mixture = (" ".join(one.sentences) for one in found if one.title)
    assert "v is equivalent to edm (1.0 % [0.8, 1.2]; hangs on very high noise)." in digits
    assert "score learnt nothing beyond the linear denoiser (F = 0)" in digits
    assert "v is undecided against edm (0.7 % [−7.6, 9.6])." in mixture
    assert "over the 12 of 16 levels, σ = 0.017 to 39, that both were trained on" in mixture
    assert "(98 % of that of edm; −0.3 % [−8.5, 8.5])" in mixture
    assert "better at very high noise (< 1 % of that of edm; −85 % [−87, −82])" in mixture
    said_of_linear = "the linear denoiser fitted to the training split (Wiener) is better than edm"
    assert f"{said_of_linear} at very low noise".lower() in mixture.lower()
    assert "best linear one: D = x has less held-out loss at 3 of 16 levels, σ = 0.002" in digits
    assert "not the best linear one" not in mixture
    assert "edm is lowest (this hangs on seed 0, seed 5 and low noise), and not shown" in mixture
    assert "97 to 100 % of the excess risk in nats of edm, v, eps and x0 lies below 0.1" in mixture
    assert "spread" not in digits + mixture


def test_the_lead_is_a_paragraph_an_arm_and_the_rest_is_detail(default: Results) -> None:
    """The first screen has the verdicts; bands, samples and rare levels come after the figures."""
    _, *cases, of_all = finding.make(default, comparisons.make(default))
    for case, one in zip(default.cases, cases, strict=True):
        metric, linear, *best, levels = one.opening
        digits = case == "digits"
        assert metric.startswith(
            "Loss / Wiener loss: the" if digits else "Excess risk in nats: the"
        )
        known = "Wiener" if digits else "The linear denoiser fitted to the training split (Wiener)"
        assert linear.startswith(f"{known} is better than edm at {'' if digits else 'very '}")
        assert ["not the best linear one" in text for text in best] == [True] * digits
        assert levels.startswith("Effects are over the levels both sides were trained on: ")
        assert "Wiener is" not in " ".join(one.detail)
        assert "Wiener)" not in " ".join(one.detail)
        assert one.lead == [*one.opening, *(arm.text for arm in one.arms)]
        assert len(one.arms) == len(default.arms(case))
        assert one.detail
        for said in ("by noise level", "draws of a whole training", "of the samples"):
            assert said not in " ".join(one.lead).lower()
    assert any("Tweedie" in text for text in of_all.lead)
    assert any("Verdicts are corrected for" in text for text in of_all.lead)


def without_bands(results: Results, one: Versus) -> Iterator[float]:
    """The mean log ratio over the levels of all bands but one, from the tables by level."""
    assert one.levels is not None
    tables = []
    for case, arm, variant in one.labels:
        here = results.levels
        here = here[(here["case"] == case) & (here["arm"] == arm) & (here["variant"] == variant)]
        here = here[here["level"].isin(one.levels.levels)]
        column = here["excess"] / here["sigma"] ** 2 if case == "mixture" else here["loss"]
        tables.append(here.assign(y=column).pivot(index="seed", columns="level", values="y"))
    levels = tables[0].columns.to_numpy()
    t = np.log(levels)
    weight = np.array([np.trapezoid(np.eye(len(t))[i], t) for i in range(len(t))])
    scaled = levels / DEFAULT_SIGMA_DATA[one.case]
    for low, high in itertools.pairwise((0, 0.1, 1, 10, math.inf)):
        rest = ~((scaled >= low) & (scaled < high))
        a, b = (table.to_numpy()[:, rest] for table in tables)
        if one.case == "mixture":
            yield float(np.log((a @ weight[rest]) / (b @ weight[rest])).mean())
        else:
            yield float(np.log(a / b).mean())


def test_every_claim_of_the_default_study_holds_without_any_one(default: Results) -> None:
    """Without each seed and each band by hand: the same sign, the same side of 5 %.

    The effect of one variant depends on no other, but for the baseline.
    """
    made = comparisons.make(default)
    said = " ".join(text for one in finding.make(default, made) for text in one.sentences)
    for one in made.judged:
        if one.kind != "baseline" or one.band or one.verdict not in ("better", "worse"):
            continue
        a, b = (ranges.values(default, label, one.metric, one.levels) for label in one.labels)
        r = np.log(a) - np.log(b)
        rest = [r.drop(seed).mean() for seed in r.index]
        rest += [mean for mean in without_bands(default, one) if not math.isnan(mean)]
        alike = all(np.sign(m) == np.sign(r.mean()) and abs(m) >= 0.05 for m in rest)
        effect = words.per_cent(*(getattr(one.comparison, n) for n in ("ratio", "low", "high")))
        claim = said.split(f"{one.variant} is {one.verdict} than edm ({effect}")[1].partition(")")[
            0
        ]
        assert alike == ("hangs on" not in claim)


def test_a_statement_of_all_variants_hangs_on_those_that_make_it(default: Results) -> None:
    """The old lead: the spread shrinks from arm to arm. Without score it is another factor."""

    def spread(less: Results) -> float:
        sizes = []
        for arm in less.arms("mixture"):
            names = less.variants("mixture", arm)
            table = pd.DataFrame({v: less.values("mixture", arm, v, "excess_nats") for v in names})
            sizes.append(float(np.log(table.max(axis=1) / table.min(axis=1)).mean()))
        return round(sizes[1] - sizes[0], 1)

    assert "score" in LeaveOneOut(default, "mixture").hangs_on(spread)


@pytest.mark.usefixtures("trials_only")
@pytest.mark.slow
@pytest.mark.process
def test_edm_learns_nothing_on_the_cross(tmp_path: Path) -> None:
    """It stays at F = 0, which is the best linear denoiser of these data."""
    for name in ("cross.py", "cross.toml"):
        shutil.copy(ROOT / "tests" / "fixtures" / name, tmp_path)
    short = [
        "training.steps=150",
        "training.batch=64",
        "evaluation.samples=16",
        "evaluation.steps=4",
    ]
    flags = [word for setting in short for word in ("--set", setting)]
    words = ("cross.toml", "-p", "cross.py", "--no-mlflow", "--jobs", "0", *flags)
    done = run_here(tmp_path, "study", *words)
    assert done.code == 0, done.err
    text = lead(tmp_path / "runs" / "cross")
    assert "edm learnt nothing beyond the linear denoiser (F = 0)" in text
    for word in ("better", "worse", "lowest"):
        assert word not in text


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


def test_a_rule_that_was_set_after_the_first_result_is_told(tmp_path: Path) -> None:
    settings = {"baseline": "b", "primary": "", "level": 0.95}
    folder = plant(tmp_path, WINNER, first_report={**settings, "smallest_effect": 0.2})
    said = "report.smallest_effect was 0.2 until after the first result, and is 0.05."
    assert said in lead(folder)
    assert "until after" not in lead(plant(tmp_path / "same", WINNER, first_report=settings))
