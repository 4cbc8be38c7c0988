"""How often the self-test cries wolf: runs over seeds, dtypes and numbers of threads.

    python benchmarks/selftests.py [--first 0] [--runs 100]

Run i has the seed i, the dtype float64 or float32 in turn, and 1, 2 or 4 threads. A law that is
broken on a right installation is an alarm: the exit code is then 1.
"""

from __future__ import annotations

import argparse
import time

import torch

from testbed import selftest

DTYPES = ("float64", "float32")
THREADS = (1, 2, 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=int, default=100, help="the number of runs")
    wanted = parser.parse_args()
    alarms, start = 0, time.perf_counter()
    for seed in range(wanted.first, wanted.first + wanted.runs):
        dtype, threads = DTYPES[seed % 2], THREADS[seed // 2 % 3]
        torch.set_num_threads(threads)
        for one in selftest.run(seed, dtype):
            if not one.passed:
                alarms += 1
                where = f"seed {seed}, {dtype}, {threads} threads"
                print(f"{where}: {one.law}: {one.message}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{alarms} alarms in {wanted.runs} runs from seed {wanted.first}, {seconds:.0f} s")
    return int(alarms > 0)


if __name__ == "__main__":
    raise SystemExit(main())
