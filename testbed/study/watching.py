"""What a study's folder says of a study that runs, or did: states, rates, costs and the end.

It reads the folders of the trials alone, and changes nothing: it is safe beside a driver.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pydantic import ValidationError

from testbed.errors import UnknownName, did_you_mean
from testbed.study import orders
from testbed.trial.config import TrialConfig
from testbed.trial.folders import ENDED, TrialFolder
from testbed.trial.study_folder import StudyFolder

State = Literal["running", "waiting", "finished", "diverged", "failed", "cancelled"]
STATES: tuple[State, ...] = get_args(State)
RECENT = 10
"""The rows of a curve that the present rate of a trial is taken from."""


@dataclass(frozen=True)
class WatchedTrial:
    """A trial as its folder has it.

    Args:
        id: the trial's id.
        label: case, arm and variant that it stands under first.
        seed: its seed; -1 where its description cannot be read.
        state: what it does.
        step: the steps that it has taken.
        steps: those that it takes in all.
        rate: steps a second at present; 0 where it is not known.
        training: seconds of training so far.
        evaluation: seconds of evaluation, of a trial that ended.
        error: what ended it, of one that failed.
        memory_mb: what its worker had in memory last.
        cpu_percent: what its worker used of a core last.
        owner: the machine and process that trains it, of a study with leases.
    """

    id: str
    label: tuple[str, str, str]
    seed: int
    state: State
    step: int = 0
    steps: int = 0
    rate: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    error: str = ""
    memory_mb: float = 0.0
    cpu_percent: float = 0.0
    owner: str = ""

    @property
    def title(self) -> str:
        """`eps · digits · published · seed 0`."""
        case, arm, variant = self.label
        return " · ".join(filter(None, (variant, case, arm, f"seed {self.seed}")))


@dataclass(frozen=True)
class VariantCost:
    """The states of a variant's trials, and what one that ended took, mean over those."""

    label: tuple[str, str, str]
    states: Mapping[State, int]
    training: float
    evaluation: float


@dataclass(frozen=True)
class Watched:
    """A study as its folders have it.

    Args:
        name: the study's name.
        trials: its trials in the order of the study.
        driven: whether a driver was seen at work lately.
        command: the words of the command that runs or resumes it.
        now: when it was read, in seconds since 1970.
    """

    name: str
    trials: Sequence[WatchedTrial]
    driven: bool
    command: Sequence[str]
    now: float = field(default_factory=time.time)

    def count(self, state: State) -> int:
        """How many trials have a state."""
        return sum(one.state == state for one in self.trials)

    @property
    def rate(self) -> float:
        """Steps a second of all trials that run."""
        return sum(one.rate for one in self.trials if one.state == "running")

    @property
    def seconds_left(self) -> float | None:
        """About how long the rest takes as it runs now; None where that is not known.

        The steps that are left at the present rate, and for each trial the mean evaluation of those
        that ended, on as many workers as there are trials that run.
        """
        left = [one for one in self.trials if one.state in ("running", "waiting")]
        if not left:
            return 0.0
        running = self.count("running")
        ended = [one for one in self.trials if one.state in ENDED]
        if not running:
            return None
        evaluation = sum(one.evaluation for one in ended) / len(ended) if ended else 0.0
        steps = sum(one.steps - one.step for one in left)
        if steps and not self.rate:
            return None
        return (steps / self.rate if steps else 0.0) + evaluation * len(left) / running

    def costs(self) -> Iterator[VariantCost]:
        """What each variant costs, in the order of the study."""
        of_label: dict[tuple[str, str, str], list[WatchedTrial]] = {}
        for one in self.trials:
            of_label.setdefault(one.label, []).append(one)
        for label, members in of_label.items():
            ended = [one for one in members if one.state in ENDED]
            means = [
                sum(getattr(one, what) for one in ended) / max(1, len(ended))
                for what in ("training", "evaluation")
            ]
            states = {state: sum(one.state == state for one in members) for state in STATES}
            yield VariantCost(label, states, *means)


