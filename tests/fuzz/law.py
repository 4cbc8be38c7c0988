"""The law of bad input: one clear message and exit code 2, or a valid run; nothing is left behind.

A case runs in this process, in a folder of its own, with a time limit and a limit of memory.
"""

import atexit
import contextlib
import functools
import itertools
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

from fuzz import command_lines, data_files, plugin_files, study_files
from fuzz.inputs import TRIAL, Input, Maker, chances
from helpers.command_line import run_here

from testbed.registry import default_registry
from testbed.study import step_times

MAKERS: dict[str, Maker] = {
    "study": study_files.make,
    "command": command_lines.make,
    "plugin": plugin_files.make,
    "data": data_files.make,
}
SECONDS = 20
MEMORY = 4 << 30
CODES = {"plugins": {0, 1, 2}, "check": {0, 1, 2}, "audit": {0, 2, 3}, "study": {0, 1, 2, 3}}
NOTICE = re.compile(r"^testbed: plugin .* is broken and left out: ")
MESSAGE = re.compile(r"^testbed: ", flags=re.MULTILINE)
WORST = 20_000


class Hang(BaseException):
    """A case that took longer than the limit; no `except Exception` holds it back."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Args:
        code: of the command, or None where something escaped from it.
        out, err: what it printed; `err` ends with the traceback of what escaped.
        written: files outside of the folders that it may write to.
        seconds: that it took.
    """

    code: int | None
    out: str
    err: str
    written: tuple[str, ...]
    seconds: float


def faults(given: Input, done: Outcome) -> list[str]:
    """Which parts of the law a case breaks, in words; none if it holds."""
    command = next((word for word in given.words if not word.startswith("-")), "")
    found = []
    if done.code is None:
        found.append(f"it raised: {done.err.strip().splitlines()[-1]}")
    elif done.code not in CODES.get(command, {0, 2}):
        found.append(f"exit code {done.code}")
    shown = done.err if "--json" in given.words else done.out + done.err
    if "Traceback (most recent call last)" in shown:
        found.append("a traceback")
    found += [f"wrote {name}" for name in done.written]
    lines = done.err.splitlines(keepends=True)
    rest = "".join(line for line in lines if not NOTICE.match(line))
    if command == "study" and "--json" in given.words:  # its progress is on stderr
        rest = rest[max(0, rest.find("testbed: ")) :] if done.code == 2 else ""
    if done.code == 2:
        found += _of_message(rest, done.out)
    elif done.code is not None and rest.strip():
        found.append(f"it says on stderr: {rest.strip()[:200]}")
    try:
        done.out.encode()
    except UnicodeEncodeError:  # on stderr Python escapes it
        found.append("what it prints is not UTF-8")
    return found


def _of_message(err: str, out: str) -> list[str]:
    """What is wrong with the message of exit code 2."""
    if (err or out).startswith("Usage:"):
        return [] if err.count("\nError: ") <= 1 else ["several messages"]
    found = []
    if len(MESSAGE.findall(err)) != 1 or not err.startswith("testbed: "):
        found.append("not exactly one message")
    text = err.removeprefix("testbed: ").strip()
    if len(text) < 15 or "internal" in text.lower() or "frame #" in text:
        found.append("no clear message")
    if len(text) > WORST:
        found.append(f"a message of {len(text)} characters")
    return found


# --- running --------------------------------------------------------------------------------------


