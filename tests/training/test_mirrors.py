"""Equal objectives train as exact mirrors of each other."""

from collections.abc import Callable

import pytest
import torch
from helpers.training import data, network, ran, same, trainer
from torch import Tensor

import testbed
from testbed.training.trainer import Trainer, draws

pytestmark = pytest.mark.usefixtures("the_engine_is_left_as_it_was")


def named(one: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in one.denoiser.named_parameters()}


def minus_eps(factor: float = 1.0) -> testbed.Parameterization:
    """The network predicts -eps, or a multiple of it."""

    def scaling(sigma: Tensor) -> testbed.Coefficients:
        one = torch.ones_like(sigma)
        return testbed.Coefficients(one, sigma / factor, 1 / torch.sqrt(sigma**2 + 1), sigma)

    return testbed.Parameterization(
        "minus_eps", scaling, target=lambda x0, eps, sigma: -factor * eps
    )


def law_mirrors(make: Callable[[str], Trainer], one: str, other: str) -> None:
    """Twins train as exact mirrors: F -> -F, and nothing else differs by a bit.

    Their objectives' float32 terms are equal but for the signs of a and b (asserted first: these
    are all that the engine knows of a parameterization). Then rounding is symmetric: the last
    layer's gradient is negated, every other layer's is a product of two negated factors, and Adam
    is odd in a gradient.
    """
    first, second = make(one), make(other)
    sigma = first.objective.density.sigma(draws(0, 0, 16, 400, (2,)).u)
    t, m = first.objective.terms(sigma), second.objective.terms(sigma)
    assert same((t.k, -t.a, -t.b), (m.k, m.a, m.b))
    rows, mirrored = ran(first)[0], ran(second)[0]
    assert same(rows, mirrored)
    left, right = named(first), named(second)
    for name, p in left.items():
        assert p.any()
        assert torch.equal(-p if ".last." in name else p, right[name])


@pytest.mark.slow
def test_eps_and_minus_eps_are_mirrors() -> None:
    kinds = {"eps": "eps", "minus_eps": minus_eps()}
    law_mirrors(lambda name: trainer(kinds[name]), "eps", "minus_eps")


@pytest.mark.slow
def test_v_and_edm_are_mirrors_at_sigma_data_one() -> None:
    law_mirrors(lambda name: trainer(name, sigma_data=1.0), "v", "edm")


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [None, "unit", "min_snr"])
@pytest.mark.parametrize("density", ["cosine", "ddpm"])
def test_v_and_edm_are_mirrors_whatever_they_share(weighting: str | None, density: str) -> None:
    law_mirrors(
        lambda name: trainer(name, sigma_data=1.0, weighting=weighting, density=density),
        "v",
        "edm",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "one", "other"),
    [
        pytest.param(lambda name: trainer(name, sigma_data=0.5), "v", "edm", id="sigma_data"),
        pytest.param(
            lambda name: trainer(name, sigma_data=1.0, c_noise="native"), "v", "edm", id="c_noise"
        ),
        pytest.param(
            lambda name: trainer(name, sigma_data=1.0, seed=len(name)), "v", "edm", id="draws"
        ),
        pytest.param(
            lambda name: trainer(name, sigma_data=1.0, net=network(data(), seed=len(name))),
            "v",
            "edm",
            id="start",
        ),
        pytest.param(lambda name: trainer(name, sigma_data=1.0), "v", "eps", id="no twins"),
        pytest.param(
            lambda name: trainer("eps" if name == "eps" else minus_eps(1 + 2.0**-10)),
            "eps",
            "minus_eps",
            id="another size",
        ),
    ],
)
def test_what_is_no_mirror_is_caught(
    mutant: Callable[[str], Trainer], one: str, other: str
) -> None:
    with pytest.raises(AssertionError):
        law_mirrors(mutant, one, other)
