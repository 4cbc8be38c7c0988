"""Which arrays of a file are samples, labels and a split: by their names, or as a study says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.data.readers import Contents, Rows, open_path
from testbed.data.splits import SPLITS
from testbed.errors import InputError, unknown

SAMPLES = ("x", "data", "images", "image", "img", "samples", "features", "arr_0", "")
LABELS = ("y", "labels", "label", "targets", "target", "classes", "class", "arr_1")
"""The names of samples and of their labels, in small letters and without the split's."""
ORDER = ("all", "train", "test")
NONE = "none"
"""What a study writes for labels that it does not want."""


@dataclass(frozen=True)
class Part:
    """The samples of one split, or all of them, with their labels.

    Args:
        samples: (N, ...), numbers.
        title: what they are in a message, for example "photos.npz: x_train".
        labels: (N, ...) of any form, or None.
        labels_title: as `title`, of the labels.
        columns: the names of a table's columns, where the samples are rows of it.
    """

    samples: Rows
    title: str
    labels: Rows | None = None
    labels_title: str = ""
    columns: tuple[str, ...] = ()

    def first(self, n: int) -> Part:
        """The first n samples, or all where there are fewer.

        Raises:
            InputError: n is none.
        """
        if n < 1:
            raise InputError(f"{self.title}: {n} samples are none; expected at least 1.")
        labels = None if self.labels is None else self.labels[:n]
        return replace(self, samples=self.samples[:n], labels=labels)

    def place(self, index: Sequence[int]) -> str:
        """A number of the samples in a message: `photos.npz: x[3, 0]`, or by row and column."""
        if self.columns:
            return f"{self.title}: row {index[0]} (from 0), column {self.columns[index[1]]!r}"
        return f"{self.title}[{', '.join(map(str, index))}]"


@dataclass(frozen=True)
class Roles:
    """The parts of a data set: "all", or "train" and "test", in this order.

    The notes say what was recognised.
    """

    parts: Mapping[str, Part]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Names:
    """What a study says of the arrays: names, or "" for what is to be recognised.

    Args:
        data: the samples' array, without the split's word where there is one for each split.
        labels: the labels', likewise; "none" for no labels.
        columns: the columns of a table that a sample is made of; empty for all that have no other
            role.
    """

    data: str = ""
    labels: str = ""
    columns: tuple[str, ...] = ()


def find(path: Path, names: Names, labels_path: str = "", test_path: str = "") -> Roles:
    """The samples and labels of a file, with the held-out ones where they are given.

    Args:
        path: the file.
        names: what a study says of its arrays.
        labels_path: the file of the labels, where they are in one of their own.
        test_path: the file of the held-out samples, where they are in one of their own.

    Raises:
        InputError: a file that cannot be read, or arrays of which it is not clear what they are.
    """
    if labels_path and test_path:
        raise InputError(
            f"labels_path = {labels_path!r} and test_path = {test_path!r}: with two files of "
            "samples, put the labels into them (numpy.savez), or leave one of the two options out."
        )
    contents = open_path(path)
    separate = open_path(Path(labels_path), "labels_path") if labels_path else None
    found = _roles(contents, names, separate)
    if not test_path:
        return found
    held_out = _roles(open_path(Path(test_path), "test_path"), names, None)
    for file, roles in ((str(path), found), (test_path, held_out)):
        if "all" not in roles.parts:
            raise InputError(f"{file} has a split of its own: leave test_path out.")
    parts = {"train": found.parts["all"], "test": held_out.parts["all"]}
    return Roles(parts, tuple(dict.fromkeys([*found.notes, *held_out.notes])))


def of(contents: Contents, names: Names) -> Roles:
    """The samples and labels among the arrays of one file or folder.

    Raises:
        InputError: it is not clear what the arrays are.
    """
    return _roles(contents, names, None)


