"""Embeddings of conditions that stand for values: (B,) classes -> (B, width), 0 where one is off.

The values are those of a frozen table. They are no weights: a network that is built with further
rows has the same weights, so that a trained one takes texts that it was not trained with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from testbed.components.condition import ConditionTable


class Values(nn.Module):
    """Looks up the values of classes (B,) int64; one of -1 has the first row's, to be left out."""

    rows: Tensor
    mask: Tensor

    def __init__(self, table: ConditionTable) -> None:
        super().__init__()
        mask = table.mask
        if mask is None:
            mask = torch.ones(table.rows.shape[:2], dtype=torch.bool)
        self.register_buffer("rows", table.rows, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The values (B, *shape), and for tokens (B, T) bool, False for padding."""
        at = classes.clamp(min=0)
        return self.rows[at], self.mask[at]


class VectorEmbedding(nn.Module):
    """W2 silu(W1 v) of a vector v; W2 starts at zero."""

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__()
        self.values = Values(table)
        self.inner = nn.Linear(table.shape[0], width)
        self.outer = _zero(nn.Linear(width, width))

    def forward(self, classes: Tensor) -> Tensor:
        v, _ = self.values(classes)
        return _where_on(classes, self.outer(nn.functional.silu(self.inner(v))))


class TokenPool(nn.Module):
    """W [sum_t a_ht z_t, for each head h], a_h = softmax_t(q_h z_t/sqrt(E)) over the tokens z_t.

    The queries q_h are learned, padding has no share, and W starts at zero. The order of the tokens
    does not matter: what a token's place means is in its state.
    """

    def __init__(self, table: ConditionTable, width: int, heads: int = 4) -> None:
        super().__init__()
        size = table.shape[-1]
        self.values = Values(table)
        self.queries = nn.Linear(size, heads, bias=False)
        self.outer = _zero(nn.Linear(heads * size, width))

    def forward(self, classes: Tensor) -> Tensor:
        z, mask = self.values(classes)
        logits = self.queries(z) / z.shape[-1] ** 0.5
        a = torch.softmax(logits.masked_fill(~mask[..., None], -torch.inf), dim=1)
        return _where_on(classes, self.outer((a.mT @ z).flatten(1)))


class ImageEmbedding(nn.Module):
    """W y of the numbers y of an image: what a first layer of (x, y) adds to that of x alone."""

    def __init__(self, table: ConditionTable, width: int) -> None:
        super().__init__()
        self.values = Values(table)
        self.outer = _zero(nn.Linear(table.rows[0].numel(), width, bias=False))

    def forward(self, classes: Tensor) -> Tensor:
        y, _ = self.values(classes)
        return _where_on(classes, self.outer(y.flatten(1)))


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _where_on(classes: Tensor, embedded: Tensor) -> Tensor:
    return torch.where((classes >= 0)[:, None], embedded, 0.0)
