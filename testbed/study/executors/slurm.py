"""Slurm, by submitit: groups of trials as array jobs that requeue themselves before their limit.

submitit pickles the function `perform` by its name, and a path. What it offers to checkpoint a job
runs inside a signal handler, at any point of a step; here the signal only sets a flag, training
writes its own checkpoint at the end of a window, and the job then asks Slurm to be requeued.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from testbed.errors import InputError, missing, unknown
from testbed.study.executors.assignments import AssignmentFolder
from testbed.study.executors.base import Job, WorkerLost
from testbed.study.executors.cluster import ClusterExecutor
from testbed.trial.storage import answering

if TYPE_CHECKING:
    from testbed.study.executors.settings import SlurmSettings

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
LARGEST = 1000
"""Tasks of one array: Slurm's own limit is 1001 where a site has not changed it."""
PICKLES = "submitit"
"""The folder of what submitit writes: scripts, pickles and the jobs' logs."""
PATIENCE = 300.0
"""Seconds in which Slurm ends a job that it was asked to requeue."""
STOPPING = 1.0
"""Seconds between two questions, at most, once the jobs were asked to end: somebody waits."""
SILENCE = 600.0
"""Seconds without an answer of squeue's after which the study ends: a controller is restarted now
and then."""


# --- in the job -----------------------------------------------------------------------------------


def perform(path: str) -> None:
    """Does what the assignment in a folder says; this is what a job runs."""
    warnings: list[int] = []

    def warn(number: int, frame: Any) -> None:
        warnings.append(number)

    # USR2 comes before the time limit, TERM with a preemption, which requeues by itself.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, warn)
    assignment = AssignmentFolder.at(Path(path))
    outcome = assignment.follow(lambda: bool(warnings))
    if outcome is not None:
        assignment.answer(outcome)
        return
    if signal.SIGTERM not in warnings:
        _scontrol("requeue", _own_id())
    time.sleep(PATIENCE)
    raise RuntimeError(f"Slurm has not ended job {_own_id()} within {PATIENCE:.0f} seconds.")


def _own_id() -> str:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _scontrol(*words: str) -> str:
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True)
    return done.stdout


# --- in the driver --------------------------------------------------------------------------------


def require(settings: SlurmSettings) -> None:
    """Checks what can be known before a job is submitted.

    Raises:
        MissingExtra: submitit is not installed.
        InputError: Slurm's commands are not here, or the partition does not exist.
    """
    if importlib.util.find_spec("submitit") is None:
        raise missing('executor "slurm"', "submitit", "slurm")
    if absent := [name for name in COMMANDS if shutil.which(name) is None]:
        raise InputError(
            f'executor "slurm": {absent[0]} is not on PATH; run the study where Slurm\'s commands '
            "are, such as a login node."
        )
    try:
        said = _scontrol("show", "partition", "--oneliner")
    except subprocess.CalledProcessError as problem:
        raise InputError(f'executor "slurm": scontrol failed: {problem.stderr.strip()}') from None
    lines = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in said.splitlines()]
    found = {line["PartitionName"]: line for line in lines if "PartitionName" in line}
    if settings.partition and settings.partition not in found:
        raise InputError(
            f"executor.slurm.partition: {unknown('partition', settings.partition, found)}"
        )
    limit = _minutes(found.get(settings.partition, {}).get("MaxTime", ""))
    if limit is not None and settings.minutes > limit:
        raise InputError(
            f"executor.slurm.minutes = {settings.minutes}: partition {settings.partition!r} "
            f"allows {limit}. A job that is at its limit goes on in another one."
        )


