"""The errors a user can cause: one clear message each, and the exit code of the command line."""

from __future__ import annotations

import difflib
import errno
import inspect
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(problem: BaseException) -> bool:
    """Whether a disk is full, a quota is used up, or a file may not grow."""
    return isinstance(problem, OSError) and problem.errno in FULL


class InputError(ValueError):
    """Bad input. The message names what was given, what was expected, and the nearest valid word.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class PluginError(InputError):
    """A plugin that is broken, duplicated, or asked for and missing."""


class ComponentError(PluginError):
    """A function of a component that raised, or returned what it should not."""


class UnknownName(InputError, LookupError):
    """A name that no loaded component has."""


def said(problem: BaseException, file: str = "") -> str:
    """`KeyError: 'x'`: an exception of somebody else's code in one line; one of ours without class.

    Where the traceback passes through `file`, `(name.py, line 7)` follows, and the line itself
    where it is no Python.
    """
    text = " ".join(str(problem).partition("\nException raised from ")[0].split())
    if isinstance(problem, InputError):
        return text
    text += _renamed(text)
    if isinstance(problem, SyntaxError):
        return f"{type(problem).__name__}: {text}" + f": {(problem.text or '').strip()}".rstrip(
            ": "
        )
    lines = [at.lineno for at in traceback.extract_tb(problem.__traceback__) if at.filename == file]
    place = f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
    return (f"{type(problem).__name__}: {text}" if text else type(problem).__name__) + place


UNEXPECTED = re.compile(r"(\w+)\.__(?:init|new)__\(\) got an unexpected keyword argument '(\w+)'")


def _renamed(text: str) -> str:
    """What an unknown keyword of a class of testbed's is called: `c_in is called in_`."""
    found = UNEXPECTED.fullmatch(text)
    kind = found and getattr(sys.modules.get("testbed"), found[1], None)
    if not found or not isinstance(kind, type):
        return ""
    names, word = list(inspect.signature(kind).parameters), found[2]
    for name in names:
        if word.removeprefix("c_") == name.rstrip("_"):
            return f"; {word} is called {name}"
    hint = did_you_mean(word, names).rstrip("?").replace(" Did", "; did")
    return (f"{hint}?" if hint else "") + f" It takes {', '.join(names)}."


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `words`, or an empty string when none is close."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(what: str, word: str, words: Iterable[str]) -> str:
    """`Unknown WHAT 'word'. Did you mean ...? Known: a, b, c.`"""
    known = sorted(words)
    return (
        f"Unknown {what} {word!r}.{did_you_mean(word, known)} Known: {', '.join(known) or 'none'}."
    )
