"""The executor of a study, by its settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.study.executors.base import Executor
from testbed.study.executors.local import InProcessExecutor, ProcessExecutor
from testbed.study.executors.settings import RAY, SLURM

if TYPE_CHECKING:
    from testbed.study.engines import ExecutionPlan
    from testbed.study.plan import Plan


def of(plan: Plan, engine: ExecutionPlan) -> Executor:
    """The executor that a study file names, with the slots and threads of an engine.

    Raises:
        InputError: it cannot be had here, or has not what the study asks for.
    """
    settings = plan.study.executor
    if settings.name == SLURM:
        from testbed.study.executors.slurm import SlurmExecutor

        return SlurmExecutor(plan.folder, settings.slurm, engine.slots, engine.threads)
    if settings.name == RAY:
        from testbed.study.executors.ray import RayExecutor

        return RayExecutor(plan.folder, settings.ray, engine.slots, engine.threads)
    return local(engine, plan.devices)


def local(engine: ExecutionPlan, devices: Sequence[str]) -> Executor:
    """The processes of this machine that an engine trains on, or this one where it has none."""
    if engine.slots == 0:
        return InProcessExecutor()
    return ProcessExecutor(engine.slots, devices, engine.threads)
