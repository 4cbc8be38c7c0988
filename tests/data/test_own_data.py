"""A user's own files: what is recognised and said, and what is refused with what to write."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from laws.own_data import law_classes
from PIL import Image
from safetensors.numpy import save_file

from testbed.components.dataset import Data
from testbed.data.classes import classes
from testbed.data.files import array
from testbed.data.image_sets import images
from testbed.errors import InputError
from testbed.registry import Registry

CHANCE = np.random.default_rng(0)
PIXELS = CHANCE.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
UNIT = np.moveaxis(PIXELS.astype(np.float64) / 127.5 - 1, -1, 1)
GRID = CHANCE.integers(0, 16, (400, 16)).astype(np.float32)
NOISE = CHANCE.random(GRID.shape)
CLASSES = np.arange(60) % 3
REAL = CHANCE.normal(size=(60, 4))


def of(folder: Path, arrays: Any, **options: Any) -> Data:
    """The data of an array in a .npy file, or of several in a .npz file."""
    if isinstance(arrays, dict):
        np.savez(folder / "mine.npz", **arrays)
        return array(str(folder / "mine.npz"), **options)
    np.save(folder / "mine.npy", arrays)
    return array(str(folder / "mine.npy"), **options)


def whole(data: Data) -> list[Any]:
    return sorted(torch.cat([data.train, data.test]).flatten(1).tolist())


def said(data: Data) -> str:
    return "\n".join(data.notes)


# --- range and layout ---------------------------------------------------------------------------


def test_photos_are_taken_to_the_unit_range_channels_first(tmp_path: Path) -> None:
    data = of(tmp_path, {"x": PIXELS, "y": CLASSES})
    x = torch.cat([data.train, data.test]).double()
    exact = torch.from_numpy(UNIT)[
        (x[:, None] - torch.from_numpy(UNIT)).flatten(2).norm(dim=2).argmin(1)
    ]
    # x - 127.5 is exact; the scale and the product are each rounded to float32 once.
    assert bool(((x - exact).abs() <= 2.0**-23 * (1 + 2.0**-20) * exact.abs()).all())
    assert len({row.numpy().tobytes() for row in x}) == 60
    assert (data.shape, data.labels, data.quantum) == ((3, 8, 8), 3, 2 / 255)
    assert "taken from [0, 255] to [-1, 1]" in said(data)
    assert "samples (8, 8, 3) are channels last, and are stored as (3, 8, 8)" in said(data)


def test_what_is_recognised_may_be_stated(tmp_path: Path) -> None:
    recognised = of(tmp_path, PIXELS)
    stated = of(tmp_path, PIXELS, range=[0, 255], layout="channels_last")
    assert stated.digest == recognised.digest
    assert stated.quantum == recognised.quantum
    kept = of(tmp_path, PIXELS, range="as_stored", layout="channels_first")
    assert (kept.shape, float(kept.train.max()), kept.quantum) == ((8, 8, 3), 255.0, None)
    by_hand = of(tmp_path, PIXELS, scale=1 / 127.5, shift=-127.5)
    assert (by_hand.digest, by_hand.quantum) == (recognised.digest, None)


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [
        ((8, 8, 3), (3, 8, 8)),
        ((3, 8, 8), (3, 8, 8)),
        ((8, 6, 1), (1, 8, 6)),
        ((1, 4, 4), (1, 4, 4)),
        ((4, 4, 1), (1, 4, 4)),
        ((4, 32, 32), (4, 32, 32)),
        ((16, 8, 8), (16, 8, 8)),
        ((16, 8, 6), (16, 8, 6)),
        ((1, 1, 1), (1, 1, 1)),
        ((8, 9), (8, 9)),
        ((5,), (5,)),
        ((3, 2, 2, 2), (3, 2, 2, 2)),
    ],
)
def test_layouts_that_are_recognised(
    tmp_path: Path, shape: tuple[int, ...], becomes: tuple[int, ...]
) -> None:
    assert of(tmp_path, CHANCE.normal(size=(10, *shape))).shape == becomes


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 32, 3), (8, 8, 16), (4, 6, 3)])
def test_layouts_in_doubt_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = CHANCE.normal(size=(10, *shape))
    with pytest.raises(InputError, match=r"mine\.npy: .* write layout = \"channels_first\" or"):
        of(tmp_path, x)
    assert of(tmp_path, x, layout="channels_first").shape == shape
    assert of(tmp_path, x, layout="channels_last").shape == (shape[2], *shape[:2])


def test_grey_pixels_get_an_axis_of_channels(tmp_path: Path) -> None:
    grey = PIXELS[:, :, :, 0]
    assert of(tmp_path, grey).shape == (1, 8, 8)
    assert of(tmp_path, grey.astype(float), range=[0, 255]).shape == (1, 8, 8)
    assert of(tmp_path, grey / 255, layout="grey").shape == (1, 8, 8)
    with pytest.raises(InputError, match=r"layout = 'grey', but .* have shape \(4,\)"):
        of(tmp_path, REAL, layout="grey")
    with pytest.raises(InputError, match=r"Unknown layout 'gray'\. Did you mean 'grey'"):
        Registry().dataset("array", path="mine.npy", layout="gray")


@pytest.mark.parametrize(
    "x",
    [
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        PIXELS / 1.1,  # resized photos
        PIXELS.reshape(60, -1).astype(int),  # a table of pixels
        PIXELS // 20,
        PIXELS.astype(np.uint16) * 16,
    ],
)
def test_a_range_in_doubt_is_refused(tmp_path: Path, x: Any) -> None:
    with pytest.raises(InputError, match=r"mine\.npy: values from .* Write range = \["):
        of(tmp_path, x)
    top = float(x.max())
    found = of(tmp_path, x, range=[0, top])
    assert float(found.train.max()) <= 1 + 2.0**-23
    assert float(of(tmp_path, x, range="as_stored").train.max()) > 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"range": [0, 100]}, r"mine\.npy\[0, 0, 0, \d\] is \d+, outside of range = \[0, 100\]"),
        ({"range": [1, 1]}, r"range = \[1, 1\]: expected \[low, high\]"),
        ({"range": "0..255"}, r"range = '0..255': expected \[low, high\]"),
        ({"range": [0, True]}, r"expected \[low, high\]"),
        ({"range": [0, 255], "scale": 2.0}, "say the same thing twice"),
    ],
)
def test_ranges_that_cannot_be_are_refused(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        of(tmp_path, PIXELS, **options)


def test_images_from_0_to_1_are_left_so_and_said_to_be(tmp_path: Path) -> None:
    unit = (PIXELS == 255) * 1.0
    data = of(tmp_path, unit)
    assert (float(data.train.min()), float(data.train.max())) == (0.0, 1.0)
    assert "values from 0 to 1 are left so" in said(data)


# --- the spacing --------------------------------------------------------------------------------


@pytest.mark.parametrize("dequantised", [False, True])
@pytest.mark.parametrize(
    ("x", "quantum", "says"),
    [
        (GRID, 2.0, "quantum = 2, but the values are 1 apart"),
        (GRID, 0.5, "quantum = 0.5, but the values are 1 apart, 2 times"),
        (GRID / 15, 1 / 16, r"quantum = 0.0625, but the values are 0.0666666\d* apart"),
        (GRID + NOISE, 1.0, 'the values lie on no grid.*dequantised = "already"'),
    ],
)
def test_another_spacing_than_that_of_the_numbers_is_refused(
    tmp_path: Path, x: Any, quantum: float, says: str, dequantised: bool
) -> None:
    with pytest.raises(InputError, match=says):
        of(tmp_path, x.astype(np.float32), quantum=quantum, dequantised=dequantised)


def test_the_spacing_of_the_numbers_is_taken(tmp_path: Path) -> None:
    assert of(tmp_path, GRID, quantum=1.0).quantum == 1.0
    found = of(tmp_path, GRID / 15, quantum=1 / 15, dequantised=True)
    assert (found.quantum, found.dequantised) == (1 / 15, True)
    assert float((found.train.double() * 15).frac().abs().max()) > 0.1


def test_numbers_that_are_dequantised_already_get_no_second_noise(tmp_path: Path) -> None:
    x = (GRID + NOISE).astype(np.float32)
    data = of(tmp_path, x, quantum=1.0, dequantised="already")
    assert (data.dequantised, whole(data)) == (True, sorted(x.tolist()))
    for wrong, says in ((GRID, "without noise"), (GRID + NOISE / 2, "not uniform")):
        with pytest.raises(InputError, match=f"{says}.*Write dequantised = true"):
            of(tmp_path, wrong.astype(np.float32), quantum=1.0, dequantised="already")
    with pytest.raises(InputError, match="Unknown dequantised 'yes'"):
        Registry().dataset("array", path="mine.npy", dequantised="yes")


def test_even_pixels_get_no_quantum(tmp_path: Path) -> None:
    data = of(tmp_path, PIXELS // 2 * 2)
    assert data.quantum is None
    assert "no quantum is taken, as the values are 2.0 apart" in said(data)


# --- labels -------------------------------------------------------------------------------------


def test_every_form_of_labels_is_the_same_classes() -> None:
    law_classes(classes)


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.eye(3, dtype=int)[CLASSES], "one-hot rows of 3 are read as classes"),
        (CLASSES + 1, "the labels 1 to 3 are taken as the classes 0 to 2"),
        (np.array([0, 5, 999])[CLASSES], "the labels 0, 5, 999 are taken as the classes 0 to 2"),
        (CLASSES[:, None], r"labels of shape (60, 1) are read as (60,)"),
        (np.array(["b", "a", "c"])[CLASSES], "a = 0, b = 1, c = 2"),
        (CLASSES == 1, "the labels"),
    ],
)
def test_labels_are_read_and_what_was_done_is_said(tmp_path: Path, y: Any, says: str) -> None:
    data = of(tmp_path, {"x": REAL, "y": y})
    assert data.labels == len(np.unique(y, axis=0))
    if y.dtype != bool:
        assert says in said(data)


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (np.ones((60, 3), dtype=int), r"row 0 is 1, 1, 1; expected a single 1"),
        (np.ones((60, 2, 2)), r"labels of shape \(60, 2, 2\)"),
        (CLASSES - 1, "must count from 0, got -1 in row 0"),
        (CLASSES + 0.5, "expected integers: that of row 0 is 0.5"),
        (np.where(CLASSES == 1, np.nan, CLASSES), "that of row 1 is nan"),
        (np.arange(60), "60 different labels of 60 samples are no classes"),
        (np.where(CLASSES == 1, "", "a"), "the label of row 1 is empty"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, y: Any, says: str) -> None:
    with pytest.raises(InputError, match=rf"mine\.npz: y: .*{says}.*labels = \"none\""):
        of(tmp_path, {"x": REAL, "y": y})
    assert of(tmp_path, {"x": REAL, "y": y}, labels="none").labels == 0


def test_labels_in_their_own_file(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", CLASSES)
    own = of(tmp_path, REAL, labels_path=str(tmp_path / "labels.npy"))
    assert own.digest == of(tmp_path, {"x": REAL, "y": CLASSES}).digest
    pd.DataFrame({"label": CLASSES, "other": REAL[:, 0]}).to_csv(tmp_path / "y.csv", index=False)
    table = of(tmp_path, REAL, labels_path=str(tmp_path / "y.csv"))
    assert table.digest == own.digest
    with pytest.raises(
        InputError, match=r"labels_path = 'nothing\.npy': there is no such file or folder in"
    ):
        of(tmp_path, REAL, labels_path="nothing.npy")


# --- names and splits ---------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("images", "labels"), ("Data", "Targets")])
def test_names_are_recognised_and_said(tmp_path: Path, names: tuple[str, str]) -> None:
    data = of(tmp_path, dict(zip(names, (REAL, CLASSES), strict=True)))
    assert data.digest == of(tmp_path, {"x": REAL, "y": CLASSES}).digest
    assert f"the samples are {names[0]}." in said(of(tmp_path, {names[0]: REAL, names[1]: CLASSES}))


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "x_test", "y_train", "y_test"),
        ("train_images", "test_images", "train_labels", "test_labels"),
        ("train", "val", "train_labels", "val_labels"),
    ],
)
def test_a_split_of_the_file_is_taken(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = dict(zip(names, (REAL[:40], REAL[40:], CLASSES[:40], CLASSES[40:]), strict=True))
    data = of(tmp_path, arrays)
    assert torch.equal(data.train, torch.from_numpy(REAL[:40]).float())
    assert torch.equal(data.test, torch.from_numpy(REAL[40:]).float())
    assert torch.equal(data.test_labels, torch.from_numpy(CLASSES[40:]))
    assert f"the samples are {names[0]} and {names[1]}." in said(data)


def test_with_three_splits_the_test_split_is_held_out(tmp_path: Path) -> None:
    data = of(tmp_path, {"x_train": REAL[:40], "x_val": REAL[40:50], "x_test": REAL[50:]})
    assert (len(data.train), len(data.test)) == (40, 10)
    assert "x_val is not used" in said(data)


def test_classes_are_numbered_over_both_splits(tmp_path: Path) -> None:
    arrays = {"x_train": REAL[:40], "x_test": REAL[40:]}
    labels = {"y_train": np.repeat([2, 7], 20), "y_test": np.repeat([2, 9], 10)}
    data = of(tmp_path, arrays | labels)
    assert data.test_labels.tolist() == [0] * 10 + [2] * 10
    assert "classes [2] are held out only" in said(data)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("share", [1.5, 200.0, 1.0, 0.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused_where_the_file_has_a_split_too(
    tmp_path: Path, share: float
) -> None:
    said = (
        f"test = {share:g}: expected the share of the samples that is held out, above 0 and below 1"
    )
    for arrays in ({"x": REAL}, {"x_train": REAL, "x_test": REAL}):
        with pytest.raises(InputError, match=f"^dataset 'array': {re.escape(said)}.$"):
            of(tmp_path, arrays, test=share)
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.fromarray(PIXELS[0]).save(tmp_path / "images" / split / "a.png")
    with pytest.raises(InputError, match=f"^dataset 'images': {re.escape(said)}.$"):
        images(str(tmp_path / "images"), test=share)
    assert len(images(str(tmp_path / "images"), test=0.5).train) == 1


def test_held_out_samples_in_their_own_file(tmp_path: Path) -> None:
    np.save(tmp_path / "test.npy", REAL[40:])
    data = of(tmp_path, REAL[:40], test_path=str(tmp_path / "test.npy"))
    assert len(data.train) == 40
    assert torch.equal(data.test, torch.from_numpy(REAL[40:]).float())


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"a": REAL, "b": REAL}, {}, r"a \(60, 4\), b \(60, 4\): which of them are the samples"),
        ({"x": REAL, "images": REAL}, {}, "which of them are the samples"),
        ({"arr_0": REAL, "arr_1": REAL}, {}, "the second holds no labels"),
        ({"x_train": REAL, "x_test": REAL, "y": CLASSES}, {}, "expected labels for each split"),
        ({"x_train": REAL, "x_test": REAL[:, :3]}, {}, "expected samples of one shape"),
        ({"x": REAL, "y": CLASSES}, {"columns": ("x",)}, "is no table"),
        ({"x": REAL, "y": CLASSES}, {"labels": "label"}, "Unknown array 'label'"),
    ],
)
def test_arrays_of_unclear_meaning_are_refused(
    tmp_path: Path, arrays: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        of(tmp_path, arrays, **options)


# --- tables and safetensors ---------------------------------------------------------------------

TABLE = pd.DataFrame(
    {"a": REAL[:, 0], "b": REAL[:, 1], "species": np.array(["u", "v"])[CLASSES % 2]}
)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_a_sample_a_row(tmp_path: Path, suffix: str) -> None:
    path = str(tmp_path / f"mine.{suffix}")
    TABLE.to_csv(path, index=False) if suffix == "csv" else TABLE.to_parquet(path)
    with pytest.raises(InputError, match=r"column 'species' is 'u' in row 0 .*labels = 'species'"):
        array(path)
    data = array(path, labels="species")
    assert (data.shape, data.labels) == ((2,), 2)
    assert whole(data) == sorted(REAL[:, :2].astype(np.float32).tolist())
    assert array(path, columns=("b",)).shape == (1,)


def test_a_column_says_the_split(tmp_path: Path) -> None:
    split = ["train"] * 40 + ["test"] * 20
    TABLE[["a", "b"]].assign(split=split).to_csv(tmp_path / "m.csv", index=False)
    data = array(str(tmp_path / "m.csv"))
    assert torch.equal(data.test, torch.from_numpy(REAL[40:, :2]).float())
    TABLE[["a"]].assign(split=["train", "tset"] * 30).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(InputError, match="is 'tset' in row 1: Unknown split 'tset'"):
        array(str(tmp_path / "m.csv"))


def test_the_columns_x_and_y_are_coordinates(tmp_path: Path) -> None:
    TABLE.set_axis(["x", "y", "label"], axis=1).to_csv(tmp_path / "m.csv", index=False)
    data = array(str(tmp_path / "m.csv"))
    assert (data.shape, data.labels) == ((2,), 2)


def test_safetensors_are_read_as_a_npz_file_is(tmp_path: Path) -> None:
    save_file({"x": REAL, "y": CLASSES}, tmp_path / "m.safetensors")
    found = array(str(tmp_path / "m.safetensors"))
    assert found.digest == of(tmp_path, {"x": REAL, "y": CLASSES}).digest


# --- numbers that no training can use -----------------------------------------------------------


def test_a_number_that_is_not_finite_is_named_by_its_place(tmp_path: Path) -> None:
    bad = GRID.copy()
    bad[7, 3] = np.nan
    with pytest.raises(InputError, match=r"mine\.npy\[7, 3\] is nan, not finite, one of 1"):
        of(tmp_path, bad)
    TABLE[["a", "b"]].mask(TABLE.index.to_series() == 5).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(InputError, match=r"m\.csv: row 5 \(from 0\), column 'a' is nan.*one of 2"):
        array(str(tmp_path / "m.csv"))


def test_numbers_beyond_float32_need_a_scale(tmp_path: Path) -> None:
    huge = np.full((50, 4), 1e39)
    with pytest.raises(InputError, match=r"\[0, 0\] is 1e\+39, .*: write scale, such as"):
        of(tmp_path, huge)
    assert float(of(tmp_path, huge, scale=1e-39).train.max()) == 1.0


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"x": REAL, "y": np.array(3)}, {}, "holds no label for each sample"),
        ({"x": REAL, "y": np.zeros((60, 0))}, {}, "holds no label for each sample"),
        ({"x": REAL}, {"scale": 0.0}, "expected numbers, and a scale not 0"),
        ({"x": REAL}, {"shift": np.nan}, "expected numbers, and a scale not 0"),
        ({"x": REAL}, {"scale": 1e39}, r"beyond float32, whose largest number is 3\.4e\+38"),
        ({"x": REAL[:0]}, {}, r"expected samples \(N, ...\)"),
    ],
)
def test_what_fuzzing_found_is_one_message(
    tmp_path: Path, arrays: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        of(tmp_path, arrays, **options)


def test_a_header_that_claims_more_than_there_is_memory_for_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.ones(3))
    content = (tmp_path / "m.npy").read_bytes()
    # The header is as long as before: its padding gives way.
    claimed = content.replace(b"(3,), }             ", b"(99999999999999,), }")
    assert claimed != content
    (tmp_path / "m.npy").write_bytes(claimed)
    with pytest.raises(InputError, match=r"m\.npy cannot be read as numbers"):
        array(str(tmp_path / "m.npy"))
