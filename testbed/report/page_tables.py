"""Tables of the report's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed.notebook import Cell


@dataclass(frozen=True)
class PageTable:
    """A table of the page: the texts of its head, and its rows of cells."""

    head: list[str]
    rows: list[list[Cell]]


LABELS = ("case", "arm")
"""The heads of columns that are left out where every cell is empty: the study names none."""


def page_table(head: Sequence[str], rows: Iterable[Sequence[Cell | str]]) -> PageTable:
    """Returns a table without empty columns of labels; bare text stands for a plain cell."""
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    kept = [
        i for i, name in enumerate(head) if name not in LABELS or any(row[i].text for row in cells)
    ]
    return PageTable([head[i] for i in kept], [[row[i] for i in kept] for row in cells])
