"""Several drivers on one study: the first leads, and the others take what it has not taken.

Who owns the study's folder leads: it says in `plan.json` who trains with whom, writes the report
and tells MLflow. A driver that finds the folder owned helps. It trains groups of that plan, which
changes no number, until all have ended; then it follows the one that leads, which has ended well or
has died, and does what that one has left undone. There is no other lock than the folders' leases.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from testbed.errors import InputError
from testbed.registry import Registry
from testbed.study import engines, orders, runner, session
from testbed.study.engines import ExecutionPlan
from testbed.study.executors import selection
from testbed.study.executors.settings import CLUSTERS
from testbed.study.outage import Outage
from testbed.study.plan import Plan, differences, label_key, settings_of_id
from testbed.study.telling import Telling
from testbed.study.waiting import ALIVE
from testbed.trial import environment
from testbed.trial.config import TrialConfig
from testbed.trial.folders import ENDED
from testbed.trial.storage import address
from testbed.trial.storage.leases import BEATS, Claim

MOST = 5
"""The most differences that are named."""
T = TypeVar("T")


def run(
    plan: Plan,
    registry: Registry,
    choose: Callable[[], ExecutionPlan],
    slots: int | None,
    showing: Callable[[ExecutionPlan], AbstractContextManager[runner.Progress]],
    write_report: Callable[[Path], Path],
    tracking_uri: str = "",
) -> session.Ending:
    """Runs a study, or helps the driver that runs it and follows that one.

    Args:
        plan: from `plan.make`.
        registry: the plugins.
        choose: `engines.choose` for this study, with its arguments.
        slots: workers, or None for one a core, or one on each GPU.
        showing: what shows the progress of an engine, meanwhile.
        write_report, tracking_uri: as for `session.run`.

    Raises:
        Led: another process runs this study, whose trials cannot be shared.
        InputError: another process runs this study with other settings or sources.
        Busy, OSError: as `session.run`.
    """
    chosen, helped = choose(), None
    while True:
        with showing(chosen) as progress:
            through = Outage(plan, progress.say, runner.Outcome()).through
            executor = selection.of(plan, chosen)
            try:
                parts = progress, progress.say, write_report, tracking_uri, helped
                ending = session.run(plan, registry, chosen, executor, *parts)
                if helped is not None:
                    ending.outcome.seconds += helped.seconds
                return ending
            except session.Led:
                if helped is None and not through(partial(_may_help, plan)):
                    raise
        led = next(_signs(plan, through), None)
        if helped is None and led is not None and _described(plan, through):
            through(partial(_require_same, plan, led))
            chosen = through(lambda: engines.shared(plan, slots))
            with showing(chosen) as progress:
                progress.say(f"{led.owner} leads this study: this driver takes its share.")
                helped = _help(plan, registry, chosen, progress, through)
                if not helped.interrupted:
                    progress.say(f"What it shares has ended: this driver waits for {led.owner}.")
        if helped is None:
            for _ in _signs(plan, through):
                pass
        elif helped.interrupted or _stopped_meanwhile(plan, through):
            helped.interrupted = True
            return session.Ending(helped, [], None, 0.0, False)
        else:
            chosen = through(partial(_left, plan, chosen, choose, helped))


def _may_help(plan: Plan) -> bool:
    """Whether a driver may help another one: a cluster shares the trials of one by itself."""
    apart = plan.study.executor.name in CLUSTERS or plan.chosen is not None
    return plan.files.lease > 0 and not apart


class Through(Protocol):
    """`Outage.through`."""

    def __call__(self, step: Callable[[], T]) -> T:
        """What a step returns once the study's folder has answered throughout."""
        ...


def _signs(plan: Plan, through: Through) -> Iterator[Claim]:
    """Yields the claim of the driver that leads, a few times in a lease, until it has ended.

    One that gives no sign of life is taken for dead; who follows it finds out.
    """
    seen, since, files = None, time.monotonic(), through(lambda: plan.files)
    while (claim := through(files.claim)) is not None:
        if claim != seen:
            seen, since = claim, time.monotonic()
        elif time.monotonic() - since > ALIVE * files.lease:
            return
        yield claim
        time.sleep(files.lease / BEATS)


