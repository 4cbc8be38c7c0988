"""One training over several processes: two of them on the CPU, by gloo."""

import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from helpers.studies import SMALL, config, planned

from testbed.errors import InputError
from testbed.registry import Registry, default_registry
from testbed.study import engines
from testbed.study.executors.base import Job
from testbed.study.executors.local import ProcessExecutor
from testbed.trial import process_group, worker
from testbed.trial.folders import TrialFolder

SETS = (
    'dataset={ name = "mixture", dim = 2, n = 256, test = 64 }',
    "training={ steps = 150, batch = 8, points = 3 }",
    "evaluation={ levels = 2, draws = 8, samples = 8, steps = 2, metrics = [] }",
)


def curve(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in TrialFolder.at(folder).rows()]


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def after(windows: int) -> Callable[[], bool]:
    """Asks to stop after so many windows."""
    left = iter([False] * (windows - 1))
    return lambda: next(left, True)


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_have_the_bits_of_two_parts_in_one_and_resume(tmp_path: Path) -> None:
    parts = config(SMALL, tmp_path, *SETS, "training.accumulation=2")
    assert worker.run(parts, tmp_path / "parts") == "finished"
    whole = config(SMALL, tmp_path, *SETS)
    together: dict[str, Any] = {"devices": ("cpu", "cpu")}
    at = tmp_path / "together"
    assert worker.run(whole, at, stop=after(2), **together) == "interrupted"
    assert [step for step, _ in curve(at)] == [50, 100]
    assert worker.run(whole, at, **together) == "finished"
    assert curve(at) == curve(tmp_path / "parts")
    assert weights(at) == weights(tmp_path / "parts")


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.batch = 8 cannot be cut into 3 equal parts"):
        process_group.require(config(SMALL, tmp_path, *SETS), 3)
    accumulating = config(SMALL, tmp_path, *SETS, "training.accumulation=4")
    process_group.require(accumulating, 2)
    with pytest.raises(InputError, match="into 16 equal parts"):
        process_group.require(accumulating, 4)


def test_the_engine_takes_a_trial_at_a_time_over_all_devices(tmp_path: Path) -> None:
    made = planned(SMALL, tmp_path, *SETS, seeds=2)
    registry = default_registry()
    with pytest.raises(InputError, match="--device cpu is one device alone"):
        engines.choose(made, registry, "distributed")
    made.device = "cuda:0,1"
    chosen = engines.choose(made, registry, "distributed")
    assert (chosen.slots, [len(group.trials) for group in chosen.groups]) == (1, [1, 1])
    chosen.write(made.folder)
    again = engines.choose(made, registry)
    assert (again.name, len(again.groups)) == ("distributed", 2)


def test_a_driver_with_another_number_of_devices_does_not_help(tmp_path: Path) -> None:
    """The sum over as many parts rounds otherwise."""
    made = planned(SMALL, tmp_path, *SETS, seeds=2)
    made.device = "cuda:0,1"
    engines.choose(made, default_registry(), "distributed").write(made.folder)
    assert len(engines.shared(made, None).groups) == 2
    made.device = "cuda:0,1,2,3"
    with pytest.raises(InputError, match="over 2 devices, and this one has 4"):
        engines.shared(made, None)


def test_a_trial_is_resumed_over_as_many_devices_as_it_began_with(tmp_path: Path) -> None:
    made = planned(SMALL, tmp_path, *SETS, seeds=2)
    made.device = "cuda:0,1"
    engines.choose(made, default_registry(), "distributed").write(made.folder)
    made.device = "cuda:0,1,2,3"
    assert engines.choose(made, default_registry(), "distributed").devices == 4  # none has begun
    made.files.trial(made.trials[0].id).put_checkpoint({}, {"step": 50})
    for word, said in (("cuda:0,1,2,3", "here are 4"), ("cpu", "here is 1")):
        made.device = word
        with pytest.raises(InputError, match=f"{word}: a trial .* over 2 devices, and {said},"):
            engines.choose(made, default_registry())
    made.device = "cuda:2,3"
    assert engines.choose(made, default_registry()).devices == 2


def test_too_little_memory_on_any_device_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the other process says so: it is the second device that has none."""
    said: list[Any] = []

    class Pipe:
        def send(self, what: Any) -> None:
            said.append(what)

    monkeypatch.setattr(process_group, "end_with_parent", lambda: None)
    monkeypatch.setattr(process_group.memory, "free", lambda device: 0)
    monkeypatch.setattr(process_group.ProcessGroup, "join", None)  # it is not come to
    record, pipe = config(SMALL, tmp_path, *SETS).record(), cast(Any, Pipe())
    more: Any = {"meeting": tmp_path / "meeting", "threads": 1, "said": pipe}
    process_group.follow(record, (), (), "cpu", 1, 2, **more)
    (problem,) = said
    assert isinstance(problem, torch.OutOfMemoryError)
    ready: Any = SimpleNamespace(recv=lambda: problem)
    with pytest.raises(torch.OutOfMemoryError, match=r"cpu has 0\.00 GiB free"):
        process_group.Follower(cast(Any, None), ready).await_ready()


DYING = """
import multiprocessing
import os
import signal
from pathlib import Path
import testbed

ONCE = Path(__file__).with_name("once")
calls = 0

def dying(prediction, target):
    global calls
    calls += 1
    if calls == 60 and multiprocessing.current_process().daemon and not ONCE.exists():
        ONCE.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return (prediction - target) ** 2

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("dying", dying, elicits_mean=True)
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_process_that_is_lost_ends_its_worker_which_is_worth_another_try(
    tmp_path: Path,
) -> None:
    """Without an answer the other one would wait for it, on GPUs for minutes, or fail the trial."""
    (tmp_path / "dying.py").write_text(DYING)
    plugins = [str(tmp_path / "dying.py")]
    one = config(SMALL, tmp_path, *SETS, "loss=dying", registry=Registry(plugins))
    words = [one], [tmp_path / "trial"], tmp_path / "group", plugins, ()
    job = Job(*words, "cpu", compiled=False, devices=("cpu", "cpu"))
    executor = ProcessExecutor(1)
    try:
        problem = executor.submit(job).exception(60)
        assert isinstance(problem, BrokenExecutor)
        assert not TrialFolder.at(tmp_path / "trial").has("error.txt")
        assert executor.submit(job).result(60) == ["finished"]
    finally:
        executor.close()


@pytest.mark.slow
def test_two_threads_that_watch_a_killed_process_both_see_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a lock one of them, joining while the other does, was told of no exit code."""
    ends: list[int] = []
    monkeypatch.setattr(process_group.os, "_exit", ends.append)
    for _ in range(30):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
        followers = [process_group.Follower(process, cast(Any, None))]
        words = followers, threading.Event()
        watching = [threading.Thread(target=process_group._end_with, args=words) for _ in range(2)]
        for one in watching:
            one.start()
        process.kill()
        for one in watching:
            one.join()
    assert ends == [1] * 60
