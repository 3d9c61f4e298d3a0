"""What every head puts in front of its own slots: the leading actions that are already certain.

Prefix conditioning learned in training (training-time real-time chunking, arXiv 2512.05964): during
training a random number of leading actions is given as known and left out of the loss; in the loop the rows
that will be executed anyhow take their place. Given as slots of their own, they cost nothing and work alike
for rows, tokens and control points.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from policies.batch import Committed


class PrefixSlots(nn.Module):
    """`most` slots [B, P, D]: an embedded action where one is given, a learned blank where none is. size: A."""

    def __init__(self, size: int, width: int, most: int):
        super().__init__()
        self.size, self.most = size, most
        self.embed = nn.Linear(size, width)
        self.blank = nn.Parameter(torch.randn(width) * 0.02)
        self.places = nn.Parameter(torch.randn(most, width) * 0.02)

    def forward(self, committed: Committed | None, batch: int) -> Tensor:
        """ValueError for committed rows of another shape than [batch, most, size]."""
        if committed is None:
            return (self.blank + self.places).expand(batch, -1, -1)
        if committed.rows_BPA.shape != (batch, self.most, self.size):
            raise ValueError(
                f"committed: expected rows [{batch}, {self.most}, {self.size}], got {list(committed.rows_BPA.shape)}"
            )
        known = committed.known_BP()[..., None]
        # Rows that are not given may hold anything, also what is not finite.
        rows = torch.where(known, committed.rows_BPA, torch.zeros_like(committed.rows_BPA))
        return torch.where(known, self.embed(rows.to(self.blank.dtype)), self.blank) + self.places


def free_rows(actions_BTA: Tensor, committed: Committed | None) -> Tensor:
    """Which rows count in the loss, float [B, T]: those that are not given."""
    batch, rows, _ = actions_BTA.shape
    free = torch.ones(batch, rows, device=actions_BTA.device)
    if committed is not None:
        known = committed.known_BP()[:, :rows].float()
        free[:, : known.shape[1]] -= known
    return free


def free_tokens(actions_BTA: Tensor, committed: Committed | None, influence: NDArray[np.float64]) -> Tensor:
    """Which tokens count in the loss, float [B, N, A]: those that shape a row that is not given.

    influence: [T, N, A], the tokenizer's weight of every token in every row.
    """
    reach = torch.as_tensor(influence > 0, device=actions_BTA.device)
    free = free_rows(actions_BTA, committed) > 0
    return (free[:, :, None, None] & reach).any(1).to(actions_BTA.dtype)


def pinned_tokens(tokenizer: Any, committed: Committed | None) -> Tensor | None:
    """Ids [B, L] that given rows decide, -1 where free; None where tokens do not stand for single rows."""
    if committed is None or not hasattr(tokenizer, "pinned"):
        return None
    ids: Tensor = tokenizer.pinned(committed.rows_BPA, committed.known_BP())
    return ids


def keep_committed(actions_BTA: Tensor, committed: Committed | None) -> Tensor:
    """The chunk with its given rows exactly as they were given."""
    if committed is None:
        return actions_BTA
    known = committed.known_BP()[:, : actions_BTA.shape[1]]
    rows = actions_BTA.clone()
    most = known.shape[1]
    rows[:, :most] = torch.where(known[..., None], committed.rows_BPA[:, :most], rows[:, :most])
    return rows


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values where weights is 1; weights broadcast from the left."""
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim)).expand_as(values)
    return (values * weights).sum() / weights.sum().clamp_min(1)
