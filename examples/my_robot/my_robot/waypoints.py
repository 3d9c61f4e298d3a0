"""An action head of one's own, trained by name: `finetune head=waypoints tokenizer=none`.

It answers a chunk as straight lines between a few waypoints, which it regresses in one pass.
"""

import torch
from torch import nn

from policies.heads.slots import PrefixSlots, free_rows, keep_committed, weighted_mean


class Waypoints(nn.Module):
    """ActionHead: `count` waypoints, evenly spread over `rows` rows of `size` numbers."""

    name = "waypoints"

    def __init__(self, rows: int, size: int, width: int, max_committed: int = 8, count: int = 3):
        super().__init__()
        # One more input to the network: leading rows that will be executed anyhow.
        self.prefix = PrefixSlots(size, width, max_committed)
        self.queries = nn.Parameter(torch.randn(count, width) * 0.02)
        self.out = nn.Linear(width, size)
        places = torch.linspace(0, count - 1, rows)[:, None] - torch.arange(count)[None]
        self.register_buffer("blend", (1 - places.abs()).clamp_min(0), persistent=False)  # [T, count]

    def loss(self, backbone, batch, actions_BTA, committed):
        predicted = self._rows(backbone, backbone.encode(batch), committed, len(batch))
        return weighted_mean((predicted - actions_BTA).abs(), free_rows(actions_BTA, committed))

    def draw(self, batch, generator):
        return {}

    def decode(self, backbone, context, committed, noise, batch=1):
        return keep_committed(self._rows(backbone, context, committed, batch).clamp(-1, 1), committed)

    def _rows(self, backbone, context, committed, batch):
        slots = torch.cat([self.prefix(committed, batch), self.queries.expand(batch, -1, -1)], dim=1)
        hidden = backbone.step(context, slots)[:, -len(self.queries) :]
        return torch.einsum("tn,bna->bta", self.blend, self.out(hidden))
