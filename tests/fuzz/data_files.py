"""Data files: arrays, tables of noise levels and what a trial has left behind, damaged."""

import io
import json
import pickle
import struct
from random import Random
from typing import Any

import numpy as np
from fuzz import command_lines, hostile
from fuzz.inputs import Change, Input

STUDY = """
[study]
name = "a"
[base]
network = {{ name = "mlp", width = 4, depth = 1 }}
training = {{ steps = 1, batch = 4 }}
seeds = 1
dataset = {{ name = "array", path = "{file}"{more} }}
[grid]
parameterization = ["{parameterization}"]
"""
OPTIONS = (
    "", "", "", ', data = "y"', ', data = ""', ', labels = "nothing"', ", test = 0.5", ", test = 0",
    ", test = nan", ", test = 1e300", ", scale = 0", ", scale = inf", ", scale = 1e39",
    ", shift = nan", ", shift = 1e300", ", split_seed = -1", ", split_seed = 99999999999999999999",
    ", scale = -1e-300", ', labels = "x"', ", test = -0.2",
)  # fmt: skip
SHAPES = (
    (), (0,), (1,), (2,), (3,), (40,), (0, 2), (2, 0), (1, 2), (2, 2), (5, 2), (40, 2), (40, 1),
    (40, 1, 4, 4), (40, 0, 3), (3, 1, 1, 1, 1, 1), (40, 300),
)  # fmt: skip
DTYPES = (
    "f8", "f8", "f4", "f4", "f2", "i8", "i4", "u1", "i1", "u8", ">f8", "<i2", "f8", "c16", "?",
    "U3", "S2", "M8[s]", "m8[s]", "V4", "O",
)  # fmt: skip
FILLS = ("normal", "normal", "normal", "zero", "constant", "nan", "inf", "huge", "tiny", "range")
MAGIC = b"\x93NUMPY"
HEADERS = (
    "{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': 'nothing', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': [('a', '<f8'), ('b', '<i4')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f8', 'fortran_order': 3, 'shape': (2,), }",
    "{'descr': '<f8', 'shape': (2,), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': 'x', }",
    "__import__('os').mkdir('unpickled')",
    "{" * 500,
    "(" * 3000,
    "'" + "9" * 9000,
    "",
)


class Trap:
    """Unpickled, it leaves a folder behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("unpickled",)


def make(chance: Random) -> Input:
    """A damaged file, and the command that reads it."""
    how = chance.random()
    if how < 0.62:
        return _array(chance)
    if how < 0.80:
        return _table(chance)
    return _trial(chance)


def _array(chance: Random) -> Input:
    name, content = chance.choice([npy, npy, npz, npz, other])(chance)
    study = STUDY.format(
        file=name,
        more=chance.choice(OPTIONS),
        parameterization=chance.choice(["v", "eps", "edm", "flow", "score"]),
    )
    words = ["plan", "a.toml", "--out", "out"]
    if chance.random() < 0.02:
        words = ["study", "a.toml", "--jobs", "0", "--no-mlflow", "--out", "out"]
        words += ["--set", "evaluation={levels=2, draws=8, samples=4, steps=1}"]
    return Input(tuple(words), {"a.toml": study.encode(), name: content})


def _table(chance: Random) -> Input:
    words = ["audit", "factory.py:factory", "--part", "algebra", "--time-argument", "index"]
    words += ["--table", "t.npy"]
    content = npy(chance)[1] if chance.random() < 0.6 else npy_of(_levels(chance))
    if chance.random() < 0.15:
        content = chance.choice(hostile.DAMAGE)(chance, content)
    factory = b"def factory():\n    return lambda x, i: x\n"
    return Input(tuple(words), {"t.npy": content, "factory.py": factory})


def _levels(chance: Random) -> Any:
    """Noise levels that may be all right."""
    n = chance.choice([1, 2, 3, 50])
    levels = np.cumsum(np.array([chance.random() for _ in range(n)]))
    return levels * chance.choice([1.0, 1e-3, 100.0, 1e300, 1e-300, -1.0, np.nan, np.inf])


# --- arrays ---------------------------------------------------------------------------------------


def values(chance: Random) -> Any:
    """An array of any shape, type and content."""
    shape, dtype, fill = chance.choice(SHAPES), chance.choice(DTYPES), chance.choice(FILLS)
    numbers = np.random.default_rng(chance.randrange(2**32)).normal(size=shape)
    filled = {
        "zero": 0 * numbers,
        "constant": 0 * numbers + 3,
        "nan": np.where(numbers > 1, np.nan, numbers),
        "inf": np.where(numbers > 1, np.inf, numbers),
        "huge": 1e300 * numbers,
        "tiny": 1e-300 * numbers,
        "range": np.arange(numbers.size).reshape(shape),
    }.get(fill, numbers)
    if dtype == "O":
        found = np.empty(shape, dtype=object)
        found.fill(Trap())
        return found
    with np.errstate(all="ignore"):
        if dtype.startswith(("M", "m", "V")):
            return np.zeros(shape, dtype=dtype)
        return np.asarray(filled).astype(dtype)


def npy_of(array: Any) -> bytes:
    """The bytes of a .npy file; objects are pickled."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def headed(header: str, version: int = 1) -> bytes:
    """The beginning of a .npy file with this header."""
    text = f"{header}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return MAGIC + bytes([version, 0]) + size + text


