"""How a plan is trained: which trials as one batch, on how many workers; measured once and kept.

`plan.json` in the study's folder holds the choice: a resumed study takes it up again, so that its
numbers are those of an uninterrupted one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from testbed.errors import InputError, UnknownName, unknown
from testbed.registry import Registry
from testbed.study import grouping, step_times
from testbed.study.grouping import Group as Group
from testbed.study.plan import Plan, Trial
from testbed.study.step_times import EngineChoice, StepTime
from testbed.trial import devices, process_group
from testbed.trial.folders import ENDED
from testbed.trial.study_folder import StudyFolder

DISTRIBUTED = "distributed"
NAMES = ("auto", "sequential", "batched", "compiled", DISTRIBUTED)
COMPILE_PAYS_SECONDS = 30.0
"""Seconds of batched training above which a compiled step is thought of at all."""


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
        devices: over how many each trial is trained.
        networks: those of the engine that was chosen, for each of the networks, by its digest.
    """

    name: str
    slots: int
    threads: int
    groups: list[Group] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    devices: int = 1
    networks: dict[str, float] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """How many processes have something to do; 0 is this one."""
        return min(self.slots, len(self.groups))

    def seconds(self) -> float:
        """About how long all groups take, by the measurement; 0.0 where nothing was measured.

        Each group goes to the worker that is free first. What a compiled step takes to start is
        counted with it.
        """
        rate = self.measured.get(self.way.title, 0.0)
        if math.isinf(rate) or not rate:
            return 0.0
        ends = [0.0] * max(1, self.workers)
        for group, start in zip(self.groups, self.starts(), strict=True):
            if not group.trials[0].training:
                own = self.networks.get(grouping.network_of(group), rate)
                heapq.heapreplace(ends, ends[0] + start + group.seconds(own))
        return max(ends)

    def starts(self) -> list[float]:
        """Seconds until the first step of each group, where its step is compiled.

        The first group of each program compiles it, and the others find it in a cache.
        """
        if self.name != "compiled":
            return [0.0] * len(self.groups)
        found, programs = [], set[Any]()
        for group in self.groups:
            seconds = 0.0
            if len(group.trainings) > 1:
                known = grouping.program_of(group) in programs
                seconds = step_times.CACHED_SECONDS if known else step_times.COMPILE_SECONDS
                programs.add(grouping.program_of(group))
            found.append(seconds)
        return found

    @property
    def way(self) -> EngineChoice:
        """The engine, its processes and threads, without the groups."""
        return EngineChoice(self.name, self.slots, self.threads)

    def split(self, group: Group) -> list[Group]:
        """Puts its halves in the place of a group, once."""
        halves = group.halves
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
        mine = set(chain(*groups))
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
        InputError: a batched engine for trials of which no two can be batched, options of a
            network that it refuses, or a trial that has begun over another number of devices.
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
    stored = _stored(plan, wanted, slots)
    if stored is not None:
        taken = {one.id for group in stored.groups for one in group.trials}
        left = [one for one in pending if one.id not in taken]
        stored.groups += grouping.of_plan(left, registry, plan, stored.name, stored.slots)
        return stored
    if wanted == DISTRIBUTED:
        return _distributed(plan, pending)
    workers = _workers(plan.devices, slots)
    engine = ExecutionPlan("sequential" if wanted == "sequential" else "batched", workers, 1)
    engine.groups = grouping.of_plan(pending, registry, plan, engine.name, workers)
    largest = max(engine.groups, key=lambda group: len(group.trainings), default=None)
    if wanted != "sequential" and (largest is None or len(largest.trainings) < 2):
        if wanted != "auto" and largest is not None:
            raise InputError(f"--engine {wanted}: no two of the pending trials can be batched.")
        engine.name = "sequential"
        return engine
    if wanted == "sequential" or largest is None:
        return engine
    groups = len(engine.groups)
    times = _times(largest, registry, plan, wanted, slots, groups)
    best = _best(times, wanted, len(grouping.of_trainings(pending)), groups)
    measured = {way.title: time.ms for way, time in times.items()}
    speeds = {grouping.network_of(largest): measured}
    if wanted == "auto" and best.name == "batched":
        speeds |= _other_networks(engine.groups, largest, best, registry, plan.main_device)
    found = _of(best, speeds, measured, pending, registry, plan)
    if wanted != "auto" or best.name != "batched" or found.seconds() < COMPILE_PAYS_SECONDS:
        return found
    way = best._replace(name="compiled")
    ms = times[best].compiled
    if plan.main_device.startswith("cuda"):
        parts = largest.trainings, registry, plan.main_device, wanted
        ms = step_times.measure(way, *parts).ms
    elif math.isnan(ms) or not step_times.compiles(largest.trials[0]):
        return found
    measured[way.title] = ms
    compiled = _of(way, speeds, measured, pending, registry, plan)
    return compiled if 0.0 < compiled.seconds() < found.seconds() else found


