"""How a plan is trained: which trials as one batch, on how many workers; measured once and kept.

`plan.json` in the study's folder holds the choice: a resumed study takes it up again, so that its
numbers are those of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from testbed import settings
from testbed.errors import InputError, UnknownName, unknown
from testbed.registry import Registry
from testbed.study import step_times
from testbed.study.plan import Plan, Trial
from testbed.study.step_times import EngineChoice
from testbed.training.batch import alone, in_common
from testbed.training.settings import Training
from testbed.trial import build, process_group
from testbed.trial.folders import ENDED
from testbed.trial.specs import canonical
from testbed.trial.study_folder import StudyFolder

DISTRIBUTED = "distributed"
NAMES = ("auto", "sequential", "batched", "compiled", DISTRIBUTED)
LARGEST = 128
COMPILE_PAYS_SECONDS = 90.0
"""Seconds of batched training above which a compiled step is tried: it saves a fifth or
more of them, and takes about twelve at first, and two or three in each worker from the cache."""


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

    @property
    def trainings(self) -> list[Trial]:
        """The first trial of each training: those that differ in evaluation only share one."""
        return [same[0] for same in _shared(self.trials)]

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


@dataclass
class ExecutionPlan:
    """What trains a plan.

    Args:
        name: "sequential", "batched", "compiled" (batched, fused by torch.compile) or
            "distributed" (each trial over all devices).
        slots: worker processes at most; 0 is this process.
        threads: torch's threads in each.
        groups: what trains as one, in the order in which they start.
        measured: milliseconds of one step of one trial, for each engine that was tried.
    """

    name: str
    slots: int
    threads: int
    groups: list[Group] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """How many processes have something to do; 0 is this one."""
        return min(self.slots, len(self.groups))

    def seconds(self) -> float:
        """About how long all groups take, by the measurement; 0.0 where nothing was measured."""
        rate = self.measured.get(self.way.title, 0.0)
        if math.isinf(rate):
            return 0.0
        trainings = [one for group in self.groups for one in group.trainings if not one.training]
        return _seconds(trainings, rate, self.workers)

    @property
    def way(self) -> EngineChoice:
        """The engine, its processes and threads, without the groups."""
        return EngineChoice(self.name, self.slots, self.threads)

    def split(self, group: Group) -> list[Group]:
        """Puts two halves in the place of a group, once; what is one training stays together."""
        trainings = _shared(group.trials)
        middle = (len(trainings) + 1) // 2
        parts = trainings[:middle], trainings[middle:]
        halves = [Group([*itertools.chain(*part)], half=True) for part in parts]
        if group in self.groups:  # else a disk that was away after the last call is there again
            at = self.groups.index(group)
            self.groups[at : at + 1] = halves
        return halves

    def write(self, folder: Path) -> None:
        """Keeps the choice beside the trials; without groups there is nothing to resume.

        The groups of other trials, which ended or were not asked for, are kept too.
        """
        if not self.groups:
            return
        groups = [[one.id for one in group.trials] for group in self.groups]
        mine = set(itertools.chain(*groups))
        files = StudyFolder.at(folder)
        stored = files.json_or_empty("plan.json")
        if (stored.get("name"), stored.get("slots")) == (self.name, self.slots):
            groups += [ids for ids in stored["groups"] if not mine.intersection(ids)]
        files.put_json("plan.json", asdict(self) | {"groups": groups})


def choose(
    plan: Plan, registry: Registry, wanted: str = "auto", slots: int | None = None
) -> ExecutionPlan:
    """The engine for what is pending: the stored one where it fits, else by measurement.

    Args:
        plan: from `plan.make`.
        registry: its plugins.
        wanted: one of NAMES.
        slots: workers, or None for one a core, or one on each GPU.

    Raises:
        UnknownName: no such engine.
        InputError: a batched engine for trials of which no two can be batched, or options of a
            network that it refuses.
    """
    if wanted not in NAMES:
        raise UnknownName(f"--engine {wanted}: {unknown('engine', wanted, NAMES)}")
    pending = [one for one in plan.pending() if not one.training]
    engine = _chosen(plan, pending, registry, wanted, slots)
    # What takes over a training is measured only, each by itself.
    engine.groups += [Group([one]) for one in plan.pending() if one.training]
    return engine


def _chosen(
    plan: Plan, pending: Sequence[Trial], registry: Registry, wanted: str, slots: int | None
) -> ExecutionPlan:
    """The engine for the trials that are to be trained."""
    _build(pending, registry)
    stored = _stored(plan, wanted, slots)
    if stored is not None:
        taken = {one.id for group in stored.groups for one in group.trials}
        left = [one for one in pending if one.id not in taken]
        stored.groups += _groups(left, registry, plan, stored.name, stored.slots)
        return stored
    if wanted == DISTRIBUTED:
        return _distributed(plan, pending)
    workers = _workers(plan.devices, slots)
    engine = ExecutionPlan("sequential" if wanted == "sequential" else "batched", workers, 1)
    engine.groups = _groups(pending, registry, plan, engine.name, workers)
    largest = max(engine.groups, key=lambda group: len(group.trainings), default=None)
    if wanted != "sequential" and (largest is None or len(largest.trainings) < 2):
        if wanted != "auto" and largest is not None:
            raise InputError(f"--engine {wanted}: no two of the pending trials can be batched.")
        engine.name = "sequential"
        return engine
    if wanted == "sequential" or largest is None:
        return engine
    rates = _rates(pending, largest, registry, plan, wanted, slots)
    best = _best(rates, wanted)
    groups = _groups(pending, registry, plan, best.name, best.slots)
    if wanted == "auto" and best.name != "sequential":
        groups = _one_by_one(groups, largest, best, registry, plan.main_device)
    measured = {way.title: rate for way, rate in rates.items()}
    return ExecutionPlan(best.name, best.slots, best.threads, groups, measured)


def _distributed(plan: Plan, pending: Sequence[Trial]) -> ExecutionPlan:
    """Each trial over all devices of the plan, one after the other."""
    if plan.study.executor.name != "processes":
        raise InputError(f"--engine {DISTRIBUTED}: only worker processes train a trial together.")
    if len(plan.devices) < 2:
        raise InputError(f"--engine {DISTRIBUTED}: --device {plan.device} is one device alone.")
    for one in pending:
        process_group.require(one.config, len(plan.devices))
    return ExecutionPlan(DISTRIBUTED, 1, 1, [Group([one]) for one in pending])


def _rates(
    pending: Sequence[Trial],
    group: Group,
    registry: Registry,
    plan: Plan,
    wanted: str,
    slots: int | None,
) -> dict[EngineChoice, float]:
    """Milliseconds of a step of one trial, in one process of each way that is worth a try."""
    workers, device = _workers(plan.devices, slots), plan.main_device
    ways = [EngineChoice("sequential", workers, 1), EngineChoice("batched", workers, 1)]
    if wanted == "auto" and (seconds := step_times.long_step(group.trials[0], registry, device)):
        return {ways[0]: 1000 * seconds}
    if slots is None and workers > 1:
        ways.append(EngineChoice("batched", 1, workers))
    if wanted == "compiled":
        ways.append(EngineChoice("compiled", workers, 1))
    trials = group.trainings
    rates = {way: step_times.measure(way, trials, registry, device, wanted) for way in ways}
    best = _best(rates, wanted)
    seconds = _seconds(Group([*pending]).trainings, rates[best], best.slots)
    if wanted == "auto" and best.name == "batched" and seconds > COMPILE_PAYS_SECONDS:
        way = best._replace(name="compiled")
        rates[way] = step_times.measure(way, trials, registry, device, wanted)
    return rates


def _best(rates: Mapping[EngineChoice, float], wanted: str) -> EngineChoice:
    """The fastest way on all its processes, of those that are wanted."""
    allowed = [way for way in rates if wanted in ("auto", way.name)]
    return min(allowed, key=lambda way: rates[way] / max(1, way.slots))


def _workers(devices: Sequence[str], slots: int | None) -> int:
    """As many as were asked for, else one a core, or one on each GPU."""
    if slots is not None:
        return slots
    return len(devices) if devices[0].startswith("cuda") else os.cpu_count() or 1


def _seconds(trials: Sequence[Trial], rate: float, workers: int) -> float:
    """How long trials take at `rate` milliseconds for a step of one."""
    steps = sum(one.config.training.steps for one in trials)
    return rate / 1000 * steps / max(1, workers)


def _build(pending: Sequence[Trial], registry: Registry) -> None:
    """One network of each kind, since only building it tells whether its options can be."""
    kinds = {
        canonical([config.data_digest, config.network.text, config.conditions]): config
        for config in (one.config for one in pending)
    }
    for config in kinds.values():
        try:
            build.assemble(config, registry, build.data_of(config, registry))
        except Exception as problem:
            if step_times.refused(problem):
                raise


def _stored(plan: Plan, wanted: str, slots: int | None) -> ExecutionPlan | None:
    """The engine of `plan.json` with those of its groups that are to be resumed or begun."""
    record = plan.files.json_or_empty("plan.json")
    if not record:
        return None
    if wanted not in ("auto", record["name"]):
        return None
    # With leases, other drivers may be at work on these groups.
    if slots not in (None, record["slots"]) and not plan.files.lease:
        return None
    measured = {name: math.inf if ms is None else ms for name, ms in record["measured"].items()}
    own = record["slots"] if slots is None else slots
    engine = ExecutionPlan(record["name"], own, record["threads"], [], measured)
    engine.groups = _stored_groups(plan, record["groups"])
    return engine


def shared(plan: Plan, slots: int | None) -> ExecutionPlan:
    """The engine of `plan.json` on the slots of this driver, which helps the one that wrote it.

    Trials that had failed when this driver began are left to that one.

    Args:
        plan: from `plan.make`.
        slots: workers, or None for one a core, or one on each GPU.

    Raises:
        InputError: the file is missing or damaged.
    """
    record = plan.files.json("plan.json")
    workers = slots
    if workers is None:
        workers = max(1, _workers(plan.devices, None) // record["threads"])
    if record["name"] == DISTRIBUTED:
        workers = 1
    together = {id_ for ids in record["groups"] if len(ids) > 1 for id_ in ids}
    for one in plan.trials:
        if one.id in together:  # a training that it shares has ended since it was planned
            one.training = ""
    groups = _stored_groups(plan, record["groups"])
    groups += [Group([one]) for one in plan.pending() if one.training]
    mine = [group for group in groups if all(one.state != "failed" for one in group.trials)]
    return ExecutionPlan(record["name"], workers, record["threads"], mine)


def _stored_groups(plan: Plan, groups: Sequence[Sequence[str]]) -> list[Group]:
    """Those of the groups of `plan.json` that are to be resumed or begun."""
    known = {one.id: one for one in plan.trials}
    pending = {one.id for one in plan.pending() if not one.training}
    found = []
    for ids in groups:
        if not pending.intersection(ids) or not known.keys() >= set(ids):
            continue
        group = Group([known[id_] for id_ in ids])
        folder = plan.files.group(group.id)
        if folder.dissolved:
            found += [Group([one]) for one in group.trials if one.id in pending]
            continue
        begun = folder.has("checkpoint")
        # Neither failed nor kept: its result was lost, and only its group makes it again.
        lost = plan.chosen is None and not any(known[id_].state == "failed" for id_ in ids)
        rest = all(id_ in pending or _ended(known[id_]) for id_ in ids)
        if pending.issuperset(ids) or (rest and (begun or lost)):
            found.append(group)
    return found


def _ended(one: Trial) -> bool:
    return one.state in ENDED


def _shared(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Those that are one training together, in the order of the first of each."""
    found: dict[str, list[Trial]] = {}
    for one in trials:
        found.setdefault(one.config.training_text, []).append(one)
    return list(found.values())


