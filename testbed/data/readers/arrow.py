"""Data sets as Hugging Face's library `datasets` keeps them, read by pyarrow alone.

A folder of `save_to_disk` has Arrow files, mapped into memory, and says in state.json which; the
hub has shards in Parquet, `data/train-00000-of-00002.parquet`. What the columns are (images, names
of classes) is said in dataset_info.json, or in the metadata of the schema.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from testbed.data.readers.base import Contents, Reader, Rows
from testbed.data.readers.pictures import Pictures
from testbed.data.readers.tables import column_array, import_pyarrow
from testbed.data.splits import SPLITS
from testbed.errors import InputError

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
END = b"\xff\xff\xff\xff\0\0\0\0"
"""The last bytes of a stream of Arrow."""
SHARD = re.compile(r"(?P<name>.*?)-?(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
SHOWN = 6
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Chunks:
    """Arrays one after the other, as one array of rows (N, ...)."""

    arrays: Sequence[NDArray[Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return (sum(map(len, self.arrays)), *self.arrays[0].shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the first array."""
        return self.arrays[0].dtype

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """The rows of a slice, or of an array of numbers."""
        index = np.arange(self.shape[0])[rows]
        ends = np.cumsum([len(one) for one in self.arrays])
        chunk = np.searchsorted(ends, index, side="right")
        found = np.empty((len(index), *self.shape[1:]), self.dtype)
        for number in np.unique(chunk):
            of_chunk = chunk == number
            first = ends[number] - len(self.arrays[number])
            found[of_chunk] = self.arrays[number][index[of_chunk] - first]
        return found


@dataclass(frozen=True)
class Table:
    """The columns of one split.

    Args:
        path: the folder or file, for messages.
        files: all that it is read from.
        columns: the names of the columns.
        read: returns the column of a name, a `pyarrow.ChunkedArray`.
        features: what the library says of the columns.
        split: the name of the split, "" where there is none.
    """

    path: Path
    files: Sequence[Path]
    columns: Sequence[str]
    read: Callable[[str], Any]
    features: Mapping[str, Any]
    split: str = ""

    def title(self, name: str) -> str:
        """A column in a message."""
        return f"{self.path}: column {name!r}"

    def rows(self, name: str) -> Rows:
        """The column of a name: images, or numbers that are mapped into memory.

        Raises:
            InputError: it has missing values, lists of different lengths, or other things.
        """
        import pyarrow as pa

        column = self.read(name)
        kind = column.type
        if pa.types.is_struct(kind) and {field.name for field in kind} >= {"bytes", "path"}:
            return self._pictures(name, column)
        arrays, first = [], 0
        for chunk in column.chunks:
            if len(chunk):
                arrays.append(column_array(chunk, self.title(name), first)[:])
            first += len(chunk)
        shapes = {array.shape[1:] for array in arrays}
        if len(shapes) > 1:
            raise InputError(
                f"{self.title(name)} has arrays of shapes {', '.join(map(str, sorted(shapes)))}; "
                "expected samples of one shape."
            )
        if arrays and arrays[0].dtype.kind == "U":
            return np.concatenate(arrays)
        return arrays[0] if len(arrays) == 1 else Chunks(arrays or [np.empty(0)])

    def _pictures(self, name: str, column: Any) -> Pictures:
        titles = [f"{self.title(name)}, row {i}" for i in range(len(column))]

        def read(i: int) -> BinaryIO:
            cell = column[i].as_py() or {}
            if cell.get("bytes") is not None:
                return io.BytesIO(cell["bytes"])
            if cell.get("path") and Path(cell["path"]).is_file():
                return Path(cell["path"]).open("rb")
            where = f"the file {cell['path']} is not there" if cell.get("path") else "it is empty"
            raise InputError(f"{titles[i]} holds no image: {where}.")

        return Pictures(titles, read, self.files, f"{self.split}/{name}", self.title(name))

    def notes(self) -> list[str]:
        """A sentence on the names of classes."""
        said = []
        for column, feature in self.features.items():
            names = feature.get("names") if isinstance(feature, Mapping) else None
            if isinstance(names, list) and column in self.columns:
                listed = ", ".join(f"{i} = {name}" for i, name in enumerate(names[:SHOWN]))
                more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                said.append(f"{self.title(column)}: the classes are {listed}{more}.")
        return said


def features(schema: Any) -> Mapping[str, Any]:
    """What the metadata of a schema says of its columns; empty where it says nothing."""
    try:
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}


def contents(path: Path, tables: Sequence[Table]) -> Contents:
    """The columns of one table, or of each split: `train/image`, `test/image`."""
    notes = tuple(note for table in tables for note in table.notes())
    if len(tables) == 1:
        (only,) = tables
        return Contents(path, tuple(only.columns), only.rows, table=True, notes=notes)
    found = {f"{table.split}/{name}": (table, name) for table in tables for name in table.columns}

    def load(name: str) -> Rows:
        table, column = found[name]
        return table.rows(column)

    titles = {name: table.title(column) for name, (table, column) in found.items()}
    return Contents(path, tuple(found), load, notes=notes, titles=titles)


def takes_saved(path: Path, head: bytes) -> bool:
    """Whether a folder is one of `save_to_disk`, whole or not."""
    return any((path / name).is_file() for name in (DICT, STATE, INFO)) or any(path.glob("*.arrow"))


