"""The folder of a study: its own records, and where its trials, groups and data lie.

trials/<id>, groups/<id>         the folders of `testbed.trial.folders`
data/<case>.json, .safetensors   facts about a data set, and real samples
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from testbed.errors import InputError, absent
from testbed.trial.folders import Folder, GroupFolder, TrialFolder
from testbed.trial.storage import Busy, LocalDisk, local, network, url_of


class StudyFolder(Folder):
    """The folder of a study."""

    def trial(self, id_: str) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self.store.apart("trials").apart(id_))

    def group(self, id_: str) -> GroupFolder:
        """The folder of trials that train as one."""
        return GroupFolder(self.store.apart("groups").apart(id_))

    @property
    def data(self) -> Folder:
        """What is known of each case's data."""
        return Folder(self.store.folder("data"))

    def lock_note(self) -> str:
        """What to know of file locks on the file system of the folder; empty where it is local."""
        kind = network(self.path) if isinstance(self.store, LocalDisk) else ""
        return kind and (
            f"{self.path} lies on a network file system ({kind}), where file locks may not hold "
            "between machines: with several drivers or nodes, begin the study with --lease 60."
        )

    @property
    def report(self) -> Folder:
        """Where the report lies, which no owner is needed to write: it is made of the rest."""
        return Folder(LocalDisk(self.path))

    def trials(self) -> list[TrialFolder]:
        """The folders of the trials that have a trial.json, by id."""
        folders = map(self.trial, self.store.apart("trials").names())
        return [one for one in folders if one.has("trial.json")]

    def descriptions(self) -> list[dict[str, Any]]:
        """The trial.json of every trial, by id.

        Raises:
            InputError: one of them is damaged.
        """
        return [one.json("trial.json") for one in self.trials()]

    def key(self) -> str:
        """What marks the study's runs in a tracker: drawn once, and kept in two files."""
        for name in ("study.json", "mlflow.json"):
            if word := self.json_or_empty(name).get("key"):
                return str(word)
        return uuid.uuid4().hex

    def state(self, trial: str) -> str:
        """The state of a trial: new, interrupted (it can resume), cancelled or its result's."""
        own = self.trial(trial)
        if result := own.result():
            return str(result["status"])
        if own.cancelled:
            return "cancelled"
        group = own.group
        training = self.group(group) if group else own
        return "interrupted" if training.has("checkpoint") else "new"

    def tidy(self, groups: Collection[str]) -> None:
        """Removes what kills have left: half-written files, and states of what has ended.

        Args:
            groups: the ids of those that are about to run, whose state stays.
        """
        # Its own files alone: --out may name a folder that holds more.
        own = "study.json", "plan.json", "looks.json", "mlflow.json", "tweedie.json", "driver.json"
        kept = "identities.json", "reference.json", "report.json", "coefficients.csv", "drawn.csv"
        self.store.sweep(*own, *kept)
        self.data.store.sweep()
        wanted = set(groups)
        for trial in map(self.trial, self.store.apart("trials").names()):
            with contextlib.suppress(Busy):  # another driver's worker has it, and tidies it itself
                trial.sweep()
                if trial.ended():
                    trial.remove_checkpoint()
                    trial.leave()
                    continue
            wanted.add(trial.group)
        for name in self.store.apart("groups").names():
            group = self.group(name)
            # That a group was split is for other drivers too, whose plan has it whole.
            if name not in wanted and not group.split:
                with contextlib.suppress(Busy):
                    group.remove()


def begun(folder: str | Path) -> StudyFolder:
    """The folder of a study that has been run, by its path or its URL.

    Raises:
        InputError: there is no study.
        OSError: the store does not answer.
    """
    files = StudyFolder.at(local(folder))
    if not files.has("study.json"):
        name = url_of(folder) or folder
        if name == folder and (said := absent(Path(folder), "folder")):
            raise InputError(f"{name}: {said}")
        raise InputError(f"{name} is not a study's folder: it has no study.json.")
    return files


def studies(within: Path) -> list[StudyFolder]:
    """The folders of studies in a folder, such as ./runs."""
    runs = LocalDisk(within)
    return [StudyFolder.at(runs.path(name)) for name in runs.names()]
