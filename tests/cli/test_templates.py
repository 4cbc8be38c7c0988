"""`testbed new`: what it writes passes its checks, and what it says to type next works."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import run_here

from testbed import templates
from testbed.components.base import Component
from testbed.registry import AXES
from testbed.testing import CheckFailed, Context, Skipped, iter_checks, plugin


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, Component], Context]]:
    """The component of every template by its axis, and what checks need: one process for all."""
    folder = tmp_path_factory.mktemp("written")
    files = [folder / f"mine_{axis}.py" for axis in AXES]
    for axis, file in zip(AXES, files, strict=True):
        file.write_text(templates.source_of(axis, file.stem))
    with plugin(*files) as registry:
        components = {axis: getattr(registry, axis)(f"mine_{axis}") for axis in AXES}
        yield components, Context.of(list(components.values()), registry)


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_a_template_passes_its_checks_as_it_stands(
    axis: str, written: tuple[dict[str, Component], Context]
) -> None:
    components, context = written
    component = components[axis]
    problems = []
    for check in iter_checks(component):
        try:
            replace(check, context=context)(component)
        except CheckFailed as broken:
            problems.append(str(broken))
        except Skipped:
            continue
    assert not problems


def test_a_slip_in_a_template_fails_its_checks(tmp_path: Path) -> None:
    right = templates.source_of("parameterization", "slipped")
    wrong = right.replace("out=-sigma", "out=sigma")
    assert wrong != right
    (tmp_path / "slipped.py").write_text(wrong)
    with plugin(tmp_path / "slipped.py") as registry:
        checks = {check.id: check for check in iter_checks(registry.parameterization("slipped"))}
        with pytest.raises(CheckFailed, match="slipped"):
            checks["parameterization.stated_target"](registry.parameterization("slipped"))


@pytest.mark.parametrize("axis", AXES)
def test_a_template_says_what_to_edit_and_nothing_of_its_own_name_is_left(axis: str) -> None:
    text = templates.source_of(axis, "grebe")
    assert text.count("EDIT") >= 3
    assert "NAME" not in text
    assert text.startswith('"""grebe: ')
    assert f"testbed.{AXES[axis].__name__}(" in text


@pytest.mark.slow
@pytest.mark.parametrize("axis", AXES)
def test_what_to_type_next_works(tmp_path: Path, axis: str) -> None:
    done = run_here(tmp_path, "new", "grebe", "--axis", axis, "--out", "grebe.py")
    assert (done.code, done.err) == (0, "")
    commands = re.findall(r"^  testbed (.*)$", done.out, flags=re.MULTILINE)
    assert commands[0] == "check grebe.py"
    assert ("explain grebe -p grebe.py" in commands) == (axis in templates.EXPLAINED)
    for command in commands[1:]:
        words = shlex.split(command)
        # What a study would run, without running it.
        shown = run_here(tmp_path, *["plan" if word == "study" else word for word in words])
        assert (shown.code, shown.err) == (0, ""), command
        assert words[0] == "study" or "grebe" in shown.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis", "bundled"),
    [
        ("weighting", "edm"),
        ("loss", "l2"),
        ("density", "lognormal"),
        ("network", "mlp"),
        ("noise", "white"),
    ],
)
def test_what_is_suggested_compares_it_with_a_bundled_one(
    tmp_path: Path, axis: str, bundled: str
) -> None:
    (tmp_path / "a b").mkdir()
    done = run_here(tmp_path, "new", "grebe", "--axis", axis, "--out", "a b/grebe.py")
    (command,) = re.findall(r"^  testbed study (.*)$", done.out, flags=re.MULTILINE)
    planned = run_here(tmp_path, "plan", *shlex.split(command))
    assert (planned.code, planned.err) == (0, "")
    assert "Study default: 12 trials (12 new)" in planned.out
    for name in (bundled, "grebe"):
        assert planned.out.count(f"edm {axis}={name} · mixture · published+equal · ") == 6
    assert f": the first, edm {axis}={bundled}, is taken." in planned.out


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("karras", "--set evaluation.schedule=karras --only mixture"),
        (
            "offset",
            '--set \'grid.parameterization=["edm"]\' --set \'grid.noise=["white","offset"]\' '
            "--only mixture",
        ),
        (
            "'{name = \"convnet\", width = 8, depth = 1}'",
            """--set 'grid.parameterization=["edm"]' """
            """--set 'grid.network=[{name="mlp",width=64,depth=2},"convnet"]' --only digits""",
        ),
    ],
)
def test_a_check_ends_with_a_study_of_what_was_checked(
    tmp_path: Path, name: str, setting: str
) -> None:
    done = run_here(tmp_path, "check", *shlex.split(name))
    assert (done.code, done.err) == (0, "")
    assert f"Next: testbed study default {setting}\n" in done.out


def test_what_a_grid_has_already_is_on_it_once() -> None:
    assert 'grid.noise=["white"]' in templates.study_words("white", "noise")
    assert 'grid.noise=["white","offset"]' in templates.study_words("offset", "noise")


def test_the_default_is_a_parameterization(tmp_path: Path) -> None:
    done = run_here(tmp_path, "new", "grebe", "--out", "other.py")
    assert (done.code, done.err) == (0, "")
    text = (tmp_path / "other.py").read_text()
    assert text == templates.source_of("parameterization", "grebe")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["3d", "--out", "a.py"], r"'3d' is no name for a plugin: expected an identifier"),
        (["lambda", "--out", "a.py"], r"'lambda' is no name"),
        (["a-b", "--out", "a.py"], r"'a-b' is no name"),
        (
            ["edm", "--out", "a.py"],
            r"parameterization 'edm' is there already, from .*edm\.py: take another name",
        ),
        (
            ["grebe", "--axis", "wieghting", "--out", "a.py"],
            r"--axis wieghting: .*Did you mean 'weighting'\?",
        ),
        (["grebe"], r"--out is missing: name the file to write, .*: --out grebe\.py"),
        (["grebe", "--out", "taken.py"], r"--out taken\.py: exists already and is left as it is"),
        (["grebe", "--out", "no/such.py"], r"--out no/such\.py: the folder no does not exist"),
        (["grebe", "--out", "grebe.txt"], r"--out grebe\.txt: expected a file that ends in \.py"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(
    tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "taken.py").write_text("mine\n")
    done = run_here(tmp_path, "new", *words)
    assert done.code == 2
    assert re.fullmatch(f"testbed: {said}.*\n", done.err)
    assert [file.name for file in tmp_path.iterdir()] == ["taken.py"]
    assert (tmp_path / "taken.py").read_text() == "mine\n"


@pytest.mark.parametrize("module", ["torch", "json"])
def test_a_file_that_would_hide_a_module_is_not_written(tmp_path: Path, module: str) -> None:
    done = run_here(tmp_path, "new", "grebe", "--out", f"{module}.py")
    assert done.code == 2
    assert f"{module}.py in this folder would be imported in place of the module" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
@pytest.mark.slow
def test_a_module_of_that_name_elsewhere_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert run_here(tmp_path, "new", "torch", "--out", "mine/torch.py").code == 0
    assert run_here(tmp_path, "check", "mine/torch.py").code == 0


def test_a_name_of_another_axis_is_free(tmp_path: Path) -> None:
    """`edm` is a weighting too: names belong to their axis."""
    assert run_here(tmp_path, "new", "edm", "--axis", "density", "--out", "edm.py").code == 0
