"""Numeric checks that parameterizations, oracles and trained models are the same denoiser.

A law has a bound from floating-point analysis and can fail. The error of a trained model is an
effect with an interval, which never fails.
"""

from testbed.audit.adapters import Adapter
from testbed.audit.driver import check_sampler, run
from testbed.audit.exact_denoisers import check_parameterization
from testbed.audit.factories import find
from testbed.audit.learning import Effect
from testbed.audit.result import PARTS, Audit
from testbed.audit.rows import LawCheck, table
from testbed.audit.trained import check_model

__all__ = [
    "PARTS",
    "Adapter",
    "Audit",
    "Effect",
    "LawCheck",
    "check_model",
    "check_parameterization",
    "check_sampler",
    "find",
    "run",
    "table",
]
