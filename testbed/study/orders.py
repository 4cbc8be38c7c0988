"""What a driver is told while it runs: small files in the study's folder that it reads in its loop.

orders/<id>.json   {"stop": true}: end the whole study at a checkpoint
                   {"retry": [ids]}: these trials, which failed or were cancelled, run again
driver.json        when the driver was last seen, written by the driver alone

That a trial is cancelled stands in its own folder, where its worker looks.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from testbed.study.plan import Plan, Trial
from testbed.trial.folders import ENDED, Folder
from testbed.trial.storage import Busy
from testbed.trial.study_folder import StudyFolder

FILE = "driver.json"
SECONDS = 5.0
"""Between two signs of life of a driver."""
SILENT = 60.0
"""Seconds without one after which a driver, or a worker, counts as gone."""


def stop(files: StudyFolder) -> None:
    """Tells the driver of a study to stop at a checkpoint."""
    _put(files, {"stop": True})


def retry(files: StudyFolder, trials: Sequence[str]) -> None:
    """Tells the driver of a study that trials have been made ready to run again."""
    _put(files, {"retry": list(trials)})


def driven(files: StudyFolder) -> bool:
    """Whether a driver was seen at work lately."""
    seen = files.json_or_empty(FILE).get("seen")
    return isinstance(seen, int | float) and time.time() - seen < SILENT


def _put(files: StudyFolder, order: dict[str, Any]) -> None:
    _folder(files).put_json(f"{uuid.uuid4().hex}.json", order)


def _folder(files: StudyFolder) -> Folder:
    return Folder(files.store.apart("orders"))


class Orders:
    """What the driver of a plan is told.

    Args:
        plan: its trials.
    """

    def __init__(self, plan: Plan) -> None:
        self._files = plan.files
        self._trials = {trial.id: trial for trial in plan.trials}
        self.stopped = False
        """Whether the study is to stop."""
        self._again: dict[str, None] = {}

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Gives a sign of life every SECONDS; what was said to an earlier driver is forgotten."""
        folder, ended = _folder(self._files), threading.Event()
        folder.store.remove(*folder.store.names())
        who = {"pid": os.getpid(), "host": platform.node(), "began": time.time()}

        def sign() -> None:
            # A full disk, or the loss of the study's folder, stops the driver itself.
            with contextlib.suppress(OSError, Busy):
                self._files.put_json(FILE, {**who, "seen": time.time()}, durable=False)

        def live() -> None:
            while not ended.wait(SECONDS):
                sign()

        sign()
        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._files.store.remove(FILE)
            folder.store.remove(*folder.store.names())

    def read(self) -> None:
        """Takes in the orders that have come, and deletes their files."""
        folder = _folder(self._files)
        for name in folder.store.names():
            order = folder.json_or_empty(name)
            folder.store.remove(name)
            self.stopped |= order.get("stop") is True
            told = (str(id_) for id_ in order.get("retry") or ())
            self._again |= dict.fromkeys(id_ for id_ in told if id_ in self._trials)

    def retried(self) -> list[Trial]:
        """The trials that are to run again, each told once.

        One whose group still runs is told when that has ended.
        """
        again = [self._trials[id_] for id_ in self._again]
        found = [one for one in again if one.state in ("failed", "cancelled")]
        self._again = {
            one.id: None for one in again if one.state not in (*ENDED, "failed", "cancelled")
        }
        for one in found:
            one.state = "new"
        return found