def _of(
    way: EngineChoice,
    speeds: Mapping[str, Mapping[str, float]],
    measured: dict[str, float],
    pending: Sequence[Trial],
    registry: Registry,
    plan: Plan,
) -> ExecutionPlan:
    """The groups of an engine; those of a network that is faster one by one are dissolved.

    Args:
        way: the engine.
        speeds: milliseconds of a step of one trial by the engines' titles, for each network.
        measured: those of the network of most trials.
        pending, registry, plan: as for `choose`.
    """
    found = ExecutionPlan(way.name, way.slots, way.threads, [], measured)
    for group in grouping.of_plan(pending, registry, plan, way.name, way.slots):
        network = grouping.network_of(group)
        rates = speeds.get(network) or {}
        rate = found.networks[network] = rates.get(way.title, measured[way.title])
        if rates is not measured and rates.get("sequential", math.inf) < rate:
            found.networks[network] = rates["sequential"]
            found.groups += [Group(same) for same in grouping.of_trainings(group.trials)]
        else:
            found.groups.append(group)
    if way.name == "compiled":
        found.groups.sort(key=lambda one: -one.seconds(found.networks[grouping.network_of(one)]))
        # Workers that begin together then compile different programs.
        starts = {one.id: start for one, start in zip(found.groups, found.starts(), strict=True)}
        found.groups.sort(key=lambda one: -starts[one.id])
    return found


def _distributed(plan: Plan, pending: Sequence[Trial]) -> ExecutionPlan:
    """Each trial over all devices of the plan, one after the other."""
    if plan.study.executor.name != "processes":
        raise InputError(f"--engine {DISTRIBUTED}: only worker processes train a trial together.")
    if len(plan.devices) < 2:
        raise InputError(f"--engine {DISTRIBUTED}: --device {plan.device} is one device alone.")
    for one in pending:
        process_group.require(one.config, len(plan.devices))
    groups = [Group([one]) for one in pending]
    return ExecutionPlan(DISTRIBUTED, 1, 1, groups, devices=len(plan.devices))


def _times(
    group: Group, registry: Registry, plan: Plan, wanted: str, slots: int | None, groups: int
) -> dict[EngineChoice, StepTime]:
    """The time of a step of one trial, in one process of each way that is worth a try.

    All threads in one process are worth it where there are fewer groups than workers: a core gains
    nothing from a group that it shares.
    """
    workers, device = _workers(plan.devices, slots), plan.main_device
    ways = [EngineChoice("sequential", workers, 1), EngineChoice("batched", workers, 1)]
    if wanted == "auto" and (seconds := step_times.long_step(group.trials[0], registry, device)):
        return {ways[0]: StepTime(1000 * seconds)}
    if slots is None and workers > groups:
        ways.append(EngineChoice("batched", 1, workers))
    if wanted == "compiled":
        ways.append(EngineChoice("compiled", workers, 1))
    return {way: step_times.measure(way, group.trainings, registry, device, wanted) for way in ways}


def _best(
    times: Mapping[EngineChoice, StepTime], wanted: str, trainings: int, groups: int
) -> EngineChoice:
    """The fastest way, of those that are wanted, on as many of its processes as have work."""

    def pace(way: EngineChoice) -> float:
        parts = trainings if way.name == "sequential" else groups
        return times[way].ms / max(1, min(way.slots, parts))

    return min((way for way in times if wanted in ("auto", way.name)), key=pace)


