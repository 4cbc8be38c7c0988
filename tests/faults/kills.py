"""SIGKILL to the whole study, to its driver or to a worker; then the same command again.

What is left in the end is held against a study that nobody disturbed: bit for bit on disk, and
each run, metric and point once in MLflow.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from faults import checker
from faults.subject import BATCHED, SEQUENTIAL, Ended, Moment, command, lay_out, left, start, study
from faults.verdict import Scenario, Verdict
from helpers.command_line import run_here, trials_only

ENGINES = {"batched": BATCHED, "sequential": SEQUENTIAL}
STORE = (
    Moment("group", "open", "mlflow.db.lock"),
    Moment("driver", "sqlite3.connect", "mlflow.db.new"),
    Moment("group", "open", "mlflow.db.new"),
    Moment("group", "os.rename", "mlflow.db"),
    Moment("group", "os.rename", "mlflow.json"),
    Moment("driver", "os.rename", "mlflow.json", 2),
)
TRAINING = (
    Moment("group", "os.rename", "small/study.json"),
    Moment("group", "os.rename", "plan.json"),
    Moment("group", "open", "checkpoint.tmp"),
    Moment("driver", "os.rename", "checkpoint", 2),
    Moment("group", "os.rename", "checkpoint.previous"),
    Moment("driver", "open", "rows.jsonl", 11),
    Moment("group", "os.rename", "rows.jsonl"),
)
MEASURING = (
    Moment("group", "os.rename", "weights.safetensors"),
    Moment("driver", "os.rename", "levels.csv"),
    Moment("group", "os.rename", "samples.safetensors"),
    Moment("group", "os.rename", "result.json"),
    Moment("driver", "os.rename", "result.json"),
    Moment("group", "os.remove", "checkpoint"),
)
CLOSING = (
    Moment("driver", "open", "artifacts/trial.json"),
    Moment("group", "open", "artifacts/weights.safetensors", 2),
    Moment("group", "os.rename", "mlflow.json", 2),
    Moment("driver", "os.rename", "small/tweedie.json"),
    Moment("group", "os.rename", "small/study.json", 2),
    Moment("group", "open", "results.csv"),
    Moment("group", "open", "report.html"),
    Moment("driver", "open", "artifacts/report.html"),
    Moment("group", "os.rename", "mlflow.json"),
)
IN_WORKERS = (
    Moment("self", "open", "checkpoint.tmp", 2),
    Moment("self", "open", "rows.jsonl", 7),
    Moment("self", "os.rename", "weights.safetensors"),
    Moment("self", "os.rename", "result.json"),
)
RANDOM = 5


@functools.cache
def reference(engine: str) -> dict[str, checker.Kept]:
    """What a study leaves that nobody disturbs; made once, with a driver in this process."""
    folder = lay_out(Path(tempfile.mkdtemp(prefix="faults-")))
    words = "study", "small.toml", *ENGINES[engine], "--no-mlflow"
    try:
        with trials_only():
            ended = run_here(folder, *words)
        assert ended.code == 0, ended.err
        return checker.trials(folder / "runs" / "small")
    finally:
        shutil.rmtree(folder)


def clean(ended: Ended, found: Verdict) -> None:
    """A command that went to its end without a word on stderr."""
    found.hold(ended.code == 0, f"exit code {ended.code}: {ended.said[-800:]}")
    found.hold("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
    found.hold("does not answer" not in ended.said, f"MLflow was given up: {ended.said[-800:]}")


def checked(folder: Path, engine: str, found: Verdict) -> None:
    """Holds what the folder has in the end against the reference."""
    address = f"sqlite:///{folder / 'mlflow.db'}"
    found.cases += 1
    found.problems += checker.everything(folder / "runs" / "small", reference(engine), address)
    found.problems += [f"{file.name} is left" for file in folder.glob("mlflow.db.new*")]


def targeted(folder: Path, engine: str, moments: Sequence[Moment]) -> Verdict:
    """One study, killed at each moment in turn."""
    lay_out(folder)
    found, sessions = Verdict(), []
    for moment in moments:
        ended = study(folder, ENGINES[engine], moment)
        sessions.append(ended.session)
        found.kills += ended.fired
        found.hold(ended.fired, f"the moment did not come: {moment}; {ended.said[-500:]}")
        found.hold(not ended.fired or ended.code == -9, f"{moment}: it ended by {ended.code}")
        found.hold("Traceback" not in ended.err, f"{moment}: {ended.err[-1500:]}")
    ended = study(folder, ENGINES[engine])
    clean(ended, found)
    found.hold(not left([*sessions, ended.session]), "processes are left")
    checked(folder, engine, found)
    return found


def in_workers(folder: Path, engine: str, moments: Sequence[Moment]) -> Verdict:
    """A study for each moment, at which one of its workers is killed: it goes on by itself."""
    found = Verdict()
    for number, moment in enumerate(moments):
        here = lay_out(folder / str(number))
        ended = study(here, ENGINES[engine], moment)
        found.kills += ended.fired
        found.hold(ended.fired, f"the moment did not come: {moment}")
        clean(ended, found)
        found.hold(not left([ended.session]), "processes are left")
        checked(here, engine, found)
    return found


def at_random(folder: Path, engine: str, kills: int, seed: int) -> Verdict:
    """Studies that are killed at random times until there were so many kills."""
    chance, found, number, sessions = Random(seed), Verdict(), 0, []
    here = lay_out(folder / "0")
    while found.kills < kills:
        running = start(here, *command(ENGINES[engine]))
        victim = chance.choice(("group", "driver", "worker"))
        if running.runs(chance.uniform(3, 12)):
            found.kills += running.kill(victim)
        ended = running.wait()
        sessions.append(ended.session)
        if ended.code != -9:
            clean(ended, found)
            checked(here, engine, found)
            number += 1
            here = lay_out(folder / str(number))
    ended = study(here, ENGINES[engine])
    clean(ended, found)
    found.hold(not left([*sessions, ended.session]), "processes are left")
    checked(here, engine, found)
    return found


SCENARIOS: dict[str, Scenario] = {
    "kills: store, batched": lambda at: targeted(at, "batched", STORE),
    "kills: training, batched": lambda at: targeted(at, "batched", TRAINING),
    "kills: training, sequential": lambda at: targeted(at, "sequential", TRAINING),
    "kills: measuring, batched": lambda at: targeted(at, "batched", MEASURING),
    "kills: measuring, sequential": lambda at: targeted(at, "sequential", MEASURING),
    "kills: logging and report, batched": lambda at: targeted(at, "batched", CLOSING),
    "kills: workers, batched": lambda at: in_workers(at, "batched", IN_WORKERS),
    "kills: workers, sequential": lambda at: in_workers(at, "sequential", IN_WORKERS),
    "kills: at random, batched": lambda at: at_random(at, "batched", RANDOM, 1),
    "kills: at random, sequential": lambda at: at_random(at, "sequential", RANDOM, 2),
}
