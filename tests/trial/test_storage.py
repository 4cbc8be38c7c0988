"""The store of a trial's folder: its operations, crashes, owners; that there is no other way."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import errors
from testbed.trial.storage import Busy, LocalDisk

PACKAGE = Path(errors.__file__).parent

# --- no other access ----------------------------------------------------------------------------

OF_PATHS = {
    "exists", "glob", "hardlink_to", "is_dir", "is_file", "iterdir", "lstat", "mkdir", "open",
    "read_bytes", "read_text", "rename", "rglob", "rmdir", "stat", "symlink_to", "touch", "unlink",
    "write_bytes", "write_text",
}  # fmt: skip
OF_FUNCTIONS = {
    "load_file", "log_artifact", "log_artifacts", "read_csv", "read_parquet", "safe_open",
    "save_file", "savefig", "to_csv", "to_json", "to_parquet",
}  # fmt: skip
OF_MODULES = {
    "os": {
        "chmod", "link", "listdir", "makedirs", "mkdir", "open", "remove", "rename", "replace",
        "rmdir", "scandir", "stat", "symlink", "truncate", "unlink", "walk",
    },
    "path": {"exists", "getsize", "isdir", "isfile"},
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
    "np": {"load", "loadtxt", "save", "savetxt", "savez"},
    "torch": {"load", "save"},
}  # fmt: skip
STORAGE = "trial/storage/"

ELSEWHERE = {
    "bundled.py": "files of the package itself",
    "trial/export.py": "a pipeline of diffusers, written where --to says",
    "metrics/features/weights.py": "weights of networks, which the user names",
    "metrics/features/dinov2.py": "weights of networks, which the user names",
    "metrics/features/classifier.py": "the package's own sources",
    "checkpoints/weights.py": "checkpoints of other libraries, which the user names",
    "checkpoints/models.py": "checkpoints of other libraries, which the user names",
    "checkpoints/diffusers_folders.py": "checkpoints of other libraries, which the user names",
    "trial/fixed.py checkpoint": "checkpoints of other libraries, which the user names",
    "checkpoints/diffusers_parts.py": "checkpoints of other libraries, which the user names",
    "cache.py": "the user's cache",
    "networks/autoencoder.py": "the folder of an autoencoder",
    "cli/completion.py": "names for a shell, which waits: nothing that imports torch",
    "cli/components.py _file_named": "plugins' own files",
    "cli/documents.py report": "the report itself",
    "cli/explanation.py": "a picture, written where --out says",
    "cli/terminal.py command": "whether the user stands in a checkout",
    "cli/sharing.py": "a table of studies, written where --out says",
    "cli/studies.py report": "the report itself",
    "cli/models.py": "a table, written where --out says",
    "audit/render.py": "a picture, written where --out says",
    "study/plan.py _folder_problems": "whether a study's folder can be made",
    "study/step_times.py compiles": "the headers of this Python",
    "data/files.py": "data sets",
    "data/text_encoder.py": "the folder of a text encoder",
    "data/readers/__init__.py": "data sets",
    "data/decoded.py": "decoded copies of data sets, in the user's cache",
    "data/image_sets.py": "data sets",
    "data/readers/arrow.py": "data sets",
    "data/readers/idx.py": "data sets",
    "data/readers/image_folders.py": "data sets",
    "data/readers/numpy_files.py": "data sets",
    "data/readers/pictures.py": "data sets",
    "data/readers/safetensors_files.py": "data sets",
    "data/readers/tables.py": "data sets",
    "data/scheduler_files.py": "the configuration of a scheduler that a study names",
    "errors.py absent": "whether what the user names is there at all",
    "errors.py no_such": "names beside one that the user has misspelt",
    "plugin_files.py": "plugins' own files",
    "registry.py": "plugins' own files",
    "report/claims.py": "the report's own tables, wherever it is written",
    "report/drawing.py": "a picture, drawn into memory",
    "report/page.py": "the report itself, written where --out says",
    "report/renewal.py _sources": "the package's own sources",
    "report/study_result.py": "figures and tables of a paper, written where the caller says",
    "study/executors/assignments.py of": "the folder of assignments, its owner's alone",
    "study/executors/slurm.py submit": "the pickles of a cluster, beside the assignments",
    "study/plugins.py": "plugins' own files",
    "study/study_file.py": "study files",
    "study/tracking.py _send_files": "MLflow uploads files, whose path the store tells",
    "study/tracking.py _store": "MLflow uploads files, whose path the store tells",
    "study/tracking_store.py": "MLflow's store, and an empty one in the user's cache",
    "workflow/archive.py": "the archive of a study, and plugins' own files",
    "workflow/verification.py": "an archive, unpacked",
    "templates/__init__.py": "the plugin file that `testbed new` writes",
    "testing/processes.py": "parcels between the processes of the conformance kit",
    "trial/sample.py read_image": "images and masks that the user names",
    "trial/sample.py draw": "samples, written where --out says",
    "trial/sources.py": "the package's own sources",
    "trial/usage.py _memory": "what the machine says of itself",
    "trial/worker.py _processor": "what the machine says of itself",
}
"""Modules, or functions of a module, that access files which are in no folder of a trial."""


def is_access(call: ast.Call) -> bool:
    """Whether a call reads, writes, looks for or deletes a file."""
    of = call.func
    if isinstance(of, ast.Name):
        return of.id == "open" or of.id in OF_FUNCTIONS
    if not isinstance(of, ast.Attribute):
        return False
    receiver = ast.unparse(of.value)
    module = receiver.rpartition(".")[2]
    if module in OF_MODULES:
        return of.attr in OF_MODULES[module] | OF_FUNCTIONS
    if receiver == "self" or receiver.endswith("store"):  # a method of its own, or the store's
        return False
    if of.attr in ("to_csv", "to_json", "to_parquet"):  # without a file they return the content
        return bool(call.args) or any(word.arg in ("path", "path_or_buf") for word in call.keywords)
    if of.attr == "read_csv":
        return not ast.unparse(call.args[0]).startswith("io.BytesIO(")
    return of.attr in OF_PATHS or of.attr in OF_FUNCTIONS


def accesses(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """The outermost function, or method, and the source of each access to a file."""
    for node in ast.iter_child_nodes(tree):
        inside = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside = function or node.name
        if isinstance(node, ast.Call) and is_access(node):
            yield inside, ast.unparse(node)
        yield from accesses(node, inside)


@pytest.mark.slow
def test_a_trials_folder_is_accessed_by_its_store_alone() -> None:
    unused = set(ELSEWHERE)
    for file in sorted(PACKAGE.rglob("*.py")):
        module = file.relative_to(PACKAGE).as_posix()
        if module.startswith(STORAGE):
            continue
        for function, call in accesses(ast.parse(file.read_text())):
            excepted = {module, f"{module} {function}"} & ELSEWHERE.keys()
            assert excepted, f"{module}, {function}: {call}"
            unused -= excepted
    assert not unused, "an exception that nothing needs"


@pytest.mark.parametrize(
    "call",
    [
        "open(at / 'x')",
        "(at / 'error.txt').write_text(text)",
        "file.read_bytes()",
        "file.open('rb')",
        "(at / 'result.json').is_file()",
        "at.glob('*.json')",
        "file.unlink(missing_ok=True)",
        "os.replace(one, other)",
        "os.path.exists(file)",
        "shutil.rmtree(group)",
        "levels.to_csv(at / 'levels.csv', index=False)",
        "levels.to_csv(path_or_buf=file)",
        "table.to_parquet(file)",
        "pd.read_csv(file)",
        "load_file(at / 'weights.safetensors')",
        "safetensors.torch.load_file(file)",
        "np.save(file, x)",
        "torch.load(file)",
        "self._client.log_artifact(run, str(file))",
    ],
)
def test_an_access_is_found(call: str) -> None:
    source = f"def inner():\n    if True:\n        return [{call} for at in places]\n"
    assert [function for function, _ in accesses(ast.parse(source))] == ["inner"]


@pytest.mark.parametrize(
    "call",
    [
        "trial.has('result.json')",
        "self.store.rename('checkpoint', 'checkpoint.previous')",
        "table.to_csv(index=False)",
        "pd.read_csv(io.BytesIO(content))",
        "text.replace('a', 'b')",
        "dataclasses.replace(one, seed=1)",
        "self.open()",
    ],
)
def test_what_is_no_access_is_not_found(call: str) -> None:
    assert not list(accesses(ast.parse(call)))


# --- the operations -----------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> LocalDisk:
    return LocalDisk(tmp_path / "trial")


def test_a_folder_that_is_not_there_is_empty(disk: LocalDisk) -> None:
    assert disk.get("a") is None
    assert disk.names() == []
    assert not disk.has("a")
    disk.remove("a")
    disk.sweep()
    assert not disk.at.exists()


def test_what_is_put_is_got(disk: LocalDisk) -> None:
    disk.put("a", b"one")
    assert (disk.get("a"), disk.has("a"), disk.names()) == (b"one", True, ["a"])
    disk.put("a", b"")
    assert (disk.get("a"), disk.has("a")) == (b"", True)


def test_what_is_put_is_the_file_of_that_name_and_nothing_else(disk: LocalDisk) -> None:
    disk.put("a", b"one")
    assert {file.name: file.read_bytes() for file in disk.at.iterdir()} == {"a": b"one"}


def test_what_is_there_and_cannot_be_read_is_not_called_missing(disk: LocalDisk) -> None:
    disk.folder("a").put("b", b"")
    with pytest.raises(IsADirectoryError):
        disk.get("a")
    assert not disk.has("a")


def test_a_file_in_place_of_the_folder_holds_nothing(disk: LocalDisk) -> None:
    disk.at.write_bytes(b"")
    assert disk.get("a") is None
    assert disk.names() == []
    with pytest.raises(OSError, match="trial"):
        disk.put("a", b"")


def test_appending_adds_to_the_end_and_begins_a_file(disk: LocalDisk) -> None:
    disk.append("a", b"one\n")
    disk.append("a", b"two\n")
    assert disk.get("a") == b"one\ntwo\n"


def test_a_renamed_file_replaces_another(disk: LocalDisk) -> None:
    disk.put("a", b"one")
    disk.put("b", b"two")
    disk.rename("a", "b")
    assert (disk.get("a"), disk.get("b")) == (None, b"one")


def test_removing_takes_what_is_half_written_along(disk: LocalDisk) -> None:
    for name in ("a", "b", "a.tmp", "b.tmp"):
        disk.append(name, b"")
    disk.remove("a", "missing")
    assert {file.name for file in disk.at.iterdir()} == {"b", "b.tmp"}


def test_a_folder_goes_with_its_last_file(disk: LocalDisk) -> None:
    for name in "ab":
        disk.put(name, b"")
    disk.remove("a")
    assert disk.at.exists()
    disk.remove("b")
    assert not disk.at.exists()
    assert disk.at.parent.exists()


def test_names_are_sorted_and_show_folders_and_nothing_half_written(disk: LocalDisk) -> None:
    disk.put("b", b"")
    disk.put("a", b"")
    disk.append("c.tmp", b"half")
    disk.folder("d.tmp").put("a", b"")
    with disk.own():
        assert disk.names() == ["a", "b", "d.tmp"]


def test_sweeping_deletes_what_is_half_written_of_some_files_or_of_all(disk: LocalDisk) -> None:
    for name in ("a", "a.tmp", "b.tmp", "c.tmp"):
        disk.append(name, b"")
    disk.sweep("a", "missing")
    assert {file.name for file in disk.at.iterdir()} == {"a", "b.tmp", "c.tmp"}
    disk.sweep()
    assert {file.name for file in disk.at.iterdir()} == {"a"}


def test_a_path_is_where_the_file_lies(disk: LocalDisk) -> None:
    disk.folder("inner").put("a", b"one")
    assert disk.path("inner") == disk.folder("inner").path() == disk.at / "inner"
    assert disk.folder("inner").path("a").read_bytes() == b"one"


# --- whole or not at all ------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from testbed.trial.storage import LocalDisk

def listen(event, arguments):
    if event == "os.rename":
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(listen)
LocalDisk(Path(sys.argv[1])).put("a", b"new" * 100_000)
"""


