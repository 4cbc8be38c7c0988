"""Peak memory in MiB: python benchmarks/memory.py MODULE unet|dit ours|theirs DEVICE

MODULE is image_training or image_sampling. The process builds the network with all that trains it
or samples from it, and runs it once; what it holds before that, with the modules that it has
imported, is not counted.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import torch
from side import Figure

PROCESS = Path("/proc/self")


def resident(field: str) -> float:
    """MiB of this process, those of now ("VmRSS") or the most so far ("VmHWM")."""
    lines = (PROCESS / "status").read_text().splitlines()
    (line,) = (one for one in lines if one.startswith(field))
    return int(line.split()[1]) / 1024


def peak(module: str, name: str, side: str, device: torch.device) -> float:
    """The most that one side of a module needs for a network, in MiB."""
    build = getattr(importlib.import_module(module), side)
    if device.type == "cuda":
        build(name, device)()
        return torch.cuda.max_memory_allocated(device) / 2**20
    (PROCESS / "clear_refs").write_text("5")  # the most so far is what it is now
    before = resident("VmRSS")
    build(name, device)()
    return resident("VmHWM") - before


def memory(figure: str, module: str, name: str, device: torch.device) -> Figure:
    """The peak of both sides, each in a process of its own."""
    words = [sys.executable, __file__, module, name]
    found = {
        side: float(subprocess.check_output([*words, side, str(device)]))
        for side in ("ours", "theirs")
    }
    return Figure(
        figure, f"peak memory of the former ({figure})", [found["ours"] / found["theirs"]], None,
        {f"MiB, {side}": value for side, value in found.items()},
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    module, name, side, device = sys.argv[1:]
    print(peak(module, name, side, torch.device(device)))
