"""The processes of one training over several devices: the worker is the first, and starts the rest.

The others build the same training and do its steps; they read and write nothing of the trial's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from testbed.errors import InputError
from testbed.training import memory
from testbed.training.parallel import ProcessGroup
from testbed.training.trainer import Loop, Trainer
from testbed.trial.build import data_of, registry_of, training_job
from testbed.trial.config import TrialConfig

LOSS = 1.0
"""Seconds within which a process is known to be lost, after what it was asked for failed."""


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


def end_with_parent() -> None:
    """Lets this process end where the one that started it does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Follower(NamedTuple):
    """A process of a training besides the first, and where it says that it is ready."""

    process: BaseProcess
    ready: Connection

    def await_ready(self) -> None:
        """Waits until it has built the training on its device.

        Raises:
            Exception: what it has met there, such as too little memory.
        """
        try:
            problem = self.ready.recv()
        except EOFError:
            self.process.join()
            if (self.process.exitcode or 0) < 0:  # it was killed
                os._exit(1)
            problem = RuntimeError("a process of the training ended before it began")
        if problem is not None:
            raise problem


_JOINING = threading.Lock()
"""Of two threads that join a process at once, one may be told that it has no exit code."""


def _end_with(
    followers: Sequence[Follower], over: threading.Event, timeout: float | None = None
) -> None:
    """Ends this process where one of the others is lost: a GPU would wait for it for minutes.

    Args:
        followers: the others.
        over: set once the training has ended, and they may be ended.
        timeout: seconds to wait for that; None to the end of all.
    """
    left = {one.process.sentinel: one.process for one in followers}
    while left and (ended := wait([*left], timeout)):
        for sentinel in ended:
            process = left.pop(cast(int, sentinel))
            with _JOINING:
                process.join()
            if process.exitcode and not over.is_set():
                os._exit(1)


@contextlib.contextmanager
def of(
    config: TrialConfig, plugins: Sequence[str], plugin_dirs: Sequence[str], devices: Sequence[str]
) -> Iterator[ProcessGroup | None]:
    """The process group of a training, this process its first; None where there is one device.

    Where one of the others is lost, this process ends: its driver resumes from the checkpoint.

    Raises:
        Exception: what another process met before the training began.
    """
    if len(devices) < 2:
        yield None
        return
    require(config, len(devices))
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    followers: list[Follower] = []
    over = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        try:
            for rank, device in enumerate(devices[1:], 1):
                ready, said = context.Pipe(duplex=False)
                words = config.record(), plugins, plugin_dirs, device, rank, len(devices)
                more = {"meeting": meeting, "threads": threads, "said": said}
                process = context.Process(target=follow, args=words, kwargs=more, daemon=True)
                process.start()
                said.close()
                followers.append(Follower(process, ready))
            for one in followers:
                one.await_ready()
            threading.Thread(target=_end_with, args=(followers, over), daemon=True).start()
            process_group = ProcessGroup.join(0, len(devices), meeting, torch.device(devices[0]))
            try:
                yield process_group
            except Exception:
                _end_with(followers, over, LOSS)  # it may be the reason
                raise
            finally:
                over.set()
                process_group.leave()
        finally:
            for one in followers:
                one.process.join(10)
                one.process.kill()


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
    said: Connection,
) -> None:
    """Does the steps of a training until the first process ends it."""
    end_with_parent()
    torch.set_num_threads(threads)
    where = torch.device(device)
    try:
        registry = registry_of(tuple(plugins), tuple(plugin_dirs))
        config = TrialConfig.model_validate(record)
        data = data_of(config, registry)
        job = training_job(config, registry, data)
        memory.require([job], data, where)
        trainer = Trainer.of(job, data, where)
    except Exception as problem:
        said.send(problem)
        return
    said.send(None)
    trainer.process_group = process_group = ProcessGroup.join(rank, size, meeting, where)
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