def npy(chance: Random) -> tuple[str, bytes]:
    """A .npy file, whole or damaged, of this or another name."""
    how = chance.random()
    if how < 0.1:
        header = chance.choice(HEADERS)
        content = headed(header, chance.choice([1, 2, 3, 9])) + chance.randbytes(48)
    elif how < 0.2:
        content = pickle.dumps(chance.choice([Trap(), [1, 2], np.zeros((5, 2))]))
    else:
        content = npy_of(values(chance))
    if chance.random() < 0.2:
        content = chance.choice(hostile.DAMAGE)(chance, content)
    return chance.choice(["d.npy", "d.npy", "d.npz", "d", "d.csv"]), content


def npz(chance: Random) -> tuple[str, bytes]:
    """A .npz file, whole or damaged, with or without the arrays that are looked for."""
    names = [*("x" if chance.random() < 0.9 else ""), *("y" if chance.random() < 0.6 else "")]
    names += ["nothing"] * (chance.random() < 0.2)
    arrays = {name: values(chance) for name in names}
    if "x" in arrays and chance.random() < 0.5:
        arrays["x"] = np.random.default_rng(0).normal(size=(40, 2))
    if "y" in arrays and chance.random() < 0.5:
        arrays["y"] = np.arange(len(arrays["x"]) if np.ndim(arrays.get("x", 0)) else 3)
    file = io.BytesIO()
    save = chance.choice([np.savez, np.savez_compressed])
    save(file, **arrays)
    content = file.getvalue()
    if chance.random() < 0.3:
        content = chance.choice(hostile.DAMAGE)(chance, content)
    return "d.npz", content


def other(chance: Random) -> tuple[str, bytes]:
    """A file of another kind."""
    content = chance.choice(
        [b"x,y\n1,2\n", b"", b"\n", b"1\n" * 50, b"PK\x03\x04", b"PK\x05\x06" + bytes(18), MAGIC,
         b"\x1f\x8b\x08", b"<html>", b"{}", b"\x80\x04.", b"(lp0\n.", bytes(1000)]
    )  # fmt: skip
    return chance.choice(["d.csv", "d.npy", "d.npz", "d.txt", "d"]), content


# --- trials ---------------------------------------------------------------------------------------

READERS = (
    ("sample", command_lines.FOLDER, "-n", "2", "--out", "out/a.npy"),
    ("sample", command_lines.FOLDER, "-n", "2", "--out", "out/a.png"),
    ("audit", command_lines.FOLDER, "--part", "algebra"),
    ("plan", "tiny.toml"),
    ("report", "runs/tiny"),
)
READ = (
    *(
        f"{command_lines.FOLDER}/{name}"
        for name in (
            "trial.json", "result.json", "weights.safetensors", "levels.csv", "rows.jsonl",
            "tweedie.json", "schedule.json", "samples.safetensors",
        )
    ),
    "runs/tiny/study.json",
    "runs/tiny/coefficients.csv",
)  # fmt: skip


def _trial(chance: Random) -> Input:
    """A finished study with one of its files damaged."""
    words, name = chance.choice(READERS), chance.choice(READ)
    change = Change(chance.choice(CHANGES), chance.randrange(2**32))
    files = {"tiny.toml": command_lines.TINY.encode()}
    return Input(words, files, folders=("out",), trained=True, changes={name: change})


def _json(chance: Random, content: bytes) -> bytes:
    """Another value or a missing key somewhere in JSON; other files lose a line."""
    try:
        found = json.loads(content)
    except ValueError:
        return hostile.lines(chance, content)
    if chance.random() < 0.1 or not isinstance(found, dict):
        return chance.choice([b"[]", b"3", b"null", b"{}", b'"x"', b"[" * 9999]).strip()
    table = found
    for _ in range(chance.randint(0, 4)):
        deeper = [inner for inner in table.values() if isinstance(inner, dict) and inner]
        table = chance.choice(deeper) if deeper else table
    key = chance.choice(sorted(table))
    if chance.random() < 0.5:
        del table[key]
    else:
        table[key] = chance.choice([None, 3, "x", [], {}, -1, 1e400, [1, "a"], {"name": "x"}])
    return json.dumps(found).encode()


CHANGES = (*hostile.DAMAGE, hostile.lines, _json, _json, _json, _json)
