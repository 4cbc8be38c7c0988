"""Which store a folder has: `storage.json` in a study's folder says it for all that lies within.

A study in an object store has a folder in the user's cache too, whose `storage.json` names the URL.
"""

from __future__ import annotations

import hashlib
import math
import re
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed import cache
from testbed.errors import InputError
from testbed.trial.storage import bucket
from testbed.trial.storage.base import Store
from testbed.trial.storage.local_disk import LocalDisk
from testbed.trial.storage.shared_disk import SharedDisk

FILE = "storage.json"
URL = re.compile(r"([a-z][a-z0-9]+):/+(.+)")
PROTOCOL = re.compile(r"[a-z][a-z0-9]+:/*")
USUAL = 60.0
"""The lease of a study in an object store, in seconds."""
DEPTH = 2
"""How far below a study's folder those of its trials and groups lie."""
NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
    *("gpfs", "beegfs", "fhgfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "virtiofs"),
)


class Place(BaseModel):
    """How the folders of a study are owned, and where they lie if not on the disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lease: float = Field(gt=0)
    url: str = ""


def opened(folder: Path) -> Store:
    """The store of a study's folder, or of one of its trials or groups.

    Raises:
        InputError: the study's storage.json is damaged.
    """
    at = folder.absolute()
    for study in (at, *at.parents[:DEPTH]):
        if (place := _place(study)) is None:
            continue
        if place.url:
            from testbed.trial.storage.object_store import ObjectStore  # fsspec is an extra

            within = at.relative_to(study).as_posix()
            url = place.url if at == study else f"{place.url}/{within}"
            return ObjectStore(at, "", place.lease, url)
        return SharedDisk(at, "", place.lease)
    return LocalDisk(folder)


def local(folder: str | Path) -> Path:
    """A folder as it is; of a URL the folder in the user's cache that has copies of its files.

    Raises:
        MissingExtra: fsspec, or what it needs for the URL, is not installed.
        InputError: there is no such protocol, or no bucket is named.
        OSError: the store does not answer.
    """
    url = url_of(folder)
    if not url:
        return Path(folder)
    study, trial, id_ = url.partition("/trials/")
    digest = hashlib.sha256(study.encode()).hexdigest()[:16]
    at = cache.folder() / "studies" / digest / study.rpartition("/")[2]
    found = bucket.get(f"{study}/{FILE}")
    if found is None:
        LocalDisk(at).remove(FILE)
    elif LocalDisk(at).get(FILE) != found:
        LocalDisk(at).put(FILE, found)
    return at / "trials" / id_ if trial else at


def address(folder: Path) -> str:
    """The URL of a study's folder, or its path where it lies on a disk."""
    place = _place(folder)
    return place.url if place is not None and place.url else str(folder)


def begin(folder: str | Path, lease: float | None) -> None:
    """Makes a study's folder one of leases of so many seconds; None leaves it as it was begun.

    A folder in an object store has leases always, of 60 seconds unless it is said.

    Raises:
        InputError: the folder holds a study with other locks, or its store cannot keep two drivers
            apart.
        OSError: the store does not answer.
    """
    url, at = url_of(folder), local(folder)
    if lease is not None and not 0 < lease < math.inf:
        raise InputError(f"--lease {lease:g}: expected a number of seconds above 0, such as 60.")
    before = _place(at)
    if before is not None:
        if lease not in (None, before.lease):
            raise InputError(
                f"--lease {lease:g}: the study in {url or folder} was begun with leases of "
                f"{before.lease:g} s, which all its drivers share. Leave the option out, or begin "
                "anew with --out."
            )
    elif url:
        bucket.require_exclusive_writes(url)
        place = Place(lease=lease or USUAL, url=url)
        bucket.create(f"{url}/{FILE}", place.model_dump_json().encode())
        local(folder)
    elif lease is not None:
        if LocalDisk(at).has("study.json"):
            raise InputError(
                f"--lease {lease:g}: the study in {folder} was begun with file locks. Leave the "
                "option out, or begin anew with --out."
            )
        # Another driver may begin at the same moment: each has a half-written file of its own.
        own = f"{FILE}.{uuid.uuid4().hex}"
        LocalDisk(at).put(own, Place(lease=lease).model_dump_json().encode())
        LocalDisk(at).rename(own, FILE)


def url_of(folder: str | Path) -> str:
    """The URL that a word of the command line is, also where a path was made of it; else empty.

    Raises:
        InputError: a protocol without a bucket.
    """
    if PROTOCOL.fullmatch(str(folder)):
        raise InputError(f"{folder} names no bucket: expected s3://bucket/folder.")
    found = URL.fullmatch(str(folder))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else ""


def network(folder: Path) -> str:
    """The network file system that a folder lies on, such as "nfs4"; empty for a local disk."""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    mounts = [(where, kind) for _, where, kind, *_ in map(str.split, lines)]
    return network_among(folder.resolve(), mounts)


def network_among(at: Path, mounts: list[tuple[str, str]]) -> str:
    """As `network`, of mount points with the kinds of their file systems, later ones on top."""
    kind, depth = "", 0
    for where, found in mounts:
        point = Path(where.replace("\\040", " "))
        if at.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = found, len(point.parts)
    remote = kind in NETWORK or (kind.startswith("fuse.") and kind != "fuse.overlayfs")
    return kind if remote else ""


def _place(study: Path) -> Place | None:
    content = LocalDisk(study).get(FILE)
    if content is None:
        return None
    try:
        return Place.model_validate_json(content)
    except ValidationError:
        raise InputError(
            f'{study / FILE}: is damaged: expected {{"lease": SECONDS}}, as the study was begun.'
        ) from None
