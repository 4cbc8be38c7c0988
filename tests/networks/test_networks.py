"""Laws of every registered network, and the mutants that they must reject."""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from laws.networks import (
    Build,
    awake,
    batch,
    law_every_input_matters,
    law_global_generator_untouched,
    law_injective,
    law_labels,
    law_per_sample,
    law_same_start,
    law_seeded,
    law_several_conditions,
    law_shaped_like_x,
    law_zero_at_the_start,
)

import testbed
from testbed.errors import InputError
from testbed.networks.mlp import FourierFeatures, ResidualMLP
from testbed.registry import default_registry

NETWORKS = [
    name
    for name in default_registry().names("network")
    if (2,) in default_registry().network(name).shapes
]
"""Those that take vectors and images alike; the conformance kit has the laws of the others."""
U = 2.0**-24


@pytest.fixture(autouse=True)
def nothing_drawn_from_the_global_generator() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> testbed.Network:
    return default_registry().network(request.param)


# --- the laws -----------------------------------------------------------------------------------


LAWS = [
    law_zero_at_the_start,
    law_shaped_like_x,
    law_per_sample,
    law_every_input_matters,
    law_seeded,
    law_global_generator_untouched,
    law_labels,
    law_several_conditions,
    law_same_start,
]


@pytest.mark.parametrize("law", LAWS)
def test_a_registered_network_obeys(network: testbed.Network, law: Callable[[Build], None]) -> None:
    if network.blind and law is law_every_input_matters:
        pytest.skip("it sees no noise level, as the conformance kit demands of it")
    law(network)


@pytest.mark.slow
def test_a_registered_network_tells_noise_levels_apart(network: testbed.Network) -> None:
    assert set(network.noise) <= {"sigma", "log_sigma", "time", "index"}
    law_injective(network, network.noise)


# --- the residual MLP ---------------------------------------------------------------------------


def test_fourier_features_are_cosines_and_sines() -> None:
    c_noise = torch.tensor([-1.5, 0.0, 0.25, 3.0])
    found = FourierFeatures(4, 0.5, 4.0)(c_noise)
    w = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    phase = c_noise.double()[:, None] * w
    expected = torch.cat([phase.cos(), phase.sin()], 1)
    # logspace, the product and the wave are each off by a few roundings of the phase.
    bound = 8 * U * (1 + torch.cat([phase, phase], 1).abs())
    assert bool(((found - expected).abs() <= bound).all())


def test_frequencies_are_geometric() -> None:
    w = FourierFeatures(16, 1 / 64, 64.0).frequencies.double()
    ratios = [float(b / a) for a, b in pairwise(w)]
    assert float(w[0]) == pytest.approx(1 / 64, rel=8 * U)
    assert float(w[-1]) == pytest.approx(64, rel=8 * U)
    assert ratios == pytest.approx([4096 ** (1 / 15)] * 15, rel=64 * U)


def test_a_label_is_refused_if_built_without_labels() -> None:
    x, c_noise = batch((4,))
    with pytest.raises(
        InputError, match=r"without condition 'label' and got it\. Built with: none"
    ):
        mlp_of((4,), 0)(x, c_noise, {"label": torch.zeros(5).long()})
    with pytest.raises(
        InputError, match=r"without condition 'text' and got it\. Built with: label"
    ):
        mlp_of((4,), 3)(x, c_noise, {"text": torch.zeros(5).long()})


def mlp_of(shape: tuple[int, ...], labels: int, **options: Any) -> ResidualMLP:
    return default_registry().network("mlp", **options)(shape, labels, 0)


def test_width_and_depth_are_the_size_of_the_network() -> None:
    module = mlp_of((4,), 0, width=7, depth=2, features=3)
    assert len(module.blocks) == 2
    assert module.first.weight.shape == (7, 4)
    assert module.noise.weight.shape == (7, 6)


def test_an_image_is_the_vector_of_its_pixels() -> None:
    image = awake(mlp_of((1, 4, 4), 0))
    flat = awake(mlp_of((16,), 0))
    x, c_noise = batch((1, 4, 4))
    assert torch.equal(image(x, c_noise, None).flatten(1), flat(x.flatten(1), c_noise, None))


def test_a_network_survives_copying() -> None:
    module = awake(mlp_of((4,), 0))
    x, c_noise = batch((4,))
    assert torch.equal(copy.deepcopy(module)(x, c_noise, None), module(x, c_noise, None))


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"depth": 0},
        {"features": 0},
        {"width": -3},
        {"frequencies": [1.0]},
        {"frequencies": [0.0, 1.0]},
        {"frequencies": [1.0, 2.0, 3.0]},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be positive"):
        mlp_of((4,), 0, **options)
