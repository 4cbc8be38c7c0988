"""How a check ends that does not pass: the law is broken, or cannot be checked."""

from __future__ import annotations

import unittest


class CheckFailed(AssertionError):
    """A component breaks a law: who, which law, and the numbers.

    `numbers` is that last part alone.
    """

    def __init__(self, message: str, numbers: str = "") -> None:
        super().__init__(message)
        self.numbers = numbers or message


class Skipped(unittest.SkipTest):
    """A law that cannot be checked on this component, with the reason; a skip under pytest."""
