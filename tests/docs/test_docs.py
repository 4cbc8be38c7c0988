"""docs/plugins.md: its tutorial runs as written, its examples work, and it names all there is."""

import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.command_line import environment, run_here
from helpers.paths import ROOT

import testbed
import testbed.components.base
from testbed import hookspecs
from testbed.diffusion.parameterization import CLAIMS
from testbed.registry import AXES, HOOKS
from testbed.study import plan, study_file
from testbed.testing import CheckFailed, Context, Skipped, iter_checks, plugin
from testbed.testing.claims import OF_LOSSES, OF_PARAMETERIZATIONS
from testbed.testing.running import GROUPS

GUIDE = (ROOT / "docs" / "plugins.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TUTORIAL = GUIDE[GUIDE.index("## A tutorial") : GUIDE.index("## The hooks")]
REFERENCE = GUIDE[GUIDE.index("## The hooks") :]
FINISHED = ", finished"
"""Behind the name of a file that the tutorial has arrived at, and shows whole."""
RENAMED = {"learned.py": ('"log_variance"', '"edm2"')}
"""A name in the guide, and what it is where it is tested: what is registered cannot be again."""
SHIPPED = {
    "testbed_residual.py": "tests/fixtures/packaged_plugin/testbed_residual.py",
    "companded.py": "tests/fixtures/companded.py",
    "tracked_huber.py": "tests/fixtures/tracked_huber.py",
    "learned.py": "plugins/edm2.py",
}


def python(text: str) -> dict[str, str]:
    """The Python blocks, by the file that their first line names."""
    blocks = [body for language, body in BLOCK.findall(text) if language == "python"]
    split = [body.partition("\n") for body in blocks]
    found = {first.removeprefix("# "): rest for first, _, rest in split}
    assert len(found) == len(blocks)
    assert all(name.removesuffix(FINISHED).endswith(".py") for name in found)
    return found


EXAMPLES = {name: text for name, text in python(REFERENCE).items() if "def test_" not in text}


# --- the tutorial -------------------------------------------------------------------------------


def plain(text: str) -> str:
    """One line, every number a #: what another processor may round differently is left open."""
    return re.sub(r"[\d.]+(e[+-]?\d+)?", "#", " ".join(text.split()))


def patched(file: Path, change: str) -> None:
    """Replaces the lines with - by those with +."""
    old, new = (
        "".join(line[1:] + "\n" for line in change.splitlines() if line[0] == sign) for sign in "-+"
    )
    text = file.read_text()
    assert text.count(old) == 1, change
    file.write_text(text.replace(old, new))


def done(folder: Path, line: str) -> str:
    """What a command shows; a study is only planned."""
    words = shlex.split(line)
    assert words[0] == "testbed"
    if words[1] == "study":
        words[1] = "plan"
    shown = run_here(folder, *words[1:])
    assert "Traceback" not in shown.err
    return f"{shown.code}\n{shown.out}{shown.err}"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str, str]]]:
    """The tutorial, step by step: its folder, and (command, its output, what the guide shows)."""
    folder = tmp_path_factory.mktemp("tutorial")
    steps: list[tuple[str, str, str]] = []
    for language, body in BLOCK.findall(TUTORIAL):
        if language == "python":
            first, _, text = body.partition("\n")
            name = first.removeprefix("# ")
            if name.endswith(FINISHED):
                assert (folder / name.removesuffix(FINISHED)).read_text() == text
            else:
                (folder / name).write_text(text)
        elif language == "diff":
            patched(folder / "consistency.py", body)
        elif language == "sh":
            (line,) = body.splitlines()
            steps.append((line, done(folder, line), ""))
        else:
            assert language == "text"
            steps[-1] = (*steps[-1][:2], body)
    return folder, steps


def test_the_tutorial_shows_what_its_commands_show(
    followed: tuple[Path, list[tuple[str, str, str]]],
) -> None:
    _, steps = followed
    shown = [(line, found, said) for line, found, said in steps if said]
    assert len(shown) == 5
    for line, found, said in shown:
        for part in said.split("\n...\n"):
            assert plain(part) in plain(found), (line, part)


