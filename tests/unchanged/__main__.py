"""`python tests/unchanged [--only NAME] [--record] [--keep DIR]`: nothing that is computed changed.

Small studies run through the command line, as a black box, and the sha256 digests of what they
leave are compared with those of digests.json: of each trial the tensors of its weights, states and
samples, its tables per noise level, its training curve without times, and its metrics with their
errors; of each study the tables of its report, line by line in any order. Trials are known by their
study, case, arm, variant and seed, since a change of the sources changes their ids.

Floating-point results are comparable on one kind of machine only: the same torch, numpy, processor
and vector instructions. On another kind the comparison is printed all the same, with a warning;
record on the earlier commit there, and compare with that. Ends with 1 where anything differs, is
missing or is new, on whichever machine; with 0 only where everything agrees.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy
import torch
from digests import Entry, Value, of_study

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STORED = HERE / "digests.json"
SAID = 3
"""Of the metrics that differ in a trial, how many are told."""


class Study(NamedTuple):
    """A study file, and the options that make its results the same at each run.

    The engine and the workers are given, so that no measurement decides which trials are one batch.
    """

    file: Path
    options: tuple[str, ...]


DEFAULT = ROOT / "studies" / "default.toml"
SHORT = ("--set", "training.steps=150", "--seeds", "1")
STUDIES = {
    "sequential": Study(DEFAULT, (*SHORT, "--engine", "sequential", "--jobs", "0")),
    "batched": Study(DEFAULT, (*SHORT, "--engine", "batched", "--jobs", "2")),
    "aa": Study(
        ROOT / "studies" / "aa.toml",
        ("--set", "training.steps=60", "--seeds", "1", "--engine", "sequential", "--jobs", "1"),
    ),
    "features": Study(HERE / "features.toml", ("--engine", "sequential", "--jobs", "0")),
}


class Row(NamedTuple):
    """One line of the comparison: of which trial, what, and whether it is the same."""

    trial: str
    what: str
    verdict: str
    detail: str = ""


def run(name: str, folder: Path) -> tuple[dict[str, Entry], list[Row]]:
    """Runs a study in a folder below `folder`; what it left, and a row if it did not end well."""
    study, start = STUDIES[name], perf_counter()
    words = [sys.executable, "-m", "testbed", "study", str(study.file), *study.options]
    words += ["--device", "cpu", "--no-mlflow", "--out", name]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("TESTBED_PLUGIN_PATH", None)
    ended = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
    print(f"{name}: {perf_counter() - start:.0f} s", flush=True)
    problems = []
    if ended.returncode:
        print(ended.stdout + ended.stderr, flush=True)
        problems.append(Row(name, "exit code", "DIFFERS", f"0 -> {ended.returncode}"))
    return of_study(name, folder / name), problems


def compared(before: dict[str, Entry], now: dict[str, Entry]) -> list[Row]:
    """Each thing of each trial, the stored one against the one that was just made."""
    rows = []
    for trial in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(trial), now.get(trial)
        if old is None or new is None:
            rows.append(Row(trial, "all of it", "EXTRA" if old is None else "MISSING"))
            continue
        for what in [*old.digests, *(key for key in new.digests if key not in old.digests)]:
            a, b = old.digests.get(what), new.digests.get(what)
            verdict = "EXTRA" if a is None else "MISSING" if b is None else "DIFFERS"
            detail = change(old.values, new.values) if what == "metrics" else ""
            rows.append(Row(trial, what, "same") if a == b else Row(trial, what, verdict, detail))
    return rows


def change(before: dict[str, Value], now: dict[str, Value]) -> str:
    """Which numbers differ and by how much, those first that differ by the largest share."""
    names = [*before, *(name for name in now if name not in before)]
    pairs = {name: (before.get(name, "absent"), now.get(name, "absent")) for name in names}
    differ = [name for name, (a, b) in pairs.items() if repr(a) != repr(b)]
    differ.sort(key=lambda name: -share(*pairs[name]))
    told = [f"{name} {shown(*pairs[name])}" for name in differ[:SAID]]
    rest = [f"{len(differ) - SAID} more"] if len(differ) > SAID else []
    return ", ".join(told + rest)


def share(a: Value, b: Value) -> float:
    """The difference of two numbers as a share of the larger; infinite of what is no number."""
    if not isinstance(a, float | int) or not isinstance(b, float | int):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b), sys.float_info.min)


def shown(a: Value, b: Value) -> str:
    """Two values that differ, in as few digits as show it."""
    if not isinstance(a, float | int) or not isinstance(b, float | int):
        return f"{a} -> {b}"
    pairs = ((f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in range(4, 18))
    first, second = next((pair for pair in pairs if pair[0] != pair[1]), (repr(a), repr(b)))
    return f"{first} -> {second}"


def table(rows: list[Row]) -> str:
    """A line for all that is the same in a trial, one for each difference, and the counts."""
    same: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == "same":
            same.setdefault(row.trial, []).append(row.what)
    lines = []
    for trial in dict.fromkeys(row.trial for row in rows):
        if trial in same:
            lines.append(Row(trial, ", ".join(same[trial]), "same"))
        lines += [row for row in rows if row.trial == trial and row.verdict != "same"]
    heads = Row("trial", "what", "verdict")
    widths = [max(len(row[i]) for row in [heads, *lines]) for i in range(2)]
    text = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}  {row[3]}".rstrip()
            for row in [heads, *lines]]  # fmt: skip
    counts = Counter(row.verdict for row in rows)
    trials = len({row.trial for row in rows if " · seed " in row.trial})
    words = [f"{counts[verdict]} {verdict}" for verdict in ("same", "DIFFERS", "MISSING", "EXTRA")]
    return "\n".join([*text, f"{trials} trials: {', '.join(words)}."])


def machine() -> dict[str, str]:
    """What the digests of floating-point results depend on beside the project."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "processor": models[0] if models else platform.processor(),
    }


