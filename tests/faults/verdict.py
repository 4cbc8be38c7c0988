"""What a scenario found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Verdict:
    """How many cases and kills a scenario had, and what went wrong.

    Args:
        cases: commands that ran under a fault, or folders that were checked after one.
        kills: processes, or groups of them, that were ended by SIGKILL.
        problems: what was lost, doubled, or said unclearly; none if all is well.
        skipped: why a part was not tried.
    """

    cases: int = 0
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    def hold(self, true: bool, problem: str) -> None:
        """Notes a problem unless this is true."""
        if not true:
            self.problems.append(problem)


Scenario = Callable[[Path], Verdict]
"""Does its worst in a folder of its own."""
