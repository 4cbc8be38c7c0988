"""A folder in an object store, behind a network that drops, delays and repeats requests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.faulty_proxy import Proxy, Request, faults
from helpers.store_operations import answers

from testbed.errors import InputError
from testbed.trial.storage import Busy, LeaseLost, LocalDisk, begin, bucket, leases, local, places
from testbed.trial.storage.object_store import ObjectStore, Owned
from testbed.trial.study_folder import StudyFolder

LEASE = 0.4
pytestmark = pytest.mark.slow


@pytest.fixture
def store(proxy: Proxy, tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "here", "", LEASE, f"s3://bucket/{tmp_path.name}")


@pytest.fixture
def there(store: ObjectStore, tmp_path: Path) -> ObjectStore:
    """The same folder on another machine."""
    return ObjectStore(tmp_path / "there", "", LEASE, store.url)


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No owner gives signs of life."""
    monkeypatch.setattr(leases.Leased, "_live", lambda self, lease: None)


def content(store: ObjectStore) -> dict[str, bytes | None]:
    return {name: store.get(name) for name in store.names() if store.has(name)}


# --- the operations -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_owner_sees_what_a_local_disk_shows(
    store: ObjectStore, there: ObjectStore, proxy: Proxy, tmp_path: Path, seed: int
) -> None:
    disk = LocalDisk(tmp_path / "disk")
    proxy.fault = faults(seed)
    with store.own():
        for mine, other in zip(answers(store, seed, 12), answers(disk, seed, 12), strict=True):
            assert mine == other
            proxy.flush()
    proxy.calm()
    assert there.names() == disk.names()
    for folder in (there, there.folder("inner"), there.folder("inner").folder("deep")):
        same = LocalDisk(disk.at / folder.inner)
        assert content(folder) == {n: same.get(n) for n in same.names() if same.has(n)}


def test_objects_are_named_by_their_digest_and_go_when_replaced(store: ObjectStore) -> None:
    store.put("a", b"one")
    store.put("a", b"two")
    (name,) = bucket.names(f"{store.url}/objects")
    assert re.fullmatch(
        r"2-\d+-3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3", name
    )
    assert len(bucket.names(f"{store.url}/manifests")) == 1


def test_a_write_that_changes_nothing_writes_nothing(store: ObjectStore, proxy: Proxy) -> None:
    store.put("a", b"one")
    proxy.seen.clear()
    store.put("a", b"one")
    store.remove("missing")
    store.sweep()
    assert not {request.method for request in proxy.seen} & {"PUT", "POST", "DELETE"}


def test_folders_apart_are_listed_and_have_owners_of_their_own(store: ObjectStore) -> None:
    trials = store.apart("trials")
    assert trials.names() == []
    with store.own(), trials.apart("a").own():
        trials.apart("a").put("x", b"")
        trials.apart("b").put("x", b"")
        assert trials.names() == ["a", "b"]


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_told(
    store: ObjectStore, there: ObjectStore
) -> None:
    store.put("a", b"one")
    store.path("a").write_bytes(b"two")
    assert store.get("a") == b"one"
    (name,) = bucket.names(f"{store.url}/objects")
    bucket.delete([f"{store.url}/objects/{name}"])
    assert store.get("a") == b"one"
    bucket.create(f"{store.url}/objects/{name}", b"two")
    with pytest.raises(OSError, match=f"objects/{name}: its content is not what its name says"):
        there.get("a")


@pytest.mark.parametrize("after", range(4))
def test_a_driver_cut_off_after_any_request_leaves_the_old_files_or_the_new(
    store: ObjectStore, there: ObjectStore, proxy: Proxy, asleep: None, after: int
) -> None:
    with store.own():
        store.put("a", b"old")
        store.put("b", b"old")
        proxy.seen.clear()
        proxy.fault = lambda request: "request lost" if len(proxy.seen) > after else ""
        bucket._file_system("s3").retries = 1
        if after < 3:  # two objects, of which one is the manifest; then it is looked up
            with pytest.raises(OSError, match=r"\S"):
                store.put("a", b"new")
        else:
            store.put("a", b"new")
        proxy.calm()
        assert content(there) == {"a": b"old" if after < 2 else b"new", "b": b"old"}
        store.append("b", b"er")  # the store is back
    assert content(there) == {"a": b"new", "b": b"older"}


def test_what_a_killed_owner_uploaded_and_did_not_name_goes_with_the_next(
    store: ObjectStore, there: ObjectStore
) -> None:
    store.put("a", b"one")
    for name in ("1-9-abc", "2-9-abc", "3-9-abc"):
        bucket.create(f"{store.url}/objects/{name}", b"x")
    (named,) = json.loads(store.claim().sign)["files"].values()
    with there.own():
        assert bucket.names(f"{store.url}/objects") == sorted([named, "2-9-abc", "3-9-abc"])


