"""Who may do what: addresses that are listened at, the database's role, MLflow's accounts."""

from __future__ import annotations

import os
import secrets
import urllib.error
import urllib.request
from pathlib import Path

import psycopg
from helpers.mlflow_server import Server
from servers import drivers, postgres
from servers.bucket import Bucket

LOOPBACK = "0100007F"
"""127.0.0.1 as /proc/net/tcp has it."""
LISTENS = "0A"
FORBIDDEN = (
    "CREATE TABLE more (x int)",
    "DROP TABLE metrics",
    "ALTER TABLE metrics ADD more int",
    "TRUNCATE metrics",
    "CREATE ROLE other",
    "CREATE DATABASE other",
    "COPY metrics TO PROGRAM 'true'",
)
"""What MLflow's server has no need of."""
ADMIN = "admin"


def listening(*ports: int) -> list[str]:
    """Ports that are listened at elsewhere than on 127.0.0.1, or not at all."""
    found: dict[int, set[str]] = {port: set() for port in ports}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, port = local.split(":")
            if state == LISTENS and int(port, 16) in found:
                found[int(port, 16)].add(address)
    return [f"port {p} is listened at on {a}" for p, a in found.items() if a != {LOOPBACK}]


def rights(database: postgres.Postgres) -> list[str]:
    """Statements that the server's role may run although it need not."""
    problems = []
    with database.connected("mlflow", postgres.SERVER) as connection:
        for statement in FORBIDDEN:
            try:
                connection.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                continue
            problems.append(f"the role {postgres.SERVER} may {statement}")
    return problems


def server(folder: Path, database: postgres.Postgres, store: Bucket) -> Server:
    """One with MLflow's accounts, as the page sets it up, and its artifacts in an object store."""
    folder.mkdir()
    address = database.address(postgres.SERVER)
    settings = folder / "accounts.ini"
    settings.write_text(f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = {address}\n")
    variables = {
        **database.variables(postgres.SERVER),
        **store.variables,
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_hex(16),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    return Server(folder, address, ("--app-name", "basic-auth"), variables, store.address)


def accounts(root: Path, study: Path, server: Server) -> list[str]:
    """What a server with accounts gives away without one, or refuses with one."""
    problems = []
    query = f"{server.address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        urllib.request.urlopen(query, timeout=10).close()
        problems.append("the server answers whoever has no account")
    except urllib.error.HTTPError as refusal:
        if refusal.code != 401:
            problems.append(f"without an account the answer is {refusal.code}")
    said: list[str] = []
    if drivers.sync(root, study, server.address, said.append):
        problems.append("a study is taken without an account")
    if not any("401" in line for line in said):
        problems.append(f"without an account the study says {said}")
    os.environ["MLFLOW_TRACKING_USERNAME"] = ADMIN
    os.environ["MLFLOW_TRACKING_PASSWORD"] = server.variables["MLFLOW_AUTH_ADMIN_PASSWORD"]
    if not drivers.sync(root, study, server.address, said.append):
        problems.append(f"with an account the study says {said}")
    return problems
