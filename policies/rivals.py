"""Other ways to run the shared decoder, to be measured beside it: torch's own layers, and diffusers' caches.

Each stands where a backbone would, with the same weights, so that heads decode through it as they are. Memory is
the trunk's tokens: what these implementations are given in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from policies.backbones.decoder import ActionDecoder, Context, KeyValue, Layer
from policies.backbones.nano import Nano


class TorchDecoder(nn.Module):
    """`nn.TransformerDecoder` with the weights of a nano backbone's decoder; contexts are tokens [B, N, D]."""

    name = "torch"

    def __init__(self, backbone: Nano):
        super().__init__()
        self.features = backbone.features
        self.decoder = torch_decoder(backbone.decoder).to(backbone.places.device, backbone.places.dtype)

    def remember(self, tokens_BND: Tensor) -> Tensor:
        """Nothing is computed beforehand."""
        return tokens_BND

    def step(
        self, context: Tensor, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """As a backbone's."""
        memory = context if cond_BD is None else torch.cat([context, cond_BD[:, None]], dim=1)
        return self.decoder(slots_BLD, memory)  # type: ignore[no-any-return]


def torch_decoder(decoder: ActionDecoder) -> nn.TransformerDecoder:
    """torch's decoder of the same shape, with the same weights."""
    mine = [layer for layer in decoder.layers if isinstance(layer, Layer)]
    width, heads = decoder.norm.normalized_shape[0], mine[0].self_attention.heads
    layer = nn.TransformerDecoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerDecoder(layer, len(mine), nn.LayerNorm(width)).eval().requires_grad_(False)
    for one, other in zip(mine, theirs.layers, strict=True):
        twin: Any = other
        for attention, into in ((one.self_attention, twin.self_attn), (one.cross_attention, twin.multihead_attn)):
            for name in ("weight", "bias"):
                parts = (getattr(attention.query, name), getattr(attention.key_value, name))
                getattr(into, f"in_proj_{name}").copy_(torch.cat(parts).detach())
            into.out_proj.load_state_dict(attention.out.state_dict())
        twin.linear1.load_state_dict(one.feed_forward[0].state_dict())
        twin.linear2.load_state_dict(one.feed_forward[2].state_dict())
        for norm, into in zip((one.self_norm, one.cross_norm, one.feed_norm), _norms(twin), strict=True):
            into.load_state_dict(norm.state_dict())
    last: Any = theirs.norm
    last.load_state_dict(decoder.norm.state_dict())
    return theirs


def _norms(layer: Any) -> tuple[nn.Module, ...]:
    return layer.norm1, layer.norm2, layer.norm3


@dataclass
class _Step:
    """What branches need besides the hidden states; set before every step."""

    memory: Sequence[KeyValue] = ()
    time: Tensor | None = None


class _Branch(nn.Module):
    """One residual branch, its norm included, as a module of its own."""

    def __init__(self, run: Callable[[Tensor], Tensor]):
        super().__init__()
        self._run = run

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self._run(hidden_states)


class _Block(nn.Module):
    """A layer in the form that diffusers' hooks know: hidden states in, hidden states out."""

    def __init__(self, layer: Layer, index: int, step: _Step):
        super().__init__()

        def attend(slots: Tensor) -> Tensor:
            normed = layer.self_norm(slots)
            return layer.self_attention(normed, layer.self_attention.keys_values(normed))  # type: ignore[no-any-return]

        def cross(slots: Tensor) -> Tensor:
            key, value = step.memory[index]
            if step.time is not None:
                of_time = layer.cross_attention.keys_values(step.time[:, None])
                key, value = torch.cat([key, of_time[0]], 2), torch.cat([value, of_time[1]], 2)
            return layer.cross_attention(layer.cross_norm(slots), (key, value))  # type: ignore[no-any-return]

        self.attn1, self.attn2 = _Branch(attend), _Branch(cross)
        self.ff = _Branch(lambda slots: layer.feed_forward(layer.feed_norm(slots)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        for branch in (self.attn1, self.attn2, self.ff):
            hidden_states = hidden_states + branch(hidden_states)
        return hidden_states


class DiffusersCache(nn.Module, CacheMixin):
    """A nano backbone whose decoder runs under one of diffusers' caches.

    kind: "first_block" (threshold: of the relative change of the first layer's residual, above which the others run)
    or "taylorseer" (interval: steps from one full one to the next; branches are extrapolated between). `begin` before
    every decode. ValueError for another kind.
    """

    name = "diffusers"

    def __init__(self, backbone: Nano, kind: str, *, threshold: float = 0.05, interval: int = 10):
        super().__init__()
        self.features, self.remember = backbone.features, backbone.remember
        self._step = _Step()
        self._norm = backbone.decoder.norm
        layers = [layer for layer in backbone.decoder.layers if isinstance(layer, Layer)]
        self.blocks = nn.ModuleList(_Block(layer, index, self._step) for index, layer in enumerate(layers))
        config: Any
        kinds: Any = diffusers
        if kind == "first_block":
            TransformerBlockRegistry.register(_Block, TransformerBlockMetadata(return_hidden_states_index=0))
            config = kinds.FirstBlockCacheConfig(threshold)
        elif kind == "taylorseer":
            config = kinds.TaylorSeerCacheConfig(
                interval, cache_identifiers=[r"blocks\.\d+\.(attn1|attn2|ff)"], taylor_factors_dtype=torch.float32
            )
        else:
            raise ValueError(f"cache: expected first_block or taylorseer, got {kind!r}")
        self.enable_cache(config)

    def begin(self) -> None:
        """Forget the decode before."""
        self._reset_stateful_cache()

    def step(
        self, context: Context, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """As a backbone's."""
        self._step.memory, self._step.time = context.memory, cond_BD
        with self.cache_context("decode"):
            for block in self.blocks:
                slots_BLD = block(slots_BLD)
        return self._norm(slots_BLD)  # type: ignore[no-any-return]
