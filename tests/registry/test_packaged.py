"""A plugin as a distribution of its own, installed beside testbed's wheel where neither was built.

The environment is fresh. Of the one that the tests run in it sees the dependencies alone, by a
path: that path's own .pth files, an editable testbed among them, have no effect.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import environment
from helpers.paths import FIXTURES, ROOT

PLUGIN = FIXTURES / "packaged_plugin"
STUDY = """
[study]
name = "packaged"
[base]
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 2 }
evaluation = { levels = 3, draws = 32, samples = 16, steps = 3, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["residual", "edm"]
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


def ran(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command without the checkout on its path; its output is shown where it fails."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of testbed and of the plugin, by distribution."""
    out = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, PLUGIN):
        ran(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out, cwd=source)
    return {file.name.partition("-")[0]: file for file in out.glob("*.whl")}


@pytest.fixture(scope="module")
def testbed_there(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`python -m testbed` of a fresh environment with both wheels, in a folder of its own."""
    root = tmp_path_factory.mktemp("fresh")
    venv.create(root / "env", with_pip=False)
    python = root / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    flags = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", *flags)
    ran(*pip, *wheels.values(), cwd=root)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(ran(python, "-c", where, cwd=root).stdout.strip())
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(seen) + "\n")
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "packaged.toml").write_text(STUDY)

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        return ran(python, "-m", "testbed", *words, cwd=root / "elsewhere")

    command.folder = root / "elsewhere"  # type: ignore[attr-defined]
    command.packages = packages  # type: ignore[attr-defined]
    return command


@pytest.mark.slow
@pytest.mark.process
def test_the_wheel_holds_all_that_is_shipped(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["diffusion_testbed"]) as wheel:
        names = set(wheel.namelist())
    package = ROOT / "testbed"
    expected = {str(file.relative_to(ROOT)) for file in package.rglob("*.py")}
    expected |= {
        f"testbed/_bundled/{folder}/{file.name}"
        for folder, kind in (("plugins", "*.py"), ("studies", "*.toml"))
        for file in (ROOT / folder).glob(kind)
    }
    expected |= {"testbed/py.typed", "testbed/__init__.pyi", "testbed/report/report.html.j2"}
    assert expected <= names, expected - names
    for some in ("testing/__init__", "templates/parameterization", "_bundled/plugins/flow"):
        assert f"testbed/{some}.py" in names
    assert not [name for name in names if name.startswith(("tests", "runs"))]


@pytest.mark.process
@pytest.mark.slow
def test_the_plugin_is_found_by_its_entry_point(testbed_there: Command) -> None:
    found = json.loads(testbed_there("plugins", "--json").stdout)
    assert found["failures"] == []
    by_name = {one["plugin"]: one for one in found["plugins"]}
    assert by_name["residual"]["kind"] == "entry point"
    assert by_name["residual"]["version"] == "testbed-residual 0.3.1"
    bundled = Path(by_name["edm"]["origin"])
    assert bundled.is_relative_to(testbed_there.packages)
    assert bundled.parts[-3:] == ("_bundled", "plugins", "edm.py")


@pytest.mark.process
@pytest.mark.slow
def test_the_plugin_passes_its_checks(testbed_there: Command) -> None:
    assert "0 failed" in testbed_there("check", "residual").stdout


@pytest.mark.process
@pytest.mark.slow
def test_a_study_with_the_plugin_runs_and_reports_it(testbed_there: Command) -> None:
    words = ("study", "packaged.toml", "--jobs", 1, "--no-mlflow", "--engine", "sequential")
    assert "2 finished in" in testbed_there(*words).stdout
    folder = testbed_there.folder / "runs" / "packaged"
    assert "residual" in (folder / "report.html").read_text()
    for name in ("results", "trials", "levels"):
        assert "residual" in set(pd.read_csv(folder / "tables" / f"{name}.csv")["variant"])
    plugins = [
        json.loads((at / "trial.json").read_text())["config"]["plugins"]
        for at in (folder / "trials").iterdir()
    ]
    assert sum(found.get("residual") == "testbed-residual 0.3.1" for found in plugins) == 1
