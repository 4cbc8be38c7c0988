"""`[executor]` of a study file: where the trials run. It is no part of a trial, nor of its id."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from testbed.errors import InputError, unknown
from testbed.settings import Setting
from testbed.trial.devices import device_of
from testbed.trial.specs import Model

IN_PROCESS, PROCESSES, SLURM, RAY = NAMES = ("in-process", "processes", "slurm", "ray")
CLUSTERS = (SLURM, RAY)
CLUSTER_JOBS = 16


class SlurmSettings(Model):
    """What Slurm is asked for, for each group of trials."""

    partition: Annotated[str, Setting("The partition; without one it is Slurm's default.")] = ""
    account: Annotated[str, Setting("The account that is charged.")] = ""
    qos: Annotated[str, Setting("The quality of service.")] = ""
    constraint: Annotated[str, Setting("The features that a node must have.")] = ""
    minutes: Annotated[
        int,
        Field(ge=1),
        Setting("Time limit of a job. A job that comes near it writes a checkpoint and requeues."),
    ] = 240
    warning: Annotated[
        int,
        Field(ge=1),
        Setting(
            "Seconds before the limit at which a job is warned: more than a training takes from "
            "one point of its curve to the next."
        ),
    ] = 120
    cpus: Annotated[int, Field(ge=1), Setting("Cores of a job.")] = 1
    gpus: Annotated[int, Field(ge=0, le=1), Setting("GPUs of a job; with 1 it trains on cuda.")] = 0
    memory: Annotated[
        float | None,
        Field(gt=0),
        Setting("Memory of a job in GB; without it, the partition's default."),
    ] = None
    setup: Annotated[
        tuple[str, ...], Setting("Shell commands that a job begins with, such as `module load`.")
    ] = ()
    options: Annotated[
        dict[str, str | int],
        Setting('Other options of sbatch, such as `{ "mail-type" = "FAIL" }`.'),
    ] = Field(default_factory=dict)
    poll: Annotated[
        float,
        Field(gt=0),
        Setting("Seconds between two questions to Slurm and the disk after what has ended."),
    ] = 10.0

    @model_validator(mode="after")
    def _warned_in_time(self) -> SlurmSettings:
        if self.warning >= 60 * self.minutes:
            raise ValueError(
                f"warning = {self.warning} seconds before a limit of minutes = {self.minutes} "
                "would warn a job as it starts: give it more minutes, or a warning that is shorter"
            )
        return self

    def resources(self) -> dict[str, Any]:
        """Those of submitit's parameters that are left out where nothing is asked for."""
        stated = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gpus_per_node": self.gpus,
            "mem": f"{round(1024 * self.memory)}MB" if self.memory else "",
        }
        return {key: value for key, value in stated.items() if value}


class RaySettings(Model):
    """What Ray is asked for, for each group of trials."""

    address: Annotated[
        str,
        Setting(
            'The address of a cluster; "local" starts one of this machine alone, and "auto" is the '
            "cluster that this machine belongs to."
        ),
    ] = "auto"
    cpus: Annotated[float, Field(gt=0), Setting("Cores of a group.")] = 1.0
    gpus: Annotated[float, Field(ge=0, le=1), Setting("GPUs of a group, or a part of one.")] = 0.0
    memory: Annotated[
        float | None,
        Field(gt=0),
        Setting("Memory of a group in GB, which Ray counts and does not limit."),
    ] = None
    resources: Annotated[
        dict[str, float],
        Setting("Other resources by the names that the cluster's nodes have given them."),
    ] = Field(default_factory=dict)

    @field_validator("resources")
    @classmethod
    def _own_names(cls, value: dict[str, float]) -> dict[str, float]:
        own = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
        for name in own.keys() & value.keys():
            raise ValueError(f"{name} has a key of its own, executor.ray.{own[name]}: use that")
        return value

    def needed(self) -> dict[str, float]:
        """What a group takes, by Ray's names."""
        own = {"CPU": self.cpus, "GPU": self.gpus, "memory": 2**30 * (self.memory or 0.0)}
        return {name: amount for name, amount in {**own, **self.resources}.items() if amount}


class ExecutorSettings(Model):
    """`[executor]`: the executor, and what each one is told."""

    name: Annotated[
        str,
        Setting(
            '"in-process" runs trials one after the other in the process of the command, and '
            '"processes" in worker processes of the machine, on GPUs one for each; "slurm" and '
            '"ray" give groups of trials to a cluster.'
        ),
    ] = PROCESSES
    jobs: Annotated[
        int | None,
        Field(ge=0),
        Setting(
            "How many groups of trials run at a time, at most; --jobs overrides it. By default one "
            f"for each core of the machine, or for each of its GPUs; {CLUSTER_JOBS} on a cluster."
        ),
    ] = None
    drivers: Annotated[
        int,
        Field(ge=1),
        Setting(
            "How many drivers are to share the study, each with as many workers: trials that train "
            "as one are put into so many times the groups. A trial alone is a group in any case."
        ),
    ] = 1
    slurm: SlurmSettings = SlurmSettings()
    ray: RaySettings = RaySettings()

    @field_validator("name")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in NAMES:
            raise ValueError(unknown("executor", str(value), NAMES))
        return value

    def slots(self, jobs: int | None) -> int | None:
        """The number of jobs at a time; 0 is this process, and None what the machine has.

        Args:
            jobs: what `--jobs` says.

        Raises:
            InputError: a number that the executor cannot have.
        """
        wanted = self.jobs if jobs is None else jobs
        said = f"executor.jobs = {wanted}" if jobs is None else f"--jobs {wanted}"
        if wanted is not None and wanted < 0:
            raise InputError(f"{said} must be 0 or more.")
        if self.name == IN_PROCESS:
            if jobs not in (None, 0, 1):
                raise InputError(f"{said}: the executor in-process runs one trial at a time.")
            return 0
        if self.name not in CLUSTERS:
            return wanted
        if wanted == 0:
            raise InputError(f"{said}: the executor {self.name} runs nothing in this process.")
        return CLUSTER_JOBS if wanted is None else wanted

    def device(self, word: str, option: str = "--device") -> str:
        """The device that trials run on; see `trial.devices.device_of`.

        A worker of a cluster sees the GPUs that are given to it, and no others.

        Raises:
            InputError: there is no such device.
        """
        if self.name not in CLUSTERS:
            return device_of(word, option, several=True)
        gpus = (self.slurm if self.name == SLURM else self.ray).gpus
        own = "cuda" if gpus else "cpu"
        if word not in ("auto", own):
            raise InputError(
                f"{option} {word}: with executor.{self.name}.gpus = {gpus:g} trials run on {own}."
            )
        return own
