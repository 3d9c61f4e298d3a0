"""BART's decoder as the network of the slots: embeddings go in instead of words, and none of them is causal by itself.

The passes here call the submodules of transformers' own decoder, so that names, weights and adapters stay the
library's, and the memory's keys and values are computed once per observation. How slots see each other is
BEAST's (arXiv 2506.06072, section 4), in two ways, because weights trained in one do not work in the other:

    bidirectional    attention as it is meant
    uniform          every slot that may be seen counts the same, whatever it says

The second is what became of the first where a mask of zeros was read as one of nothing visible: every score
drowns in the same lowest number. It knows neither images nor words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]
SLOT_ATTENTION = ("bidirectional", "uniform")


@dataclass(frozen=True, slots=True, eq=False)
class SlotContext:
    """An encoded observation. memory: keys and values [B, H, N, D / H] of the encoder's tokens, one pair a layer.

    keep_BN: which of these tokens count, bool; past: keys and values of slots that have been fixed by `extend`,
    one pair a layer; hidden_BLD: what the decoder said at the slots fixed last.
    """

    memory: tuple[KeyValue, ...]
    keep_BN: Tensor
    past: tuple[KeyValue, ...] = ()
    hidden_BLD: Tensor | None = None


class Slots:
    """The passes over a `BartDecoder`. attention: bidirectional or uniform, see the module."""

    def __init__(self, attention: str):
        if attention not in SLOT_ATTENTION:
            raise ValueError(f"slot_attention: expected one of {', '.join(SLOT_ATTENTION)}, got {attention!r}")
        self._uniform = attention == "uniform"

    def remember(self, decoder: Any, memory_BND: Tensor, keep_BN: Tensor) -> SlotContext:
        """The memory's keys and values in every layer: all that slots ever see of it."""
        return SlotContext(tuple(_keys_values(layer.encoder_attn, memory_BND) for layer in decoder.layers), keep_BN)

    def step(
        self, decoder: Any, context: SlotContext, slots_BLD: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots. ValueError for more slots than the decoder has places."""
        return self._run(decoder, context, slots_BLD, mask_LL, cond_BD)[0]

    def extend(self, decoder: Any, context: SlotContext, slots_BLD: Tensor) -> SlotContext:
        """The context with these slots fixed after those before, each seeing itself and what came before it."""
        length = slots_BLD.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=slots_BLD.device).tril()
        hidden, past = self._run(decoder, context, slots_BLD, causal, None)
        return replace(context, past=tuple(past), hidden_BLD=hidden)

    def _run(
        self, decoder: Any, context: SlotContext, slots: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden states of the slots, and the keys and values of all slots up to the last in every layer."""
        length, fixed = slots.shape[1], context.past[0][0].shape[2] if context.past else 0
        if fixed + length > decoder.max_target_positions:
            raise ValueError(
                f"slots: expected at most {decoder.max_target_positions}, the decoder's places, got {fixed + length}; "
                "shorten the chunk or take fewer tokens for it"
            )
        mask = None if mask_LL is None else F.pad(mask_LL, (fixed, 0), value=True)
        seen = context.keep_BN if cond_BD is None else F.pad(context.keep_BN, (0, 1), value=True)
        # Only the shape of the first argument is read: places go on after the fixed slots.
        places = decoder.embed_positions(slots[..., 0], fixed)
        hidden = _dropped(decoder, decoder.layernorm_embedding(slots + places))
        known = []
        for index, layer in enumerate(decoder.layers):
            own = _keys_values(layer.self_attn, hidden)
            if fixed:
                own = _joined(context.past[index], own)
            known.append(own)
            if self._uniform:
                answer = _averaged(layer.self_attn, own[1], mask, length)
            else:
                answer = _attended(layer.self_attn, hidden, own, mask)
            hidden = layer.self_attn_layer_norm(hidden + _dropped(layer, answer))
            memory = context.memory[index]
            if cond_BD is not None:
                memory = _joined(memory, _keys_values(layer.encoder_attn, cond_BD[:, None]))
            answer = _attended(layer.encoder_attn, hidden, memory, seen[:, None, None])
            hidden = layer.encoder_attn_layer_norm(hidden + _dropped(layer, answer))
            inner = layer.activation_fn(layer.fc1(hidden))
            inner = layer.fc2(F.dropout(inner, layer.activation_dropout, layer.training))
            hidden = layer.final_layer_norm(hidden + _dropped(layer, inner))
        return hidden, known


def _keys_values(attention: Any, tokens_BND: Tensor) -> KeyValue:
    return _split(attention, attention.k_proj(tokens_BND)), _split(attention, attention.v_proj(tokens_BND))


def _attended(attention: Any, slots: Tensor, known: KeyValue, mask: Tensor | None) -> Tensor:
    """mask: bool, True where a slot may look, broadcastable to [B, H, L, N]."""
    query = _split(attention, attention.q_proj(slots))
    share = attention.dropout if attention.training else 0.0
    answer = F.scaled_dot_product_attention(query, *known, attn_mask=mask, dropout_p=share, scale=attention.scaling)
    return attention.out_proj(answer.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _averaged(attention: Any, value: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """As `_attended` where all scores are the same: the mean of the values that a slot may see."""
    batch, heads, known, _ = value.shape
    seen = value.new_ones(length, known) if mask is None else mask.to(value.dtype)
    weights = (seen / seen.sum(-1, keepdim=True)).expand(batch, heads, -1, -1)
    answer = F.dropout(weights, attention.dropout, attention.training) @ value
    return attention.out_proj(answer.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _split(attention: Any, values: Tensor) -> Tensor:
    batch, length, _ = values.shape
    return values.view(batch, length, -1, attention.head_dim).transpose(1, 2)


def _joined(before: KeyValue, after: KeyValue) -> KeyValue:
    return torch.cat([before[0], after[0]], dim=2), torch.cat([before[1], after[1]], dim=2)


def _dropped(module: Any, values: Tensor) -> Tensor:
    return F.dropout(values, module.dropout, module.training)
