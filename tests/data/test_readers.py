"""Readers of files: which files each takes, and the arrays that it finds."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from testbed.data.readers import READERS, Contents, Reader, open_path
from testbed.errors import InputError

X = np.arange(24.0).reshape(6, 4)
Y = np.arange(6) % 3


def test_a_npy_file_is_mapped_into_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    (found,) = open_path(tmp_path / "a.npy").values()
    assert isinstance(found, np.memmap)
    assert np.array_equal(found[2:4], X[2:4])


def test_an_array_of_a_npz_file_is_opened_when_it_is_looked_up(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, objects=np.array([{}], dtype=object))
    contents = open_path(tmp_path / "a.npz")
    assert list(contents) == ["x", "objects"]
    assert np.array_equal(contents["x"][:], X)
    with pytest.raises(InputError, match=r"a\.npz cannot be read as numbers"):
        contents["objects"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"x": torch.arange(6).reshape(3, 2).to(dtype)}, tmp_path / "a.safetensors")
    found = open_path(tmp_path / "a.safetensors")["x"][:]
    assert found.tolist() == [[0, 1], [2, 3], [4, 5]]


def written(folder: Path, text: str, name: str = "a.csv") -> Contents:
    (folder / name).write_text(text)
    return open_path(folder / name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n3,4\n", ["a", "b"]),
        ("1,2\n3,4\n", ["0", "1"]),
        ("1;2\n3;4\n", ["0", "1"]),
        ("a\tb\n1\t2\n3\t4\n", ["a", "b"]),
        ("1 2\n3 4\n", ["0", "1"]),
        ("# of numpy.savetxt\n1.0e+00,2.0e+00\n3.0e+00,4.0e+00\n", ["0", "1"]),
        ("\n# more\n\na, b\n1, 2\n3, 4\n", ["a", "b"]),
        ("\ufeffa,b\n1,2\n3,4\n", ["a", "b"]),
    ],
)
def test_forms_of_csv(tmp_path: Path, text: str, names: list[str]) -> None:
    found = written(tmp_path, text)
    assert list(found) == names
    assert [found[name][:].tolist() for name in names] == [[1, 3], [2, 4]]


def test_csv_of_numpy_has_every_digit_of_float32(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 1))
    np.savetxt(tmp_path / "a.csv", x, fmt="%.17g")
    found = open_path(tmp_path / "a.csv")["0"][:]
    assert np.array_equal(found.astype(np.float32), x[:, 0].astype(np.float32))


def test_what_pandas_writes_beside_the_columns_is_no_column(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.5, 2.5], "b": [3.5, 4.5]})
    table.to_csv(tmp_path / "a.csv")
    found = open_path(tmp_path / "a.csv")
    assert (list(found), "counts the rows" in found.notes[0]) == (["a", "b"], True)
    pd.DataFrame(np.ones((2, 4)) / 3).to_csv(tmp_path / "b.csv", index=False)
    found = open_path(tmp_path / "b.csv")
    assert (len(found["0"][:]), "counts the columns" in found.notes[0]) == (2, True)
    pd.DataFrame({"a": [1.5, 2.5]}, index=["p", "q"]).to_parquet(tmp_path / "a.parquet")
    found = open_path(tmp_path / "a.parquet")
    assert (list(found), "index of pandas" in found.notes[0]) == (["a"], True)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only\n", "a,b\n1,2,3\n4,5,6\n", "a,b\n1,2\n3,4,5\n"]
)
def test_csv_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"a\.csv cannot be read as numbers"):
        written(tmp_path, text)


def parquet(folder: Path, **columns: Any) -> Contents:
    pd.DataFrame({name: list(values) for name, values in columns.items()}).to_parquet(
        folder / "a.parquet"
    )
    return open_path(folder / "a.parquet")


def test_columns_of_parquet(tmp_path: Path) -> None:
    found = parquet(tmp_path, n=Y, text=["a", "b"] * 3, lists=X, nested=X.reshape(6, 2, 2).tolist())
    assert found.table
    assert found["n"][:].tolist() == Y.tolist()
    assert found["text"][:].tolist() == ["a", "b"] * 3
    assert np.array_equal(found["lists"][:], X)
    assert np.array_equal(found["nested"][:], X.reshape(6, 2, 2))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, None, 2.0], "column 'v' has no value in row 1"),
        ([[1.0, 2.0], [3.0]], "2 numbers in row 0, 1 in row 1"),
        ([{"bytes": b"x"}, {"bytes": b"y"}], "column 'v' holds struct<.*>, expected numbers"),
    ],
)
def test_columns_that_are_no_arrays_are_refused(tmp_path: Path, values: Any, says: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"v": pa.array(values)}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=says):
        open_path(tmp_path / "b.parquet")["v"]


def test_without_pyarrow_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path, a=[1.0, 2.0])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pyarrow" else find(name)
    )
    with pytest.raises(InputError, match=r"a\.parquet: .* pip install pyarrow"):
        open_path(tmp_path / "a.parquet")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.npz", "a.ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_unread_with_how_to_convert_them(
    tmp_path: Path, name: str, zipped: bool
) -> None:
    torch.save(
        {"x": torch.zeros(2), "trap": Trap(tmp_path / "sprung")},
        tmp_path / name,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(InputError, match=r"is a pickle.*numpy\.savez\('a\.npz', x="):
        open_path(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_no_reader_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(InputError, match=r"a\.h5: no reader takes it; give one of \.npy, \.npz"):
        open_path(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"is a folder, and is not a file"):
        open_path(tmp_path)


def test_every_reader_takes_its_own_suffixes(tmp_path: Path) -> None:
    for reader in READERS:
        for suffix in reader.suffixes:
            assert next(one for one in READERS if one.takes(Path(f"a{suffix}"), b"")) is reader


def test_a_reader_of_another_format_is_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read row by row, such as a folder of images, fits behind the same interface."""

    class Decoded:
        shape, dtype = (6, 4), np.dtype(float)

        def __getitem__(self, rows: slice) -> Any:
            return X[rows]

    folders = Reader(
        "a file of rows",
        (".rows",),
        lambda path, head: path.suffix == ".rows",
        lambda path: Contents(path, ("x", "y"), lambda name: Decoded() if name == "x" else Y),
    )
    from testbed.data import readers
    from testbed.data.files import array

    monkeypatch.setattr(readers, "READERS", (*READERS, folders))
    (tmp_path / "a.rows").touch()
    data = array(str(tmp_path / "a.rows"), test=0.5)
    assert sorted(torch.cat([data.train, data.test]).tolist()) == X.tolist()
    assert data.labels == 3
