"""Where the trials of a study run, behind one interface: see `base.Executor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from testbed.study.executors.base import Executor as Executor
from testbed.study.executors.base import Job as Job
from testbed.study.executors.local import InProcessExecutor as InProcessExecutor
from testbed.study.executors.local import ProcessExecutor as ProcessExecutor
from testbed.study.executors.local import prepare as prepare

if TYPE_CHECKING:
    from testbed.study.engines import ExecutionPlan


def of(engine: ExecutionPlan, devices: Sequence[str]) -> Executor:
    """The processes that an engine trains on, or this one where it has none."""
    if engine.slots == 0:
        return InProcessExecutor()
    return ProcessExecutor(engine.slots, devices, engine.threads)
