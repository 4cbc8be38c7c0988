"""A PostgreSQL of this machine's, in a folder of its own, with the roles of the how-to page."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from helpers.mlflow_server import free_port
from helpers.paths import ROOT

PAGE = ROOT / "docs" / "how-to" / "mlflow-server.md"
SUPERUSER, OWNER, SERVER = "postgres", "mlflow_owner", "mlflow"
"""Roles: the cluster's, that of the tables, and that which MLflow's server has."""
DUMP = ("--format=custom", "--file=mlflow.dump", "mlflow")
RESTORE = ("--clean", "--create", "--dbname=postgres", "mlflow.dump")
UNPRIVILEGED = ("postgres", "nobody")


def roles(passwords: dict[str, str]) -> dict[str, str]:
    """The page's SQL by the database that it is run in, with these passwords."""
    blocks = re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {}
    for database, block in zip(("postgres", "mlflow"), blocks, strict=True):
        for role, password in passwords.items():
            block = block.replace(f"{role.upper()}_PASSWORD", password)
        found[database] = block
    return found


def account() -> str:
    """Whom PostgreSQL's programs run as: they refuse root. Empty where it is who runs this."""
    if os.geteuid():
        return ""
    known = {one.pw_name for one in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED if name in known)


@dataclass
class Postgres:
    """Its data lie in `folder`, and it listens on 127.0.0.1 alone.

    Args:
        folder: its own; it is handed over to the account that PostgreSQL runs as.
        programs: the folder of initdb and postgres.
    """

    folder: Path
    programs: Path
    port: int = field(default_factory=free_port)
    passwords: dict[str, str] = field(
        default_factory=lambda: {r: secrets.token_hex(16) for r in (SUPERUSER, OWNER, SERVER)}
    )
    process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *words: object, **options: Any) -> subprocess.CompletedProcess[Any]:
        """One of PostgreSQL's programs, to its end, as the superuser of the database.

        Raises:
            CalledProcessError: it failed.
        """
        own = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": SUPERUSER}
        own |= {"PGPASSWORD": self.passwords[SUPERUSER], "LC_ALL": "C"}
        command = [self.programs / program, *map(str, words)]
        return subprocess.run(
            command,
            check=True,
            capture_output=True,
            env=own,
            cwd=self.folder,
            **self._as(),
            **options,
        )

    def create(self) -> None:
        """Makes the cluster, starts it, and runs the page's SQL."""
        self.folder.mkdir()
        words = self.folder / "password"
        words.write_text(self.passwords[SUPERUSER])
        if name := account():
            for path in (self.folder, words):
                shutil.chown(path, name)
        safe = ("--auth=scram-sha-256", f"--pwfile={words}", f"--username={SUPERUSER}")
        self.run("initdb", "--no-sync", "--encoding=UTF8", *safe, self.folder / "data")
        words.unlink()
        self.start()
        for database, statements in roles(self.passwords).items():
            with self.connected(database) as connection:
                for one in filter(str.strip, statements.split(";")):
                    connection.execute(one)

    def start(self) -> None:
        """Returns when it answers."""
        where = ("-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", "")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", *where],
                cwd=self.folder,
                env={"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as(),
            )
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(psycopg.OperationalError), self.connected("postgres"):
                return
            time.sleep(0.05)
        raise TimeoutError(f"PostgreSQL does not start: {(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        """Ends it at once, as the end of its machine would; the next start recovers."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """Ends it in peace."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)

    def connected(self, database: str, role: str = SUPERUSER) -> psycopg.Connection[Any]:
        """A connection, each statement of which is a transaction."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=database,
            user=role,
            password=self.passwords[role],
            autocommit=True,
        )

    def address(self, role: str) -> str:
        """As MLflow takes it; the password is in `variables`."""
        return f"postgresql+psycopg://{role}@127.0.0.1:{self.port}/mlflow"

    def variables(self, role: str) -> dict[str, str]:
        """The environment of a client, which nobody else may read; its command everyone may."""
        return {"PGPASSWORD": self.passwords[role]}

    def _as(self) -> dict[str, Any]:
        name = account()
        if not name:
            return {}
        return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@contextlib.contextmanager
def running(folder: Path, programs: Path) -> Iterator[Postgres]:
    """A new PostgreSQL that is gone in the end."""
    made = Postgres(folder, programs)
    try:
        made.create()
        yield made
    finally:
        made.stop()