def warn(recorded: dict[str, str]) -> None:
    """Says what this machine has that the recorded one had not."""
    here = machine()
    other = [f"{key} {recorded.get(key)} -> {here[key]}" for key in here
             if here[key] != recorded.get(key)]  # fmt: skip
    if other:
        print(
            f"NOT THE RECORDED KIND OF MACHINE: {', '.join(other)}. Digests of floating-point "
            "results are only comparable on the recorded kind. --record on the earlier commit, "
            "on this machine, makes comparable ones."
        )


def record(found: dict[str, Entry]) -> None:
    """Writes digests.json anew."""
    entries = {trial: entry.written() for trial, entry in sorted(found.items())}
    text = json.dumps({"machine": machine(), "entries": entries}, indent=1, ensure_ascii=False)
    STORED.write_text(text + "\n")
    print(f"Recorded {len(entries)} entries in {STORED.relative_to(ROOT)}.")


def stored(names: list[str]) -> tuple[dict[str, str], dict[str, Entry]]:
    """The machine that digests.json was recorded on, and its entries of these studies."""
    held = json.loads(STORED.read_text())
    entries = {trial: Entry.read(entry) for trial, entry in held["entries"].items()}
    kept = {trial: one for trial, one in entries.items() if trial.split(" · ")[0] in names}
    return held["machine"], kept


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="nox -s unchanged --",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=STUDIES, help="one of the studies")
    parser.add_argument("--record", action="store_true", help="write digests.json anew")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the studies in this folder")
    asked = parser.parse_args()
    if asked.record and asked.only:
        parser.error("--record is of all studies, so that all are of one commit and machine.")
    if not asked.record and not STORED.is_file():
        parser.error(f"{STORED.name} does not exist: --record writes it.")
    if asked.keep is not None and asked.keep.exists() and any(asked.keep.iterdir()):
        parser.error(f"--keep {asked.keep}: is not empty, and a study would resume what is there.")
    names = [asked.only] if asked.only else list(STUDIES)
    found: dict[str, Entry] = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="unchanged-") as temporary:
        folder = (asked.keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            entries, problems = run(name, folder)
            found |= entries
            rows += problems
    if asked.record and rows:
        print(f"{table(rows)}\nNothing was recorded.")
    elif asked.record:
        record(found)
    else:
        recorded, before = stored(names)
        rows = compared(before, found) + rows
        print(table(rows))
        warn(recorded)
    return int(any(row.verdict != "same" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
