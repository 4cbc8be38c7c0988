"""The spacing of quantised values: found, compared with a stated one, and noise of that width."""

import math
from typing import Any

import pytest
import torch
from laws.own_data import law_mismatch, law_no_spacing, law_spacing, law_undequantised

from testbed.components import quantisation
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.random import stream


def test_the_spacing_of_a_grid_is_found() -> None:
    law_spacing(quantisation.spacing)


def test_where_there_is_no_grid_none_is_found() -> None:
    law_no_spacing(quantisation.spacing)


def test_a_stated_spacing_is_compared_with_that_of_the_values() -> None:
    law_mismatch(quantisation.mismatch)


def test_noise_of_the_right_width_is_recognised() -> None:
    law_undequantised(quantisation.undequantised)


def test_more_levels_than_16_bits_have_are_no_grid() -> None:
    x = torch.arange(2.0**16 + 2)
    assert quantisation.spacing(x[:-2], 0.0) == 1.0
    assert quantisation.spacing(x, 0.0) is None


def grey(quantum: float | None, **more: Any) -> Data:
    """Values that are 1/8 apart."""
    x = torch.randint(17, (200, 4), generator=stream(0, "grey")) / 8 - 1
    return Data(x[:150], x[150:], quantum=quantum, **more)


def test_data_of_a_plugin_have_the_spacing_that_they_say() -> None:
    assert grey(1 / 8).quantum == 1 / 8
    with pytest.raises(InputError, match=r"quantum = 0.25, but the values are 0.125 apart: they"):
        grey(1 / 4)
    with pytest.raises(InputError, match=r"quantum = 0.0625, but the values are 0.125 apart, 2"):
        grey(1 / 16)


def test_data_that_are_said_to_be_dequantised_have_noise() -> None:
    with pytest.raises(InputError, match="lie on the grid of their quantum, without noise"):
        grey(1 / 8, dequantised=True)
    plain = grey(1 / 8)

    def with_noise(width: float) -> Data:
        noisy = quantisation.dequantise(plain.train, width, stream(1, "noise"))
        return Data(noisy[:100], noisy[100:], quantum=1 / 8, dequantised=True)

    assert with_noise(1 / 8).dequantised
    with pytest.raises(InputError, match="are not uniform"):
        with_noise(1 / 16)


@pytest.mark.slow
def test_the_bound_of_uniform_places_is_massart_s() -> None:
    """Of 2,000 sets of uniform places none is refused: the probability is 2e-6 at most."""
    u = torch.rand(2000, 50, generator=stream(2, "places"))
    assert not any(quantisation.undequantised(row, 1.0, 0.0) for row in u)
    n = 50
    shifted = u[0] * (1 - 2 * math.sqrt(math.log(2e9) / (2 * n)))
    assert quantisation.undequantised(shifted, 1.0, 0.0)
