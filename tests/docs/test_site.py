"""The documentation as a whole: names exist, studies can be planned, parts are generated."""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import run_here
from helpers.paths import DOCS, ROOT
from PIL import Image
from pydantic import BaseModel, Field

import testbed
from testbed.study import plan, study_file

sys.path[:0] = [str(DOCS), str(DOCS / "_ext")]
check_pages, docstrings, generated = map(
    importlib.import_module, ("check_pages", "docstrings", "generated")
)

PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TAGS = tuple(
    name
    for file in (ROOT / "testbed/study").glob("tracking*.py")
    for name in re.findall(r'"(testbed\.[\w.]+)"', file.read_text())
)
"""Of the runs in MLflow: they look like the names of modules."""


def page(name: str) -> str:
    return (DOCS / name).read_text()


def blocks(name: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(page(name)) if found == language]


# --- names and paths ----------------------------------------------------------------------------


def missing(text: str) -> Iterator[str]:
    """The paths `testbed/...`, `plugins/...`, ... and the names `testbed.x.y` that do not exist."""
    for path in re.findall(
        r"(?<![\w/.-])((?:testbed|plugins|studies|benchmarks|docs)/[\w./-]*\w)", text
    ):
        if not (ROOT / path).exists():
            yield path
    for name in re.findall(r"(?<![\w/.-])testbed(?:\.[A-Za-z_]\w*)+", text):
        if not exists(name) and not is_tag(name):
            yield name


def is_tag(name: str) -> bool:
    return any(name == tag or (tag.endswith(".") and name.startswith(tag)) for tag in TAGS)


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    first, *rest = name.split(".")
    found: Any = importlib.import_module(first)
    for i, part in enumerate(rest, 1):
        if hasattr(found, part):
            found = getattr(found, part)
            continue
        try:
            found = importlib.import_module(".".join([first, *rest[:i]]))
        except ModuleNotFoundError:
            # A dataclass has its fields without a default on its instances alone.
            return part in getattr(found, "__dataclass_fields__", {}) and i == len(rest)
    return True


@pytest.mark.parametrize("file", [*PAGES, ROOT / "README.md"], ids=lambda file: file.stem)
def test_every_name_and_path_of_a_page_exists(file: Path) -> None:
    assert sorted(missing(file.read_text())) == []


@pytest.mark.parametrize(
    "wrong",
    ["`testbed/study/spec.py`", "`testbed.study.spec.Study`", "see testbed.Denoiser.nothing"],
)
def test_a_name_that_does_not_exist_is_found(wrong: str) -> None:
    assert list(missing(wrong))
    assert not list(missing("`testbed/study/plan.py`, `testbed.study.plan.make`, testbed.Denoiser"))


# --- studies and code ---------------------------------------------------------------------------


def planned(folder: Path, text: str) -> plan.Plan:
    file = folder / "shown.toml"
    file.write_text(text)
    return plan.make(study_file.read(file), testbed.Registry(), folder / "out", "cpu")


@pytest.mark.slow
def test_the_first_study_is_planned_as_the_tutorial_shows(tmp_path: Path) -> None:
    (study,) = blocks("tutorials/first-study.md", "toml")
    (tmp_path / "first.toml").write_text(study)
    command, *_ = blocks("tutorials/first-study.md", "sh")
    shown = [text for text in blocks("tutorials/first-study.md", "text") if "Study first" in text]
    done = run_here(tmp_path, *command.split()[1:], "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert shown[0].strip() in done.out
    changed = study_file.read(tmp_path / "first.toml", ["training.steps=3000"])
    assert {one.settings.training.steps for one in changed.templates} == {3000}


def test_the_study_of_own_data_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.default_rng(0).normal(size=(50, 4)))
    assert len(planned(tmp_path, blocks("how-to/own-data.md", "toml")[0]).trials) == 9
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page("how-to/own-data.md"), re.MULTILINE)
    options = {word for cell in named for word in re.findall(r"`(\w+)`", cell)}
    assert options == set(testbed.Registry().dataset("array").defaults)


@pytest.mark.slow
def test_the_study_of_own_images_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chance = np.random.default_rng(0)
    for split, kind in itertools.product(("train", "test"), ("cat", "dog")):
        (tmp_path / "pets" / split / kind).mkdir(parents=True)
        for i in range(20):
            pixels = chance.integers(0, 256, (20, 18 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"pets/{split}/{kind}/{i}.png")
    made = planned(tmp_path, blocks("how-to/own-images.md", "toml")[0])
    assert len(made.trials) == 9
    said = "\n".join(plan.notes(made))
    assert "80 of" not in said
    assert "40 of 40 images are cut to their centre and resampled to 16 x 16 pixels" in said
    assert "training mirrors images with probability 0.5" in said
    named = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page("how-to/own-images.md"), re.MULTILINE)
    options = {word for cell in named for word in re.findall(r"`(\w+)`", cell)}
    assert options == set(testbed.Registry().dataset("images").defaults)


