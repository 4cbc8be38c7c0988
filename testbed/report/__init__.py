"""The report of a study: a pure reader of the trial directories."""

from testbed.report.page import write

__all__ = ["write"]
