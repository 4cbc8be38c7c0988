"""A slice of the fuzzer's cases, and tests of its law: what it must catch, it catches.

All of them: `nox -s fuzz`.
"""

import json
import pickle
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import pytest
import typer
from fuzz import data_files, hostile, law, study_files, tally
from fuzz.inputs import Change, Input, chances

from testbed import settings
from testbed.cli import app
from testbed.errors import InputError
from testbed.registry import AXES
from testbed.study import plan
from testbed.study.settings import Header, ReportSettings
from testbed.training.settings import Training
from testbed.trial.config import TrialSettings
from testbed.trial.specs import Evaluation

EACH, CHUNK = 50, 10
TINY = {"tiny.toml": law.command_lines.TINY.encode()}
PLAN = Input(("plan", "tiny.toml", "--out", "out"), TINY)
Breach = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a case runs."""
    return tmp_path / "case"


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, EACH, CHUNK))
@pytest.mark.parametrize("kind", law.MAKERS)
def test_bad_input_is_one_message_or_a_valid_run(
    kind: str, first: int, request: pytest.FixtureRequest
) -> None:
    """The first of each kind also ask another process where the kit does; it takes seconds."""
    if first:
        request.getfixturevalue("at_home")
    found = tally.tried(kind, first, first + CHUNK)
    assert not found.told, "\n".join(found.told)
    assert found.codes.total() == CHUNK


@pytest.mark.slow
@pytest.mark.parametrize("kind", law.MAKERS)
def test_a_case_follows_from_its_number(kind: str) -> None:
    shown = [str(law.MAKERS[kind](chances(kind, number))) for number in range(40)]
    assert shown == [str(law.MAKERS[kind](chances(kind, number))) for number in range(40)]
    assert len(set(shown)) > 35


def test_every_setting_and_option_is_tried() -> None:
    """The keys follow from the models and components: some of the newest, and a place of each axis.

    What a study file may say is on the page of study keys, which follows from them as well.
    """
    newest = {
        "recipe", "training.clip_loss", "evaluation.widths", "evaluation.sampling_sigma_max",
        "table.shift", "evaluation.schedule.shift", "budgets", "looks",
    }  # fmt: skip
    assert newest <= {*study_files.KEYS}
    assert {*study_files.PLACES} == {*AXES}
    assert {*study_files.PLACES.values()} <= {*study_files.KEYS}
    for model in (TrialSettings, Header, ReportSettings):
        assert {*settings.names(model)} <= {*study_files.KEYS}
    for name, model in (("training", Training), ("evaluation", Evaluation)):
        assert {f"{name}.{key}" for key in settings.names(model)} <= {*study_files.KEYS}


# --- what was found -------------------------------------------------------------------------------


def plugin(source: str) -> dict[str, bytes]:
    """A plugin file called a.py."""
    return {"a.py": f"import torch, testbed\n{source}".encode()}


def hook(axis: str, component: str) -> str:
    """A hook that yields this."""
    return f"@testbed.hookimpl\ndef testbed_{axis}(): yield {component}\n"


def study(**sections: Any) -> dict[str, bytes]:
    """The file tiny.toml with some of its sections replaced."""
    whole = tomllib.loads(law.command_lines.TINY) | sections
    return {"tiny.toml": hostile.toml(whole).encode()}


def listed(chance: Random, content: bytes) -> bytes:
    """A list in place of what was there."""
    return b"[]"


TRIAL_FILE = f"{law.command_lines.FOLDER}/trial.json"
TWO = ("--set", 'grid.parameterization=["v", "edm"]')

CASES = [{"name": "../../up"}]
AUDIT = ("audit", "f.py:f", "--part", "algebra", "--time-argument", "index", "--table", "t.npy")
F = {"f.py": b"def f(): return lambda x, i: x\n"}
ICDF = "def f(u): return {}['a']\ndef g(sigma): return sigma\n"
LOSS = "def f(a, b): return torch.ones(7)\n"
ENDLESS = data_files.headed(
    "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 4), }"
)
ENDS = "def f(sigma): raise SystemExit(7)\n" + hook("weightings", "testbed.Weighting('a', f)")
FOUND: dict[str, tuple[Input, str]] = {
    "nested too deep": (
        Input(PLAN.words, {"tiny.toml": b"x = " + 3000 * b"["}),
        "tiny.toml: cannot be read as TOML: ",
    ),
    "too many digits": (
        Input(PLAN.words, {"tiny.toml": b"x = " + 5000 * b"9"}),
        "tiny.toml: cannot be read as TOML: ",
    ),
    "nested too deep by --set": (
        Input((*PLAN.words, "--set", "x=" + 3000 * "["), TINY),
        "--set x: cannot be read as TOML: ",
    ),
    "a study of the folder above": (
        Input(PLAN.words, study(study={"name": ".."})),
        "study.name = '..'",
    ),
    "a case of another folder": (
        Input(PLAN.words, study(cases=CASES)),
        "cases[0].name = '../../up' becomes the name of files",
    ),
    "a network without end": (
        Input((*PLAN.words, "--set", "network.depth=99999999999", *TWO), TINY),
        "expected depth up to 1000",
    ),
    "a loop of links": (
        Input(("plugins", "--plugin-dir", "loop"), links={"loop": "loop"}),
        "does not exist or is not a folder.",
    ),
    "a link to nowhere": (
        Input(("new", "mine", "--out", "a.py"), links={"a.py": "b.py"}),
        "--out a.py: exists already and is left as it is",
    ),
    "a density that raises": (
        Input(
            ("plugins", "-p", "a.py"),
            plugin(ICDF + hook("densities", "testbed.Density('a', f, g)")),
        ),
        "density 'a': icdf raised KeyError: 'a' (a.py, line 2)",
    ),
    "a space that is no word": (
        Input(
            ("plugins", "-p", "a.py"),
            plugin(LOSS + hook("losses", "testbed.Loss('a', f, space=None)")),
        ),
        "loss 'a': Unknown space None.",
    ),
    "a loss of another shape": (
        Input(
            ("explain", "a", "-p", "a.py", "--out", "a.svg"),
            plugin(LOSS + hook("losses", "testbed.Loss('a', f)")),
        ),
        "loss 'a': function must return a tensor shaped like prediction, (301,), got a tensor of",
    ),
    "a picture of no kind": (
        Input(("explain", "v", "--out", "a")),
        "--out a: expected .svg or .png.",
    ),
    "a picture in no folder": (
        Input(("explain", "v", "--out", "nowhere/a.svg")),
        "--out nowhere/a.svg: cannot be written: No such file or directory.",
    ),
    "a sigma_data of zero": (
        Input(("explain", "v", "--sigma-data", "0", "--out", "a.svg")),
        "--sigma-data 0.0 must be a positive number.",
    ),
    "a header that is no Python": (
        Input(AUDIT, {**F, "t.npy": data_files.headed("{" * 500)}),
        "t.npy cannot be read as numbers (",
    ),
    "complex levels": (
        Input(AUDIT, {**F, "t.npy": data_files.npy_of(np.array([1j, 2j]))}),
        "t.npy holds values of type complex128: expected real numbers.",
    ),
    "a list for a trial": (
        Input(("report", "runs/tiny"), TINY, trained=True, changes={TRIAL_FILE: Change(listed, 0)}),
        "trial.json: expected a JSON object, got list.",
    ),
    "rows without end": (
        Input(AUDIT, {**F, "t.npy": ENDLESS}),
        "t.npy cannot be read as numbers (ValueError: cannot reshape array",
    ),
    "a plugin that ends the program": (
        Input((*PLAN.words, "-p", "a.py", "--set", "weighting='a'"), {**TINY, **plugin(ENDS)}),
        "a.py, line 2: it ends the program (SystemExit: 7)",
    ),
    "a flag with a value": (
        Input(("--debug=1",)),
        "Option '--debug' does not take a value.",
    ),
    "numbers beyond float32": (
        Input(
            ("plan", "tiny.toml", "--set", "dataset={name='array', path='d.npy'}"),
            {**TINY, "d.npy": data_files.npy_of(np.full((9, 2), 1e300))},
        ),
        "d.npy[0, 0] is 1e+300, and scale (x + shift) is beyond float32",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("given", "message"), FOUND.values(), ids=FOUND)
def test_what_was_found_is_one_message(given: Input, message: str, folder: Path) -> None:
    done = law.run(given, folder)
    assert (done.code, law.faults(given, done)) == (2, [])
    assert message in done.err


@pytest.mark.slow
def test_a_trial_that_a_study_writes_anew_is_told(folder: Path) -> None:
    given = Input(PLAN.words[:2], TINY, trained=True, changes={TRIAL_FILE: Change(listed, 0)})
    done = law.run(given, folder)
    assert (done.code, law.faults(given, done)) == (0, [])
    assert "trial.json: expected a JSON object, got list. The study writes it anew" in done.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("study.json", "trials", 5),
        ("study.json", "report", {"baseline": [1]}),
        (f"{law.command_lines.FOLDER}/tweedie.json".removeprefix("runs/tiny/"), "rows", 5),
        (f"{law.command_lines.FOLDER}/result.json".removeprefix("runs/tiny/"), "errors", [1]),
        (TRIAL_FILE.removeprefix("runs/tiny/"), "config", {"density": {"options": None}}),
    ],
)
def test_a_file_of_another_shape_is_told(name: str, key: str, value: Any, folder: Path) -> None:
    def change(chance: Random, content: bytes) -> bytes:
        return json.dumps(json.loads(content) | {key: value}).encode()

    changes = {f"runs/tiny/{name}": Change(change, 0)}
    for words in (PLAN.words[:2], ("report", "runs/tiny"), ("status", "runs/tiny")):
        given = Input(words, TINY, trained=True, changes=changes)
        done = law.run(given, folder / words[0])
        assert law.faults(given, done) == []


# --- the law --------------------------------------------------------------------------------------


def broken(folder: Path, breach: Breach) -> list[str]:
    """What the law says of `plan` when `plan.make` is this."""
    with mock.patch.object(plan, "make", breach):
        return law.faults(PLAN, law.run(PLAN, folder))


def raising(problem: BaseException) -> Breach:
    def make(*_: Any) -> None:
        raise problem

    return make


def test_a_right_command_holds_the_law(folder: Path) -> None:
    done = law.run(PLAN, folder)
    assert done.code == 0
    assert law.faults(PLAN, done) == []


def test_a_key_error_is_caught(folder: Path) -> None:
    found = broken(folder, raising(KeyError("mean")))
    assert found[0] == "it raised: KeyError: 'mean'"
    assert "a traceback" in found


def test_another_exit_code_is_caught(folder: Path) -> None:
    assert broken(folder, raising(typer.Exit(7))) == ["exit code 7"]


@pytest.mark.slow
def test_a_hang_is_caught(folder: Path) -> None:
    with mock.patch.object(law, "SECONDS", 0.2):
        found = broken(folder, lambda *_: time.sleep(5))
    assert "more than 0.2 s" in found[0]


def test_a_limit_of_memory_is_set_and_taken_away(folder: Path) -> None:
    found = broken(folder, lambda *_: bytearray(2 * law.MEMORY))
    assert found[0] == "it raised: MemoryError"
    assert len(bytearray(1 << 20)) == 1 << 20


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("", "no clear message"),
        ("oh no", "no clear message"),
        ("an internal error: 0x7f", "no clear message"),
        ("RuntimeError: x\nframe #0: c10::Error", "no clear message"),
        ("the first of two\ntestbed: the second", "not exactly one message"),
        ("x" * 30_000, "a message of 30000 characters"),
    ],
)
def test_an_unclear_message_is_caught(folder: Path, message: str, fault: str) -> None:
    assert broken(folder, raising(InputError(message))) == [fault]


def test_a_warning_beside_the_message_is_caught(folder: Path) -> None:
    def make(*_: Any) -> None:
        app.sys.stderr.write("x.py:3: UserWarning: complex\n")
        raise InputError("a message that is clear enough")

    assert broken(folder, make) == ["not exactly one message"]


def test_a_file_elsewhere_is_caught(folder: Path, tmp_path: Path) -> None:
    places = ["beside.txt", "../above.txt", str(tmp_path / "elsewhere.txt")]

    def make(*_: Any) -> None:
        for place in places:
            Path(place).write_text("x")
        raise InputError("a message that is clear enough")

    found = broken(folder, make)
    names = {"here/beside.txt", "above.txt", "../elsewhere.txt"}
    assert set(found) == {f"wrote {(folder / name).resolve()}" for name in names}


def test_what_is_unpickled_is_caught(folder: Path) -> None:
    given = Input(PLAN.words, {**TINY, "trap": pickle.dumps(data_files.Trap())})

    def make(*_: Any) -> None:
        pickle.loads(Path("trap").read_bytes())
        raise InputError("a message that is clear enough")

    with mock.patch.object(plan, "make", make):
        found = law.faults(given, law.run(given, folder))
    assert found == [f"wrote {folder / 'here' / 'unpickled'}"]


def test_text_that_no_terminal_shows_is_caught(folder: Path) -> None:
    def make(*_: Any) -> None:
        print("\udcff")
        raise InputError("a message that is clear enough")

    assert broken(folder, make) == ["what it prints is not UTF-8"]


def test_a_breach_is_told_with_the_input_the_command_and_its_number(folder: Path) -> None:
    with mock.patch.object(plan, "make", raising(KeyError("mean"))):
        done = law.run(PLAN, folder)
    text = law.told("study", 17, PLAN, done, law.faults(PLAN, done))
    assert "study 17: it raised: KeyError: 'mean'" in text
    assert "$ testbed plan tiny.toml --out out" in text
    assert law.command_lines.TINY in text
    assert "nox -s fuzz -- study 17" in text


# --- the vocabulary -------------------------------------------------------------------------------


def test_a_typo_is_one_or_two_edits_away() -> None:
    chance = chances("typo", 0)
    for _ in range(300):
        assert abs(len(hostile.typo(chance, "weighting")) - len("weighting")) <= 2


def test_toml_is_read_as_it_was_written() -> None:
    table = {"a": 1, "b c": {"d": [1.5, "x\ny\"'\\", True]}, "": {}, "σ": "\x7f\t"}
    assert tomllib.loads(hostile.toml(table)) == table


def test_objects_are_pickled_into_arrays() -> None:
    found = np.empty(2, dtype=object)
    found.fill(data_files.Trap())
    assert b"mkdir" in data_files.npy_of(found)
