"""The prismatic backbone for inference: the same passes with its language model laid out (`prepared_llama`).

Called as the backbone itself, which is the reference and answers everything that is not written here. Prompts are not
padded, so that nothing is masked: features have one shape for each length of a prompt. A batch whose prompts differ in
length is padded, and goes through the backbone's own masked passes. What the fused passes cannot do is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from policies.backbones.prepared_llama import Group, PreparedLlama
from policies.backbones.prismatic_slots import SlotContext
from policies.batch import Batch

if TYPE_CHECKING:
    from policies.backbones.prismatic import Prismatic


@dataclass(slots=True, eq=False)
class PreparedContext:
    """An encoded observation, for steps one after another. length: N, the tokens of its prefix.

    prefix_BND: their embeddings, where the prefix is still to be computed; memory: the prefix's keys and values, with
    room behind them that every step writes anew, [layers, 2, B, K, P, E]. With attention=oft there is no memory.
    """

    length: int
    prefix_BND: Tensor | None = None
    memory: Tensor | None = None


class PreparedPrismatic:
    """Backbone for inference; see the module. room: slots that a context has memory for from the beginning."""

    def __init__(self, backbone: Prismatic, room: int = 0):
        if room < 0:
            raise ValueError(f"room: expected a number of slots from 0 on, got {room}")
        self._backbone, self._room = backbone, room
        config = backbone.config
        self._oft = config.attention == "oft"
        longest = 1 + len(config.cameras) * backbone.vision.num_patches + config.proprio + config.max_text_tokens + 1
        # Any chunk: a place costs as much as a row of a layer's input.
        self._places = longest + max(1024, room) + 2
        self._llama = PreparedLlama(backbone.llama, self._places)
        self._stop = config.stop_id
        self._cond_place = backbone.cond_place
        self.action_ids = backbone.action_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def encode(self, batch: Batch) -> PreparedContext | SlotContext:
        """Once per observation. ValueError as the backbone's."""
        return self.remember(*self.features(batch))

    def features(self, batch: Batch) -> tuple[Tensor, ...]:
        """The prefix as embeddings float [B, N, D]; where prompts differ in length also which count, bool [B, N]."""
        return self.encode_scene(batch.images, batch.state_BS, *self.encode_text(batch.instructions))

    def encode_text(self, instructions: Sequence[str]) -> tuple[Tensor, ...]:
        """The prompts' ids int64 [B, M], without padding; where they differ in length padded, and which count."""
        ids, keep = self._backbone.prompt(instructions)
        device = self.action_ids.device
        lengths = keep.sum(1)
        if bool((lengths != lengths[0]).any()):
            return ids.to(device), keep.to(device)
        return (ids[keep].view(len(ids), -1).to(device),)

    def encode_scene(self, images: Mapping[str, Tensor], state_BS: Tensor, *text: Tensor) -> tuple[Tensor, ...]:
        """As `features`, of what `encode_text` gave. Work of the device alone. ValueError for a missing camera."""
        if len(text) > 1:
            return self._backbone.encode_scene(images, state_BS, *text)
        return (self._backbone.scene_tokens(images, state_BS, *text),)

    @torch.no_grad()
    def remember(self, prefix_BND: Tensor, keep_BN: Tensor | None = None) -> PreparedContext | SlotContext:
        """The rest of `encode`: the prefix's keys and values. keep_BN: given where prompts differ in length."""
        if keep_BN is not None:
            return self._backbone.remember(prefix_BND, keep_BN)
        context = self.postpone(prefix_BND)
        assert isinstance(context, PreparedContext)
        if not self._oft:
            count = context.length
            memory = self._llama.memory(prefix_BND, count + self._room)
            groups: list[Group] = [(0, count, count)]
            self._llama.run(_own(prefix_BND), self._llama.places((0, count)), memory, 0, groups)
            context.prefix_BND, context.memory = None, memory
        return context

    def postpone(self, prefix_BND: Tensor, keep_BN: Tensor | None = None) -> PreparedContext | SlotContext:
        """As `remember`, but the prefix is computed with the first step that is taken: the weights are read once for
        both. The context changes with that step, so it is for one decode, or one graph that holds all of it.
        """
        if keep_BN is not None:
            return self._backbone.remember(prefix_BND, keep_BN)
        self._llama.require_whole()
        return PreparedContext(prefix_BND.shape[1], prefix_BND)

    @torch.no_grad()
    def step(
        self,
        context: PreparedContext | SlotContext,
        slots_BLD: Tensor,
        mask_LL: Tensor | None = None,
        cond_BD: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] aligned with the slots; any number of times per context.

        ValueError for a mask among slots, for slots that want a gradient, and for too many of them.
        """
        if mask_LL is not None:
            raise ValueError(
                "prepared inference: expected a head without a mask among its slots, got one; decode with the backbone "
                "itself (decode.graphs=false)"
            )
        if slots_BLD.requires_grad or (cond_BD is not None and cond_BD.requires_grad):
            raise ValueError(
                "prepared inference: expected slots without a gradient, got some that want one; train, or guide, with "
                "the backbone itself"
            )
        if isinstance(context, SlotContext):
            return self._backbone.step(context, slots_BLD, None, cond_BD)
        if context.length + slots_BLD.shape[1] + 2 > self._places:
            raise ValueError(
                f"slots: expected at most {self._places - 2 - context.length} with this prompt, got "
                f"{slots_BLD.shape[1]}; ask the backbone for prepared_inference(room={slots_BLD.shape[1]})"
            )
        if self._oft:
            return self._whole_sequence(context, slots_BLD, cond_BD)
        return self._behind_prefix(context, slots_BLD, cond_BD)

    def step_keeping(self, *_: Any) -> None:
        """ValueError: a prefix that sees slots is kept by the backbone itself."""
        raise ValueError(
            "decode.refresh: expected the backbone itself, got its prepared inference, which keeps nothing"
        )

    def extend(self, *_: Any) -> None:
        """ValueError: slots are fixed one after another by the backbone itself."""
        raise ValueError(
            "prepared inference: expected decoding in parallel, got slots to fix one after another; a head that fixes "
            "slots (autoregressive) needs the backbone itself (decode.graphs=false)"
        )

    def _whole_sequence(self, context: PreparedContext, slots: Tensor, cond: Tensor | None) -> Tensor:
        """Oft: everything sees everything, and a slot is read at the position before it."""
        assert context.prefix_BND is not None
        parts, at = [context.prefix_BND], self._cond_place
        if cond is not None:
            parts = [context.prefix_BND[:, :at], cond[:, None], context.prefix_BND[:, at:]]
        stop = self._backbone.llama.embed_tokens.weight[self._stop].expand(len(slots), 1, -1)
        tokens = torch.cat([*parts, slots, stop], dim=1)
        rows = tokens.shape[1]
        # No layer needs another's keys and values.
        memory = self._llama.memory(tokens, rows, depth=1)
        hidden = self._llama.run(tokens, self._llama.places((0, rows)), memory, 0, [(0, rows, rows)])
        first = rows - slots.shape[1] - 2
        return hidden[:, first : first + slots.shape[1]]

    def _behind_prefix(self, context: PreparedContext, slots: Tensor, cond: Tensor | None) -> Tensor:
        """Prefix-LM: slots see the prefix, the time token and each other; the time token the prefix and itself."""
        count, length, told = context.length, slots.shape[1], 0 if cond is None else 1
        prefix = context.prefix_BND
        first = count if prefix is None else 0
        parts = [] if prefix is None else [prefix]
        parts += [slots] if cond is None else [cond[:, None], slots]
        tokens = torch.cat(parts, dim=1) if len(parts) > 1 else _own(slots)
        ends = count + told + length
        # The place behind the prefix is the time token's, also where there is none.
        if cond is None and prefix is None:
            turns = self._llama.places((count + 1, ends + 1))
        elif cond is None:
            turns = self._llama.places((0, count), (count + 1, ends + 1))
        else:
            turns = self._llama.places((first, ends))
        groups: list[Group] = [(0, count, count)] if prefix is not None else []
        if cond is not None:
            groups.append((count - first, count - first + 1, count + 1))
        groups.append((ends - length - first, ends - first, ends))
        memory = self._memory(context, tokens, told + length)
        hidden = self._llama.run(tokens, turns, memory, first, groups)
        context.prefix_BND, context.memory = None, memory
        return hidden[:, -length:]

    def _memory(self, context: PreparedContext, tokens: Tensor, rows: int) -> Tensor:
        memory, count = context.memory, context.length
        if memory is not None and memory.shape[4] >= count + rows:
            return memory
        larger = self._llama.memory(tokens, count + max(rows, self._room))
        if memory is not None:
            larger[..., :count, :] = memory[..., :count, :]
        return larger


def _own(tokens: Tensor) -> Tensor:
    """A copy that may be written over, its rows behind each other."""
    return tokens.clone(memory_format=torch.contiguous_format)
