"""Llama as the network of the slots: a prefix in front, slots behind it, and two ways for them to see each other.

`PrefixLM` lets the prefix see itself and never the slots, so its keys and values are computed once per
observation and reused exactly. `Oft` is OpenVLA-OFT's way (arXiv 2502.19645, section 4.1), which weights trained
by it need: everything sees everything, so every step computes the whole sequence again. A place in the
sequence (for rotary embedding) counts kept positions only: padding never changes anything. It knows neither
images nor words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """Sizes of a Llama; by default those of OpenVLA. feed: width inside a feed-forward network; vocabulary: rows."""

    width: int = 4096
    feed: int = 11008
    depth: int = 32
    heads: int = 32
    key_value_heads: int = 32
    vocabulary: int = 32064
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def llama(self) -> LlamaConfig:
        """The same as transformers say it."""
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.feed,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            rms_norm_eps=self.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
        )


@dataclass(frozen=True, slots=True, eq=False)
class SlotContext:
    """An encoded observation. keep_BN: which positions of the prefix count, bool.

    prefix_BND: its embeddings, with Oft; memory: keys and values of the prefix and of fixed slots in every
    layer, with PrefixLM; fixed: how many slots are fixed; hidden_BLD: what was said at the slots fixed last.
    """

    keep_BN: Tensor
    prefix_BND: Tensor | None = None
    memory: tuple[KeyValue, ...] = ()
    fixed: int = 0
    hidden_BLD: Tensor | None = None


def make_language(config: LanguageConfig) -> LlamaForCausalLM:
    """An untrained language model."""
    model = LlamaForCausalLM(config.llama())
    # Masks here are True where one may look; another implementation would add them to its scores.
    model.set_attn_implementation("sdpa")
    return model


class PrefixLM:
    """Slots see the prefix, what is fixed, and each other as the mask says; the prefix sees all of itself.

    The hidden state of a slot is the one at the slot. The first place behind the prefix is `cond_BD`'s, also
    when there is none, so that a slot's place does not depend on it; it sees the prefix and what is fixed.
    """

    def remember(self, llama: Any, prefix_BND: Tensor, keep_BN: Tensor) -> SlotContext:
        """The prefix's keys and values: all that slots ever see of it."""
        mask = keep_BN[:, None].expand(-1, keep_BN.shape[1], -1)
        _, memory = _run(llama, prefix_BND, _places(keep_BN), mask, ())
        return SlotContext(keep_BN, memory=memory)

    def step(
        self, llama: Any, context: SlotContext, slots_BLD: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None
    ) -> Tensor:
        """Hidden states [B, L, D] at the slots."""
        return self._read(llama, context, slots_BLD, mask_LL, cond_BD)[0]

    def extend(self, llama: Any, context: SlotContext, slots_BLD: Tensor) -> SlotContext:
        """The context with these slots fixed after those before, each seeing itself and what came before it."""
        length = slots_BLD.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=slots_BLD.device).tril()
        hidden, memory = self._read(llama, context, slots_BLD, causal, None)
        return replace(context, memory=memory, fixed=context.fixed + length, hidden_BLD=hidden)

    def _read(
        self, llama: Any, context: SlotContext, slots: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        batch, length, _ = slots.shape
        before = context.keep_BN.sum(1, keepdim=True)
        places = before + 1 + context.fixed + torch.arange(length, device=slots.device)
        among = torch.ones(length, length, dtype=torch.bool, device=slots.device) if mask_LL is None else mask_LL
        if cond_BD is not None:
            slots = torch.cat([cond_BD[:, None], slots], dim=1)
            places = torch.cat([before, places], dim=1)
            # A column that every slot sees, then the token's own row, in which it sees itself alone.
            among = F.pad(F.pad(among, (1, 0), value=True), (0, 0, 1, 0), value=False)
            among[0, 0] = True
        known = F.pad(context.keep_BN, (0, context.fixed), value=True)
        rows = len(among)
        mask = torch.cat([known[:, None].expand(-1, rows, -1), among.expand(batch, -1, -1)], dim=2)
        hidden, memory = _run(llama, slots, places, mask, context.memory)
        return hidden[:, rows - length :], memory


class Oft:
    """Every kept position sees every other. stop_id: token behind the slots; cond_place: where `cond_BD` goes.

    The hidden state of a slot is the one at the position before it (the prefix's last for slot 0), because
    training shifts labels as in causal models. `cond_BD` stands inside the prefix, in front of the prompt,
    where OFT puts its denoising time. The last position of the prefix must be kept.
    """

    def __init__(self, stop_id: int, cond_place: int):
        self.stop_id, self.cond_place = stop_id, cond_place

    def remember(self, llama: Any, prefix_BND: Tensor, keep_BN: Tensor) -> SlotContext:
        """The embeddings: the prefix sees slots, so nothing further can be computed without them."""
        return SlotContext(keep_BN, prefix_BND)

    def step(
        self, llama: Any, context: SlotContext, slots_BLD: Tensor, mask_LL: Tensor | None, cond_BD: Tensor | None
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots. ValueError for a mask."""
        return self.step_keeping(llama, context, slots_BLD, mask_LL, cond_BD)[0]

    def step_keeping(
        self,
        llama: Any,
        context: SlotContext,
        slots_BLD: Tensor,
        mask_LL: Tensor | None,
        cond_BD: Tensor | None,
        kept: tuple[KeyValue, ...] = (),
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """As `step`, and the prefix's keys and values in every layer, all but its last position's.

        kept: such keys and values of an earlier step, to be taken for this one's, though these slots are others:
        an approximation. The last position is where slot 0 is read, so it is computed in any case.
        """
        if mask_LL is not None:
            raise ValueError("attention oft: expected no mask among slots, got one; everything sees everything there")
        assert context.prefix_BND is not None
        prefix, keep, place = context.prefix_BND, context.keep_BN, self.cond_place
        if cond_BD is not None:
            prefix = torch.cat([prefix[:, :place], cond_BD[:, None], prefix[:, place:]], dim=1)
            keep = torch.cat([keep[:, :place], torch.ones_like(keep[:, :1]), keep[:, place:]], dim=1)
        length, last = slots_BLD.shape[1], prefix.shape[1] - 1
        stop = llama.embed_tokens(torch.full((len(prefix), 1), self.stop_id, device=prefix.device))
        tokens = torch.cat([prefix, slots_BLD, stop], dim=1)
        keep = F.pad(keep, (0, length + 1), value=True)
        first = last if kept else 0
        mask = keep[:, None].expand(-1, keep.shape[1] - first, -1)
        hidden, memory = _run(llama, tokens[:, first:], _places(keep)[:, first:], mask, kept)
        at = last - first
        return hidden[:, at : at + length], tuple((key[:, :, :last], value[:, :, :last]) for key, value in memory)

    def extend(self, llama: Any, context: SlotContext, slots_BLD: Tensor) -> SlotContext:
        """ValueError: what is fixed would have to stay, but here it sees the slots that are not."""
        raise ValueError(
            "attention oft: expected decoding in parallel, got slots to fix one after another; "
            "a head that fixes slots (autoregressive) needs attention=prefix_lm"
        )


class _Joined:
    """Stands for transformers' cache: puts earlier keys and values in front of a layer's own, and keeps the result."""

    def __init__(self, before: tuple[KeyValue, ...]):
        self.before = before
        self.joined: dict[int, KeyValue] = {}

    def update(self, key: Tensor, value: Tensor, layer: int) -> KeyValue:
        if self.before:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.before[layer], (key, value), strict=True))
        self.joined[layer] = (key, value)
        return key, value


def _run(
    llama: Any, tokens_BLD: Tensor, places_BL: Tensor, mask_BLN: Tensor, before: tuple[KeyValue, ...]
) -> tuple[Tensor, tuple[KeyValue, ...]]:
    """Llama's layers and last norm; the keys and values of `before` and of these tokens, rotated, in every layer.

    The layers are called one by one, because the model's own forward would write into the memory it is given.
    """
    joined = _Joined(before)
    turns = llama.rotary_emb(tokens_BLD, position_ids=places_BL)
    for layer in llama.layers:
        tokens_BLD = layer(
            tokens_BLD, attention_mask=mask_BLN[:, None], position_embeddings=turns, past_key_values=joined
        )
    return llama.norm(tokens_BLD), tuple(joined.joined[index] for index in range(len(llama.layers)))


def _places(keep: Tensor) -> Tensor:
    """Places counted over kept positions, int64 [B, N]; padding has some place that nobody asks for."""
    return (keep.cumsum(1) - 1).clamp_min(0)
