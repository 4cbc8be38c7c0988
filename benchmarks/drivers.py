"""Several drivers on one study: how much faster they are than one, and what they leave when killed.

    python benchmarks/drivers.py speed --drivers 1 2 --trials 16 --rounds 3
    python benchmarks/drivers.py speed --paced --trials 12         # trials that sleep: on one core
    python benchmarks/drivers.py kills --kills 20                  # in a folder with leases
    python benchmarks/drivers.py kills --kills 20 --place s3       # on moto's server
    python benchmarks/drivers.py kills --kills 20 --place /mnt/a /mnt/b    # one disk, mounted twice

Each driver trains in its own process, one trial at a time. `kills` ends one of two drivers at
random moments and starts another in its place, or takes the disk away from both for a while by the
commands --pull and --back, and compares the results of every study, file by file, with those of one
driver that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lost_nodes import PLUGIN, STUDY, TRIALS, results

from testbed.trial.storage import bucket, local

LEASE = 3.0
EQUAL = """
[study]
name = "equal"
[base]
dataset = {{ name = "mixture", dim = 2, n = 512, test = 256 }}
network = {{ name = "mlp", width = 64, depth = 2 }}
training = {{ steps = {steps}, batch = 64, points = 10 }}
evaluation = {{ levels = 4, draws = 16, samples = 16, steps = 4, metrics = ["energy"] }}
parameterization = "v"
seeds = {trials}
"""


def driver(folder: Path, file: str, out: str, *words: str) -> subprocess.Popen[bytes]:
    """A driver, with a cache of its own as on another machine."""
    command = [sys.executable, "-m", "testbed", "study", file, "--no-mlflow", "--jobs", "0"]
    command += ["--engine", "sequential", "--out", out, *words]
    own = os.environ | {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder), "OMP_NUM_THREADS": "1"}
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=folder, env=own, stdout=said, stderr=said)


def processor() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def speed(asked: argparse.Namespace) -> None:
    """Prints the wall and CPU seconds of a study by so many drivers, in turn."""
    text = EQUAL.format(steps=asked.steps, trials=asked.trials)
    if asked.paced:
        text = STUDY.replace(f"seeds = {TRIALS // 2}", f"seeds = {asked.trials // 2}")
    for _ in range(asked.rounds):
        for count in asked.drivers:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "equal.toml").write_text(text)
                (folder / "paced.py").write_text(PLUGIN)
                (folder / "paced").touch()
                begun, used = time.monotonic(), processor()
                words = "equal.toml", "out", "--lease", str(LEASE)
                running = [driver(folder, *words) for _ in range(count)]
                codes = [one.wait() for one in running]
                assert codes == [0] * count, (folder / "said.txt").read_text()
                found = {"seconds": time.monotonic() - begun, "cpu": processor() - used}
                print(json.dumps({"drivers": count} | found), flush=True)


@contextmanager
def moto(port: int = 5566) -> Iterator[str]:
    """The URL of an empty bucket on moto's server, which listens on this machine alone."""
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                bucket._file_system("s3").mkdir("s3://bucket")
                break
            except OSError:
                time.sleep(0.5)
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()


@contextmanager
def place(words: Sequence[str], folder: Path) -> Iterator[list[str]]:
    """The folder or URL that studies are put into, as each of two drivers sees it."""
    if words == ["s3"]:
        with moto() as url:
            yield [url] * 2
    else:
        yield [str(folder) if word == "disk" else word for word in (*words, *words)][:2]


def kills(asked: argparse.Namespace) -> None:
    """Kills drivers or takes the disk away, compares, and prints the tally as JSON."""
    count, seed = asked.kills, asked.seed
    chance, begun = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "lost.toml").write_text(STUDY)
        (folder / "paced.py").write_text(PLUGIN)
        assert driver(folder, "lost.toml", "undisturbed").wait() == 0
        wanted = results(folder / "undisturbed")
        (folder / "paced").touch()
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        tally = {"kills": 0, "studies": 0, "equal": 0, "failed": 0, "trials": 0}
        with place(asked.place, folder) as at:
            while tally["kills"] < count:
                outs = [f"{one}/run-{seed}-{tally['studies']}" for one in at]
                lease = "--lease", str(asked.lease)
                running = [driver(folder, "lost.toml", out, *lease) for out in outs]
                while any(one.poll() is None for one in running):
                    time.sleep(chance.expovariate(1 / asked.seconds))
                    victim = chance.randrange(2)
                    if running[victim].poll() is not None or tally["kills"] == count:
                        continue
                    tally["kills"] += 1
                    if asked.pull:
                        subprocess.run(asked.pull, shell=True, check=True)
                        time.sleep(chance.uniform(1, 4) * asked.lease)
                        subprocess.run(asked.back, shell=True, check=True)
                    else:
                        running[victim].kill()
                        running[victim].wait()
                        running[victim] = driver(folder, "lost.toml", outs[victim], *lease)
                ended = [one.returncode for one in running] == [0, 0]
                tally["studies"] += 1
                tally["trials"] += TRIALS
                tally["equal"] += ended and results(local(outs[0])) == wanted
                tally["failed"] += not ended
                print(json.dumps(tally | {"seconds": round(time.monotonic() - begun)}), flush=True)
                if not ended:
                    print((folder / "said.txt").read_text()[-3000:], flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fast = commands.add_parser("speed")
    fast.add_argument("--drivers", type=int, nargs="+", default=[1, 2])
    fast.add_argument("--trials", type=int, default=16)
    fast.add_argument("--steps", type=int, default=10_000)
    fast.add_argument("--rounds", type=int, default=3)
    fast.add_argument("--paced", action="store_true", help="trials that sleep ten seconds each")
    killed = commands.add_parser("kills")
    killed.add_argument("--kills", type=int, default=20)
    killed.add_argument("--seconds", type=float, default=8.0, help="between two, on average")
    killed.add_argument("--place", nargs="+", default=["disk"], help="disk, s3, or folders")
    killed.add_argument("--lease", type=float, default=LEASE)
    killed.add_argument("--pull", help="a shell command that takes the disk away")
    killed.add_argument("--back", help="the one that brings it back")
    killed.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    if asked.command == "speed":
        speed(asked)
    else:
        kills(asked)


if __name__ == "__main__":
    main()
