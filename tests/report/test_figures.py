"""The figures of a case show what differs between arms, and say where they are cut."""

import html
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.planted_studies import WINNER, Planted, noisy, plant
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from testbed import report
from testbed.report import comparisons, drawing, effects, figures, galleries, reading, result_tables
from testbed.report.figures import alike

ARMS: Planted = {("c", arm, name): noisy(1.0, stream=1) for arm in "xy" for name in "ab"}
COLUMNS = ("c_skip", "c_out", "c_in", "c_noise")


def study(folder: Path, **powers: float) -> Path:
    """Two arms; in `y` the columns of variant `b` are powers of sigma, as c_out of a score is."""
    plant(folder, ARMS)
    table = pd.read_csv(folder / "coefficients.csv", keep_default_na=False)
    here = (table["arm"] == "y") & (table["variant"] == "b")
    for column, power in powers.items():
        table.loc[here, column] = table.loc[here, "sigma"] ** power
    table.to_csv(folder / "coefficients.csv", index=False)
    return folder


def texts(picture: drawing.Picture | None) -> list[str]:
    assert picture is not None
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)]


def drawn(folder: Path, kind: str) -> list[str]:
    """The titles of the panels of a figure."""
    with drawing.styled():
        found = texts(getattr(figures, kind)(reading.read(folder), "c"))
    return [text for text in found if re.match(r"target|output|\|?c_", text)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("powers", "titles"),
    [
        ({}, ["target", "output, x", "output, y"]),
        ({"target_rms": -1.0}, ["target, x", "target, y", "output, x", "output, y"]),
    ],
)
def test_the_target_is_shown_by_arm_where_its_size_differs(
    tmp_path: Path, powers: dict[str, float], titles: list[str]
) -> None:
    assert drawn(study(tmp_path, **powers), "sizes") == titles


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("column", [None, 3.3, 4.5])
@pytest.mark.parametrize("power", [0.0, -1.0])
def test_every_panel_of_a_shared_axis_has_plain_ticks(
    tmp_path: Path, power: float, column: float | None
) -> None:
    """A scale that was set on one panel left matplotlib's own ticks on others, in a paper too."""
    read = reading.read(study(tmp_path, target_rms=power))
    axes_of: list[Axes] = []
    with pytest.MonkeyPatch.context() as patch, drawing.styled(column):
        patch.setattr(drawing, "lay_out", lambda figure: axes_of.extend(figure.axes))
        figures.sizes(read, "c")
    assert len(axes_of) == (3 if power == 0 else 4)
    for axis in (axis for axes in axes_of for axis in (axes.xaxis, axes.yaxis)):
        assert isinstance(axis.get_major_locator(), drawing.LogTicks)
        assert axis.get_major_formatter()(0.01, 0) == "0.01"


@pytest.mark.slow
@pytest.mark.parametrize("column", [None, *COLUMNS])
def test_a_coefficient_is_shown_by_arm_where_it_differs(tmp_path: Path, column: str | None) -> None:
    found = drawn(study(tmp_path, **({column: 2.0} if column else {})), "coefficients")
    shown = {name: "|c_out|" if name == "c_out" else name for name in COLUMNS}
    titles = [
        title
        for name, text in shown.items()
        for title in ([f"{text}, x", f"{text}, y"] if name == column else [text])
    ]
    assert sorted(found) == sorted(titles)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize(
    ("powers", "head", "row"),
    [
        ({}, ["target", "output, x", "output, y"], ["b", "0.00", "0.00", "0.00"]),
        (
            {"target_rms": -1.0},
            ["target, x", "target, y", "output, x", "output, y"],
            ["b", "0.00", "3.00", "0.00", "0.00"],
        ),
    ],
)
def test_the_table_of_decades_has_every_arm_whose_targets_differ(
    tmp_path: Path, powers: dict[str, float], head: list[str], row: list[str]
) -> None:
    page = report.write(study(tmp_path, **powers)).read_text()
    table = page.partition("Decades that the root mean square spans")[2].partition("</table>")[0]
    assert re.findall("<th>(.*?)</th>", table) == ["variant", *head]
    assert re.findall("<td>(.*?)</td>", table)[-len(row) :] == row


