"""The pages of docs/: code runs, studies can be planned, and what there is is named."""

import dataclasses
import inspect
import os
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import pages
from helpers.command_line import run_here
from helpers.pages import BLOCK, blocks
from helpers.paths import DOCS, ROOT
from helpers.strategies import float64
from helpers.studies import CONDITIONAL, ONE_TRIAL, SMALL, WITHOUT_NETWORK, config, planned
from laws.ddpm import ExactReverse, expected, signs
from mutants.likelihood_laws import ROWS

import testbed
import testbed.components.base
from testbed import hookspecs
from testbed.audit import adapters, driver
from testbed.components import guidance
from testbed.data.level_files import FILE_TABLES
from testbed.diffusion.ddpm import Chain
from testbed.diffusion.noise_levels import SPACINGS, TERMINAL
from testbed.diffusion.noise_tables import NEAREST, TABLES
from testbed.diffusion.parameterization import CLAIMS
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.metrics import information
from testbed.oracles import Gaussian
from testbed.registry import AXES, HOOKS, default_registry
from testbed.report.words import METRICS
from testbed.sampling.guidance_methods import GUIDANCES
from testbed.sampling.schedules import BORDERS, SCHEDULES
from testbed.study import plan, study_file
from testbed.testing import (
    CheckFailed,
    Context,
    Skipped,
    behaviour,
    claims,
    iter_checks,
    plugin,
    values,
)
from testbed.testing.running import GROUPS
from testbed.trial.config import TrialConfig
from testbed.trial.specs import Likelihood
from testbed.trial.validity import MOST_EXACT

PAGES = {
    page: (DOCS / page).read_text()
    for page in (
        "tutorials/first-plugin.md",
        "reference/hooks.md",
        "reference/checks.md",
        "how-to/own-plugin.md",
    )
}
GUIDE = "\n".join(PAGES.values())
TUTORIAL = PAGES["tutorials/first-plugin.md"]
REFERENCE = GUIDE.removeprefix(TUTORIAL)
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
    with pytest.MonkeyPatch.context() as patch:
        if words[1] == "check" and "--suggest-claims" not in words:
            # Another process is asked at the last of the checks alone, when all is mended.
            patch.setattr(behaviour, "equal_elsewhere", lambda component, context: "not asked")
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


@pytest.mark.process
@pytest.mark.slow
def test_the_tutorial_shows_what_its_commands_show(
    followed: tuple[Path, list[tuple[str, str, str]]],
) -> None:
    _, steps = followed
    shown = [(line, found, said) for line, found, said in steps if said]
    assert len(shown) == 5
    for line, found, said in shown:
        for part in said.split("\n...\n"):
            assert plain(part) in plain(found), (line, part)


@pytest.mark.process
@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_without_a_stated_target_the_mistake_is_not_found(tmp_path: Path) -> None:
    text = python(TUTORIAL)["consistency.py"]
    (tmp_path / "consistency.py").write_text(text.replace("        target=target,\n", ""))
    shown = run_here(tmp_path, "check", "consistency.py")
    failed = re.findall(r"^(\S+) +failed", shown.out, flags=re.MULTILINE)
    assert failed == ["parameterization.singular", "claim.boundary"]


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_the_test_file_of_the_guide_passes(
    followed: tuple[Path, list[tuple[str, str, str]]],
) -> None:
    """By pytest in this process. The last check of the tutorial has asked another one."""
    passed: list[str] = []

    class Listener:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            passed.extend([report.nodeid] * (report.when == "call" and report.passed))

    folder, _ = followed
    file = folder / "test_consistency.py"
    file.write_text(python(REFERENCE)["test_consistency.py"])
    words = ["--rootdir", str(folder), "-c", os.devnull, "-p", "no:cacheprovider", "-q"]
    assert pytest.main([*words, str(file)], plugins=[Listener()]) == pytest.ExitCode.OK
    assert 20 <= len(passed) < 30


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


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "summary.py"])
def test_an_example_passes_its_checks(name: str, loaded: Loaded) -> None:
    (component,) = loaded.components[name]
    for check in iter_checks(component):
        try:
            replace(check, context=loaded.context)(component)
        except Skipped:
            continue


