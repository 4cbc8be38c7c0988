"""What a study shows on a terminal: the plan and live progress."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table
from rich.text import Text

from testbed.cli import terminal
from testbed.registry import Registry
from testbed.study import equal_objectives, grouping, runner
from testbed.study.engines import ExecutionPlan, Group
from testbed.study.plan import NOT_TRAINED, Plan, Trial
from testbed.trial import storage
from testbed.trial.build import component
from testbed.trial.worker import device_title


def plan_table(plan: Plan, registry: Registry, details: bool) -> Iterator[RenderableType]:
    """The plan: a summary by case and arm, or with `details` a line for each trial."""
    states = Counter(trial.state for trial in plan.trials)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    device = device_title(torch.device(plan.main_device))
    if len(plan.devices) > 1:
        device += f", {len(plan.devices)} of them"
    yield Text.assemble(
        ("Study ", "bold"), (plan.study.header.name, "bold"), f": {len(plan.trials)} trials ",
        f"({counts}) on {device}; folder {storage.address(plan.folder)}",
    )  # fmt: skip
    if details:
        table = Table("trial", "state", "what", box=None, pad_edge=False)
        for trial in plan.trials:
            what = trial.title
            if trial.changed:
                what += f"  (changed: {'; '.join(trial.changed)})"
            table.add_row(trial.id, trial.state, Text(what))
        yield table
    else:
        groups: dict[tuple[str, str], dict[str, set[int]]] = {}
        for trial in plan.trials:
            for label in (one for one in trial.labels if NOT_TRAINED not in one):
                variants = groups.setdefault((label["case"], label["arm"]), {})
                variants.setdefault(label["variant"], set()).add(trial.config.seed)
        # A study without named cases, or arms, has no column of them.
        named = [i for i in (0, 1) if any(place[i] for place in groups)]
        heads = [("case", "arm")[i] for i in named]
        table = Table(*heads, "variants", "seeds", box=None, pad_edge=False)
        for place, variants in groups.items():
            most = max(len(seeds) for seeds in variants.values())
            table.add_row(*(place[i] for i in named), ", ".join(variants), str(most))
        yield table
        budgets = [t for t in plan.trials if all("budget" in label for label in t.labels)]
        if budgets:
            steps = ", ".join(map(str, sorted({t.config.training.steps for t in budgets})))
            yield f"Trained on its own at each other budget, {steps} steps: {len(budgets)} trials."
        if fixed := dict.fromkeys(t.config.fixed.name for t in plan.trials if t.config.fixed):
            yield f"Measured as they are, not trained: {escape(', '.join(fixed))}."
        trained = [t for t in plan.trials if not t.config.fixed]
        shared = sum(len({label["arm"] for label in t.labels}) > 1 for t in trained)
        if shared:
            yield f"Trained once because they are equal in several arms: {shared} of the trials."
        for trial in plan.trials:
            if trial.changed:
                changed = escape("; ".join(trial.changed))
                yield f"stale: {escape(trial.title)}: {changed}; it is trained anew."
                break
    set_on_purpose = {
        (label["case"], trial.config.sigma_data, trial.config.sigma_data_measured)
        for trial in plan.trials
        for label in trial.labels
        if not trial.config.fixed and trial.config.sigma_data != trial.config.sigma_data_measured
    }
    for case, given, measured in sorted(set_on_purpose):
        where = f"{case}: " if case else ""
        yield f"{where}sigma_data is set to {given:g}; the data have {measured:.4g}."
    others = {
        loss.label: ""
        for trial in plan.trials
        if not (loss := component(registry, "loss", trial.config.loss)).elicits_mean
    }
    for label in others:
        yield (
            f"{escape(label)} does not elicit the mean: its models estimate another functional, "
            "and their distance from the exact denoiser is not an error."
        )
    for found in equal_objectives.find(plan, registry):
        yield escape(equal_objectives.line(found))


def engine_line(engine: ExecutionPlan) -> str:
    """How the pending trials are trained, and about how long that takes."""
    if not engine.groups:
        return "Nothing is left to train."
    trials = sum(len(group.trials) for group in engine.groups)
    workers = f"{engine.workers} workers" if engine.workers > 1 else "one process"
    trainings = sum(len(group.trainings) for group in engine.groups)
    what = (
        f"{trials} trials" if trials == trainings else f"{trials} trials of {trainings} trainings"
    )
    largest = max(len(group.trainings) for group in engine.groups)
    how = "one by one" if largest == 1 else f"up to {largest} as one"
    alone = {one.trials[0].config.network.name for one in engine.groups if len(one.trainings) == 1}
    if alone and largest > 1:
        how += f" (one by one: {', '.join(sorted(alone))})"
    line = f"Engine: {engine.name}, {what} {how} on {workers}"
    if engine.seconds():
        rates = ", ".join(f"{name} {ms:.2g} ms" for name, ms in engine.measured.items())
        about = terminal.span(round(engine.seconds()))
        line += f"; training takes about {about} (a trial's step: {rates})"
        if compiling := sum(engine.starts()):
            programs = len({grouping.program_of(one) for one in engine.groups})
            line += (
                f"; that counts {terminal.span(round(compiling))} in which workers compile "
                f"{programs} different steps and load them for {len(engine.groups)} groups"
            )
    return line + "."


class Bars:
    """Live progress: the whole study, and each group of trials that trains."""

    def __init__(self, engine: ExecutionPlan, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
            console=console,
            transient=True,
        )
        self._plain = not console.is_terminal
        self._console = console
        total = sum(len(group.trials) * group.steps for group in engine.groups)
        self._all = self._bars.add_task("steps of all trials", total=total)
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}
        self._count = sum(len(group.trials) for group in engine.groups)
        self._ended, self._said = 0, 0.0

    def __enter__(self) -> Bars:
        if not self._plain:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """One line above the bars."""
        self._console.print(escape(line))

    def progress(self) -> runner.Progress:
        """What the runner calls."""
        return runner.Progress(self._show, self._end, self.say)

    def _show(self, group: Group, step: int, measured: int) -> None:
        before = self._done.get(group.id, 0)
        self._bars.advance(self._all, max(0, step - before) * len(group.trials))
        self._done[group.id] = max(step, before)
        if group.id not in self._tasks:
            self._tasks[group.id] = self._bars.add_task(group.title, total=group.steps)
        task, trials = self._tasks[group.id], len(group.trials)
        if step < group.steps:
            self._bars.update(task, completed=step)
        elif measured < trials:
            title = f"{group.title} · measuring"
            self._bars.update(task, description=title, completed=measured, total=trials)
            if self._plain and measured and time.monotonic() - self._said > 10:
                self._said = time.monotonic()
                self._console.print(f"measured {measured} of {escape(group.title)}")
        else:
            self._bars.update(task, visible=False)

    def _end(self, trial: Trial, status: str) -> None:
        if status == "interrupted":
            return
        self._ended += 1
        if status != "finished":
            self._console.print(f"{status}: {escape(trial.title)} ({trial.id})")
        elif self._plain and time.monotonic() - self._said > 10:
            self._said = time.monotonic()
            self._console.print(
                f"{self._ended} of {self._count} trials, last {escape(trial.title)}"
            )