def try_case(kind: str, number: int, folder: Path) -> tuple[Input, Outcome, list[str]]:
    """Makes a case, runs it below `folder`, and holds it against the law."""
    given = MAKERS[kind](chances(kind, number))
    work = folder / f"{kind}-{number}"
    try:
        done = run(given, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return given, done, faults(given, done)


def run(given: Input, folder: Path) -> Outcome:
    """Runs the command in `folder`/here and watches what it writes, there and elsewhere."""
    prepared()
    here = folder / "here"
    here.mkdir(parents=True)
    words = lay_out(given, here)
    allowed = [here / name for name in outputs(words)]
    kept = scratch() / "kept"  # by torch, of what it has compiled, and in the user's cache
    before, modules, paths = contents(folder), set(sys.modules), list(sys.path)
    start, code, out, err = perf_counter(), None, "", ""
    with watched() as opened:
        try:
            with limited(), mock.patch.object(step_times, "BLOCK", 1):  # a shorter measurement
                places = {"TORCHINDUCTOR_CACHE_DIR": str(kept), "XDG_CACHE_HOME": str(kept)}
                done = run_here(here, *words, CUDA_VISIBLE_DEVICES="", **places)
            code, out, err = done.code, done.out, done.err
        except (Hang, Exception):
            err = traceback.format_exc()
    seconds = perf_counter() - start
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    changed = {name for name, state in contents(folder).items() if before.get(name) != state}
    gone = before.keys() - contents(folder).keys()
    named = {folder / name for name in changed | gone} | {Path(name) for name in opened}
    bad = [str(path) for path in sorted(named) if not _may(path, [*allowed, kept])]
    return Outcome(code, out, err, tuple(bad), seconds)


def outputs(words: Sequence[str]) -> list[str]:
    """Where a command may write: what --out says; a study and its report, to the study's folder."""
    command = words[0] if words else ""
    named = [value for flag, value in itertools.pairwise(words) if flag == "--out"]
    named += [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
    if command == "study":
        return named or ["runs"]
    if command in ("sample", "report"):  # they make the folders that are not there
        named += [Path(name).parts[0] for name in named if Path(name).parts]
    if command == "report":
        return named or [word for word in words[1:] if word.startswith("runs")]
    return named if command in ("audit", "explain", "new", "sample") else []


def _may(path: Path, allowed: Sequence[Path]) -> bool:
    """Whether a file may be written."""
    text = Path(os.path.normpath(path))
    return any(text.is_relative_to(os.path.normpath(name)) for name in allowed)


def lay_out(given: Input, here: Path) -> list[str]:
    """Makes the files of a case and returns its words, those of a trial filled in."""
    trial = ""
    if given.trained:
        shutil.copytree(trained(), here / "runs" / "tiny", dirs_exist_ok=True)
        (trial,) = os.listdir(here / "runs" / "tiny" / "trials")
    for name in given.folders:
        (here / name).mkdir(parents=True, exist_ok=True)
    for name, content in given.files.items():
        file = here / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for name, change in given.changes.items():
        file = here / name.replace(TRIAL, trial)
        file.write_bytes(change(file.read_bytes()))
    for name, target in given.links.items():
        (here / name).symlink_to(target)
    for name in given.unreadable:
        (here / name).chmod(0)
    return [word.replace(TRIAL, trial) for word in given.words]


@functools.cache
def scratch() -> Path:
    """A folder of this process's own, gone when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def trained() -> Path:
    """A finished study of two steps."""
    folder = scratch() / "trained"
    folder.mkdir()
    (folder / "tiny.toml").write_text(command_lines.TINY)
    done = run_here(folder, "study", "tiny.toml", "--jobs", "0", "--no-mlflow")
    assert done.code == 0, done.err
    return folder / "runs" / "tiny"


@functools.cache
def prepared() -> None:
    """Imports and caches that the first case would otherwise pay for, once a process."""
    import matplotlib.font_manager

    default_registry()
    matplotlib.get_configdir(), matplotlib.get_cachedir()


# --- watching -------------------------------------------------------------------------------------

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MADE = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_opened: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    """Notes every path that Python opens for writing, or makes, or removes."""
    if _opened is None:
        return
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & WRITES:
            return
    elif event in MADE and arguments[-1] in (-1, arguments[0]):  # else in an open folder
        path = arguments[1] if event == "os.rename" else arguments[0]
        if event == "os.mkdir" and os.path.isdir(path):
            return
    else:
        return
    if isinstance(path, str | bytes | os.PathLike) and (name := os.fsdecode(path)) != os.devnull:
        _opened.append(os.path.abspath(name))


@functools.cache
def _listening() -> None:
    """Once a process: such a hook cannot be taken away."""
    sys.addaudithook(_listen)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """The paths that are written meanwhile; temporary files that are gone again do not count."""
    global _opened
    _listening()
    temporary = scratch() / "temporary"
    temporary.mkdir(exist_ok=True)
    found: list[str] = []
    _opened = found
    try:
        with (
            mock.patch.object(tempfile, "tempdir", str(temporary)),
            mock.patch.object(sys, "dont_write_bytecode", True),
        ):
            yield found
    finally:
        _opened = None
    inside = f"{temporary}{os.sep}"
    found[:] = [name for name in found if not name.startswith(inside)] + os.listdir(temporary)
    shutil.rmtree(temporary)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change; folders by name."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in folders:
            found[os.path.relpath(os.path.join(path, name), folder)] = (0, 0)
        for name in files:
            file = os.path.join(path, name)
            state = os.lstat(file)
            found[os.path.relpath(file, folder)] = (state.st_size, state.st_mtime_ns)
    return found


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """A limit of time and of memory, in the main thread."""

    def stop(*_: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    former: Any = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def told(kind: str, number: int, given: Input, done: Outcome, broken: Sequence[str]) -> str:
    """A case that breaks the law: what, the input, the command, and what it printed."""
    return (
        f"{kind} {number}: {'; '.join(broken)}\n$ {given}\n"
        f"--- exit code {done.code}, {done.seconds:.1f} s\n{done.out[-1500:]}\n{done.err[-3000:]}\n"
        f"Again: nox -s fuzz -- {kind} {number}\n"
    )
