"""The page on audits runs as written."""

import re
from pathlib import Path

import pytest
from helpers.command_line import run_here
from helpers.paths import DOCS

GUIDE = (DOCS / "how-to" / "audit.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "sh"]
SAID = [text for language, text in BLOCKS if language == ""]


def test_the_factory_passes_by_the_command_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PYTHON[0])
    done = run_here(tmp_path, *SHELL[1].split()[1:])
    assert done.code == 0, done.out + done.err
    assert "laws hold" in done.out


def test_without_the_division_it_says_what_the_guide_says(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PYTHON[0].replace("x = x_t / alpha[:, None]", "x = x_t"))
    done = run_here(tmp_path, *SHELL[1].split()[1:])
    assert done.code == 3
    for line in SAID[0].splitlines():
        assert line in done.out


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(PYTHON[0] + PYTHON[1], names)
    assert names["found"].passed  # type: ignore[attr-defined]


def test_the_words_of_the_options_are_all_there() -> None:
    from testbed.audit.adapters import SCHEDULES, TIME_ARGUMENTS
    from testbed.audit.driver import PARTS
    from testbed.diffusion.predictions import PREDICTION_TYPES

    for word in (*SCHEDULES, *TIME_ARGUMENTS, *PREDICTION_TYPES, *PARTS):
        assert re.search(rf"\b{re.escape(word)}\b", GUIDE), word
