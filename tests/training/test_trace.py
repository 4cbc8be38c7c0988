"""A step written down as a graph: the same bits, what is constant, and what cannot be."""

import sys

import pytest
import torch
from torch import Tensor

from testbed.training.trace import traced

SCALE = torch.tensor([2.0, 3.0, 5.0])


def step(leaves: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    """Losses of a batch, and the gradients: by vmap, a view, a change in place, two results."""

    def one(x: Tensor, W: Tensor) -> Tensor:
        values, _ = torch.sort(torch.tanh(W @ x))
        return (SCALE * values).square().mean()

    (W,) = leaves
    losses = torch.func.vmap(one, (0, None))(x, W)
    total = torch.tensor(0.0)
    total += losses.sum()
    return losses.detach(), *torch.autograd.grad(total, leaves)


def drawn(seed: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(3, 3, generator=generator).requires_grad_()
    return [W], torch.randn(4, 3, generator=generator)


def test_a_trace_has_the_bits_of_the_step_at_other_numbers_and_again() -> None:
    leaves, x = drawn(0)
    module = traced(step, leaves, x)
    for seed in (0, 1, 1):
        leaves, x = drawn(seed)
        with torch.no_grad():
            found = module(*leaves, x)
        assert all(map(torch.equal, found, step(leaves, x)))


def test_a_trace_is_made_without_dynamo_and_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch._dynamo", "torch._inductor"):
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it now fails
    leaves, x = drawn(0)
    assert len(traced(step, leaves, x)(*leaves, x)) == 2


def test_what_the_result_does_not_need_is_left_out() -> None:
    module = traced(lambda x: (x.sin(), x.cos())[:1], torch.ones(2))
    aten = torch.ops.aten
    counts = [
        len(module.graph.find_nodes(op="call_function", target=one.default))
        for one in (aten.sin, aten.cos)
    ]
    assert counts == [1, 0]


def test_a_number_taken_out_of_a_tensor_is_refused_unless_it_is_constant() -> None:
    def scaled(x: Tensor, by: Tensor) -> tuple[Tensor, ...]:
        return (x * by.item(),)

    with pytest.raises(RuntimeError, match="takes a number out of a tensor that is traced"):
        traced(scaled, torch.ones(2), torch.tensor(3.0))
    constant = torch.tensor(3.0)
    (found,) = traced(lambda x: scaled(x, constant), torch.ones(2))(torch.ones(2))
    assert found.tolist() == [3.0, 3.0]
