"""The command line: what it imports, shows and writes, and one message for every mistake."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.command_line import environment, run_here, run_process, unplaced_figures
from helpers.paths import ROOT
from helpers.studies import SMALL, TINY, planned
from rich.console import Console

import testbed
from testbed.cli import app, completion, render
from testbed.errors import InputError
from testbed.registry import AXES, default_registry
from testbed.study import plan, study_file
from testbed.study.engines import ExecutionPlan

COMMANDS = [
    "plugins", "explain", "check", "new", "audit", "plan", "study", "sample", "export", "report",
    "sync", "ui", "status", "log", "cancel", "retry", "compare", "pack", "verify", "selftest",
]  # fmt: skip
BUNDLED = "edm, eps, flow, minus_eps, score, trigflow, v, x0"
EXPLAINED = ("parameterization", "weighting", "loss", "density", "recipe")
HEAVY = ("torch", "pandas", "numpy", "scipy", "mlflow", "matplotlib")

INDEXED = """
import testbed
def target(x0, eps, sigma):
    pick = {"i": [1]}
    return pick["i"][0] * eps  # [/x] is no markup
def scaling(sigma):
    return testbed.Coefficients(1 + 0 * sigma, -sigma, 1 + 0 * sigma, sigma)
@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization("indexed", scaling, target=target, noise_kind="sigma")
"""


def components() -> list[tuple[str, str]]:
    """(axis, name) of all that `explain` explains."""
    registry = testbed.Registry()
    return [(axis, name) for axis in EXPLAINED for name in registry.names(axis)]


# --- help ---------------------------------------------------------------------------------------


WATCHED = f"""
import atexit, gc, sys
from testbed.cli.app import main
atexit.register(lambda: print([name for name in {(*HEAVY, "rich")} if name in sys.modules]))
atexit.register(lambda: print("left to the collector:", len(gc.get_objects())))
main()
"""
"""The command line, which says at its end what it has imported of what takes long."""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("words", [["--help"], ["study", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    left, heavy = done.stdout.splitlines()[-2:]
    assert heavy == "[]"
    assert int(left.partition(":")[2]) < 1000  # what was imported is 20,000 and more


COMPLETED = {
    "testbed stu": ["study"],
    "testbed study def": ["default"],
    "testbed plan ti": ["tiny.toml"],
    "testbed plan o": ["other/"],
    "testbed explain min": ["min_snr", "minus_eps"],
    "testbed explain local_": ["local_weighting"],
    "testbed audit v --parameterization ed": ["edm"],
    "testbed new mine --axis we": ["weighting"],
    "testbed report runs/": ["runs/tiny"],
    "testbed sample 12": ["12ab"],
    "testbed can": ["cancel"],
    "testbed status runs/": ["runs/tiny"],
    "testbed log runs/tiny 12": ["12ab"],
}


COMPLETING = f"""
import contextlib, io, json, os, sys
from testbed.cli.app import main
shown = {{}}
for line in {list(COMPLETED)}:
    os.environ.update(COMP_WORDS=line, COMP_CWORD=str(len(line.split()) - 1),
                      _TYPER_COMPLETE_ARGS=line)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    shown[line] = out.getvalue(), [name for name in {HEAVY} if name in sys.modules]
