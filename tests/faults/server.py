"""An MLflow server that goes away in the midst of a study, and comes back after it, or within."""

from __future__ import annotations

from pathlib import Path

from faults import checker, kills
from faults.stores import training, until
from faults.subject import SEQUENTIAL, command, lay_out, start
from faults.verdict import Scenario, Verdict
from helpers.mlflow_server import Server, serving


def gone(folder: Path, back: bool) -> Verdict:
    """Killed when the study trains; started again in the midst of it, or after it, with sync."""
    found = Verdict(cases=1)
    lay_out(folder)
    with serving(Server(folder)) as server:
        address = {"MLFLOW_TRACKING_URI": server.address}
        running = start(folder, *command(SEQUENTIAL), **address)
        found.hold(until(training(folder), running), "it does not train")
        server.kill()
        found.kills += 1
        if back:
            log = running.log.with_suffix(".out")
            found.hold(until(lambda: "does not answer" in log.read_text(), running), "no warning")
            server.start()
        ended = running.wait()
        found.hold(ended.code == 0, f"exit code {ended.code}: {ended.said[-1500:]}")
        found.hold(ended.out.count("does not answer") == 1, f"said: {ended.said[-1500:]}")
        found.hold("Traceback" not in ended.said, f"a traceback: {ended.said[-1500:]}")
        at, reference = folder / "runs" / "small", kills.reference("sequential")
        if back:
            found.hold("answers again" in ended.out, f"said: {ended.said[-1500:]}")
            found.problems += checker.everything(at, reference, server.address)
        else:
            found.hold("testbed sync" in ended.out, f"said: {ended.said[-1500:]}")
            away = start(folder, *command((), "sync"), **address).wait()
            found.hold(away.code == 1, f"sync without a server: exit code {away.code}")
            found.hold("study goes on" not in away.said, f"sync says {away.said}")
            server.start()
        for _ in range(2):
            kills.clean(start(folder, *command((), "sync"), **address).wait(), found)
            found.problems += checker.everything(at, reference, server.address)
    return found


SCENARIOS: dict[str, Scenario] = {
    "server: away, then sync": lambda at: gone(at, back=False),
    "server: away and back": lambda at: gone(at, back=True),
}
