"""Laws of every registered network, and the mutants that they must reject."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testbed
from testbed.errors import InputError
from testbed.networks.mlp import FourierFeatures, ResidualMLP, mlp
from testbed.random import stream
from testbed.registry import Registry

NETWORKS = Registry().names("network")
SHAPES = [(2,), (16,), (1, 8, 8), (3, 4, 5)]
U = 2.0**-24

Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def nothing_drawn_from_the_global_generator() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> testbed.Network:
    return Registry().network(request.param)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with every weight drawn anew: none is zero any more."""
    generator = stream(seed, "awake")
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1]))
    return module.eval()


def batch(shape: tuple[int, ...], n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x (n, *shape) and c_noise (n,) within every declared range."""
    generator = stream(seed, "inputs")
    return torch.randn(n, *shape, generator=generator), torch.rand(n, generator=generator)


# --- the laws -----------------------------------------------------------------------------------


def law_zero_at_the_start(build: Build) -> None:
    """F = 0 at every input: then D = c_skip x, and twins start as mirrors."""
    for shape in SHAPES:
        x, c_noise = batch(shape)
        assert not build(shape, 0, 0)(100 * x, c_noise, None).any()


def law_shaped_like_x(build: Build) -> None:
    """(B, *shape) in, (B, *shape) out, for one sample too."""
    for shape in SHAPES:
        for n in (1, 5):
            x, c_noise = batch(shape, n)
            assert build(shape, 0, 0)(x, c_noise, None).shape == x.shape


def law_per_sample(build: Build) -> None:
    """Row i of the output depends on row i of the input alone, also in training mode."""
    for shape in SHAPES:
        module = awake(build(shape, 3, 0))
        for mode in (module.eval(), module.train()):
            (x, c_noise), label = batch(shape), torch.tensor([0, 1, 2, 0, 1])
            one = mode(x, c_noise, {"label": label})
            for i in range(len(x)):
                keep = torch.arange(len(x)) == i
                other = torch.where(keep.view(-1, *[1] * len(shape)), x, 2 * x.flip(0) + 1)
                noise = torch.where(keep, c_noise, 1 - c_noise)
                two = mode(other, noise, {"label": torch.where(keep, label, 2 - label)})
                assert torch.equal(one[i], two[i])
                assert not torch.equal(one, two)


def law_every_input_matters(build: Build) -> None:
    """Every coordinate of x reaches every coordinate of F, and so does c_noise."""
    for shape in SHAPES:
        module = awake(build(shape, 0, 0))
        x, c_noise = batch(shape, 1)
        jacobian, by_noise = torch.autograd.functional.jacobian(
            lambda *inputs, f=module: f(*inputs, None).flatten(), (x, c_noise)
        )
        assert bool((jacobian != 0).all())
        assert bool((by_noise != 0).all())


def law_seeded(build: Build) -> None:
    """Equal seeds give equal weights, different seeds different ones."""
    one, two, other = (build((4,), 3, seed).state_dict() for seed in (1, 1, 2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def law_global_generator_untouched(build: Build) -> None:
    """Building draws nothing from the global stream and does not seed it."""
    before = torch.get_rng_state()
    build((4,), 3, 1)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    assert torch.equal(before, after)


def law_labels(build: Build) -> None:
    """A label changes the output; no condition and an empty one are the same."""
    module = awake(build((4,), 3, 0))
    x, c_noise = batch((4,), 1)
    plain = module(x, c_noise, None)
    given = [module(x, c_noise, {"label": torch.tensor([label])}) for label in range(3)]
    assert torch.equal(module(x, c_noise, {}), plain)
    assert torch.equal(module(x, c_noise, {"label": torch.tensor([-1])}), plain)
    assert all(not torch.equal(a, b) for i, a in enumerate(given) for b in [plain, *given[:i]])


def law_several_conditions(build: Build) -> None:
    """Each is switched off for a sample by -1; with all off, F is the unconditional network's."""
    module, plain = (awake(build((4,), *of)) for of in ((3, 0, {"group": 2}), (0, 0)))
    plain.load_state_dict(
        {key: module.state_dict()[key] for key in plain.state_dict()}, strict=True
    )
    (x, c_noise), off = batch((4,), 6), torch.full((6,), -1)
    label, group = torch.tensor([0, 1, 2, -1, -1, 2]), torch.tensor([0, 1, -1, 0, -1, 1])
    both = module(x, c_noise, {"label": label, "group": group})
    wanted = {
        2: module(x, c_noise, {"label": label}),
        3: module(x, c_noise, {"group": group}),
        4: plain(x, c_noise, None),
    }
    for row, F in wanted.items():
        assert torch.equal(both[row], F[row])
    for row in (0, 1, 5):
        assert not torch.equal(both[row], module(x, c_noise, {"label": label})[row])
        assert not torch.equal(both[row], module(x, c_noise, {"group": group})[row])
    nothing = module(x, c_noise, {"label": off, "group": off})
    assert torch.equal(nothing, plain(x, c_noise, None))


def law_same_start(build: Build) -> None:
    """Conditions change no other initial weight, and every class starts as none does."""
    plain, module = build((4,), 0, 0), build((4,), 3, 0, {"group": 2})
    weights = module.state_dict()
    assert all(torch.equal(p, weights[key]) for key, p in plain.state_dict().items())
    with torch.no_grad():
        for one in (plain, module):
            one.get_parameter("last.weight").fill_(1.0)
    (x, c_noise), condition = batch((4,)), {"label": torch.tensor([0, 1, 2, 0, 1])}
    assert torch.equal(module(x, c_noise, condition), plain(x, c_noise, None))


def law_injective(build: Build, noise: Mapping[str, tuple[float, float]]) -> None:
    """No two of 400 noise levels of a declared range give the same output: even and geometric."""
    module = awake(build((2,), 0, 0))
    x = torch.ones(1, 2)
    for low, high in noise.values():
        even = torch.linspace(low, high, 400)
        near_zero = torch.logspace(-3, math.log10(high), 400)
        for grid in (even, near_zero):
            with torch.no_grad():
                outputs = {tuple(module(x, c[None], None)[0].tolist()) for c in grid}
            assert len(outputs) == len(grid)


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
    law(network)


def test_a_registered_network_tells_noise_levels_apart(network: testbed.Network) -> None:
    assert set(network.noise) <= {"sigma", "log_sigma", "time", "index"}
    law_injective(network, network.noise)


# --- mutants ------------------------------------------------------------------------------------


class Changed(nn.Module):
    """An MLP whose forward pass is wrapped."""

    def __init__(self, inner: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.wrapped = inner, forward

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return self.wrapped(self.inner, x, c_noise, condition)


def changed(forward: Callable[..., Tensor]) -> Build:
    """The registered MLP with another forward pass."""
    good = testbed.Network("mlp", mlp, noise={})
    return lambda *arguments: Changed(good(*arguments), forward)


def unseeded(shape: tuple[int, ...], labels: int, seed: int) -> nn.Module:
    return mlp(shape, {"label": labels} if labels else {})


def always_zero(shape: tuple[int, ...], labels: int, seed: int) -> nn.Module:
    return testbed.Network("mlp", mlp, noise={})(shape, labels, 0)


def reseeding(shape: tuple[int, ...], labels: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(shape, {"label": labels} if labels else {})


def asleep_no_more(shape: tuple[int, ...], labels: int, seed: int) -> nn.Module:
    return awake(always_zero(shape, labels, seed))


def batch_norm(f: nn.Module, x: Tensor, c: Tensor, condition: Any) -> Tensor:
    return f(x / (1 + x.std()), c, condition)


class Embedded(ResidualMLP):
    """An MLP whose embeddings of classes are looked up another way."""

    look_up: Callable[[nn.Embedding, Tensor], Tensor]

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        rows = [self.look_up(self.conditions[n], y) for n, y in (condition or {}).items()]
        return self.last(self.features(x, c_noise, sum(rows) if rows else None)).view_as(x)


def with_embedding(look_up: Callable[[Any, Tensor], Tensor]) -> Build:
    """The registered MLP with another look-up of classes."""

    def build(*arguments: Any) -> nn.Module:
        module = testbed.Network("mlp", mlp, noise={})(*arguments)
        module.__class__ = Embedded
        module.look_up = look_up
        return module

    return build


class FirstAlone(ResidualMLP):
    """An MLP that sees the first of its conditions."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, c_noise, dict([*(condition or {}).items()][:1]))


def first_condition_alone(*arguments: Any) -> nn.Module:
    module = testbed.Network("mlp", mlp, noise={})(*arguments)
    module.__class__ = FirstAlone
    return module


def drawn_first(shape: tuple[int, ...], labels: int, seed: int, further: Any = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.randn(labels)
        return mlp(shape, {**({"label": labels} if labels else {}), **(further or {})})


def embeddings_drawn(*arguments: Any) -> nn.Module:
    module = testbed.Network("mlp", mlp, noise={})(*arguments)
    for p in module.conditions.parameters():
        nn.init.normal_(p, generator=stream(0, "drawn"))
    return module


MUTANTS = [
    pytest.param(law_zero_at_the_start, asleep_no_more, id="last layer drawn"),
    pytest.param(
        law_shaped_like_x, changed(lambda f, x, c, k: f(x, c, k).flatten(1)), id="flattened"
    ),
    pytest.param(law_shaped_like_x, changed(lambda f, x, c, k: f(x, c, k).squeeze(0)), id="batch"),
    pytest.param(law_per_sample, changed(batch_norm), id="statistics of the batch"),
    pytest.param(
        law_per_sample,
        changed(lambda f, x, c, k: f(x, c.mean().expand(len(c)), k)),
        id="one noise level for the batch",
    ),
    pytest.param(
        law_every_input_matters,
        changed(lambda f, x, c, k: f(x, 0 * c, k)),
        id="noise level ignored",
    ),
    pytest.param(
        law_every_input_matters,
        changed(lambda f, x, c, k: f(x * (torch.arange(x.shape[-1]) > 0), c, k)),
        id="a column ignored",
    ),
    pytest.param(law_seeded, unseeded, id="global generator"),
    pytest.param(law_seeded, always_zero, id="seed ignored"),
    pytest.param(law_global_generator_untouched, unseeded, id="draws"),
    pytest.param(law_global_generator_untouched, reseeding, id="seeds"),
    pytest.param(law_labels, changed(lambda f, x, c, k: f(x, c, None)), id="labels ignored"),
    pytest.param(
        law_labels,
        changed(lambda f, x, c, k: f(x, c, k or {"label": torch.zeros(len(x)).long()})),
        id="class 0 for none",
    ),
    pytest.param(
        law_labels,
        changed(lambda f, x, c, k: f(x, c, k and {n: y.clamp(min=0) for n, y in k.items()})),
        id="class 0 for -1",
    ),
    pytest.param(
        law_several_conditions,
        with_embedding(lambda e, y: e(y % e.num_embeddings)),
        id="last for -1",
    ),
    pytest.param(
        law_several_conditions,
        with_embedding(lambda e, y: e(y.clamp(min=0)) * bool((y >= 0).all())),
        id="off for all",
    ),
    pytest.param(law_several_conditions, first_condition_alone, id="one condition"),
    pytest.param(law_same_start, drawn_first, id="embeddings drawn first"),
    pytest.param(law_same_start, embeddings_drawn, id="embeddings not zero"),
]


@pytest.mark.parametrize(("law", "mutant"), MUTANTS)
def test_network_mutants_are_caught(law: Callable[[Build], None], mutant: Build) -> None:
    law(testbed.Network("mlp", mlp, noise={}))
    with torch.random.fork_rng(devices=[]), pytest.raises(AssertionError):
        law(mutant)


@pytest.mark.parametrize(
    ("kind", "embed"),
    [
        pytest.param("sigma", lambda c: c.long().to(c), id="an index table"),
        pytest.param("log_sigma", lambda c: c.clamp(min=0), id="negative logarithms cut"),
        pytest.param("log_sigma", torch.abs, id="a sign lost"),
        pytest.param("sigma", lambda c: (1000 * c).bfloat16().to(c), id="eight bits"),
    ],
)
def test_embeddings_that_confuse_noise_levels_are_caught(
    kind: str, embed: Callable[[Tensor], Tensor]
) -> None:
    noise = {kind: Registry().network("mlp").noise[kind]}
    with pytest.raises(AssertionError):
        law_injective(changed(lambda f, x, c, k: f(x, embed(c), k)), noise)


# --- the residual MLP ---------------------------------------------------------------------------


def law_no_wave_wraps(
    frequencies: tuple[float, ...], noise: Mapping[str, tuple[float, float]]
) -> None:
    """The slowest wave turns less than once over each range, so it alone tells all apart."""
    for low, high in noise.values():
        assert min(frequencies) * (high - low) < 2 * math.pi


def test_the_slowest_wave_turns_less_than_once() -> None:
    network = Registry().network("mlp")
    law_no_wave_wraps(network.defaults["frequencies"], network.noise)


def test_a_slowest_wave_that_wraps_is_caught() -> None:
    with pytest.raises(AssertionError):
        law_no_wave_wraps((1.0, 64.0), Registry().network("mlp").noise)


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
    return Registry().network("mlp", **options)(shape, labels, 0)


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