# --- owners -------------------------------------------------------------------------------------


def test_an_owner_that_lives_is_not_replaced(
    store: ObjectStore, there: ObjectStore, proxy: Proxy
) -> None:
    with store.own(), pytest.raises(Busy, match="another process"):
        there.own(patience=LEASE).__enter__()


def law_nothing_late_is_seen(store: ObjectStore, there: ObjectStore, proxy: Proxy) -> None:
    """An owner sleeps, another takes over, and all that the first has sent or sends arrives."""
    lost = pytest.raises(LeaseLost)
    with lost, store.own():
        store.put("a", b"old")
        store.put("b", b"old")
        with there.own():
            there.put("b", b"new")
            now = {"a": b"old", "b": b"new"}
            for request in list(proxy.seen):
                if request.method in ("PUT", "DELETE", "POST"):
                    proxy.forward(request)
            assert content(there) == now
            for write in (
                lambda: store.put("b", b"late"),
                lambda: store.sign(store.held[store.root]),
                lambda: store.remove("a"),
            ):
                with pytest.raises(LeaseLost):
                    write()
                store.held[store.root].lost = False
                assert content(there) == now
        assert content(there) == now
        raise LeaseLost
    assert content(store) == now


def test_what_arrives_after_a_lease_is_not_seen(
    store: ObjectStore, there: ObjectStore, proxy: Proxy, asleep: None
) -> None:
    law_nothing_late_is_seen(store, there, proxy)


def test_manifests_without_a_condition_are_caught(
    store: ObjectStore,
    there: ObjectStore,
    proxy: Proxy,
    asleep: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overwrite(url: str, content: bytes) -> bool:
        bucket._file_system("s3").pipe_file(url, content)
        return True

    monkeypatch.setattr(bucket, "create", overwrite)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law_nothing_late_is_seen(store, there, proxy)


def test_of_two_that_follow_one_is_too_late(store: ObjectStore, there: ObjectStore) -> None:
    store.put("a", b"one")
    before = store.claim()
    assert store.take(before).fence == 2
    with pytest.raises(leases.Overtaken):
        there.take(before)
    store.sign(third := store.take(store.claim()))
    with pytest.raises(leases.Overtaken):  # its number is free again, and was given
        there.take(before)
    assert isinstance(third, Owned)
    assert (there.claim().fence, content(there)) == (3, {"a": b"one"})


def test_two_contend_behind_a_bad_network_and_no_step_is_lost(
    store: ObjectStore, there: ObjectStore, proxy: Proxy
) -> None:
    proxy.fault = faults(5, rate=0.1)
    for n in range(3):
        for one in (store, there):
            with one.own(60.0):
                one.put("count", str(int(one.get("count") or 0) + 1).encode())
                one.append("rows", f"{n}\n".encode())
            proxy.flush()
    proxy.calm()
    assert content(store) == {"count": b"6", "rows": b"0\n0\n1\n1\n2\n2\n"}


# --- a study at a URL ---------------------------------------------------------------------------


def test_a_store_without_conditional_puts_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    def without(request: Request) -> Request:
        kept = {k: v for k, v in request.headers.items() if k.lower() != "if-none-match"}
        return Request(request.method, request.path, kept, request.body)

    proxy.change = without
    with pytest.raises(InputError, match="does not refuse to write an object that there is"):
        begin("s3://bucket/refused", None)
    assert bucket.names("s3://bucket/refused") == []
    with pytest.raises(InputError, match="does not refuse"):
        begin("memory://x", None)
    with pytest.raises(InputError, match="nowhere:// is no protocol"):
        begin("nowhere://x", None)


def test_a_study_at_a_url_is_found_by_it_on_any_machine(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://bucket/{tmp_path.name}/x"
    assert not StudyFolder.at(local(url)).has("study.json")
    begin(url, 5.0)
    study = StudyFolder.at(local(url))
    assert places.address(study.path) == url
    study.put_json("study.json", {})
    study.trial("abc").put_json("trial.json", {"id": "abc"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    begin(Path(url), None)  # typer makes a path of it
    found = StudyFolder.at(local(Path(url)))
    assert found.path != study.path
    assert found.store == ObjectStore(found.path, "", 5.0, url)
    assert [one.name for one in found.trials()] == ["abc"]
    assert StudyFolder.at(local(f"{url}/trials/abc")).json("trial.json") == {"id": "abc"}
    with pytest.raises(InputError, match=r"--lease 7: the study in s3:.* was begun with .* 5 s"):
        begin(url, 7.0)
