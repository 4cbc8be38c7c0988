"""Which store a folder has: `storage.json` in a study's folder says it for all that lies within."""

from __future__ import annotations

import json
from pathlib import Path

from testbed.errors import InputError
from testbed.trial.storage.base import Store
from testbed.trial.storage.local_disk import LocalDisk
from testbed.trial.storage.shared_disk import SharedDisk

FILE = "storage.json"
DEPTH = 2
"""How far below a study's folder those of its trials and groups lie."""
NETWORK = (
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
    *("gpfs", "beegfs", "fhgfs", "orangefs", "pvfs2", "ocfs2", "gfs2", "virtiofs"),
)


def opened(folder: Path) -> Store:
    """The store of a study's folder, or of one of its trials or groups.

    Raises:
        InputError: the study's storage.json is damaged.
    """
    for study in (folder, *folder.absolute().parents[:DEPTH]):
        if (seconds := _lease(study)) is not None:
            return SharedDisk(folder.absolute(), "", seconds)
    return LocalDisk(folder)


def begin(folder: Path, lease: float | None) -> None:
    """Makes a study's folder one of leases of so many seconds; None leaves it as it was begun.

    Raises:
        InputError: the folder holds a study with other locks.
    """
    if lease is None:
        return
    if lease <= 0:
        raise InputError(f"--lease {lease:g}: expected a number of seconds above 0, such as 60.")
    before = _lease(folder)
    if before == lease:
        return
    if before is not None:
        raise InputError(
            f"--lease {lease:g}: the study in {folder} was begun with leases of {before:g} s, "
            "which all its drivers share. Leave the option out, or begin anew with --out."
        )
    if LocalDisk(folder).has("study.json"):
        raise InputError(
            f"--lease {lease:g}: the study in {folder} was begun with file locks. Leave the option "
            "out, or begin anew with --out."
        )
    LocalDisk(folder).put(FILE, json.dumps({"lease": lease}).encode())


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


def _lease(study: Path) -> float | None:
    content = LocalDisk(study).get(FILE)
    if content is None:
        return None
    try:
        return float(json.loads(content)["lease"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f'{study / FILE}: is damaged: expected {{"lease": SECONDS}}, as the study was begun.'
        ) from None
