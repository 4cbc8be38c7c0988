"""Several at once: on a fresh store, on one store, and the same study twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from faults import checker, kills
from faults.subject import BATCHED, SEQUENTIAL, SMALL, Running, command, lay_out, left, start
from faults.verdict import Scenario, Verdict

from testbed.study import tracking_store

ONE = SMALL.partition("[[cases]]")[0].replace("steps = 900", "steps = 100")
ONE = ONE.replace('["eps", "v", "edm"]', '["v"]').replace("seeds = 2", "seeds = 1")
ONE += 'dataset = [{ name = "mixture", dim = 2, n = 300, test = 200 }]\n'
SIX = 6


def until(true: Callable[[], bool], running: Running, seconds: float = 120) -> bool:
    """Waits for something while a command runs; whether it came."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        if not running.runs(0.05):
            return true()
    return true()


def training(folder: Path) -> Callable[[], bool]:
    """Whether a trial of the folder's study has a row."""
    return lambda: any(folder.glob("runs/small/trials/*/rows.jsonl"))


def fresh(folder: Path) -> Verdict:
    """Six studies open a store that does not exist yet; three of them have the same name."""
    found = Verdict(cases=SIX)
    address = f"sqlite:///{folder / 'common' / 'mlflow.db'}"
    running = []
    for number in range(SIX):
        name = "same" if number < 3 else f"study{number}"
        here = lay_out(folder / str(number), ONE.replace('"small"', f'"{name}"'))
        words = command(("--engine", "sequential", "--jobs", "1"))
        running.append(start(here, *words, MLFLOW_TRACKING_URI=address))
    for one in running:
        kills.clean(one.wait(), found)
    names = {file.name for file in (folder / "common").iterdir()}
    extra = names - {"mlflow.db", "mlflow.db.lock", "mlartifacts", "mlflow.db-shm", "mlflow.db-wal"}
    found.hold(not extra, f"beside the store lie {extra}")
    tracking_store.silence()
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=address)
    experiments = [one for one in client.search_experiments() if one.name != "Default"]
    wanted = {"testbed/same", *(f"testbed/study{number}" for number in range(3, SIX))}
    found.hold({one.name for one in experiments} == wanted, f"experiments: {experiments}")
    runs = client.search_runs([one.experiment_id for one in experiments])
    found.hold(len(runs) == 2 * SIX, f"{len(runs)} runs for {2 * SIX}")
    for run in runs:
        found.hold(run.info.status == "FINISHED", f"a run is {run.info.status}")
    return found


def common(folder: Path) -> Verdict:
    """Two studies of one name on one store at once; one is killed, and runs again."""
    found = Verdict()
    address = f"sqlite:///{folder / 'common' / 'mlflow.db'}"
    places = {"batched": folder / "one", "sequential": folder / "two"}
    running = {
        engine: start(lay_out(at), *command(kills.ENGINES[engine]), MLFLOW_TRACKING_URI=address)
        for engine, at in places.items()
    }
    if until(training(places["batched"]), running["batched"]):
        found.kills += running["batched"].kill("group")
    running["batched"].wait()
    running["again"] = start(places["batched"], *command(BATCHED), MLFLOW_TRACKING_URI=address)
    for name in ("sequential", "again"):
        kills.clean(running[name].wait(), found)
    for engine, at in places.items():
        found.cases += 1
        reference = kills.reference(engine)
        found.problems += checker.everything(at / "runs" / "small", reference, address)
    found.hold(not left([one.session for one in running.values()]), "processes are left")
    return found


def twice(folder: Path) -> Verdict:
    """The same study, and sync of it, while it runs: told, and the study is not disturbed."""
    found = Verdict()
    lay_out(folder)
    first = start(folder, *command(SEQUENTIAL))
    found.hold(until(training(folder), first), "it does not train")
    for words in (command(SEQUENTIAL), command((), "sync")):
        ended = start(folder, *words).wait()
        found.cases += 1
        found.hold(ended.code == 2, f"{words[0]}: exit code {ended.code}: {ended.said}")
        message = "testbed: runs/small is being worked on by another process"
        found.hold(ended.err.startswith(message), f"{words[0]}: {ended.said}")
        found.hold(ended.err.count("\n") == 1, f"{words[0]}: {ended.err}")
    found.hold(first.runs(0), "the study was over before the second began")
    kills.clean(first.wait(), found)
    kills.checked(folder, "sequential", found)
    return found


SCENARIOS: dict[str, Scenario] = {
    "at once: six on a fresh store": fresh,
    "at once: two on one store": common,
    "at once: the same study": twice,
}
