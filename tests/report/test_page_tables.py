"""Tables of the page: what is left out of them, and how a number with its error is written."""

import math
import re
from pathlib import Path

import pytest
from helpers.planted_studies import noisy, plant

from testbed import report
from testbed.notebook import Cell
from testbed.report import words
from testbed.report.page_tables import page_table


def test_columns_of_labels_that_a_study_does_not_have_are_left_out() -> None:
    rows = [["", "", Cell("a", "best"), ""], ["", "second", "b", ""]]
    table = page_table(["case", "arm", "variant", "note"], rows)
    assert table.head == ["arm", "variant", "note"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["", "a", ""],
        ["second", "b", ""],
    ]
    assert table.rows[0][1] == Cell("a", "best")
    assert page_table(["case", "arm"], [["c", "one"]]).head == ["case", "arm"]
    assert page_table(["case", "arm", "variant"], []).head == ["variant"]


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("place", [("", ""), ("c", ""), ("", "one"), ("c", "one")])
def test_the_page_names_cases_and_arms_where_the_study_does(
    place: tuple[str, str], tmp_path: Path
) -> None:
    folder = plant(tmp_path, {(*place, "a"): noisy(0.8), (*place, "b"): noisy(1.0, stream=1)})
    report.write(folder)
    case, arm = place
    page = (folder / "report.html").read_text()
    heads = re.findall(r"<thead>(.*?)</thead>", page, re.DOTALL)
    assert any("<th>arm</th>" in head for head in heads) == bool(arm)
    metric = "loss / Wiener loss (no exact denoiser); lower is better"
    assert f"<h3>{case or 'All data'}: {metric}; 5 seeds</h3>" in page
    assert f'<td colspan="4" class="best">{"In “one”, " if arm else ""}a is lowest' in page
    assert "against the baseline, b" in page


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0025, 0.0102, "0.00250 ± 0.0102"),
        (-0.3, 0.01, "−0.300 ± 0.0100"),
        (2.11, math.nan, "2.11"),
        (2.11, 1.02e-13, "2.11"),
        (2.11, 1e-8, "2.11 ± 1.00e-8"),
        (1.5e-13, 1.02e-13, "1.50e-13 ± 1.02e-13"),
        (0.0, 0.0, "0"),
        (math.nan, 0.1, "–"),
        (math.inf, 0.1, "∞"),
    ],
)
def test_an_error_is_written_where_there_is_one(value: float, error: float, text: str) -> None:
    """The rounding of a number is no error of it."""
    assert words.with_error(value, error) == text
