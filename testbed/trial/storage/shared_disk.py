"""A folder of a disk that several machines share, whose owner holds a lease.

runs/x/fence-3/lease         who owns the folder, and a sign of life
               study.json    the folder's files, as its third owner has them
       taking-.../           what a process copies that is about to become the fourth

A process takes a folder over by copying the files of the highest `fence-N` and renaming the copy to
the next number, which fails where there is one: then another process was faster. Files are copied
and not linked, since `append` would write into what both have.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from testbed.trial.storage.base import answering
from testbed.trial.storage.leases import NOBODY, Claim, Lease, Leased, Overtaken, claim_of
from testbed.trial.storage.local_disk import LocalDisk

LEASE, FENCE, TAKING = "lease", re.compile(r"fence-(\d+)"), "taking-"
_T = TypeVar("_T")


@dataclass(frozen=True)
class SharedDisk(Leased):
    """A folder within `root`; what its owner with the number N writes lies in `fence-N`."""

    def get(self, name: str) -> bytes | None:
        """The content of a file; None where there is no such file."""
        return self._read(lambda disk: disk.get(name))

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._read(lambda disk: disk.has(name))

    def names(self) -> list[str]:
        """The sorted names of the files and of the folders within."""
        found = self._read(lambda disk: disk.names())
        return [name for name in found if self.inner or name != LEASE]

    def put(self, name: str, content: bytes, durable: bool = True) -> None:
        """See `LocalDisk.put`; by another than the owner, a file that is so already is left."""
        if self.root in self.held or self.get(name) != content:
            with self.writing() as lease:
                self._disk(lease.fence).put(name, content, durable)

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a file."""
        with self.writing() as lease:
            self._disk(lease.fence).append(name, content)

    def rename(self, name: str, to: str) -> None:
        """Gives a file another name; a file that had that name is replaced."""
        with self.writing() as lease:
            self._disk(lease.fence).rename(name, to)

    def remove(self, *names: str) -> None:
        """Deletes files; the folder's number stays."""
        if any(map(self.has, names)):
            with self.writing() as lease:
                self._disk(lease.fence).remove(*names)

    def sweep(self, *names: str) -> None:
        """Deletes what a crash has left half written; another than the owner has none to delete."""
        if self.root in self.held:
            with self.writing() as lease:
                self._disk(lease.fence).sweep(*names)

    def folder(self, name: str) -> SharedDisk:
        """The store of a folder within, which has the same owner."""
        return SharedDisk(self.root, f"{self.inner}{name}/", self.seconds)

    def apart(self, name: str) -> SharedDisk:
        """The store of a folder within that has an owner of its own."""
        return SharedDisk(self.root / self.inner / name, "", self.seconds)

    def path(self, name: str = "") -> Path:
        """Where a file lies at present; the folder that has the owner, without a name."""
        if not self.inner and not name:
            return self.root
        return self._disk(self._fence()).path(name)

    def claim(self) -> Claim:
        """Who owns the folder, by the highest fence."""
        fence = self._highest()
        if not fence:
            return NOBODY
        return claim_of(fence, LocalDisk(self._folder(fence)).get(LEASE) or b"")

    def take(self, before: Claim) -> Lease:
        """Copies the files of the owner before and gives the copy the next number."""
        with answering(self.root):
            return self._take(before)

    def _take(self, before: Claim) -> Lease:
        lease = Lease(before.fence + 1)
        new = LocalDisk(self.root / f"{TAKING}{uuid.uuid4().hex}")
        try:
            self._say(new, lease)
            if before.fence:
                _copy(LocalDisk(self._folder(before.fence)), new)
            new.at.rename(self._folder(lease.fence))
            LocalDisk(self.root).flush()
        except OSError as problem:
            shutil.rmtree(new.at, ignore_errors=True)
            if self._highest() > before.fence:
                raise Overtaken from None
            raise problem
        if self._highest() > lease.fence:  # its number was given, and deleted, long ago
            raise Overtaken
        for rest in self.root.glob(f"{TAKING}*"):
            shutil.rmtree(rest, ignore_errors=True)
        for number in range(before.fence, 0, -1):
            if not self._folder(number).is_dir():
                break
            shutil.rmtree(self._folder(number), ignore_errors=True)
        return lease

    def replaced(self, lease: Lease) -> bool:
        """Whether there is a higher fence."""
        return self._highest() > lease.fence

    def sign(self, lease: Lease, released: bool = False) -> None:
        """Rewrites the lease with the next beat."""
        if self.replaced(lease):
            raise self.loss(lease)
        lease.beat += 1
        self._say(LocalDisk(self._folder(lease.fence)), lease, released)

    def _say(self, disk: LocalDisk, lease: Lease, released: bool = False) -> None:
        disk.put(LEASE, json.dumps(lease.record(released)).encode())

    def _highest(self) -> int:
        found = map(FENCE.fullmatch, LocalDisk(self.root).names())
        return max((int(one[1]) for one in found if one), default=0)

    def _folder(self, fence: int) -> Path:
        return self.root / f"fence-{fence}"

    def _disk(self, fence: int) -> LocalDisk:
        """The files of an owner; before there was one, the folders that have owners themselves."""
        return LocalDisk((self._folder(fence) if fence else self.root) / self.inner)

    def _fence(self) -> int:
        """The number whose files this process reads: its own, or the highest."""
        lease = self.held.get(self.root)
        return self._highest() if lease is None else lease.fence

    def _read(self, read: Callable[[LocalDisk], _T]) -> _T:
        """Reads the files of one owner, and again where another took over meanwhile."""
        while True:
            fence = self._fence()
            try:
                found = read(self._disk(fence))
            except OSError:
                if self._fence() == fence:
                    raise
                continue
            if found or self._fence() == fence:
                return found


def _copy(source: LocalDisk, to: LocalDisk) -> None:
    """Copies all but the lease.

    Raises:
        OSError: a file cannot be read, or is gone.
    """
    for name in source.names():
        if source.has(name):
            if name != LEASE:
                content = source.get(name)
                if content is None:
                    raise FileNotFoundError(str(source.path(name)))
                to.put(name, content)
        else:
            _copy(source.folder(name), to.folder(name))