def _roles(contents: Contents, names: Names, separate: Contents | None) -> Roles:
    """The roles of one file's arrays, with labels from another where `separate` is one."""
    samples, source = _samples(contents, names), contents if separate is None else separate
    used = set(samples.values())
    notes = list(contents.notes)
    labels: dict[str, str] = {}
    if names.labels != NONE:
        labels = _labels(source, names, samples, alone=separate is not None)
        notes += separate.notes if separate is not None else ()
        used |= set(labels.values()) if separate is None else set()
    parts = {}
    for split, name in samples.items():
        columns = _columns(contents, names, used) if name == TABLE else ()
        title = str(contents.path) if columns else contents.title(name)
        table: Rows = _stacked(contents, columns) if columns else contents[name]
        used |= set(columns)
        label = labels.get(split)
        parts[split] = Part(
            table,
            title,
            None if label is None else source[label],
            "" if label is None else source.title(label),
            columns,
        )
    if not names.data and contents.named and list(samples.values()) not in ([TABLE], [""], ["x"]):
        notes.append(f"{contents.path}: the samples are {_listed(samples)}.")
    if not names.labels and source.named and list(labels.values()) not in ([], [""], ["y"]):
        notes.append(f"{source.path}: the labels are {_listed(labels)}.")
    if "validation" in parts:
        held_out = parts.pop("validation")
        if "test" in parts:
            notes.append(f"{held_out.title} is not used: the test split is held out.")
        else:
            parts["test"] = held_out
            notes.append(f"{held_out.title} is held out.")
    return _by_column(contents, parts, used, notes)


TABLE = "\0table"
"""Stands for the columns of a table in the place of an array's name."""


def _stem(name: str) -> tuple[str, str]:
    """A name without the word for a split, in small letters, and that split or "all"."""
    words = [word for word in re.split(r"[_.\-/ ]+", name.lower()) if word]
    for i in (0, -1):
        if words and words[i] in SPLITS:
            split = SPLITS[words.pop(i)]
            return "_".join(words), split
    return name.lower(), "all"


