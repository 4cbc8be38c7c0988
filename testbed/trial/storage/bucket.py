"""The few operations of an object store that are needed, by fsspec."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from testbed.errors import InputError, did_you_mean, missing, one_line
from testbed.trial.storage.base import StoreAway

CONDITIONAL = ("s3", "s3a")
"""The protocols whose exclusive write is one request that the store itself decides on."""


@functools.cache
def _file_system(protocol: str) -> Any:
    """The file system of a protocol, which fsspec's own configuration gives its settings.

    Raises:
        MissingExtra: fsspec, or what it needs for the protocol, is not installed.
        InputError: there is no such protocol.
    """
    try:
        import fsspec

        # One request at a time, or s3fs asks for the size of each object before it reads it.
        settings = {"use_listings_cache": False, "max_concurrency": 1}
        return fsspec.filesystem(protocol, skip_instance_cache=True, **settings)
    except ImportError:
        raise missing(f"a study folder at {protocol}://", "fsspec with s3fs", "storage") from None
    except ValueError:
        near = did_you_mean(f"{protocol}://", [f"{one}://" for one in CONDITIONAL])
        raise InputError(
            f"{protocol}:// is no protocol that fsspec knows.{near} Expected s3://bucket/folder."
        ) from None


@contextmanager
def _answering(url: str) -> Iterator[Any]:
    """The file system of a URL.

    Raises:
        StoreAway: the library raises anything but that there is an object, or none, or no right.
    """
    system = _file_system(url.partition("://")[0])
    try:
        yield system
    except (FileExistsError, FileNotFoundError, PermissionError):
        raise
    except Exception as problem:
        raise StoreAway(f"{url}: the store does not answer: {one_line(problem)}") from problem


def get(url: str) -> bytes | None:
    """The content of an object; None where there is none.

    Raises:
        StoreAway: it does not answer.
    """
    try:
        with _answering(url) as system:
            return bytes(system.cat_file(url))
    except FileNotFoundError:
        return None


def create(url: str, content: bytes) -> bool:
    """Writes an object that there is not yet; False where there is one with another content.

    A store says of a request that was repeated, since its answer was lost, that there is an object:
    then it is the one that this call wrote.

    Raises:
        StoreAway: it does not answer, and the object may be there or not.
    """
    try:
        with _answering(url) as system:
            system.pipe_file(url, content, mode="create")
    except FileExistsError:
        return get(url) == content
    return True


def delete(urls: Iterable[str]) -> None:
    """Deletes objects, those that there are.

    Raises:
        StoreAway: it does not answer.
    """
    for url in urls:
        with suppress(FileNotFoundError), _answering(url) as system:
            system.rm_file(url)


def names(url: str) -> list[str]:
    """The sorted names of the objects and folders of a folder.

    Raises:
        StoreAway: it does not answer.
    """
    try:
        with _answering(url) as system:
            found = map(str, system.ls(url, detail=False, refresh=True))
    except FileNotFoundError:
        return []
    itself = url.partition("://")[2]
    within = (one.strip("/") for one in found)
    return sorted({one.rpartition("/")[2] for one in within if one != itself})


def require_exclusive_writes(url: str) -> None:
    """Makes sure that of two who write an object of one name, one is refused.

    Raises:
        InputError: the store does not refuse it, so that drivers could not be kept apart.
        StoreAway: it does not answer.
    """
    protocol, probe = url.partition("://")[0], f"{url}/probe-{uuid.uuid4().hex}"
    refused = protocol in CONDITIONAL and create(probe, b"1") and not create(probe, b"2")
    if protocol in CONDITIONAL:
        delete([probe])
    if not refused:
        raise InputError(
            f"{url}: the store does not refuse to write an object that there is already (a "
            "conditional put, If-None-Match), so that two drivers could not be kept apart. "
            "Expected S3 or a store that does as S3 does."
        )
