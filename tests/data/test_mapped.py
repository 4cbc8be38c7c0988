"""Samples on disk: what is read of them and when, and that no number differs from memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import CPU, REGISTRY, same, trainer
from numpy.typing import NDArray
from torch import Tensor

import testbed
from testbed import tensors
from testbed.components import dataset
from testbed.components.dataset import Data
from testbed.data import decoded, pixels
from testbed.data.files import array
from testbed.data.mapped import Mapped
from testbed.diffusion.denoiser import Denoiser
from testbed.errors import InputError
from testbed.oracles import Gaussian
from testbed.training.batch import Batch
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Trainer, TrainingJob

R = np.random.default_rng(0)
PHOTOS = R.integers(0, 256, (60, 8, 6, 3), dtype=np.uint8)
CLASSES = np.arange(60) % 3
MOST = 10
"""Rows of a block in these tests."""


class Counted:
    """An array that counts the rows that are read of it."""

    def __init__(self, x: NDArray[Any]) -> None:
        self.x, self.shape, self.dtype, self.reads = x, x.shape, x.dtype, []

    def __getitem__(self, rows: Any) -> Any:
        found = self.x[rows]
        self.reads.append(len(found))
        return found


def both(
    folder: Path, monkeypatch: pytest.MonkeyPatch, x: Any = PHOTOS, **options: Any
) -> tuple[Data, Data, Counted]:
    """The same data in memory and on disk, with what counts the reads."""
    np.savez(folder / "photos.npz", x=x, y=CLASSES[: len(x)])
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", CLASSES[: len(x)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(tensors, "BLOCK", MOST * x[0].size)
    monkeypatch.setattr(pixels, "BLOCK", MOST * x[0].size)
    monkeypatch.setattr(dataset, "BLOCK", MOST * x[0].size)
    labels = {"labels_path": str(folder / "y.npy")}
    memory = array(str(folder / "x.npy"), **labels, **options)
    monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    disk = array(str(folder / "x.npy"), **labels, **options)
    assert isinstance(disk.train, Mapped)
    assert isinstance(disk.test, Mapped)
    assert isinstance(disk.train.source, np.memmap)
    counted = Counted(disk.train.source)
    disk.train.source = counted
    return memory, disk, counted


def test_the_data_are_the_same_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, disk, _ = both(tmp_path, monkeypatch)
    assert not isinstance(memory.train, Mapped)
    assert disk.digest == memory.digest
    assert disk.sigma_data == memory.sigma_data
    assert disk.sigma_data_error == memory.sigma_data_error
    assert (disk.shape, disk.labels, disk.quantum) == (memory.shape, 3, 2 / 255)
    assert same([disk.train_labels, disk.test_labels], [memory.train_labels, memory.test_labels])
    assert "samples stay on disk" in "\n".join(disk.notes)
    one, two = Gaussian.fit(disk.train), Gaussian.fit(memory.train)
    assert same([one.m, one.L, one.Q], [two.m, two.L, two.Q])


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (R.normal(size=(40, 3, 8, 8)).astype(np.float32), {}),
        (R.normal(size=(40, 300)), {"scale": 0.5, "shift": 1.0}),
        (R.integers(0, 4, (40, 16, 16)), {"range": [0, 3]}),
        (R.normal(size=(400, 1)) * 1e200, {"scale": 1e-200}),
    ],
)
def test_every_kind_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, x: Any, options: dict[str, Any]
) -> None:
    memory, disk, _ = both(tmp_path, monkeypatch, x, labels="none", **options)
    assert (disk.shape, disk.digest) == (memory.shape, memory.digest)


USES: list[Callable[[Tensor], Any]] = [
    lambda x: x[3],
    lambda x: x[-1],
    lambda x: x[2:9:3],
    lambda x: x[:],
    lambda x: x[torch.tensor([5, 0, 5])],
    lambda x: x[torch.tensor([[5, 0], [1, -1]])],
    lambda x: x[torch.arange(len(x)) % 2 == 0],
    lambda x: x[:, 1],
    lambda x: x[torch.tensor([1, 2]), 1],
    lambda x: x[..., 0],
    lambda x: x.index_select(0, torch.tensor([2, 2])),
    lambda x: x.index_select(1, torch.tensor([2, 2])),
    lambda x: x.select(1, 0),
    lambda x: x.double().square().mean(),
    lambda x: x.flatten(1) @ x[0].flatten(),
    lambda x: torch.cat([x, x[:2]]),
    lambda x: torch.stack(list(x.split(7))[:2]),
    lambda x: [*x][3],
    lambda x: x.tolist(),
    lambda x: x.numpy().sum(),
    lambda x: (len(x), x.shape, x.ndim, x.dtype, x.numel(), x[0].numel(), x.device),
    lambda x: torch.testing.assert_close(x + 1, 1 + x, rtol=0, atol=0),
    lambda x: x.max(),
    lambda x: x.clone().contiguous(),
]


@pytest.mark.parametrize("use", USES)
def test_it_is_a_tensor_to_whoever_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Tensor], Any]
) -> None:
    memory, disk, _ = both(tmp_path, monkeypatch)
    assert same(use(disk.train), use(memory.train))


def test_no_more_is_read_than_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, disk, counted = both(tmp_path, monkeypatch)
    for use, most in (
        (lambda x: x[3], 1),
        (lambda x: x[2:9], 7),
        (lambda x: x[torch.tensor([[5, 0], [1, 2]])], 4),
        (lambda x: x.index_select(0, torch.tensor([2, 3])), 2),
        (lambda x: x.to("cpu"), 0),
        (lambda x: x.to("meta"), 0),
        (lambda x: len(x) + x.ndim + x.numel(), 0),
    ):
        counted.reads.clear()
        use(disk.train)
        assert sum(counted.reads) == most
    counted.reads.clear()
    made = Data(disk.train, disk.test, disk.train_labels, disk.test_labels, quantum=2 / 255)
    made.digest, made.sigma_data_error  # noqa: B018
    Gaussian.fit(disk.train)
    assert 0 < max(counted.reads) <= MOST


def test_another_device_gets_the_rows_that_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, disk, counted = both(tmp_path, monkeypatch)
    counted.reads.clear()
    there = disk.train.to("meta")
    assert isinstance(there, Mapped)
    assert there.index_select(0, torch.tensor([1, 2])).device.type == "meta"
    assert there[torch.tensor([1, 2])].device.type == "meta"
    assert counted.reads == [2, 2]


@pytest.mark.slow
def test_a_training_is_the_same_bit_for_bit_and_reads_a_batch_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty steps; of what the scale of the loss is measured by, 8,192 draws are read first."""
    memory, disk, counted = both(tmp_path, monkeypatch)
    one, two = (
        trainer("v", set_=set_, sigma_data=memory.sigma_data, steps=20, batch=16)
        for set_ in (memory, disk)
    )
    counted.reads.clear()
    states = [(list(run), run.state())[1] for run in (one, two)]
    assert same(*states)
    assert counted.reads == [16] * 20


