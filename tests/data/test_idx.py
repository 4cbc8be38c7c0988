"""IDX files: against a reading by struct and numpy.frombuffer; damaged ones by file and place."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.data import decoded, image_sets
from testbed.data.files import array
from testbed.data.readers import open_path
from testbed.errors import InputError

R = np.random.default_rng(0)
FILES = {
    "train-images-idx3-ubyte": R.integers(0, 256, (60, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": np.arange(60, dtype=np.uint8) % 10,
    "t10k-images-idx3-ubyte": R.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
}


def encoded(x: np.ndarray, kind: int = 0x08) -> bytes:
    """The bytes of an IDX file, by its definition."""
    head = bytes([0, 0, kind, x.ndim]) + struct.pack(f">{x.ndim}I", *x.shape)
    return head + x.astype(x.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "set"
    made.mkdir()
    for name, x in FILES.items():
        (made / f"{name}.gz").write_bytes(gzip.compress(encoded(x), 1))
    return made


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_type_of_number(tmp_path: Path, kind: int, dtype: str, zipped: bool) -> None:
    x = (100 * R.normal(size=(4, 3, 2))).astype(dtype)
    file = tmp_path / ("a.idx.gz" if zipped else "a.idx")
    file.write_bytes(gzip.compress(encoded(x, kind)) if zipped else encoded(x, kind))
    found = open_path(file)[""]
    assert found.shape == (4, 3, 2)
    assert np.array_equal(found[1:3], x[1:3])
    assert isinstance(found, np.memmap) is not zipped


@pytest.mark.slow
def test_pixels_are_those_of_another_reading() -> None:
    """Fashion-MNIST as Debian has it, its first and last pictures read by frombuffer."""
    if not image_sets.FASHION.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = image_sets.fashion_mnist()
    assert (len(data.train), len(data.test), data.shape, data.labels) == (
        *(60_000, 10_000, (1, 28, 28), 10),
    )
    for split, labels, prefix in (
        (data.train, data.train_labels, "train"),
        (data.test, data.test_labels, "t10k"),
    ):
        raw = gzip.decompress((image_sets.FASHION / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        x = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 784)
        y = (image_sets.FASHION / f"{prefix}-labels-idx1-ubyte.gz").read_bytes()
        assert labels is not None
        assert labels.tolist() == list(gzip.decompress(y)[8:])
        exact = torch.from_numpy(x.astype(np.float32)) - 127.5
        assert torch.equal(split.flatten(1), exact * np.float32(2 / 255))
    exact64 = np.frombuffer(
        gzip.decompress((image_sets.FASHION / "train-images-idx3-ubyte.gz").read_bytes()),
        np.uint8,
        offset=16,
    )
    # Whole numbers: their sums are exact. The samples are rounded to float32 twice.
    counts = np.bincount(exact64, minlength=256)
    mean = float((counts * (np.arange(256) / 127.5 - 1) ** 2).sum() / counts.sum())
    assert abs(data.sigma_data**2 / mean - 1) < 4 * 2.0**-23
    assert data.quantum == 2 / 255


def test_a_folder_of_the_four_files(folder: Path) -> None:
    data = image_sets.fashion_mnist(str(folder))
    assert (len(data.train), len(data.test), data.shape) == (60, 20, (1, 28, 28))
    assert "the classes are 0 = T-shirt/top, 1 = trouser" in "\n".join(data.notes)
    same = array(str(folder))
    assert same.digest == data.digest
    dotted = folder / "train-images.idx3-ubyte"
    dotted.write_bytes(encoded(FILES["train-images-idx3-ubyte"]))
    (folder / "train-images-idx3-ubyte.gz").unlink()
    assert array(str(folder)).digest == data.digest
    one = array(
        str(folder / "t10k-images-idx3-ubyte.gz"),
        labels_path=str(folder / "t10k-labels-idx1-ubyte.gz"),
    )
    assert (one.shape, one.labels) == ((1, 28, 28), 10)


def test_the_first_images_of_each_split(folder: Path) -> None:
    data = image_sets.fashion_mnist(str(folder), n=40, test=5)
    assert (len(data.train), len(data.test)) == (40, 5)
    assert torch.equal(data.train, image_sets.fashion_mnist(str(folder)).train[:40])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: 0 samples are none"):
        image_sets.fashion_mnist(str(folder), n=0)


def test_noise_of_the_width_of_the_spacing(folder: Path) -> None:
    plain = image_sets.fashion_mnist(str(folder))
    noisy = image_sets.fashion_mnist(str(folder), dequantised=True)
    assert noisy.dequantised
    off = (noisy.train - plain.train).abs().max()
    assert 0 < float(off) <= 1 / 255 + 2.0**-23


Damage = Callable[[Path], object]


def cut(name: str, end: int) -> Damage:
    """Keeps the first bytes of what a file holds."""

    def damage(folder: Path) -> None:
        file = folder / f"{name}.gz"
        file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:end]))

    return damage


def replaced(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / f"{name}.gz").write_bytes(content)


TRAIN, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut(TRAIN, 2), rf"{TRAIN}\.gz is cut off: of its header there are 2 bytes"),
        (cut(TRAIN, 9), rf"{TRAIN}\.gz is cut off: its header has 3 sizes, of which 1 are"),
        (cut(TRAIN, 1016), r"is cut off: .* 60 x 28 x 28 numbers .* 47040 bytes, and 1000 follow"),
        (
            replaced(TRAIN, gzip.compress(encoded(FILES[TRAIN]) + b"more")),
            r"is too long: .* 47040 bytes, and at least 47044 follow",
        ),
        (
            replaced(TRAIN, gzip.compress(b"\x00\x00\x07\x03" + bytes(20))),
            r"is no IDX file: it begins with 00 00 07 03, expected 00 00, the type",
        ),
        (
            replaced(TRAIN, gzip.compress(encoded(FILES[TRAIN]))[:-100]),
            rf"{TRAIN}\.gz is damaged, or no gzipped file: ",
        ),
        (replaced(TRAIN, b"no gzip"), r"is damaged, or no gzipped file: Not a gzipped file"),
        (
            replaced(LABELS, gzip.compress(encoded(FILES[LABELS][:59]))),
            rf"{TRAIN}\.gz has 60 samples and labels of shape \(59,\), .*{LABELS}\.gz",
        ),
        (
            lambda folder: (folder / f"{LABELS}.gz").unlink(),
            rf"set: expected the four files of MNIST's form.* {LABELS}\.gz is missing",
        ),
        (
            replaced(TRAIN, gzip.compress(encoded(FILES[TRAIN][:, :20]))),
            r"expected samples of one shape in both splits",
        ),
    ],
)
def test_damaged_files_are_named_with_the_place(folder: Path, damage: Damage, says: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=f"dataset 'fashion_mnist': .*{says}"):
        image_sets.fashion_mnist(str(folder))


def test_what_is_missing_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sets, "FASHION", Path("/nowhere/fashion"))
    with pytest.raises(InputError, match=r"/nowhere/fashion is not a folder\. Install Debian's"):
        image_sets.fashion_mnist()
    with pytest.raises(InputError, match=r"mine is not a folder.*train-images-idx3-ubyte\.gz"):
        image_sets.fashion_mnist("mine")


def test_a_large_file_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of memory the numbers are those of the copy on disk, and the same."""
    before = array(str(folder))
    monkeypatch.setattr(decoded, "IN_MEMORY", 1000)
    found = open_path(folder / f"{TRAIN}.gz")[""]
    assert isinstance(found, np.memmap)
    assert np.array_equal(found[:], FILES[TRAIN])
    copies = list((folder.parent / "cache/testbed/decoded").glob("*.npy"))
    times = [file.stat().st_mtime_ns for file in copies]
    assert array(str(folder)).digest == before.digest
    assert [file.stat().st_mtime_ns for file in copies] == times
    replaced(TRAIN, gzip.compress(encoded(FILES[TRAIN][::-1])))(folder)
    again = open_path(folder / f"{TRAIN}.gz")[""]
    assert np.array_equal(again[:], FILES[TRAIN][::-1])
