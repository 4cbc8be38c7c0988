"""The processes of one training over several devices: the worker is the first, and starts the rest.

The others build the same training and do its steps; they read and write nothing of the trial's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from testbed.errors import InputError
from testbed.training.parallel import ProcessGroup
from testbed.training.trainer import Loop, Trainer
from testbed.trial.build import data_of, registry_of, training_job
from testbed.trial.config import TrialConfig


def require(config: TrialConfig, devices: int) -> None:
    """Refuses a batch that cannot be cut into a part for each device.

    Raises:
        InputError: with the batch and the number of its parts.
    """
    parts = devices * config.training.accumulation
    if config.training.batch % parts:
        raise InputError(
            f"training.batch = {config.training.batch} cannot be cut into {parts} equal parts, one "
            "for each device and step of training.accumulation."
        )


@contextlib.contextmanager
def of(
    config: TrialConfig, plugins: Sequence[str], plugin_dirs: Sequence[str], devices: Sequence[str]
) -> Iterator[ProcessGroup | None]:
    """The process group of a training, this process its first; None where there is one device."""
    if len(devices) < 2:
        yield None
        return
    require(config, len(devices))
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            context.Process(
                target=follow,
                args=(config.record(), plugins, plugin_dirs, device, rank, len(devices)),
                kwargs={"meeting": meeting, "threads": threads},
                daemon=True,
            )
            for rank, device in enumerate(devices[1:], 1)
        ]
        for one in others:
            one.start()
        try:
            process_group = ProcessGroup.join(0, len(devices), meeting, torch.device(devices[0]))
            try:
                yield process_group
            finally:
                process_group.leave()
        finally:
            for one in others:
                one.join(10)
                one.kill()


def follow(
    record: Mapping[str, Any],
    plugins: Sequence[str],
    plugin_dirs: Sequence[str],
    device: str,
    rank: int,
    size: int,
    *,
    meeting: Path,
    threads: int,
) -> None:
    """Does the steps of a training until the first process ends it."""
    torch.set_num_threads(threads)
    where = torch.device(device)
    process_group = ProcessGroup.join(rank, size, meeting, where)
    registry = registry_of(tuple(plugins), tuple(plugin_dirs))
    config = TrialConfig.model_validate(record)
    data = data_of(config, registry)
    trainer = Trainer.of(training_job(config, registry, data), data, where)
    trainer.process_group = process_group
    share(trainer)
    for _ in trainer.windows():
        if process_group.agreed(False, where):
            break
    process_group.leave()


def share(loop: Loop) -> None:
    """Gives all processes of a process group the state of the first, before the first step."""
    if loop.process_group is not None:
        tensors, facts = loop.state()
        step = torch.tensor([loop.step], device=loop.device)
        found = loop.process_group.shared({**tensors, "step": step}, loop.device)
        loop.restore(found, {**facts, "step": int(found.pop("step"))})
