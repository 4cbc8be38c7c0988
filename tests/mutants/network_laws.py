"""Mistakes in networks, each rejected by its law."""

from collections.abc import Callable
from typing import Any

import torch
from laws.networks import (
    Build,
    awake,
    law_every_input_matters,
    law_global_generator_untouched,
    law_injective,
    law_labels,
    law_no_wave_wraps,
    law_per_sample,
    law_same_start,
    law_seeded,
    law_several_conditions,
    law_shaped_like_x,
    law_zero_at_the_start,
)
from mutants.registry import given, laws_of, rejected_by
from torch import Tensor, nn

import testbed
from testbed.components.condition import KINDS
from testbed.networks.mlp import ResidualMLP, mlp
from testbed.random import stream
from testbed.registry import Registry


class Changed(nn.Module):
    """An MLP whose forward pass is wrapped."""

    def __init__(self, inner: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.wrapped = inner, forward

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return self.wrapped(self.inner, x, c_noise, condition)


def changed(forward: Callable[..., Tensor]) -> Build:
    """The registered MLP with another forward pass."""
    good = testbed.Network("mlp", mlp, noise={}, condition_kinds=KINDS)
    return lambda *arguments: Changed(good(*arguments), forward)


def unseeded(shape: tuple[int, ...], labels: int, seed: int) -> nn.Module:
    return mlp(shape, {"label": labels} if labels else {})


def always_zero(shape: tuple[int, ...], labels: int, seed: int) -> nn.Module:
    return testbed.Network("mlp", mlp, noise={}, condition_kinds=KINDS)(shape, labels, 0)


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
        module = testbed.Network("mlp", mlp, noise={}, condition_kinds=KINDS)(*arguments)
        module.__class__ = Embedded
        module.look_up = look_up
        return module

    return build


class FirstAlone(ResidualMLP):
    """An MLP that sees the first of its conditions."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        return super().forward(x, c_noise, dict([*(condition or {}).items()][:1]))


def first_condition_alone(*arguments: Any) -> nn.Module:
    module = testbed.Network("mlp", mlp, noise={}, condition_kinds=KINDS)(*arguments)
    module.__class__ = FirstAlone
    return module


def drawn_first(shape: tuple[int, ...], labels: int, seed: int, further: Any = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.randn(labels)
        return mlp(shape, {**({"label": labels} if labels else {}), **(further or {})})


def embeddings_drawn(*arguments: Any) -> nn.Module:
    module = testbed.Network("mlp", mlp, noise={}, condition_kinds=KINDS)(*arguments)
    for p in module.conditions.parameters():
        nn.init.normal_(p, generator=stream(0, "drawn"))
    return module


REGISTERED = testbed.Network("mlp", mlp, noise={}, condition_kinds=KINDS)
NETWORKS = laws_of("laws: networks", "networks", around=lambda: torch.random.fork_rng(devices=[]))
rejected_by(
    NETWORKS,
    law_zero_at_the_start,
    REGISTERED,
    **{
        "last layer drawn": asleep_no_more,
    },
)
rejected_by(
    NETWORKS,
    law_shaped_like_x,
    REGISTERED,
    **{
        "flattened": changed(lambda f, x, c, k: f(x, c, k).flatten(1)),
        "batch": changed(lambda f, x, c, k: f(x, c, k).squeeze(0)),
    },
)
rejected_by(
    NETWORKS,
    law_per_sample,
    REGISTERED,
    **{
        "statistics of the batch": changed(batch_norm),
        "one noise level for the batch": changed(
            lambda f, x, c, k: f(x, c.mean().expand(len(c)), k)
        ),
    },
)
rejected_by(
    NETWORKS,
    law_every_input_matters,
    REGISTERED,
    **{
        "noise level ignored": changed(lambda f, x, c, k: f(x, 0 * c, k)),
        "a column ignored": changed(
            lambda f, x, c, k: f(x * (torch.arange(x.shape[-1]) > 0), c, k)
        ),
    },
)
rejected_by(
    NETWORKS,
    law_seeded,
    REGISTERED,
    **{
        "global generator": unseeded,
        "seed ignored": always_zero,
    },
)
rejected_by(
    NETWORKS,
    law_global_generator_untouched,
    REGISTERED,
    **{
        "draws": unseeded,
        "seeds": reseeding,
    },
)
rejected_by(
    NETWORKS,
    law_labels,
    REGISTERED,
    **{
        "labels ignored": changed(lambda f, x, c, k: f(x, c, None)),
        "class 0 for none": changed(
            lambda f, x, c, k: f(x, c, k or {"label": torch.zeros(len(x)).long()})
        ),
        "class 0 for -1": changed(
            lambda f, x, c, k: f(x, c, k and {n: y.clamp(min=0) for n, y in k.items()})
        ),
    },
)
rejected_by(
    NETWORKS,
    law_several_conditions,
    REGISTERED,
    **{
        "last for -1": with_embedding(lambda e, y: e(y % e.num_embeddings)),
        "off for all": with_embedding(lambda e, y: e(y.clamp(min=0)) * bool((y >= 0).all())),
        "one condition": first_condition_alone,
    },
)
rejected_by(
    NETWORKS,
    law_same_start,
    REGISTERED,
    **{
        "embeddings drawn first": drawn_first,
        "embeddings not zero": embeddings_drawn,
    },
)
for mistake, kind, embed in (
    ("an index table", "sigma", lambda c: c.long().to(c)),
    ("negative logarithms cut", "log_sigma", lambda c: c.clamp(min=0)),
    ("a sign lost", "log_sigma", torch.abs),
    ("eight bits", "sigma", lambda c: (1000 * c).bfloat16().to(c)),
):
    noise = {kind: Registry().network("mlp").noise[kind]}
    law = given(law_injective, noise)
    wrong = changed(lambda f, x, c, k, embed=embed: f(x, embed(c), k))
    rejected_by(NETWORKS, law, REGISTERED, **{mistake: wrong})
MLP = Registry().network("mlp")
rejected_by(
    NETWORKS,
    given(law_no_wave_wraps, MLP.noise),
    MLP.defaults["frequencies"],
    a_slowest_wave_that_wraps=(1.0, 64.0),
)
