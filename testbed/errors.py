"""The errors a user can cause: one clear message each, and the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message names what was given, what was expected, and the nearest valid word.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class PluginError(InputError):
    """A plugin that is broken, duplicated, or asked for and missing."""


class UnknownName(InputError, LookupError):
    """A name that no loaded component has."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest of `words`, or an empty string when none is close."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown(what: str, word: str, words: Iterable[str]) -> str:
    """`Unknown WHAT 'word'. Did you mean ...? Known: a, b, c.`"""
    known = sorted(words)
    return (
        f"Unknown {what} {word!r}.{did_you_mean(word, known)} Known: {', '.join(known) or 'none'}."
    )
