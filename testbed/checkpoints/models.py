"""Models of other codebases: a folder of diffusers, or the user's factory, weights and wrapping."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from testbed.checkpoints import weights
from testbed.checkpoints.imports import attribute_of, beside_source
from testbed.checkpoints.networks import ForeignNetwork
from testbed.checkpoints.schedulers import Reading
from testbed.checkpoints.wrappings import wrapping
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, one_line
from testbed.random import seeded, stream


class Checkpoint(Protocol):
    """A model of another codebase, whose files say what is around its network."""

    @property
    def reading(self) -> Reading:
        """How its network is wrapped."""
        ...

    @property
    def digest(self) -> str:
        """Of all files that it comes from."""
        ...

    def module(self) -> ForeignNetwork:
        """Its network with its weights, in evaluation mode.

        Raises:
            InputError: it cannot be built, or the weights are not exactly those of the network.
        """
        ...


@dataclass(frozen=True)
class FactoryModel:
    """A network that a factory of the user builds, with the weights of a file.

    Args:
        factory: `module:function` or `file.py:function`; called without arguments, it returns the
            module.
        reading: how it is wrapped.
        weights: the file of its weights, as for `weights.load_weights`; "" where the factory loads
            them itself.
        prefix, average: which of the file's tensors.
    """

    factory: str
    reading: Reading
    weights: str = ""
    prefix: str = ""
    average: str = ""

    @property
    def digest(self) -> str:
        """Of the factory's source, the file of weights and what is taken of it."""
        words = (self.factory, self.prefix, self.average, repr(self.reading))
        digest = hashlib.sha256(repr(words).encode())
        if self.reading.table is not None:
            digest.update(self.reading.table.sigmas.numpy().tobytes())
        for file in (self._source(), self.weights):
            if file and Path(file).is_file():
                with Path(file).open("rb") as content:
                    digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()[:16]

    def module(self) -> ForeignNetwork:
        """The network with its weights, in evaluation mode.

        Raises:
            InputError: the factory raises or returns no module, or the weights are not exactly
                those of the network.
        """
        factory = self._function()
        try:
            # A factory that loads nothing has the same weights each time.
            with seeded(stream(0, "factory").initial_seed()), beside_source(factory):
                network = factory()
        except InputError:
            raise
        except Exception as problem:  # the code of others may raise anything
            raise InputError(f"{self.factory} raised {one_line(problem)}") from problem
        if not isinstance(network, nn.Module):
            found = type(network).__name__
            raise InputError(f"{self.factory} returned {found}, expected a torch.nn.Module.")
        if self.weights:
            weights.load_weights(network, self.weights, prefix=self.prefix, average=self.average)
        return ForeignNetwork(network, self.reading.time_scale, self.reading.sign).eval()

    def _function(self) -> Any:
        module, colon, attribute = self.factory.rpartition(":")
        if not colon or not attribute.isidentifier():
            raise InputError(
                f"factory = {self.factory!r}: expected module:function or file.py:function."
            )
        return attribute_of(module, attribute)

    def _source(self) -> str:
        try:
            return inspect.getsourcefile(self._function()) or ""
        except TypeError:  # a callable object, whose class may be anywhere
            return ""


def factory_model(
    factory: str,
    name: str,
    *,
    weights: str = "",
    prefix: str = "",
    average: str = "",
    table: NoiseTable | None = None,
    sigma_data: float | None = None,
    learned_variance: bool = False,
) -> FactoryModel:
    """The model of a factory, wrapped as `wrappings.WRAPPINGS` has it by `name`.

    Raises:
        UnknownName: an unknown wrapping.
        InputError: a table or a sigma_data that is missing or has no use.
    """
    around = wrapping(name)
    around.check(table is not None)
    if around.sigma_data is None and sigma_data is None:
        raise InputError(f"{name}: its sigma_data is that of the model: give sigma_data.")
    said = Reading(name, around, table, learned_variance=learned_variance, sigma_data=sigma_data)
    return FactoryModel(factory, said, weights, prefix, average)
