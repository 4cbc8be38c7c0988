"""The laws of weightings lambda(sigma), the factor of |D - x0|^2."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from testbed.audit.rows import gamma
from testbed.components.density import Density
from testbed.components.weighting import Weighting
from testbed.testing import behaviour
from testbed.testing.cases import SIGMA_DATAS, awaken, levels
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import options_matter
from testbed.testing.probes import LOGNORMAL
from testbed.testing.rounding import K, Worst, carried

LAWS = Group("weighting")


def _density(w: Weighting) -> Density | None:
    """Some density, where the weighting asks for one."""
    return LOGNORMAL if "p" in w.signature("function").inputs else None


def _levels(w: Weighting, n: int = 65) -> Tensor:
    """Over the weighting's range, and the density's where it asks for one."""
    low, high = w.sigma_range
    return levels((max(low, 0.002), min(high, 80.0)) if _density(w) else (low, high), n)


def _value(w: Weighting, sigma: Tensor, sd: float, state: nn.Module | None = None) -> Tensor:
    return w(sigma.clone(), sigma_data=sd, density=_density(w), state=state)


def _states(w: Weighting) -> Iterator[nn.Module | None]:
    """The state at the start, and two that have moved, one of them far and the other way."""
    yield w.build()
    for k in (1.0, -4.0) if w.state is not None else ():
        moved = w.build()
        assert moved is not None
        awaken(moved)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.mul_(k)
        yield moved


def _positive(w: Weighting, weight: Tensor, sigma: Tensor, where: str) -> None:
    """CheckFailed unless finite, nowhere negative and somewhere positive."""
    for held, what in ((torch.isfinite(weight), "not finite"), (weight >= 0, "negative")):
        if not bool(held.all()):
            at = int((~held).nonzero()[0])
            raise CheckFailed(
                f"lambda = {float(weight[at]):.4g} is {what} at sigma = {float(sigma[at]):.4g}"
                f"{where}."
            )
    demand(bool((weight > 0).any()), f"lambda is 0 at every sigma{where}: nothing is trained.")


@LAWS.law(
    "0 <= lambda(sigma) < infinity over sigma_range within [1e-4, 1e4], and not 0 everywhere."
)
def positive(w: Weighting, context: Context) -> str:
    sigma = _levels(w)
    with torch.no_grad():
        for state in _states(w):
            for sd in SIGMA_DATAS:
                weight = _value(w, sigma, sd, state)
                _positive(w, weight, sigma, f", sigma_data = {sd:g}")
    return f"from {float(weight.min()):.3g} to {float(weight.max()):.3g}"


@LAWS.law("With p it is finite, not negative and somewhere positive for every registered density.")
def densities(w: Weighting, context: Context) -> str:
    if _density(w) is None:
        raise Skipped("does not ask for p, the density over log sigma")
    names = context.registry.names("density")
    for name in names:
        density = context.registry.density(name).with_sigma_data(0.5)
        low, high = density.options["sigma_min"], density.options["sigma_max"]
        sigma = levels((max(low, w.sigma_range[0]), min(high, w.sigma_range[1])), 257)
        with torch.no_grad():
            weight = w(sigma.clone(), sigma_data=0.5, density=density, state=w.build())
        _positive(w, weight, sigma, f", density {name!r}")
    return ", ".join(names)


@LAWS.law("lambda has the shape of sigma, a scalar's too, and its dtype (float32 or wider).")
def shape(w: Weighting, context: Context) -> None:
    for state in _states(w):
        for dtype in (torch.float64, torch.float32):
            for sigma in (_levels(w, 5).to(dtype), _levels(w, 5).to(dtype)[2], _levels(w, 5)[:0]):
                found = _value(w, sigma, 0.5, state)
                demand(
                    found.shape == sigma.shape and found.dtype in (torch.float32, torch.float64),
                    f"lambda is {tuple(found.shape)} {found.dtype} for sigma {tuple(sigma.shape)} "
                    f"{sigma.dtype}.",
                )


@LAWS.law("Elementwise: lambda at a level depends on that level alone.")
def per_sample(w: Weighting, context: Context) -> str:
    worst, sigma = Worst(same=True), _levels(w, 17)
    order = torch.arange(17) * 5 % 17
    with torch.no_grad():
        for state in _states(w):
            whole = _value(w, sigma, 0.5, state)
            alone = torch.cat([_value(w, level[None], 0.5, state) for level in sigma])
            mixed = _value(w, sigma[order], 0.5, state)
            size = carried(lambda s, at=state: _value(w, s, 0.5, at).double(), (sigma,), (sigma,))
            # A state computes in float32, whose sums depend on the batch's size.
            dtype = torch.float64 if state is None else torch.float32
            bound = 2 * gamma(K, dtype) * (size + whole.abs())
            worst.compare("lambda of one level", whole, alone, bound, sigma)
            worst.compare(
                "lambda in another order", mixed, whole[order], bound[order], sigma[order]
            )
    return str(worst)


@LAWS.law("lambda is on the device of sigma.")
def device(w: Weighting, context: Context) -> str:
    if w.state is not None:
        raise Skipped("its state is moved by the engine")
    if _density(w) is not None:
        raise Skipped("its density is on the device that training says")
    return behaviour.on_device(lambda s: _value(w, s, 0.5), (_levels(w),))


@LAWS.law("Pure: sigma and global state stay as they were, the same call gives the same bits.")
def pure(w: Weighting, context: Context) -> None:
    for state in _states(w):
        behaviour.pure(
            lambda s, at=state: w(s, sigma_data=0.5, density=_density(w), state=at), (_levels(w),)
        )


@LAWS.law("Every option has an effect, and binding its default has none.", own=True)
def options(w: Weighting, context: Context) -> str:
    return options_matter(w)


@LAWS.law("A step of gradient descent moves every parameter of a learned weighting's state.")
def learns(w: Weighting, context: Context) -> str:
    if w.state is None:
        raise Skipped("learns nothing: it has no state")
    state = w.build()
    assert state is not None
    demand(
        any(True for _ in state.parameters()),
        "its state has no parameters: make it an option or a constant.",
    )
    sigma = _levels(w, 17).float()
    return behaviour.reached(state, lambda: _value_of_loss(w, sigma, state))


def _value_of_loss(w: Weighting, sigma: Tensor, state: nn.Module) -> Tensor:
    """lambda(sigma) sigma^2 + penalty, the mean: a residual of the size of the noise."""
    weight = w(sigma, sigma_data=0.5, density=_density(w), state=state)
    error = 1 / (1 + 1 / sigma**2)
    return (weight * error + w.penalty_at(sigma, state)).mean()


@LAWS.law("The penalty of a learned weighting is finite and per sample, (B,).")
def penalty(w: Weighting, context: Context) -> str:
    if w.state is None:
        raise Skipped("learns nothing: it has no state")
    demand(
        w.penalty is not None,
        "no penalty: nothing keeps a learned lambda from vanishing, and the loss with it.",
    )
    sigma = _levels(w, 17)
    for state in _states(w):
        found = torch.as_tensor(w.penalty_at(sigma.clone(), state))
        demand(
            found.shape == sigma.shape and bool(torch.isfinite(found).all()),
            f"penalty is {tuple(found.shape)}, expected finite {tuple(sigma.shape)}.",
        )
    return ""


@LAWS.law("A worker process that loads the same plugins computes the same numbers.")
def spawned(w: Weighting, context: Context) -> str:
    return behaviour.equal_elsewhere(w, context)
