"""The results of a study in Python, its LaTeX and its figures for a paper."""

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.command_line import run_here
from helpers.planted_studies import noisy, plant
from scipy import stats

import testbed
from testbed.errors import InputError, UnknownName
from testbed.report import drawing, figures, finding, latex

VALUES = {
    ("one", "p", "a"): noisy(1.2, stream=1),
    ("one", "p", "b"): noisy(1.0, stream=2),
    ("one", "q", "a"): [*noisy(1.1, 4, stream=3), "failed"],
    ("one", "q", "b"): [*noisy(1.0, 4, stream=4), "diverged"],
    ("two & <x>", "p", "b"): noisy(2.0, stream=5),
}


@pytest.fixture(scope="module", autouse=True)
def few_figures() -> Iterator[None]:
    """Two figures of each case, since every one takes a third of a second and more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_case", lambda results, case: [figures.wiener(results, case)])
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted"), VALUES)


@pytest.fixture(scope="module")
def opened(planted: Path) -> testbed.StudyResult:
    return testbed.open(planted)


@pytest.mark.slow
def test_trials_have_a_row_for_each_seed_and_metric(opened: testbed.StudyResult) -> None:
    table = opened.trials
    rows = table[(table["metric"] == "loss_vs_wiener") & np.isfinite(table["value"])]
    found = {
        label: group.sort_values("seed")["value"].tolist()
        for label, group in rows.groupby(["case", "arm", "variant"])
    }
    assert found == {
        label: [one for one in values if not isinstance(one, str)]
        for label, values in VALUES.items()
    }
    assert not table.duplicated(["case", "arm", "variant", "seed", "metric"]).any()


def test_a_trial_without_numbers_has_a_row(opened: testbed.StudyResult) -> None:
    table = opened.trials
    (failed,) = table[table["status"] == "failed"].to_dict("records")
    assert (failed["variant"], failed["seed"]) == ("a", 4)
    assert pd.isna(failed["metric"])
    diverged = table[table["status"] == "diverged"]
    assert len(diverged) > 1
    assert np.isinf(diverged["value"]).all()


@pytest.mark.slow
def test_the_tables_are_those_of_the_report(opened: testbed.StudyResult, commanded: Path) -> None:
    for name, table in opened.tables.items():
        assert (commanded / "tables" / f"{name}.csv").read_text() == table.to_csv(index=False)
    assert set(opened.figures) == {file.stem for file in (commanded / "figures").glob("*.svg")}


def test_the_only_case_and_arm_have_all_figures(tmp_path: Path) -> None:
    """Their names are empty, which is no missing value."""
    found = testbed.open(plant(tmp_path, {("", "", "a"): noisy(1.2), ("", "", "b"): noisy(1.0)}))
    assert found.content.cases == [""]
    assert set(found.content.coefficients["case"]) == {""}
    assert set(found.content.coefficients["arm"]) == {""}


def test_a_mean_is_that_of_scipy(opened: testbed.StudyResult) -> None:
    table = opened.results
    row = table[(table["variant"] == "a") & (table["arm"] == "p")].set_index("metric")
    logs = np.log(VALUES["one", "p", "a"])
    low, high = stats.t.interval(0.95, 4, logs.mean(), stats.sem(logs))
    found = row.loc["loss_vs_wiener", ["value", "low", "high"]].astype(float)
    np.testing.assert_allclose(found, np.exp([logs.mean(), low, high]), rtol=1e-12)


def test_what_is_no_study_is_refused(tmp_path: Path, planted: Path) -> None:
    with pytest.raises(InputError, match=r"has no study\.json"):
        testbed.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(planted, copy)
    (copy / "study.json").write_text('{"trials": 7}')
    with pytest.raises(
        InputError, match=r"study\.json: trials: Input should be a valid list, got 7"
    ):
        testbed.open(copy)


@pytest.mark.slow
def test_results_are_short_in_a_line_and_a_table_in_a_notebook(opened: testbed.StudyResult) -> None:
    assert "trials 23 finished, 1 failed, 1 diverged" in repr(opened)
    assert "\n" not in repr(opened)
    shown = opened._repr_html_()
    tables = [one.claims for one in finding.make(opened.content, opened.compared) if one.claims]
    cells = [cell.text for table in tables for row in table.rows for cell in row]
    assert [html.unescape(text) for text in re.findall(r"<td[^>]*>(.*?)</td>", shown)][
        : len(cells)
    ] == cells
    assert shown.count("<tr>") == sum(1 + len(table.rows) for table in tables) + 1 + len(VALUES)
    assert '<td style="text-align:left;font-weight:700" colspan="4">In “p”, ' in shown
    assert "two &amp; &lt;x&gt;" in shown
    assert "<x>" not in shown
    (picture, *_) = opened.figures.values()
    assert picture._repr_svg_().startswith("<svg")
    assert len(repr(picture)) < 100


# --- LaTeX ------------------------------------------------------------------------------------


def squeezed(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text).replace(" \n", "\n").strip()


def test_a_table_is_what_pandas_writes() -> None:
    head, rows = ["a_b", "n"], [["50% & {x}", "1.5"], ["#$", "2"]]
    frame = pd.DataFrame(rows, columns=head)
    expected = frame.to_latex(index=False, escape=True, column_format="@{}ll@{}")
    assert squeezed(latex.table(head, rows)) == squeezed(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.20e-5 [1.00e-5, 2]", r"$1.20\times10^{-5}$ [$1.00\times10^{-5}$, 2]"),
        ("-0.5 [-1.2e7, 3]", r"$-$0.5 [$-1.2\times10^{7}$, 3]"),
        ("MMD², σ → ∞", r"MMD$^2$, $\sigma$ $\to$ $\infty$"),
        (r"a\b~^", r"a\textbackslash{}b\textasciitilde{}\textasciicircum{}"),
        ("edm-like é", "edm-like é"),
        ("min_snr gamma=1e-3", r"min\_snr gamma=$1\times10^{-3}$"),
    ],
)
def test_letters_that_latex_reads_otherwise_are_escaped(text: str, expected: str) -> None:
    assert latex.escape(text) == expected


@pytest.mark.parametrize(("table", "cases"), [("results", 2), ("comparisons", 1)])
def test_every_row_has_the_columns_of_its_table(
    opened: testbed.StudyResult, table: str, cases: int
) -> None:
    """The second case has one variant, and so no comparison."""
    text = opened.to_latex(table)
    rules = [text.count(rf"\{place}rule") for place in ("top", "mid", "bottom")]
    assert rules == [cases] * 3
    assert text.count("{") == text.count("}")
    for part in text.split(r"\begin{tabular}")[1:]:
        columns = part[: part.index("\n")].count("l")
        body = [line for line in part.splitlines() if line.endswith(r"\\")]
        assert len(body) > 1
        for line in body:
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1


def test_the_numbers_of_the_latex_are_those_of_the_table(opened: testbed.StudyResult) -> None:
    text = opened.to_latex(case="one")
    assert "two" not in text
    row = opened.results.set_index(["case", "arm", "variant", "metric"])
    mean = row.loc[("one", "p", "a", "loss_vs_wiener"), "value"]
    assert re.search(rf"^p & a & 5 & {mean:#.3g} \[", text, flags=re.MULTILINE)
    assert "diverged in 1 of 5" in text
    with pytest.raises(UnknownName, match="Did you mean 'results'"):
        opened.to_latex("result")
    with pytest.raises(UnknownName, match="Unknown case"):
        opened.to_latex(case="three")


# --- figures for a paper ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "inches"), [("84mm", 84 / 25.4), ("2.54cm", 1.0), ("3.25in", 3.25), ("72.27pt", 1.0)]
)
def test_a_width_has_a_unit(width: str, inches: float) -> None:
    assert drawing.inches(width) == pytest.approx(inches, rel=1e-15)


@pytest.mark.parametrize("width", ["84", "mm", "0in", "-3in", "1e3in", "9km", "1.2.3in", "2000mm"])
def test_what_is_no_width_is_refused(width: str) -> None:
    with pytest.raises(InputError, match="for example 84mm"):
        drawing.inches(width)


@pytest.fixture(scope="module")
def paper(opened: testbed.StudyResult, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return opened.write_paper(tmp_path_factory.mktemp("paper"), "84mm")


@pytest.mark.slow
def test_every_figure_of_a_paper_is_as_wide_as_its_column(
    opened: testbed.StudyResult, paper: list[Path]
) -> None:
    points = 84 / 25.4 * 72
    names = {file.stem for file in paper if file.suffix == ".pdf"}
    assert names == {file.stem for file in paper if file.suffix == ".svg"} == set(opened.figures)
    for file in paper:
        if file.suffix == ".pdf":
            box = re.search(rb"/MediaBox \[ ?([\d. ]+) ?\]", file.read_bytes())
            assert float(box[1].split()[2]) == pytest.approx(points, abs=0.01)
        if file.suffix == ".svg":
            assert float(re.search(r'width="([\d.]+)pt"', file.read_text())[1]) == pytest.approx(
                points, abs=0.01
            )


@pytest.mark.slow
def test_a_row_that_does_not_fit_goes_on_below(
    opened: testbed.StudyResult, paper: list[Path]
) -> None:
    """Two arms: side by side on the page, and below each other in a column."""

    def shape(svg: str) -> float:
        width, height = (float(re.search(rf'{side}="([\d.]+)pt"', svg)[1]) for side in
                         ("width", "height"))  # fmt: skip
        return width / height

    (narrow,) = (file for file in paper if file.name == "wiener_one.svg")
    assert shape(opened.figures["wiener_one"].svg) > 2
    assert shape(narrow.read_text()) < 1


@pytest.mark.slow
def test_the_same_study_gives_the_same_paper(opened: testbed.StudyResult) -> None:
    drawn = []
    for _ in range(2):
        with drawing.styled(3.0):
            drawn.append(figures.wiener(opened.content, "one"))
    assert drawn[0] == drawn[1]
    assert drawn[0].pdf.startswith(b"%PDF")


@pytest.fixture(scope="module")
def commanded(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commanded")
    done = run_here(folder, "report", planted, "--out", folder, "--width", "90mm")
    assert done.code == 0, done.err
    return folder


@pytest.mark.slow
def test_the_command_writes_a_paper(commanded: Path, opened: testbed.StudyResult) -> None:
    assert (commanded / "paper" / "results.tex").read_text() == opened.to_latex()
    assert len(list((commanded / "paper").glob("*.pdf"))) == 6


def test_a_wrong_width_is_told_before_anything_is_written(planted: Path, tmp_path: Path) -> None:
    wrong = run_here(tmp_path, "report", planted, "--out", tmp_path / "no", "--width", "wide")
    assert wrong.code == 2
    assert "for example 84mm" in wrong.err
    assert not list(tmp_path.iterdir())


# --- the page ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_has_contents_and_numbered_figures(commanded: Path) -> None:
    page = (commanded / "report.html").read_text()
    contents = re.search(r'<nav id="contents">(.*?)</nav>', page)[1]
    links = re.findall(r'href="#([^"]+)">(.*?)</a>', contents)
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', page)
    assert links == sections
    assert len(sections) == page.count("<h2") > 5
    numbers = [int(n) for n in re.findall(r"<figcaption><b>Figure (\d+)\. ", page)]
    assert numbers == list(range(1, page.count("<figure ") + 1))
    assert len(numbers) == 6
