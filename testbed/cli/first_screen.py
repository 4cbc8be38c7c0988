"""The first screen of a report on a terminal: the claims of each case, and what limits them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from testbed.cli import terminal
from testbed.notebook import Cell
from testbed.report.claims import HEAD, Finding
from testbed.report.page_tables import PageTable

WIDEST = 120
"""Columns beyond which a line is hard to read."""
MOST_LINES = 80
"""Of two cases with two arms of five variants all is shown, at 80 columns too."""
STYLES = {"good": "bold green", "bad": "bold red", "best": "bold", "quiet": "dim"}
GAP = 2
EFFECT = HEAD.index("effect")
"""The column whose cells are never broken."""


def show(findings: Sequence[Finding], page: Path) -> None:
    """Prints the findings: of many claims the first ones of each arm, of many cases the first.

    Args:
        findings: What was stored with the page; nothing is printed where that is nothing.
        page: Where the rest is.
    """
    console = terminal.console()
    lines, left_out = _fitting(findings, console)
    for line in lines:
        # A study that ended well does not fail for a σ that a terminal's encoding has not.
        line.plain = line.plain.encode(console.encoding, "replace").decode(console.encoding)
        console.print(line, highlight=False)
    if left_out:
        where = page.parent / "tables" / "finding.md"
        console.print(Text(f"Not shown: {left_out}; see {page} or {where}.\n"), highlight=False)


def _fitting(findings: Sequence[Finding], console: Console) -> tuple[list[Text], str]:
    """The lines that fit, and what they leave out: claims of every arm, and then whole cases."""
    sizes = [len(arm.rows) for one in findings for arm in one.arms]
    most = max(n for n in range(max(sizes, default=0) + 1) if _shown(sizes, n) <= MOST_LINES)
    blocks = [list(_lines(one, most, console)) for one in findings]
    while most and sum(map(len, blocks)) > MOST_LINES:
        most -= 1
        blocks = [list(_lines(one, most, console)) for one in findings]
    ends = itertools.accumulate(map(len, blocks))
    kept = max(1, sum(end <= MOST_LINES for end in ends))
    shown = _shown([len(arm.rows) for one in findings[:kept] for arm in one.arms], most)
    cases, lost = (sum(bool(one.title) for one in some) for some in (findings, findings[kept:]))
    left_out = [f"{sum(sizes) - shown} of {sum(sizes)} claims"] * (shown < sum(sizes))
    left_out += [f"{lost} of {cases} cases"] * bool(lost)
    return [*itertools.chain.from_iterable(blocks[:kept])], " and ".join(left_out)


def _shown(sizes: Sequence[int], most: int) -> int:
    """How many claims are shown of arms that have so many, at most so many of each."""
    return sum(min(size, most) for size in sizes)


def _lines(one: Finding, most: int, console: Console) -> Iterator[Text]:
    """A finding line by line, with at most so many claims of each arm, and an empty line."""
    width = min(console.width, WIDEST)
    options = console.options.update(width=width)
    for part in _parts(one, most, width):
        for segments in console.render_lines(part, options, pad=False):
            line = Text.assemble(*((text, style or "") for text, style, _ in segments))
            line.rstrip()
            yield line
    if one.title or one.opening:
        yield Text()


def _parts(one: Finding, most: int, width: int) -> Iterator[RenderableType]:
    if one.title:
        yield Text(one.title, "bold underline")
    if one.opening:
        yield Text(" ".join(one.opening), "" if one.title else STYLES["quiet"])
    if one.claims:
        yield from _claims(one.claims, most, width)


def _claims(table: PageTable, most: int, width: int) -> Iterator[RenderableType]:
    """The sentences of each arm around its claims, whose columns are aligned."""
    full = [[cell.text for cell in row] for row in table.rows if len(row) == len(table.head)]
    widest = [max(map(cell_len, column)) for column in zip(table.head, *full, strict=True)]
    widths = _narrowed(widest, width - GAP * len(widest))
    head = True
    for alone, rows in itertools.groupby(table.rows, lambda row: len(row) < len(table.head)):
        if alone:
            for (said,) in rows:
                yield Text(said.text, STYLES[said.style])
        elif shown := list(itertools.islice(rows, most)):
            yield _table(table.head, shown, widths, head)
            head = False


def _narrowed(widths: Sequence[int], room: int) -> list[int]:
    """The widths of columns in so much room: the widest are narrowed, down to one letter."""
    narrowed = [*widths]
    while sum(narrowed) > room:
        others = [i for i in range(len(narrowed)) if i != EFFECT]
        widest = max(others, key=narrowed.__getitem__)
        if narrowed[widest] == 1:
            break
        narrowed[widest] -= 1
    return narrowed


def _table(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], widths: Sequence[int], show_head: bool
) -> Padding:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="italic")
    table.show_header = show_head
    for name, width in zip(head, widths, strict=True):
        table.add_column(name, width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.text, STYLES.get(cell.style, "")) for cell in row))
    return Padding(table, (0, 0, 0, GAP))
