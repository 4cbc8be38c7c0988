"""The self-test of an installation: closed forms that the installed package must reproduce.

    found = testbed.selftest.run(seed=0, dtype="float64")

It needs neither pytest nor a data set, and takes seconds. What it compares with is written in
`formulas`, from the papers; tolerances are those of rounding (gamma_k = k u/(1 - k u) of the added
terms), of a method's order (what twice the steps change) or of chance (6.5 standard errors).
"""

from __future__ import annotations

from testbed.selftest.running import Found, run

__all__ = ["Found", "run"]
