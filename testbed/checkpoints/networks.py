"""Networks of other codebases, called as theirs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from testbed.components.condition import ConditionTable
from testbed.errors import InputError

KEYWORDS = {"label": "class_labels"}
"""The keyword of a condition where that is not its name."""


class ForeignNetwork(nn.Module):
    """A network of another codebase, `network(x, t, **conditions)`, as one of the testbed's.

    Of an output object with a tensor `sample` that tensor is taken, of a tuple the first.

    Args:
        network: the module.
        time_scale: what c_noise is multiplied by: 1000 where a time in [0, 1] is given as one in
            [0, 1000].
        sign: -1 where the output is of the other sign.
        null: the class that stands for none, where the network has one.
        classes: where not 0, the network takes classes as rows of the identity, (B, classes).
        keywords: the keyword of each condition by its name; the name itself by default, and
            `class_labels` for "label".
        tables: the values of conditions that are numbers of rows; where one is off or left out the
            network is given the row `off` of its table.
    """

    def __init__(
        self,
        network: nn.Module,
        time_scale: float = 1.0,
        sign: float = 1.0,
        null: int | None = None,
        classes: int = 0,
        keywords: Mapping[str, str] | None = None,
        tables: Mapping[str, ConditionTable] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.time_scale, self.sign = time_scale, sign
        self.null, self.classes = null, classes
        self.keywords = {**KEYWORDS, **(keywords or {})}
        self.off = {name: table.off for name, table in (tables or {}).items()}
        for name, table in (tables or {}).items():
            self.register_buffer(f"rows_of_{name}", table.rows, persistent=False)

    def forward(
        self, x: Tensor, c_noise: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Its output, (B, C, ...), dtype of x.

        Raises:
            InputError: a condition that is switched off, of a network that has no class or row for
                none.
        """
        condition = dict(condition or {})
        for name, off in self.off.items():
            if name not in condition and off is not None:
                condition[name] = torch.full(x.shape[:1], off, device=x.device)
        given = {
            self.keywords.get(name, name): self._value(name, value)
            for name, value in condition.items()
        }
        if self.null is not None and KEYWORDS["label"] not in given:
            none = torch.full(x.shape[:1], self.null, device=x.device)
            given[KEYWORDS["label"]] = self._classes(none)
        time = c_noise if self.time_scale == 1 else self.time_scale * c_noise
        output: Any = self.network(x, time, **given)
        if isinstance(output, tuple):
            output = output[0]
        if not isinstance(output, Tensor):
            output = getattr(output, "sample", output)
        if not isinstance(output, Tensor):
            raise InputError(
                f"the network returned {type(output).__name__}, expected a tensor, a tuple that "
                "begins with one, or an object with a tensor `sample`."
            )
        return output if self.sign == 1 else self.sign * output

    def _value(self, name: str, value: Tensor) -> Tensor:
        """What the network is given for a condition."""
        if name in self.off:
            rows: Tensor = getattr(self, f"rows_of_{name}")
            if (off := self.off[name]) is not None:
                value = value.where(value >= 0, off)
            elif bool((value < 0).any()):
                raise InputError(f"condition {name!r} is switched off, which this network cannot.")
            return rows[value]
        if name != "label":
            return value
        if self.null is None and bool((value < 0).any()):
            raise InputError(
                "the label is switched off (-1), and this network has no class for none."
            )
        return self._classes(value if self.null is None else value.where(value >= 0, self.null))

    def _classes(self, value: Tensor) -> Tensor:
        if not self.classes:
            return value
        dtype = next(self.parameters()).dtype
        # A class beyond the last one, such as that for none, is a row of zeros.
        return torch.eye(self.classes + 1, self.classes, dtype=dtype, device=value.device)[value]
