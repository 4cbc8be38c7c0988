"""The limits of a training's settings."""

import math
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.training.settings import Training


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -5),
        ("steps", 10**10),
        ("batch", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("betas", (1.0, 0.99)),
        ("betas", (0.9, -0.1)),
        ("betas", (0.9, math.nan)),
        ("betas", (0.9,)),
        ("betas", (0.9, 0.99, 0.999)),
        ("ema", 1.0),
        ("ema", -0.1),
        ("ema", math.nan),
        ("clip", -1.0),
        ("clip", math.nan),
        ("points", 0),
    ],
)
def test_training_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} = .* is out of range"):
        Training(**{name: value})
