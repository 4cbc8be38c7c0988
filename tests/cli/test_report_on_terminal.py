"""What a report says first stands on the terminal, in the words of its page."""

import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import Done, blank_figures, run_here
from helpers.planted_studies import plant_default

from testbed.cli import first_screen
from testbed.cli.first_screen import MOST_LINES, WIDEST
from testbed.errors import InputError
from testbed.report import claims
from testbed.report.claims import ArmClaims, Claim, Effect, Finding

ENDING = re.compile(r"^\d+ finished in ", flags=re.MULTILINE)


@pytest.fixture(scope="module", autouse=True)
def _no_figures() -> Iterator[None]:
    with blank_figures():
        yield


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant_default(tmp_path_factory.mktemp("default"))


def squeezed(text: str) -> str:
    return " ".join(text.split())


def rebuilt(folder: Path, columns: int) -> tuple[Done, list[Finding]]:
    """`testbed report` on so many columns, and what it stored."""
    done = run_here(folder, "report", ".", COLUMNS=str(columns))
    assert done.code == 0, done.err
    return done, claims.stored(folder / "report.html")


def screen_of(out: str) -> list[str]:
    """The lines above those on paths and the next step."""
    return out.partition("Report: ")[0].splitlines()


def rows_below(lines: list[str], best: str) -> list[list[str]]:
    """The cells of the rows below a sentence, each put together from the lines that it takes."""
    pairs = itertools.combinations(range(len(lines) + 1), 2)
    end = next(end for start, end in pairs if squeezed(" ".join(lines[start:end])) == best)
    head = next(line for line in lines if line.startswith("  variant "))
    starts = [match.start() for match in re.finditer(r"(?<= {2})\S+( \S+)*", head)]
    rows: list[list[str]] = []
    for line in itertools.takewhile(lambda line: line.startswith("  "), lines[end:]):
        cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if line != head and cells[0]:
            rows.append(cells)
        elif line != head:
            rows[-1] = [" ".join(filter(None, pair)) for pair in zip(rows[-1], cells, strict=True)]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120, 250])
def test_all_of_the_default_study_is_said_in_the_words_of_its_page(
    default: Path, columns: int
) -> None:
    done, found = rebuilt(default, columns)
    lines = screen_of(done.out)
    assert max(map(len, lines)) <= min(columns, WIDEST)
    assert "\x1b" not in done.out
    said, page = squeezed(" ".join(lines)), (default / "report.html").read_text()
    at = -1
    for one in found:
        for text in filter(None, [one.title, " ".join(one.opening)]):
            assert text in page
            at, before = said.index(text), at
            assert at > before
        for arm, name in zip(one.arms, ("published", "equal"), strict=bool(one.arms)):
            assert arm.arm == name
            assert one.claims is not None
            bests = [row[0].text == arm.best for row in one.claims.rows]
            following = one.claims.rows[bests.index(True) + 1 :]
            cells = [
                [cell.text for cell in row]
                for row in itertools.takewhile(lambda row: len(row) > 1, following)
            ]
            assert len(cells) == len(arm.rows)
            start = next(i for i, s in enumerate(lines) if s and one.title.startswith(s))
            assert rows_below(lines[start:], arm.best) == cells
            assert [claim.effect is None for claim in arm.claims].count(True) == sum(
                row[2] == "learnt nothing" for row in cells
            )
    assert "Not shown" not in said
    ending = done.out.splitlines()[-2:]
    assert ending[0] == "Report: report.html"
    assert ending[1].startswith("Next: open report.html")