@pytest.mark.slow
def test_every_hook_has_an_example(loaded: Loaded) -> None:
    axes = {component.axis for several in loaded.components.values() for component in several}
    assert axes == set(AXES)
    assert "def testbed_study_finished(" in EXAMPLES["summary.py"]


@pytest.mark.slow
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


@pytest.mark.slow
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
    said = section("testbed_parameterizations").partition("the bundled network `mlp` takes ")[2]
    for kind, (low, high) in registry.network("mlp").noise.items():
        article = "an" if kind == "index" else "a"
        assert f"{article} {kind} from {low:g} to {high:g}" in said


@pytest.mark.parametrize("name", testbed.Registry().names("network"))
def test_the_bundled_networks_are_named_in_the_guide(name: str) -> None:
    assert f"`{name}`" in section("testbed_networks"), f"docs/reference/hooks.md: {name} is missing"


def test_the_guide_shows_what_explain_shows_of_a_weighting(tmp_path: Path) -> None:
    (shown,) = (body for language, body in BLOCK.findall(section("testbed_weightings"))
                if language == "text")  # fmt: skip
    done = run_here(tmp_path, "explain", "min_snr")
    for part in shown.split("...\n"):
        assert part in done.out
    (tmp_path / "flat.py").write_text(EXAMPLES["flat.py"])
    assert run_here(tmp_path, "explain", "flat.py").code == 0


STUDIES = re.findall(r"^testbed study (.*)$", REFERENCE, flags=re.MULTILINE)


@pytest.mark.slow
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
    of_the_testbed = ("options", "channels")
    return [name for name in inspect.signature(kind).parameters if name not in of_the_testbed]


def test_the_guide_names_every_hook_and_no_other() -> None:
    assert first_column(REFERENCE, "hook") == list(hooks())
    assert set(re.findall(r"\btestbed_[a-z_]+\b", GUIDE)) == {*hooks(), "testbed_residual"}
    for name, arguments in hooks().items():
        assert f"### {name}\n" in GUIDE
        if arguments:
            assert f"`{name}({', '.join(arguments)})`" in section(name)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "hook"), HOOKS.items())
def test_the_guide_names_every_field_and_no_other(kind: type, hook: str) -> None:
    assert first_column(section(hook), f"field of `{kind.__name__}`") == fields(kind)
    row = f"| `{hook}` | `testbed.{kind.__name__}` |"
    assert row in GUIDE


def test_the_guide_names_the_fields_of_what_components_hold() -> None:
    text = section("testbed_parameterizations")
    found = re.search(r"testbed\.Coefficients\((.*?)\)", text)
    assert found is not None
    coefficients = found[1].split(", ")
    assert coefficients == list(testbed.Coefficients._fields)
    assert first_column(text, "claim") == list(CLAIMS)
    assert first_column(section("testbed_guidances"), "claim") == list(guidance.CLAIMS)
    methods = [word.split("(")[0] for word in first_column(section("testbed_guidances"), "method")]
    assert methods == ["classes", "misfits", "denoiser"]
    assert all(hasattr(guidance.GuidanceMethod, method) for method in methods)
    data = section("testbed_datasets")
    for field in dataclasses.fields(testbed.Data):
        assert re.search(rf"\b{field.name}\b", data) or field.name == "sigma_data"


def test_the_guide_names_every_check_and_no_other() -> None:
    groups = [*GROUPS.values(), *claims.GROUPS.values()]
    known = [check.id for group in groups for check in group]
    known += [check.id for check in values.CHECKS.values()]
    told = first_column(section("Of a parameterization"), "check")
    told += first_column(section("Of the others"), "check")
    assert sorted(told) == sorted(known)


