"""`python tests/servers FOLDER [--smoke]`: ten drivers, MLflow's server and PostgreSQL, for real.

FOLDER has PostgreSQL's programs. The server is killed and started again while the drivers send; all
runs and metrics are counted in the database then. Ends with 1 if one is missing or there twice.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.command_line import environment
from helpers.faulty_proxy import Proxy, Request
from helpers.mlflow_server import Server, serving
from servers import bucket, count, drivers, guarded, postgres

DRIVERS, KILLS = 10, 5
RUNS = DRIVERS * (1 + drivers.TRIALS)
LOST = 0.05
"""The share of requests that a bad network repeats, or loses the answers of."""
LIMIT = 240.0
"""Seconds that drivers are waited for."""


def migrate(database: postgres.Postgres, *command: str) -> None:
    """Makes tables as the role that owns them."""
    own = environment(**database.variables(postgres.OWNER))
    words = [sys.executable, "-m", *command, database.address(postgres.OWNER)]
    subprocess.run(words, check=True, capture_output=True, env=own)


def runs(database: postgres.Postgres) -> int:
    """How many the database has."""
    with database.connected("mlflow") as connection:
        row = connection.execute("SELECT count(*) FROM runs").fetchone()
    return int(row[0]) if row else 0


def wait(until: Callable[[], bool], sending: list[drivers.Driver]) -> None:
    """Returns when it is so, or all drivers have ended, or too much time has passed."""
    end = time.monotonic() + LIMIT
    while not until() and any(one.process.is_alive() for one in sending):
        if time.monotonic() > end:
            return
        time.sleep(0.05)


def restart(database: postgres.Postgres, server: Server, sending: list[drivers.Driver]) -> None:
    """Kills and starts the server once, when half of the runs are there."""
    wait(lambda: runs(database) >= RUNS // 2, sending)
    server.kill()
    print(f"killed with {runs(database)} of {RUNS} runs", flush=True)
    server.start()


def disturb(database: postgres.Postgres, server: Server, sending: list[drivers.Driver]) -> None:
    """Kills and starts the server again and again, PostgreSQL once, with a backup between."""
    for kill in range(KILLS):
        wait(lambda goal=RUNS * (kill + 1) // (KILLS + 1): runs(database) >= goal, sending)
        server.kill()
        print(f"killed with {runs(database)} of {RUNS} runs", flush=True)
        if kill == 1:
            database.run("pg_dump", *postgres.DUMP)
        if kill == 2:
            database.kill()
            database.start()
        server.start()


def sent(sending: list[drivers.Driver]) -> list[str]:
    """What went wrong with the drivers, when all have ended."""
    problems = []
    for one in sending:
        one.process.join(LIMIT)
        text = drivers.said(one)
        if one.process.exitcode or "Traceback" in text:
            problems.append(f"{one.folder.name}: {one.process.exitcode} {text[-2000:]}")
        one.process.kill()
    warned = sum("does not answer" in drivers.said(one) for one in sending)
    print(f"{warned} of {DRIVERS} drivers said that the server was away", flush=True)
    return problems


def counted(
    database: postgres.Postgres, studies: Sequence[Path], stored: Callable[[str], set[str]]
) -> list[str]:
    """What is missing or there twice; tells what the database has."""
    with database.connected("mlflow") as connection:
        found = count.of_studies(connection, studies, stored)
    print(f"{found.runs} runs, {found.points} points of metrics, {found.files} files", flush=True)
    return found.problems


def in_folder(at: Path) -> Callable[[str], set[str]]:
    """The names of a run's files in a folder of artifacts."""
    return lambda path: {file.name for file in (at / path).rglob("*") if file.is_file()}


def smoke(root: Path, database: postgres.Postgres) -> list[str]:
    """Ten drivers and a kill."""
    variables = database.variables(postgres.SERVER)
    server = Server(root, database.address(postgres.SERVER), variables=variables)
    with serving(server):
        sending = drivers.start(root, [server.address] * DRIVERS)
        restart(database, server, sending)
        problems = sent(sending)
        return problems + counted(database, drivers.folders(root), in_folder(server.artifacts))


def whole(root: Path, database: postgres.Postgres) -> list[str]:
    """Ten drivers, a bad network, five kills and one of PostgreSQL; an old backup; accounts."""
    variables = database.variables(postgres.SERVER)
    server = Server(root, database.address(postgres.SERVER), variables=variables)
    stored = in_folder(server.artifacts)
    with serving(server):
        proxy = Proxy(server.port, fault=bad_network())
        sending = drivers.start(root, [proxy.address] * DRIVERS)
        disturb(database, server, sending)
        studies = drivers.folders(root)
        problems = sent(sending) + counted(database, studies, stored)
        problems += guarded.listening(database.port, server.port)
        problems += guarded.rights(database)
        server.kill()
        database.run("pg_restore", *postgres.RESTORE)
        print(f"an old backup: {runs(database)} of {RUNS} runs", flush=True)
        server.start()
        for folder in studies:
            (folder / "mlflow.json").unlink()
            drivers.sync(root, folder, server.address)
        problems += counted(database, studies, stored)
    migrate(database, "mlflow.server.auth", "db", "upgrade", "--url")
    new = drivers.copy(studies[0], root / "new")
    with bucket.serving() as store:
        guard = guarded.server(root / "accounts", database, store)
        with serving(guard):
            problems += guarded.accounts(root, new, guard)
            return problems + counted(database, [new], store.names)


def bad_network() -> Callable[[Request], str]:
    """Repeats requests, and loses answers."""
    draw = random.Random(0)

    def fault(request: Request) -> str:
        return draw.choice(("twice", "answer lost")) if draw.random() < LOST else ""

    return fault


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s servers --", description=__doc__)
    parser.add_argument("programs", type=Path, help="the folder of initdb and postgres")
    parser.add_argument("--smoke", action="store_true", help="one kill, in at most a minute")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with it
    start, root = time.perf_counter(), Path(tempfile.mkdtemp(prefix="servers-"))
    root.chmod(0o711)  # PostgreSQL's account goes through it to its own folder
    try:
        with postgres.running(root / "postgres", asked.programs) as database:
            migrate(database, "mlflow", "db", "upgrade")
            problems = (smoke if asked.smoke else whole)(root, database)
    except Exception:
        problems = [traceback.format_exc()]
    for problem in problems:
        print(problem, flush=True)
    if problems:
        print(f"the folder stays: {root}")
    else:
        shutil.rmtree(root)
    used = os.times()
    cpu = used.user + used.system + used.children_user + used.children_system
    seconds = time.perf_counter() - start
    print(f"{len(problems)} problems in {seconds:.0f} s, {cpu:.0f} s of CPU")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
