"""Numeric checks that parameterizations, oracles and trained models are the same denoiser.

Rows of kind `identity` have a bound from floating-point analysis and can fail. What a trained model
missed is `learning`: an effect with an interval, which never fails.
"""

from testbed.audit.identities import check_model, check_parameterization, check_sampler
from testbed.audit.rows import Row, table

__all__ = ["Row", "check_model", "check_parameterization", "check_sampler", "table"]
