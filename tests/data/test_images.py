"""Folders of images: pixels as Pillow itself decodes them, what is done to them, and damage."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from testbed.components.dataset import Data
from testbed.data import decoded
from testbed.data.files import array
from testbed.data.image_sets import images
from testbed.errors import InputError
from testbed.registry import Registry

R = np.random.default_rng(0)
RGB = R.integers(0, 256, (9, 8, 6, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def folder(root: Path, pictures: dict[str, Any], **options: Any) -> Path:
    """A folder with these images, arrays or Pillow's, by path."""
    for name, picture in pictures.items():
        file = root / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        picture.save(file, **options)
    return root / "set"


def bytes_of(data: Data) -> np.ndarray:
    """All samples as they were in 8 bits, (N, h, w, c), in the order of their bytes."""
    x = torch.cat([data.train, data.test])
    whole = ((x.double() + 1) * 127.5).round().to(torch.uint8)
    found = whole.permute(0, 2, 3, 1).numpy()
    return found[sorted(range(len(found)), key=lambda i: found[i].tobytes())]


def sorted_rows(x: np.ndarray) -> np.ndarray:
    return x[sorted(range(len(x)), key=lambda i: x[i].tobytes())]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg", "gif"])
def test_pixels_are_those_of_pillow(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    root = folder(tmp_path, {f"{i}.{suffix}": x for i, x in enumerate(RGB)}, **options)
    data = images(str(root), test=0.3)
    files = sorted(root.iterdir())
    exact = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    assert np.array_equal(bytes_of(data), sorted_rows(exact))
    if suffix in ("png", "bmp", "tiff", "webp"):
        assert np.array_equal(bytes_of(data), sorted_rows(RGB))
    assert (data.shape, data.labels, data.quantum) == ((3, 8, 6), 0, 2 / 255)
    assert array(str(root), test=0.3).digest == data.digest


def test_labels_are_the_folders_and_splits_the_folders_above(tmp_path: Path) -> None:
    names = [
        f"{split}/{kind}/{i}.png" for split in ("train", "test") for kind in "ab" for i in "12"
    ]
    root = folder(tmp_path, dict(zip(names, RGB, strict=False)))
    (root / "readme.txt").write_text("about")
    data = images(str(root))
    assert (len(data.train), len(data.test), data.labels) == (4, 4, 2)
    assert data.train_labels is not None
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    first = torch.from_numpy(RGB[0].transpose(2, 0, 1).astype(np.float32))
    assert torch.equal(data.train[0], (first - 127.5) * np.float32(2 / 255))
    said = "\n".join(data.notes)
    assert "each name is a class, numbered in alphabetical order: a = 0, b = 1" in said
    assert "samples are" not in said
    assert "labels are" not in said
    assert "files that are no images are left out: readme.txt" in said
    only = images(str(root / "train"), test=0.5)
    assert (len(only.train), only.labels) == (2, 2)
    assert images(str(root), labels="none").labels == 0


@pytest.mark.parametrize(
    ("make", "becomes", "says"),
    [
        (lambda x: Image.fromarray(x).quantize(16), "RGB", "1 of 2 images with a palette are read"),
        (lambda x: Image.fromarray(x).convert("CMYK"), "RGB", ""),
        (lambda x: Image.fromarray(x[..., 0]), "RGB", "1 of 2 images without colours are read as"),
        (lambda x: Image.fromarray(x[..., 0] > 127), "RGB", "1 of 2 images without colours"),
    ],
)
def test_other_modes_beside_colours(
    tmp_path: Path, make: Callable[[Any], Any], becomes: str, says: str
) -> None:
    picture = make(RGB[0])
    suffix = "tiff" if picture.mode == "CMYK" else "png"
    root = folder(tmp_path, {f"0.{suffix}": picture, "1.png": RGB[1]})
    data = images(str(root), test=0.5)
    exact = np.stack([np.asarray(picture.convert(becomes)), RGB[1]])
    assert np.array_equal(bytes_of(data), sorted_rows(exact))
    assert says in "\n".join(data.notes)


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    root = folder(tmp_path, {f"{i}.png": x[..., 0] for i, x in enumerate(RGB)})
    data = images(str(root))
    assert data.shape == (1, 8, 6)
    assert np.array_equal(bytes_of(data), sorted_rows(RGB[..., :1]))
    assert images(str(root), colour="rgb").shape == (3, 8, 6)


def test_colours_are_made_grey_by_the_weights_of_itu_601(tmp_path: Path) -> None:
    root = folder(tmp_path, {f"{i}.png": x for i, x in enumerate(RGB)})
    found = bytes_of(images(str(root), colour="grey"))
    exact = RGB @ np.array([0.299, 0.587, 0.114])
    off = np.abs(np.sort(found.flatten()) - np.sort(exact.flatten())).max()
    assert off <= 0.5 + 2.0**-6  # Pillow rounds the weights to 16 bits


def test_transparent_images_are_laid_on_white(tmp_path: Path) -> None:
    alpha = R.integers(0, 256, (2, 8, 6, 1), dtype=np.uint8)
    x = np.concatenate([RGB[:2], alpha], -1)
    root = folder(tmp_path, {f"{i}.png": one for i, one in enumerate(x)})
    data = images(str(root), test=0.5)
    share = alpha / 255.0
    exact = share * RGB[:2] + (1 - share) * 255
    found = bytes_of(data)
    nearest = [min(np.abs(f - e).max() for e in exact) for f in found.astype(float)]
    assert max(nearest) <= 1  # Pillow computes in whole numbers
    assert "2 of 2 images with transparency are laid on white" in "\n".join(data.notes)
    kept = images(str(root), test=0.5, colour="rgba")
    assert kept.shape == (4, 8, 6)
    assert np.array_equal(bytes_of(kept), sorted_rows(x))


def test_grey_images_of_16_bits_keep_them(tmp_path: Path) -> None:
    deep = R.integers(0, 65536, (4, 8, 6), dtype=np.uint16)
    root = folder(tmp_path, {f"{i}.png": x for i, x in enumerate(deep)})
    data = images(str(root), test=0.5)
    back = ((torch.cat([data.train, data.test]).double() + 1) * 32767.5).round()
    assert sorted(back.flatten().tolist()) == sorted(deep.flatten().tolist())
    assert data.quantum == 2 / 65535
    assert "4 of 4 images keep their 16 bits" in "\n".join(data.notes)
    folder(tmp_path, {"4.png": RGB[0]})
    with pytest.raises(InputError, match=r"0\.png has 16 bits, others have 8"):
        images(str(root))


def test_photos_are_turned_as_they_say(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    root = folder(tmp_path, {f"{i}.jpg": RGB[i] for i in range(2)}, exif=exif, quality=100)
    data = images(str(root), test=0.5)
    upright = [np.asarray(Image.open(file)) for file in sorted(root.iterdir())]
    exact = np.stack([np.rot90(x, -1) for x in upright])  # 6: turn clockwise
    assert data.shape == (3, 6, 8)
    assert np.array_equal(bytes_of(data), sorted_rows(exact))
    assert "2 of 2 images are turned" in "\n".join(data.notes)


def test_images_of_different_sizes_are_refused_or_brought_to_one(tmp_path: Path) -> None:
    wide = R.integers(0, 256, (16, 32, 3), dtype=np.uint8)
    root = folder(tmp_path, {"a.png": wide, "b.png": wide[:, :16], "c.png": wide[:8, :8]})
    with pytest.raises(
        InputError,
        match=r"b\.png is 16 x 16 pixels \(height x width\), .*a\.png is 16 x 32: .*size = \[",
    ):
        images(str(root))
    data = images(str(root), size=8)
    centre = Image.fromarray(wide[:, 8:24]).resize((8, 8), Image.Resampling.LANCZOS)
    assert data.shape == (3, 8, 8)
    assert any(np.array_equal(np.asarray(centre), x) for x in bytes_of(data))
    assert any(np.array_equal(wide[:8, :8], x) for x in bytes_of(data))
    assert "2 of 3 images are cut to their centre and resampled to 8 x 8" in "\n".join(data.notes)
    stretched = images(str(root), size=[8, 16], crop="none")
    whole = Image.fromarray(wide).resize((16, 8), Image.Resampling.LANCZOS)
    assert stretched.shape == (3, 8, 16)
    assert any(np.array_equal(np.asarray(whole), x) for x in bytes_of(stretched))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, [8], [8, 8, 8], "8", [8, 0], 10**6])
