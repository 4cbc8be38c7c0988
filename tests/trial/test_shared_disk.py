"""A folder on a disk of several machines: leases, and what a process that slept may still do."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.store_operations import answers

from testbed.errors import InputError
from testbed.trial.folders import TrialFolder
from testbed.trial.storage import (
    Busy,
    LeaseLost,
    LocalDisk,
    SharedDisk,
    begin,
    leases,
    local,
    opened,
    places,
    shared_disk,
)
from testbed.trial.study_folder import StudyFolder, studies

LEASE = 0.4


@pytest.fixture
def disk(tmp_path: Path) -> SharedDisk:
    return SharedDisk(tmp_path / "trial", "", LEASE)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From a call on, this process owns nothing that it owned: it acts as another one."""
    return lambda: monkeypatch.setattr(leases.Leased, "held", {})


# --- the operations -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_owner_sees_what_a_local_disk_shows(disk: SharedDisk, tmp_path: Path, seed: int) -> None:
    local = LocalDisk(tmp_path / "local")
    with disk.own():
        for mine, other in zip(answers(disk, seed), answers(local, seed), strict=True):
            assert mine == other
    assert disk.names() == local.names()


def test_who_owns_nothing_owns_the_folder_for_each_write(disk: SharedDisk) -> None:
    disk.put("a", b"one")
    disk.append("a", b"two")
    disk.rename("a", "b")
    assert (disk.get("b"), disk.names(), disk.claim().fence) == (b"onetwo", ["b"], 3)
    disk.remove("b")
    assert (disk.names(), disk.claim().released) == ([], True)


def test_a_write_that_changes_nothing_needs_no_owner(disk: SharedDisk) -> None:
    disk.put("a", b"one")
    disk.put("a", b"one")
    disk.remove("missing")
    disk.sweep()
    assert disk.claim().fence == 1


def test_folders_apart_have_owners_of_their_own(disk: SharedDisk) -> None:
    trials = disk.apart("trials")
    with disk.own(), trials.apart("a").own():
        trials.apart("a").put("x", b"")
        trials.apart("b").put("x", b"")
        assert trials.names() == ["a", "b"]
        with pytest.raises(Busy):
            disk.folder("inner").own().__enter__()


# --- owners -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_owner_that_lives_is_not_replaced(
    disk: SharedDisk, elsewhere: Callable[[], None]
) -> None:
    with disk.own():
        elsewhere()
        with pytest.raises(Busy, match=rf"another process \(.*, process {os.getpid()}\)"):
            disk.own(patience=2 * LEASE).__enter__()
        with pytest.raises(Busy):
            disk.put("a", b"")


def test_an_owner_that_ended_is_followed_at_once(disk: SharedDisk) -> None:
    disk = SharedDisk(disk.root, "", 3600.0)
    with disk.own():
        disk.put("a", b"one")
    with disk.own():
        assert (disk.get("a"), disk.claim().fence) == (b"one", 2)
    assert {one.name for one in disk.root.iterdir()} == {"fence-2"}


@pytest.mark.slow
def test_an_owner_without_signs_of_life_is_followed_after_its_lease(
    disk: SharedDisk, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases.Leased, "_live", lambda self, lease: None)
    lost = pytest.raises(LeaseLost, match=r"taken over .* lease of 0.4 s")
    with lost, disk.own():
        disk.put("a", b"one")
        elsewhere()
        start = time.monotonic()
        with disk.own():
            assert time.monotonic() - start >= LEASE
            assert disk.get("a") == b"one"
        disk.held[disk.root] = leases.Lease(fence=1)
        disk.put("a", b"late")
    elsewhere()
    assert disk.get("a") == b"one"


