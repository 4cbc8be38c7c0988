"""The exact distributions given a condition, for a mixture whose components have classes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from testbed.errors import InputError, UnknownName, unknown
from testbed.oracles.mixture import Mixture


class Conditional:
    """p(x0 | y) where the condition y is a function of the mixture's component.

    Given classes of some conditions, x0 is from the components that have them all:

        p(x0 | y) = sum over k in y of pi_k N(m_k, S_k), pi renormalised,
        p(y | x) = sum over k in y of r_k(x).

    Args:
        oracle: the mixture, with K components.
        components: name of a condition -> (K,) int64, the class of each component.

    Raises:
        ValueError: a shape that is not (K,), a dtype that is not int64, or a class below 0.
    """

    def __init__(self, oracle: Mixture, components: Mapping[str, Tensor]) -> None:
        self.oracle = oracle
        self.components = dict(components)
        for name, classes in self.components.items():
            if classes.shape != oracle.pi.shape or classes.dtype != torch.int64:
                raise ValueError(
                    f"components[{name!r}]: got {classes.dtype} of shape {tuple(classes.shape)}, "
                    f"expected int64 of shape ({len(oracle.pi)},)"
                )
            if bool((classes < 0).any()):
                raise ValueError(f"components[{name!r}]: got {classes.tolist()}, expected from 0")

    def given(self, condition: Mapping[str, int]) -> Mixture:
        """The oracle of x0 given these classes; -1, or a name left out, leaves a condition open.

        Raises:
            UnknownName: there is no such condition.
            InputError: no component has these classes together.
        """
        within = torch.ones(len(self.oracle.pi), dtype=torch.bool)
        for name, value in condition.items():
            if value >= 0:
                within &= self._classes(name).cpu() == value
        if not bool(within.any()):
            words = ", ".join(f"{name} = {value}" for name, value in condition.items())
            raise InputError(f"condition {words}: no part of the data has it.")
        if bool(within.all()):
            return self.oracle
        return self.oracle.restricted([int(k) for k in within.nonzero()[:, 0]])

    def denoise(
        self, x: Tensor, sigma: float | Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """E[x0|x, y], shaped like x; `condition` maps names to (B,) int64 classes, -1 for open.

        Raises:
            UnknownName, InputError: as `given`.
        """
        return self._each(Mixture.denoise, x, sigma, condition)

    def log_density(
        self, x: Tensor, sigma: float | Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """log p_sigma(x|y), (B,) nats; arguments and errors as for `denoise`."""
        return self._each(Mixture.log_density, x, sigma, condition)

    def _each(
        self,
        answer: Callable[[Mixture, Tensor, float | Tensor], Tensor],
        x: Tensor,
        sigma: float | Tensor,
        condition: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """The answer for each sample from the oracle given its classes."""
        if not condition or not len(x):
            return answer(self.oracle, x, sigma)
        names = list(condition)
        rows = torch.stack([condition[name] for name in names], 1)
        indices, answers = [], []
        for classes in sorted(set(map(tuple, rows.tolist()))):
            index = (rows == rows.new_tensor(classes)).all(1).nonzero()[:, 0]
            own_sigma = sigma[index] if isinstance(sigma, Tensor) and sigma.ndim else sigma
            oracle = self.given(dict(zip(names, classes, strict=True)))
            indices.append(index)
            answers.append(answer(oracle, x[index], own_sigma))
        return torch.cat(answers)[torch.cat(indices).argsort()]

    def log_classes(self, name: str, x: Tensor, sigma: float | Tensor) -> Tensor:
        """log p(y|x) for every class y of one condition, (B, classes) nats, differentiable.

        It is -inf for a class that no component has.

        Raises:
            UnknownName: there is no such condition.
        """
        classes = self._classes(name)
        log_r = self.oracle.log_classes(x, sigma)
        return torch.stack(
            [
                log_r[:, classes == y].logsumexp(1)
                if bool((classes == y).any())
                else log_r.new_full((len(x),), -torch.inf)
                for y in range(int(classes.max()) + 1)
            ],
            1,
        )

    def to(self, device: torch.device | str) -> "Conditional":
        """A copy of this on the device."""
        return Conditional(
            self.oracle.to(device), {name: c.to(device) for name, c in self.components.items()}
        )

    def _classes(self, name: str) -> Tensor:
        if name not in self.components:
            raise UnknownName(unknown("condition", name, self.components))
        return self.components[name]
