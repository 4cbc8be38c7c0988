"""Wrong samplers, data sets, networks and metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mutants.wrong import wrong
from torch import Tensor, nn

import testbed
from testbed.components.dataset import Data
from testbed.data.synthetic import gaussian, mixture
from testbed.networks.mlp import ResidualMLP
from testbed.oracles import Conditional, Gaussian, Mixture


def euler(
    denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, history: Any
) -> Tensor:
    D = denoise(x, sigma)
    return D + sigma_next / sigma * (x - D)


def sampler(step: Callable[..., Tensor], **more: Any) -> testbed.Sampler:
    return testbed.Sampler("wrong", step, **more)


def at_end(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, history: Any) -> Any:
    D = denoise(x, sigma_next)
    return D + sigma_next / sigma * (x - D)


def backwards(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    return x - (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma


def half(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    return x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma / 2


def vp_half(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    return (
        x + (sigma_next - sigma) * (x - denoise(x, sigma)) / sigma_next
        if sigma_next
        else denoise(x, sigma)
    )


def wrong_sigma(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    D = denoise(x, 1.1 * sigma)
    return D + sigma_next / sigma * (x - D)


def second_moment(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    D = denoise(x, sigma)
    return D + (sigma_next / sigma) ** 2 * (x - D)


def batch_centred(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    D = denoise(x, sigma)
    D = D + 1e-6 * (sigma - sigma_next) * (x - x.mean(0))
    return D + sigma_next / sigma * (x - D)


def noisy(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, h: Any) -> Any:
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return euler(denoise, x, sigma, sigma_next, generator, h) + sigma_next / 10 * z


def global_noise(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, h: Any) -> Any:
    torch.rand(())
    return euler(denoise, x, sigma, sigma_next, generator, h)


def in_place(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, h: Any) -> Any:
    D = denoise(x, sigma)
    return x.sub_(D).mul_(sigma_next / sigma).add_(D)


MEMORY: list[Tensor] = []


def adams(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, history: Any) -> Any:
    """Two-step Adams-Bashforth whose history outlives the run."""
    d = (x - denoise(x, sigma)) / sigma
    last = MEMORY[-1] if MEMORY and MEMORY[-1].shape == x.shape else d
    MEMORY.append(d)
    slope = 1.5 * d - 0.5 * last if sigma_next else d
    return x + (sigma_next - sigma) * slope


def clipped(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    D = denoise(x, sigma).clamp(-1, 1)
    return D + sigma_next / sigma * (x - D)


def widened(denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any) -> Any:
    return euler(denoise, x, sigma, sigma_next, g, h).double()


def on_top(denoise: Any, x: Any, sigma: Any, sigma_next: Any, generator: Any, h: Any) -> Any:
    """A whole step of Euler's, and the noise of an ancestral one."""
    z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    up = sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    return euler(denoise, x, sigma, sigma_next, generator, h) + up * z


def never(
    denoise: Any, x: Any, sigma: Any, sigma_next: Any, g: Any, h: Any, eta: float = 0.0
) -> Any:
    return euler(denoise, x, sigma, sigma_next, g, h)


wrong("the wrong way", sampler(backwards), "order", "data_point")
wrong("half a step, the 1/2 of another form", sampler(half), "order", "data_point")
wrong("sigma of the other end", sampler(vp_half), "data_point")
wrong("D at another level", sampler(wrong_sigma), "order", "levels")
wrong("ratio squared", sampler(second_moment), "order", "data_point")
wrong("D asked for at the end, also at 0", sampler(at_end), "levels")
wrong("batch centred", sampler(batch_centred), "data_point", "per_sample")
wrong(
    "noise in a deterministic one",
    sampler(noisy),
    "order",
    "data_point",
    "per_sample",
    "pure",
    "generator",
)
wrong("no noise in a stochastic one", sampler(euler, deterministic=False), "generator")
wrong("noise on top of a whole step", sampler(on_top, deterministic=False), "marginal")
wrong("an option of the noise that draws none", sampler(never, noise="eta"), "generator", "options")
wrong("torch's global generator", sampler(global_noise), "pure")
wrong("x changed in place", sampler(in_place), "pure")
wrong("a history that outlives the run", sampler(adams), "pure", "per_sample", "generator", "shape")
wrong("clipped D", sampler(clipped), "order", "data_point")
wrong("float64 always", sampler(widened), "shape")


def dead_churn(d: Any, x: Any, s: Any, t: Any, g: Any, history: Any, churn: float = 1.0) -> Any:
    return euler(d, x, s, t, g, history)


wrong("an option that does nothing", sampler(dead_churn), "options")


def dataset(build: Callable[..., Data]) -> testbed.Dataset:
    return testbed.Dataset("wrong", build)


