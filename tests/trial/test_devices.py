"""The cores of a process."""

from __future__ import annotations

import os
import sys

import pytest

from testbed.trial import devices


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bind no process to cores")
def test_cores_that_a_process_may_not_use_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert devices.cores() == 1
        os.sched_setaffinity(0, before)
        assert devices.cores() == len(before)
    finally:
        os.sched_setaffinity(0, before)
