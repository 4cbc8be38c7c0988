"""What drivers are told while they run: small files in the study's folder, read in their loop.

orders/<id>.json   {"stop": true}: end the whole study at a checkpoint
                   {"retry": [ids]}: these trials, which failed or were cancelled, run again
driver.json        who leads the study, by its lease, and when it was last seen; written by it alone

All drivers of a study read the same files, so that none deletes one that another has still to read:
who begins to lead the study does. That a trial is cancelled stands in its own folder, where its
worker looks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from testbed.study.plan import Plan, Trial
from testbed.trial.folders import ENDED, Folder
from testbed.trial.storage import Busy, StoreAway
from testbed.trial.storage.object_store import ObjectStore
from testbed.trial.study_folder import StudyFolder

FILE = "driver.json"
SECONDS = 5.0
"""Between two signs of life of a driver."""
REMOTE = 15.0
"""Seconds between two signs of life, and two looks for orders, where a server keeps the files.

Each is some requests there, which cost money and time, a million a day at a look for each round of
the driver's loop. Who tells a study to stop waits for its next checkpoints, up to as long, anyway.
"""
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
    """What a driver of a plan is told.

    Args:
        plan: its trials.
        leads: whether it is the one that owns the study's folder.
    """

    def __init__(self, plan: Plan, leads: bool = True) -> None:
        self._files, self._leads = plan.files, leads
        self._trials = {trial.id: trial for trial in plan.trials}
        self._remote = isinstance(self._files.store, ObjectStore)
        self._due = 0.0
        self._heard: set[str] = set()
        self.stopped = False
        """Whether the study is to stop."""
        self._again: dict[str, None] = {}

    def _pass_over(self) -> str:
        """Leaves what was said before, which who leads deletes; the id of that one's lease."""
        store = _folder(self._files).store
        self._heard = set(store.names())
        if not self._leads:
            return ""
        store.remove(*self._heard)
        claim = self._files.claim()
        return claim.id if claim is not None else ""

    @contextlib.contextmanager
    def heeded(
        self, through: Callable[[Callable[[], str]], str] = lambda step: step()
    ) -> Iterator[None]:
        """Listens; what was said before is not heeded. Who leads gives signs of life meanwhile.

        Args:
            through: `Outage.through`, of a driver that waits where the folder is away.
        """
        lease, ended = through(self._pass_over), threading.Event()
        if not self._leads:
            yield
            return
        who = {"pid": os.getpid(), "host": socket.gethostname(), "began": time.time()}
        who |= {"lease": lease}

        def sign() -> None:
            # A full disk, or the loss of the study's folder, stops the driver itself.
            with contextlib.suppress(OSError, Busy):
                self._files.put_json(FILE, {**who, "seen": time.time()}, durable=False)

        def live() -> None:
            while not ended.wait(REMOTE if self._remote else SECONDS):
                sign()

        sign()
        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(StoreAway):  # it says by itself that it is old
                self._files.store.remove(FILE)

    def read(self, at_once: bool = False) -> None:
        """Takes in the orders that have come, each once; where a server has them, now and then.

        Unless they are wanted `at_once`.
        """
        if time.monotonic() < self._due and not at_once:
            return
        self._due = time.monotonic() + (REMOTE if self._remote else 0.0)
        folder = _folder(self._files)
        for name in (one for one in folder.store.names() if one not in self._heard):
            order = folder.json_or_empty(name)
            self._heard.add(name)
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
