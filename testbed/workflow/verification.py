"""Whether a packed study gives the same numbers again, and if not, where and by how much."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from testbed.errors import InputError
from testbed.registry import Registry
from testbed.report import comparisons, tables
from testbed.report.reading import read as read_results
from testbed.study import engines, plan, runner, session, study_file
from testbed.study.executors import selection
from testbed.study.runner import Progress
from testbed.trial.devices import device_of, one_thread
from testbed.trial.study_folder import StudyFolder
from testbed.workflow import archive
from testbed.workflow.archive import Manifest

APART = {
    "trials": ("id",),
    "stages": ("id",),
    "tweedie": ("error", "bound", "ratio"),
}
"""Columns that are not compared: an id holds the digest of the sources, which the versions tell;
an identity's error is rounding, which its verdict judges."""

NUMBERS = ("seed", "sigma", "at")
KEYS = (
    *("kind", "case", "arm", "variant", "against_arm", "against", "band", "curve"),
    *("average", *NUMBERS),
    *("metric", "law", "subject", "dtype"),
)
"""The columns that name a row of a table, as far as it has them."""


@dataclass(frozen=True)
class Difference:
    """A cell of a table that is not what it was.

    Args:
        table: the stem of the table's file.
        row: the words that stand in the row, such as case, arm, variant and metric.
        column: the column's name.
        before, after: the cell's text as packed and as it is now.
    """

    table: str
    row: str
    column: str
    before: str
    after: str

    @property
    def size(self) -> float:
        """The difference over the larger of both numbers; infinite where one is not finite."""
        a, b = _number(self.before), _number(self.after)
        if not (math.isfinite(a) and math.isfinite(b)):
            return math.inf
        return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0

    def __str__(self) -> str:
        by = f", by {self.size:.2g} of it" if math.isfinite(self.size) else ""
        where = f"{self.table}.csv, {self.row}, {self.column}"
        return f"{where}: {self.before or 'empty'} → {self.after or 'empty'}{by}"


@dataclass(frozen=True)
class Verification:
    """What became of a packed study that ran again.

    Args:
        changed: what of the archive is not as it was packed, a sentence for each file.
        differences: every cell that differs.
        cells: how many cells were compared.
        notes: versions and plugins that are not those of the archive, a sentence for each.
    """

    changed: list[str]
    differences: list[Difference]
    cells: int
    notes: list[str]

    @property
    def same(self) -> bool:
        """Whether the archive is whole and every cell is the same."""
        return not self.changed and not self.differences

    @property
    def verdicts(self) -> list[Difference]:
        """The verdicts of comparisons that are not what they were."""
        return [one for one in self.differences if one.column == "verdict"]

    def summary(self) -> str:
        """ "same", or "differs", with how many cells, the largest difference, and the verdicts."""
        if self.same:
            return f"same: all {self.cells} cells of the tables are what they were."
        if not self.differences:
            return f"differs: the archive was changed; all {self.cells} cells are what it says."
        counts: dict[str, int] = {}
        for one in self.differences:
            counts[one.table] = counts.get(one.table, 0) + 1
        where = ", ".join(f"{count} in {name}.csv" for name, count in counts.items())
        finite = [one for one in self.differences if math.isfinite(one.size)]
        largest = max(finite, key=lambda one: one.size, default=self.differences[0])
        turned = len(self.verdicts)
        return (
            f"differs: {len(self.differences)} of {self.cells} cells, {where}. The largest: "
            f"{largest}. {turned or 'No'} {'verdict' if turned == 1 else 'verdicts'} changed."
        )


