"""A study file names its plugins: where they are looked for, and that every command finds them."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.command_line import Done, run_here, trials_only

import testbed
from testbed.errors import InputError, PluginError
from testbed.study import study_file

MINE = """
import testbed

def {name}(sigma):
    return {scale} / sigma**2

@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("{name}", {name})
"""
STUDY = """
[study]
name = "named"

[base]
dataset = { name = "mixture", dim = 2, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 20, batch = 8, points = 2 }
evaluation = { levels = 3, draws = 16, samples = 16, steps = 3, metrics = ["energy"] }
seeds = 1

[grid]
parameterization = ["edm"]
weighting = ["mine", "other"]
"""
PLUGINS = 'plugins = ["mine.py", "named_by_a_study", "no:edm2"]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a study and its plugins, one of them a module; commands run in the one above."""
    (here := tmp_path / "studies").mkdir()
    (here / "mine.py").write_text(MINE.format(name="mine", scale=2.0))
    (modules := tmp_path / "modules").mkdir()
    (modules / "named_by_a_study.py").write_text(MINE.format(name="other", scale=3.0))
    monkeypatch.syspath_prepend(modules)
    (here / "study.toml").write_text(PLUGINS + STUDY)
    yield here
    sys.modules.pop("named_by_a_study", None)


def with_plugins(folder: Path, line: str, rest: str = STUDY) -> Done:
    (folder / "study.toml").write_text(f"{line}\n{rest}")
    return run_here(folder.parent, "plan", "studies/study.toml")


# --- what a file says ---------------------------------------------------------------------------


def test_paths_are_relative_to_the_study_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    file = Path("studies/study.toml")
    for found in (study_file.plugins(file), study_file.read(file).plugins):
        assert dict(found) == {
            str(folder / "mine.py"): "studies/study.toml: plugins = 'mine.py'",
            "named_by_a_study": "studies/study.toml: plugins = 'named_by_a_study'",
            "no:edm2": "studies/study.toml: plugins = 'no:edm2'",
        }


@pytest.mark.slow
def test_a_study_file_leaves_out_one_of_two_files_of_one_name(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "more" / "mine.py").write_text(MINE.format(name="mine", scale=9.0))
    rest = STUDY.replace('"mine", "other"', '"mine"')
    two = with_plugins(folder, 'plugins = ["mine.py", "more/mine.py"]', rest)
    assert (two.code, "is registered twice" in two.err) == (2, True)
    line = 'plugins = ["mine.py", "more/mine.py", "no:more/mine.py"]'
    one = with_plugins(folder, line, rest)
    assert (one.code, one.err) == (0, "")


def test_a_study_without_plugins_has_none() -> None:
    assert study_file.plugins(Path("default")) == {}