def python(source: str, *words: object) -> subprocess.Popen[str]:
    """Another process with this package on its path."""
    command = [sys.executable, "-c", source, *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_kill_before_the_rename_leaves_what_there_was(
    disk: LocalDisk, before: bytes | None
) -> None:
    if before is not None:
        disk.put("a", before)
    assert python(KILLED, disk.at).wait(60) == -signal.SIGKILL
    assert disk.path("a.tmp").stat().st_size == 300_000
    assert disk.get("a") == before
    assert disk.names() == ["a"] * (before is not None)
    disk.put("a", b"newest")
    assert {file.name: file.read_bytes() for file in disk.at.iterdir()} == {"a": b"newest"}


def test_content_is_on_the_disk_before_its_name_and_the_name_before_put_returns(
    disk: LocalDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.at.mkdir()
    done: list[str] = []
    synced, replaced = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append(f"fsync {os.readlink(f'/proc/self/fd/{handle}')}")
        synced(handle)

    def replace(one: Path, other: Path) -> None:
        done.append(f"replace {one} {other}")
        assert one.read_bytes() == b"content"
        replaced(one, other)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    disk.put("a", b"content")
    a = disk.at / "a"
    assert done == [f"fsync {a}.tmp", f"replace {a}.tmp {a}", f"fsync {disk.at}"]


def law_readers_see_whole_files(put: Callable[[LocalDisk, str, bytes], None], at: Path) -> None:
    """While a file is written over and over, a reader gets one of the contents, none half."""
    disk, contents = LocalDisk(at), [b"a" * 200_000, b"b" * 300_000]
    disk.put("file", contents[0])
    ending = threading.Event()

    def write() -> None:
        while not ending.is_set():
            for content in contents:
                put(disk, "file", content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert disk.get("file") in contents
            assert disk.names() == ["file"]
    finally:
        ending.set()
        writer.join()


def in_place(disk: LocalDisk, name: str, content: bytes) -> None:
    """Opens the file itself, as `Path.write_bytes` does."""
    with disk.path(name).open("wb", buffering=0) as handle:
        for start in range(0, len(content), 50_000):
            handle.write(content[start : start + 50_000])
            time.sleep(0.001)


@pytest.mark.slow
def test_readers_see_whole_files(tmp_path: Path) -> None:
    law_readers_see_whole_files(LocalDisk.put, tmp_path)


def test_a_store_that_writes_in_place_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        law_readers_see_whole_files(in_place, tmp_path)


@pytest.mark.parametrize("write", [LocalDisk.put, LocalDisk.append])
def test_a_full_disk_is_told_with_the_name_of_the_file(
    disk: LocalDisk, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    disk.put("a", b"old")
    genuine = Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        genuine(self, mode, *rest, **named).close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(disk, "a", b"new")
    monkeypatch.undo()
    assert errors.disk_is_full(caught.value)
    assert caught.value.filename == str(disk.path("a"))
    assert {file.name: file.read_bytes() for file in disk.at.iterdir()} == {"a": b"old"}


# --- owners -------------------------------------------------------------------------------------

OWNER = """
import sys, time
from pathlib import Path
from testbed.trial.storage import LocalDisk
with LocalDisk(Path(sys.argv[1])).own():
    print("owned", flush=True)
    time.sleep(float(sys.argv[2]))
"""
COUNTER = """
import sys
from pathlib import Path
from testbed.trial.storage import LocalDisk
disk = LocalDisk(Path(sys.argv[1]))
for _ in range(20):
    with disk.own(60.0):
        disk.put("count", str(int(disk.get("count") or 0) + 1).encode())
"""


def test_a_folder_has_one_owner(disk: LocalDisk) -> None:
    busy = pytest.raises(Busy, match="trial is being worked on by another process")
    with disk.own(), busy, disk.own():
        pass
    with disk.own():
        pass


@pytest.mark.slow
@pytest.mark.process
def test_an_owner_in_another_process_is_waited_for(disk: LocalDisk) -> None:
    other = python(OWNER, disk.at, 0.5)
    assert other.stdout is not None
    assert other.stdout.readline() == "owned\n"
    with pytest.raises(Busy), disk.own():
        pass
    with disk.own(patience=60.0):
        assert other.wait(60) == 0


@pytest.mark.slow
@pytest.mark.process
def test_a_killed_owner_owns_nothing(disk: LocalDisk) -> None:
    other = python(OWNER, disk.at, 600)
    assert other.stdout is not None
    assert other.stdout.readline() == "owned\n"
    other.kill()
    other.wait(60)
    with disk.own():
        pass


def test_another_folder_has_an_owner_of_its_own(disk: LocalDisk) -> None:
    with disk.own(), disk.folder("inner").own():
        assert disk.names() == ["inner"]


@pytest.mark.process
def test_a_folder_that_its_owner_deletes_meanwhile_is_owned_anew(
    disk: LocalDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tries = Path.mkdir, list[Path]()

    def mkdir(folder: Path, *rest: Any, **more: Any) -> None:
        made(folder, *rest, **more)
        tries.append(folder)
        if len(tries) == 1:  # the owner before ends here, and its folder is empty
            folder.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with disk.own(patience=5.0):
        assert len(tries) == 2


@pytest.mark.slow
def test_owners_take_turns(disk: LocalDisk) -> None:
    others = [python(COUNTER, disk.at) for _ in range(3)]
    assert [other.wait(120) for other in others] == [0, 0, 0]
    assert disk.get("count") == b"60"
