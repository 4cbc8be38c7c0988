"""How a well-behaved function behaves, whatever it computes: it changes nothing, and it repeats."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from testbed.errors import ComponentError
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.probes import probe

if TYPE_CHECKING:
    from testbed.testing.checks import Context


@contextmanager
def harmless(*arguments: Tensor) -> Iterator[None]:
    """CheckFailed if the block changes an argument, a global generator or torch's global settings.

    The generators are put back in any case.
    """
    kept = [value.clone() for value in arguments]
    ours, theirs, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    settings = _settings()
    try:
        yield
        for i, (value, before) in enumerate(zip(arguments, kept, strict=True)):
            if not same(value, before):
                raise CheckFailed(f"changed argument {i + 1} in place, shape {tuple(value.shape)}.")
        if not torch.equal(torch.get_rng_state(), ours):
            raise CheckFailed("drew from, or seeded, torch's global generator.")
        if pickle_of(np.random.get_state()) != pickle_of(theirs):
            raise CheckFailed("drew from, or seeded, numpy's global generator.")
        if random.getstate() != pythons:
            raise CheckFailed("drew from, or seeded, Python's global generator.")
        for name, value in _settings().items():
            if value != settings[name]:
                raise CheckFailed(f"left {name} at {value}, which was {settings[name]}.")
    finally:
        torch.set_rng_state(ours)
        np.random.set_state(theirs)
        random.setstate(pythons)
        torch.set_default_dtype(settings["the default dtype"])
        torch.set_grad_enabled(settings["gradient mode"])
        torch.set_num_threads(settings["the number of threads"])


def _settings() -> dict[str, Any]:
    return {
        "the default dtype": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
    }


def pickle_of(state: Any) -> bytes:
    """The bytes of a generator's state."""
    import pickle

    return pickle.dumps(state)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit: shape, dtype and values, NaN equal to NaN."""
    return (
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan())
    ) and torch.equal(a.nan_to_num(), b.nan_to_num())


def pure(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> None:
    """CheckFailed unless the function is harmless and gives the same twice, bit for bit."""
    with harmless(*arguments):
        first = function(*arguments).detach().clone()
        second = function(*arguments)
    if not same(first, second.detach()):
        raise CheckFailed("the same arguments gave different values in two calls.")


def compiled(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """The function's value under torch.compile, traced in one piece and run without a compiler.

    Raises:
        CheckFailed: a graph break, with torch's explanation.
    """
    torch.compiler.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.compile(function, fullgraph=True, backend="eager")(*arguments)
    except Exception as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        brief = " ".join(lines[:3])[:300]
        raise CheckFailed(
            f"torch.compile(fullgraph=True): {type(problem).__name__}: {brief}"
        ) from problem
    finally:
        torch.compiler.reset()


def on_device(function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> str:
    """The device that the function was tried on: torch's meta device, which holds no values.

    One that asks for values is tried on CUDA instead.

    Raises:
        CheckFailed: the result is elsewhere, or tensors were moved to the CPU on the way.
        Skipped: it asks for values, and there is no CUDA device.
    """
    try:
        return _tried_on("meta", function, arguments)
    except (RuntimeError, NotImplementedError, ComponentError) as problem:
        if "no data" in str(problem):
            raise CheckFailed("moves its argument to the CPU.") from problem
        if "item()" not in str(problem) and "meta tensor" not in str(problem):
            raise
    if not torch.cuda.is_available():
        raise Skipped("asks for values, which the meta device has not; no CUDA device here")
    return _tried_on("cuda", function, arguments)


def _tried_on(device: str, function: Callable[..., Tensor], arguments: Sequence[Tensor]) -> str:
    found = function(*(value.to(device) for value in arguments))
    if found.device.type != device:
        raise CheckFailed(f"arguments on {device}, result on {found.device}.")
    return device


def reached(module: nn.Module, loss: Callable[[], Tensor], steps: int = 4) -> str:
    """CheckFailed unless a gradient of `loss()` reaches every parameter within a few steps.

    What starts at zero may hide the rest from the first ones.
    """
    parameters = dict(module.named_parameters())
    moved: set[str] = set()
    for _ in range(steps):
        found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
        with torch.no_grad():
            for (name, parameter), slope in zip(parameters.items(), found, strict=True):
                if slope is not None and 0 < float(slope.norm()) < float("inf"):
                    moved.add(name)
                    parameter.sub_(0.05 * slope / slope.norm())
    still = sorted(set(parameters) - moved)
    if still:
        raise CheckFailed(f"no gradient reaches {', '.join(still)}.")
    return f"{len(parameters)} parameters"


def equal_elsewhere(component: Any, context: Context) -> str:
    """CheckFailed unless another process computes the same numbers, bit for bit."""
    here, there = probe(component), context.courier.answer(component)
    if len(here) != len(there) or not all(map(same, here, there)):
        raise CheckFailed("another process computes other numbers.")
    return "the same bits in another process"
