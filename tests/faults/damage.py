"""Checkpoints cut short or with a bit turned, and every JSON file of a study cut short.

Many in this process, by the functions that a worker calls; some by the command, which has to say
what is damaged and from where training goes on.
"""

from __future__ import annotations

import functools
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

from faults import checker, kills
from faults.subject import BATCHED, SEQUENTIAL, Ended, Moment, lay_out, study
from faults.verdict import Scenario, Verdict

from testbed.registry import Registry
from testbed.study import engines, plan, runner, study_file
from testbed.training import checkpoint
from testbed.trial import worker
from testbed.trial.folders import Folder, TrainingFolder

Harm = Callable[[Random, bytes], bytes]
HEADER = checkpoint.HEADER
TOLD = re.compile(r"(cut short|damaged|cannot be read).* Training (goes on from step|begins anew)")


def cut(part: float) -> Harm:
    """Leaves a part of it."""
    return lambda chance, content: content[: int(part * len(content))]


def flipped(low: int, high: int | None) -> Harm:
    """Turns a bit somewhere between two bytes."""

    def harm(chance: Random, content: bytes) -> bytes:
        changed = bytearray(content)
        at = chance.randrange(low, len(content) if high is None else high)
        changed[at] ^= 1 << chance.randrange(8)
        return bytes(changed)

    return harm


HARMS: dict[str, Harm] = {
    "empty": cut(0),
    "without its body": lambda chance, content: content[:HEADER],
    "half": cut(0.5),
    "one byte short": lambda chance, content: content[:-1],
    "one byte long": lambda chance, content: content + b"\0",
    "a bit of the magic": flipped(0, 8),
    "a bit of the length": flipped(8, 16),
    "a bit of the digest": flipped(16, HEADER),
    "a bit of the metadata": flipped(HEADER + 8, HEADER + 400),
    "a bit of a tensor": flipped(HEADER + 4000, None),
    "another bit of a tensor": flipped(HEADER + 4000, None),
}


@dataclass(frozen=True)
class Stopped:
    """Trials that train as one, or one alone, with a checkpoint and the one before it."""

    folder: Path
    made: plan.Plan
    group: engines.Group
    reference: dict[str, checker.Kept]

    @property
    def training(self) -> TrainingFolder:
        """The folder of their checkpoint."""
        if len(self.group.trials) > 1:
            return self.made.files.group(self.group.id)
        return self.made.files.trial(self.group.trials[0].id)


def train(made: plan.Plan, group: engines.Group, windows: int | None = None) -> list[str]:
    """What a worker does, in this process; a checkpoint at each row, and an end after some."""
    calls = iter(range(10**6))
    trial_dirs = [made.folder / "trials" / one.id for one in group.trials]
    configs = [one.config for one in group.trials]

    def stop() -> bool:
        return windows is not None and next(calls) >= windows

    with mock.patch.object(worker, "CHECKPOINT_SECONDS", 0.0):
        if len(trial_dirs) == 1:
            return [worker.run(configs[0], trial_dirs[0], stop=stop)]
        at = made.folder / "groups" / group.id
        return worker.run_together(configs, trial_dirs, at, stop=stop)


@functools.cache
def stopped(name: str) -> Stopped:
    """Made once: trained to the end, and another stopped half way."""
    registry, base = Registry(), lay_out(Path(tempfile.mkdtemp(prefix="faults-")))
    found = []
    for part in ("whole", "stopped"):
        read = study_file.read(
            base / "small.toml", ["training.steps=150", "training.points=3"], ["fixed"]
        )
        made = plan.make(read, registry, base / part, "cpu")
        runner.describe(made, registry)
        group = engines.choose(made, registry, name, 2).groups[0]
        train(made, group, None if part == "whole" else 2)
        found.append((made, group))
    reference = checker.trials(base / "whole")
    return Stopped(base, *found[1], reference)


def resumed(name: str, number: int) -> Verdict:
    """Every harm to the newest checkpoint, and to both; trained on, and compared."""
    found, begun = Verdict(), stopped(name)
    saved = begun.folder / "saved"
    if not saved.exists():
        shutil.copytree(begun.made.folder, saved)
    for label, harm in HARMS.items():
        for both in (False, True):
            chance = Random(f"{label} {both} {number}")
            shutil.rmtree(begun.made.folder)
            shutil.copytree(saved, begun.made.folder)
            for which in ("checkpoint", "checkpoint.previous")[: 1 + both]:
                file = begun.training.path / which
                file.write_bytes(harm(chance, file.read_bytes()))
            told: list[str] = []
            trials = [begun.made.files.trial(one.id) for one in begun.group.trials]
            worker.resumable(begun.training, trials, told.append)
            statuses = train(begun.made, begun.group)
            where = f"{name}, {'both' if both else 'the newest'} with {label}"
            action = "begins anew" if both else "goes on from step 100"
            found.cases += 1
            found.hold(set(statuses) == {"finished"}, f"{where}: {statuses}")
            found.hold(len(told) == 1 and bool(TOLD.search(told[0])), f"{where}: it says {told}")
            found.hold(told[:1] != [] and action in told[0], f"{where}: it says {told}")
            differing = checker.differences(begun.made.folder, begun.reference)
            found.problems += [f"{where}: {problem}" for problem in differing]
    return found


