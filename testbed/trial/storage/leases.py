"""Owning a folder for as long as one gives a sign of life: what all stores with leases share.

An owner has a fencing number, one above that of the owner before, and rewrites a counter every
quarter of its lease. Another process takes the folder over once it has seen the counter unchanged
for a whole lease on its own monotonic clock: no two clocks are compared. A process that stands
still for longer finds out when it goes on; what it writes then carries its old number, and readers
take the highest.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from testbed.trial.storage.base import Busy, LeaseLost

BEATS = 4
"""Signs of life in a lease."""
FINEST = 0.05
"""Seconds between two looks at another owner's sign of life, at most."""


class Overtaken(Exception):
    """Another process was faster to take the folder over."""


@dataclass(frozen=True)
class Claim:
    """What another process sees of an owner: its number, and a sign of life."""

    fence: int
    sign: bytes
    released: bool
    owner: str
    id: str = ""
    """Of its lease; two owners in containers may have one name."""


NOBODY = Claim(0, b"", True, "")


def name_of(host: str = "", process: int = 0) -> str:
    """The name of a process in messages; this process's own without a host."""
    return f"{host or socket.gethostname()}, process {process or os.getpid()}"


def claim_of(fence: int, sign: bytes) -> Claim:
    """The claim of an owner that has written its `Lease.record`."""
    try:
        found = json.loads(sign)
        owner = name_of(found["host"], found["process"])
        return Claim(fence, sign, bool(found["released"]), owner, str(found["id"]))
    except (KeyError, TypeError, ValueError):  # its owner, or the sign of life, is gone
        return Claim(fence, sign, False, "unknown")


@dataclass
class Lease:
    """A folder that this process owns."""

    fence: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    beat: int = 0
    lost: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def record(self, released: bool = False) -> dict[str, object]:
        """What the owner says of itself; `beat` differs in any two of its signs of life."""
        return {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "id": self.id,
            "fence": self.fence,
            "beat": self.beat,
            "released": released,
        }


@dataclass(frozen=True)
class Leased(ABC):
    """The part of a store that owns folders by leases of so many seconds.

    A write by a process that does not own the folder owns it for the time of the write.
    """

    root: Path
    """The folder that has the owner."""
    inner: str
    """The path within it of the folder that this store is of; empty for the former."""
    seconds: float

    held: ClassVar[dict[Path, Lease]] = {}
    """What this process owns, by root."""

    @abstractmethod
    def claim(self) -> Claim:
        """Who owns the folder, or NOBODY."""

    @abstractmethod
    def take(self, before: Claim) -> Lease:
        """Takes the folder over from its owner before, with all its files.

        Raises:
            Overtaken: another process was faster.
            OSError: the store cannot be written to.
        """

    @abstractmethod
    def replaced(self, lease: Lease) -> bool:
        """Whether another process owns the folder by now, if that is seen without asking a server.

        Raises:
            OSError: the store cannot be read.
        """

    @abstractmethod
    def sign(self, lease: Lease, released: bool = False) -> None:
        """Gives the next sign of life, or the sign that the owner has ended.

        Raises:
            LeaseLost: another process owns the folder by now.
            OSError: the store cannot be written to.
        """

    @contextmanager
    def own(self, patience: float = 0.0) -> Iterator[None]:
        """Owns the folder, with a thread that gives signs of life.

        An owner that has ended well is followed at once, and one that gives no sign of life after a
        lease, which is waited for; `patience` is for one that is alive.

        Raises:
            Busy: another process is alive and still owns it after `patience` seconds.
            LeaseLost: at the end, where another process owns it by now.
            OSError: the store cannot be written to.
        """
        lease, held = self._acquire(patience), self.held
        held[self.root] = lease
        thread = threading.Thread(target=self._live, args=(lease,), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with suppress(OSError, LeaseLost):  # the lease passes by itself
                self._end(lease, thread)
            raise
        else:
            self._end(lease, thread)
        finally:
            del held[self.root]

    def _end(self, lease: Lease, thread: threading.Thread) -> None:
        lease.ended.set()
        thread.join()
        if lease.lost:
            raise self.loss(lease)
        self.sign(lease, released=True)

    def confirm(self) -> None:
        """Makes sure that a folder which this process has begun to own is still its own.

        Raises:
            LeaseLost: another process owns it by now.
        """
        lease = self.held.get(self.root)
        if lease is not None and (lease.lost or self.replaced(lease)):
            raise self.loss(lease)

    @contextmanager
    def writing(self) -> Iterator[Lease]:
        """Holds the lease for a write, which began before or holds for the write alone.

        Raises:
            Busy: another process owns the folder, or has taken it over.
        """
        lease = self.held.get(self.root)
        if lease is None:
            with self.own(), self.writing() as lease:
                yield lease
            return
        self.confirm()
        try:
            yield lease
        except OSError:
            self.confirm()
            raise

    def loss(self, lease: Lease) -> LeaseLost:
        """The error of an owner that was replaced, which from now on writes nothing."""
        lease.lost = True
        return LeaseLost(
            f"{self.root} was taken over by another process while this one stood still for longer "
            f"than its lease of {self.seconds:g} s: this one stops, and nothing that it wrote "
            "since is kept."
        )

    def _acquire(self, patience: float) -> Lease:
        start = time.monotonic()
        seen, since, alive = self.claim(), start, self.root in self.held
        while True:
            now = time.monotonic()
            if alive and now - start >= patience:
                raise Busy(
                    f"{self.root} is being worked on by another process ({seen.owner}): wait for "
                    "it, or end it."
                )
            if self.root not in self.held and (seen.released or now - since >= self.seconds):
                with suppress(Overtaken):
                    return self.take(seen)
            time.sleep(min(FINEST, self.seconds / BEATS))
            found = self.claim()
            if found != seen:
                seen, since = found, time.monotonic()
                alive = not found.released

    def _live(self, lease: Lease) -> None:
        while not lease.ended.wait(self.seconds / BEATS):
            try:
                self.sign(lease)
            except LeaseLost:
                return
            except OSError:  # the store is away: the next sign may come through
                continue
