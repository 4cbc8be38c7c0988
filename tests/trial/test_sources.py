"""The digest of the sources that a trial uses: of all of these, and of no others."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import testbed
from testbed import errors
from testbed.trial import sources

REGISTRY = testbed.Registry()
PACKAGE = Path(errors.__file__).parent

IDS = """
import json, pathlib
from testbed import Registry
from testbed.study import plan, study_file
study = study_file.read(pathlib.Path("default"), seeds=1)
found = plan.make(study, Registry(), pathlib.Path("none"), "cpu").trials
print(json.dumps(sorted(one.id for one in found)))
"""

NETWORK = '''
"""A network more."""

import torch

import testbed


def build(shape):
    return torch.nn.Identity()


@testbed.hookimpl
def testbed_networks():
    yield testbed.Network("another", build, noise={"sigma": (0.0, 100.0)})
'''


def ids(root: Path) -> list[str]:
    """The ids of the default study, one seed, of the package below `root`."""
    done = subprocess.run(
        [sys.executable, "-c", IDS],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def changed(root: Path, file: str, before: str, after: str) -> None:
    text = (root / file).read_text()
    assert before in text
    (root / file).write_text(text.replace(before, after, 1))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, root / "testbed", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("plugins", "studies"):
        shutil.copytree(PACKAGE.parent / folder, root / folder)
    return root


@pytest.mark.process
@pytest.mark.slow
def test_a_bundled_network_more_changes_no_id_and_a_constant_of_training_changes_all(
    copy: Path,
) -> None:
    before = ids(copy)
    (copy / "testbed/networks/another.py").write_text(NETWORK)
    mlp = '    "testbed.networks.mlp",\n'
    home = next(f for f in copy.rglob("registry*/**/*.py") if mlp in f.read_text()) if (
        copy / "testbed/registry").is_dir() else copy / "testbed/registry.py"  # fmt: skip
    changed(copy, str(home.relative_to(copy)), mlp, mlp + '    "testbed.networks.another",\n')
    changed(copy, "testbed/training/weights.py", '"""Copies of all', '"""All of the copies of all')
    assert ids(copy) == before
    changed(copy, "testbed/training/weights.py", "def clear(", "def  clear(")
    assert not set(ids(copy)) & set(before)


def closure(*roots: str) -> set[str]:
    found: set[str] = set()
    waiting = [sources.WORKER, *roots]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += sources.parsed(name).imports
    return found


def test_the_worker_uses_the_mathematics_and_neither_a_study_nor_a_report() -> None:
    rooms = {name.split(".")[1] for name in closure()}
    assert {"components", "diffusion", "metrics", "oracles", "training", "trial"} <= rooms
    assert not rooms & {"study", "report", "cli", "testing", "templates"}


def test_a_sampler_s_module_is_of_the_trials_that_use_it_alone() -> None:
    ancestral = REGISTRY.source(REGISTRY.sampler("ddpm")).origin
    assert ancestral not in closure()
    assert ancestral in closure(ancestral)
    assert sources.digest() != sources.digest([ancestral])
    assert sources.digest() == sources.digest(["a.plugin.of.another.package"])


def test_type_checking_imports_are_no_use() -> None:
    """components.schedule names NoiseTable in its types only."""
    assert (
        "testbed.diffusion.noise_tables"
        not in sources.parsed("testbed.components.schedule").imports
    )


DOCUMENTED = b'''"""A module."""

WIDTH = 1
"""Of all
of them."""


def text():
    """What is said."""
    return """
    # no comment
    """


class Empty:
    """Nothing."""; """More."""; SIZE = 2
'''


def test_docstrings_are_no_code_and_other_strings_are() -> None:
    def code(source: bytes) -> bytes:
        return sources.without_docstrings(source, ast.parse(source))

    found = code(DOCUMENTED)
    for word in (b"A module", b"Of all", b"of them", b"What is said", b"Nothing", b"More."):
        assert word not in found
        assert code(DOCUMENTED.replace(word, b"Another word,\n    and a line")) == found
    assert code(DOCUMENTED.replace(b'    """What is said."""\n', b"")) == found
    for word in (b"WIDTH = 1", b"# no comment", b"SIZE = 2"):
        assert word in found
        assert code(DOCUMENTED.replace(word, word + b"0")) != found