def test_the_tutorial_ends_as_it_says(
    followed: tuple[Path, list[tuple[str, str, str]]],
) -> None:
    folder, steps = followed
    codes = [(line.split()[1], found[0]) for line, found, _ in steps]
    assert codes == [
        ("new", "0"), ("check", "1"), ("check", "1"), ("check", "0"), ("explain", "0"),
        ("plan", "2"), ("study", "0"),
    ]  # fmt: skip
    assert "12 new" in steps[-1][1]
    assert (folder / "consistency.svg").is_file()


def test_without_a_stated_target_the_mistake_is_not_found(tmp_path: Path) -> None:
    text = python(TUTORIAL)["consistency.py"]
    (tmp_path / "consistency.py").write_text(text.replace("        target=target,\n", ""))
    shown = run_here(tmp_path, "check", "consistency.py")
    failed = re.findall(r"^(\S+) +failed", shown.out, flags=re.MULTILINE)
    assert failed == ["parameterization.singular", "claim.boundary"]


def test_the_test_file_of_the_guide_passes(
    followed: tuple[Path, list[tuple[str, str, str]]],
) -> None:
    folder, _ = followed
    (folder / "test_consistency.py").write_text(python(REFERENCE)["test_consistency.py"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["test_consistency.py"]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"\b2[0-9] passed", ended.stdout)


# --- the examples -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    registry: testbed.Registry
    context: Context
    components: dict[str, list[testbed.components.base.Component]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Every example of the reference, in one registry, beside all that is bundled."""
    folder = tmp_path_factory.mktemp("examples")
    files = {name: folder / name for name in EXAMPLES}
    for name, file in files.items():
        file.write_text(EXAMPLES[name])
    with plugin(*files.values()) as registry:
        found: dict[str, list[testbed.components.base.Component]] = {name: [] for name in files}
        for axis in AXES:
            for name in registry.names(axis):
                component = getattr(registry, axis)(name)
                origin = Path(registry.source(component).origin)
                if origin.parent == folder:
                    found[origin.name].append(component)
        every = [component for several in found.values() for component in several]
        yield Loaded(registry, Context.of(every, registry), found)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "summary.py"])
def test_an_example_passes_its_checks(name: str, loaded: Loaded) -> None:
    (component,) = loaded.components[name]
    for check in iter_checks(component):
        try:
            replace(check, context=loaded.context)(component)
        except Skipped:
            continue


def test_every_hook_has_an_example(loaded: Loaded) -> None:
    axes = {component.axis for several in loaded.components.values() for component in several}
    assert axes == set(AXES)
    assert "def testbed_study_finished(" in EXAMPLES["summary.py"]


def test_the_example_of_the_life_cycle_hook_writes_its_file(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = study_file.read(Path("default"))
    table = {"variant": ["v", "v", "edm"], "status": ["finished", "finished", "failed"]}
    loaded.registry.study_finished(study, pd.DataFrame({**table, "loss": [1.0, 3.0, 7.0]}))
    found = pd.read_csv(tmp_path / "default-summary.csv", index_col="variant")
    assert found["loss"].to_dict() == {"v": 2.0}


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shown_is_what_is_tested_elsewhere(name: str) -> None:
    assert EXAMPLES[name].replace(*RENAMED.get(name, ("", ""))) == (
        (ROOT / SHIPPED[name]).read_text()
    )


def test_the_toml_blocks_are_a_project_and_a_study(tmp_path: Path) -> None:
    project, study = (body for language, body in BLOCK.findall(REFERENCE) if language == "toml")
    fixture = ROOT / "tests" / "fixtures" / "packaged_plugin"
    assert project == (fixture / "pyproject.toml").read_text()
    assert tomllib.loads(project)["project"]["entry-points"]["testbed"]
    (tmp_path / "study.toml").write_text(study)
    with plugin(fixture / "testbed_residual.py") as registry:
        made = plan.make(
            study_file.read(tmp_path / "study.toml"), registry, tmp_path / "out", "cpu"
        )
    assert {one.labels[0]["variant"] for one in made.trials} == {"residual", "eps", "edm"}


# --- formulas, studies, what is said of the bundled ones ------------------------------------------


def test_skip_and_out_follow_from_a_target_as_the_guide_says() -> None:
    assert "c_skip = b/(b - sigma a),     c_out = -sigma/(b - sigma a)" in GUIDE
    registry, sigma = testbed.Registry(), torch.logspace(-2, 2, 9, dtype=torch.float64)
    for name in registry.names("parameterization"):
        p = registry.parameterization(name)
        a, b = p.pair_weights(sigma, sigma_data=0.5)
        c = p.coefficients(sigma, sigma_data=0.5)
        torch.testing.assert_close(c.skip, b / (b - sigma * a), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(c.out, -sigma / (b - sigma * a), rtol=1e-10, atol=0)


def test_v_is_what_the_guide_says() -> None:
    assert "`v = alpha eps - s x0`" in GUIDE
    assert (
        "`alpha = 1/sqrt(1 + sigma^2)` and `s = sigma alpha`: so `a = -s` and `b = alpha`" in GUIDE
    )
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    alpha = 1 / torch.sqrt(1 + sigma**2)
    a, b = testbed.Registry().parameterization("v").pair_weights(sigma)
    torch.testing.assert_close(a, -sigma * alpha)
    torch.testing.assert_close(b, alpha)


def test_the_ranges_of_the_bundled_network_are_those_of_the_guide() -> None:
    registry = testbed.Registry()
    assert registry.names("network") == ["mlp", "mlp_index"]
    said = section("testbed_parameterizations").partition("the bundled network `mlp` takes ")[2]
    for kind, (low, high) in registry.network("mlp").noise.items():
        assert f"a {kind} from {low:g} to {high:g}" in said


def test_the_guide_shows_what_explain_shows_of_a_weighting(tmp_path: Path) -> None:
    (shown,) = (body for language, body in BLOCK.findall(section("testbed_weightings"))
                if language == "text")  # fmt: skip
    done = run_here(tmp_path, "explain", "min_snr")
    for part in shown.split("...\n"):
        assert part in done.out
    (tmp_path / "flat.py").write_text(EXAMPLES["flat.py"])
    assert run_here(tmp_path, "explain", "flat.py").code == 0


STUDIES = re.findall(r"^testbed study (.*)$", REFERENCE, flags=re.MULTILINE)


@pytest.mark.parametrize("line", STUDIES)
def test_a_study_of_the_guide_compares_an_example_in_both_arms(tmp_path: Path, line: str) -> None:
    words = shlex.split(line)
    example = words[words.index("-p") + 1]
    (tmp_path / example).write_text(EXAMPLES[example])
    planned = run_here(tmp_path, "plan", *words)
    assert (planned.code, planned.err) == (0, "")
    axis, bundled, mine = re.search(r'grid\.(\w+)=\["(\w+)","(\w+)"\]', line).groups()  # type: ignore[union-attr]
    assert mine == Path(example).stem
    for name in (bundled, mine):
        assert planned.out.count(f"edm {axis}={name} · mixture · published+equal · ") == 6
    assert f"grid.{axis} takes the place of the {axis} of arm equal." in " ".join(
        planned.out.split()
    )


def test_who_wins_is_who_the_guide_says(tmp_path: Path) -> None:
    assert "`base`, its case, its arm, its point of the grid, and what `--set` says" in GUIDE
    layers = ["[base]", "[[cases]]\nname = 'a'", "[arms.one]", "[grid]"]
    values = ["'unit'", "'eps'", "'v'", "['x0']"]
    file = tmp_path / "study.toml"

    def won(upto: int, overrides: tuple[str, ...] = ()) -> str | None:
        lines = {layer: "" for layer in layers}
        for layer, value in list(zip(layers, values, strict=True))[:upto]:
            lines[layer] = f"weighting = {value}\n"
        lines["[base]"] += "dataset = 'moons'\nnetwork = 'mlp'\nparameterization = 'edm'\n"
        text = "".join(f"{layer}\n{lines[layer]}" for layer in layers)
        file.write_text(f"[study]\nname = 's'\n{text}")
        (one,) = study_file.read(file, overrides).templates
        return one.settings.weighting and one.settings.weighting.name

    assert [won(i) for i in range(5)] == ["recipe", "unit", "eps", "v", "x0"]
    assert won(4, ("weighting=score",)) == "score"


# --- docs and code name the same things ---------------------------------------------------------


def section(title: str) -> str:
    start = GUIDE.index(f"### {title}\n")
    return GUIDE[start : GUIDE.index("\n##", start + 4)]


def first_column(text: str, head: str) -> list[str]:
    """The first cells of the table under a head."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {head} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("| "):
            break
        rows.append(line.split("|")[1].strip().strip("`"))
    return rows


def hooks() -> dict[str, list[str]]:
    """Every hook with its arguments."""
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(hookspecs).items()
        if name.startswith("testbed_")
    }


def fields(kind: type) -> list[str]:
    """What a component is made of, as its author writes it."""
    if kind is testbed.Parameterization:
        return list(inspect.signature(kind).parameters)
    return [field.name for field in dataclasses.fields(kind) if field.name != "options"]


def test_the_guide_names_every_hook_and_no_other() -> None:
    assert first_column(REFERENCE, "hook") == list(hooks())
    assert set(re.findall(r"\btestbed_[a-z_]+\b", GUIDE)) == {*hooks(), "testbed_residual"}
    for name, arguments in hooks().items():
        assert f"### {name}\n" in GUIDE
        if arguments:
            assert f"`{name}({', '.join(arguments)})`" in section(name)


@pytest.mark.parametrize(("kind", "hook"), HOOKS.items())
def test_the_guide_names_every_field_and_no_other(kind: type, hook: str) -> None:
    assert first_column(section(hook), f"field of `{kind.__name__}`") == fields(kind)
    row = f"| `{hook}` | `testbed.{kind.__name__}` |"
    assert row in GUIDE


def test_the_guide_names_the_fields_of_what_components_hold() -> None:
    text = section("testbed_parameterizations")
    recipe, coefficients = (
        re.search(rf"testbed\.{name}\((.*?)\)", text).group(1).split(", ")  # type: ignore[union-attr]
        for name in ("Recipe", "Coefficients")
    )
    assert recipe == [field.name for field in dataclasses.fields(testbed.Recipe)]
    assert coefficients == list(testbed.Coefficients._fields)
    assert first_column(text, "claim") == list(CLAIMS)
    data = section("testbed_datasets")
    for field in dataclasses.fields(testbed.Data):
        assert re.search(rf"\b{field.name}\b", data) or field.name == "sigma_data"


def test_the_guide_names_every_check_and_no_other() -> None:
    groups = [*GROUPS.values(), OF_PARAMETERIZATIONS, OF_LOSSES]
    known = [check.id for group in groups for check in group]
    told = first_column(section("Of a parameterization"), "check")
    told += first_column(section("Of the others"), "check")
    assert sorted(told) == sorted(known)


def test_what_the_guide_says_of_testing_exists() -> None:
    from testbed import testing
    from testbed.testing import strategies

    start = GUIDE.index("## Checks in your own tests")
    text = GUIDE[start : GUIDE.index("## A plugin as a package")]
    for name in re.findall(r"^- `(\w+)\(", text, flags=re.MULTILINE):
        assert hasattr(testing, name), name
    listed = text[text.index("has Hypothesis strategies:") :]
    for name in re.findall(r"`(\w+)`", listed):
        assert hasattr(strategies, name), name


def test_every_link_in_the_guide_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", GUIDE), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(#([^)]+)\)", GUIDE):
        assert target in anchors, target


@pytest.mark.parametrize("mistake", ["a wrong field", "a wrong example"])
def test_the_tests_of_the_guide_notice(mistake: str, loaded: Loaded) -> None:
    if mistake == "a wrong field":
        text = section("testbed_losses").replace("| `space` |", "| `spaces` |")
        assert first_column(text, "field of `Loss`") != fields(testbed.Loss)
        return
    right = loaded.components["power.py"][0]
    wrong = testbed.Density("power", right.icdf, lambda sigma: right.pdf(sigma) / sigma)
    (law,) = (check for check in iter_checks(wrong) if check.id == "density.normalised")
    with pytest.raises(CheckFailed):
        law(wrong)


def test_no_line_of_the_guide_is_of_this_machine() -> None:
    assert os.sep + "tmp" not in GUIDE
