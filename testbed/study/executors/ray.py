"""Ray Core: groups of trials as tasks of a cluster, with their resources; retries are the loop's.

A task is the function `perform` and a path. Ray starts no worker for each task (`max_calls=0`) and
tries none again (`max_retries=0`): a task of a lost node ends with an error, and the runner's loop
submits its group again, which goes on from its checkpoint.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError, did_you_mean, missing, one_line
from testbed.plugin_files import PATH_VARIABLE
from testbed.study.executors.assignments import AssignmentFolder
from testbed.study.executors.base import Job, NodeLost, WorkerLost
from testbed.study.executors.cluster import ClusterExecutor

if TYPE_CHECKING:
    from testbed.study.executors.settings import RaySettings

LOCAL = "local"
REACH = 5.0
"""Seconds to wait for an answer at the address of a cluster."""


def perform(path: str) -> None:
    """Does what the assignment in a folder says; this is what a task runs."""
    assignment = AssignmentFolder.at(Path(path))
    outcome = assignment.follow()
    assert outcome is not None
    assignment.answer(outcome)


def connect(settings: RaySettings) -> bool:
    """Connects to the cluster, unless this process is connected; whether it did.

    Raises:
        MissingExtra: ray is not installed.
        InputError: there is no cluster, or it has not what a group takes.
    """
    if importlib.util.find_spec("ray") is None:
        raise missing('executor "ray"', "ray", "ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
    import ray

    fresh = not ray.is_initialized()
    if fresh:
        _reach(settings.address)
        own = settings.address == LOCAL
        where = {"include_dashboard": False} if own else {"address": settings.address}
        try:
            ray.init(log_to_driver=False, logging_level="warning", **where)
        except (ConnectionError, RuntimeError, ValueError) as problem:
            raise InputError(
                f"executor.ray.address = {settings.address!r}: no cluster answers there "
                f'({one_line(problem)}). "local" starts one on this machine.'
            ) from None
    try:
        _check(settings.needed(), ray.nodes(), ray.cluster_resources())
    except InputError:
        if fresh:
            ray.shutdown()
        raise
    return fresh


def _reach(address: str) -> None:
    """Makes sure that something listens at an address: Ray would try for minutes.

    Raises:
        InputError: nothing does.
    """
    said = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", said)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), REACH).close()
    except (OSError, OverflowError) as problem:
        raise InputError(
            f"executor.ray.address = {address!r}: nothing answers at {said} "
            f'({one_line(problem)}). "ray start --head" begins a cluster on a machine and prints '
            'its address; "local" starts one on this machine for the study alone.'
        ) from None


def _check(needed: dict[str, float], nodes: list[dict[str, Any]], total: dict[str, float]) -> None:
    """Refuses what no node has: Ray would wait for it without end.

    Raises:
        InputError: with the resource, and the most that a node has of it.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    for name, amount in needed.items():
        most = max((node.get(name, 0.0) for node in alive), default=0.0)
        if name not in total:
            raise InputError(
                f"executor.ray: no node of the cluster has the resource {name!r}, of which a group "
                f"takes {amount:g}.{did_you_mean(name, total)}"
            )
        if most < amount:
            raise InputError(
                f"executor.ray: a group takes {amount:g} of {name!r}, and no node has more than "
                f"{most:g}."
            )
    if not any(all(node.get(k, 0.0) >= v for k, v in needed.items()) for node in alive):
        raise InputError(f"executor.ray: no node has all that a group takes: {needed}.")


class RayExecutor(ClusterExecutor):
    """Gives each assignment to Ray as a task.

    Args:
        study: the study's folder, on a disk that the nodes share.
        settings: address and resources.
        jobs: how many tasks are in Ray's hands at a time.
        threads: torch's threads in each.
    """

    def __init__(self, study: Path, settings: RaySettings, jobs: int, threads: int) -> None:
        super().__init__(study, jobs, threads)
        self._connected = connect(settings)
        import ray

        needed = settings.needed()
        own = {"num_cpus": needed.pop("CPU"), "num_gpus": needed.pop("GPU", 0)}
        if memory := needed.pop("memory", 0):
            own["memory"] = memory
        # By its name alone: the worker imports it, and Ray pickles no code of ours.
        options = own | {"max_calls": 0, "max_retries": 0, "resources": needed}
        if folders := os.environ.get(PATH_VARIABLE):
            options["runtime_env"] = {"env_vars": {PATH_VARIABLE: folders}}
        self._task = ray.remote(**options)(perform)
        self._running: dict[Any, AssignmentFolder] = {}
        self._refusals: list[InputError] = []

    def take(self, assignment: AssignmentFolder, job: Job, future: Future[list[str]]) -> None:
        """Starts a task for the assignment."""
        assignment.begin(job, self._threads)
        ref = self._task.remote(str(assignment.path))
        self._running[ref] = assignment
        done: Callable[[Future[Any]], None] = partial(self._settle, ref, assignment, job, future)
        ref.future().add_done_callback(done)
        if self._stopped:  # meanwhile, by a signal
            assignment.ask_to_stop()

    def advance(self) -> None:
        """Says what a worker has refused; of the end of a task Ray tells by itself.

        Raises:
            InputError: a worker refused its assignment.
        """
        if self._refusals:
            raise self._refusals[0]

    def _settle(
        self,
        ref: Any,
        assignment: AssignmentFolder,
        job: Job,
        future: Future[list[str]],
        done: Future[Any],
    ) -> None:
        """Ends the future of a job; the worker's answer counts more than what Ray says."""
        from ray.exceptions import LocalRayletDiedError, NodeDiedError, RayTaskError

        self._running.pop(ref, None)
        problem = done.exception()
        lost = "it left no answer" if problem is None else one_line(problem)
        if isinstance(problem, RayTaskError) and not assignment.has("outcome.json"):
            said = str(problem).strip().splitlines()[-1]
            self._refusals.append(InputError(f"executor.ray: a worker could not begin: {said}"))
            return
        try:
            died = isinstance(problem, NodeDiedError | LocalRayletDiedError)
            kind = NodeLost if died else WorkerLost
            assignment.settle(future, job, kind(f"Ray: {lost}"))
        except InputError as refusal:
            self._refusals.append(refusal)
        except OSError as unread:
            future.set_exception(unread)

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end; what waits ends as it starts."""
        super().stop()
        for assignment in list(self._running.values()):
            assignment.ask_to_stop()

    def close(self, kill: bool = False) -> None:
        """Leaves the cluster, and ends it where it was started here."""
        super().close(kill)
        import ray

        for ref in list(self._running) if kill else ():
            ray.cancel(ref, force=True)
        if self._connected:
            ray.shutdown()
            self._connected = False
