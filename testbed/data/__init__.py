"""The bundled data sets, each with its split, its sigma_data and, where known, its oracle."""

from testbed.components.dataset import Data

__all__ = ["Data"]
