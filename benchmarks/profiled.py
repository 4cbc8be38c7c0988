"""Where the time of a batched step goes: `python benchmarks/profiled.py [batched|compiled]`.

20 trials of width 64, batch 64, one thread. The compiled program calls its kernels from Python
here, since the profiler does not see the products of one that is all C++.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from trials import data, run_blocks, training_jobs

from testbed.training import step_program
from testbed.training.batch import Batch

KINDS = {
    "products (bmm, addmm)": ("aten::bmm", "aten::addmm", "aten::baddbmm", "aten::mm"),
    "Adam and averages": ("aten::_fused_adam_", "aten::lerp_", "Optimizer"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous"),
    "fused kernels": ("## Call CompiledFxGraph",),
}


def main(engine: str) -> None:
    """Prints the share of each kind of work in the time of two blocks of steps."""
    torch.set_num_threads(1)
    step_program.OPTIONS.clear()
    batch = Batch(training_jobs(20, 64, 64), data(), torch.device("cpu"), engine == "compiled")
    run_blocks(batch, 2)  # compiled or traced by then
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run_blocks(batch, 2)
    shares: Counter[str] = Counter()
    for event in found.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "the rest")
        shares[kind] += event.self_cpu_time_total
    for kind, microseconds in shares.most_common():
        print(f"{microseconds / sum(shares.values()):6.1%}  {kind}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["compiled"]))
