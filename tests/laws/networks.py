"""Laws of networks."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from testbed.networks.mlp import INDEX_UNIT
from testbed.random import stream

SHAPES = [(2,), (16,), (1, 8, 8), (3, 4, 5)]
Build = Callable[..., nn.Module]


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


def law_no_wave_wraps(
    frequencies: tuple[float, ...], noise: Mapping[str, tuple[float, float]]
) -> None:
    """The slowest wave turns less than once over each range, so it alone tells all apart.

    An index beside other kinds is counted in units of INDEX_UNIT levels.
    """
    for kind, (low, high) in noise.items():
        unit = INDEX_UNIT if kind == "index" and len(noise) > 1 else 1.0
        assert min(frequencies) * (high - low) / unit < 2 * math.pi