def test_of_two_that_follow_one_is_too_late(disk: SharedDisk) -> None:
    disk.put("a", b"one")
    before = disk.claim()
    assert disk.take(before).fence == 2
    with pytest.raises(leases.Overtaken):
        disk.take(before)
    assert {one.name for one in disk.root.iterdir()} == {"fence-2"}
    assert disk.take(disk.claim()).fence == 3
    with pytest.raises(leases.Overtaken):  # its number is free again, and was given
        disk.take(before)
    assert (disk.claim().fence, disk.get("a")) == (3, b"one")


@pytest.mark.slow
def test_many_that_want_a_folder_have_it_one_after_the_other(disk: SharedDisk) -> None:
    def count() -> None:
        for _ in range(5):
            with disk.own(60.0):
                disk.put("count", str(int(disk.get("count") or 0) + 1).encode())

    threads = [threading.Thread(target=count) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert disk.get("count") == b"15"


def test_who_owns_nothing_may_tell_an_owner_to_end(
    disk: SharedDisk, elsewhere: Callable[[], None]
) -> None:
    trial = TrialFolder(disk)
    with trial.own():
        elsewhere()
        assert not trial.cancelled
        trial.cancel()
        assert trial.cancelled
        trial.retry()
        assert not trial.cancelled


# --- an owner that slept ------------------------------------------------------------------------

SLEEPER = """
import sys
from pathlib import Path
from testbed.trial.storage import LeaseLost, SharedDisk, leases

disk = SharedDisk(Path(sys.argv[1]), "", float(sys.argv[2]))
try:
    with disk.own():
        disk.put("kept", b"old")
        disk.put("gone", b"old")
        disk.append("rows", b"1\\n")
        handle = disk.path("rows").open("ab")
        print("owns", flush=True)
        sys.stdin.readline()
        try:
            disk.put("kept", b"refused")
        except LeaseLost as problem:
            print(problem, flush=True)
        leases.Leased.confirm = lambda self: None  # as if it had been stopped behind each look
        handle.write(b"late\\n")
        handle.flush()
        disk.put("kept", b"late")
        disk.put("new", b"late")
        disk.append("rows", b"late\\n")
        disk.put("gone", b"late")
        disk.rename("gone", "moved")
        disk.folder("inner").put("new", b"late")
        disk.remove("gone")
        disk.sign(disk.held[disk.root])
except LeaseLost:
    print("lost", flush=True)
"""


@pytest.fixture
def sleeper(disk: SharedDisk) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the folder, and was stopped."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(disk.root), str(LEASE)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owns\n"
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.communicate()


def law_nothing_late_is_seen(disk: SharedDisk, sleeper: subprocess.Popen[str]) -> str:
    """Takes the folder over, wakes its owner, and compares; returns what that one said."""
    with disk.own():
        sleeper.send_signal(signal.SIGCONT)
        said, _ = sleeper.communicate("go on\n", 60)
        seen = {name: disk.has(name) and disk.get(name) for name in disk.names()}
        assert seen == {"gone": b"old", "kept": b"old", "rows": b"1\n"}
        disk.append("rows", b"2\n")
    assert disk.get("rows") == b"1\n2\n"
    assert disk.claim().released
    return said


@pytest.mark.slow
@pytest.mark.process
def test_what_an_owner_writes_after_its_lease_is_not_seen(
    disk: SharedDisk, sleeper: subprocess.Popen[str]
) -> None:
    said = law_nothing_late_is_seen(disk, sleeper).splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"{disk.root} was taken over by another process while this one stood")
    assert said[1] == "lost"


@pytest.mark.slow
@pytest.mark.process
def test_links_instead_of_copies_are_caught(
    disk: SharedDisk, sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: LocalDisk, to: LocalDisk) -> None:
        for name in source.names():
            if name != shared_disk.LEASE:
                os.link(source.path(name), to.path(name))

    monkeypatch.setattr(shared_disk, "_copy", link)
    with pytest.raises(AssertionError, match="late"):
        law_nothing_late_is_seen(disk, sleeper)


