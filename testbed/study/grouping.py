"""Groups of trials that train as one: which of a plan's trials, and how many groups of them."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from testbed import settings
from testbed.registry import Registry
from testbed.study.plan import Plan, Trial
from testbed.training.batch import alone, in_common
from testbed.training.settings import Training
from testbed.trial import build
from testbed.trial.specs import canonical

LARGEST = 128
ROUNDS = 4
"""Groups of a case for each worker at most, where whole seeds make them of equal size."""


@dataclass(frozen=True)
class Group:
    """Trials that train as one; a single trial is a group of one.

    A half is a part of a group for which there was too little memory.
    """

    trials: list[Trial]
    half: bool = False

    @property
    def id(self) -> str:
        """The digest of its trials' ids."""
        return hashlib.sha256(" ".join(one.id for one in self.trials).encode()).hexdigest()[:12]

    @functools.cached_property
    def trainings(self) -> list[Trial]:
        """The first trial of each training: those that differ in evaluation only share one."""
        return [same[0] for same in of_trainings(self.trials)]

    @property
    def halves(self) -> list[Group]:
        """Two groups; what is one training stays together."""
        trainings = of_trainings(self.trials)
        middle = (len(trainings) + 1) // 2
        parts = trainings[:middle], trainings[middle:]
        return [Group([*itertools.chain(*part)], half=True) for part in parts]

    @property
    def title(self) -> str:
        """The title of a single trial; else how many trials of which case it has."""
        first = self.trials[0]
        if len(self.trials) == 1:
            return first.title
        case = first.labels[0]["case"] or first.config.dataset.name
        return f"{len(self.trials)} trials as one · {case}"

    @property
    def steps(self) -> int:
        """The steps that each of its trials takes."""
        return self.trials[0].config.training.steps

    def seconds(self, rate: float) -> float:
        """How long its trainings take at `rate` milliseconds for a step of one."""
        return rate / 1000 * self.steps * len(self.trainings)


def of_trainings(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Those that are one training together, in the order of the first of each."""
    found: dict[tuple[int, str], list[Trial]] = {}
    # To write out a training takes a while, and trials of other seeds share all their settings.
    texts: dict[tuple[int, ...], str] = {}
    for one in trials:
        own = vars(one.config)
        parts = tuple(id(value) for name, value in own.items() if name != "seed")
        if parts not in texts:
            texts[parts] = one.config.of_seed(0).training_text
        found.setdefault((one.config.seed, texts[parts]), []).append(one)
    return list(found.values())


def of_plan(
    pending: Sequence[Trial], registry: Registry, plan: Plan, name: str, slots: int
) -> list[Group]:
    """Trials that can be batched, as many groups as all drivers together have workers for them."""
    workers = max(1, slots) * plan.study.executor.drivers
    trainings = of_trainings(pending)
    if name == "distributed":
        return [Group([one]) for one in pending]
    if name == "sequential":
        return [Group(same) for same in trainings]
    classes: list[tuple[Any, list[list[Trial]]]] = []
    for same in trainings:
        key = _batch_key(same[0], registry)
        members = next((members for known, members in classes if known == key), None)
        if members is None:
            classes.append((key, members := []))
        members.append(same)
    found = []
    for _, several in classes:
        parts = min(max(workers, -(-len(several) // LARGEST)), max(1, len(several) // 2))
        # Neighbours share their settings: Adam then updates them by one call.
        several.sort(key=lambda same: _own(same[0].config.training))
        if name == "compiled" and (equal := _equal_parts(several, workers)):
            several.sort(key=lambda same: same[0].config.seed)
            parts = equal
        edges = [round(i * len(several) / parts) for i in range(parts + 1)]
        found += [Group([*itertools.chain(*several[a:b])]) for a, b in itertools.pairwise(edges)]
    return sorted(found, key=lambda group: -len(group.trials) * group.steps)


def _equal_parts(several: Sequence[Sequence[Trial]], workers: int) -> int:
    """How many groups of equally many whole seeds; 0 where there are none for all workers.

    Groups of one size and one composition share a compiled program.
    """
    seeds = Counter(same[0].config.seed for same in several)
    sizes = set(seeds.values())
    fits = [
        parts
        for parts in range(max(2, workers), ROUNDS * workers + 1)
        if len(seeds) % parts == 0 and 2 <= len(several) // parts <= LARGEST
    ]
    return max(fits) if fits and len(sizes) == 1 else 0


def network_of(group: Group) -> str:
    """Equal for groups whose steps take the same time for each of their trials."""
    config = group.trials[0].config
    text = canonical([config.data_digest, config.network.text, config.training.batch])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def program_of(group: Group) -> tuple[str, int, int]:
    """Equal for groups that find each other's compiled step in the cache."""
    trials = group.trainings
    seeds = {one.config.seed for one in trials}
    return trials[0].config.text(batch=True), len(trials), len(seeds)


def _batch_key(one: Trial, registry: Registry) -> Any:
    """Equal for trials that can be batched; a trial's own id where it cannot."""
    config = one.config
    try:
        objective = build.objective(config, registry)
        if alone(objective, config.training):
            return one.id
        return config.text(batch=True), in_common(objective, config.training, config.conditions)
    except Exception:  # a plugin's: the trial itself will fail and say why
        return one.id


def _own(training: Training) -> str:
    """The settings that each trial of a batch has for itself, as text."""
    return canonical([getattr(training, key) for key in settings.names(Training, batch=False)])
