"""`[executor]` of a study file: where the trials run. It is no part of a trial, nor of its id."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from testbed.errors import InputError, unknown
from testbed.settings import Setting
from testbed.trial.specs import Model

IN_PROCESS, PROCESSES = "in-process", "processes"
NAMES = (IN_PROCESS, PROCESSES)


class ExecutorSettings(Model):
    """`[executor]`: the executor, and what each one is told."""

    name: Annotated[
        str,
        Setting(
            '"in-process" runs trials one after the other in the process of the command, and '
            '"processes" in worker processes of the machine, on GPUs one for each.'
        ),
    ] = PROCESSES
    jobs: Annotated[
        int | None,
        Field(ge=0),
        Setting(
            "How many groups of trials run at a time, at most; --jobs overrides it. By default one "
            "for each core of the machine, or for each of its GPUs."
        ),
    ] = None

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
            if wanted not in (None, 0, 1):
                raise InputError(f"{said}: the executor in-process runs one trial at a time.")
            return 0
        return wanted
