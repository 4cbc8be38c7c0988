"""`python tests/servers FOLDER [--smoke]`: ten drivers, MLflow's server and PostgreSQL, for real.

FOLDER has PostgreSQL's programs. The server is killed and started again while the drivers send; all
runs and metrics are counted in the database then. Ends with 1 if one is missing or there twice.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.faulty_proxy import Proxy, Request
from helpers.mlflow_server import Server, serving

from servers import count, drivers, postgres

DRIVERS = 10
WHOLE_KILLS = 5
LOST = 0.05
"""The share of requests that a bad network repeats, or loses the answers of."""
LIMIT = 240.0


def migrated(database: postgres.Postgres) -> None:
    """MLflow's tables and those of its accounts, made by the role that owns them."""
    address = database.address(postgres.OWNER)
    for words in (["mlflow", "db", "upgrade", address],):
        subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)


def runs(database: postgres.Postgres) -> int:
    """How many the database has."""
    with database.connected("mlflow") as connection:
        row = connection.execute("SELECT count(*) FROM runs").fetchone()
    return int(row[0]) if row else 0


def wait(
    until: Callable[[], bool], sending: list[drivers.Driver], seconds: float = LIMIT
) -> None:
    """Returns when it is so, or all drivers have ended, or too much time has passed."""
    end = time.monotonic() + seconds
    while not until() and any(one.process.is_alive() for one in sending):
        if time.monotonic() > end:
            return
        time.sleep(0.05)


def disturbed(root: Path, programs: Path, kills: int, whole: bool) -> count.Count:
    """Ten drivers at once, and `kills` kills of the server while they send.

    Args:
        root: an empty folder.
        programs: the folder of PostgreSQL's.
        kills: of MLflow's server.
        whole: whether PostgreSQL is killed too, and the network is a bad one.
    """
    with postgres.running(root / "postgres", programs) as database:
        migrated(database)
        server = Server(root, database.address(postgres.SERVER))
        with serving(server):
            proxy = Proxy(server.port, fault=repeating()) if whole else None
            sending = drivers.start(root, [(proxy or server).address] * DRIVERS)
            total = DRIVERS * (1 + 4)
            for kill in range(kills):
                wait(lambda goal=total * (kill + 1) // (kills + 1): runs(database) >= goal, sending)
                server.kill()
                if whole and kill == kills // 2:
                    database.kill()
                    database.start()
                print(f"killed with {runs(database)} of {total} runs", flush=True)
                server.start()
            for one in sending:
                one.process.join(LIMIT)
            with database.connected("mlflow") as connection:
                studies = [one.folder for one in sending]
                found = count.counted(connection, studies, server.artifacts)
            for one in sending:
                text = drivers.said(one)
                if one.process.exitcode or "Traceback" in text:
                    found.problems.append(f"{one.folder.name}: {text[-2000:]}")
                one.process.kill()
            warned = sum("does not answer" in drivers.said(one) for one in sending)
            print(f"{warned} of {DRIVERS} drivers said that the server was away", flush=True)
    return found


def repeating() -> Callable[[Request], str]:
    """A network that repeats requests, and loses answers."""
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
    start, root = time.perf_counter(), Path(tempfile.mkdtemp(prefix="servers-"))
    root.chmod(0o711)  # PostgreSQL's account goes through it to its own folder
    kills = 1 if asked.smoke else WHOLE_KILLS
    try:
        found = disturbed(root, asked.programs, kills, whole=not asked.smoke)
    except Exception:
        found = count.Count(problems=[traceback.format_exc()])
    for problem in found.problems:
        print(problem, flush=True)
    seconds = time.perf_counter() - start
    print(f"{DRIVERS} drivers, {kills} kills: {found.runs} runs, {found.points} points of metrics, "
          f"{found.files} files, {len(found.problems)} problems in {seconds:.0f} s")
    print(f"{os.times().user + os.times().children_user:.0f} s of CPU")
    return bool(found.problems)


if __name__ == "__main__":
    sys.exit(main())