def test_what_the_guide_says_of_testing_exists() -> None:
    from testbed import testing
    from testbed.testing import strategies

    page = PAGES["how-to/own-plugin.md"]
    text = page[page.index("## Checks in your own tests") : page.index("## A plugin as a package")]
    for name in re.findall(r"^- `(\w+)\(", text, flags=re.MULTILINE):
        assert hasattr(testing, name), name
    listed = text[text.index("has Hypothesis strategies:") :]
    for name in re.findall(r"`(\w+)`", listed):
        assert hasattr(strategies, name), name


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), flags=re.MULTILINE)
    own = re.findall(r"^\(([\w-]+)\)=$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in titles} | set(own)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_every_link_in_a_page_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


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


# --- code that runs as written ------------------------------------------------------------------


def audit_runs(names: dict[str, Any], out: str) -> None:
    assert names["found"].passed


def ddpm_runs(names: dict[str, Any], out: str) -> None:
    """Unit Gaussian data with beta: the bound is the entropy, 2.838 nats, within 5 of the 512
    samples' standard errors."""
    total = names["terms"].total
    assert abs(float(total.mean()) - 2.8379) < 5 * float(total.std()) / 512**0.5
    assert "tensor" in out


def scores_run(names: dict[str, Any], out: str) -> None:
    errors = [float(word) for word in out.split()]
    assert len(errors) == 3
    assert max(errors) < 1e-4
    assert names["brought"](torch.ones(2, 1), torch.ones(2)).shape == (2, 1)


def guidance_runs(names: dict[str, Any], out: str) -> None:
    """Guided twice as far, more samples are of the class than not."""
    assert bool(torch.isfinite(names["x"]).all())
    sure = names["exact"].log_classes("label", names["x"].double(), 0.05)[:, 3]
    assert float((sure > -0.1).double().mean()) > 0.5


def likelihood_runs(names: dict[str, Any], out: str) -> None:
    assert bool(torch.isfinite(names["bits"]).all())
    assert bool((names["some"].error > 0).all())


def paper_is_written(names: dict[str, Any], out: str) -> None:
    assert "9 finished" in repr(names["result"])
    assert list(names["energy"].columns) == ["edm", "eps", "v"]
    assert names["energy"].shape == (3, 3)
    assert names["energy"].notna().all(axis=None)
    assert {"results.tex", "comparisons.tex"} < {file.name for file in names["files"]}
    assert {"excess_data", "coefficients_data", "samples_data"} < set(names["result"].figures)
    assert (Path("paper") / "results.tex").read_text() == names["latex"]
    assert "<Study 'first': 1 case, 1 arm, 3 variants, 9 trials>" in out


def samplers_run(names: dict[str, Any], out: str) -> None:
    assert bool(torch.isfinite(names["x"]).all())


def sample_runs(names: dict[str, Any], out: str) -> None:
    """The second of two samples with generators is nearer to itself alone; a known half is kept."""
    first, second = ((names["second"] - one).norm() for one in names["two"])
    assert second < first / 1000
    assert names["mixed"].shape == (3, 1, 8, 8)
    apart, shape = out.splitlines()[-2:]
    assert float(apart.removeprefix("tensor(").rstrip(")")) < 2.0**-15
    assert shape == "(4, 8, 8, 1) uint8 (8, 8)"
    assert Path("seven.png").exists()
    assert Path("mask.png").exists()


RUN = {
    "audit": (2, audit_runs),
    "ddpm": (1, ddpm_runs),
    "scores": (2, scores_run),
    "guidance": (1, guidance_runs),
    "likelihood": (1, likelihood_runs),
    "python-and-paper": (5, paper_is_written),
    "sample": (7, sample_runs),
    "samplers": (1, samplers_run),
}
"""How many blocks of a page make one program, and what is then true."""


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_python_blocks_run(
    page: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    count, holds = RUN[page]
    names: dict[str, Any] = {"network_of_x_t_and_t": lambda x, t: -x}
    shown = blocks(page, "python")
    assert len(shown) >= count
    exec("".join(shown[:count]), names)
    holds(names, capsys.readouterr().out)


@pytest.mark.slow
def test_the_factory_of_the_audit_passes_by_the_command_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(blocks("audit", "python")[0])
    done = run_here(tmp_path, *blocks("audit", "sh")[1].split()[1:])
    assert done.code == 0, done.out + done.err
    assert "laws hold" in done.out


@pytest.mark.slow
def test_without_the_division_the_audit_says_what_its_page_says(tmp_path: Path) -> None:
    wrong = blocks("audit", "python")[0].replace("x = x_t / alpha[:, None]", "x = x_t")
    (tmp_path / "mine.py").write_text(wrong)
    done = run_here(tmp_path, *blocks("audit", "sh")[1].split()[1:])
    assert done.code == 3
    for line in blocks("audit", "")[0].splitlines():
        assert line in done.out


# --- studies that can be planned ----------------------------------------------------------------


def without(text: str, *keys: str) -> str:
    """A study without the lines of these keys, which the page's block has."""
    return "".join(
        line for line in text.splitlines(keepends=True) if line.partition(" ")[0] not in keys
    )


def of_ddpm(block: str, one: TrialConfig) -> None:
    if "table" in block:
        assert one.variance.vlb == 0.001
    else:
        assert one.output == "score"


def of_discrete(block: str, one: TrialConfig) -> None:
    assert one.c_noise == "index"
    zero = one.table.options["zero_terminal_snr"]
    assert zero == ("zero_terminal_snr" in block)
    assert one.density.options["sigma_max"] == (TERMINAL if zero else one.sigma_max)
    drawn, had = one.table_levels
    assert drawn == had


def of_guidance(block: str, one: TrialConfig) -> None:
    assert one.conditions["label"] == 0.1
    guided = one.evaluation.guidance.name
    assert (guided == "classifier_free") == ("classifier_free" in block)


def of_likelihood(block: str, one: TrialConfig) -> None:
    assert isinstance(one.evaluation.likelihood, Likelihood)
    assert one.dataset.options["dequantised"] is True


def of_samplers(block: str, one: TrialConfig) -> None:
    own = tomllib.loads(block)["evaluation"]
    assert one.evaluation.steps == own["steps"]
    assert one.evaluation.sampler.options["variance"] == own["sampler"]["variance"]
    assert one.evaluation.schedule.options["spacing"] == own["schedule"]["spacing"]


STATED = {
    "ddpm": of_ddpm,
    "scores": of_ddpm,
    "discrete": of_discrete,
    "guidance": of_guidance,
    "likelihood": of_likelihood,
    "samplers": of_samplers,
}
"""What is true of the trial of a page's settings."""
BASES = {
    "discrete": WITHOUT_NETWORK,
    "guidance": CONDITIONAL,
    "likelihood": without(SMALL, "dataset"),
    "samplers": SMALL,
}


def base_of(page: str, block: str) -> str:
    """The study that a page's settings are entered in: without what they say themselves."""
    if page in ("ddpm", "scores"):
        table = WITHOUT_NETWORK if "table" in block else without(ONE_TRIAL, "parameterization")
        return without(table, "weighting", "loss")
    return without(BASES[page], *(["evaluation"] if "evaluation" in block else []))


@pytest.mark.parametrize(
    ("page", "block"), [(page, block) for page in STATED for block in pages.settings(page)]
)
def test_the_studies_shown_are_ones(tmp_path: Path, page: str, block: str) -> None:
    text = base_of(page, block).replace("[base]\n", f"[base]\n{block}")
    STATED[page](block, config(text, tmp_path))


@pytest.mark.parametrize("page", STATED)
def test_a_page_shows_a_study(page: str) -> None:
    assert pages.settings(page)


@pytest.mark.parametrize("name", default_registry().names("sampler"))
def test_the_samplers_that_cannot_start_at_infinity_are_those_named(
    tmp_path: Path, name: str
) -> None:
    guide, block = pages.text("discrete"), pages.settings("discrete")[1]
    line = guide[: guide.index("cannot start there")].splitlines()[-1]
    text = WITHOUT_NETWORK.replace("[base]\n", f"[base]\n{block}")
    refused = pytest.raises(testbed.errors.InputError, match="cannot step from sigma = infinity")
    with refused if f"`{name}`" in line else nullcontext():
        planned(text, tmp_path, f"evaluation.sampler={name}")


# --- figures and names --------------------------------------------------------------------------


@pytest.mark.slow
def test_the_figures_of_the_bound() -> None:
    """To the four digits shown."""
    m, L = 0.5, 0.3
    exactly = {"exact": ExactReverse(m, L)}
    oracle = Gaussian(float64([m]), float64([[L]]))
    row = r"^\| n = (\d+), start = (\S+), end = (\S+) \| (\w+)" + 4 * r" \| (\S+)" + r" \|$"
    rows = re.findall(row, pages.text("ddpm"), re.MULTILINE)
    assert len(rows) == 9
    for n, start, end, variance, *figures in rows:
        chain = Chain(
            default_registry().table("ddpm", n=int(n), start=float(start), end=float(end)).sigmas
        )
        denoiser = exactly.get(variance, oracle.denoise)
        name = "learned" if variance == "exact" else variance
        found = expected(chain, denoiser, *signs(m, L), name)
        parts = (found.reconstruction, found.matching.sum(0), found.prior, found.total)
        assert [f"{float(part.mean()):.4f}" for part in parts] == figures


def samplers() -> dict[str, Any]:
    registry = default_registry()
    found = {name: registry.sampler(name) for name in registry.names("sampler")}
    built_in = {name: s for name, s in found.items() if registry.source(s).kind == "built in"}
    return {**built_in, **SCHEDULES}


NAMED: dict[str, tuple[Mapping[str, Any], Collection[str], set[str]]] = {
    # Heun's options are Euler's; ddpm is a sampler and a schedule.
    "samplers": (samplers(), ("heun", "ddpm"), set()),
    "guidance": (GUIDANCES, (), set()),
    "discrete": ({**TABLES, **FILE_TABLES}, (), {"nearest", "zero_terminal_snr"}),
}
"""The components of a page's table, those whose options stand elsewhere, and common options."""


@pytest.mark.parametrize("page", NAMED)
def test_the_tables_have_every_component_and_option(page: str) -> None:
    known, elsewhere, common = NAMED[page]
    rows = pages.rows(page)
    assert set(known) <= set(rows)
    assert page == "guidance" or set(rows) == set(known)
    for name in set(known) - set(elsewhere):
        options = set(known[name].defaults) - common
        assert set(re.findall(r"`(\w+)`", rows[name])) == options, name


FORMS = (*PREDICTION_TYPES, "F")
WORDS_OF_AUDIT = (
    *adapters.SCHEDULES, *adapters.TIME_ARGUMENTS, *PREDICTION_TYPES, *driver.PARTS,
)  # fmt: skip
WORDS = {
    "audit": [rf"\b{re.escape(w)}\b" for w in WORDS_OF_AUDIT],
    "samplers": [f'"{word}"' for word in (*SPACINGS, *BORDERS)],
    "discrete": [f'"{word}"' for word in NEAREST],
    "scores": [f'"{name}"' for name in PREDICTION_TYPES],
    "guidance": [
        *(rf"\| `{name}` \|" for name in ("excess_guided_nats", "guided_error", "classifier_nats")),
        *(rf"(?m)^\| {form} \| {'D' if form == 'x0' else form} [+-] l " for form in FORMS),
    ],
    "likelihood": [
        *(rf"\b{name}\b" for name in Likelihood.model_fields),
        *(rf"\| `{name}` \|" for name in ("nll", "bits_per_dim", "nll_gap")),
        *(rf"`{name}\(" for name in ("kl_bound", "entropy", "mutual_information")),
        rf"more\s+than\s+{MOST_EXACT}\s",
        f"has {len(ROWS)} mistakes",
    ],
}
"""What a page says, word by word, as patterns."""


@pytest.mark.parametrize("page", WORDS)
def test_a_page_names_all_there_is(page: str) -> None:
    guide = pages.text(page)
    assert [word for word in WORDS[page] if not re.search(word, guide)] == []


def test_what_the_pages_name_exists() -> None:
    assert {"nll", "bits_per_dim", "nll_gap"} <= set(METRICS)
    for name in ("kl_bound", "entropy", "mutual_information"):
        assert hasattr(information, name)
    methods = re.findall(r"^\| `(\w+)\(", pages.text("ddpm"), re.MULTILINE)
    public = {"step", "marginal", "posterior", "reverse", "elbo"}
    assert set(methods) == public <= set(vars(Chain))
