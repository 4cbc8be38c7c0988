"""The values that conditions stand for: vectors, tokens of a text, images.

A condition is a whole number for each sample, -1 where it is switched off. That of a label is a
class, for which a network learns an embedding. Other conditions are numbers of rows of a table of
values that are known beforehand: an image's size, the token states of its caption, a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from testbed.errors import InputError, unknown

Kind = Literal["vector", "tokens", "image"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DIMENSIONS: dict[Kind, tuple[str, ...]] = {
    "vector": ("R", "V"),
    "tokens": ("R", "T", "E"),
    "image": ("R", "C", "H", "W"),
}


@dataclass(frozen=True, eq=False)
class ConditionTable:
    """The R values of a condition; row i is what the number i stands for.

    Args:
        kind: "vector" is added to the embedding of the noise level, "tokens" are attended to, an
            "image" is concatenated with x as further channels.
        rows: (R, V), (R, T, E) or (R, C, H, W) float32, by the kind.
        mask: of tokens, (R, T) bool, True where there is a token and False where there is padding;
            None where all are tokens.
        off: the row that a network is given where the condition is switched off, such as that of
            the empty text; None where it is given nothing.

    Raises:
        InputError: an unknown kind, rows of another shape or dtype or not finite, a mask that does
            not fit, or leaves a row without a token, or `off` that is no row.
    """

    kind: Kind
    rows: Tensor
    mask: Tensor | None = None
    off: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(unknown("kind of condition", self.kind, KINDS))
        wanted = DIMENSIONS[self.kind]
        if self.rows.ndim != len(wanted) or 0 in self.rows.shape:
            raise InputError(
                f"the values of a condition of kind {self.kind!r} have shape "
                f"{tuple(self.rows.shape)}, expected ({', '.join(wanted)})."
            )
        if self.rows.dtype != torch.float32 or not bool(torch.isfinite(self.rows).all()):
            raise InputError(
                f"the values of a condition of kind {self.kind!r} are {self.rows.dtype}, expected "
                "finite float32."
            )
        if self.off is not None and not 0 <= self.off < len(self.rows):
            raise InputError(f"off = {self.off}: expected one of {len(self.rows)} rows.")
        if self.mask is None:
            return
        if self.kind != "tokens" or self.mask.shape != self.rows.shape[:2]:
            raise InputError(
                f"the mask of a condition of kind {self.kind!r} has shape "
                f"{tuple(self.mask.shape)}, expected that of tokens, {tuple(self.rows.shape[:2])}."
            )
        if self.mask.dtype != torch.bool or not bool(self.mask.any(1).all()):
            raise InputError(f"the mask of tokens is {self.mask.dtype}, expected bool with a True.")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one value: (V,), (T, E) or (C, H, W)."""
        return tuple(self.rows.shape[1:])
