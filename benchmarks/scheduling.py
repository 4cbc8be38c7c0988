"""What a study on a cluster loses to nodes that die, in a simulation that takes seconds.

    python benchmarks/scheduling.py --out benchmarks/results/scheduling.json

The loop is the driver's own, `testbed.study.runner.execute`, with its queue, its tries and
its resuming; only the clock, the disk and the workers are of the simulation. Workers take lognormal
times of a median, checkpoint every ten minutes, and one node of theirs is lost every hour and back
after ten minutes.
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from testbed.study import runner
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.plan import Plan, Trial
from testbed.study.telling import Telling
from testbed.trial.study_folder import StudyFolder

HOUR, CHECKPOINT, LOST, AWAY = 3600.0, 600.0, 3600.0, 600.0
NODES, WORKERS = 125, 8
SPREAD = 0.5
"""The standard deviation of the logarithm of a duration."""


@dataclass(frozen=True)
class Memory:
    """A store that holds what is put into it."""

    at: Path
    files: dict[Path, bytes]

    def get(self, name: str) -> bytes | None:
        return self.files.get(self.at / name)

    def put(self, name: str, content: bytes, durable: bool = True) -> None:
        self.files[self.at / name] = content

    def append(self, name: str, content: bytes) -> None:
        self.files[self.at / name] = self.files.get(self.at / name, b"") + content

    def remove(self, *names: str) -> None:
        for name in names:
            self.files.pop(self.at / name, None)

    def names(self) -> list[str]:
        return []

    def has(self, name: str) -> bool:
        return self.at / name in self.files

    def folder(self, name: str) -> Memory:
        return Memory(self.at / name, self.files)

    def apart(self, name: str) -> Memory:
        return self.folder(name)

    def confirm(self) -> None: ...

    def path(self, name: str = "") -> Path:
        return self.at / name


class Simulated(Plan):
    """A plan whose folder is in memory."""

    @property
    def files(self) -> StudyFolder:
        return StudyFolder(self.disk)  # type: ignore[arg-type]

    disk = Memory(Path("/nowhere"), {})


@dataclass
class Cluster:
    """Nodes of workers under a clock of their own; the executor that the driver is given."""

    durations: dict[str, float]
    now: float = 0.0
    busy: float = 0.0
    recomputed: float = 0.0
    killed: int = 0
    up: set[int] = field(default_factory=set)
    saved: dict[str, float] = field(default_factory=dict)
    running: dict[Future[Any], tuple[str, int, float]] = field(default_factory=dict)
    events: list[tuple[float, int, str, Any]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    started: set[str] = field(default_factory=set)
    queue_empty: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.up = set(range(NODES))
        self._at(LOST, "lost", None)
        self._free = [node for node in range(NODES) for _ in range(WORKERS)]

    @property
    def slots(self) -> int:
        """The workers of the nodes that are up."""
        return WORKERS * len(self.up)

    def _at(self, when: float, what: str, of: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, what, of))

    def submit(self, job: Any) -> Future[Any]:
        """Starts a trial on a free worker, from its last checkpoint."""
        trial, future = job.trial_dirs[0].name, Future[Any]()
        node = self._free.pop()
        while node not in self.up:
            node = self._free.pop()
        self.running[future] = trial, node, self.now
        left = self.durations[trial] - self.saved.get(trial, 0.0)
        self._at(self.now + left, "ended", future)
        self.started.add(trial)
        if len(self.started) == len(self.durations) and not self.queue_empty:
            self.queue_empty = self.now
        return future

    def monotonic(self) -> float:
        """The clock of the driver."""
        return self.now

    def wait(self, futures: Iterable[Future[Any]], timeout: float, when: str) -> None:
        """Goes on to what happens next."""
        self.now, _, what, of = heapq.heappop(self.events)
        if what == "ended" and of in self.running:
            _, node, start = self.running.pop(of)
            self._worked(start)
            self._free.append(node)
            of.set_result(["finished"])
        elif what == "lost":
            self._lose(int(self.random.choice(sorted(self.up))))
            self._at(self.now + LOST, "lost", None)
        elif what == "back":
            self.up.add(of)
            self._free += [of] * WORKERS

    def _worked(self, start: float) -> None:
        self.busy += self.now - start
        self.spans.append((start, self.now))

    def _lose(self, node: int) -> None:
        self.up.discard(node)
        self._free = [one for one in self._free if one != node]
        for future, (trial, where, start) in list(self.running.items()):
            if where != node:
                continue
            del self.running[future]
            took = self.now - start
            kept = took // CHECKPOINT * CHECKPOINT
            self._worked(start)
            self.recomputed += took - kept
            self.saved[trial] = self.saved.get(trial, 0.0) + kept
            row = {"step": int(self.saved[trial])}
            Simulated.disk.folder("trials").folder(trial).append("rows.jsonl", _line(row))
            self.killed += 1
            future.set_exception(BrokenProcessPool("the node is lost"))
        self._at(self.now + AWAY, "back", node)

    def advance(self) -> None:
        """What was submitted begins at once."""

    def stop(self) -> None:
        """Nothing asks for it."""

    def close(self, kill: bool = False) -> None:
        """Nothing to end."""


def simulate(trials: int, median: float) -> dict[str, float]:
    """Runs so many trials of a median duration in seconds; what it took and lost."""
    draws = np.random.default_rng(1).lognormal(np.log(median), SPREAD, trials)
    config = SimpleNamespace(fixed=None, training=SimpleNamespace(steps=1), seed=0)
    label = {"case": "", "arm": "", "variant": "v"}
    members = [Trial(f"{i:012x}", config, [label]) for i in range(trials)]  # type: ignore[arg-type]
    plan = Simulated(None, Path("/nowhere"), "cpu", members)  # type: ignore[arg-type]
    cluster = Cluster({one.id: float(d) for one, d in zip(members, draws, strict=True)})
    registry: Any = SimpleNamespace(plugins=(), plugin_dirs=())
    engine = ExecutionPlan("sequential", cluster.slots, 1, [Group([one]) for one in members])
    clock: Any = SimpleNamespace(monotonic=cluster.monotonic, time=time.time)
    start = time.process_time()
    parts: Any = cluster, Telling(None), runner.Progress()
    with patch.multiple(runner, wait=cluster.wait, time=clock, POLL=float("inf")):
        outcome = runner.execute(plan, registry, engine, *parts)
    work, all_slots = float(draws.sum()), NODES * WORKERS
    fed = cluster.queue_empty
    tail_busy = sum(_overlap(one, fed) for one in cluster.spans)
    states = list(outcome.statuses.values())
    return {
        "trials": trials,
        "median_hours": median / HOUR,
        "finished": states.count("finished"),
        "failed": states.count("failed"),
        "hours": cluster.now / HOUR,
        "hours_with_a_queue": fed / HOUR,
        "idle_share_with_a_queue": 1 - (cluster.busy - tail_busy) / (fed * all_slots),
        "stragglers_hours": (cluster.now - fed) / HOUR,
        "idle_share_of_stragglers": 1 - tail_busy / max(1e-9, (cluster.now - fed) * all_slots),
        "killed_trials": cluster.killed,
        "recomputed_worker_hours": cluster.recomputed / HOUR,
        "recomputed_share": cluster.recomputed / work,
        "cpu_seconds": time.process_time() - start,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _line(row: dict[str, int]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _overlap(span: tuple[float, float], after: float) -> float:
    return max(0.0, span[1] - max(span[0], after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trials", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--medians", nargs="+", type=float, default=[15 * HOUR, 600.0])
    asked = parser.parse_args()
    found = [simulate(n, median) for n, median in zip(asked.trials, asked.medians, strict=True)]
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
