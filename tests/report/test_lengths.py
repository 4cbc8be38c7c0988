"""The length of training and of averages: planted curves, and what the report says of them."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.planted_studies import Planted, noisy, plant, plant_points

import testbed
from testbed import report
from testbed.metrics.comparison import compare
from testbed.metrics.crossings import crossings
from testbed.metrics.multiple_comparisons import holm
from testbed.report import comparisons, drawing, length_section, lengths, reading
from testbed.report.lengths import BEST, OWN, at_best

SEEDS = 5
STEPS = (2, 3, 5, 9)
"""The last is the end of training."""
Points = Mapping[str, Mapping[str, Sequence[float | None]]]
CROSSING = tuple((step / 4) ** -0.7 for step in STEPS)
"""What a is of the baseline b after each number of steps: a line in its logarithm, 1 at 4."""


def curves(ratios: Sequence[float] = CROSSING, seeds: int = SEEDS) -> tuple[Planted, Points]:
    """A study of a and the baseline b, with a third variant c that is never near."""
    values = {
        "a": [noisy(ratio, seeds, stream=10 + i) for i, ratio in enumerate(ratios)],
        "b": [noisy(1.0, seeds, stream=20 + i) for i in range(4)],
        "c": [noisy(3.0, seeds, stream=30 + i) for i in range(4)],
    }
    planted = {("", "", name): own[-1] for name, own in values.items()}
    names = [str(step) for step in STEPS[:-1]]
    return planted, {name: dict(zip(names, own, strict=False)) for name, own in values.items()}


def study(folder: Path, planted: Planted, points: Points, **training: object) -> Path:
    plant(folder, planted)
    plant_points(folder, planted, points, **training)
    return folder


def sentences(folder: Path) -> list[str]:
    read = reading.read(folder)
    found = lengths.make(read, comparisons.make(read))
    return [text for part in length_section.parts(read, found, "") for text in part.sentences]


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("crossing"), *curves())


# --- curves -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_crossings_are_those_of_the_seeds(crossing: Path) -> None:
    """From the planted numbers alone, end included; c never crosses."""
    planted, points = curves()
    a, b = (np.array([*points[name].values(), planted["", "", name]]).T for name in ("a", "b"))
    (expected,) = crossings(STEPS, a, b).crossings
    table = testbed.open(crossing).crossings.set_index("variant")
    row = table.loc["a"]
    assert row["verdict"] == "cross"
    assert (row["against"], row["ahead"], row["curve"]) == ("b", "a", "points")
    for name in ("step", "low", "high", "after", "before"):
        assert row[name] == getattr(expected, name)
    assert expected.low <= 4 <= expected.high
    other = table.loc["c"]
    assert (other["verdict"], other["ahead"], other["seeds"]) == ("do not cross", "b", SEEDS)
    assert (other["first"], other["last"], other["measured"]) == (2, 9, 4)


@pytest.mark.slow
def test_the_sentences_say_where_and_who_is_ahead(crossing: Path) -> None:
    said, other = sentences(crossing)
    where = r"at \d\.\d\d \[\d\.\d\d, \d\.\d\d\] steps \(measured between 3 and 5 steps\)"
    assert re.fullmatch(rf"a and b cross {where}: a is ahead afterwards\.", said)
    assert other == "c and b do not cross between 2 and 9 steps: b is ahead."


@pytest.mark.slow
def test_the_page_has_the_section_with_a_figure(crossing: Path, tmp_path: Path) -> None:
    page = report.write(crossing, out=tmp_path).read_text()
    section = page[page.index('<h2 id="training-length-and-averages"') :]
    section = section[: section.index('<h2 id="tweedie')]
    assert "a and b cross at " in section
    assert 'id="points_data"' in section
    assert "At points of training." in section
    assert not re.search("budgets", section)
    assert (tmp_path / "tables" / "crossings.csv").is_file()
    assert (tmp_path / "figures" / "points_data.svg").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_without_lengths_there_is_no_section(tmp_path: Path) -> None:
    planted, _ = curves()
    folder = plant(tmp_path / "study", planted)
    page = report.write(folder).read_text()
    assert "Training length" not in page
    tables = {file.stem for file in (folder / "tables").glob("*.csv")}
    assert not tables & {"stages", "crossings", "averages"}
    opened = testbed.open(folder)
    for table in (opened.stages, opened.crossings, opened.averages):
        assert len(table) == 0
        assert "variant" in table


@pytest.mark.slow
def test_the_stages_have_every_number(crossing: Path) -> None:
    planted, points = curves()
    table = testbed.open(crossing).stages
    rows = table[(table["metric"] == "loss_vs_wiener") & (table["kind"] == "points")]
    for name, own in points.items():
        for step, values in {**own, "9": planted["", "", name]}.items():
            found = rows[(rows["variant"] == name) & (rows["at"] == int(step))]
            assert found.sort_values("seed")["value"].tolist() == values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "within"), [("constant", False), ("inverse_sqrt", False), ("cosine", True)]
)
def test_points_under_a_rate_of_the_length_are_no_budgets(
    tmp_path: Path, schedule: str, within: bool
) -> None:
    more = {"hold": 1} if schedule == "inverse_sqrt" else {}
    folder = study(tmp_path, *curves(), schedule=schedule, **more)
    read = reading.read(folder)
    (part,) = length_section.parts(read, lengths.make(read, comparisons.make(read)), "")
    assert (part.title == "Within one training, not budgets") == within
    assert ("a stage of one training" in part.text) == within


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "verdict"), [(2, "too few seeds"), (3, "cross")])
def test_three_seeds_are_needed(tmp_path: Path, seeds: int, verdict: str) -> None:
    folder = study(tmp_path, *curves(seeds=seeds))
    (first, _) = testbed.open(folder).crossings["verdict"]
    assert first == verdict
    said, _ = sentences(folder)
    assert ("undecided" in said) == (seeds == 2)


@pytest.mark.slow
def test_a_seed_that_diverged_leaves_the_crossing_undecided(tmp_path: Path) -> None:
    planted, points = curves()
    lost = {**planted, ("", "", "a"): ["diverged", *planted["", "", "a"][1:]]}
    folder = study(tmp_path, lost, points)
    said, other = sentences(folder)
    assert said == "a and b: a diverged in 1 of 5 seeds."
    assert "do not cross" in other
    table = testbed.open(folder).stages
    mine = table[(table["variant"] == "a") & (table["seed"] == 0)]
    assert len(mine) == 4 * 3
    assert np.isinf(mine["value"]).all()


@pytest.mark.slow
def test_a_seed_that_diverged_counts_as_measured_at_the_points_before(tmp_path: Path) -> None:
    planted, points = curves()
    folder = study(tmp_path, planted, points)
    (lost,) = (at for at in folder.glob("trials/*") if at.name == "t0000")
    (lost / "result.json").write_text('{"status": "diverged", "diverged_at": 4, "metrics": {}}')
    shutil.rmtree(lost / "points" / "5")
    table = testbed.open(folder).stages
    mine = table[(table["variant"] == "a") & (table["seed"] == 0)]
    primary = mine[mine["metric"] == "loss_vs_wiener"].set_index("at")["value"]
    assert dict(primary) == {2: points["a"]["2"][0], 3: points["a"]["3"][0], 5: inf, 9: inf}
    said, _ = sentences(folder)
    assert said == "a and b: a diverged in 1 of 5 seeds."


@pytest.mark.slow
def test_a_missing_point_takes_its_step_out(tmp_path: Path) -> None:
    """Of the pair that it belongs to, and of no other."""
    planted, points = curves()
    holed = {**points["a"], "3": [*points["a"]["3"][:-1], None]}
    folder = study(tmp_path, planted, {**points, "a": holed})
    table = testbed.open(folder).crossings.set_index("variant")
    assert table["measured"].tolist() == [3, 4]
    assert (table.loc["a", "low"], table.loc["a", "high"]) == (2, 5)  # too few for a cubic
    assert sentences(folder)[0] == "a and b cross between 2 and 5 steps: a is ahead afterwards."


@pytest.mark.slow
def test_a_case_without_points_has_no_part(tmp_path: Path) -> None:
    planted, points = curves()
    one, two = (
        {(case, "", name): values for (_, _, name), values in planted.items()}
        for case in ("one", "two")
    )
    plant(tmp_path, {**one, **two})
    plant_points(tmp_path, one, points)
    opened = testbed.open(tmp_path)
    assert set(opened.crossings["case"]) == {"one"}
    found = lengths.make(opened.content, opened.compared)
    assert list(length_section.of_cases(opened.content, found)) == ["one"]
    assert len(length_section.pictures(opened.content, "one")) == 1
    assert length_section.pictures(opened.content, "two") == []


@pytest.mark.slow
def test_equal_objectives_have_no_crossing(tmp_path: Path) -> None:
    planted, points = curves()
    groups = [{"case": "", "arm": "", "members": ["a", "b"], "factors": [1, 1], "why": ""}]
    plant(tmp_path, planted, equal_objectives=groups)
    plant_points(tmp_path, planted, points)
    assert "equal objectives: not compared" in sentences(tmp_path)[0]


@pytest.mark.slow
def test_lengths_change_no_verdict(tmp_path: Path, crossing: Path) -> None:
    """The family of the first screen is that of a study without points."""
    planted, _ = curves()
    without = testbed.open(plant(tmp_path, planted))
    pd.testing.assert_frame_equal(testbed.open(crossing).comparisons, without.comparisons)


@pytest.mark.parametrize(
    ("value", "text"),
    [(200, "200"), (2000, "2000"), (50_000, "50000"), (1e4, "10⁴"), (1e-5, "10⁻⁵")],
)
def test_a_tick_is_named_by_its_value(value: float, text: str) -> None:
    assert drawing.decade(value) == text


# --- averages -----------------------------------------------------------------------------------

WIDTHS = ("9-0.05", "9-0.2")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planted, Points]:
    """a is best with the first width, b with its own average."""
    planted = {("", "", "a"): noisy(1.0, stream=1), ("", "", "b"): noisy(0.9, stream=2)}
    points = {
        "a": {WIDTHS[0]: noisy(0.7, stream=3), WIDTHS[1]: noisy(1.4, stream=4)},
        "b": {WIDTHS[0]: noisy(1.1, stream=5), WIDTHS[1]: noisy(1.3, stream=6)},
    }
    return study(tmp_path_factory.mktemp("averaged"), planted, points), planted, points


@pytest.mark.slow
def test_averages_are_compared_at_a_common_length_and_at_the_best(
    averaged: tuple[Path, Planted, Points],
) -> None:
    folder, planted, points = averaged
    table = testbed.open(folder).averages.set_index("average")
    assert list(table.index) == ["0.05", "0.2", BEST]
    sides = {
        "0.05": (points["a"][WIDTHS[0]], points["b"][WIDTHS[0]]),
        "0.2": (points["a"][WIDTHS[1]], points["b"][WIDTHS[1]]),
        BEST: (points["a"][WIDTHS[0]], planted["", "", "b"]),
    }
    expected = [compare(*pair) for pair in sides.values()]
    for name, one in zip(sides, expected, strict=True):
        found = table.loc[name, ["ratio", "low", "high", "p"]].astype(float)
        np.testing.assert_allclose(found, [one.ratio, one.low, one.high, one.p], rtol=1e-12)
    # A family of their own.
    np.testing.assert_allclose(table["p_holm"], holm([one.p for one in expected]), rtol=1e-12)
    assert table["verdict"].tolist() == ["better", "worse", "better"]
    read = reading.read(folder)
    (one,) = lengths.make(read, comparisons.make(read)).averages
    assert one.best == {"a": "0.05", "b": OWN}


def test_a_length_is_chosen_by_the_other_seeds() -> None:
    """Each seed has one length that is best by luck: the least of its own values is not taken."""
    values = np.array([[1.0, 9.0], [1.0, 2.0], [8.0, 1.0]])
    logs = np.log(values)
    expected = []
    for seed in range(3):
        means = np.delete(logs, seed, axis=0).mean(axis=0)
        expected.append(values[seed, int(np.argmin(means))])
    found = at_best(pd.DataFrame(values, index=[0, 1, 5], columns=["0.1", OWN]))
    assert found.tolist() == expected == [9.0, 1.0, 8.0]
    assert found.index.tolist() == [0, 1, 5]


@pytest.mark.slow
def test_choosing_the_best_is_not_optimistic() -> None:
    """Two variants of one distribution, one with twenty lengths, one with one: no difference.

    The mean over 400 studies is within four standard errors of zero; that of the least of each
    seed, or of the best over all seeds, is below it by more than ten.
    """
    rng = np.random.default_rng(1)
    fair, best, least = [], [], []
    for _ in range(400):
        table = pd.DataFrame(np.exp(rng.normal(size=(6, 20))))
        logs = np.log(table.to_numpy())
        fair.append(np.log(at_best(table)).mean())
        best.append(logs.mean(axis=0).min())
        least.append(logs.min(axis=1).mean())
    for means, biased in ((fair, False), (best, True), (least, True)):
        z = np.mean(means) / (np.std(means) / math.sqrt(400))
        assert z < -10 if biased else abs(z) < 4


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_the_page_says_that_the_optimism_is_removed(
    averaged: tuple[Path, Planted, Points], tmp_path: Path
) -> None:
    page = report.write(averaged[0], out=tmp_path).read_text()
    assert "removes the optimism" in page
    assert "a family of 3 tests of their own" in page
    assert "Over all seeds a is best with the average of width 0.05." in page
    assert "Over all seeds b is best with training’s own average." in page