@pytest.mark.slow
def test_many_trials_read_one_batch_for_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, disk, counted = both(tmp_path, monkeypatch)

    def batch(data: Data) -> Batch:
        jobs = []
        for seed, name in ((0, "v"), (1, "v"), (1, "eps")):
            p = REGISTRY.parameterization(name)
            network = REGISTRY.network("mlp", width=8, depth=1, features=4)(data.shape, 0, seed)
            denoiser = Denoiser(network, p, data.sigma_data, c_in="shared", c_noise="shared")
            weighting, density = REGISTRY.weighting("edm"), REGISTRY.density("lognormal")
            objective = Objective(p, weighting, REGISTRY.loss("l2"), density, data.sigma_data)
            jobs.append(TrainingJob(denoiser, objective, Training(steps=20, batch=16), seed))
        return Batch(jobs, data, CPU)

    one, two = batch(memory), batch(disk)
    counted.reads.clear()
    states = [(list(run.windows()), run.state())[1] for run in (one, two)]
    assert same(*states)
    assert counted.reads == [32] * 20


@pytest.mark.slow
def test_all_rows_at_every_step_are_seen_by_these_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a trainer that takes the data into memory."""
    _, disk, counted = both(tmp_path, monkeypatch)

    class Greedy(Trainer):
        def _block(self, *arguments: Any) -> None:
            self.samples = self.samples + 0
            super()._block(*arguments)

    run = trainer("v", set_=disk, sigma_data=disk.sigma_data, steps=20, batch=16, made=Greedy)
    counted.reads.clear()
    list(run)
    assert counted.reads == [len(disk.train)]


@pytest.mark.parametrize("wrong", ["order", "scale", "layout"])
def test_wrong_rows_are_seen_by_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    memory, disk, _ = both(tmp_path, monkeypatch)
    x = disk.train
    assert isinstance(x, Mapped)
    assert isinstance(x.convert, pixels.Conversion)
    by, arrange = x.convert.by, x.convert.arrange
    if wrong == "order":
        x.order = np.sort(x.order)
    elif wrong == "scale":
        by = pixels.Affine(by.scale * (1 + 2**-23), by.shift)
    else:
        inner = x.convert.arrange
        arrange = lambda y: inner(y)[:, :, ::-1]  # noqa: E731
    made = Mapped(x.source, pixels.Conversion(by, arrange), x.shape[1:], x.order)
    assert testbed.Data(made, disk.test).digest != testbed.Data(memory.train, memory.test).digest


def test_a_split_of_the_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test first in the file: the training split is the training split."""
    np.savez(tmp_path / "a.npz", x_test=PHOTOS[40:], x_train=PHOTOS[:40])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = array(str(tmp_path / "a.npz"))
    monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    disk = array(str(tmp_path / "a.npz"))
    assert (len(memory.train), len(disk.train)) == (40, 40)
    assert disk.digest == memory.digest
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


def test_noise_is_not_added_to_what_stays_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", PHOTOS)
    monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    with pytest.raises(
        InputError, match=r'a\.npy is too large for memory.*dequantised = "already"'
    ):
        array(str(tmp_path / "a.npy"), dequantised=True)