def swept(folder: Path) -> Verdict:
    """All harms, for a group and for a single trial, at two places each."""
    found = Verdict()
    for name in ("batched", "sequential"):
        for number in range(2):
            one = resumed(name, number)
            found.cases += one.cases
            found.problems += one.problems
    return found


# --- by the command -------------------------------------------------------------------------------

HALF = Moment("group", "open", "rows.jsonl", 11)
"""When a group of three, or a trial, has two checkpoints."""
LOGGED = Moment("group", "os.rename", "mlflow.json", 2)


def by_command(folder: Path, engine: str, words: Sequence[str]) -> Verdict:
    """A study is killed, its checkpoints are damaged, and the command says so and goes on."""
    found = Verdict()
    lay_out(folder)
    ended = study(folder, (*words, "--no-mlflow"), HALF)
    found.kills += ended.fired
    saved = folder / "saved"
    shutil.copytree(folder / "runs", saved)
    for label, both in (("half", False), ("a bit of a tensor", True)):
        shutil.rmtree(folder / "runs")
        shutil.copytree(saved, folder / "runs")
        names = ("checkpoint", "checkpoint.previous")[: 1 + both]
        files = [file for name in names for file in sorted(folder.glob(f"runs/*/*/*/{name}"))]
        for file in files:
            file.write_bytes(HARMS[label](Random(str(file)), file.read_bytes()))
        ended = study(folder, (*words, "--no-mlflow"))
        found.cases += 1
        told = len(TOLD.findall(ended.out))
        expected = len({file.parent for file in files})
        found.hold(told == expected > 0, f"{label}: {told} of {expected} are told: {ended.said}")
        compared(folder, engine, ended, found)
    return found


def compared(folder: Path, engine: str, ended: Ended, found: Verdict) -> None:
    """The command went to its end without a traceback, and left what it leaves undisturbed."""
    kills.clean(ended, found)
    left = folder / "runs" / "small"
    found.problems += checker.differences(left, kills.reference(engine)) + checker.strays(left)


def shorten(file: Path) -> None:
    """Half of it."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def records(folder: Path) -> Verdict:
    """The files of a killed study's own, in half: each is told, and MLflow has nothing twice."""
    found = Verdict()
    lay_out(folder)
    found.kills += study(folder, BATCHED, LOGGED).fired
    at = folder / "runs" / "small"
    files = [at / "mlflow.json", next(at.glob("trials/*/trial.json"))]
    for file in files:
        shorten(file)
    ended = study(folder, BATCHED)
    for file in files:
        found.hold(f"{file.name}: cannot be read" in ended.out, f"{file.name}: {ended.said}")
    kills.clean(ended, found)
    kills.checked(folder, "batched", found)
    return found


def results(folder: Path) -> Verdict:
    """Results and curves of a finished study, in half: made again, with the same bits."""
    found = Verdict()
    for engine, words in kills.ENGINES.items():
        here = lay_out(folder / engine)
        kills.clean(study(here, words), found)
        at = here / "runs" / "small"
        together, alone = [], []
        for one in sorted((at / "trials").iterdir()):
            several = "trained_together" in Folder.at(one).json("result.json")
            (together if several else alone).append(one)
        files = [alone[0] / "result.json", alone[1] / "rows.jsonl", at / "study.json"]
        files += [together[0] / "result.json", together[1] / "rows.jsonl"] if together else []
        for file in files:
            shorten(file)
        ended = study(here, words)
        for file in files:
            name = f"{file.parent.name}/{file.name}"
            found.hold(name in ended.out, f"{name} is not told: {ended.said}")
        kills.clean(ended, found)
        kills.checked(here, engine, found)
    return found


def plans(folder: Path) -> Verdict:
    """The plan of a killed study, in half: told, and its trials end with the same bits."""
    found = Verdict()
    lay_out(folder)
    words = (*SEQUENTIAL, "--no-mlflow")
    found.kills += study(folder, words, HALF).fired
    shorten(folder / "runs" / "small" / "plan.json")
    ended = study(folder, words)
    found.cases += 1
    found.hold("plan.json: cannot be read" in ended.out, f"plan.json: {ended.said}")
    compared(folder, "sequential", ended, found)
    return found


SCENARIOS: dict[str, Scenario] = {
    "damage: checkpoints": swept,
    "damage: checkpoints, batched": lambda at: by_command(at, "batched", BATCHED),
    "damage: checkpoints, sequential": lambda at: by_command(at, "sequential", SEQUENTIAL),
    "damage: records": records,
    "damage: results and curves": results,
    "damage: plan": plans,
}
