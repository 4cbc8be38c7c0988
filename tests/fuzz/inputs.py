"""A case of the fuzzer: a command line and the files that it finds, made from a kind and a number.

What a case holds follows from (kind, number) alone, so that its number is enough to run it again.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

SHOWN = 3000
TRIAL = "TRIAL"


@dataclass(frozen=True)
class Change:
    """What becomes of a file that is there already: the same for the same seed."""

    how: Callable[[Random, bytes], bytes]
    seed: int

    def __call__(self, content: bytes) -> bytes:
        return self.how(Random(self.seed), content)

    def __str__(self) -> str:
        return f"changed by {self.how.__module__}.{self.how.__name__}, seed {self.seed}"


@dataclass(frozen=True)
class Input:
    """A command and what lies in the folder where it is typed.

    Args:
        words: after `testbed`.
        files: by path relative to that folder.
        links: symbolic links, each with what it points to.
        folders: that are there and empty.
        unreadable: of the files, those without any permission.
        trained: whether runs/tiny, a finished study, is there; TRIAL stands for its only trial.
        changes: of files of that study, what becomes of their content.
    """

    words: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    trained: bool = False
    changes: Mapping[str, Change] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command, as one would type it."""
        return shlex.join(["testbed", *self.words])

    def __str__(self) -> str:
        parts = [self.command]
        for name, content in self.files.items():
            parts.append(f"--- {name}, {len(content)} bytes{self._note(name)}")
            parts.append(text_of(content))
        parts += [f"--- {name} -> {target}" for name, target in self.links.items()]
        parts += [f"--- {name}/" for name in self.folders]
        parts += [f"--- {name}: {change}" for name, change in self.changes.items()]
        return "\n".join(parts)

    def _note(self, name: str) -> str:
        return ", unreadable" if name in self.unreadable else ""


Maker = Callable[[Random], Input]


def text_of(content: bytes) -> str:
    """The start of a file: as text, or as Python writes its bytes."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return repr(content[: SHOWN // 4])
    return text[:SHOWN] if text.isprintable() or "\n" in text else repr(text[:SHOWN])


def chances(kind: str, number: int) -> Random:
    """The random numbers of one case."""
    return Random(f"{kind}/{number}")