def _help(
    plan: Plan,
    registry: Registry,
    chosen: ExecutionPlan,
    progress: runner.Progress,
    through: Through,
) -> runner.Outcome:
    """Trains the groups that nobody has, until all have ended."""
    executor, groups = selection.of(plan, chosen), deque(chosen.groups)
    # Each begins at a place of its own, so that seldom two want one group at the same moment.
    groups.rotate(uuid.uuid4().int % max(1, len(groups)))
    mine = replace(chosen, groups=[*groups])
    try:
        parts = executor, Telling(None), progress
        return runner.execute(plan, registry, mine, *parts, leads=False)
    finally:
        executor.close()


def _stopped_meanwhile(plan: Plan, through: Through) -> bool:
    """Waits until the driver that leads has ended; whether the study was told to stop by then."""
    heard = through(lambda: orders.Orders(plan, leads=False))
    with heard.heeded(through):
        for _ in _signs(plan, through):
            through(heard.read)
        through(lambda: heard.read(at_once=True))
    return heard.stopped


def _left(
    plan: Plan,
    chosen: ExecutionPlan,
    choose: Callable[[], ExecutionPlan],
    helped: runner.Outcome,
) -> ExecutionPlan:
    """What is to be trained yet once the driver that led has ended.

    That one may have died, or run one trial alone. What has failed is not tried again by following.
    """
    plan.chosen = None
    for one in (one for one in plan.trials if one.state not in ENDED):
        one.state = plan.files.state(one.id)
        if one.state == "failed":
            helped.statuses[one.id] = one.state
    left = {one.id for one in plan.pending() if one.state != "failed"}
    if not left:
        plan.chosen = frozenset()
        return replace(chosen, groups=[])
    again = choose()
    groups = [one for one in again.groups if left.intersection(t.id for t in one.trials)]
    return replace(again, groups=groups)


def _described(plan: Plan, through: Through) -> bool:
    """Waits until the driver that leads has written what it runs; False where it has ended."""
    for led in _signs(plan, through):
        said = through(lambda: plan.files.json_or_empty(orders.FILE))
        if led.id and said.get("lease") == led.id:
            return True
    return False


def _require_same(plan: Plan, led: Claim) -> None:
    """Refuses to help a driver that runs something else.

    Raises:
        InputError: with the differences by name.
    """
    record = plan.files.json("study.json")
    found = list(dict.fromkeys(_differences(plan, record)))
    if found:
        more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
        raise InputError(
            f"{address(plan.folder)} is run by {led.owner}, whom this driver cannot help: "
            f"{'; '.join(found[:MOST])}{more}. Give both the same study, packages and files, wait "
            "for that one, or run this one in another folder with --out."
        )


def _differences(plan: Plan, record: Mapping[str, Any]) -> Iterator[str]:
    """What differs from the record of the driver that leads."""
    here, there = environment.versions(), record.get("versions") or {}
    yield from environment.differences({name: str(there.get(name, "")) for name in here}, here)
    report = plan.study.report.model_dump(mode="json")
    yield from differences({"report": record.get("report")}, {"report": report})
    device = torch.device(plan.main_device).type
    if not str(record.get("device")).startswith(device):
        yield f"device: {record.get('device')} there and {device} here"
    command = (record.get("asked") or {}).get("command") or ()
    if "--until-decided" in command or plan.study.asked.at_most is not None:
        yield "--until-decided adds seeds as it goes, which one driver does"
    theirs = {str(entry["id"]): entry["labels"] for entry in record.get("trials") or ()}
    mine = {one.id: one for one in plan.trials}
    at = dict(_elsewhere(plan, {id_: theirs[id_] for id_ in theirs.keys() - mine.keys()}))
    for one in (mine[id_] for id_ in mine.keys() - theirs.keys()):
        keys = (label_key(label, one.config.seed) for label in one.labels)
        other = next((at[key] for key in keys if key in at), None)
        if other is None:
            yield f"that one has no trial {one.title}"
        else:
            yield from differences(settings_of_id(other), settings_of_id(one.config))
    if mine.keys() < theirs.keys():
        yield f"that one has {len(theirs)} trials, and this one {len(mine)} of them"


def _elsewhere(
    plan: Plan, labels: Mapping[str, Sequence[Mapping[str, str]]]
) -> Iterator[tuple[Any, TrialConfig]]:
    """Where trials by id stand in the study, with their settings, those that can be read here."""
    for id_, of in labels.items():
        described = plan.files.trial(id_).json_or_empty("trial.json")
        with suppress(ValueError):  # that driver has another version
            config = TrialConfig.model_validate(described.get("config"))
            yield from ((label_key(label, config.seed), config) for label in of)