print(json.dumps(shown))
"""
"""Every line as a shell asks for it: what it is answered, and what was imported by then."""


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[str, list]]]:
    """By shell and line."""
    folder = tmp_path_factory.mktemp("completed")
    (folder / "tiny.toml").write_text(TINY)
    (folder / "other").mkdir()
    (folder / "plugins").mkdir()
    (folder / "plugins" / "local.py").write_text('testbed.Weighting("local_weighting", len)\n')
    (folder / "runs" / "tiny" / "trials" / "12ab").mkdir(parents=True)
    (folder / "runs" / "tiny" / "trials" / "12ab" / "trial.json").write_text("{}")
    (folder / "runs" / "tiny" / "study.json").write_text("{}")
    found = {}
    for shell in ("bash", "zsh", "fish"):
        asked = {
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "_TESTBED_COMPLETE": f"complete_{shell}",
        }
        done = subprocess.run(
            [sys.executable, "-c", COMPLETING],
            env={**environment(), **asked, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found[shell] = json.loads(done.stdout)
    return found


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(("line", "words"), COMPLETED.items(), ids=COMPLETED)
def test_a_shell_completes_without_anything_heavy(
    completions: dict[str, dict[str, tuple[str, list]]], line: str, words: list[str], shell: str
) -> None:
    shown, heavy = completions[shell][line]
    assert heavy == []
    # zsh has words with their help as "word":"help", fish in two columns.
    found = re.findall(r'"([\w/.]+)"', shown) if shell == "zsh" else shown.splitlines()
    assert [word.partition("\t")[0] for word in found] == words


def test_a_study_of_leases_is_completed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "leased" / "trials" / "34cd" / "fence-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert completion.study_folders("runs/") == ["runs/leased"]
    assert completion.trials("3") == ["34cd"]


def test_version_is_that_of_the_package(tmp_path: Path) -> None:
    done = run_here(tmp_path, "--version")
    assert (done.code, done.out, done.err) == (0, f"testbed {testbed.__version__}\n", "")


def test_help_lists_every_command_and_no_word_at_all_is_help(tmp_path: Path) -> None:
    shown = run_here(tmp_path, "--help")
    assert shown.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s", shown.out, flags=re.MULTILINE), command
    assert "testbed study default" in shown.out
    assert "Usage" in run_here(tmp_path).out + run_here(tmp_path).err
    assert len(app.app.registered_commands) == len(COMMANDS)


@pytest.mark.parametrize("width", [60, 80, 250])
def test_help_has_the_whole_first_paragraph_of_each_command_under_its_panel(
    tmp_path: Path, width: int
) -> None:
    shown = run_here(tmp_path, "--help", COLUMNS=str(width)).out
    assert max(map(len, shown.splitlines())) <= min(width, 100)
    sections = dict(re.findall(r"^(\w+):\n((?:  .*\n)+)", shown, flags=re.MULTILINE))
    words = {panel: " ".join(text.split()) for panel, text in sections.items()}
    for one in app.app.registered_commands:
        first, _, _ = one.callback.__doc__.partition("\n\n")
        command = f"{one.callback.__name__} {' '.join(first.split())}"
        assert command in words[one.rich_help_panel]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(tmp_path: Path, command: str) -> None:
    for flag in ("--help", "-h"):
        done = run_here(tmp_path, command, flag)
        assert (done.code, done.err) == (0, "")
        callback = next(
            c.callback for c in app.app.registered_commands if c.callback.__name__ == command
        )
        assert callback.__doc__.splitlines()[0].rstrip(".") in done.out
    assert not list(tmp_path.iterdir())


# --- plugins ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plugins_lists_components_and_where_they_come_from(tmp_path: Path) -> None:
    done = run_here(tmp_path, "plugins")
    assert (done.code, done.err) == (0, "")
    assert re.search(rf"parameterization +{BUNDLED} ", done.out)
    for axis in AXES:
        assert re.search(rf"^{axis} ", done.out, flags=re.MULTILINE), axis
    digest = testbed.Registry().source(testbed.Registry().parameterization("v")).version
    assert re.search(rf"v +file +{digest[:12]} +{ROOT / 'plugins' / 'v.py'}", done.out)
    assert "testbed explain NAME" in done.out


def test_plugins_in_json_are_those_of_the_registry(tmp_path: Path) -> None:
    done = run_here(tmp_path, "plugins", "--json")
    found, registry = json.loads(done.out), testbed.Registry()
    pairs = {(one["axis"], one["name"]) for one in found["components"]}
    assert pairs == {(axis, name) for axis in AXES for name in registry.names(axis)}
    assert {"axis": "parameterization", "name": "v", "plugin": "v"} in found["components"]
    assert found["failures"] == []
    assert [one["plugin"] for one in found["plugins"]] == [s.plugin for s in registry.provenance]
    assert {"plugin", "kind", "origin", "version"} <= set(found["plugins"][0])


@pytest.mark.slow
def test_plugins_shows_what_is_added_left_out_and_broken(tmp_path: Path) -> None:
    (tmp_path / "indexed.py").write_text(INDEXED)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken_two.py").write_text("raise RuntimeError('a [/b] c')\n")
    done = run_here(tmp_path, "plugins", "-p", "indexed.py", "-p", "no:score")
    assert done.code == 0, done.err
    shown = BUNDLED.replace("score, ", "").replace("flow, minus", "flow, indexed, minus")
    assert re.search(rf"parameterization +{shown} ", done.out)
    broken = run_here(tmp_path, "plugins", "--plugin-dir", "broken")
    assert broken.code == 1
    where = tmp_path / "broken" / "broken_two.py"
    assert f"not loaded broken_two ({where}): RuntimeError: a [/b] c" in broken.out
    strict = run_here(tmp_path, "plugins", "--plugin-dir", "broken", "--strict")
    assert strict.code == 2
    assert "plugin 'broken_two'" in strict.err
    assert "RuntimeError: a [/b] c" in strict.err


# --- explain ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for _, name in components()}))
def test_every_component_is_explained(tmp_path: Path, name: str) -> None:
    done = run_here(tmp_path, "explain", name)
    assert (done.code, done.err) == (0, "")
    for axis in (axis for axis, found in components() if found == name):
        assert f"{axis} '{name}'" in done.out
    assert "nan" not in done.out
    command = f"explain {name} --out {name}.svg"
    assert f"Next: testbed {command} draws it." in done.out
    assert not list(tmp_path.iterdir())
    with unplaced_figures():
        done = run_here(tmp_path, *command.split())
    assert (done.code, done.err) == (0, "")
    assert f"Plot: {name}.svg" in done.out
    assert "<svg" in (tmp_path / f"{name}.svg").read_text()[:1000]


@pytest.mark.slow
def test_plan_says_which_losses_do_not_elicit_the_mean(tiny: Path) -> None:
    done = run_here(tiny, "plan", "tiny.toml", "--set", "loss=l1", "--only", "v")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("loss 'l1' does not elicit the mean") == 1
    assert "elicit" not in run_here(tiny, "plan", "tiny.toml", "--only", "v").out


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_the_summary_of_a_plan_has_a_column_of_cases_where_they_are_named(
    named: bool, tmp_path: Path
) -> None:
    made = planned(SMALL + '[[cases]]\nname = "plane"\n' * named, tmp_path)
    console = Console(file=io.StringIO(), width=1000)
    for part in render.plan_table(made, default_registry(), False):
        console.print(part)
    head, row = console.file.getvalue().splitlines()[1:3]  # type: ignore[attr-defined]
    assert head.split() == ["case"] * named + ["variants", "seeds"]
    assert row.split() == ["plane"] * named + ["v", "1"]


@pytest.mark.slow
def test_the_next_command_has_the_words_of_the_plan(tiny: Path) -> None:
    words = ["tiny.toml", "--only", "v", "--set", "loss={name = 'l1'}"]
    done = run_here(tiny, "plan", *words)
    assert f"Next: testbed study {shlex.join(words)}" in done.out


@pytest.mark.slow
def test_explain_shows_the_coefficients_at_the_sigma_data_that_is_given(tmp_path: Path) -> None:
    done = run_here(tmp_path, "explain", "edm", "--sigma-data", "2", "--out", "deep.png")
    lines = done.out.splitlines()
    head = next(i for i, line in enumerate(lines) if "c_skip" in line and "sigma " in line)
    columns = lines[head].split()
    (row,) = (line.split() for line in lines[head + 1 : head + 10] if line.split()[0] == "2")
    found = dict(zip(columns, map(float, row), strict=True))
    # sigma = sigma_data = 2, by Karras et al., table 1
    assert found["c_skip"] == 0.5
    assert found["c_out"] == pytest.approx(2**0.5, rel=1e-3)
    assert found["c_in"] == pytest.approx(8**-0.5, rel=1e-3)
    assert found["c_noise"] == pytest.approx(torch.tensor(2.0).log().item() / 4, rel=1e-3)
    assert found["target_rms"] == pytest.approx(1, rel=1e-3)
    assert (tmp_path / "deep.png").read_bytes().startswith(b"\x89PNG")


def test_explain_shows_a_stated_target_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "indexed.py").write_text(INDEXED)
    done = run_here(tmp_path, "explain", "indexed", "-p", "indexed.py")
    assert done.code == 0, done.err
    assert 'pick = {"i": [1]}' in done.out
    assert 'return pick["i"][0] * eps  # [/x] is no markup' in done.out


# --- plan ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_says_what_would_run_and_runs_nothing(tiny: Path) -> None:
    words = ("plan", "tiny.toml", "--only", "mixture", "--seeds", 1)
    done = run_here(tiny, *words, "--set", "cases.mixture.sigma_data.assumed=1")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"Study tiny: 3 trials \(3 new\) on cpu \(.*\); folder runs/tiny", done.out)
    trials = re.findall(r"^([0-9a-f]{12}) +new +(.*?) *$", done.out, flags=re.MULTILINE)
    assert [what for _, what in trials] == [
        "v · mixture · published · seed 0",
        "edm · mixture · published+equal · seed 0",
        "v · mixture · equal · seed 0",
    ]
    assert "mixture: sigma_data is set to 1; the data have 0.9375." in done.out
    assert re.search(r"Engine: \w+, 3 trials .*; training takes about \d+ s", done.out)
    assert "Next: testbed study tiny.toml" in done.out
    assert [file.name for file in tiny.iterdir()] == ["tiny.toml"]


@pytest.mark.slow
def test_a_plan_as_a_document(tiny: Path) -> None:
    done = run_here(tiny, "plan", "tiny.toml", "--only", "mixture", "--seeds", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found) == {
        "study", "folder", "tracking_uri", "device", "trials", "engine", "notes", "detectable",
    }  # fmt: skip
    assert (found["study"], found["folder"], found["device"]) == ("tiny", "runs/tiny", "cpu")
    assert found["tracking_uri"] == f"sqlite:///{tiny / 'mlflow.db'}"
    assert [one["state"] for one in found["trials"]] == ["new"] * 3
    assert found["trials"][1]["title"] == "edm · mixture · published+equal · seed 0"
    assert [label["arm"] for label in found["trials"][1]["labels"]] == ["published", "equal"]
    assert (found["trials"][1]["seed"], found["trials"][1]["changed"]) == (0, [])
    ids = {one["id"] for one in found["trials"]}
    assert {id_ for group in found["engine"]["groups"] for id_ in group} == ids
    assert done.err == ""
    assert [file.name for file in tiny.iterdir()] == ["tiny.toml"]


LOUD = "import os\nprint('loud')\nos.write(1, b'louder')\n"


@pytest.mark.process
@pytest.mark.slow
def test_a_study_as_a_document_is_alone_on_the_standard_output(tiny: Path) -> None:
    """A plugin may print what it likes, in the driver and in workers."""
    (tiny / "loud.py").write_text(LOUD + INDEXED)
    words = ("tiny.toml", "--only", "v,mixture,equal", "--seeds", 1, "-p", "loud.py")
    start = time.monotonic()
    done = run_process(tiny, "study", *words, "--jobs", 1, "--no-mlflow", "--json")
    wall = time.monotonic() - start
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found) == {
        "study", "folder", "tracking_uri", "device", "exit_code", "interrupted", "seconds",
        "trials", "identities", "report", "claims",
    }  # fmt: skip
    assert (found["exit_code"], found["interrupted"], found["tracking_uri"]) == (0, False, None)
    (trial,) = found["trials"]
    assert (trial["status"], trial["error"], trial["seed"]) == ("finished", None, 0)
    assert (tiny / "runs" / "tiny" / "trials" / trial["id"]).is_dir()
    assert found["identities"]["held"] > 100
    assert found["identities"]["failed"] == 0
    assert found["report"] == "runs/tiny/report.html"
    assert (tiny / found["report"]).is_file()
    assert found["claims"] == []  # one variant is compared with nothing
    assert done.err.count("loud") >= 4
    # All that the command took, and not its training alone.
    assert json.loads((tiny / "runs/tiny/study.json").read_text())["seconds"] < found["seconds"]
    assert found["seconds"] < wall < found["seconds"] + max(3, wall / 4)


@pytest.mark.slow
def test_where_a_study_writes_is_said_before_it_does(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[str] = []

    def stopped(*words: object) -> None:
        there.extend(file.name for file in tiny.iterdir())
        raise InputError("here it would begin")

    monkeypatch.setattr("testbed.study.session.run", stopped)
    for words, folder, store in (
        ((), "runs/tiny", f"sqlite:///{tiny / 'mlflow.db'}"),
        (("--out", "a b", "--tracking-uri", "sqlite:///c.db"), "a b", "sqlite:///c.db"),
        (("--no-mlflow",), "runs/tiny", "none"),
    ):
        done = run_here(tiny, "study", "tiny.toml", "--jobs", 0, *words)
        assert done.err == "testbed: here it would begin\n"
        assert f"; folder {folder}\n" in done.out
        assert f"\nMLflow store: {store}\n" in done.out
    assert set(there) == {"tiny.toml"}


@pytest.mark.process
@pytest.mark.slow
def test_under_nox_the_next_command_is_one_that_works_there(tiny: Path) -> None:
    done = run_here(tiny, "plan", "tiny.toml", "--only", "v", NOX_CURRENT_SESSION="study")
    assert "Next: testbed study tiny.toml --only v\n" in done.out, "no noxfile.py is here"
    (tiny / "noxfile.py").write_text("")
    done = run_here(tiny, "plan", "tiny.toml", "--only", "v", NOX_CURRENT_SESSION="study")
    assert "Next: nox -s study -- tiny.toml --only v\n" in done.out
    done = run_here(tiny, "explain", "v", NOX_CURRENT_SESSION="study")
    (line,) = re.findall("^Next: (.*) draws it.$", done.out, flags=re.MULTILINE)
    assert subprocess.run(shlex.split(line), cwd=tiny, env=environment()).returncode == 0
    assert (tiny / "v.svg").is_file()


@pytest.mark.slow
def test_a_recipe_without_a_weighting_and_a_case_without_a_name_are_said_in_words(
    tiny: Path,
) -> None:
    done = run_here(tiny, "explain", "score")
    assert "None" not in done.out
    words = """