def test_lines_at_other_levels_are_compared_where_both_are_given() -> None:
    def line(low: float, high: float, n: int, power: float, scale: float = 1.0) -> drawing.Band:
        x = np.geomspace(low, high, n)
        return pd.DataFrame({"x": x, "value": scale * x**power})

    one = line(0.01, 80, 129, 1)
    assert alike(one, line(0.002, 20, 64, 1))
    assert not alike(one, line(0.002, 20, 64, 2))
    assert not alike(one, line(0.002, 20, 64, 1, scale=-1.0))
    assert not alike(one, line(0.01, 80, 129, 1, scale=1.1))
    assert not alike(one, line(100, 200, 9, 1)), "no level is in both"
    nothing = line(0.01, 80, 9, 0, scale=0.0)
    assert alike(nothing, nothing)
    assert not alike(nothing, line(0.01, 80, 9, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factors", "arrows"),
    [
        ((1.9, 2.0, 2.1), []),
        ((0.5, 2.0, 8.0), ["<", ">"]),
        ((1.7, 2.0, 3.2), [">"]),
        ((0.6, 0.5, 0.32), ["<"]),
        ((5.9, 6.0, 6.1), [">"]),
    ],
    ids=["inside", "both", "high", "low", "far"],
)
def test_what_leaves_the_scale_of_the_forest_has_an_arrow(
    tmp_path: Path, factors: tuple[float, ...], arrows: list[str]
) -> None:
    base = [1.0, 1.1, 0.9]
    far = [b * f for b, f in zip(base, factors, strict=True)]
    read = reading.read(plant(tmp_path, {("c", "", "b"): base, ("c", "", "a"): far}))
    (one,) = effects.running(comparisons.make(read), "c", "")
    axes = Figure().subplots()
    limits = effects.window(read, [one])
    effects._frame(axes, read, limits)
    effects._row(axes, read, one, 0.0, limits)
    marks = {str(line.get_marker()): line.get_xdata() for line in axes.lines}
    assert [mark for mark in "<>" if mark in marks] == arrows
    for mark, edge in zip("<>", limits, strict=True):
        assert mark not in marks or list(marks[mark]) == [edge]


@pytest.mark.slow
def test_the_axis_of_the_forest_is_said_to_be_logarithmic(tmp_path: Path) -> None:
    planted = {("c", "", name): noisy(1.0, stream=i) for i, name in enumerate("ab")}
    read = reading.read(plant(tmp_path, planted))
    picture = effects.forest(read, comparisons.make(read), "c")
    assert picture is not None
    assert "The axis is logarithmic in the ratio." in picture.caption


@pytest.mark.parametrize("low", [0.011, 0.3, 0.75, 1.0, 1.9, 4.2, 9.5, 120.0])
@pytest.mark.parametrize("width", [1.02, 1.3, 2.0, 3.3, 5.0, 9.9])
def test_an_axis_below_a_decade_has_three_labels_at_least(low: float, width: float) -> None:
    high = low * width
    found = drawing.LogTicks().tick_values(low, high)
    assert 3 <= len(found) <= 9
    assert all(low <= tick <= high for tick in found)
    assert list(found) == sorted(set(found))
    assert len({drawing.decade(tick) for tick in found}) == len(found)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_the_table_of_bands_wraps_into_the_page(tmp_path: Path) -> None:
    page = report.write(plant(tmp_path, ARMS)).read_text()
    table = page.partition("By band of noise levels")[2].partition("</table>")[0]
    (kind,) = re.findall('<table class="(.*?)">', table)
    style = page.partition("<style>")[2].partition("@page")[0]
    rules = re.findall(rf"\.{kind} (\w+) {{([^}}]*)}}", style)
    assert not any("nowrap" in rule for _, rule in rules)
    assert ("th", " white-space: normal; ") in rules


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_scale_is_that_of_the_variants_in_the_running(tmp_path: Path) -> None:
    planted = {**WINNER, ("c", "", "far"): noisy(15.0, stream=8)}
    planted["c", "", "lost"] = ["diverged", *noisy(9.0, stream=9)[1:]]
    read = reading.read(plant(tmp_path, planted))
    made = comparisons.make(read)
    low, high = effects.window(read, effects.running(made, "c", ""))
    assert 0.7 < low < 0.8
    assert 1.5 < high < 1.7