def open_saved(path: Path) -> Contents:
    """The columns of a folder that `datasets.save_to_disk` has written, mapped into memory.

    Raises:
        InputError: pyarrow is not installed, or a file is missing, cut off or damaged.
    """
    if not (path / DICT).is_file():
        return contents(path, [_saved(path)])
    splits = _json(path / DICT).get("splits")
    if not isinstance(splits, list) or not splits:
        raise InputError(f"{path / DICT}: expected the names of splits under the key 'splits'.")
    return contents(path, [_saved(path / split, split) for split in splits])


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{file} is missing: expected a whole folder of datasets.save_to_disk."
        ) from None
    except (OSError, ValueError) as problem:
        raise InputError(f"{file} cannot be read: {problem}.") from None
    if not isinstance(found, Mapping):
        raise InputError(f"{file} holds {type(found).__name__}, expected a table.")
    return found


def _saved(folder: Path, split: str = "") -> Table:
    """The table of one folder of `save_to_disk`."""
    pa = import_pyarrow(folder)
    state = _json(folder / STATE)
    if state.get("_indices_data_files"):
        raise InputError(
            f"{folder / STATE} names a file of indices: save the data with this done before it: "
            "dataset = dataset.flatten_indices()."
        )
    names = [one.get("filename") for one in state.get("_data_files") or ()]
    if not names or None in names:
        raise InputError(f"{folder / STATE} names no files under the key '_data_files'.")
    files = [folder / name for name in names]
    table = pa.concat_tables([_stream(file) for file in files])
    known = _json(folder / INFO).get("features") if (folder / INFO).is_file() else None
    return Table(
        folder,
        files,
        table.column_names,
        table.column,
        known or features(table.schema),
        split,
    )


def _stream(file: Path) -> Any:
    """The table of one Arrow file, mapped into memory.

    Raises:
        InputError: it is missing, cut off or damaged.
    """
    import pyarrow as pa

    if not file.is_file():
        raise InputError(f"{file} is missing, and state.json names it.")
    with file.open("rb") as whole:
        whole.seek(max(0, file.stat().st_size - len(END)))
        ended = whole.read() == END
    try:
        found = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as problem:
        what = "is damaged" if ended else "is cut off"
        raise InputError(f"{file} {what}: it is no whole stream of Arrow ({problem}).") from None
    if not ended:
        raise InputError(f"{file} is cut off: the mark at the end of a stream of Arrow is missing.")
    return found


def takes_shards(path: Path, head: bytes) -> bool:
    """Whether a folder, or one called `data` within, holds Parquet files."""
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))


def open_shards(path: Path) -> Contents:
    """The columns of a folder of Parquet files, those of a split by its name.

    Raises:
        InputError: pyarrow is not installed, a shard is missing, or the columns of files differ.
    """
    import_pyarrow(path)
    splits: dict[str, list[Path]] = {}
    for file in _shards(path):
        shard = SHARD.fullmatch(file.name)
        word = re.split(r"[-_.]", shard["name"] if shard else file.stem)[0].lower()
        splits.setdefault(word if word in SPLITS else "", []).append(file)
        if shard and not _whole(file, shard):
            raise InputError(
                f"{file.parent} does not hold all {int(shard['count'])} shards of {shard['name']}."
            )
    if len(splits) > 1 and "" in splits:
        raise InputError(f"{splits[''][0]} belongs to no split, and lies beside files that do.")
    return contents(path, [parquet_table(files, split) for split, files in splits.items()])


def _whole(file: Path, shard: re.Match[str]) -> bool:
    start, count = file.name[: shard.start("number")], shard["count"]
    names = (f"{start}{i:05}-of-{count}.parquet" for i in range(int(count)))
    return all((file.parent / name).is_file() for name in names)


def parquet_table(files: Sequence[Path], split: str = "") -> Table:
    """The table of Parquet files of one form, a column of which is read when it is looked up.

    Raises:
        InputError: a file is damaged, or the columns of files differ.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    schemas = []
    for file in files:
        try:
            schemas.append(parquet.read_schema(file))
        except (pa.ArrowException, OSError) as problem:
            raise InputError(f"{file} is no whole Parquet file ({problem}).") from None
        if not schemas[-1].equals(schemas[0]):
            raise InputError(f"{file} has other columns than {files[0]}.")
    columns = [name for name in schemas[0].names if not name.startswith("__index_level_")]

    def read(name: str) -> Any:
        tables = []
        for file in files:
            try:
                tables.append(parquet.read_table(file, columns=[name]))
            except (pa.ArrowException, OSError) as problem:
                raise InputError(f"{file} is damaged: column {name!r}: {problem}.") from None
        return pa.concat_tables(tables).column(0)

    path = files[0] if len(files) == 1 and not split else files[0].parent
    return Table(path, files, columns, read, features(schemas[0]), split)


def open_parquet(path: Path) -> Contents:
    """The columns of one Parquet file.

    Raises:
        InputError: pyarrow is not installed.
    """
    import_pyarrow(path)
    import pyarrow.parquet as parquet

    table = parquet_table([path])
    notes = table.notes()
    if len(parquet.read_schema(path).names) > len(table.columns):
        notes.append(f"{path}: the index of pandas is left out.")
    return Contents(path, tuple(table.columns), table.rows, table=True, notes=tuple(notes))


SAVED = Reader(
    "a folder that datasets.save_to_disk has written", (), takes_saved, open_saved, folder=True
)
SHARDS = Reader("a folder of Parquet files", (), takes_shards, open_shards, folder=True)
PARQUET: Reader = Reader(
    "a Parquet file with a row for each sample",
    (".parquet",),
    lambda path, head: head.startswith(b"PAR1") or path.suffix.lower() == ".parquet",
    open_parquet,
)
