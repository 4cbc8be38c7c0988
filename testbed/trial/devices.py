"""The torch devices that a word names, and torch's threads."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import torch

from testbed.errors import InputError

WORDS = re.compile(r"auto|cpu|cuda(:\d+(,\d+)*)?")


def device_of(word: str, option: str = "--device", several: bool = False) -> str:
    """The torch device that a user's word names; "auto" is a GPU where there is one.

    Args:
        word: "auto", "cpu", "cuda" or "cuda:N".
        option: what the word was given as, for the message.
        several: whether "cuda:0,2" may name several GPUs.

    Raises:
        InputError: it is none of these, or this torch or machine has none of that kind.
    """
    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kinds = "auto, cpu, cuda, cuda:N or cuda:N,M" if several else "auto, cpu, cuda or cuda:N"
    if WORDS.fullmatch(word) is None or ("," in word and not several):
        raise InputError(f"{option} {word}: expected {kinds}.")
    if word == "cpu":
        return word
    if not torch.cuda.is_available():
        raise InputError(f"{option} {word}: this torch ({torch.__version__}) sees no CUDA device.")
    numbers, count = _numbers(word), torch.cuda.device_count()
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{option} {word}: names one device twice.")
    if missing := [number for number in numbers if number >= count]:
        raise InputError(
            f"{option} {word}: there is no cuda:{missing[0]}; this machine has {count}, from 0 on."
        )
    return word


def each(word: str) -> tuple[str, ...]:
    """The devices that a word of `device_of` names, one by one: all GPUs for "cuda"."""
    numbers = _numbers(word)
    if word == "cuda":
        numbers = [*range(torch.cuda.device_count())]
    return tuple(f"cuda:{number}" for number in numbers) or (word,)


def first(word: str) -> str:
    """The device that stands for those that a word names: a word that torch knows."""
    return word.partition(",")[0]


def _numbers(word: str) -> list[int]:
    return [int(number) for number in word.partition(":")[2].split(",") if number]


def cores() -> int:
    """The cores that this process may use, which may be fewer than the machine has.

    Slurm, taskset and containers with a set of cores bind processes to some of them.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's, on which numbers do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
