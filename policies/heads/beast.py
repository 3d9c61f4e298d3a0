"""One pass to the control points of a B-spline: BEAST's parallel decoding (arXiv 2506.06072, section 4).

Discrete: every control point of every dimension is one of 256 levels, a slot each, trained with
cross-entropy and taken greedily. Continuous: one slot a basis function, regressed. The latter may be ACT's
conditional VAE (arXiv 2304.13705) with control points as its targets.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from policies.batch import Batch, Committed
from policies.heads.slots import PrefixSlots, free_tokens, keep_committed, weighted_mean
from policies.tokenizers.bspline import BSpline

_LATENT = 32
_KL_WEIGHT = 10.0


class Beast(nn.Module):
    """ActionHead over a `BSpline` tokenizer with bounds.

    tokens: "discrete" or "continuous"; latent: with continuous tokens, train as a conditional VAE and decode
    from the middle of its prior.
    """

    name = "beast"
    uses_tokens = True

    def __init__(
        self, tokenizer: BSpline, width: int, max_committed: int = 8, tokens: str = "discrete", latent: bool = False
    ):
        super().__init__()
        if not isinstance(tokenizer, BSpline):
            raise ValueError(f"head beast: expected tokenizer=bspline, got {type(tokenizer).__name__}")
        if tokens not in ("discrete", "continuous"):
            raise ValueError(f"head.tokens: expected discrete or continuous, got {tokens!r}")
        if latent and tokens == "discrete":
            raise ValueError("head.latent: expected tokens=continuous, got discrete")
        self.tokenizer, self.discrete = tokenizer, tokens == "discrete"
        size, points = tokenizer.size, tokenizer.num_basis
        self.prefix = PrefixSlots(size, width, max_committed)
        self.num_slots = tokenizer.num_tokens if self.discrete else points
        self.queries = nn.Parameter(torch.randn(self.num_slots, width) * 0.02)
        self.out = nn.Linear(width, tokenizer.vocab_size if self.discrete else size)
        self.posterior = nn.Linear(points * size, 2 * _LATENT) if latent else None
        self.latent = nn.Linear(_LATENT, width) if latent else None

    def loss(self, backbone: Any, batch: Batch, actions_BTA: Tensor, committed: Committed | None) -> Tensor:
        """Cross-entropy of the tokens, or L1 of the control points plus the VAE's divergence.

        Control points have no rows to leave out; those that shape nothing but given rows are left out.
        """
        points = self.tokenizer.control_points(actions_BTA)
        cond, divergence = None, actions_BTA.new_zeros(())
        if self.posterior is not None and self.latent is not None:
            mean, log_variance = self.posterior(self.tokenizer.normalise(points).flatten(1)).chunk(2, -1)
            cond = self.latent(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
            divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(-1).mean()
        out = self._out(backbone, backbone.encode(batch), committed, len(batch), cond)
        weights = free_tokens(actions_BTA, committed, self.tokenizer.influence())
        if self.discrete:
            losses = F.cross_entropy(out.transpose(1, 2), self.tokenizer.quantise(points), reduction="none")
            return weighted_mean(losses.reshape(points.shape), weights)
        error = weighted_mean((out - self.tokenizer.normalise(points)).abs(), weights)
        return error + _KL_WEIGHT * divergence

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """No randomness."""
        return {}

    def decode(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> Tensor:
        """A chunk float [B, T, A] in [-1, 1]."""
        return self._chunk(self.decode_points(backbone, context, committed, batch), committed)

    def decode_tokens(
        self, backbone: Any, context: Any, committed: Committed | None, noise: dict[str, Tensor], batch: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The chunk, and its control points as tokens int64 [B, L]: nearest levels where the head regresses."""
        points = self.decode_points(backbone, context, committed, batch)
        return self._chunk(points, committed), self.tokenizer.quantise(points)

    def decode_points(self, backbone: Any, context: Any, committed: Committed | None, batch: int = 1) -> Tensor:
        """The control points float [B, N, A] behind the chunk."""
        cond = None
        if self.latent is not None:
            cond = self.latent(torch.zeros(batch, _LATENT, device=self.queries.device, dtype=self.queries.dtype))
        out = self._out(backbone, context, committed, batch, cond)
        if self.discrete:
            return self.tokenizer.dequantise(out.argmax(-1), checked=False)
        return self.tokenizer.denormalise(out)

    def _chunk(self, points_BNA: Tensor, committed: Committed | None) -> Tensor:
        return keep_committed(self.tokenizer.rows_of(points_BNA).clamp(-1, 1), committed)

    def _out(self, backbone: Any, context: Any, committed: Committed | None, batch: int, cond: Tensor | None) -> Tensor:
        slots = torch.cat([self.prefix(committed, batch), self.queries.expand(batch, -1, -1)], dim=1)
        hidden = backbone.step(context, slots, cond_BD=cond)
        return self.out(hidden[:, -self.num_slots :]).float()  # type: ignore[no-any-return]
