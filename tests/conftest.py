"""What the tests share: one thread, the environment put back, the command line in a folder."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import strategies  # noqa: F401  registers and loads the Hypothesis profiles
import torch

import testbed.ext
from testbed.cli import app

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
OURS = ("MLFLOW_", "TESTBED_", "NOX_")

TINY = """
[study]
name = "tiny"
title = "A tiny study"

[base]
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 2 }
evaluation = { levels = 4, draws = 32, samples = 16, steps = 4, metrics = ["energy"] }

[arms]
published = {}
equal = { weighting = "edm", density = "lognormal", c_in = "shared", c_noise = "shared" }

[grid]
parameterization = ["v", "edm"]

[[cases]]
name = "mixture"
dataset = { name = "mixture", dim = 2 }
seeds = 2

[[cases]]
name = "digits"
dataset = "digits"
seeds = 1

[report]
baseline = "edm"
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """The variables of a command: none of MLflow's, nox's or ours but `more`; wide output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    # In a subprocess with another working directory, a relative PYTHONPATH leads nowhere.
    kept |= {"PYTHONPATH": str(ROOT), "COLUMNS": "250", "OMP_NUM_THREADS": "1"}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", **more}


def run_here(folder: Path, *words: object, **more: str) -> Done:
    """`testbed WORDS` with `folder` as working directory, in this process, which is faster."""
    out, err = io.StringIO(), io.StringIO()
    from testbed.trial import build

    # Its key is only the words, which mean something else here.
    build.registry_of.cache_clear()
    path, modules = list(testbed.ext.__path__), set(sys.modules)
    before, code = dict(os.environ), 0
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["testbed", *map(str, words)])
            os.environ.clear()
            os.environ.update(environment(**more))
            try:
                app.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os.environ.clear()
        os.environ.update(before)
        testbed.ext.__path__[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("testbed.ext."):
                del sys.modules[name]
    return Done(code, out.getvalue(), err.getvalue())


def run_process(folder: Path, *words: object, **more: str) -> Done:
    """`python -m testbed WORDS` with `folder` as working directory, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *map(str, words)],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """The environment is after a test what it was before."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with the study file tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store, migrated once a session."""
    from testbed.study import tracking

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.prepare(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def new_store(template: Path) -> Callable[[Path], str]:
    """Gives a folder an MLflow store of its own and returns its address."""

    def make(folder: Path) -> str:
        shutil.copyfile(template, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make
