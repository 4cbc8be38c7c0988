"""A few numbers that a component computes: its fingerprint, here and in another process."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from testbed.components.base import Component
from testbed.components.dataset import Data, Dataset
from testbed.components.density import Density
from testbed.components.guidance import Guidance
from testbed.components.loss import Loss
from testbed.components.metric import Metric
from testbed.components.network import Network
from testbed.components.sampler import Sampler
from testbed.components.schedule import Schedule
from testbed.components.weighting import Weighting
from testbed.data.synthetic import embed, gaussian
from testbed.diffusion.correlated import Noise
from testbed.diffusion.noise_tables import TABLES, NoiseTable
from testbed.diffusion.parameterization import Parameterization
from testbed.random import seeded, stream
from testbed.registry import AXES
from testbed.sampling.guidance_methods import ClassifierGuidance
from testbed.sampling.loop import sample
from testbed.testing.cases import awaken, case, draws, levels
from testbed.testing.failures import Skipped
from testbed.testing.guided_cases import Case
from testbed.testing.network_cases import tables_of


def probe(component: Component) -> list[Tensor]:
    """The component's numbers on fixed inputs; the global generators are seeded and put back."""
    with seeded(0):
        return [value.detach() for value in PROBES[AXES[component.axis]](component)]


def parameterization(p: Parameterization) -> list[Tensor]:
    c = case((9, 3), levels(p.sigma_range), p.sigma_data or 0.5)
    found = [
        p.target(c.x0, c.eps, c.sigma.clone(), sigma_data=c.sigma_data),
        p.denoise(c.eps, c.x, c.sigma.clone(), sigma_data=c.sigma_data),
    ]
    if p.affine:
        found += p.coefficients(c.sigma.clone(), sigma_data=c.sigma_data)
    return found


LOGNORMAL = Density(
    "probe",
    icdf=lambda u: torch.exp(torch.special.ndtri(u)),
    pdf=lambda sigma: torch.exp(-(torch.log(sigma) ** 2) / 2) / (2 * torch.pi) ** 0.5,
).bound({})


def weighting(w: Weighting) -> list[Tensor]:
    sigma, state = levels(w.sigma_range, 65), w.build()
    awaken(state)
    density = LOGNORMAL if "p" in w.signature("function").inputs else None
    found = [w(sigma.clone(), sigma_data=0.5, density=density, state=state)]
    return [*found, torch.as_tensor(w.penalty_at(sigma.clone(), state), dtype=torch.float64)]


def loss(m: Loss) -> list[Tensor]:
    q = 4 * draws((64,), 21)
    state = m.build()
    awaken(state)
    return [m(q + 4 * draws((64,), 22), q, state), m(q + draws((64,), 23) / 8, q, state)]


def density(d: Density) -> list[Tensor]:
    d, u = d.with_sigma_data(0.5), (torch.arange(257, dtype=torch.float64) + 0.5) / 257
    return [d.sigma(u), d.pdf_over_log_sigma(levels(n=257))]


def dataset(built: Dataset) -> list[Tensor]:
    return digest(built())


def digest(data: Data) -> list[Tensor]:
    """The data's sha256, and what the oracle and the basis say, if there are any."""
    found = [
        torch.frombuffer(
            bytearray(hashlib.sha256(data.digest.encode()).digest()), dtype=torch.uint8
        ).float()
    ]
    x = data.test[:4].double()
    if data.oracle is not None:
        found.append(data.oracle.score(x, 1.0))
    return found + ([] if data.basis is None else [data.basis])


def network(build: Network) -> list[Tensor]:
    found: list[Tensor] = []
    for kind, (low, _) in (build.noise or {"": (0.0, 0.0)}).items():
        labels = 3 if build.takes("label") else 0
        shape = build.shapes[0]
        tables = tables_of(build, shape)
        module = build(shape, labels, 0, noise_kind=kind, tables=tables).eval()
        found += [value for value in module.state_dict().values() if value.is_floating_point()]
        awaken(module)
        step = 1 if kind == "index" else 8
        x, noise = draws((5, *shape), 31, torch.float32), low + torch.arange(5.0) / step
        condition = {name: torch.tensor([0, 1, 2, 0, 1]) for name in tables}
        if labels:
            condition["label"] = torch.tensor([0, 1, 2, 0, 1])
        found.append(module(x, noise.round() if step == 1 else noise, condition or None))
    return found


def sampler(s: Sampler) -> list[Tensor]:
    x = 40 * draws((4, 3), 41)
    generator = stream(0, "testing/probe")
    ladders = ([40.0, 10.0, 3.0, 1.0, 0.06, end] for end in (0.03, 0.0))
    return [sample(lambda x, sigma: torch.tanh(x), x, levels, s, generator) for levels in ladders]


def schedule(s: Schedule) -> list[Tensor]:
    table = TABLES["ddpm"].bound({})
    return [s(n, low, high, table) for n in (2, 7) for low, high in ((0.002, 80.0), (0.01, 10.0))]


def table(t: NoiseTable) -> list[Tensor]:
    t = t.bound(t.options)  # the levels that came along are those of the process before
    return [t.sigmas, t.index(levels(n=33)).double()]


def noise(c: Noise) -> list[Tensor]:
    found: list[Tensor] = []
    for shape in ((3,), (2, 3), (2, 3, 4)):
        eps = draws((5, *shape), 51)
        found += c.pair(eps, shape, stream(0, "testing/probe"))
    return found


def guidance(g: Guidance) -> list[Tensor]:
    """The guided denoiser, and of a classifier the settings by which it is trained."""
    method = g.build()
    found = [Case.of(shape, 5).found(method) for shape in ((3,), (2, 3))]
    if isinstance(method, ClassifierGuidance):
        found.append(torch.tensor(astuple(method.settings()), dtype=torch.float64))
    return found


@functools.cache
def normal_data(shape: tuple[int, ...], n: int) -> Data:
    """Two splits of n samples of a shape, of one correlated Gaussian about a plane.

    Their classes are the quadrants of the first and the last dimension.
    """
    dim, oracle = math.prod(shape), gaussian(n=1, test=1).oracle
    assert oracle is not None
    if len(shape) == 1:
        data = gaussian(dim, n=n, test=n)
    else:  # without the oracle of images, which would decompose a matrix of all pixels
        data = embed(lambda k, g: (oracle.sample(k, g), None), dim, 1.0, n, n, 0)
    splits = data.train, data.test
    classes = [2 * (x[:, 0] > 0).long() + (x[:, -1] > 0).long() for x in splits]
    train, test = (x.reshape(n, *shape) for x in splits)
    if data.shape != shape:
        return Data(train, test, classes[0], classes[1])
    return Data(train, test, classes[0], classes[1], data.oracle, data.basis)


def metric(m: Metric) -> list[Tensor]:
    data = normal_data(m.shapes[0], 2048)
    for problem in m.problems(data):
        raise Skipped(problem)
    value = m(1.5 * data.train[:100], data, stream(0, "testing/metric"))
    return [torch.tensor([value], dtype=torch.float64)]


PROBES: dict[type[Component], Callable[[Any], list[Tensor]]] = {
    Parameterization: parameterization,
    Weighting: weighting,
    Loss: loss,
    Density: density,
    Dataset: dataset,
    Network: network,
    Sampler: sampler,
    Schedule: schedule,
    Guidance: guidance,
    NoiseTable: table,
    Noise: noise,
    Metric: metric,
}