[study]
name = "one"
[base]
dataset = "moons"
sigma_data = { assumed = 0.3 }
[grid]
parameterization = ["edm"]
"""
    (tiny / "one.toml").write_text(words)
    done = run_here(tiny, "plan", "one.toml")
    assert "\nsigma_data is set to 0.3; the data have " in done.out
    read = study_file.read(tiny / "one.toml", ["grid.sigma_data=[{ assumed = 0.2 }]"])
    label = plan.variant(read.templates[0], plan.distinguishing_options(read))
    assert label == "edm sigma_data=assumed 0.2"


def test_interrupted_trials_are_not_counted_as_done() -> None:
    shown = io.StringIO()
    bars = render.Bars(ExecutionPlan("sequential", 0, 1), Console(file=shown, width=100))
    bars._said = -100.0  # nothing was said within the last seconds
    bars.progress().ended(SimpleNamespace(title="v · seed 0", id="a"), "interrupted")
    assert shown.getvalue() == ""


@pytest.mark.slow
def test_plan_takes_a_folder_and_a_bundled_name(tmp_path: Path) -> None:
    done = run_here(tmp_path, "plan", "default", "--only", "mixture,edm", "--out", "there")
    assert done.code == 0
    assert "Study default: 6 trials (6 new) on cpu" in done.out
    assert "folder there" in done.out


# --- the pages of MLflow --------------------------------------------------------------------------

SERVER = """
import pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("child").write_text(str(child.pid))
pathlib.Path("words").write_text(" ".join(sys.argv[1:]))
child.wait()
"""
"""In place of MLflow: a server that has a process of its own."""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Ended, and not yet asked for its exit code by whoever has adopted it.
    state = Path(f"/proc/{pid}/stat")
    return not (state.is_file() and state.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ui_ends_with_its_server_and_the_processes_of_that(tmp_path: Path, number: int) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").touch()
    (tmp_path / "mlflow" / "__main__.py").write_text(SERVER)
    (tmp_path / "mlflow.db").touch()
    running = subprocess.Popen(
        [sys.executable, "-m", "testbed", "ui", "--port", "5077"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"),
        stdout=subprocess.PIPE,
        text=True,
    )
    words = tmp_path / "words"
    deadline = time.monotonic() + 60
    while not (words.is_file() and words.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int((tmp_path / "child").read_text())
    assert alive(child)
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == (-number if number == signal.SIGKILL else 128 + number)
    while alive(child) and number == signal.SIGKILL and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)
    assert "Next: open http://127.0.0.1:5077 in a browser" in out
    store = f"--backend-store-uri sqlite:///{tmp_path / 'mlflow.db'}"
    assert words.read_text() == f"server {store} --host 127.0.0.1 --port 5077 --workers 1"


# --- mistakes -----------------------------------------------------------------------------------

STUDY = ("study", "tiny.toml", "--no-mlflow", "--jobs", "0")
MISTAKES = {
    "missing file": (("study", "nowhere/a.toml"), "study file nowhere/a.toml does not exist."),
    "misspelt file": (("plan", "tniy.toml"), "Did you mean 'tiny.toml'?"),
    "misspelt study": (("study", "defualt"), "defualt does not exist. Did you mean 'default'?"),
    "not TOML": (("study", "broken.toml"), "broken.toml: cannot be read as TOML: "),
    "empty file": (("study", "empty.toml"), "empty.toml: the file is empty: begin with [study]"),
    "folder for a file": (("plan", "folder.toml"), "study file folder.toml is a folder: name a"),
    "file for a folder": (
        (*STUDY, "--out", "broken.py"),
        "broken.py is a file, and a study needs a folder: name another with --out.",
    ),
    "folder in a file": (
        ("plan", "tiny.toml", "--out", "broken.py/of/mine"),
        "broken.py is a file, and a study needs a folder: name another with --out.",
    ),
    "misspelt plugin name": ((*STUDY, "-p", "no:scroe"), "Did you mean 'score'?"),
    "missing plugin file": (
        (*STUDY, "-p", "indexd.py"),
        "no such file. Did you mean 'indexed.py'?",
    ),
    "missing plugin module": ((*STUDY, "-p", "no_such_module"), "plugin 'no_such_module'"),
    "broken plugin": ((*STUDY, "-p", "broken.py"), "is broken: RuntimeError: on purpose"),
    "missing plugin folder": ((*STUDY, "--plugin-dir", "nowhere"), "does not exist or is not a fo"),
    "device": ((*STUDY, "--device", "gpu"), "--device gpu: expected auto, cpu, cuda, cuda:N or cu"),
    "device without support": ((*STUDY, "--device", "mps"), "--device mps: expected auto, cpu, cu"),
    "set without a value": ((*STUDY, "--set", "training"), "--set training: expected dotted.path="),
    "set of an unknown key": (
        (*STUDY, "--set", "trainig.steps=3"),
        "--set trainig = {'steps': 3}: unknown key. Did you mean 'training'?",
    ),
    "unknown component": (
        (*STUDY, "--set", "weighting=mni_snr"),
        "Unknown weighting 'mni_snr'. Did you mean 'min_snr'?",
    ),
    "option of a network": (
        (*STUDY, "--set", "network.width=0"),
        "tiny.toml: --set network.width = 0: network 'mlp': width = 0, depth = 1, features = 16 m",
    ),
    "only": ((*STUDY, "--only", "digts"), "Unknown parameterization, case or arm 'digts'. Did you"),
    "seeds": ((*STUDY, "--seeds", "0"), "--seeds 0 must be at least 1."),
    "jobs": (("study", "tiny.toml", "--jobs", "-1"), "--jobs -1 must be 0 or more."),
    "unknown trial of a study": ((*STUDY, "--trial", "zz"), "--trial zz: no trial of this study"),
    "suffix": (
        ("sample", "x", "--out", "a.gif"),
        "--out a.gif: expected one of .npy, .safetensors",
    ),
    "sample without a file": (
        ("sample", "zz"), "--out is missing: name the file to write, one of .npy, .safetensors,",
    ),
    "unknown trial": (
        ("sample", "zz", "--out", "a.npy"), "trial 'zz' is neither a trial's folder nor an id belo",
    ),
    "folder that is not there": (("report", "nowhere"), "nowhere: there is no such folder in "),
    "folder of a wrong name": (("status", "folder.tml"), "Did you mean 'folder.toml'?"),
    "report at a file": (
        ("report", "nowhere", "--out", "tiny.toml"), "--out tiny.toml: there is a file of this na",
    ),
    "no trial at all": (
        ("sample", "", "--out", "a.npy"), "trial '' is neither a trial's folder nor an id below",
    ),
    "seconds that are no number": (
        ("status", "nowhere", "--every", "nan"), "--every nan must be above 0 and at most 86400 s",
    ),
    "file without a factory's name": (
        ("audit", "broken.py"), "broken.py: name the factory in the file too: broken.py:FUNCTION.",
    ),
    "factory of a missing file": (
        ("audit", "brokn.py:f"), "brokn.py: no such file. Did you mean 'broken.py'?",
    ),
    "folder without a study": (("report", "."), ". is not a study's folder: it has no study.json."),
    "component to explain": (("explain", "emd"), "Unknown component 'emd'. Did you mean 'edm'?"),
    "component of another axis": (
        ("explain", "heun"), "'heun' is a sampler; expected one of these: parameterization, weight",
    ),
    "no store": (("ui",), "there is no MLflow store at "),
    "a server's store": (
        ("ui", "--tracking-uri", "http://127.0.0.1:9"), "are served at http://127.0.0.1:9 already",
    ),
    "unknown command": (("stduy",), "No such command 'stduy'"),
    "unknown option": (("study", "--sed", "3"), "No such option: --sed"),
    "word for a number": (("study", "--seeds", "x"), "Invalid value for '--seeds': "),
}  # fmt: skip


@pytest.fixture
def mistaken(tiny: Path) -> Path:
    """A folder with files to make mistakes with."""
    (tiny / "broken.toml").write_text("[study\n")
    (tiny / "empty.toml").touch()
    (tiny / "folder.toml").mkdir()
    (tiny / "broken.py").write_text("raise RuntimeError('on purpose')\n")
    (tiny / "indexed.py").write_text(INDEXED)
    return tiny


@pytest.mark.parametrize(("words", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(
    mistaken: Path, words: tuple[str, ...], expected: str
) -> None:
    done = run_here(mistaken, *words)
    assert done.code == 2
    flat = re.sub(r"[\s│]+", " ", done.err)
    assert flat.count(expected) == 1, done.err
    assert "Traceback" not in done.err + done.out
    assert done.out == ""
    assert not (mistaken / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_told_with_the_torch_that_sees_none(tiny: Path) -> None:
    done = run_here(tiny, *STUDY, "--device", "cuda")
    assert done.code == 2
    assert f"this torch ({torch.__version__}) sees no CUDA device." in done.err


@pytest.mark.process
@pytest.mark.slow
def test_a_mistake_has_no_traceback_in_a_process_either(mistaken: Path) -> None:
    done = run_process(mistaken, "study", "tiny.toml", "--set", "training.steps=x")
    assert (done.code, done.out) == (2, "")
    assert done.err == ("testbed: tiny.toml: --set training.steps = 'x': must be a whole number\n")


@pytest.mark.parametrize(
    "words", [("--debug", "study", "tiny.toml"), ("study", "tiny.toml", "--debug")]
)
def test_debug_shows_the_traceback(tiny: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="steps = 'x'"):
        run_here(tiny, *words, "--set", "training.steps=x")


@pytest.mark.process
@pytest.mark.slow
def test_debug_shows_the_traceback_in_a_process(tiny: Path) -> None:
    done = run_process(tiny, "study", "tiny.toml", "--set", "x", "--debug")
    assert done.code == 1
    assert done.err.startswith("Traceback")
    assert "InputError: --set x: expected dotted.path=value." in done.err


@pytest.mark.slow
def test_a_file_in_the_way_of_a_study_is_one_message(tiny: Path) -> None:
    (tiny / "there").write_text("in the way")
    done = run_here(tiny, *STUDY, "--out", "there")
    assert done.code == 2
    assert done.err.startswith("testbed: ")
    assert "there" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_reader_that_has_read_enough_ends_a_command_without_a_word() -> None:
    """As `testbed plugins | head` does."""
    with subprocess.Popen(
        [sys.executable, "-m", "testbed", "plugins"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        said = command.stderr.read()
    assert (command.returncode, said) == (1, "")
