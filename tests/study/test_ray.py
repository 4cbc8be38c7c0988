"""What Ray is asked for, without a cluster; studies on one are in test_executors."""

import importlib.util
import socket
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import run_here
from helpers.ended_studies import ONE

from testbed.errors import InputError
from testbed.study.executors import ray as executor
from testbed.study.executors.base import Job
from testbed.study.executors.settings import RaySettings

NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0, "memory": 8.0 * 2**30}},
    {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0, "fast_disk": 1.0}},
    {"Alive": False, "Resources": {"CPU": 64.0}},
]
TOTAL = {"CPU": 5.0, "GPU": 1.0, "memory": 8.0 * 2**30, "fast_disk": 1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RaySettings(cpus=8), "a group takes 8 of 'CPU', and no node has more than 4"),
        (RaySettings(resources={"fast_disc": 1}), "'fast_disc', .* Did you mean 'fast_disk'"),
        (RaySettings(cpus=4, gpus=1), "no node has all that a group takes"),
    ],
)
def test_what_no_node_has_is_refused(settings: RaySettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        executor._check(settings.needed(), NODES, TOTAL)


@pytest.mark.parametrize(("name", "key"), [("CPU", "cpus"), ("GPU", "gpus"), ("memory", "memory")])
def test_a_resource_that_has_a_key_of_its_own_is_refused(name: str, key: str) -> None:
    """It would be asked for instead, without a word."""
    said = rf"{name} has a key of its own, executor\.ray\.{key}"
    with pytest.raises(ValueError, match=said):
        RaySettings(resources={"fast_disk": 1, name: 2})


def test_what_a_node_has_is_accepted() -> None:
    for settings in (RaySettings(), RaySettings(cpus=4, memory=8), RaySettings(gpus=0.5)):
        executor._check(settings.needed(), NODES, TOTAL)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'diffusion-testbed\[ray\]'"):
        executor.connect(RaySettings())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_an_address_where_nobody_answers_is_named_before_ray_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nothing listens
        port = taken.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        address = form.format(port)
        (tmp_path / "one.toml").write_text(ONE)
        words = "one.toml", "--executor", "ray", "--set", f"executor.ray.address={address}"
        done = run_here(tmp_path, "study", *words, "--no-mlflow", RAY_ADDRESS=f"127.0.0.1:{port}")
    assert done.code == 2
    said = f"executor.ray.address = {address!r}: nothing answers at "
    assert said in " ".join(done.err.split()), done.err
    assert f"127.0.0.1:{port} (ConnectionRefusedError" in done.err


def test_a_port_that_answers_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        executor._reach(f"127.0.0.1:{there.getsockname()[1]}")
    executor._reach("auto")


def test_a_worker_that_cannot_begin_ends_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import RayTaskError

    monkeypatch.setattr(executor, "connect", lambda settings: False)
    tasks = executor.RayExecutor(tmp_path, RaySettings(), 1, 1)
    done: Future[Any] = Future()

    class Task:
        def remote(self, path: str) -> Any:
            return self

        def future(self) -> Future[Any]:
            return done

    monkeypatch.setattr(tasks, "_task", Task())
    future = tasks.submit(Job([], [], tmp_path / "groups" / "abc", (), (), "cpu", False))
    tasks.advance()
    done.set_exception(RayTaskError("perform", "Traceback\nNo module named 'testbed'", None))
    with pytest.raises(InputError, match="could not begin: No module named 'testbed'"):
        tasks.advance()
    assert not future.done()
    tasks.close()