@pytest.mark.slow
@pytest.mark.process
def test_an_owner_that_keeps_the_number_is_caught(
    disk: SharedDisk, sleeper: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedDisk, "take", lambda self, before: leases.Lease(before.fence))
    with pytest.raises(AssertionError, match="late"):
        law_nothing_late_is_seen(disk, sleeper)


def test_a_reader_follows_an_owner_that_is_replaced_meanwhile(
    disk: SharedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.put("a", b"one")
    genuine = LocalDisk.get
    replaced: list[int] = []

    def get(self: LocalDisk, name: str) -> bytes | None:
        if name == "a" and not replaced:
            replaced.append(1)
            disk.take(disk.claim())
        return genuine(self, name)

    monkeypatch.setattr(LocalDisk, "get", get)
    assert disk.get("a") == b"one"


# --- which store a folder has -------------------------------------------------------------------


def test_a_studys_folder_says_it_for_all_within(tmp_path: Path) -> None:
    begin(tmp_path / "x", 0.5)
    study = StudyFolder.at(tmp_path / "x")
    study.put_json("study.json", {})
    study.trial("abc").put_json("trial.json", {"id": "abc"})
    assert study.trial("abc").store == SharedDisk(tmp_path / "x" / "trials" / "abc", "", 0.5)
    assert [one.json("trial.json")["id"] for one in studies(tmp_path)[0].trials()] == ["abc"]
    at = study.trial("abc").path
    assert TrialFolder.at(at) == study.trial("abc")
    assert at.name == study.trial("abc").name == "abc"
    assert isinstance(opened(tmp_path / "other" / "trials" / "abc"), LocalDisk)


def test_the_locks_of_a_study_are_those_that_it_was_begun_with(tmp_path: Path) -> None:
    begin(tmp_path, None)
    assert isinstance(opened(tmp_path), LocalDisk)
    opened(tmp_path).put("study.json", b"{}")
    with pytest.raises(InputError, match=r"--lease 5: the study in .* was begun with file locks"):
        begin(tmp_path, 5.0)
    begin(tmp_path / "x", 60.0)
    begin(tmp_path / "x", 60.0)
    begin(tmp_path / "x", None)
    with pytest.raises(InputError, match=r"--lease 5: .* was begun with leases of 60 s"):
        begin(tmp_path / "x", 5.0)
    for none in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=rf"--lease {none:g}: expected a number of seconds"):
            begin(tmp_path / "y", none)
    assert not (tmp_path / "y").exists()
    LocalDisk(tmp_path / "x").put(places.FILE, b'{"lease": ')
    with pytest.raises(InputError, match=r"x/storage\.json: is damaged: expected"):
        opened(tmp_path / "x" / "trials" / "abc")


@pytest.mark.parametrize("word", ["s3:", "s3:/", "s3://"])
def test_a_protocol_without_a_bucket_is_no_folder_of_this_machine(word: str) -> None:
    for at in (word, Path(word)):
        with pytest.raises(InputError, match=r"s3:/* names no bucket: expected s3://bucket/folder"):
            local(at)


@pytest.mark.parametrize(
    ("at", "kind"),
    [
        ("/", ""),
        ("/home/me/runs", "nfs4"),
        ("/home/me/scratch/x", ""),
        ("/homes", ""),
        ("/a b/x", "fuse.sshfs"),
        ("/a b/over", ""),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(at: str, kind: str) -> None:
    mounts = [
        ("/", "overlay"),
        ("/home", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/scratch", "xfs"),
        (r"/a\040b", "fuse.sshfs"),
        (r"/a\040b/over", "fuse.overlayfs"),
    ]
    assert places.network_among(Path(at), mounts) == kind


def test_a_study_with_file_locks_on_a_network_disk_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "network_among", lambda at, mounts: "nfs4" * bool(mounts))
    assert "lies on a network file system" in StudyFolder.at(tmp_path).lock_note()
    begin(tmp_path, 60.0)
    assert StudyFolder.at(tmp_path).lock_note() == ""
