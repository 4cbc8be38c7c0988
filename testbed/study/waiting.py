"""The groups of a study that wait, some of which other drivers train.

Drivers on one study tell each other nothing. Who trains a trial owns its folder by a lease, and all
others see the sign of life in it; who comes too late for a trial that was free a moment ago is
refused by its folder. Without leases there is one driver, and every group that waits is its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from testbed.study.engines import Group
from testbed.study.plan import Plan
from testbed.trial.folders import ENDED
from testbed.trial.storage import Claim

SHARE = 0.05
"""The part of the driver's time, at most, that looking at the trials of others takes."""
ALIVE = 0.5
"""The part of a lease after which an owner that gave no sign of life may be dead.

It gives one every quarter; whoever tries to follow it waits for a whole lease in any case.
"""
IDLE = 5.0
"""Seconds, at most, between two looks for a group where all were taken."""


class Waiting:
    """The groups of a plan that no worker of this driver has.

    Args:
        plan: the study's trials.
        groups: those that are to run, in the order in which they start.
        halve: what is to wait in place of a group that another driver has split.
    """

    def __init__(
        self,
        plan: Plan,
        groups: Iterable[Group],
        halve: Callable[[Group], Sequence[Group]] = lambda group: group.halves,
    ) -> None:
        self._files, self._lease, self._halve = plan.files, plan.files.lease, halve
        self._groups = deque(groups)
        self._signs: dict[str, tuple[Claim, float]] = {}
        self._idle = 0.0
        self._lost: set[str] = set()
        failed = [one for one in plan.trials if self._lease and one.state == "failed"]
        self._before = {one.id: self._files.trial(one.id).result() for one in failed}
        self._due = 0.0
        self.elsewhere: list[Group] = []
        """Those that other drivers had at the last look."""

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def free(self) -> bool:
        """Whether a group waits that no other driver had at the last look."""
        return len(self._groups) > len(self.elsewhere)

    def next(self) -> Group | None:
        """Takes the first group that no other driver has; None where there is none.

        Then it looks for none for a while: each look is some requests where a server keeps them.
        """
        if time.monotonic() < self._idle:
            return None
        for _ in range(len(self._groups)):
            group = self._groups[0]
            if not self._taken(group) and not self._over(group):
                self._lost.discard(group.id)
                return self._groups.popleft()
            self._groups.rotate(-1)
            if not self.free:
                break
        if self._groups:
            self._idle = time.monotonic() + min(IDLE, self._lease / 8)
        return None

    def again(self, groups: Sequence[Group]) -> None:
        """Puts groups first, whose worker was lost or had too little memory."""
        self._idle = 0.0
        self._lost.update(group.id for group in groups)
        self._groups.extendleft(reversed(groups))

    def later(self, group: Group) -> None:
        """Puts a group last: it is told to run again, or another driver was faster."""
        self._groups.append(group)

    def ended(self) -> Iterator[tuple[Group, list[str]]]:
        """Yields the groups that other drivers have brought to their end, with the statuses.

        Now and then it looks at all that wait, and at nothing in between.
        """
        start = time.monotonic()
        if not self._lease or start < self._due:
            return
        self.elsewhere = [group for group in self._groups if self._taken(group)]
        for group in [one for one in self.elsewhere if self.split(one)]:
            halves = self._halve(group)
            self.elsewhere.remove(group)
            self._groups.remove(group)
            self._groups.extend(halves)
        taken = {group.id for group in self.elsewhere}
        for group in [one for one in self._groups if one.id not in taken]:
            if statuses := self._over(group):
                self._groups.remove(group)
                yield group, statuses
        now = time.monotonic()
        self._due = now + max(self._lease / 8, (now - start) / SHARE)

    def split(self, group: Group) -> bool:
        """Whether another driver has too little memory for a group, and trains its halves."""
        whole = bool(self._lease) and len(group.trials) > 1 and not group.half
        return whole and self._files.group(group.id).split

    def _taken(self, group: Group) -> bool:
        """Whether another driver's worker, as far as it is seen, is at work on a group.

        One that has dissolved the group, or split it, owns a part of its trials at a time. All are
        looked at, since the time for which a sign of life has not changed runs from the first look.
        """
        if not self._lease or group.id in self._lost:
            return False
        return any([self._owned(trial.id) for trial in group.trials])

    def _owned(self, id_: str) -> bool:
        """Whether another driver's worker owns a trial and has given a sign of life lately."""
        claim = self._files.trial(id_).claim()
        if claim is None:
            return False
        now = time.monotonic()
        seen, since = self._signs.get(id_, (None, 0.0))
        if claim != seen:
            self._signs[id_], since = (claim, now), now
        return now - since < ALIVE * self._lease

    def _over(self, group: Group) -> list[str]:
        """How a group has ended with other drivers; nothing where it has not."""
        statuses = [self._status(trial.id) for trial in group.trials] if self._lease else []
        return statuses if all(statuses) else []

    def _status(self, id_: str) -> str:
        """How a trial has ended since this driver began; empty where it has not."""
        result = self._files.trial(id_).result()
        status = str(result.get("status", ""))
        if status in ENDED or (status == "failed" and result != self._before.get(id_)):
            return status
        return ""
