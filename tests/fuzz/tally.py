"""Runs cases by their numbers and counts how they end."""

import faulthandler
from collections import Counter
from dataclasses import dataclass, field

from fuzz import law


@dataclass
class Tally:
    """What became of the cases of one kind."""

    codes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)
    told: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Counts another's cases too."""
        self.codes += other.codes
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.told += other.told


def tried(kind: str, first: int, last: int) -> Tally:
    """Cases `first` to `last` - 1 of a kind."""
    tally = Tally()
    for number in range(first, last):
        # What hangs outside of Python no signal ends.
        faulthandler.dump_traceback_later(5 * law.SECONDS, exit=True)
        given, done, broken = law.try_case(kind, number, law.scratch())
        tally.codes[str(done.code)] += 1
        tally.seconds += done.seconds
        tally.slowest = max(tally.slowest, (done.seconds, number))
        if broken:
            tally.told.append(law.told(kind, number, given, done, broken))
    faulthandler.cancel_dump_traceback_later()
    return tally
