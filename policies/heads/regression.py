"""One pass to the rows of a chunk, trained with L1: the parallel regression of OpenVLA-OFT (arXiv 2502.19645)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.heads.slots import PrefixSlots, free_rows, keep_committed, weighted_mean


class Regression(nn.Module):
    """ActionHead. rows: T; size: A; width: D of the backbone; max_committed: most leading rows that may be given."""

    name = "regression"

    def __init__(self, rows: int, size: int, width: int, max_committed: int = 8):
        super().__init__()
        self.rows = rows
        self.prefix = PrefixSlots(size, width, max_committed)
        self.queries = nn.Parameter(torch.randn(rows, width) * 0.02)
        self.out = nn.Linear(width, size)

    def loss(self, backbone: Any, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        """Mean absolute error over the rows that are not given."""
        predicted = self._rows(backbone, backbone.encode(batch), committed, len(batch))
        return weighted_mean((predicted - actions_BTA).abs(), free_rows(actions_BTA, committed))

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """No randomness."""
        return {}

    def decode(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]."""
        return keep_committed(self._rows(backbone, context, committed, batch).clamp(-1, 1), committed)

    def _rows(self, backbone: Any, context: Any, committed: Committed | None, batch: int) -> Tensor:
        slots = torch.cat([self.prefix(committed, batch), self.queries.expand(batch, -1, -1)], dim=1)
        hidden = backbone.step(context, slots)
        return self.out(hidden[:, -self.rows :]).float()  # type: ignore[no-any-return]
