"""What is measured: sample distances, and the statistics of a comparison over seeds."""

from testbed.metrics.distances import Floor, energy, floor, mmd, nearest, off_plane
from testbed.metrics.statistics import (
    Comparison,
    Interval,
    compare,
    correct,
    holm,
    mean_interval,
    tost,
)

__all__ = [
    "Comparison",
    "Floor",
    "Interval",
    "compare",
    "correct",
    "energy",
    "floor",
    "holm",
    "mean_interval",
    "mmd",
    "nearest",
    "off_plane",
    "tost",
]