def test_a_size_that_is_none_is_refused(tmp_path: Path, size: Any) -> None:
    root = folder(tmp_path, {"a.png": RGB[0], "b.png": RGB[1]})
    with pytest.raises(InputError, match=r"dataset 'images': size = .*: expected a number of pix"):
        images(str(root), size=size)


def test_an_option_with_another_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown crop 'center'\. Did you mean 'centre'"):
        Registry().dataset("images", path="set", crop="center")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("no image")


def flipped_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[60] ^= 255
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncated, empty, text, flipped_bit])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_broken_image_is_named_by_its_path(
    tmp_path: Path, damage: Callable[[Path], None], suffix: str
) -> None:
    if (damage, suffix) == (flipped_bit, "jpg"):
        pytest.skip("a JPEG has no sum of its bytes")
    root = folder(tmp_path, {f"c/{i}.{suffix}": x for i, x in enumerate(RGB)})
    damage(root / f"c/4.{suffix}")
    with pytest.raises(
        InputError, match=rf"set/c/4\.{suffix} cannot be decoded .*: mend"
    ) as raised:
        images(str(root))
    assert "BufferedReader" not in str(raised.value)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_folders_that_are_unclear_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, {"a/0.png": RGB[0], "b/1.png": RGB[1], "2.png": RGB[2]})
    with pytest.raises(InputError, match=r"2\.png lies beside folders of classes"):
        images(str(root))
    shutil.rmtree(root)
    root = folder(tmp_path, {"train/0.png": RGB[0], "test/1.png": RGB[1], "more/2.png": RGB[2]})
    with pytest.raises(InputError, match=r"more/2\.png belongs to no split"):
        images(str(root))
    shutil.rmtree(root / "more")
    (root / "val").mkdir()
    Image.fromarray(RGB[3]).save(root / "val/3.png")
    assert len(images(str(root)).test) == 1
    with pytest.raises(
        InputError, match=r"path = '.*sett': there is no such .* Did you mean 'set'\?"
    ):
        images(str(tmp_path / "sett"))
    np.save(tmp_path / "a.npy", RGB)
    with pytest.raises(InputError, match=r'a\.npy holds no encoded images: use the dataset "arr'):
        images(str(tmp_path / "a.npy"))


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, {f"{i}.png": x for i, x in enumerate(RGB)})
    first = images(str(root))
    monkeypatch.setattr(decoded, "_write", None)
    again = images(str(root))
    assert again.digest == first.digest
    assert again.notes == first.notes
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (copy,) = (tmp_path / "cache").rglob("*.npy")
    copy.write_bytes(copy.read_bytes()[:200])  # damaged: it is made again
    assert images(str(root)).digest == first.digest
    Image.fromarray(RGB[0][::-1]).save(root / "0.png")
    assert images(str(root)).digest != first.digest


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path, {f"{i}.png": x for i, x in enumerate(RGB)})
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"decoded copy, cannot be written .*XDG_CACHE_HOME"):
        images(str(root))


def test_arrays_of_images_in_every_format(tmp_path: Path) -> None:
    """(N, h, w, c) uint8 in .npy, .npz, safetensors and Parquet are one data set."""
    import pyarrow as pa
    import pyarrow.parquet as parquet
    from safetensors.numpy import save_file

    np.save(tmp_path / "a.npy", RGB)
    np.savez_compressed(tmp_path / "a.npz", x=RGB)
    save_file({"x": RGB}, tmp_path / "a.safetensors")
    parquet.write_table(pa.table({"x": RGB.tolist()}), tmp_path / "lists.parquet")
    encoded = []
    for x in RGB:
        buffer = io.BytesIO()
        Image.fromarray(x).save(buffer, "png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    parquet.write_table(pa.table({"image": encoded}), tmp_path / "png.parquet")
    found = [array(str(tmp_path / f"a.{kind}")) for kind in ("npy", "npz", "safetensors")]
    found.append(array(str(tmp_path / "lists.parquet"), range=[0, 255]))
    found.append(array(str(tmp_path / "png.parquet")))
    assert len({data.digest for data in found}) == 1
    assert found[0].shape == (3, 8, 6)
