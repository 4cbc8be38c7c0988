"""`python tests/faults [NAME ...] [--jobs J] [--out FILE]`: a study is disturbed in every way.

NAME is the beginning of a scenario's name; without one, all. Prints what was lost, doubled or not
said, then a table; ends with 1 if there was anything.
"""

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import changes, damage, full_disk, kills, mistakes, server, stores
from faults.verdict import Scenario, Verdict
from rich.console import Console
from rich.table import Table

SCENARIOS: dict[str, Scenario] = {
    **kills.SCENARIOS,
    **damage.SCENARIOS,
    **full_disk.SCENARIOS,
    **stores.SCENARIOS,
    **server.SCENARIOS,
    **mistakes.SCENARIOS,
    **changes.SCENARIOS,
}


def tried(name: str) -> tuple[Verdict, float]:
    """A scenario in a folder of its own, and how long it took; the folder stays if it failed."""
    start, folder = perf_counter(), Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        found = SCENARIOS[name](folder)
    except Exception:
        found = Verdict(problems=[traceback.format_exc()])
    for problem in found.problems:
        print(f"{name}: {problem} ({folder})", flush=True)
    if not found.problems:
        shutil.rmtree(folder)
    seconds = perf_counter() - start
    print(f"{name}: {len(found.problems)} problems in {seconds:.0f} s", flush=True)
    return found, seconds


def table(found: dict[str, tuple[Verdict, float]]) -> Table:
    """Cases, kills and seconds of each scenario, and what came of it."""
    shown = Table("scenario", box=None, pad_edge=False)
    for head in ("cases", "kills", "seconds"):
        shown.add_column(head, justify="right")
    shown.add_column("verdict")
    for name, (one, seconds) in found.items():
        problems = len(one.problems)
        words = f"[red]{problems} problems[/]" if problems else one.skipped or "nothing lost"
        shown.add_row(name, str(one.cases), str(one.kills), f"{seconds:.0f}", words)
    cases, killed = (sum(getattr(v, key) for v, _ in found.values()) for key in ("cases", "kills"))
    shown.add_row("all", str(cases), str(killed), "", "")
    return shown


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="nox -s faults --", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"one of: {', '.join(SCENARIOS)}")
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time")
    parser.add_argument("--out", type=Path, help="also write the tally as JSON")
    asked = parser.parse_args()
    begins = tuple(asked.name)
    names = [name for name in SCENARIOS if not begins or name.startswith(begins)]
    if not names:
        parser.error(f"no scenario begins with {' or '.join(begins)}")
    start = perf_counter()
    for engine in kills.ENGINES:
        kills.reference(engine)
    with ThreadPoolExecutor(asked.jobs) as pool:
        found = dict(zip(names, pool.map(tried, names), strict=True))
    Console(soft_wrap=True).print(table(found))
    print(f"{perf_counter() - start:.0f} s in all")
    if asked.out is not None:
        tally = {name: {**asdict(one), "seconds": round(s)} for name, (one, s) in found.items()}
        asked.out.write_text(json.dumps(tally, indent=1) + "\n")
    return int(any(one.problems for one, _ in found.values()))


if __name__ == "__main__":
    sys.exit(main())
