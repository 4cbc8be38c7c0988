"""The linear baseline: shrunk where samples are few, and sound where they are many."""

import math

import pytest
import torch
from laws.own_data import law_ledoit_wolf
from torch import Tensor

from testbed.components.dataset import Data
from testbed.metrics import denoising, linear_baseline
from testbed.oracles import Gaussian
from testbed.random import stream


def normal(n: int, d: int, name: str = "baseline") -> Tensor:
    return torch.randn(n, d, generator=stream(0, name))


def of(n: int, d: int) -> Data:
    return Data(normal(n, d), normal(400, d, "held out"))


def test_the_shrunk_covariance_is_scikit_learn_s() -> None:
    law_ledoit_wolf(linear_baseline.ledoit_wolf)


def test_a_single_sample_is_not_shrunk() -> None:
    covariance, rho = linear_baseline.ledoit_wolf(torch.ones(1, 3))
    assert (rho, float(covariance.abs().max())) == (0.0, 0.0)


def test_48_samples_of_192_independent_pixels_do_not_beat_the_linear_denoiser() -> None:
    """The exact denoiser's loss over the baseline's is 1 but for the error of a fit.

    Without shrinkage it is 0.02 here, since the fitted Gaussian is singular. The mean alone is off
    by 1/48 of the variance, and the draws by 2 % at most.
    """
    data = of(48, 192)
    pairs = denoising.held_out_pairs(data, denoising.log_spaced(0.002, 80.0, 8), 400)
    exact = torch.tensor([s**2 / (1 + s**2) for s in pairs.sigma])
    ratio = math.exp(float(torch.log(exact / pairs.wiener).mean()))
    assert 0.93 < ratio < 1.02
    plain = Gaussian.fit(data.train)
    x = pairs.x0 + 0.002 * pairs.eps
    loss = float((plain.denoise(x, 0.002).double() - pairs.x0).square().mean())
    assert loss > 1000 * float(pairs.wiener[0])


@pytest.mark.parametrize(
    ("n", "shrunk", "sound"),
    [
        (10, True, False),
        (15, True, False),
        (16, False, False),
        (39, False, False),
        (40, False, True),
    ],
)
def test_what_is_done_with_few_samples(n: int, shrunk: bool, sound: bool) -> None:
    data = of(n, 8)
    found = linear_baseline.fit(data)
    assert (found.shrinkage is not None, found.sound) == (shrunk, sound)
    assert ("Ledoit and Wolf 2004" in found.estimator) == shrunk
    note = linear_baseline.note(data)
    assert (note == "") == sound
    assert ("shrunk" in note) == shrunk


def test_with_many_samples_it_is_the_sample_covariance() -> None:
    data = of(40, 8)
    found, plain = linear_baseline.fit(data).denoiser, Gaussian.fit(data.train)
    x = data.test[:5]
    assert torch.equal(found.denoise(x, 0.5), plain.denoise(x, 0.5))
