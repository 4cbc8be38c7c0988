"""What the subject of an audit names: a parameterization, or a factory of a denoiser."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from testbed.audit.adapters import MOST_NUMBERS, Adapter
from testbed.audit.external import ExternalDenoiser, around_network, word_of
from testbed.audit.reference import distributions
from testbed.checkpoints.imports import attribute_of, beside_source
from testbed.components.signature import Signature
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, UnknownName, one_line, unknown
from testbed.oracles import Oracle
from testbed.registry import Registry


def find(word: str, registry: Registry) -> Any:
    """Returns what a word names: a parameterization, or the factory of a denoiser.

    Raises:
        InputError: The word names neither, or the factory cannot be imported.
    """
    names = registry.names("parameterization")
    if word in names:
        return registry.parameterization(word)
    module, colon, attribute = word.rpartition(":")
    if colon and attribute.isidentifier():
        return attribute_of(module, attribute)
    if word.endswith(".py"):
        raise UnknownName(f"{word}: name the factory in the file too: {word}:FUNCTION.")
    raise UnknownName(
        f"{unknown('subject', word, names)} A trial's folder or id, the folder of a "
        "model of diffusers, or module:factory, would do too."
    )


def external_denoiser(
    name: str,
    function: Callable[..., Any],
    oracle: Oracle | None,
    adapter: Adapter,
    parameterization: Parameterization | None = None,
    sigma_data: float = 0.5,
    trained: bool = False,
) -> ExternalDenoiser:
    """Returns the subject that a callable or a factory stands for.

    Raises:
        InputError: The factory takes a network and no parameterization is given, it raises, or the
            samples of `oracle` do not have the size of the adapter's shape.
    """
    arguments = _factory_arguments(name, function)
    if oracle is not None and adapter.dim not in (None, oracle.dim):
        raise InputError(
            f"shape = {adapter.shape} has {adapter.dim} numbers, a sample of the data {oracle.dim}."
        )
    if ("network" in arguments or "oracle" in arguments) and (adapter.dim or 0) > MOST_NUMBERS:
        raise InputError(
            f"shape = {adapter.shape}: at most {MOST_NUMBERS} numbers a sample of an exact "
            "denoiser, since its bounds take a pass for each."
        )

    def own() -> Mapping[str, Oracle]:
        return distributions(adapter.dim) if oracle is None else {"data": oracle}

    if "network" in arguments:
        if parameterization is None:
            raise InputError(
                f"{name} takes a network: say which parameterization's it is, for example "
                "parameterization='edm' (--parameterization edm)."
            )
        if trained:
            raise InputError(f"{name} takes a network: it is audited with the exact one.")

        def wrap(network: nn.Module) -> Any:
            return _call(name, function, arguments, network=network, sigma_data=sigma_data)

        return around_network(name, wrap, parameterization, sigma_data, adapter, own())
    if "oracle" in arguments:

        def make(data: Oracle) -> Any:
            return _call(name, function, arguments, oracle=data, sigma_data=sigma_data)

        return ExternalDenoiser(name, make, adapter, own())
    if arguments or _takes_nothing(function):
        function = _call(name, function, arguments, sigma_data=sigma_data)
    weights = list(function.parameters()) if isinstance(function, nn.Module) else []
    floating = next((weight for weight in weights if weight.is_floating_point()), None)
    if floating is not None and adapter.dtype is None:
        adapter = replace(adapter, dtype=floating.dtype)
    subject = ExternalDenoiser(
        name, lambda data: function, adapter, {} if oracle is None else {"data": oracle}
    )
    subject.roundings += sum(math.prod(weight.shape[1:]) for weight in weights)
    return subject


def with_its_dtype(
    subject: ExternalDenoiser,
    dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
) -> tuple[ExternalDenoiser, str]:
    """Returns the subject in the one dtype that it takes, and a note; "" where it takes the first.

    One that raises in the first of `dtypes` and answers in a later one is of that.
    """
    problem = "" if subject.adapter.dtype is not None else subject.raises(dtypes[0])
    for dtype in dtypes[1:] if problem else ():
        narrow = subject.of_dtype(dtype)
        if not narrow.raises(dtype):
            word = word_of(dtype)
            return narrow, f"it takes {word} alone, and was audited in that ({problem})."
    return subject, ""


def _factory_arguments(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns which of oracle, network and sigma_data a factory takes; none for a denoiser."""
    try:
        return Signature(name, function, ("oracle", "network", "sigma_data")).inputs
    except InputError:
        return ()


def _takes_nothing(function: Callable[..., Any]) -> bool:
    """Whether a callable takes no argument: then it is a factory."""
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _call(name: str, factory: Callable[..., Any], arguments: Sequence[str], **values: Any) -> Any:
    """Returns the denoiser of a factory, called with those of `values` that it takes.

    Raises:
        InputError: The factory raises, or returns something that is not callable.
    """
    try:
        with beside_source(factory):
            denoiser = factory(**{key: values[key] for key in arguments})
    except Exception as problem:
        raise InputError(f"{name} raised {one_line(problem)}") from problem
    if not callable(denoiser):
        raise InputError(f"{name} returned {denoiser!r}, expected a callable (x, sigma) -> x0.")
    return denoiser
