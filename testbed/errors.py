"""The errors that a user can cause, with their messages and the exit code of the command line."""

from __future__ import annotations

import difflib
import errno
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_is_full(problem: BaseException) -> bool:
    """Whether the error says that a disk is full, a quota is used up, or a file may not grow."""
    return isinstance(problem, OSError) and problem.errno in FULL_DISK


class InputError(ValueError):
    """The input is wrong; the message has the input, what is expected and the nearest valid word.

    The command line prints the message without a traceback and exits with `exit_code`.

    `key` is that of the setting of a trial that it is about; "" where that is not known.
    """

    exit_code = 2
    key = ""

    def problems(self) -> Iterator[tuple[str, str]]:
        """The key and the message of each thing that is wrong."""
        for line in str(self).splitlines():
            yield self.key, line


class InputErrors(InputError):
    """Several things are wrong with an input, each of them told in a line."""

    def __init__(self, several: Iterable[InputError]) -> None:
        self.several = tuple(several)
        super().__init__("\n".join(dict.fromkeys(map(str, self.several))))

    def problems(self) -> Iterator[tuple[str, str]]:
        for one in self.several:
            yield from one.problems()


@contextmanager
def about(key: str) -> Iterator[None]:
    """What is refused within is about the setting of this key, where it is not known already."""
    try:
        yield
    except InputError as problem:
        problem.key = problem.key or key
        raise


class PluginError(InputError):
    """A plugin is broken or missing, or registers a component that is there already."""


class ComponentError(PluginError):
    """A function of a component raised, or returned what it should not."""


class UnknownName(InputError, LookupError):
    """No component, or no other thing of a kind, has this name."""


class MissingExtra(InputError):
    """A package is not installed that only some components need."""


def missing(what: str, package: str, extra: str) -> MissingExtra:
    """The error to be raised where `what` needs a package of an extra of the distribution."""
    return MissingExtra(
        f"{what} needs {package}, which is not installed: pip install "
        f"'diffusion-testbed[{extra}]' brings it."
    )


def one_line(problem: BaseException, file: str = "") -> str:
    """`KeyError: 'x'`: an exception in one line; an InputError is its message alone.

    Where the traceback passes through `file`, `(name.py, line 7)` follows; a syntax error is
    followed by the line of source.
    """
    text = " ".join(str(problem).partition("\nException raised from ")[0].split())
    if isinstance(problem, InputError):
        return text
    text += _keyword_hint(text)
    if isinstance(problem, SyntaxError):
        return f"{type(problem).__name__}: {text}" + f": {(problem.text or '').strip()}".rstrip(
            ": "
        )
    lines = [at.lineno for at in traceback.extract_tb(problem.__traceback__) if at.filename == file]
    place = f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
    return (f"{type(problem).__name__}: {text}" if text else type(problem).__name__) + place


UNEXPECTED = re.compile(r"(\w+)\.__(?:init|new)__\(\) got an unexpected keyword argument '(\w+)'")


def _keyword_hint(text: str) -> str:
    """The keyword that is meant by an unknown one of a class of testbed's: `c_in is called in_`."""
    match = UNEXPECTED.fullmatch(text)
    component = match and getattr(sys.modules.get("testbed"), match[1], None)
    if not match or not isinstance(component, type):
        return ""
    names, word = list(inspect.signature(component).parameters), match[2]
    for name in names:
        if word.removeprefix("c_") == name.rstrip("_"):
            return f"; {word} is called {name}"
    hint = did_you_mean(word, names).rstrip("?").replace(" Did", "; did")
    return (f"{hint}?" if hint else "") + f" It takes {', '.join(names)}."


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `words`, or an empty string when none is close."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def no_such(path: Path, what: str = "file") -> str:
    """`there is no such WHAT in /FOLDER. Did you mean ...?`, with its nearest name."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"there is no such {what}, nor a folder {folder}."
    names = [one.name for one in folder.iterdir()]
    return f"there is no such {what} in {folder}.{did_you_mean(path.name, names)}"


def absent(path: Path, what: str = "file") -> str:
    """As `no_such`; "" where there is something at the path."""
    return "" if path.exists() else no_such(path, what)


def unknown(what: str, word: str, words: Iterable[str]) -> str:
    """`Unknown WHAT 'word'. Did you mean ...? Known: a, b, c.`"""
    names = sorted(words)
    return (
        f"Unknown {what} {word!r}.{did_you_mean(word, names)} Known: {', '.join(names) or 'none'}."
    )