def _minutes(limit: str) -> int | None:
    """Slurm's `[days-]hours:minutes:seconds` in minutes; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if found is None:
        return None
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    return (24 * days + hours) * 60 + minutes


class Running(NamedTuple):
    """An assignment in the hands of Slurm."""

    assignment: AssignmentFolder
    job: Job
    future: Future[list[str]]
    id: str


class SlurmExecutor(ClusterExecutor):
    """Submits the assignments of one round as an array, and looks for answers and lost jobs.

    A job of an earlier driver that still waits or runs is followed, not submitted again.

    Args:
        study: the study's folder, on a disk that the nodes share.
        settings: partition and resources.
        jobs: how many tasks of an array run at a time.
        threads: torch's threads in each.
    """

    def __init__(self, study: Path, settings: SlurmSettings, jobs: int, threads: int) -> None:
        super().__init__(study, LARGEST, threads)
        require(settings)
        self._settings, self._jobs = settings, jobs
        self._waiting: list[tuple[AssignmentFolder, Job, Future[list[str]]]] = []
        self._running: list[Running] = []
        self._due = 0.0
        self._gone: set[str] = set()
        self._answered = time.monotonic()

    def take(self, assignment: AssignmentFolder, job: Job, future: Future[list[str]]) -> None:
        """Keeps the assignment for the next array."""
        self._waiting.append((assignment, job, future))

    def advance(self) -> None:
        """Settles what has ended, and submits what waits.

        Raises:
            InputError: sbatch refuses the jobs, a worker its assignment, or squeue fails for long.
        """
        if time.monotonic() < self._due or not (self._waiting or self._running):
            return
        poll = self._settings.poll
        self._due = time.monotonic() + (min(poll, STOPPING) if self._stopped else poll)
        try:
            active = _active()
        except InputError:
            if time.monotonic() - self._answered > SILENCE:
                raise
            return
        self._answered = time.monotonic()
        self._settle(active)
        new = []
        for assignment, job, future in self._waiting:
            id_ = str(assignment.json_or_empty("job.json").get("id", ""))
            if self._stopped:
                future.set_exception(WorkerLost("the study was stopped before it was submitted"))
            elif id_ in active and not assignment.has("outcome.json"):
                assignment.store.remove("stop")
                self._running.append(Running(assignment, job, future, id_))
            else:
                new.append((assignment, job, future))
        self._waiting = new
        if new:
            self._submit(new)
            self._waiting = []

    def _submit(self, new: list[tuple[AssignmentFolder, Job, Future[list[str]]]]) -> None:
        for assignment, job, _ in new:
            assignment.begin(job, self._threads)
        ids = submit([assignment.path for assignment, *_ in new], self._settings, self._jobs)
        for (assignment, job, future), id_ in zip(new, ids, strict=True):
            assignment.put_json("job.json", {"id": id_})
            self._running.append(Running(assignment, job, future, id_))
        if self._stopped:  # meanwhile, by a signal
            self.stop()

    def _settle(self, active: set[str]) -> None:
        """Ends the futures of jobs that have answered, or are gone since two rounds."""
        left, gone = [], set()
        for one in (one for one in self._running if not one.future.done()):
            answered = one.assignment.has("outcome.json")
            late = one.id not in self._gone and not self._stopped
            if not answered and (one.id in active or late):
                # A shared disk may show an answer a moment after Slurm has forgotten the job. Of
                # one that was asked to stop nothing is lost with it: the trial goes on later.
                gone.update({one.id} - active)
                left.append(one)
                continue
            log = one.assignment.path.parent / PICKLES / f"{one.id}_0_log.out"
            lost = "" if answered else f"Slurm's job {one.id} {_end(one.id)}; its log is {log}"
            one.assignment.settle(one.future, one.job, WorkerLost(lost))
        self._running, self._gone = left, gone

    def stop(self) -> None:
        """Asks running trials to write a checkpoint and end; what waits in Slurm is cancelled."""
        super().stop()
        self._due = 0.0
        for one in self._running:
            one.assignment.ask_to_stop()
        self._cancel("--state=PENDING")

    def close(self, kill: bool = False) -> None:
        """Cancels the jobs with `kill`; without it they have ended, or end by themselves."""
        super().close(kill)
        if kill:
            self._cancel()

    def _cancel(self, *words: str) -> None:
        if self._running:
            command = ["scancel", *words, *(one.id for one in self._running)]
            subprocess.run(command, capture_output=True, check=False)


def submit(assignments: list[Path], settings: SlurmSettings, jobs: int) -> list[str]:
    """Submits an assignment each, as one array where there are several; the ids of the jobs.

    Raises:
        InputError: sbatch refuses them; the message is Slurm's own.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = assignments[0].parent / PICKLES
    with answering(folder):
        folder.mkdir(exist_ok=True)
        os.chmod(folder, 0o700)  # what is unpickled in a job, its owner alone may write
    executor = submitit.SlurmExecutor(folder=folder)
    executor.update_parameters(
        job_name=f"testbed-{assignments[0].parents[1].name}",
        time=settings.minutes,
        cpus_per_task=settings.cpus,
        array_parallelism=jobs,
        signal_delay_s=settings.warning,
        stderr_to_stdout=True,
        setup=[*settings.setup],
        additional_parameters={"requeue": True, **settings.options},
        **settings.resources(),
    )
    try:
        with executor.batch():
            made = [executor.submit(perform, str(path)) for path in assignments]
        return [one.job_id for one in made]
    except (FailedJobError, FailedSubmissionError) as problem:
        said = " ".join(str(problem).split())
        raise InputError(f"executor.slurm: sbatch refused the jobs: {said}") from None


def _active() -> set[str]:
    """The ids of the user's jobs that wait, run or are about to end."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f'executor "slurm": squeue failed: {done.stderr.strip()}')
    return set(done.stdout.split())


def _end(id_: str) -> str:
    """How a job ended, where Slurm keeps accounts."""
    command = ["sacct", "--noheader", "--parsable2", "--format=JobID,State,NodeList", "-j", id_]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "ended without an answer"
    rows = [line.split("|") for line in said.splitlines()]
    states = [f"ended as {row[1]} on {row[2]}" for row in rows if row[0] == id_ and len(row) > 2]
    return states[-1] if states else "ended without an answer"
