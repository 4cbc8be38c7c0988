"""The exact distributions given a condition, for a mixture whose components have classes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from testbed.errors import InputError, UnknownName, unknown
from testbed.oracles.mixture import Mixture


class Conditional:
    """p(x0 | y) where the condition y depends on x0 by the mixture's component k alone.

    Given classes y of some conditions, which are independent of each other given the component,

        p(x0 | y) = sum over k of pi_k p(y|k) N(m_k, S_k), the weights pi_k p(y|k) normalised,
        p(y | x) = sum over k of p(y|k) r_k(x).

    A class that is a function of the component has p(y|k) of 0 and 1. A caption that several
    components share, or that is one of several of a component, has others.

    Args:
        oracle: the mixture, with K components.
        components: name of a condition -> (K,) int64, the class of each component, or (K, C)
            float64, the probabilities p(y|k) of the C classes.

    Raises:
        ValueError: another shape or dtype, a class below 0, or rows that are no probabilities.
    """

    def __init__(self, oracle: Mixture, components: Mapping[str, Tensor]) -> None:
        self.oracle = oracle
        self.components = dict(components)
        self._p = {name: self._probabilities(name) for name in self.components}
        self._known: dict[frozenset[tuple[str, int]], Mixture] = {}

    def _probabilities(self, name: str) -> Tensor:
        """p(y|k) of a condition, (K, C) float64."""
        classes, K = self.components[name], len(self.oracle.pi)
        if classes.dtype == torch.float64 and classes.ndim == 2 and len(classes) == K:
            # A row of C numbers is rounded C times.
            off = (classes.sum(1) - 1).abs() > classes.shape[1] * 2.0**-52
            if bool((classes < 0).any()) or bool(off.any()):
                raise ValueError(f"components[{name!r}]: expected rows of probabilities")
            return classes
        if classes.shape != (K,) or classes.dtype != torch.int64:
            raise ValueError(
                f"components[{name!r}]: got {classes.dtype} of shape {tuple(classes.shape)}, "
                f"expected int64 of shape ({K},), or float64 of shape ({K}, classes)"
            )
        if bool((classes < 0).any()):
            raise ValueError(f"components[{name!r}]: got {classes.tolist()}, expected from 0")
        return torch.nn.functional.one_hot(classes).double()

    def given(self, condition: Mapping[str, int]) -> Mixture:
        """The oracle of x0 given these classes; -1, or a name left out, leaves a condition open.

        Raises:
            UnknownName: there is no such condition.
            InputError: no component has these classes together.
        """
        key = frozenset(condition.items())
        if key not in self._known:  # a sampler asks for the same ones at every level
            self._known[key] = self._given(condition)
        return self._known[key]

    def _given(self, condition: Mapping[str, int]) -> Mixture:
        p = torch.ones_like(self.oracle.pi)
        for name, value in condition.items():
            if value >= 0:
                of_class = self._of(name)
                known = value < of_class.shape[1]
                p = p * (of_class[:, value] if known else torch.zeros_like(p))
        if not bool(p.any()):
            words = ", ".join(f"{name} = {value}" for name, value in condition.items())
            raise InputError(f"condition {words}: no part of the data has it.")
        return self.oracle if bool((p == 1).all()) else self.oracle.given(p)

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
        log_r = self.oracle.log_classes(x, sigma)
        log_p_y = []
        for p in self._of(name).to(log_r.dtype).unbind(1):
            k = p > 0  # logsumexp of nothing but -inf has no gradient
            log_p_y.append(
                (log_r[:, k] + p[k].log()).logsumexp(1)
                if bool(k.any())
                else log_r.new_full((len(x),), -torch.inf)
            )
        return torch.stack(log_p_y, 1)

    def to(self, device: torch.device | str) -> "Conditional":
        """A copy of this on the device."""
        return Conditional(
            self.oracle.to(device), {name: c.to(device) for name, c in self.components.items()}
        )

    def _of(self, name: str) -> Tensor:
        """p(y|k) of a condition, (K, C)."""
        if name not in self._p:
            raise UnknownName(unknown("condition", name, self._p))
        return self._p[name]
