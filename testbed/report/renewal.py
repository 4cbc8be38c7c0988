"""The report of a study that runs again: it is written only where what it is made of has changed.

`report.json` in the study's folder holds two digests: of all that the report was made of, and of
what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from testbed import errors
from testbed.trial.storage import Store
from testbed.trial.study_folder import StudyFolder

FILE = "report.json"
PAGE = "report.html"
MADE_OF = ("study.json", "tweedie.json", "looks.json", "coefficients.csv")
"""The study's own files that the report reads, besides those of its data and its trials."""
UNREAD = (
    *("checkpoint", "checkpoint.previous", "weights.safetensors", "states.safetensors"),
    "averages",
)
"""What a trial has or has not, but whose content the report does not read."""
OTHERS = ("rows.parquet",)
"""What MLflow's tracker adds to a trial's folder, whenever it comes to it."""
SOURCES = (".py", ".j2")


def renew(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """Writes the report as `write` does, unless it is the one that would be written.

    Args:
        folder: The study's folder.
        say: It is called with a line for each phase.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder holds no study.
        OSError: The folder cannot be written to.
    """
    files = StudyFolder.at(folder)
    stored = files.json_or_empty(FILE)
    if stored and stored == _digests(files):
        say("the report is up to date")
        return folder / PAGE
    from testbed.report import write  # it takes a second to import

    page = write(folder, say)
    # Only now: the report itself adds to looks.json, which it is made of.
    files.put_json(FILE, _digests(files))
    return page


def _digests(files: StudyFolder) -> dict[str, str]:
    """Of the package's sources, of what the report is made of, and of what was written."""
    return {
        "sources": _digest(_sources()),
        "made_of": _digest(_made_of(files)),
        "written": _digest(_written(files)),
    }


def _sources() -> Iterator[tuple[str, bytes]]:
    core = Path(errors.__file__).parent
    for path in sorted(core.rglob("*")):
        if path.suffix in SOURCES:
            yield path.relative_to(core).as_posix(), path.read_bytes()


def _made_of(files: StudyFolder) -> Iterator[tuple[str, bytes]]:
    for name in MADE_OF:
        yield name, files.store.get(name) or b""
    yield from _contents(files.data.store, "data/")
    for listed in files.json_or_empty("study.json").get("trials") or ():
        yield from _contents(files.trial(listed["id"]).store, f"{listed['id']}/")


def _written(files: StudyFolder) -> Iterator[tuple[str, bytes]]:
    written = files.report.store
    yield PAGE, written.get(PAGE) or b""
    for name in ("tables", "figures"):
        yield from _contents(written.folder(name), f"{name}/")


def _contents(store: Store, prefix: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files of a store, without those that the report does not read."""
    for name in (one for one in store.names() if one not in OTHERS):
        if name in UNREAD:
            yield prefix + name, b""
        elif store.has(name):
            yield prefix + name, store.get(name) or b""
        else:
            yield from _contents(store.folder(name), f"{prefix}{name}/")


def _digest(contents: Iterable[tuple[str, bytes]]) -> str:
    sha = hashlib.sha256()
    for name, content in contents:
        sha.update(f"{name} {len(content)} ".encode() + content)
    return sha.hexdigest()[:16]
