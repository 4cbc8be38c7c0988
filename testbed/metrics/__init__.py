"""Metrics: losses, likelihood, sample distances, and the statistics of a comparison over seeds."""
