"""Plain values read from TOML and written as TOML."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from testbed.errors import InputError

BARE = re.compile(r"[A-Za-z0-9_-]+")
SMALLEST, LARGEST = -(2**63), 2**63 - 1
"""The integers that TOML promises to hold (TOML 1.0, "Integer")."""


def read(text: str) -> dict[str, Any]:
    """The tables and values of a text in TOML.

    Python's own library also reads integers of more than 64 bits, which no float and no generator
    of random numbers takes; TOML asks that they be an error.

    Raises:
        ValueError: the text is no TOML, or an integer of it has more than 64 bits.
        RecursionError: its values lie too deep within each other.
    """
    found = tomllib.loads(text)
    for where, number in _integers(found):
        if not SMALLEST <= number <= LARGEST:
            digits = str(number)
            raise ValueError(
                f"{where} = {digits[:10]}... is an integer of {len(digits.lstrip('-'))} digits; "
                f"TOML holds those of 64 bits, from {SMALLEST} to {LARGEST}"
            )
    return found


def _integers(content: Any, where: str = "") -> Iterable[tuple[str, int]]:
    """Every integer inside, and the dotted key that it stands at."""
    if isinstance(content, Mapping):
        for name, inner in content.items():
            yield from _integers(inner, f"{where}.{key(name)}" if where else key(name))
    elif isinstance(content, list):
        for index, inner in enumerate(content):
            yield from _integers(inner, f"{where}[{index}]")
    elif isinstance(content, int):
        yield where, content


def key(name: str) -> str:
    """A key, in quotes where it needs them."""
    return name if BARE.fullmatch(name) else _quoted(name)


def value(content: Any, where: str = "") -> str:
    """A string, a truth value, a number, a list or a table, in one line.

    Args:
        content: the value; a tuple is written as a list.
        where: the dotted key that it stands at, for the message.

    Raises:
        InputError: TOML has no such value.
    """
    if isinstance(content, bool):
        return "true" if content else "false"
    if isinstance(content, str):
        return _quoted(content)
    if isinstance(content, int):
        return str(content)
    if isinstance(content, float):
        return repr(content) if math.isfinite(content) else str(content)
    if isinstance(content, list | tuple):
        return "[" + ", ".join(value(one, f"{where}[{i}]") for i, one in enumerate(content)) + "]"
    if isinstance(content, Mapping):
        pairs = (f"{key(str(k))} = {value(v, f'{where}.{k}')}" for k, v in content.items())
        return "{ " + ", ".join(pairs) + " }" if content else "{}"
    raise InputError(
        f"{where} = {content!r}: expected a string, a number, true or false, a list or a table."
    )


def _quoted(text: str) -> str:
    # The one character that JSON leaves as it is and TOML does not allow.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def table(name: str, content: Mapping[str, Any]) -> str:
    """`[name]` and a line for each key."""
    return "\n".join([f"[{name}]", *_lines(name, content)]) + "\n"


def entry(name: str, content: Mapping[str, Any]) -> str:
    """`[[name]]`, one of a list of tables, and a line for each key."""
    return "\n".join([f"[[{name}]]", *_lines(name, content)]) + "\n"


def _lines(name: str, content: Mapping[str, Any]) -> list[str]:
    return [f"{key(str(k))} = {value(v, f'{name}.{k}')}" for k, v in content.items()]