def _groups(
    pending: Sequence[Trial], registry: Registry, plan: Plan, name: str, slots: int
) -> list[Group]:
    """Trials that can be batched, as many groups as all drivers together have workers for them."""
    workers = max(1, slots) * plan.study.executor.drivers
    trainings = _shared(pending)
    if name == DISTRIBUTED:
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
        edges = [round(i * len(several) / parts) for i in range(parts + 1)]
        found += [Group([*itertools.chain(*several[a:b])]) for a, b in itertools.pairwise(edges)]
    return sorted(found, key=lambda group: -len(group.trials) * group.steps)


def _one_by_one(
    groups: Sequence[Group], measured: Group, best: EngineChoice, registry: Registry, device: str
) -> list[Group]:
    """The groups; those of other networks than `measured` are dissolved where that is faster."""
    apart = {_network(measured): False}
    found = []
    for group in groups:
        kind, trainings = _network(group), _shared(group.trials)
        if kind not in apart and len(trainings) > 1:
            alone, together = (
                step_times.measure(way, group.trainings, registry, device, "auto")
                for way in (best._replace(name="sequential"), best)
            )
            apart[kind] = alone < together
        found += [Group(same) for same in trainings] if apart.get(kind) else [group]
    return found


def _network(group: Group) -> str:
    """Equal for groups whose steps take the same time for each of their trials."""
    config = group.trials[0].config
    return canonical([config.data_digest, config.network.text, config.training.batch])


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
