"""Samplers, from noise at sigmas[0] to a sample with any denoiser; and the way back, likelihood."""

from testbed.sampling.likelihood import bits_per_dim, log_likelihood
from testbed.sampling.loop import sample

__all__ = ["bits_per_dim", "log_likelihood", "sample"]
