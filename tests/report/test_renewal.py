"""A report is written again where what it is made of has changed, and only there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.planted_studies import noisy, plant

from testbed import report
from testbed.report import renewal

PLANTED = {("c", "a", "b"): noisy(1.0), ("c", "a", "w"): noisy(0.7, stream=1)}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose report is up to date."""
    folder = plant(tmp_path_factory.mktemp("renewal") / "study", PLANTED)
    (folder / "trials" / "t0000" / "weights.safetensors").write_bytes(b"of no interest")
    assert report.renew(folder) == folder / "report.html"
    return folder


@pytest.fixture
def folder(once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(once, tmp_path / "study"))


def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `renew` writes the report."""
    calls: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(report, "write", lambda folder, say: calls.append(folder))
        report.renew(folder)
    return bool(calls)


@pytest.mark.slow
def test_nothing_is_written_where_nothing_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(report, "write", lambda folder, say: pytest.fail("it writes"))
    assert report.renew(folder, said.append) == folder / "report.html"
    assert said == ["the report is up to date"]


@pytest.mark.slow
def test_it_is_what_write_would_write(folder: Path, tmp_path: Path) -> None:
    page = report.write(folder, out=tmp_path / "out")
    assert page.read_bytes() == (folder / "report.html").read_bytes()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "study.json",
        "tweedie.json",
        "looks.json",
        "coefficients.csv",
        "data/c.json",
        "data/c.safetensors",
        "trials/t0000/trial.json",
        "trials/t0000/result.json",
        "trials/t0000/levels.csv",
        "trials/t0000/rows.jsonl",
        "trials/t0000/tweedie.json",
        "trials/t0000/samples.safetensors",
        "report.html",
        "tables/trials.csv",
        "report.json",
    ],
)
@pytest.mark.parametrize("harm", [shorten, Path.unlink], ids=["changed", "gone"])
def test_a_file_that_changed_or_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, harm: Callable[[Path], None]
) -> None:
    harm(folder / name)
    assert written(folder, monkeypatch)


@pytest.mark.parametrize(
    "name", ["trials/t0000/checkpoint", "trials/t0000/points/3/levels.csv", "figures/more.svg"]
)
def test_a_file_that_is_new(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("")
    assert written(folder, monkeypatch)


def test_what_the_report_does_not_read_may_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "trials" / "t0000" / "weights.safetensors").write_bytes(b"others")
    (folder / "mlflow.json").write_text("{}")
    (folder / "mine.txt").write_text("a user's own file")
    (folder / "trials" / "of another study").mkdir()
    (folder / "trials" / "of another study" / "result.json").write_text("{}")
    assert not written(folder, monkeypatch)


@pytest.mark.slow
def test_other_sources(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = tmp_path / "core"
    shutil.copytree(
        Path(renewal.errors.__file__).parent, core, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(renewal.errors, "__file__", str(core / "errors.py"))
    assert not written(folder, monkeypatch)
    with (core / "report" / "report.html.j2").open("a") as template:
        template.write("<!-- another -->")
    assert written(folder, monkeypatch)


@pytest.mark.slow
def test_a_second_look_at_more_seeds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report adds to looks.json, which it is made of: that alone is no reason to write."""
    more = {label: values[:4] for label, values in PLANTED.items()}
    plant(folder, more)
    report.renew(folder)
    assert len(json.loads((folder / "looks.json").read_text())["looks"]) == 2
    assert not written(folder, monkeypatch)