def remade(change: Callable[[Data], dict[str, Any]]) -> testbed.Dataset:
    """The Gaussian data with parts replaced."""

    def build() -> Data:
        data = gaussian(dim=3, n=6000, test=2000)
        given = {"train": data.train, "test": data.test, "oracle": data.oracle}
        return Data(**{**given, **change(data)})

    return dataset(build)


def global_draw() -> Data:
    return Data(torch.randn(64, 2), torch.randn(32, 2))


def seeding() -> Data:
    torch.manual_seed(0)
    return Data(torch.randn(64, 2), torch.randn(32, 2))


def dead_dim(dim: int = 2) -> Data:
    return gaussian(n=100, test=100)


class Unscaled(Gaussian):
    """A score that lacks its factor at large sigma."""

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return 1.01 * super().score(x, sigma)


def other(
    data: Data, mean: float = 0.0, k: float = 1.0, kind: type[Gaussian] = Gaussian
) -> dict[str, Any]:
    o = data.oracle
    assert isinstance(o, Gaussian)
    return {"oracle": kind(o.m + mean, k * (o.Q * o.L) @ o.Q.T)}


def classed(**components: list[int]) -> testbed.Dataset:
    """The mixture, with other words on what classes its components have."""

    def build() -> Data:
        data = mixture(n=6000, test=2000)
        assert isinstance(data.oracle, Mixture)
        given = {name: torch.tensor(classes) for name, classes in components.items()}
        exact = Conditional(data.oracle, given)
        return Data(
            data.train, data.test, data.train_labels, data.test_labels, data.oracle,
            conditional=exact,
        )  # fmt: skip

    return dataset(build)


wrong("drawn from the global generator", dataset(global_draw), "reproducible")
wrong("exact distributions of other classes", classed(label=[1, 0, 2, 3]), "conditional")
wrong("two components of one class", classed(label=[0, 1, 2, 2]), "conditional")
wrong(
    "a condition that the data have not",
    classed(label=[0, 1, 2, 3], kind=[0, 0, 1, 1]),
    "conditional",
)
wrong("seeds the global generator", dataset(seeding), "reproducible")
wrong(
    "test samples from the training split", remade(lambda d: {"test": d.train[:2000]}), "disjoint"
)
wrong(
    "a few test samples from the training split",
    remade(lambda d: {"test": torch.cat([d.test, d.train[:20]])}),
    "disjoint",
)
wrong("oracle off-centre", remade(lambda d: other(d, mean=0.1)), "oracle", "moments")
wrong("oracle of twice the variance", remade(lambda d: other(d, k=2.0)), "oracle", "moments")
wrong("oracle's score one percent too large", remade(lambda d: other(d, kind=Unscaled)), "score")
wrong("float64 samples", remade(lambda d: {"train": d.train.double()}), "numbers")
wrong("an option that does nothing", dataset(dead_dim), "options")
wrong(
    "a class in the test split only",
    remade(
        lambda d: {
            "train_labels": torch.zeros(6000, dtype=torch.int64),
            "test_labels": torch.ones(2000, dtype=torch.int64),
        }
    ),
    "labels",
)

NOISE = {"log_sigma": (-2.4, 2.4)}


class Small(ResidualMLP):
    """The residual MLP, to be spoilt."""

    def __init__(self, shape: tuple[int, ...], labels: int) -> None:
        super().__init__(shape, {"label": labels} if labels else {}, 16, 1, 4, (1 / 64, 64.0))


def network(kind: type[nn.Module], **more: Any) -> testbed.Network:
    def build(shape: tuple[int, ...], labels: int) -> nn.Module:
        return kind(shape, labels)

    return testbed.Network("wrong", build, **{"noise": NOISE, **more})


class BatchNorm(Small):
    def __init__(self, shape: tuple[int, ...], labels: int) -> None:
        super().__init__(shape, labels)
        self.norm = nn.BatchNorm1d(16)  # type: ignore[assignment]


class Centred(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x - x.mean(0), c_noise, condition)


class Deaf(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, torch.zeros_like(c_noise), condition)


class Dead(Small):
    def __init__(self, shape: tuple[int, ...], labels: int) -> None:
        super().__init__(shape, labels)
        self.extra = nn.Linear(3, 3)


class Unconditional(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, c_noise, None)