def _workers(plan_devices: Sequence[str], slots: int | None) -> int:
    """As many as were asked for, else one a core that is this process's, or one on each GPU."""
    if slots is not None:
        return slots
    return len(plan_devices) if plan_devices[0].startswith("cuda") else devices.cores()


def _stored(plan: Plan, wanted: str, slots: int | None) -> ExecutionPlan | None:
    """The engine of `plan.json` with those of its groups that are to be resumed or begun.

    Raises:
        InputError: a trial has begun over another number of devices than the plan has.
    """
    record = plan.files.json_or_empty("plan.json")
    if not record:
        return None
    if wanted not in ("auto", record["name"]):
        return None
    here = {one.id for one in plan.trials}
    fits = slots in (None, record["slots"]) and not here.isdisjoint(chain(*record["groups"]))
    # With leases, other drivers may be at work on these groups.
    if not fits and not plan.files.lease:
        return None
    own, over = len(plan.devices), record.get("devices", 1)
    if record["name"] == DISTRIBUTED and own != over:
        if not any(plan.files.trial(one.id).has("checkpoint") for one in plan.pending()):
            return None
        raise InputError(
            f"--device {plan.device}: a trial that has begun trains over {over} devices, and here "
            f"{'is' if own == 1 else 'are'} {own}, whose sum rounds otherwise: name {over} "
            "devices, or begin the study in another folder by --out."
        )
    measured = {name: math.inf if ms is None else ms for name, ms in record["measured"].items()}
    jobs = record["slots"] if slots is None else slots
    groups = _stored_groups(plan, record["groups"])
    return ExecutionPlan(record["name"], jobs, record["threads"], groups, measured, over)


def shared(plan: Plan, slots: int | None) -> ExecutionPlan:
    """The engine of `plan.json` on the slots of this driver, which helps the one that wrote it.

    Trials that had failed when this driver began are left to that one.

    Args:
        plan: from `plan.make`.
        slots: workers, or None for one a core, or one on each GPU.

    Raises:
        InputError: the file is missing or damaged, or each trial trains over another number of
            devices than this driver has.
    """
    record = plan.files.json("plan.json")
    workers, over = slots, record.get("devices", 1)
    if workers is None:
        workers = max(1, _workers(plan.devices, None) // record["threads"])
    if record["name"] == DISTRIBUTED:
        workers = 1
        if over != len(plan.devices):
            raise InputError(
                f"--device {plan.device}: the driver that leads trains each trial over {over} "
                f"devices, and this one has {len(plan.devices)}, whose sum rounds otherwise: name "
                f"{over} devices, or leave the study to that driver."
            )
    together = {id_ for ids in record["groups"] if len(ids) > 1 for id_ in ids}
    for one in plan.trials:
        if one.id in together:  # a training that it shares has ended since it was planned
            one.training = ""
    groups = _stored_groups(plan, record["groups"])
    groups += [Group([one]) for one in plan.pending() if one.training]
    mine = [group for group in groups if all(one.state != "failed" for one in group.trials)]
    return ExecutionPlan(record["name"], workers, record["threads"], mine, devices=over)


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
        if folder.split:
            halves = [[one.id for one in half.trials] for half in group.halves]
            found += [replace(one, half=True) for one in _stored_groups(plan, halves)]
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


def _other_networks(
    groups: Sequence[Group], measured: Group, best: EngineChoice, registry: Registry, device: str
) -> dict[str, dict[str, float]]:
    """The speed of each way for those of other networks than `measured` that can be batched."""
    found: dict[str, dict[str, float]] = {}
    alone = best._replace(name="sequential")
    for group in groups:
        network, trials = grouping.network_of(group), group.trainings
        if network in (grouping.network_of(measured), *found) or len(trials) < 2:
            continue
        times = {
            way: step_times.measure(way, trials, registry, device, "auto") for way in (alone, best)
        }
        found[network] = {way.title: time.ms for way, time in times.items()}
        if not math.isnan(times[best].compiled):
            found[network][best._replace(name="compiled").title] = times[best].compiled
    return found