def _groups(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The names by stem and split."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        stem, split = _stem(name)
        groups.setdefault(stem, {}).setdefault(split, name)
    return groups


def _split(group: Mapping[str, str]) -> dict[str, str]:
    """The names of a stem by split, if they are one array or a training and a held-out one."""
    if "train" in group and {"test", "validation"} & set(group):
        return {split: name for split, name in group.items() if split != "all"}
    return {"all": group["all"]} if "all" in group else {}


def _samples(contents: Contents, names: Names) -> dict[str, str]:
    """The names of the samples' arrays by split; TABLE for the columns of a table."""
    groups = _groups(contents)
    if names.columns:
        if not contents.table:
            raise InputError(f"{contents.path} is no table: columns = {list(names.columns)}.")
        return {"all": TABLE}
    if names.data:
        if names.data in contents:
            return {"all": names.data}
        if found := _split(groups.get(names.data.lower(), {})):
            return found
        contents[names.data]  # raises, with the nearest name
    stems = [stem for stem in SAMPLES if _split(groups.get(stem, {}))]
    if contents.table:
        wide = [name for name in contents if len(contents[name].shape) > 1]
        stems = [stem for stem in stems if set(groups[stem].values()) <= set(wide)]
        if not stems:
            return {"all": wide[0] if len(wide) == 1 else TABLE}
    if not stems and len(contents) == 1:
        return {"all": next(iter(contents))}
    if not stems:
        others = [name for name in contents if _stem(name)[0] not in LABELS]
        if len(others) == 1:
            return {"all": others[0]}
    if len(stems) != 1:
        held = ", ".join(f"{name} {contents[name].shape}" for name in contents) or "nothing"
        raise InputError(
            f"{contents.path} holds {held}: which of them are the samples? Write data = "
            f'"{stems[0] if stems else "NAME"}", or the like.'
        )
    found = _split(groups[stems[0]])
    if "all" in groups[stems[0]] and "all" not in found:
        raise InputError(
            f"{contents.path} holds {', '.join(groups[stems[0]].values())}: write data = "
            f"{groups[stems[0]]['all']!r} for all samples, or remove that array for the split."
        )
    return found


def _labels(
    contents: Contents, names: Names, samples: Mapping[str, str], alone: bool
) -> dict[str, str]:
    """The names of the labels' arrays by split; `alone` where their file holds no samples."""
    groups = _groups(name for name in contents if alone or name not in samples.values())
    if names.labels:
        whole = {"all": names.labels} if names.labels in contents else {}
        found = whole or _split(groups.get(names.labels.lower(), {}))
        if not found:
            contents[names.labels]  # raises, with the nearest name
    else:
        stems = [stem for stem in LABELS if _split(groups.get(stem, {}))]
        if contents.table and not alone and "x" in groups and "y" in stems:
            stems.remove("y")  # a coordinate
        if alone and not stems and len(contents) == 1:
            stems = [_stem(next(iter(contents)))[0]]
        if "arr_1" in stems and not _may_be_labels(contents["arr_1"]):
            raise InputError(
                f"{contents.path}: arr_0 and arr_1 {contents['arr_1'].shape} have no names, and "
                'the second holds no labels: write data = "arr_0" with labels = "none", or name '
                "them (numpy.savez(file, x=..., y=...))."
            )
        if not stems and alone:
            held = ", ".join(contents)
            raise InputError(f"{contents.path}: which of {held} are the labels? Write labels = ...")
        found = _split(groups[stems[0]]) if stems else {}
    if found and set(found) - {"validation"} != set(samples) - {"validation"}:
        raise InputError(
            f"{contents.path}: samples {_listed(samples)}, but labels {_listed(found)}: expected "
            'labels for each split. Write labels = "none" to leave them out.'
        )
    return found


def _may_be_labels(y: Rows) -> bool:
    """Whether an array without a name of its own has a form that labels have."""
    return len(y.shape) == 1 or (len(y.shape) == 2 and y.dtype.kind in "iub")


def _columns(contents: Contents, names: Names, used: set[str]) -> tuple[str, ...]:
    """The columns of a table that a sample is made of: those without another role."""
    if names.columns:
        for name in names.columns:
            contents[name]  # raises where there is none
        return names.columns
    columns = tuple(n for n in contents if n not in used and not _is_split(contents, n))
    if not columns:
        raise InputError(f"{contents.path} has no column of numbers beside its labels.")
    return columns


def _is_split(contents: Contents, name: str) -> bool:
    """Whether a column says which split each row belongs to."""
    return name.lower() == "split" and contents[name].dtype.kind == "U"


def _stacked(contents: Contents, columns: Sequence[str]) -> NDArray[Any]:
    """The columns side by side, (N, number of columns), in a type that holds them all.

    Raises:
        InputError: a cell that is no number, by its row and column.
    """
    found = []
    for name in columns:
        column = np.asarray(contents[name][:])
        if column.dtype.kind == "U":
            row = next((i for i, cell in enumerate(column) if not _is_number(cell)), None)
            if row is None:
                found.append(column.astype(np.float64))
                continue
            raise InputError(
                f"{contents.title(name)} is {str(column[row])!r} in row {row} (from 0), no number: "
                f"name it as the labels (labels = {name!r}), or list the columns that are samples "
                "(columns = [...])."
            )
        if column.ndim > 1:
            raise InputError(
                f"{contents.title(name)} holds arrays {column.shape[1:]}, others hold numbers: "
                f"write data = {name!r}, or list the columns that are samples (columns = [...])."
            )
        found.append(column)
    return np.stack(found, 1)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _by_column(
    contents: Contents, parts: dict[str, Part], used: set[str], notes: list[str]
) -> Roles:
    """The parts, cut by a column "split" where there is one; what has no role is named."""
    splitting = next((n for n in contents if _is_split(contents, n)), None)
    if splitting is not None and "all" in parts and splitting not in used:
        used.add(splitting)
        parts = _cut(parts["all"], np.asarray(contents[splitting][:]), contents.title(splitting))
        notes.append(f"{contents.title(splitting)} is the split.")
    unused = [name for name in contents if name not in used]
    if unused:
        notes.append(f"{contents.path}: not used: {', '.join(unused)}.")
    # The training split comes first, in whatever order the file has them.
    return Roles({split: parts[split] for split in ORDER if split in parts}, tuple(notes))


def _cut(whole: Part, words: NDArray[Any], title: str) -> dict[str, Part]:
    """A part as training and held-out samples, by a word for each."""
    splits = [SPLITS.get(str(word).lower(), "") for word in words]
    if len(words) != whole.samples.shape[0] or "" in splits:
        row = splits.index("") if "" in splits else len(words)
        word = str(words[row]) if row < len(words) else "nothing"
        raise InputError(f"{title} is {word!r} in row {row}: {unknown('split', word, SPLITS)}")
    held = "test" if "test" in splits else "validation"
    parts = {}
    for split, name in (("train", "train"), (held, "test")):
        rows = np.asarray([one == split for one in splits])
        if not rows.any():
            raise InputError(f"{title} has no row of the {name} split.")
        labels = None if whole.labels is None else np.asarray(whole.labels[:])[rows]
        samples = np.asarray(whole.samples[:])[rows]
        parts[name] = Part(samples, whole.title, labels, whole.labels_title, whole.columns)
    return parts


def _listed(names: Mapping[str, str]) -> str:
    """`x_train and x_test`."""
    return " and ".join("its columns" if name == TABLE else name for name in names.values())
