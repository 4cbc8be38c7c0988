"""A training that goes on from its state is the one that was never interrupted."""

import functools
import math
from typing import Any

import pytest
import torch
from helpers.training import Restore, data, network, ran, resumed, same, trainer
from torch import Tensor

from testbed.errors import InputError
from testbed.training.trainer import BLOCK, Trainer

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


def law_resumes(restore: Restore = Trainer.restore) -> None:
    """A run in two parts is the run in one, bit for bit: at a block's edge and within one."""
    make = functools.partial(trainer, "v", points=200)
    rows, state = ran(make(steps=3 * BLOCK))
    for stop in (BLOCK, 2 * BLOCK, 1, BLOCK - 1, BLOCK + 23):
        later, found = resumed(make, stop, 3 * BLOCK, restore)
        assert same(found, state)
        # A row of which a part was before the stop is a mean over the rest.
        assert [row[0] for row in later] == [row[0] for row in rows if row[0] > stop]
        whole = math.ceil(stop / BLOCK)
        assert same(later[len(later) - len(rows) + whole :], rows[whole:])


def forgetting(*names: str) -> Restore:
    def restore(one: Trainer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        fresh = one.state()[0]
        kept = {
            name: torch.zeros_like(tensor) if name in names else tensor
            for name, tensor in tensors.items()
        }
        kept |= {name: fresh[name] for name in fresh if name == "ema" and "ema" in names}
        one.restore(kept, facts)

    return restore


def from_step(step: int) -> Restore:
    return lambda one, tensors, facts: one.restore(tensors, {**facts, "step": step})


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    law_resumes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(forgetting("m"), id="first moments"),
        pytest.param(forgetting("v"), id="second moments"),
        pytest.param(forgetting("counts"), id="Adam's step"),
        pytest.param(forgetting("ema"), id="average"),
        pytest.param(from_step(0), id="draws from the start"),
    ],
)
def test_a_resumption_that_forgets_is_caught(mutant: Restore) -> None:
    with pytest.raises((AssertionError, ZeroDivisionError)):
        law_resumes(mutant)


@pytest.mark.slow
def test_a_state_of_step_zero_is_the_start() -> None:
    one, other = trainer(), trainer(net=network(data(), seed=5))
    other.restore(*one.state())
    assert same(ran(other), ran(trainer()))


@pytest.mark.slow
def test_a_network_with_an_unused_parameter_resumes() -> None:
    # Trained without labels, a network built with them never uses their embedding.
    make = functools.partial(trainer, steps=2 * BLOCK)
    first = trainer(net=network(data(), labels=3), steps=BLOCK)
    list(first)
    second = make(net=network(data(), seed=1, labels=3))
    second.restore(*first.state())
    assert same(ran(second)[1], ran(make(net=network(data(), labels=3)))[1])


@pytest.mark.slow
def test_a_restored_run_leaves_the_state_as_it_was() -> None:
    first = trainer(steps=BLOCK)
    list(first)
    tensors, facts = first.state()
    kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    second = trainer(steps=2 * BLOCK)
    second.restore(tensors, facts)
    list(second)
    assert same(tensors, kept)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"net": lambda: network(data(), width=8)}, id="width"),
        pytest.param({"net": lambda: network(data(), labels=2)}, id="layers"),
    ],
)
def test_a_state_of_another_seed_or_network_is_refused(other: dict[str, Any]) -> None:
    options = {key: value() if callable(value) else value for key, value in other.items()}
    with pytest.raises(InputError, match="another seed or network"):
        trainer(**options).restore(*trainer().state())
