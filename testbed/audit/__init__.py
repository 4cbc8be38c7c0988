"""Numeric checks that parameterizations, oracles and trained models are the same denoiser.

Rows of kind `identity` have a bound from floating-point analysis and can fail. What a trained model
missed is `learning`: an effect with an interval, which never fails.
"""

from testbed.audit.adapters import Adapter
from testbed.audit.driver import (
    PARTS,
    Audit,
    check_parameterization,
    check_sampler,
    find,
    run,
)
from testbed.audit.learning import Effect
from testbed.audit.rows import Row, table
from testbed.audit.trained import check_model

__all__ = [
    "PARTS",
    "Adapter",
    "Audit",
    "Effect",
    "Row",
    "check_model",
    "check_parameterization",
    "check_sampler",
    "find",
    "run",
    "table",
]
