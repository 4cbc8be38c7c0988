"""The store that a study is logged to: its address, and the making of a new SQLite file.

MLflow makes a new store by some seventy migrations, which takes seconds. The empty store that comes
of them is kept in the user's cache and copied from there.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from testbed import cache
from testbed.errors import InputError
from testbed.trial.storage import Busy, StoreAway

SQLITE = "sqlite:///"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
CREATE = """
import sys
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore("sqlite:///" + sys.argv[1], sys.argv[2])
"""


def silence() -> None:
    """Sets MLflow's switches, before it is imported: no telemetry, no noise."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def uri(given: str = "") -> str:
    """The store: as given, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory."""
    default = f"{SQLITE}{Path('mlflow.db').absolute()}"
    return given or os.environ.get("MLFLOW_TRACKING_URI") or default


def require(address: str) -> None:
    """Makes sure that a store is there to be looked at.

    Raises:
        InputError: the SQLite file or the folder does not exist, or the address is a server's.
    """
    if address.startswith(("http://", "https://")):
        raise InputError(f"MLflow's pages are served at {address} already: open it in a browser.")
    path = address.removeprefix(SQLITE).removeprefix("file://")
    if "://" not in path and not Path(path).exists():
        raise InputError(
            f"there is no MLflow store at {path}: run a study in this folder first, or name a "
            "store with --tracking-uri."
        )


def artifacts(database: Path) -> Path:
    """The folder of the artifacts of the runs in a SQLite file: mlartifacts beside it."""
    return database.with_name("mlartifacts")


def why_untold(problem: Exception, study: Path) -> str:
    """Whether MLflow is to blame, or the folder of the study, of which it is told."""
    what = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    own = isinstance(problem, OSError | InputError) and str(study) in str(problem)
    if own or isinstance(problem, Busy | StoreAway):
        return f"is not told, since the study's folder cannot be read or written ({what})"
    return f"does not answer ({what})"


def prepare(address: str) -> None:
    """Creates a SQLite store that does not exist yet, whole or not at all.

    The empty store of the cache is copied to a temporary file, which is then renamed; a lock keeps
    several studies on a fresh file from doing it at once. Where the cache cannot be written, the
    temporary file is migrated itself.

    Raises:
        InputError: the store could not be created.
    """
    if not address.startswith(SQLITE):
        return
    file = Path(address.removeprefix(SQLITE)).absolute()
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(file) as lock:
        if file.exists():
            return
        new = _cleared(file)
        try:
            shutil.copyfile(empty_store(), new)
        except OSError:
            _migrate(_cleared(file), artifacts(file), lock)
        with contextlib.closing(sqlite3.connect(new)) as database:
            now = int(1000 * time.time())
            database.execute(
                "UPDATE experiments SET artifact_location = ? || '/' || experiment_id, "
                "creation_time = ?, last_update_time = ?",
                (str(artifacts(file)), now, now),
            )
            database.commit()
            database.execute("PRAGMA journal_mode=WAL")
        os.replace(new, file)


def empty_store() -> Path:
    """The empty store in the user's cache; it is made where it is missing or damaged.

    Its name holds MLflow's version and the newest of its migrations, so that another version never
    takes it for its own.

    Raises:
        OSError: the cache cannot be written.
        InputError: MLflow could not create the store.
    """
    version, head = importlib.metadata.version("mlflow"), migration_head()
    file = cache.folder() / f"mlflow-{version}-{head}.db"
    if _is_empty_store(file, head):
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with cache.locked(file) as lock:
        if not _is_empty_store(file, head):
            new = _cleared(file)
            _migrate(new, artifacts(file), lock)
            os.replace(new, file)
    return file


def migration_head() -> str:
    """The newest of MLflow's migrations, read from their files: no other one follows it.

    MLflow itself says it only after imports of a second and more.
    """
    found = importlib.util.find_spec("mlflow")
    assert found is not None
    assert found.submodule_search_locations
    package = found.submodule_search_locations[0]
    revisions: set[str] = set()
    followed: set[str] = set()
    for file in Path(package, "store", "db_migrations", "versions").glob("*.py"):
        text = file.read_text(encoding="utf-8")
        revisions |= set(re.findall(r'^revision\s*=\s*["\'](\w+)', text, re.MULTILINE))
        for line in re.findall(r"^down_revision\s*=(.*)$", text, re.MULTILINE):
            followed |= set(re.findall(r'["\'](\w+)["\']', line))
    return "-".join(sorted(revisions - followed))


def _is_empty_store(file: Path, head: str) -> bool:
    """Whether a file is a whole store of this migration that holds no run."""
    if not file.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            (sound,) = database.execute("PRAGMA quick_check").fetchone()
            heads = database.execute("SELECT version_num FROM alembic_version").fetchall()
            (runs,) = database.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.Error:
        return False
    return sound == "ok" and "-".join(sorted(one for (one,) in heads)) == head and not runs


def _cleared(file: Path) -> Path:
    """The temporary file of a store, without what a killed process has left of it."""
    new = file.with_name(f"{file.name}.new")
    for rest in file.parent.glob(f"{new.name}*"):  # SQLite's own journals too
        rest.unlink()
    return new


def _migrate(file: Path, artifact_folder: Path, lock: int) -> None:
    """Has MLflow create a store, in a process of its own.

    That process holds the lock too: whoever comes after a killed driver waits for its end.

    Raises:
        InputError: MLflow could not create it.
    """
    made = subprocess.run(
        [sys.executable, "-c", CREATE, str(file), str(artifact_folder)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        pass_fds=[lock],
    )
    if made.returncode:
        last = made.stderr.strip().splitlines()[-1:] or ["no message"]
        raise InputError(f"MLflow could not create {file}: {last[0]}")
