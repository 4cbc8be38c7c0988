"""Builds the wheel and the sdist, installs the wheel in a fresh environment, and uses it.

Who installs the sdist builds a wheel from it first: that is the same wheel, file by file. The
environment sees the dependencies of the one that runs this, by a path. Nothing is downloaded.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import testbed
for name in testbed.__all__:
    getattr(testbed, name)
assert "site-packages" in testbed.__file__, testbed.__file__
print("testbed", testbed.__version__, "with", len(testbed.__all__), "public names")
"""


def ran(*words: object, cwd: Path) -> str:
    """The output of a command, without the checkout on its path; what it said, where it fails."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=variables, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")
    return done.stdout


def fresh(folder: Path) -> Path:
    """A new environment that sees the dependencies; its folder of commands."""
    venv.create(folder, with_pip=False)
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(ran(commands / "python", "-c", where, cwd=folder).strip())
    seen = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    # A .pth file that is found by way of this one has no effect: an editable testbed stays unseen.
    (packages / "dependencies.pth").write_text("\n".join(seen) + "\n")
    return commands


def contents(wheel: Path) -> dict[str, int]:
    """The checksums of a wheel's files by their names."""
    with zipfile.ZipFile(wheel) as archive:
        return {one.filename: one.CRC for one in archive.infolist()}


def rebuilt(sdist: Path, folder: Path) -> dict[str, int]:
    """The contents of the wheel that pip builds from the sdist to install it."""
    flags = ("--no-deps", "--no-build-isolation", "--quiet")
    ran(sys.executable, "-m", "pip", "wheel", *flags, "-w", folder, sdist, cwd=sdist.parent)
    (wheel,) = folder.iterdir()
    return contents(wheel)


def used(package: Path, folder: Path) -> None:
    """Installs a wheel, and runs the command and the library that it brings."""
    commands = fresh(folder / "env")
    flags = ("--no-deps", "--no-build-isolation", "--quiet")
    pip = (sys.executable, "-m", "pip", "--python", commands / "python", "install")
    ran(*pip, *flags, package, cwd=folder)
    assert "study" in ran(commands / "testbed", "--help", cwd=folder)
    plugins = ran(commands / "testbed", "plugins", cwd=folder)
    assert "minus_eps" in plugins, plugins
    assert "not loaded" not in plugins, plugins
    assert "6 new" in ran(commands / "testbed", "plan", "aa", "--only", "mixture", cwd=folder)
    assert "is sound" in ran(commands / "testbed", "selftest", cwd=folder)
    print(package.name, "-", ran(commands / "python", "-c", USE, cwd=folder).strip())


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        ran(sys.executable, "-m", "hatchling", "build", "-d", out / "dist", cwd=ROOT)
        packages = {file.suffix: file for file in (out / "dist").iterdir()}
        assert set(packages) == {".whl", ".gz"}, packages
        (out / "used").mkdir()
        with ThreadPoolExecutor() as side:
            again = side.submit(rebuilt, packages[".gz"], out / "again")
            used(packages[".whl"], out / "used")
            assert again.result() == contents(packages[".whl"]), "the sdist gives another wheel"
    print(f"Both are whole: built, installed and used in {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
