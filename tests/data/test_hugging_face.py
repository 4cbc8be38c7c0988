"""Folders of the library `datasets`: the values that it has itself, recorded, and damaged folders.

tests/fixtures/make_hf_images.py has written the fixture with datasets 5.2.0.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import ROOT

from testbed.data.files import array
from testbed.data.image_sets import images
from testbed.data.readers import open_path
from testbed.data.readers.arrow import Chunks
from testbed.errors import InputError

FIXTURE = ROOT / "tests/fixtures/hf_images"
VALUES = np.load(FIXTURE / "pixels.npz")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(FIXTURE, tmp_path / "set"))


@pytest.mark.parametrize("kind", ["disk", "hub"])
def test_images_and_labels_are_those_of_the_library(saved: Path, kind: str) -> None:
    data = images(str(saved / kind))
    assert (len(data.train), len(data.test), data.labels) == (7, 4, 3)
    for split, labels, name in (
        (data.train, data.train_labels, "train"),
        (data.test, data.test_labels, "test"),
    ):
        exact = torch.from_numpy(VALUES[f"image_{name}"].astype(np.float32)).movedim(-1, 1)
        assert torch.equal(split, (exact - 127.5) * np.float32(2 / 255))
        assert labels is not None
        assert labels.tolist() == VALUES[f"label_{name}"].tolist()
    assert "column 'label': the classes are 0 = cat, 1 = dog, 2 = eel" in "\n".join(data.notes)


@pytest.mark.parametrize("kind", ["disk", "hub"])
@pytest.mark.parametrize("name", ["grid", "cube", "row"])
def test_arrays_and_lists_are_those_of_the_library(saved: Path, kind: str, name: str) -> None:
    contents = open_path(saved / kind)
    for split in ("train", "test"):
        found = contents[f"{split}/{name}"]
        exact = VALUES[f"{name}_{split}"]
        assert found.shape == exact.shape
        assert np.array_equal(found[:], exact)
        assert np.array_equal(found[1:3], exact[1:3])
    data = array(str(saved / kind), data=name, labels="none")
    assert np.array_equal(data.train.numpy(), VALUES[f"{name}_train"].astype(np.float32))


def test_one_split_alone_is_a_table(saved: Path) -> None:
    data = array(str(saved / "disk/train"), test=2 / 7)
    assert (len(data.train), len(data.test), data.labels) == (5, 2, 3)
    table = open_path(saved / "disk/train")
    assert table.table
    assert list(table) == ["image", "label", "grid", "cube", "row"]


def test_columns_of_numbers_stay_in_their_file(saved: Path) -> None:
    """No number of an Arrow file is copied: its bytes are those of the map."""
    (rows,) = [open_path(saved / "disk/test")["row"]]
    assert isinstance(rows, np.ndarray)
    base = rows
    while getattr(base, "base", None) is not None and isinstance(base.base, np.ndarray):
        base = base.base
    assert not base.flags.owndata
    assert not rows.flags.writeable


def test_arrays_in_a_row_are_one_array() -> None:
    x = np.random.default_rng(0).normal(size=(11, 2, 3))
    for ends in ([11], [4, 11], [1, 2, 7, 11]):
        rows = Chunks([x[a:b] for a, b in zip([0, *ends], ends, strict=False)])
        assert (rows.shape, rows.dtype) == (x.shape, x.dtype)
        for index in (slice(None), slice(2, 9), slice(None, None, 3), np.array([10, 0, 5, 5])):
            assert np.array_equal(rows[index], x[index])


def cut(file: str, end: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:end])

    return damage


def removed(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def indexed(folder: Path) -> None:
    file = folder / "disk/train/state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "_indices_data_files": [{"filename": "i.arrow"}]}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (removed("disk/train/state.json"), r"disk/train/state\.json is missing: expected a whole"),
        (removed("disk/train/data-00001-of-00002.arrow"), r"data-00001-of-00002\.arrow is missing"),
        (cut("disk/train/data-00001-of-00002.arrow", -8), r"00001-of-00002\.arrow is cut off: the"),
        (cut("disk/train/data-00001-of-00002.arrow", -300), r"00001-of-00002\.arrow is cut off"),
        (
            cut("disk/test/data-00000-of-00001.arrow", 100),
            r"test/data-00000-of-00001\.arrow is cut",
        ),
        (cut("disk/test/data-00000-of-00001.arrow", 0), r"test/data-00000-of-00001\.arrow is cut"),
        (cut("disk/train/state.json", 30), r"train/state\.json cannot be read"),
        (cut("disk/dataset_dict.json", 0), r"disk/dataset_dict\.json cannot be read"),
        (indexed, r"dataset = dataset\.flatten_indices\(\)"),
    ],
)
def test_damaged_folders_are_named_with_the_file(
    saved: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(saved)
    with pytest.raises(InputError, match=f"dataset 'images': .*{says}"):
        images(str(saved / "disk"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (removed("hub/data/train-00001-of-00002.parquet"), "does not hold all 2 shards of train"),
        (
            cut("hub/data/test-00000-of-00001.parquet", -3),
            r"test-00000-of-00001\.parquet is no who",
        ),
    ],
)
def test_damaged_shards_are_named(saved: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(saved)
    with pytest.raises(InputError, match=says):
        images(str(saved / "hub"))


def test_a_cell_without_an_image_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    cells = [{"bytes": None, "path": "gone.png"}, {"bytes": b"", "path": None}]
    parquet.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"'image', row 0 holds no image: the file gone\.png is"):
        images(str(tmp_path / "a.parquet"))
    parquet.write_table(pa.table({"image": cells[1:] * 2}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"column 'image', row 0 cannot be decoded as an image"):
        images(str(tmp_path / "b.parquet"))