def read(files: StudyFolder, ended: dict[str, WatchedTrial] | None = None) -> Watched:
    """Reads a study's folder.

    Args:
        files: the study's folder.
        ended: the trials that ended, as an earlier call has left them here: they are not read
            again while their result is there.

    Raises:
        InputError: the study's own record is missing or damaged.
    """
    study, known = files.json("study.json"), {} if ended is None else ended
    trials = []
    for entry in study.get("trials") or ():
        trial = files.trial(str(entry["id"]))
        one = known.get(trial.name)
        if one is None or not trial.has("result.json"):
            one = _trial(files, trial, entry["labels"])
        if one.state in ENDED:
            known[one.id] = one
        trials.append(one)
    command = (study.get("asked") or {}).get("command") or ["testbed", "study"]
    driven = orders.driven(files) or any(one.owner for one in trials)
    return Watched(str(study.get("name", "")), trials, driven, command)


def _config(trial: TrialFolder) -> TrialConfig | None:
    """The settings of a trial; None where they are not there, or another version's."""
    try:
        return TrialConfig.model_validate(trial.json_or_empty("trial.json").get("config"))
    except ValidationError:
        return None


def _trial(
    files: StudyFolder, trial: TrialFolder, labels: Sequence[Mapping[str, str]]
) -> WatchedTrial:
    first = labels[0]
    config = _config(trial)
    result, state = trial.result(), files.state(trial.name)
    stored: dict[str, Any] = {
        "id": trial.name,
        "label": (first["case"], first["arm"], first["variant"]),
        "seed": config.seed if config else -1,
        "steps": config.training.steps if config else 0,
    }
    if state in ENDED:
        return WatchedTrial(
            **stored,
            state="finished" if state == "finished" else "diverged",
            step=stored["steps"],
            training=result.get("training_seconds") or 0.0,
            evaluation=result.get("measuring_seconds") or 0.0,
        )
    rows = trial.rows()
    stored |= {
        "step": rows[-1]["step"] if rows else 0,
        "training": sum(row.get("seconds") or 0.0 for row in rows),
    }
    if state == "failed":
        return WatchedTrial(**stored, state="failed", error=str(result.get("error") or ""))
    if state == "cancelled":
        return WatchedTrial(**stored, state="cancelled")
    samples = trial.samples()
    last = samples[-1] if samples else {}
    # Who leads the study may have gone, and those that helped it go on.
    claim = trial.claim()
    at_work = claim is not None if files.lease else orders.driven(files)
    if time.time() - (last.get("time") or 0.0) > orders.SILENT or not at_work:
        return WatchedTrial(**stored, state="waiting")
    return WatchedTrial(
        **stored,
        state="running",
        owner=claim.owner if claim else "",
        rate=_rate(rows),
        memory_mb=last.get("memory_mb") or 0.0,
        cpu_percent=last.get("cpu_percent") or 0.0,
    )


def _rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """Steps a second over the last rows."""
    recent = rows[-RECENT:]
    if len(recent) < 2:
        return 0.0
    passed = recent[-1]["time"] - recent[0]["time"]
    return float((recent[-1]["step"] - recent[0]["step"]) / passed) if passed > 0 else 0.0


def chosen(watched: Watched, ids: Sequence[str]) -> list[WatchedTrial]:
    """The trials that the beginnings of ids name.

    Raises:
        UnknownName: none or several begin so.
    """
    found = []
    for id_ in ids:
        known = [one for one in watched.trials if one.id.startswith(id_)]
        if len(known) > 1:
            several = ", ".join(one.id for one in known[:3])
            raise UnknownName(f"Trial {id_!r} could be several: {several}. Name more of its id.")
        if not known:
            hint = did_you_mean(id_, (one.id for one in watched.trials))
            raise UnknownName(
                f"Unknown trial {id_!r} in this study.{hint} It has {len(watched.trials)} trials; "
                "testbed status --trials lists their ids."
            )
        found += known
    return found
