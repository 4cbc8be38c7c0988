"""The report of a study that runs again: it is written only where what it is made of has changed.

`report.json` in the study's folder holds two digests: of all that the report was made of, and of
what was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from testbed import errors
from testbed.trial.folders import StudyFolder

FILE = "report.json"
PAGE = "report.html"
MADE_OF = ("study.json", "tweedie.json", "looks.json", "coefficients.csv")
"""The study's own files that the report reads, besides those of its data and its trials."""
UNREAD = ("checkpoint", "checkpoint.previous", "weights.safetensors", "states.safetensors")
"""Files of a trial that are there or not, but whose content the report does not read."""
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
    """Of what the report is made of, this package included, and of what was written."""
    core, folder = Path(errors.__file__).parent, files.path
    sources = (path for path in core.rglob("*") if path.suffix in SOURCES)
    return {
        "sources": _digest(core, sources),
        "made_of": _digest(folder, _made_of(files)),
        "written": _digest(folder, _written(folder)),
    }


def _made_of(files: StudyFolder) -> Iterator[Path]:
    folder = files.path
    yield from (folder / name for name in MADE_OF)
    yield from (folder / "data").rglob("*")
    for listed in files.json_or_empty("study.json").get("trials") or ():
        yield from files.trial(listed["id"]).path.rglob("*")


def _written(folder: Path) -> Iterator[Path]:
    yield folder / PAGE
    yield from (folder / "tables").glob("*")
    yield from (folder / "figures").glob("*")


def _digest(folder: Path, paths: Iterable[Path]) -> str:
    """Of the names and the content of files."""
    sha = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            name = path.relative_to(folder)
            content = b"" if path.name in UNREAD or "averages" in name.parts else path.read_bytes()
            sha.update(f"{name.as_posix()} {len(content)} ".encode() + content)
    return sha.hexdigest()[:16]
