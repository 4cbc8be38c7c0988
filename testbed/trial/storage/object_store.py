"""A folder in an object store, whose owner holds a lease.

s3://bucket/runs/x/manifests/00000007    the folder's files, its owner, a sign of life
                   objects/3-7-<sha256>  a file's content, with the owner's number

No object is written twice. A new manifest has the next number and is written on the condition that
there is none of that number: who is refused has been replaced. The highest counts, and it is never
deleted, so that an owner which went on where others have long been finds its next number taken
before it could become the highest. What a manifest names is uploaded before it, and what one no
longer names is deleted after it. Requests that arrive late or twice change nothing of that.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from testbed.trial.storage import bucket
from testbed.trial.storage.leases import NOBODY, Claim, Lease, Leased, Overtaken, claim_of
from testbed.trial.storage.local_disk import LocalDisk

ATTEMPTS = 20
"""How often a reader looks for what is replaced while it reads."""


@dataclass
class Owned(Lease):
    """What an owner keeps of its folder besides its lease."""

    version: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """By path, the name of the object with the content."""
    pending: dict[str, bytes] = field(default_factory=dict)
    """By path, contents that are not uploaded yet."""
    replaced: list[str] = field(default_factory=list)
    """Objects that no manifest names any more, or that the next one will not."""


@dataclass(frozen=True)
class ObjectStore(Leased):
    """A folder within the one at `url`; `root` is where this machine keeps copies of its files."""

    url: str

    def get(self, name: str) -> bytes | None:
        """The content of a file; None where there is no such file.

        Raises:
            OSError: the store does not answer, or the content is not what it was.
        """
        path, lease = self.inner + name, self._lease()
        if lease is not None:
            with lease.lock:
                if path in lease.pending:
                    return lease.pending[path]
                return self._fetch(path, lease.files[path]) if path in lease.files else None
        for _ in range(ATTEMPTS):
            files = self._files()
            if path not in files:
                return None
            with suppress(FileNotFoundError):
                return self._fetch(path, files[path])
        raise FileNotFoundError(f"{self.url}/{path}: its content is missing.")

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.inner + name in self._files()

    def names(self) -> list[str]:
        """The sorted names of the files and of the folders within."""
        files = self._files()
        if not files and not self.inner and not self._versions():
            return bucket.names(self.url)
        within = (path.removeprefix(self.inner) for path in files if path.startswith(self.inner))
        return sorted({path.partition("/")[0] for path in within})

    def put(self, name: str, content: bytes, durable: bool = True) -> None:
        """Uploads a content and a manifest; by another than the owner, what is so is left."""
        if self._lease() is not None or self.get(name) != content:
            with self.writing() as lease, lease.lock:
                _owned(lease).pending[self.inner + name] = content
                self._publish(_owned(lease))

    def append(self, name: str, content: bytes) -> None:
        """Adds to the end of a file; it is uploaded with the next sign of life, or the next put."""
        with self.writing() as lease, lease.lock:
            before = self.get(name) or b""
            _owned(lease).pending[self.inner + name] = before + content

    def rename(self, name: str, to: str) -> None:
        """Gives a file another name; a file that had that name is replaced."""
        with self.writing() as lease, lease.lock:
            self._upload(_owned(lease))
            _forget(_owned(lease), *({self.inner + to} - {self.inner + name}))
            files = _owned(lease).files
            files[self.inner + to] = files.pop(self.inner + name)
            self._publish(_owned(lease))

    def remove(self, *names: str) -> None:
        """Deletes files."""
        if any(map(self.has, names)):
            with self.writing() as lease, lease.lock:
                _forget(_owned(lease), *(self.inner + name for name in names))
                self._publish(_owned(lease))

    def sweep(self, *names: str) -> None:
        """Nothing is ever half written."""

    def folder(self, name: str) -> ObjectStore:
        """The store of a folder within, which has the same owner."""
        return ObjectStore(self.root, f"{self.inner}{name}/", self.seconds, self.url)

    def apart(self, name: str) -> ObjectStore:
        """The store of a folder within that has an owner of its own."""
        place = f"{self.inner}{name}"
        return ObjectStore(self.root / place, "", self.seconds, f"{self.url}/{place}")

    def path(self, name: str = "") -> Path:
        """Where this machine keeps its copy of a file that was read, or of the folder's files."""
        return self.root / (self.inner + name)

    def claim(self) -> Claim:
        """Who owns the folder, by the highest manifest."""
        _, sign = self._latest()
        return claim_of(int(json.loads(sign)["fence"]), sign) if sign else NOBODY

    def take(self, before: Claim) -> Owned:
        """Writes the next manifest, with the files of the owner before."""
        found = json.loads(before.sign or b"{}")
        version, files = int(found.get("version", 0)), dict(found.get("files", {}))
        lease = Owned(before.fence + 1, version=version + 1, files=files)
        # A number that was given, and deleted, long ago is free again: the highest counts.
        if not (self._write(lease, lease.version) and self._settle(lease)):
            raise Overtaken
        # What an owner before uploaded and did not come to name: no manifest will.
        with suppress(OSError):
            found = bucket.names(f"{self.url}/objects")
            older = (one for one in found if int(one.partition("-")[0]) < lease.fence)
            rubbish = set(older) - set(files.values())
            bucket.delete(f"{self.url}/objects/{one}" for one in sorted(rubbish))
        return lease

    def replaced(self, lease: Lease) -> bool:
        """An owner hears of it with its next sign of life, or where it writes."""
        return False

    def sign(self, lease: Lease, released: bool = False) -> None:
        """Uploads what was appended, and the next manifest."""
        with lease.lock:
            self._publish(_owned(lease), released)

    def _lease(self) -> Owned | None:
        lease = self.held.get(self.root)
        return None if lease is None else _owned(lease)

    def _files(self) -> dict[str, str]:
        """By path, the objects of the files, as this owner has them or the highest manifest."""
        lease = self._lease()
        if lease is not None:
            with lease.lock:
                return {**lease.files, **dict.fromkeys(lease.pending, "")}
        return dict(json.loads(self._latest()[1] or b"{}").get("files", {}))

    def _fetch(self, path: str, name: str) -> bytes:
        """An object's content, from the copy on this machine where there is one.

        Raises:
            FileNotFoundError: the object is deleted.
            OSError: it is not what was uploaded.
        """
        digest = name.rpartition("-")[2]
        copy = LocalDisk(self.root)
        with suppress(OSError):
            content = copy.get(path)
            if content is not None and _digest(content) == digest:
                return content
        content = bucket.get(f"{self.url}/objects/{name}")
        if content is None:
            raise FileNotFoundError(f"{self.url}/objects/{name}")
        if _digest(content) != digest:
            raise OSError(f"{self.url}/objects/{name}: its content is not what its name says.")
        self._keep(path, content)
        return content

    def _keep(self, path: str, content: bytes) -> None:
        """Keeps a copy on this machine, unless another process is about to."""
        place = self.root / path
        with suppress(OSError):
            LocalDisk(place.parent).put(place.name, content)

    def _upload(self, lease: Owned) -> None:
        """Uploads what is pending; a content is not pending any more when it is in the store."""
        for path, content in list(lease.pending.items()):
            name = f"{lease.fence}-{lease.version + 1}-{_digest(content)}"
            bucket.create(f"{self.url}/objects/{name}", content)
            self._keep(path, content)
            del lease.pending[path]
            if lease.files.get(path) != name:
                _forget(lease, path)
            lease.files[path] = name

    def _publish(self, lease: Owned, released: bool = False) -> None:
        """Uploads what is pending and writes the manifest that names it.

        Raises:
            LeaseLost: another process has written a manifest of that number, or a higher one.
            OSError: the store does not answer; nothing is lost, and the next call goes on.
        """
        self._upload(lease)
        lease.beat += 1
        while not self._write(lease, lease.version + 1, released):
            # Where its answer was lost, it is this owner's manifest of an earlier call.
            if claim_id(bucket.get(self._manifest(lease.version + 1))) != lease.id:
                raise self.loss(lease)
            lease.version += 1
        lease.version += 1
        if not self._settle(lease):
            raise self.loss(lease)

    def _settle(self, lease: Owned) -> bool:
        """Whether the highest manifest is this owner's; then what is replaced is deleted."""
        versions = self._versions()
        if max(versions, default=0) > lease.version:
            return False
        older = [number for number in versions if number < lease.version]
        named = set(lease.files.values())
        gone = [f"{self.url}/objects/{name}" for name in lease.replaced if name not in named]
        with suppress(OSError):  # rubbish harms nobody
            bucket.delete([*map(self._manifest, older), *gone])
            lease.replaced.clear()
        return True

    def _write(self, lease: Owned, version: int, released: bool = False) -> bool:
        """Writes a manifest; False where there is one of that number with another content."""
        record = {**lease.record(released), "version": version, "files": lease.files}
        content = json.dumps(record, sort_keys=True).encode()
        return bucket.create(self._manifest(version), content)

    def _manifest(self, version: int) -> str:
        return f"{self.url}/manifests/{version:08d}"

    def _versions(self) -> list[int]:
        return [int(name) for name in bucket.names(f"{self.url}/manifests") if name.isdigit()]

    def _latest(self) -> tuple[int, bytes]:
        """The highest manifest; it may be replaced while it is looked for."""
        for _ in range(ATTEMPTS):
            version = max(self._versions(), default=0)
            if not version:
                return 0, b""
            if (content := bucket.get(self._manifest(version))) is not None:
                return version, content
        raise FileNotFoundError(f"{self._manifest(version)}: its content is missing.")


def claim_id(manifest: bytes | None) -> str:
    """Which owner has written a manifest."""
    return str(json.loads(manifest or b"{}").get("id", ""))


def _owned(lease: Lease) -> Owned:
    assert isinstance(lease, Owned)
    return lease


def _forget(lease: Owned, *paths: str) -> None:
    for path in paths:
        lease.pending.pop(path, None)
        if name := lease.files.pop(path, ""):
            lease.replaced.append(name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