def many(cases: int, variants: int) -> list[Finding]:
    """Findings of so many cases, each with an arm of so many claims."""
    effect = Effect(1.5, 1.4, 1.6)
    rows = [Claim(f"v{number}", "b", "worse", effect) for number in range(variants)]
    made = [
        Finding(f"c{n}: a metric", ["What it is."], f"c{n}", [ArmClaims("", f"In c{n}, b.", rows)])
        for n in range(cases)
    ]
    return [*made, Finding("", ["What holds for all."])]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "variants", "left_out"),
    [
        (1, 70, ""),
        (2, 40, r"(\d+) of 80 claims"),
        (30, 2, r"(\d+) of 60 claims and (\d+) of 30 cases"),
    ],
)
def test_a_large_study_fits_and_says_where_the_rest_is(
    capsys: pytest.CaptureFixture[str], cases: int, variants: int, left_out: str
) -> None:
    found = many(cases, variants)
    first_screen.show(found, Path("runs/large/report.html"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= MOST_LINES + 2
    titles = [line for line in lines if line.endswith(": a metric")]
    assert titles == [one.title for one in found][: len(titles)]
    rows = [re.match(r"  v(\d+) ", line) for line in lines]
    shown = [int(row[1]) for row in rows if row]
    where = "; see runs/large/report.html or runs/large/tables/finding.md."
    (line,) = [line for line in lines if line.startswith("Not shown: ")] or [""]
    if not left_out:
        assert (line, shown) == ("", [*range(variants)])
        assert "What holds for all." in lines
        return
    match = re.fullmatch(f"Not shown: {left_out}{re.escape(where)}", line)
    assert match is not None
    claims_lost, *cases_lost = map(int, match.groups())
    assert claims_lost + len(shown) == cases * variants
    assert sum(cases_lost) + len(titles) == cases
    # The first of every arm, as many of each, and as many as fit.
    assert shown == [*range(len(shown) // len(titles))] * len(titles)
    assert len(lines) > MOST_LINES - 8


def test_letters_that_an_encoding_has_not_end_no_study(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, "latin-1", write_through=True))
    first_screen.show([Finding("", ["In “a”, 3 levels above σ = 2."])], Path("report.html"))
    assert out.getvalue() == b"In ?a?, 3 levels above ? = 2.\n\n"


def test_verdicts_have_their_colours_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    effect = Effect(1.5, 1.4, 1.6)
    rows = [Claim("v", "b", verdict, effect) for verdict in ("better", "worse", "undecided")]
    first_screen.show([Finding("t", [], "c", [ArmClaims("", "In all.", rows)])], Path("page"))
    shown = capsys.readouterr().out
    styled = {"better": "1;32", "worse": "1;31", "undecided": "2", "In all.": "1"}
    for text, codes in styled.items():
        assert re.search(rf"\x1b\[{codes}m{text} *\x1b\[0m", shown), text


@pytest.mark.slow
def test_the_claims_are_data_too(default: Path, tmp_path: Path) -> None:
    done = run_here(default, "report", ".", "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["claims"]
    assert len(found) == 16
    keys = ["case", "arm", "variant", "against", "verdict", "effect", "hangs_on", "levels", "sigma"]
    keys += ["unjudged", "survivors"]
    table = pd.read_csv(tmp_path / "tables" / "comparisons.csv", keep_default_na=False)
    table = table[(table["kind"] == "baseline") & (table["band"] == "")]
    rows = table.set_index(["case", "arm", "variant"])
    for one in found:
        assert list(one) == keys
        row = rows.loc[(one["case"], one["arm"], one["variant"])]
        assert one["against"] == row["against"] == "edm"
        if one["effect"] is None:
            assert "learnt nothing" in one["verdict"]
        else:
            assert one["verdict"] in claims.SAID
            assert one["unjudged"] is None
        for name, value in (one["effect"] or one["unjudged"]).items():
            assert math.isclose(value, float(row[name]), rel_tol=1e-12)
    eps = next(one for one in found if one["variant"] == "eps")
    assert eps["hangs_on"] == ["very high noise"]
    assert eps["levels"] == "12 of 16 levels, σ = 0.017 to 39"
    assert eps["sigma"] == pytest.approx([0.01665, 39.47], rel=1e-3)


@pytest.fixture
def ended(trained: Path, tmp_path: Path) -> Path:
    """A folder with a study whose trials have all ended, and no report."""
    return Path(shutil.copytree(trained, tmp_path / "ended"))


WORDS = ("study", "tiny.toml", "--jobs", 0, "--no-mlflow")


@pytest.mark.slow
def test_a_study_ends_with_what_its_report_says_first(ended: Path) -> None:
    for _ in range(2):  # the report is written, and then up to date
        done = run_here(ended, *WORDS, COLUMNS="80")
        assert done.code == 0, done.err
        found = claims.stored(ended / "runs" / "tiny" / "report.html")
        screen, ending = ENDING.split(done.out)
        for one in found:
            for text in [one.title, " ".join(one.opening), *(arm.best for arm in one.arms)]:
                assert text in squeezed(screen)
        assert ENDING.search(done.out).start() > done.out.index("mixture: excess risk")
        assert re.search(r"^Report: runs/tiny/report.html\nNext: ", ending, flags=re.MULTILINE)
    document = json.loads(run_here(ended, *WORDS, "--json").out)
    told = [(one["case"], one["variant"], one["verdict"]) for one in document["claims"]]
    assert told == [
        (one.case, claim.variant, claim.verdict)
        for one in found
        for arm in one.arms
        for claim in arm.claims
    ]
    assert told


@pytest.mark.slow
def test_a_study_whose_report_cannot_be_made_ends_with_why(
    ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renew(folder: Path) -> Path:
        raise InputError("the report cannot be made")

    monkeypatch.setattr("testbed.report.renew", renew)
    monkeypatch.setattr("testbed.study.identities.subjects", lambda plan, registry: {})
    done = run_here(ended, *WORDS)
    assert (done.code, done.err) == (2, "testbed: the report cannot be made\n")
    assert "mixture: excess risk" not in done.out


@pytest.mark.slow
def test_a_page_by_a_version_that_stored_no_finding_has_no_first_screen(
    ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.report.renew", lambda folder: folder / "report.html")
    monkeypatch.setattr("testbed.study.identities.subjects", lambda plan, registry: {})
    done = run_here(ended, *WORDS)
    assert done.code == 0, done.err
    assert "mixture: excess risk" not in done.out
    assert "Report: runs/tiny/report.html" in done.out
