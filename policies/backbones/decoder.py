"""The action decoder that every head shares: the transformer of Diffusion Policy (arXiv 2303.04137, section 3.1).

Pre-norm layers of self-attention among the slots, cross-attention to the context, and a feed-forward
network; each is one residual branch. Context never sees slots, so its keys and values are computed once per
observation and reused exactly. It knows neither images nor actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vla_runtime.decoding.bac import Block, blocks_of
from vla_runtime.decoding.feature_cache import FeatureCache

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """An encoded observation. memory: keys and values [B, H, N, D / H] of the context, one pair a layer.

    past: keys and values of slots that have been fixed by `extend`, one pair a layer; hidden_BLD: what the
    decoder said at the slots fixed last. joined: the memory as one tensor [layers, 2, B, H, N, D / H], instead, where
    it was made as one; `pairs` are those of either.
    """

    memory: Sequence[KeyValue] = ()
    past: tuple[KeyValue, ...] = ()
    hidden_BLD: Tensor | None = None
    joined: Tensor | None = None

    @property
    def pairs(self) -> Sequence[KeyValue]:
        """Keys and values of the context, one pair a layer."""
        return self.memory if self.joined is None else [(pair[0], pair[1]) for pair in self.joined]


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from elsewhere, and earlier."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, tokens_BND: Tensor) -> KeyValue:
        """Keys and values [B, H, N, D / H] of tokens."""
        key, value = self.key_value(tokens_BND).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(self, slots_BLD: Tensor, keys_values: KeyValue, mask: Tensor | None = None) -> Tensor:
        """mask: bool, True where a slot may look, broadcastable to [B, H, L, N]."""
        key, value = keys_values
        answer = _attend(self._split(self.query(slots_BLD)), key, value, mask)
        return self.out(answer.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, values: Tensor) -> Tensor:
        batch, length, width = values.shape
        return values.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.requires_grad:
        # The fused kernel's backward pass is eight times slower there than three plain products.
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return torch.matmul(scores.softmax(-1), value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Layer(nn.Module):
    """Three residual branches, each behind its own norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)


class ActionDecoder(nn.Module):
    """`depth` layers and a last norm. heads: attention heads; width must be a multiple of them."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"decoder: expected a width that is a multiple of its {heads} heads, got {width}")
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def remember(self, tokens_BND: Tensor) -> Context:
        """The context's keys and values in every layer: all that slots ever see of it."""
        return Context(tuple(layer.cross_attention.keys_values(tokens_BND) for layer in self._layers()))

    def remember_times(self, cond_KD: Tensor) -> tuple[KeyValue, ...]:
        """Keys and values [K, H, 1, D / H] in every layer of K tokens that `step` would be given as cond."""
        return tuple(layer.cross_attention.keys_values(cond_KD[:, None]) for layer in self._layers())

    def step(
        self, context: Context, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots.

        mask_LL: bool, True where slot i may look at slot j (fixed slots are always seen). cond_BD: one more
        memory token, such as the embedded denoising time.
        """
        return self._run(context, slots_BLD, mask_LL, cond_BD)[0]

    def cached_step(
        self, context: Context, slots_BLD: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None, cache: FeatureCache
    ) -> Tensor:
        """As `step`, with the branches that the cache's plan does not compute now as they were."""
        if cache.idle:
            return self.norm(slots_BLD + cache.total())  # type: ignore[no-any-return]
        return self._run(context, slots_BLD, mask_LL, cond_BD, cache)[0]

    def blocks(self) -> tuple[Block, ...]:
        """The residual branches, in the order in which they run."""
        return blocks_of(len(self.layers))

    def extend(self, context: Context, slots_BLD: Tensor) -> Context:
        """The context with these slots fixed after those before, each seeing itself and what came before it."""
        length = slots_BLD.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=slots_BLD.device).tril()
        hidden, new = self._run(context, slots_BLD, causal, None)
        if context.past:
            new = [
                (torch.cat([old[0], now[0]], 2), torch.cat([old[1], now[1]], 2))
                for old, now in zip(context.past, new, strict=True)
            ]
        return replace(context, past=tuple(new), hidden_BLD=hidden)

    def costs(self, slots: int, memory: int) -> tuple[int, ...]:
        """Multiplications of every block in one step over `slots` slots and `memory` kept context tokens."""
        width = self.norm.normalized_shape[0]
        attended = slots * width * width * 4 + 2 * slots * slots * width
        crossed = slots * width * width * 2 + 2 * slots * memory * width
        return (attended, crossed, slots * width * width * 8) * len(self.layers)

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _run(
        self,
        context: Context,
        slots: Tensor,
        mask_LL: Tensor | None,
        cond_BD: Tensor | None,
        cache: FeatureCache | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        fixed = context.past[0][0].shape[2] if context.past else 0
        if mask_LL is not None and fixed:
            mask_LL = F.pad(mask_LL, (fixed, 0), value=True)
        kept: list[KeyValue] = []
        pairs = context.pairs

        def attend_self(layer: Layer, index: int, slots: Tensor) -> Tensor:
            normed = layer.self_norm(slots)
            own = layer.self_attention.keys_values(normed)
            kept.append(own)
            if fixed:
                before = context.past[index]
                own = (torch.cat([before[0], own[0]], 2), torch.cat([before[1], own[1]], 2))
            return layer.self_attention(normed, own, mask_LL)  # type: ignore[no-any-return]

        def attend_context(layer: Layer, index: int, slots: Tensor) -> Tensor:
            memory = pairs[index]
            if cond_BD is not None:
                key, value = layer.cross_attention.keys_values(cond_BD[:, None])
                memory = (torch.cat([memory[0], key], 2), torch.cat([memory[1], value], 2))
            return layer.cross_attention(layer.cross_norm(slots), memory)  # type: ignore[no-any-return]

        def feed(layer: Layer, index: int, slots: Tensor) -> Tensor:
            return layer.feed_forward(layer.feed_norm(slots))  # type: ignore[no-any-return]

        block = 0
        for index, layer in enumerate(self._layers()):
            for branch in (attend_self, attend_context, feed):
                if cache is None:
                    slots = slots + branch(layer, index, slots)
                elif cache.reuses(block):
                    slots = slots + cache.kept(block)
                else:
                    slots = slots + cache.branch(block, partial(branch, layer, index, slots))
                block += 1
        return self.norm(slots), kept
