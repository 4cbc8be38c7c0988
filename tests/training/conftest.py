"""What all tests of training leave as it was."""

from collections.abc import Iterator

import pytest
import torch

from testbed.training import rates


@pytest.fixture(autouse=True)
def the_engine_is_left_as_it_was() -> Iterator[None]:
    before = torch.get_rng_state(), rates.decay
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] is rates.decay