class OffByOne(Small):
    """Class 0 stands for none."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        given = condition and {name: label.clamp(min=0) for name, label in condition.items()}
        return super().forward(x, c_noise, given)


class Frozen(Small):
    def __init__(self, shape: tuple[int, ...], labels: int) -> None:
        torch.manual_seed(0)
        super().__init__(shape, labels)


class Branching(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x if float(x.abs().max()) < 1e9 else 0 * x, c_noise, condition)


class Judging(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        small = float(self.last.weight.detach().abs().max()) < 1e9
        return super().forward(x if small else 0 * x, c_noise, condition)


class Dropping(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        x = nn.functional.dropout(x, 0.1, self.training)
        return super().forward(x, c_noise, condition)


class Logarithm(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, torch.log(c_noise), condition)


class Flat(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, c_noise, condition).flatten(1)


class Scaling(Small):
    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        x /= 2
        return super().forward(x, c_noise, condition)


wrong("batch norm", network(BatchNorm), "shape", "per_sample")
wrong("centred on the batch", network(Centred), "per_sample")
wrong("does not look at the noise", network(Deaf), "sees_noise")
wrong("a layer that is never used", network(Dead), "learns")
wrong("does not look at the class", network(Unconditional), "learns", "conditions")
wrong("class 0 where a condition is switched off", network(OffByOne), "conditions")
wrong("one seed for all", network(Frozen), "seeded")
wrong("control flow on the values of x", network(Branching), "compile")
wrong("control flow on the weights", network(Judging), "compile", "vmap")
wrong("dropout from the global generator", network(Dropping), "pure", "per_sample")


def dead_depth(shape: tuple[int, ...], labels: int, depth: int = 1) -> nn.Module:
    return Small(shape, labels)


wrong("an option that does nothing", testbed.Network("wrong", dead_depth, NOISE), "options")


def of_kind(shape: tuple[int, ...], labels: int, noise_kind: str) -> nn.Module:
    """Weights that differ with the kind of c_noise."""
    if noise_kind == "time":
        torch.rand(1)
    return Small(shape, labels)


both = {**NOISE, "time": (0.0, 1.0)}
wrong("weights by the kind of c_noise", testbed.Network("wrong", of_kind, both), "one_start")
wrong(
    "not finite at the end of its range",
    network(Logarithm, noise={"time": (0.0, 1.0)}),
    "finite",
    "learns",
)
wrong("flattens images", network(Flat), "shape")
wrong("x changed in place", network(Scaling), "pure")
wrong(
    "cannot tell the ends of its range apart",
    network(Small, noise={"log_sigma": (-1e-9, 1e-9)}),
    "sees_noise",
)


def distance(x: Tensor, y: Tensor) -> float:
    return float((x.double().mean(0) - y.double().mean(0)).square().sum())


def metric(measure: Callable[..., float], **more: Any) -> testbed.Metric:
    return testbed.Metric("wrong", measure, **more)


def spoil(x: Tensor, data: Data, g: Any) -> float:
    x += 1
    return distance(x - 1, data.test)


wrong("a similarity", metric(lambda x, data, g: -distance(x, data.test)), "sees_shift")
wrong(
    "bounded, and does not say so",
    metric(lambda x, data, g: distance(x, data.test) / (distance(x, data.test) + 1e-20)),
    "sees_shift",
)
wrong(
    "at its most, whatever the samples",
    metric(lambda x, data, g: 1.0 + 0 * float(x.sum()), most=1.0),
    "sees_shift",
)
wrong(
    "a variance with a sign for its error",
    metric(lambda x, data, g: testbed.MetricValue(distance(x, data.test), -1.0)),
    "error",
)
wrong(
    "percent for a p",
    metric(lambda x, data, g: testbed.MetricValue(distance(x, data.test), p=50.0)),
    "error",
)
wrong("constant", metric(lambda x, data, g: 1.0 + 0 * float(x.sum())), "sees_shift")
wrong(
    "the first sample only",
    metric(lambda x, data, g: distance(x[:1], data.test)),
    "permutation",
    "diverged",
)
wrong(
    "the order counts",
    metric(lambda x, data, g: distance(x * torch.linspace(0.9, 1.1, len(x))[:, None], data.test)),
    "permutation",
)
wrong(
    "torch's global generator",
    metric(lambda x, data, g: distance(x, data.test[torch.randperm(len(data.test))[:50]])),
    "reproducible",
    "permutation",
)
wrong("samples changed in place", metric(spoil), "reproducible")
wrong(
    "samples that diverged are left out",
    metric(lambda x, data, g: distance(x[x.isfinite().all(1)], data.test)),
    "diverged",
)
wrong(
    "undefined on real data",
    metric(lambda x, data, g: math.log(max(0.0, distance(x, data.test) - 1) or math.nan)),
    "floor",
    "sees_shift",
)
wrong(
    "another split", metric(lambda x, data, g: distance(x, data.test), against="valid"), "metadata"
)
wrong(
    "an option that does nothing",
    metric(lambda x, data, g, n=100: distance(x, data.test)),
    "options",
)
