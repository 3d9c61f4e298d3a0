"""One token after another, each seeing those before it: the baseline of parallel decoding.

Greedy, and fair: what is fixed is kept as keys and values (`Backbone.extend`), so every token is computed
once, as OpenVLA's decoding does it (arXiv 2406.09246).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.heads.slots import PrefixSlots, free_tokens, keep_committed, pinned_tokens, weighted_mean
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline


class Autoregressive(nn.Module):
    """ActionHead over a tokenizer's ids, in the tokenizer's order."""

    name = "autoregressive"
    uses_tokens = True

    def __init__(self, tokenizer: Bins | BSpline, width: int, max_committed: int = 8):
        super().__init__()
        self.tokenizer = tokenizer
        self.prefix = PrefixSlots(tokenizer.size, width, max_committed)
        # The last row begins the sequence.
        self.embed = nn.Embedding(tokenizer.vocab_size + 1, width)
        self.places = nn.Parameter(torch.randn(tokenizer.num_tokens, width) * 0.02)
        self.out = nn.Linear(width, tokenizer.vocab_size)
        nn.init.normal_(self.embed.weight, std=0.02)

    def loss(self, backbone: Any, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        """Cross-entropy with the true tokens before each; those of given rows left out."""
        ids = self.tokenizer.encode(actions_BTA)
        slots = torch.cat([self.prefix(committed, len(ids)), self._slots(ids)], dim=1)
        causal = torch.ones(slots.shape[1], slots.shape[1], dtype=torch.bool, device=ids.device).tril()
        hidden = backbone.step(backbone.encode(batch), slots, causal)
        logits = self.out(hidden[:, self.prefix.most :])
        losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        weights = free_tokens(actions_BTA, committed, self.tokenizer.influence()).flatten(1)
        return weighted_mean(losses, weights)

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """No randomness."""
        return {}

    def decode(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]."""
        return self.decode_tokens(backbone, context, committed, noise, batch)[0]

    def decode_tokens(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The chunk, and the tokens int64 [B, L] behind it, taken greedily."""
        begin = torch.full((batch,), self.tokenizer.vocab_size, device=self.places.device)
        pinned = pinned_tokens(self.tokenizer, committed)
        context = backbone.extend(context, self.prefix(committed, batch))
        ids = [begin]
        for index, place in enumerate(self.places):
            context = backbone.extend(context, (self.embed(ids[-1]) + place)[:, None])
            said = self.out(context.hidden_BLD[:, -1]).argmax(-1)
            # What given rows decide is not asked for, and what follows sees it.
            ids.append(said if pinned is None else torch.where(pinned[:, index] < 0, said, pinned[:, index]))
        found = torch.stack(ids[1:], dim=1)
        return keep_committed(self.tokenizer.decode(found).clamp(-1, 1), committed), found

    def _slots(self, ids: Tensor) -> Tensor:
        begin = torch.full_like(ids[:, :1], self.tokenizer.vocab_size)
        return self.embed(torch.cat([begin, ids[:, :-1]], dim=1)) + self.places  # type: ignore[no-any-return]
