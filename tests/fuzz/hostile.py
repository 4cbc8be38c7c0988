"""Values and changes that nobody asked for: the vocabulary of every kind of case."""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz_0123456789"
STRINGS = (
    "", " ", "x", "v", "eps", "../up", "/", ".", "..", "none", "recipe", "nan", "True", "é", "σ",
    "数据", "\U0001f600", "a b", "[/red]", "[bold]", "%s", "{name}", "{0}", "a.b", "a/b", "no:v",
    "\t", "a\nb", "x" * 3000, "--help", "<script>", "'", '"', "\\", "__class__", "0",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 0.0, -0.0, 0.5, -0.5, 1.5, 1e-300, 5e-324, 1e-9, 1e9, 1e39, 1e300, 1.7e308,
    math.nan, math.inf, -math.inf, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
    10**400,
)  # fmt: skip
OTHERS = (
    True, False, [], {}, [[]], [{}], [1, 2], ["v"], ["v", "v"], [1, "a"], {"name": "v"},
    {"name": 3}, {"name": ""}, {"name": "mlp", "options": 3}, {"a": {"b": {"c": 1}}}, [0.9],
    {"assumed": 1}, {"assumed": "x"}, {"options": {}},
)  # fmt: skip


def value(chance: Random) -> Any:
    """Any of them: a string, a number or something nested."""
    return chance.choice(chance.choice([STRINGS, NUMBERS, NUMBERS, OTHERS]))


def typo(chance: Random, word: str) -> str:
    """A word at an edit distance of one or two: a letter more, less, another, or two swapped."""
    for _ in range(chance.choice([1, 1, 2])):
        at, letter = chance.randrange(len(word) + 1), chance.choice(LETTERS)
        word = chance.choice(
            [
                word[:at] + letter + word[at:],
                word[:at] + word[at + 1 :],
                word[:at] + letter + word[at + 1 :],
                word[:at] + word[at + 1 : at + 2] + word[at : at + 1] + word[at + 2 :],
            ]
        )
    return word


# --- files ----------------------------------------------------------------------------------------


def cut(chance: Random, content: bytes) -> bytes:
    """Only its beginning."""
    return content[: chance.randrange(len(content) + 1)]


def flipped(chance: Random, content: bytes) -> bytes:
    """A few bytes changed."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8) if content else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def inserted(chance: Random, content: bytes) -> bytes:
    """A few random bytes more."""
    at = chance.randrange(len(content) + 1)
    return content[:at] + chance.randbytes(chance.randint(1, 20)) + content[at:]


def noise(chance: Random, content: bytes) -> bytes:
    """Random bytes, or none at all."""
    return chance.randbytes(chance.choice([0, 1, 10, 1000]))


def recoded(chance: Random, content: bytes) -> bytes:
    """In another encoding than UTF-8."""
    text = "# é σ\n" + content.decode(errors="replace")
    codec = chance.choice(["utf-16", "utf-32", "latin-1", "utf-8-sig", "cp037"])
    return text.encode(codec, errors="replace")


def lines(chance: Random, content: bytes) -> bytes:
    """A line twice, away, or in another's place."""
    found = content.splitlines(keepends=True)
    if not found:
        return content
    at, other = chance.randrange(len(found)), chance.randrange(len(found))
    how = chance.randrange(3)
    if how == 0:
        found.insert(other, found[at])
    elif how == 1:
        del found[at]
    else:
        found[at], found[other] = found[other], found[at]
    return b"".join(found)


def misspelt(chance: Random, content: bytes) -> bytes:
    """A typo somewhere."""
    text = content.decode(errors="replace")
    at = chance.randrange(len(text) + 1)
    return (text[:at] + typo(chance, text[at : at + 6]) + text[at + 6 :]).encode()


DAMAGE: tuple[Callable[[Random, bytes], bytes], ...] = (cut, flipped, inserted, noise)
EDITS = (*DAMAGE, recoded, lines, lines, lines, misspelt, misspelt, misspelt)


# --- TOML -----------------------------------------------------------------------------------------


def toml(table: Mapping[str, Any]) -> str:
    """A document with every table in line; keys quoted where they must be."""
    return "".join(f"{_key(key)} = {toml_value(inner)}\n" for key, inner in table.items())


def toml_value(found: Any) -> str:
    """A value in TOML."""
    if isinstance(found, Mapping):
        inner = ", ".join(f"{_key(key)} = {toml_value(one)}" for key, one in found.items())
        return f"{{ {inner} }}"
    if isinstance(found, list | tuple):
        return f"[{', '.join(map(toml_value, found))}]"
    if isinstance(found, str):
        return _quoted(found)
    return str(found).lower() if isinstance(found, bool) else str(found)


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "a").replace("-", "a").isalnum()
    return key if plain else _quoted(key)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (
        '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    )
