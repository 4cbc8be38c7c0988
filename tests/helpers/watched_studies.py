"""A study in every state, written without any training, that a driver seems to run."""

import time
from pathlib import Path
from typing import Any

from helpers.studies import ONE_TRIAL, planned

from testbed.registry import default_registry
from testbed.study import orders, plan, runner

STEPS = 50
SEEDS = 6
"""One of each state: finished twice, failed, cancelled, running, waiting."""


def watched(folder: Path, driven: bool = True) -> plan.Plan:
    """The plan of such a study in `folder / "out"`."""
    made = planned(ONE_TRIAL, folder, seeds=SEEDS)
    runner.describe(made, default_registry())
    first, second, failed, cancelled, running, _ = (made.files.trial(t.id) for t in made.trials)
    now = time.time()
    for trial, seconds in ((first, 2.0), (second, 4.0)):
        _curve(trial, now, STEPS)
        ended: dict[str, Any] = {"status": "finished", "metrics": {"energy": 0.5}, "ended": now}
        ended |= {"training_seconds": seconds, "measuring_seconds": 1.0}
        trial.put_json("result.json", ended)
    failed.fail("Traceback\nValueError: on purpose [/x]\n", "ValueError: on purpose [/x]")
    _curve(cancelled, now, 20)
    cancelled.cancel()
    _curve(running, now, 30)
    running.append_sample({"time": now, "memory_mb": 100.0, "cpu_percent": 50.0})
    if driven:
        made.files.put_json(orders.FILE, {"seen": now})
    return plan.make(made.study, default_registry(), made.folder, "cpu")


def _curve(trial: Any, end: float, steps: int) -> None:
    """A row every ten steps, ten seconds apart."""
    for step in range(10, steps + 1, 10):
        at = end - (steps - step)
        trial.append_row({"step": step, "loss": 1.0, "seconds": 10.0, "time": at})
