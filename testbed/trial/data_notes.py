"""What a plan and a report say of a trial's data: how they were read, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Iterator

from testbed.components.dataset import Data
from testbed.components.network import Network
from testbed.metrics import linear_baseline
from testbed.trial.config import ROUNDING, TrialConfig


def notes(config: TrialConfig, data: Data, network: Network | None) -> Iterator[str]:
    """A sentence for each thing that was recognised, and for each that does not fit.

    Args:
        config: the resolved trial.
        data: what it trains on.
        network: the network that it trains; None for a model that is measured as it is.
    """
    yield from data.notes
    shape = tuple(data.train.shape[1:])
    d = math.prod(shape)
    if network is not None and 0 < (rank := network.rank_of(shape)) < d:
        yield (
            f"F of network {network.name!r} lies in an affine space of at most {rank} of a "
            f"sample's {d} dimensions, whatever x is: it can follow neither the noise nor x in all "
            "of them, from which parameterizations suffer differently. A wider network has no such "
            "limit."
        )
    sigma_data = config.sigma_data_measured
    if config.sigma_max < sigma_data:
        yield (
            f"sigma_max = {config.sigma_max:g} is below the data's sigma_data = {sigma_data:.4g}: "
            "noise hides the data at no level, and samples do not start from noise alone. Scale "
            'the data, or write sigma_max = "160 * sigma_data".'
        )
    if config.sigma_min > sigma_data:
        yield (
            f"sigma_min = {config.sigma_min:g} is above the data's sigma_data = {sigma_data:.4g}: "
            "noise hides the data at every level. Scale the data, or write sigma_min = "
            '"0.004 * sigma_data".'
        )
    if note := linear_baseline.note(data):
        yield note
    if config.training.flips:
        exact = (
            "the exact optimum and the linear baseline are"
            if data.oracle
            else ("the linear baseline is")
        )
        yield (
            f"training mirrors images with probability {config.training.flips:g}, and learns the "
            f"distribution of the mirrored ones. What is measured is not mirrored: {exact} of the "
            "data as they are, as are the held-out samples, so that the loss compared with them "
            "includes what a model cannot know of the direction of an image."
        )
    (last, first), (low, high) = config.sampled, config.trained
    beyond = last < low * (1 - ROUNDING) or first > high * (1 + ROUNDING)
    if beyond and config.table is not None:
        yield (
            f"samples are asked to go from sigma = {first:g} to {last:g}, and go from "
            f"{min(first, high):g} to {max(last, low):g}: of a table they take the levels that "
            "training draws."
        )
    elif beyond:
        yield (
            f"samples go from sigma = {first:g} to {last:g}, and training draws {low:g} to "
            f"{high:g}: D beyond is what the network gives for levels that it was never trained "
            "on."
        )
    if config.table is not None and config.cut_table:
        yield (
            f"table {config.table.name} is cut to {config.cut_table}: training never draws those "
            f"outside of sigma_min = {config.sigma_min:g} and sigma_max = {config.sigma_max:g}. "
            "Where both are left out, all levels of a table are trained on."
        )
