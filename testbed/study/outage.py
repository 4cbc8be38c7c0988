"""A study's folder that goes away for a while, with the disk or the server that keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from testbed.study.dispatch import Outcome
from testbed.study.plan import Plan
from testbed.trial.storage import StoreAway

AGAIN = 5.0
"""Seconds between two looks whether a folder that is away is there again."""
ROUNDS = 3
"""How often a step may meet the same problem although the folder answers meanwhile."""
T = TypeVar("T")


class Outage:
    """Waits for the study's folder where it is away.

    Args:
        plan: of the study.
        say: told once that its folder is away, and once that it is there again.
        outcome: whether the driver was interrupted, which then waits no longer.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None], outcome: Outcome) -> None:
        self._plan, self._say, self._outcome = plan, say, outcome
        self._rounds = 0

    def through(self, step: Callable[[], T]) -> T:
        """What a step returns, which may be begun again wherever it was broken off.

        Raises:
            OSError: another problem than that the folder is away, or one that stays.
        """
        while True:
            try:
                found = step()
            except OSError as problem:
                self._outlast(problem)
            else:
                if self._rounds:
                    self._say("The study's folder is there again: the study goes on.")
                self._rounds = 0
                return found

    def _outlast(self, problem: OSError) -> None:
        """Waits until the folder answers again.

        Raises:
            OSError: the problem, where it is none of these, or stays while the folder answers.
        """
        self._rounds += 1
        if not isinstance(problem, StoreAway) or self._rounds > ROUNDS:
            raise problem
        if self._rounds == 1:
            self._say(f"The study's folder is away ({problem}): the study waits for it.")
        while not self._answers():
            if self._outcome.interrupted:
                raise problem
            time.sleep(AGAIN)

    def _answers(self) -> bool:
        try:
            self._plan.files.has("study.json")
        except OSError:
            return False
        return True
