"""What all tests have: one thread, the environment put back, a study and a store to begin with."""

import gc
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import testbed

# Until all tests are collected, which takes a third less without it.
gc.disable()

pytest.register_assert_rewrite("helpers", "faults", "fuzz", "laws", "mutants", "properties")

from helpers import strategies  # noqa: E402, F401  registers and loads the Hypothesis profiles
from helpers.command_line import blank_figures, run_here, trials_only  # noqa: E402
from helpers.faulty_proxy import Proxy  # noqa: E402
from helpers.shared import once  # noqa: E402
from helpers.studies import TINY  # noqa: E402

from testbed.study import step_times  # noqa: E402
from testbed.testing import behaviour  # noqa: E402
from testbed.training.batch import Batch  # noqa: E402
from testbed.training.trainer import Loop  # noqa: E402
from testbed.trial.storage import bucket  # noqa: E402

torch.set_num_threads(1)
MILLISECONDS, LONG_STEP = step_times._milliseconds, step_times.long_step
MEASURED = step_times.MEASURED


PROCESS = re.compile(r"\.(spawned|compile)\b")
SLOW = re.compile(
    r"\.(spawned|compile|marginal)\b"
    r"|\[(unet|dit)-network\.|\[(captions|fashion_mnist)-dataset\."
    r"|\[(sliced_wasserstein|(density|coverage|precision)_gap)-metric\."
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kit's checks that cost much, a process or a compiler are marked wherever they run."""
    for item in items:
        if PROCESS.search(item.name):
            item.add_marker("process")
        if SLOW.search(item.name):
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """What is collected stays to the end: the garbage collector looks at it no more."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """The environment is after a test what it was before."""
    before = dict(os.environ)
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def short_measurement() -> Iterator[None]:
    """Engines are tried for a step of two trials and not timed, where the choice is no matter.

    On cores that are all at work, hundreds of steps on several threads would take a minute; and to
    trace a step takes as long as a hundred of them.
    """

    def milliseconds(loop: Loop) -> float:
        loop.interval = 1
        if isinstance(loop, Batch):
            loop.traced_from = 1
        next(loop.windows())
        return 1.0 if isinstance(loop, Batch) else 2.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_times, "_milliseconds", milliseconds)
        patch.setattr(step_times, "long_step", lambda *rest: 0.0)
        patch.setattr(step_times, "MEASURED", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """What is written in this process is not waited for: no test cuts the power of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def whole_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are measured as they are for a user."""
    monkeypatch.setattr(step_times, "_milliseconds", MILLISECONDS)
    monkeypatch.setattr(step_times, "long_step", LONG_STEP)
    monkeypatch.setattr(step_times, "MEASURED", MEASURED)


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit asks no other process, which takes seconds, where that is not the matter."""
    monkeypatch.setattr(behaviour, "equal_elsewhere", lambda component, context: "not asked")


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """The port of an S3 server with an empty bucket."""
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield running.get_host_and_port()[1]
    running.stop()


@pytest.fixture
def proxy(s3_port: int, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Iterator[Proxy]:
    """What stands before the server, as yet without faults; the store is reached through it."""
    made = Proxy(s3_port)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # what tries again is s3fs, without long waits
    bucket._file_system.cache_clear()
    if "bucket" not in bucket._file_system("s3").ls(""):
        bucket._file_system("s3").mkdir("s3://bucket")
    made.seen.clear()
    yield made
    made.close()
    bucket._file_system.cache_clear()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of testbed in a user's cache of its own, still to be made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path / "cache" / "testbed"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with the study file tiny.toml."""
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study tiny.toml, whose trials were trained one by one; to read or copy."""

    def make(folder: Path) -> Path:
        (folder / "tiny.toml").write_text(TINY)
        words = ("study", "tiny.toml", "--jobs", 0, "--no-mlflow", "--engine", "sequential")
        with trials_only():
            done = run_here(folder, *words)
        assert done.code == 0, done.err
        return folder

    return once(tmp_path_factory, "trained", Path, make)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow store, migrated once."""

    def make(folder: Path) -> Path:
        from testbed.study import tracking_store

        tracking_store.prepare(f"sqlite:///{folder / 'mlflow.db'}")
        return folder / "mlflow.db"

    return once(tmp_path_factory, "mlflow", Path, make)


@pytest.fixture(scope="session")
def new_store(template: Path) -> Callable[[Path], str]:
    """Gives a folder an MLflow store of its own and returns its address."""

    def make(folder: Path) -> str:
        shutil.copyfile(template, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@pytest.fixture(name="trials_only")
def _trials_only() -> Iterator[None]:
    """A study of this test ends with its trials."""
    with trials_only():
        yield


@pytest.fixture(name="blank_figures")
def _blank_figures() -> Iterator[None]:
    """A report of this test has blank figures."""
    with blank_figures():
        yield


@pytest.fixture(scope="session")
def bundled() -> testbed.Registry:
    """What is bundled and no more."""
    return testbed.Registry()