def verify(
    file: Path,
    device: str = "",
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Verification:
    """Runs a packed study again and compares its tables, cell by cell.

    The code of the plugins in the archive runs.

    Args:
        file: the archive.
        device: where to run; empty for the class of device that it ran on.
        folder: where to run it; a temporary folder by default. A folder that holds a part of this
            run goes on from there.
        say: given a line for each phase and each trial that ended.

    Raises:
        InputError: it is no archive, the study cannot run here, or the folder holds a run of
            another archive.
        KeyboardInterrupt: Ctrl-C.
    """
    manifest, files = archive.read(file)
    changed = archive.changes(manifest, files)
    if "study.toml" not in files:
        raise InputError(f"{file}: expected an archive by testbed pack: it has no study.toml.")
    with tempfile.TemporaryDirectory() as temporary:
        at = folder or Path(temporary)
        _unpack(files, at / "packed")
        notes, again = _again(manifest, at, device, say)
    packed = {
        Path(name).stem: content for name, content in files.items() if name.startswith("tables/")
    }
    return Verification(changed, *compare_tables(packed, again), notes)


def compare_tables(
    before: Mapping[str, bytes], after: Mapping[str, bytes]
) -> tuple[list[Difference], int]:
    """Compares tables by the text of their cells; equal texts are equal numbers.

    Args:
        before, after: the content of CSV files by the stem of each.

    Returns:
        Every cell that differs, and how many cells were compared.

    Raises:
        InputError: a table cannot be read.
    """
    found: list[Difference] = []
    cells = 0
    for name in sorted({*before, *after}):
        differences, count = _compare(name, before.get(name), after.get(name))
        found += differences
        cells += count
    return found, cells


def _unpack(files: Mapping[str, bytes], at: Path) -> None:
    """Writes the files of an archive.

    Raises:
        InputError: the folder has files of another one, whose run would be taken for this one's.
    """
    there = (one for one in at.rglob("*") if one.is_file() and "__pycache__" not in one.parts)
    if any(files.get(one.relative_to(at).as_posix()) != one.read_bytes() for one in there):
        raise InputError(
            f"{at.parent} holds a run of another archive: name another folder with --out, or "
            "delete it."
        )
    for name, content in files.items():
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _again(
    manifest: Manifest, at: Path, device: str, say: Callable[[str], None]
) -> tuple[list[str], dict[str, bytes]]:
    """What is not as it was, and every table of the study that runs again, by its stem."""
    packed, folder = at / "packed", at / "run"
    files = StudyFolder.at(folder)
    places = sorted(path for path in (packed / "plugins").glob("*") if path.is_dir())
    registry = Registry(manifest.modules, places, strict=True)
    asked = manifest.overrides, manifest.only, manifest.seeds
    study = study_file.read(packed / "study.toml", *asked)
    with one_thread():
        for name in archive.KEPT:
            if (packed / name).is_file() and not files.has(name):
                files.store.put(name, (packed / name).read_bytes())
        planned = plan.make(study, registry, folder, device_of(device or manifest.device))
        engine = engines.choose(planned, registry, manifest.engine, manifest.slots)
        progress = Progress(ended=lambda one, status: say(f"{one.title}: {status}"), say=say)
        executor = selection.local(engine, planned.devices)
        ending = session.run(planned, registry, engine, executor, progress, say, _write_tables)
    if ending.outcome.interrupted:
        raise KeyboardInterrupt
    made = sorted((folder / "tables").glob("*.csv"))
    return list(_notes(manifest, registry)), {one.stem: one.read_bytes() for one in made}


def _write_tables(folder: Path) -> Path:
    """Writes every table of a study, in place of its report; returns its folder."""
    results = read_results(folder)
    # A report, or another version, may have left tables there that this one does not write.
    shutil.rmtree(folder / "tables", ignore_errors=True)
    (folder / "tables").mkdir()
    for name, table in tables.make(results, comparisons.make(results)).items():
        table.to_csv(folder / "tables" / f"{name}.csv", index=False)
    return folder


def _notes(manifest: Manifest, registry: Registry) -> Iterator[str]:
    """What the numbers depend on and is not as it was: a sentence each."""
    here = runner.versions()
    for name in sorted({*manifest.versions, *here}):
        before, after = manifest.versions.get(name, "none"), here.get(name, "none")
        if before != after:
            yield f"{name} was {before}, and is {after} here."
    loaded = {source.plugin: source.version for source in registry.provenance}
    for plugin in manifest.plugins:
        version = loaded.get(plugin.name)
        if version is None:
            yield f"Plugin {plugin.name} is not here."
        elif version != plugin.version:
            yield f"Plugin {plugin.name} was {plugin.version[:12]}, and is {version[:12]} here."


def _compare(name: str, before: bytes | None, after: bytes | None) -> tuple[list[Difference], int]:
    """The cells of a table that differ, and how many were compared."""
    if before is None or after is None:
        states = ("missing" if side is None else "there" for side in (before, after))
        return [Difference(name, "the whole table", "file", *states)], 1
    a, b = (_text(name, content) for content in (before, after))
    old, new = list(map(str, a)), list(map(str, b))
    columns = [column for column in old if column in new]
    found = [
        Difference(name, "every row", one, "there", "missing") for one in old if one not in new
    ]
    found += [
        Difference(name, "every row", one, "missing", "there") for one in new if one not in old
    ]
    if len(a) != len(b):
        found.append(Difference(name, "the whole table", "rows", str(len(a)), str(len(b))))
    rows = min(len(a), len(b))
    for column in columns:
        pairs = zip(a[column][:rows], b[column][:rows], strict=True)
        for row, texts in enumerate(pairs):
            if texts[0] != texts[1]:
                found.append(Difference(name, _label(a, row), column, *texts))
    return found, rows * len(columns)


def _label(table: pd.DataFrame, row: int) -> str:
    """The words that name a row: `digits · equal · edm · seed 0 · energy`."""
    texts = {name: str(table[name].iloc[row]) for name in KEYS if name in table}
    words = [f"{name} {text}" if name in NUMBERS else text for name, text in texts.items() if text]
    return " · ".join(words) or f"row {row + 1}"


def _text(name: str, content: bytes) -> pd.DataFrame:
    """A table whose cells are their texts: equal texts are equal numbers."""
    try:
        table = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except ValueError as problem:
        raise InputError(f"tables/{name}.csv cannot be read: {problem}") from None
    return table.drop(columns=[one for one in APART.get(name, ()) if one in table])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
