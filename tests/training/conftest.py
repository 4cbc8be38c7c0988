"""What tests of the training engine leave as it was."""

from collections.abc import Iterator

import pytest
import torch

from testbed.training import rates


@pytest.fixture
def the_engine_is_left_as_it_was() -> Iterator[None]:
    """No test draws from torch's global generator, or leaves a mutant in place."""
    before = torch.get_rng_state(), rates.decay
    yield
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] is rates.decay
