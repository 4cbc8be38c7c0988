"""One worker for each GPU and the memory of each, with the hardware's answers given: no GPU."""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here
from helpers.studies import SMALL, planned

from testbed.errors import InputError
from testbed.study import engines
from testbed.study.executors.base import Job
from testbed.study.executors.local import ProcessExecutor
from testbed.training import memory
from testbed.trial import devices
from testbed.trial.study_folder import StudyFolder

DATA = 'dataset = { name = "mixture", dim = 2, n = 256, test = 64 }'
FOUR = SMALL.replace('dataset = { name = "mixture", dim = 2 }', f"{DATA}\nseeds = 4")
SHORT = (
    "--set",
    "training.steps=20",
    "--set",
    "evaluation.samples=8",
    "--set",
    "evaluation.draws=8",
)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
def test_cuda_is_every_gpu_and_a_list_is_some(tmp_path: Path) -> None:
    for word, found in {
        "cuda": ("cuda:0", "cuda:1", "cuda:2", "cuda:3"),
        "cuda:0,2": ("cuda:0", "cuda:2"),
        "cuda:3": ("cuda:3",),
        "cpu": ("cpu",),
    }.items():
        assert devices.each(devices.device_of(word, several=True)) == found
    made = planned(SMALL, tmp_path)
    made.device = "cuda:2,0"
    assert made.main_device == "cuda:2"
    assert torch.device(made.main_device).index == 2
    assert engines._workers(made.devices, None) == 2


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cuda:0,5", "there is no cuda:5; this machine has 4, from 0 on"),
        ("cuda:1,1", "names one device twice"),
        ("cuda:0,", "expected auto, cpu, cuda, cuda:N or cuda:N,M"),
        ("mps", "expected auto, cpu, cuda, cuda:N or cuda:N,M"),
    ],
)
def test_a_device_that_is_none_is_refused(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        devices.device_of(word, several=True)


def test_one_command_takes_one_gpu() -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
        devices.device_of("cuda:0,1")


def test_a_slot_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken: list[tuple[int, str]] = []

    class Pool:
        def __init__(self, slot: int) -> None:
            self.slot = slot

        def submit(self, function: Any, job: Job) -> Any:
            taken.append((self.slot, job.device))
            return Future()

    workers = ProcessExecutor(2, ("cuda:0", "cuda:2"))
    monkeypatch.setattr(workers, "_worker", Pool)
    for _ in range(2):
        workers.submit(Job([], [], tmp_path, (), (), "cuda:0", False))
    assert taken == [(0, "cuda:0"), (1, "cuda:2")]


# --- memory ---------------------------------------------------------------------------------------


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The least that trainings take, by how many they are, as the study asks for it."""
    found: dict[int, int] = {}
    genuine = memory.least

    def least(jobs: Any, data: Any) -> int:
        found[len(jobs)] = genuine(jobs, data)
        return found[len(jobs)]

    monkeypatch.setattr(memory, "least", least)
    return found


def run(folder: Path) -> tuple[Any, StudyFolder]:
    (folder / "four.toml").write_text(FOUR)
    words = ("study", "four.toml", "--jobs", 0, "--engine", "batched", "--no-mlflow", *SHORT)
    return run_here(folder, *words), StudyFolder.at(folder / "runs" / "sampled")


@pytest.mark.slow
def test_a_group_without_room_is_split_once(
    tmp_path: Path, trials_only: None, sizes: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter((1000, 10**9, 10**9))
    monkeypatch.setattr(memory, "free", lambda device: next(room))
    done, study = run(tmp_path)
    assert done.code == 0, done.err
    assert "out of memory; they are trained in two groups, of 2 and 2." in done.out
    assert [trial.result()["trained_together"] for trial in study.trials()] == [2] * 4
    assert [len(ids) for ids in json.loads((study.path / "plan.json").read_text())["groups"]] == [
        2,
        2,
    ]
    # Five buffers of the weights for each trial, and the data once.
    assert sizes[4] - sizes[2] == 2 * 5 * 4 * study.trials()[0].result()["parameters"]
    assert sizes[4] - 2 * sizes[2] == -256 * 2 * 4


@pytest.mark.slow
def test_a_half_without_room_is_not_split_again(
    tmp_path: Path, trials_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of one half each trial then runs alone; the second of them has no room even so.
    room = iter((0, 0, 10**9, 0, 10**9))
    monkeypatch.setattr(memory, "free", lambda device: next(room))
    done, study = run(tmp_path)
    assert done.code == 1
    assert done.out.count("out of memory; they are trained in two groups") == 1
    results = [trial.result() for trial in study.trials()]
    assert sorted(one.get("trained_together", 1) for one in results) == [1, 1, 2, 2]
    (failed,) = [one for one in results if one["status"] == "failed"]
    assert "cpu has 0.00 GiB free; the training takes at least 0.00 GiB" in failed["error"]
    assert next(room, None) is None