@pytest.mark.slow
def test_words_of_the_command_line_come_on_top(folder: Path) -> None:
    (folder.parent / "third.py").write_text(MINE.format(name="third", scale=1.0))
    words = ["plan", "studies/study.toml", "-p", "third.py", "-p", "no:mine"]
    assert run_here(folder.parent, *words, "--set", 'grid.weighting=["third","other"]').code == 0
    done = run_here(folder.parent, *words)  # which leave out what the file names
    assert (done.code, "Unknown weighting 'mine'" in done.err) == (2, True)
    # The same file twice is one plugin.
    again = run_here(folder.parent, "plan", "studies/study.toml", "-p", "studies/mine.py")
    assert (again.code, again.err) == (0, "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('plugins = ["mime.py"]', r"plugins = 'mime\.py': .*no such file\. Did you mean '.*mine"),
        ('plugins = ["mine"]', r"plugins = 'mine': there is no such module\. Did you mean 'mine"),
        ('plugins = ["no.such.module"]', r"plugins = 'no\.such\.module': .*No module named 'no"),
        ('plugins = ["no:mime", "mine.py"]', r"plugins = 'no:mime': .*Did you mean 'mine'"),
        ('plugins = ["broken.py"]', r"plugins = 'broken\.py': .*is broken: NameError"),
        ('plugins = "mine.py"', r"plugins = 'mine\.py' must be a list of files, modules and no:"),
        ("plugins = [3]", r"plugins = \[3\] must be a list"),
        ('plugins = [""]', r"plugins = \[''\] must be a list"),
        ('plugin = ["mine.py"]', "Unknown section 'plugin'. Did you mean 'plugins'"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_file_the_key_and_what_is_meant(
    folder: Path, line: str, said: str
) -> None:
    (folder / "broken.py").write_text("nothing")
    rest = STUDY.replace('"mine", "other"', '"edm"')
    done = with_plugins(folder, line, rest)
    assert done.code == 2
    assert re.search(rf"^testbed: studies/study\.toml: {said}", done.err, re.MULTILINE), done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("section", ["study", "base", "grid", "report", "cases"])
def test_plugins_below_a_section_are_sent_to_the_top(folder: Path, section: str) -> None:
    line = 'plugins = ["mine.py"]\n'
    header = f"[{section}]\n"
    if section == "cases":
        rest = f'{STUDY}[[cases]]\nname = "a"\n{line}'
    elif header in STUDY:
        rest = STUDY.replace(header, header + line)
    else:
        rest = STUDY + header + line
    done = with_plugins(folder, "", rest)
    said = f"{section}.plugins = ['mine.py']: expected plugins at the top of the file"
    assert (done.code, said in done.err) == (2, True), done.err
    assert "unknown key" not in done.err


def test_a_setting_is_no_way_to_name_plugins(folder: Path) -> None:
    with pytest.raises(InputError, match="a plugin is named in the study file, or with -p"):
        study_file.read(folder / "study.toml", ['plugins=["mine.py"]'])


# --- in Python ----------------------------------------------------------------------------------


def test_a_study_in_python_names_its_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    read = testbed.Study.read("study.toml")
    words = (str(folder / "mine.py"), "named_by_a_study", "no:edm2")
    assert read.plugins == words
    assert (
        testbed.Study("a", plugins=["mine.py"], base=read.base, grid=read.grid).plugins == words[:1]
    )
    again = testbed.Study.from_toml(read.to_toml())
    assert again == read
    assert tuple(read.content.plugins) == words
    assert testbed.Study("a", base=read.base, grid=read.grid).to_toml().startswith("[study]")


@pytest.mark.slow
def test_a_study_from_python_loads_them(folder: Path, tmp_path: Path) -> None:
    study = testbed.Study.read(folder / "study.toml")
    with trials_only():
        found = testbed.run(study, out=tmp_path / "run", jobs=0, engine="sequential")
    assert found.statuses() == {"finished": 2}
    (folder / "mine.py").unlink()
    with pytest.raises(PluginError, match=r"study\.toml: plugins = '.*mine\.py': .*no such file"):
        testbed.run(study, out=tmp_path / "run", jobs=0)


# --- every command ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """Where a study ran in worker processes, and how that ended."""

    at: Path
    done: Done

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.at / "runs" / "named"

    @property
    def trials(self) -> list[Path]:
        """The folders of its trials."""
        return sorted((self.folder / "trials").iterdir())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    at = tmp_path_factory.mktemp("named")
    (at / "studies").mkdir()
    (at / "studies" / "mine.py").write_text(MINE.format(name="mine", scale=2.0))
    text = 'plugins = ["mine.py", "no:edm2"]\n' + STUDY.replace('"mine", "other"', '"edm", "mine"')
    (at / "studies" / "study.toml").write_text(text)
    words = ["study", "studies/study.toml", "--jobs", 1, "--no-mlflow", "--engine", "sequential"]
    return Ran(at, run_here(at, *words))


@pytest.mark.process
@pytest.mark.slow
def test_workers_load_them_and_the_record_has_the_command_that_runs_it_again(ran: Ran) -> None:
    assert ran.done.code == 0, ran.done.err
    record = json.loads((ran.folder / "study.json").read_text())
    command = record["asked"]["command"]
    assert command[:3] == ["testbed", "study", "studies/study.toml"]
    assert "-p" not in command
    assert record["asked"]["plugins"] == ["studies/mine.py", "no:edm2"]
    again = run_here(ran.at, "plan", *command[2:])
    assert "2 finished" in again.out, again.out


@pytest.mark.process
@pytest.mark.slow
def test_a_trial_is_sampled_loaded_and_audited(ran: Ran) -> None:
    for trial in ran.trials:
        assert testbed.load(trial) is not None
        assert run_here(ran.at, "sample", trial, "-n", 4, "--out", "a.npy").code == 0
    assert run_here(ran.at, "report", "runs/named").code == 0


@pytest.mark.process
@pytest.mark.slow
def test_an_archive_has_them_and_runs_without_the_study_s_folder(ran: Ran, tmp_path: Path) -> None:
    assert run_here(ran.at, "pack", "runs/named", "--out", "named.zip").code == 0
    (ran.at / "named.zip").rename(tmp_path / "named.zip")
    hidden = ran.at / "studies"
    hidden.rename(ran.at / "hidden")
    try:
        done = run_here(tmp_path, "verify", "named.zip")
    finally:
        (ran.at / "hidden").rename(hidden)
    assert (done.code, done.err) == (0, ""), done.out
