"""In bfloat16 the network is narrow, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.training import FIVE, data, published, ran, same, trainer
from torch import Tensor

from testbed.errors import InputError
from testbed.training import trainer as trainers
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


def narrow(
    losses: Callable[..., Tensor], one: Trainer, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss in bfloat16, that of the network's narrow output, and that in float32."""
    generator = torch.Generator().manual_seed(3)
    x0 = data().train[: len(sigma)]
    eps = torch.randn(x0.shape, generator=generator)
    at = trainers.sigma_functions(one.denoiser, one.objective, sigma)
    net = one.denoiser.network
    x = x0 + at.sigma[:, None] * eps
    with torch.autocast("cpu", torch.bfloat16):
        F = net(at.c_in[:, None] * x, at.c_noise, None)
    assert F.dtype == torch.bfloat16
    right = one.objective(F.float(), x0, eps, at.sigma, at.terms)
    return (
        losses(net, one.objective, x0, eps, at, "bfloat16"),
        right,
        losses(net, one.objective, x0, eps, at),
    )


def law_only_the_network_is_narrow(losses: Callable[..., Tensor]) -> None:
    """Bit for bit; and something is narrow."""
    sigma = torch.logspace(-3, 2, 64, dtype=torch.float64)
    for name in FIVE:
        one = published(name)
        list(one)
        found, right, wide = narrow(losses, one, sigma)
        assert torch.equal(found, right)
        assert not torch.equal(found, wide)
        assert found.dtype == torch.float32


def all_narrow(
    network: Callable[..., Tensor],
    objective: Objective,
    x0: Tensor,
    eps: Tensor,
    at: trainers.SigmaFunctions,
    precision: str = "float32",
) -> Tensor:
    def left_narrow(*inputs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return network(*inputs)

    return trainers.losses(left_narrow, objective, x0, eps, at)


@pytest.mark.slow
def test_in_bfloat16_only_the_network_is_narrow() -> None:
    law_only_the_network_is_narrow(trainers.losses)


def test_a_loss_in_bfloat16_is_caught() -> None:
    with pytest.raises(AssertionError):
        law_only_the_network_is_narrow(all_narrow)


@pytest.mark.slow
def test_in_bfloat16_weights_moments_and_averages_are_float32() -> None:
    one = trainer(precision="bfloat16")
    first = list(one)
    assert {tensor.dtype for tensor in one.weights.state().values()} == {torch.float32}
    assert not same(ran(trainer())[1], one.state())
    assert first[-1].loss < first[0].loss


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"precision 'bfloat'. Did you mean 'bfloat16'\?"):
        Training(precision="bfloat")
