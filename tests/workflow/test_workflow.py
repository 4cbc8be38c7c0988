"""A study from Python to its results, packed, and run again by another lab."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import environment, run_here, trials_only

import testbed
from testbed.errors import InputError
from testbed.workflow import archive
from testbed.workflow.verification import compare_tables, verify

PLUGIN = """
import testbed
from testbed.ext._scale import SCALE

def scaled(sigma):
    return SCALE / sigma**2

@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("scaled", scaled)
"""
STUDY = testbed.Study(
    name="handed_on",
    base={
        "dataset": {"name": "mixture", "dim": 2, "n": 256, "test": 64},
        "network": {"name": "mlp", "width": 8, "depth": 1},
        "training": testbed.Training(steps=30, batch=8, points=2),
        "evaluation": {"levels": 3, "draws": 16, "samples": 16, "steps": 3, "metrics": ["energy"]},
        "weighting": "scaled",
        "seeds": 2,
    },
    grid={"parameterization": ["v", "edm"]},
    report={"baseline": "edm"},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> testbed.StudyResult:
    folder = tmp_path_factory.mktemp("lab")
    plugins = folder / "plugins"
    plugins.mkdir()
    (plugins / "scaled.py").write_text(PLUGIN)
    (plugins / "_scale.py").write_text("SCALE = 2.0\n")
    with trials_only():
        return testbed.run(
            STUDY,
            overrides={"training.steps": 40},
            out=folder / "run",
            jobs=0,
            engine="sequential",
            plugin_dirs=[plugins],
        )


@pytest.fixture(scope="module")
def packed(finished: testbed.StudyResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "study.zip"
    archive.pack(finished.folder, file)
    return file


def rewritten(
    file: Path, at: Path, change: Callable[[dict[str, bytes]], None], signed: bool = True
) -> Path:
    """The archive with its files changed, and, where `signed`, their digests with them."""
    with zipfile.ZipFile(file) as zipped:
        files = {name: zipped.read(name) for name in zipped.namelist()}
    change(files)
    if signed:
        manifest = json.loads(files["manifest.json"])
        manifest["files"] = {
            name: archive.sha256(content)
            for name, content in files.items()
            if name != "manifest.json"
        }
        files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(at, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return at


def other_digit(table: bytes, column: str, row: int = 0) -> bytes:
    """The table with one digit of a cell, its last, another one."""
    lines = [line.split(",") for line in table.decode().splitlines()]
    cell = lines[0].index(column)
    text = lines[row + 1][cell]
    assert text[-1].isdigit()
    lines[row + 1][cell] = text[:-1] + str((int(text[-1]) + 1) % 10)
    return "\n".join(map(",".join, lines)).encode() + b"\n"


# --- run ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_in_python_runs_to_its_results(finished: testbed.StudyResult) -> None:
    assert finished.statuses() == {"finished": 4}
    assert set(finished.trials["variant"]) == {"v", "edm"}
    assert set(finished.trials["seed"]) == {0, 1}
    config = next(iter(finished.content.configs.values()))
    assert config.training.steps == 40
    assert finished.content.study["asked"]["set"] == ["training.steps=40"]


@pytest.mark.slow
def test_the_study_is_written_beside_its_results(finished: testbed.StudyResult) -> None:
    assert testbed.Study.read(finished.folder / "study.toml") == STUDY
    assert testbed.Study.from_toml(finished.content.study["file"]) == STUDY


@pytest.mark.slow
def test_a_study_in_python_gives_the_numbers_of_the_command(
    finished: testbed.StudyResult, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(STUDY.to_toml())
    words = ["study", "study.toml", "--set", "training.steps=40", "--jobs", 0, "--no-mlflow"]
    words += ["--engine", "sequential", "--plugin-dir", finished.folder.parent / "plugins"]
    with trials_only():
        done = run_here(tmp_path, *words)
    assert done.code == 0, done.err
    again = testbed.open(tmp_path / "runs" / "handed_on")
    pd.testing.assert_frame_equal(again.trials, finished.trials)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": "gpu"}, "device gpu: expected auto, cpu, cuda"),
        ({"engine": "fast"}, "Unknown engine 'fast'"),
        ({"overrides": {"training.stepz": 3}}, "Did you mean 'steps'"),
        ({"overrides": {"training.steps": None}}, "training.steps = None"),
        ({"only": ["edn"]}, "Did you mean 'edm'"),
        ({"seeds": 0}, "must be at least 1"),
        ({"plugins": ["nowhere.py"]}, "no such file"),
    ],
)
def test_bad_input_is_one_message(
    tmp_path: Path, change: Mapping[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        testbed.run("default", **{"seeds": 1, **change})
    assert said in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.process
@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    """Worker processes do not run the script again that started them."""
    script = [
        "import testbed",
        "from testbed import report",
        "from testbed.study import identities",
        "identities.subjects = lambda plan, registry: {}",  # it takes long, as the report does
        "report.renew = lambda folder: folder / 'report.html'",
        "print('begun')",
        f"study = testbed.Study.from_toml('''{STUDY.to_toml()}''')",
        "found = testbed.run(study, jobs=1, engine='sequential', only=['v'], seeds=1,",
        "                    overrides={'weighting': 'edm'})",
        "print(found.statuses())",
    ]
    (tmp_path / "script.py").write_text("\n".join(script))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["begun", "{'finished': 1}"], done.stderr


# --- pack --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_archive_has_what_another_lab_needs_and_nothing_of_this_machine(
    packed: Path, finished: testbed.StudyResult
) -> None:
    manifest, files = archive.read(packed)
    assert {"study.toml", "plan.json", "README.txt", "plugins/0/scaled.py", "plugins/0/_scale.py",
            "tables/trials.csv", "tables/levels.csv", "tables/results.csv",
            "tables/comparisons.csv"} <= set(files)  # fmt: skip
    assert manifest.files == {name: archive.sha256(content) for name, content in files.items()}
    assert (manifest.overrides, manifest.trained_seeds) == (("training.steps=40",), (0, 1))
    (plugin,) = (one for one in manifest.plugins if one.name == "scaled")
    assert plugin.version == archive.sha256(files["plugins/0/scaled.py"])
    assert "torch" in manifest.versions
    for name, content in files.items():
        content.decode()  # text alone, no pickle
        assert str(finished.folder.parent) not in content.decode(), name
    assert str(finished.folder.parent) not in manifest.model_dump_json()


@pytest.mark.slow
def test_the_same_study_gives_the_same_archive(
    packed: Path, finished: testbed.StudyResult, tmp_path: Path
) -> None:
    archive.pack(finished.folder, tmp_path / "study.zip")
    assert (tmp_path / "study.zip").read_bytes() == packed.read_bytes()


@pytest.mark.slow
def test_what_is_not_whole_is_not_packed(finished: testbed.StudyResult, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    shutil.copytree(finished.folder.parent, lab)
    file = lab / "run" / "study.json"
    file.write_text(file.read_text().replace(str(finished.folder.parent), str(lab)))
    plugin = lab / "plugins" / "scaled.py"
    plugin.write_text(PLUGIN + "# later\n")
    with pytest.raises(InputError, match="was changed since"):
        archive.pack(lab / "run", tmp_path / "no.zip")
    plugin.write_text(PLUGIN)
    archive.pack(lab / "run", tmp_path / "yes.zip")
    next((lab / "run" / "trials").glob("*/result.json")).unlink()
    with pytest.raises(InputError, match=r"1 new: expected every trial to have ended"):
        archive.pack(lab / "run", tmp_path / "no.zip")
    assert not (tmp_path / "no.zip").exists()


# --- verify ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_packed_study_gives_the_same_numbers_again(packed: Path) -> None:
    with trials_only():
        found = verify(packed)
    assert found.summary().startswith("same: all ")
    assert (found.same, found.notes, found.changed) == (True, [], [])
    assert found.cells > 200


@pytest.mark.slow
def test_one_changed_digit_is_found(packed: Path, tmp_path: Path) -> None:
    """With its digest: what runs again differs. Without: the archive itself says so as well."""

    def change(files: dict[str, bytes]) -> None:
        name = "tables/trials.csv"
        files[name] = other_digit(files[name], "value", row=2)

    changed = rewritten(packed, tmp_path / "signed.zip", change)
    with trials_only():
        done = run_here(tmp_path, "verify", changed, "--json", "--out", "kept")
        # The second time the trials are there, and only the comparison is made.
        other = rewritten(packed, tmp_path / "unsigned.zip", change, signed=False)
        told = run_here(tmp_path, "verify", other, "--out", "kept")
    found = json.loads(done.out)
    assert (done.code, found["same"], found["changed"]) == (1, False, [])
    (one,) = found["differences"]
    assert (one["table"], one["column"]) == ("trials", "value")
    assert one["before"] != one["after"]
    assert found["summary"].startswith("differs: 1 of ")
    assert told.code == 1
    assert "tables/trials.csv was changed after the study was packed." in told.out
    assert one["after"] in told.out


@pytest.mark.slow
def test_a_folder_with_a_run_of_another_archive_is_refused(packed: Path, tmp_path: Path) -> None:
    """Its trials, tables and plugins would be taken for those of this one."""
    at = tmp_path / "kept" / "packed" / "plugins" / "0"
    at.mkdir(parents=True)
    (at / "other.py").write_text("")
    done = run_here(tmp_path, "verify", packed, "--out", "kept")
    assert done.code == 2
    assert "kept holds a run of another archive: name another folder" in " ".join(done.err.split())


@pytest.mark.slow
def test_tables_that_were_there_before_are_not_compared(packed: Path, tmp_path: Path) -> None:
    old = tmp_path / "run" / "tables" / "old.csv"
    old.parent.mkdir(parents=True)
    old.write_text("case\nx\n")
    with trials_only():
        found = verify(packed, folder=tmp_path)
    assert found.same, found.summary()


TABLE = b"case,seed,metric,value,verdict\nx,0,energy,0.125,better\nx,1,energy,inf,\n"


@pytest.mark.parametrize(
    ("after", "columns"),
    [
        (TABLE, []),
        (TABLE.replace(b"0.125", b"0.1250000000000001"), ["value"]),
        (TABLE.replace(b"better", b"worse"), ["verdict"]),
        (TABLE.replace(b"inf", b""), ["value"]),
        (TABLE.replace(b"inf", b"7"), ["value"]),
        (TABLE.replace(b"metric", b"name"), ["metric", "name"]),
        (TABLE[: TABLE.index(b"x,1")], ["rows"]),
        (b"case,seed\nx,0\nx,1\n", ["metric", "value", "verdict"]),
    ],
)
def test_a_difference_is_named_by_its_cell(after: bytes, columns: list[str]) -> None:
    found, cells = compare_tables({"t": TABLE}, {"t": after})
    assert [one.column for one in found] == columns
    assert cells > 0
    back, _ = compare_tables({"t": after}, {"t": TABLE})
    assert len(back) == len(columns)


def test_every_digit_of_every_cell_counts() -> None:
    for place, letter in enumerate(TABLE):
        if chr(letter).isdigit():
            other = TABLE[:place] + str((letter + 1) % 10).encode()[:1] + TABLE[place + 1 :]
            if other != TABLE:
                assert compare_tables({"t": TABLE}, {"t": other})[0], place


def test_a_difference_has_its_size() -> None:
    (one,), _ = compare_tables({"t": TABLE}, {"t": TABLE.replace(b"0.125", b"0.1")})
    assert one.size == pytest.approx(0.2, rel=1e-12)
    assert str(one) == "t.csv, x · seed 0 · energy, value: 0.125 → 0.1, by 0.2 of it"
    (lost,), _ = compare_tables({"t": TABLE}, {})
    assert (lost.before, lost.after) == ("there", "missing")


def test_ids_and_rounding_errors_are_not_compared() -> None:
    one, other = b"id,value\na,1\n", b"id,value\nb,1\n"
    assert compare_tables({"trials": one}, {"trials": other})[0] == []
    assert compare_tables({"results": one}, {"results": other})[0] != []
    one, other = b"law,error,passed\na,1e-17,True\n", b"law,error,passed\na,2e-17,True\n"
    assert compare_tables({"tweedie": one}, {"tweedie": other})[0] == []
    failed = other.replace(b"True", b"False")
    assert [d.column for d in compare_tables({"tweedie": one}, {"tweedie": failed})[0]] == [
        "passed"
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"PK not", "cannot be read as a zip file"),
        ({}, "has no manifest.json"),
        ({"manifest.json": b"{}"}, "manifest.json: name: Field required"),
        ({"manifest.json": b'{"name": "x", "format": 9}'}, "manifest.json: format"),
        ({"manifest.json": b'{"name": "x"}'}, "has no study.toml"),
        ({"../evil.py": b""}, "leads out of the archive"),
        ({"/etc/evil": b""}, "leads out of the archive"),
    ],
)
def test_what_is_no_archive_is_refused(
    tmp_path: Path, content: bytes | dict[str, bytes] | None, said: str
) -> None:
    file = tmp_path / "x.zip"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        with zipfile.ZipFile(file, "w") as zipped:
            for name, text in content.items():
                zipped.writestr(name, text)
    done = run_here(tmp_path, "verify", "x.zip")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert {path.name for path in tmp_path.iterdir()} <= {"x.zip"}


def test_pack_needs_a_file_and_a_study(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    missing = run_here(tmp_path, "pack", "empty")
    assert (missing.code, "--out is missing" in missing.err) == (2, True)
    none = run_here(tmp_path, "pack", "empty", "--out", "x.zip")
    assert (none.code, "has no study.json" in none.err) == (2, True)
    assert not (tmp_path / "x.zip").exists()
