"""Masked discrete diffusion over the ids of any tokenizer: bins, or B-spline tokens.

Discrete Diffusion VLA (arXiv 2508.20072): in training a random share of the tokens, cosine in a uniform
draw, is masked and predicted from the others; decoding begins with all masked and commits the surest tokens
round by round. Over bins the tokens of given rows are pinned from the start. Over B-spline tokens the
sequence is short, of fixed length, and a wrong token bends only part of the curve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.heads.slots import PrefixSlots, free_tokens, keep_committed, pinned_tokens, weighted_mean
from policies.tokenizers.bins import Bins
from policies.tokenizers.bspline import BSpline
from vla_runtime.decoding.masked import MaskedDecoding, MaskedResult, decode_masked, draw_noise


class DiscreteDiffusion(nn.Module):
    """ActionHead over a tokenizer. decoding: the checkpoint's own way to decode.

    words: "own", or "backbone" where bins are words of the backbone's vocabulary, as in OpenVLA: it then embeds
    them and says their logits (`embed`, `logits`, `action_ids`), and this head learns nothing of its own. No rows
    can be given then, since the first action is read at the prompt's last word.
    """

    name = "discrete_diffusion"
    uses_tokens = True

    def __init__(
        self,
        tokenizer: Bins | BSpline,
        width: int,
        max_committed: int = 8,
        decoding: MaskedDecoding | None = None,
        words: str = "own",
    ):
        super().__init__()
        if words not in ("own", "backbone"):
            raise ValueError(f"head.words: expected own or backbone, got {words!r}")
        if words == "backbone" and (max_committed or not isinstance(tokenizer, Bins)):
            raise ValueError(
                "head.words=backbone: expected tokenizer=bins and max_committed=0, "
                f"got tokenizer={tokenizer.name} and max_committed={max_committed}"
            )
        self.own_words = words == "own"
        self.tokenizer = tokenizer
        self.decoding = decoding or MaskedDecoding()
        self.prefix = PrefixSlots(tokenizer.size, width, max_committed)
        if self.own_words:
            # The last row stands for a masked token.
            self.embed = nn.Embedding(tokenizer.vocab_size + 1, width)
            self.places = nn.Parameter(torch.randn(tokenizer.num_tokens, width) * 0.02)
            self.out = nn.Linear(width, tokenizer.vocab_size)
            nn.init.normal_(self.embed.weight, std=0.02)

    def loss(self, backbone: Any, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        """Cross-entropy of the masked tokens, those of given rows left out (section 3 of the paper)."""
        ids = self.tokenizer.encode(actions_BTA)
        pinned = pinned_tokens(self.tokenizer, committed)
        free = torch.ones_like(ids, dtype=torch.bool) if pinned is None else pinned < 0
        share = torch.cos(torch.rand(len(batch), device=ids.device) * torch.pi / 2).clamp(1e-6, 1)
        count = (share * free.sum(1)).round().clamp_min(1)
        # Pinned tokens are never masked: they come last.
        order = torch.where(free, torch.rand(ids.shape, device=ids.device), torch.full((), 2.0, device=ids.device))
        masked = (order.argsort(1).argsort(1) < count[:, None]) & free
        prefix = self.prefix(committed, len(ids)) if self.own_words else None
        logits = self._logits(backbone, backbone.encode(batch), prefix, ids, masked)
        losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        weights = masked.float() * free_tokens(actions_BTA, committed, self.tokenizer.influence()).flatten(1)
        return weighted_mean(losses, weights)

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Gumbel noise for all rounds; none when the decoding is greedy."""
        return draw_noise(self.decoding, batch, self.tokenizer.num_tokens, self.tokenizer.vocab_size, generator)

    def decode(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]."""
        return self.decode_tokens(backbone, context, committed, noise, batch)[0]

    def decode_tokens(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The chunk, and the tokens int64 [B, L] behind it."""
        ids = self.decode_rounds(backbone, context, committed, noise, batch).ids_BL
        return self.chunk(ids, committed), ids

    def chunk(self, ids_BL: Tensor, committed: Committed | None) -> Tensor:
        """The chunk float [B, T, A] that tokens say."""
        return keep_committed(self.tokenizer.decode(ids_BL, checked=False).clamp(-1, 1), committed)

    def decode_rounds(
        self,
        backbone: Any,
        context: Any,
        committed: Committed | None,
        noise: dict[str, Tensor],
        batch: int = 1,
        late: Callable[[], bool] = lambda: False,
    ) -> MaskedResult:
        """The tokens, and how the rounds went. late: once it says yes, one pass commits everything left."""

        prefix = self.prefix(committed, batch) if self.own_words else None

        def logits_of(ids: Tensor, masked: Tensor) -> Tensor:
            return self._logits(backbone, context, prefix, ids, masked)

        pinned = pinned_tokens(self.tokenizer, committed)
        length, device = self.tokenizer.num_tokens, self.prefix.blank.device
        return decode_masked(logits_of, length, batch, self.decoding, noise, device, pinned, late)

    def _logits(self, backbone: Any, context: Any, prefix: Tensor | None, ids: Tensor, masked: Tensor) -> Tensor:
        if prefix is None:
            words = backbone.action_ids
            known = torch.where(masked, torch.full_like(ids, backbone.config.mask_id), words[ids])
            return backbone.logits(backbone.step(context, backbone.embed(known)), words)  # type: ignore[no-any-return]
        tokens = torch.where(masked, torch.full_like(ids, self.tokenizer.vocab_size), ids)
        slots = torch.cat([prefix, self.embed(tokens) + self.places], dim=1)
        hidden = backbone.step(context, slots)
        return self.out(hidden[:, -self.tokenizer.num_tokens :])  # type: ignore[no-any-return]