@pytest.mark.slow
def test_the_study_of_the_reference_is_one(tmp_path: Path) -> None:
    made = planned(tmp_path, blocks("reference/study-keys.md", "toml")[0])
    arms = {label["arm"] for one in made.trials for label in one.labels}
    assert arms == {"published", "equal"}


def test_the_code_of_the_theory_shows_that_tweedie_holds() -> None:
    names: dict[str, Any] = {}
    exec(blocks("explanation/theory.md", "python")[0], names)
    assert float(names["error"].detach()) < 1e-14
    assert not torch.equal(names["tweedie"], names["x"])


# --- what is generated --------------------------------------------------------------------------


def keys(model: type, prefix: str = "") -> Iterator[str]:
    for name, info in generated._fields(model).items():
        yield f"{prefix}{name}"
        for one in generated._models(info.annotation):
            yield from keys(one, f"{prefix}{name}.")


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ("study", "study."),
        ("executor", "executor."),
        ("report", "report."),
        ("fixed", "fixed."),
        ("", ""),
    ],
)
def test_the_page_of_study_keys_has_every_key_once(section: str, word: str) -> None:
    text = generated.study_keys(section or "base")
    rows = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    assert rows == list(dict.fromkeys(rows))
    assert set(rows) == set(keys(generated.SECTIONS[section], word))
    assert f"% generated: study_keys {section or 'base'}\n" in page("reference/study-keys.md")


def test_a_row_has_type_limits_default_and_sentence() -> None:
    text = generated.study_keys("base")
    assert "| `evaluation.draws` | integer, at least 2 | `1024` | " in text
    assert '| `network` | [component](#components) | `"mlp"` |' in text

    class Some(BaseModel):
        """Some settings."""

        width: Annotated[int, SimpleNamespace(says="Width of a layer.")] = Field(64, ge=1)
        other: float = Field(description="Another number.")

    (table,) = generated._tables(Some, "some.")
    assert "| `some.width` | integer, at least 1 | `64` | Width of a layer. |" in table
    assert "| `some.other` | number |  | Another number. |" in table


def test_the_page_of_the_command_line_has_every_command_and_option() -> None:
    from testbed.cli.app import app

    text = generated.commands("")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__  # type: ignore[union-attr]
        assert f"\n## testbed {name}\n" in text
    assert "`--set`" in text
    assert "% generated: commands\n" in page("reference/command-line.md")


def test_every_room_has_a_page() -> None:
    rooms = {file.parent.name for file in (ROOT / "testbed").glob("*/__init__.py")}
    pages = {file.stem for file in (DOCS / "reference" / "api").glob("*.md")}
    # The command line has a page of its own, templates are files to copy, ext holds nothing.
    assert pages - {"index", "root"} == rooms - {"cli", "templates", "ext"}
    for name in pages - {"index"}:
        assert f"% generated: room {name}\n" in page(f"reference/api/{name}.md")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["F* and |D - x0|^2 of `x_0`s"], [r"F\* and \|D - x0\|^2 of ``x_0``\ s"]),
        (["Text.", "", "    D = F*"], ["Text.", "", "::", "", "        D = F*"]),
        (["Args:", "    x: a `b`."], ["Args:", "    x: a ``b``."]),
        (["a_ b_c"], [r"a\_ b_c"]),
    ],
)
def test_docstrings_keep_their_formulas(lines: list[str], expected: list[str]) -> None:
    assert list(docstrings.rewritten(lines)) == expected


# --- the built site, the citation ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html#there">x</a>', ""),
        ('<a href="https://example.org">x</a>', ""),
        ('<a href="c.html">x</a>', "does not exist"),
        ('<a href="b.html#gone">x</a>', "no such anchor"),
        ('<script src="https://example.org/x.js"></script>', "loads"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "loads"),
        ('<img src="https://example.org/x.png">', "loads"),
    ],
)
def test_a_page_that_links_nowhere_or_loads_from_elsewhere_is_found(
    tmp_path: Path, body: str, problem: str
) -> None:
    (tmp_path / "a.html").write_text(f"<html>{body}</html>")
    (tmp_path / "b.html").write_text('<html><p id="there"></p></html>')
    found = check_pages.problems(tmp_path)
    assert (len(found) == 1 and problem in found[0]) if problem else found == []


def test_a_style_that_loads_from_elsewhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<html></html>")
    (tmp_path / "a.css").write_text("@font-face { src: url(https://example.org/x.woff) }")
    assert len(check_pages.problems(tmp_path)) == 1


def test_the_citation_is_whole_and_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "abstract", "version", "license"} <= set(
        cited
    )
    assert cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (testbed.__version__, "MIT")
    assert f"version = {{{testbed.__version__}}}" in page("how-to/cite.md")
    listed = {one["url"].rpartition("/")[2] for one in cited["references"]}
    registry = testbed.Registry()
    for name in ("eps", "v", "edm", "x0", "score"):
        known = set(re.findall(r"arXiv:([\d.]+\d)", registry.parameterization(name).reference))
        assert known, name
        assert known <= listed
        row = re.search(rf"^\| `{name}` \|.*$", page("how-to/cite.md"), re.MULTILINE)
        assert row is not None
        assert known <= set(re.findall(r"abs/([\d.]+)", row[0]))
