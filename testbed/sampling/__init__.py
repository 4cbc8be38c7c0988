"""Samplers: from noise at sigmas[0] to a sample, with any denoiser."""

from testbed.sampling.loop import sample

__all__ = ["sample"]
