"""`python tests/fuzz [KIND [NUMBER]] [--cases N] [--jobs J]`: bad input of every kind.

Prints every case that breaks the law, then a table of exit codes; ends with 1 if there was one.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz import law
from fuzz.tally import Tally, tried

CHUNK = 50


def chunks(kinds: list[str], cases: int) -> Iterator[tuple[str, int, int]]:
    """The cases in parts, in turns of the kinds."""
    each = -(-cases // len(kinds))
    for first in range(0, each, CHUNK):
        for kind in kinds:
            yield kind, first, min(first + CHUNK, each)


def all_of(kinds: list[str], cases: int, jobs: int) -> dict[str, Tally]:
    """Every case, in `jobs` processes; the table after each thousand."""
    tallies = {kind: Tally() for kind in kinds}
    done, start = 0, perf_counter()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        parts = [(part, pool.submit(tried, *part)) for part in chunks(kinds, cases)]
        for (kind, first, last), future in parts:
            try:
                found = future.result()
            except BrokenProcessPool:
                note = f"{kind} {first} to {last - 1}: the process died\n"
                found = Tally(Counter({"died": last - first}), told=[note])
            for text in found.told:
                print(text, flush=True)
            tallies[kind].add(found)
            before, done = done, done + last - first
            if done // 1000 > before // 1000:
                print(f"{done} cases in {perf_counter() - start:.0f} s", flush=True)
                print(table(tallies), flush=True)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """Cases, exit codes, seconds and breaches by kind."""
    lines = [f"{'kind':8} {'cases':>6} {'broken':>6} {'seconds':>8} {'slowest':>16}  exit codes"]
    for kind, tally in tallies.items():
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(tally.codes.items()))
        slowest = f"{tally.slowest[0]:.1f} s, {tally.slowest[1]}"
        lines.append(
            f"{kind:8} {tally.codes.total():6} {len(tally.told):6} {tally.seconds:8.0f} "
            f"{slowest:>16}  {codes}"
        )
    return "\n".join(lines)


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s fuzz --", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=[*law.MAKERS], help="only this kind")
    parser.add_argument("number", nargs="?", type=int, help="only this case, shown in any case")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    if asked.number is not None:
        given, done, broken = law.try_case(asked.kind, asked.number, law.scratch())
        print(law.told(asked.kind, asked.number, given, done, broken or ["the law holds"]))
        return int(bool(broken))
    kinds = [asked.kind] if asked.kind else [*law.MAKERS]
    tallies = all_of(kinds, asked.cases, asked.jobs)
    print(table(tallies))
    return int(any(tally.told for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
