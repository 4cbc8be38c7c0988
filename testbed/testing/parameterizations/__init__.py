"""The laws of parameterizations: D = c_skip x + c_out F(c_in x, c_noise), x = x0 + sigma eps."""

from testbed.testing.parameterizations import algebra, conversions, declared, purity, tensors
from testbed.testing.parameterizations.cases import LAWS

__all__ = ["LAWS", "algebra", "conversions", "declared", "purity", "tensors"]
