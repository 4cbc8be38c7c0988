"""The torch device that a word names, and torch's threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from testbed.errors import InputError


def device_of(word: str, option: str = "--device") -> str:
    """The torch device that a user's word names; "auto" is a GPU where there is one.

    Args:
        word: "auto", "cpu", "cuda" or "cuda:N".
        option: what the word was given as, for the message.

    Raises:
        InputError: it is none of these, or this torch or machine has none of that kind.
    """
    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(word)
    except RuntimeError:
        raise InputError(f"{option} {word}: expected auto, cpu, cuda or cuda:N.") from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"{option} {word}: expected auto, cpu, cuda or cuda:N.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{option} {word}: this torch ({torch.__version__}) sees no CUDA device.")
    return word


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's, on which numbers do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
