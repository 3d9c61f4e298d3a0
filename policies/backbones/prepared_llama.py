"""Llama's layers laid out for inference: fewer and wider products, the rest fused, keys and values written in place.

The counterpart of `prepared_steps` for a language model. Queries, keys and values are one product, the gate and what it
gates another; their weights lie behind each other in one tensor, of which the network's own weights become views, so
that nothing is kept twice and checkpoints and the network itself read the same numbers. Attention has no mask: each
group of rows sees the keys from the first to one that the caller names, which must all count. The network's own layers
are the reference. It knows neither images nor slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from policies.fp8 import Fp8Linear, fp8_product
from vla_runtime.decoding import llama_kernels, triton_kernels

# Rows, from the first to before the last, and how many keys they see.
Group = tuple[int, int, int]
# What a product takes: rows, or rows in eight bits and their scales.
Rows = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class _Weight:
    """weight [out, in]; scale: of its rows, where it is in eight bits; parts: the network's own, views of it."""

    weight: Tensor
    scale: Tensor | None
    parts: tuple[nn.Linear, ...]

    @classmethod
    def of(cls, *linear: nn.Linear) -> _Weight:
        kinds = {type(one) for one in linear}
        if kinds == {Fp8Linear}:
            scale: Any = _joined(linear, "scale")
            return cls(_joined(linear, "weight"), scale, linear)
        if kinds != {nn.Linear} or any(is_traceable_wrapper_subclass(one.weight) for one in linear):
            got = sorted({f"{type(one).__name__} of {type(one.weight).__name__}" for one in linear})
            raise ValueError(
                f"prepared inference: expected plain linear layers, in fp32, bf16 or fp8, got {got}; "
                "load a checkpoint in which adapters have been added in, and not in int8, which saves memory only"
            )
        assert all(one.bias is None for one in linear)
        return cls(_joined(linear, "weight"), None, linear)

    def whole(self) -> bool:
        """Whether the network's own weights are still those."""
        return all(_storage(one.weight) == _storage(self.weight) for one in self.parts)

    def product(self, rows: Rows, batch: int, dtype: torch.dtype) -> Tensor:
        """[B, R, out]."""
        if self.scale is None:
            assert isinstance(rows, Tensor)
            return F.linear(rows, self.weight)
        values, scale = rows
        return fp8_product(values, scale, self.weight, self.scale, None, dtype).view(batch, -1, len(self.weight))


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: nn.Module
    qkv: _Weight
    out: _Weight
    feed_norm: nn.Module
    gate_up: _Weight
    down: _Weight


class PreparedLlama:
    """Layers and last norm of a transformers' Llama. places: one more than the highest place of a row.

    The network must not be moved, cast or otherwise given other weights afterwards. ValueError for adapters and for
    weights that are kept in int8.
    """

    def __init__(self, llama: Any, places: int):
        config = llama.config
        self._heads = config.num_attention_heads
        self._kept = config.num_key_value_heads
        self._eps = config.rms_norm_eps
        self._norm: Any = llama.norm
        self._layers = [
            _Layer(
                layer.input_layernorm,
                _Weight.of(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
                _Weight.of(layer.self_attn.o_proj),
                layer.post_attention_layernorm,
                _Weight.of(layer.mlp.gate_proj, layer.mlp.up_proj),
                _Weight.of(layer.mlp.down_proj),
            )
            for layer in llama.layers
        ]
        turns = torch.outer(torch.arange(places, device=llama.norm.weight.device), llama.rotary_emb.inv_freq.float())
        scaling = llama.rotary_emb.attention_scaling
        self._cos, self._sin = turns.cos() * scaling, turns.sin() * scaling
        self._size = 2 * turns.shape[1]
        triton_kernels.announce(turns.device)

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self._layers)

    def memory(self, like_BRD: Tensor, length: int, depth: int | None = None) -> Tensor:
        """Room for keys and values, [depth, 2, B, K, length, E]; depth: all layers, each its own, by default."""
        sizes = (self.depth if depth is None else depth, 2, len(like_BRD), self._kept, length, self._size)
        return like_BRD.new_empty(sizes)

    def places(self, *ranges: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines float [R, E / 2] of the places in `ranges`, each from its first to before its last."""
        tables = [[table[first:last] for first, last in ranges] for table in (self._cos, self._sin)]
        cos, sin = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in tables)
        return cos, sin

    def require_whole(self) -> None:
        """ValueError where the network has other weights by now than when it was laid out."""
        for layer in self._layers:
            if not all(one.whole() for one in (layer.qkv, layer.out, layer.gate_up, layer.down)):
                raise ValueError(
                    "prepared inference: expected the weights that were laid out, got a network that was moved or cast "
                    "since; ask the backbone for prepared_inference() again"
                )

    def run(
        self, tokens_BRD: Tensor, turns: tuple[Tensor, Tensor], memory: Tensor, first: int, groups: Sequence[Group]
    ) -> Tensor:
        """Hidden states [B, R, D] behind the last norm. tokens_BRD: written over.

        turns: `places` of the rows; memory: as `memory`, in which the rows' keys and values are written from `first` on
        (one layer deep, it serves all layers in turn); groups: which rows see which keys, in order, all of them.
        """
        hidden, batch, dtype = tokens_BRD, len(tokens_BRD), tokens_BRD.dtype
        added: Tensor | None = None
        for index, layer in enumerate(self._layers):
            kept = memory[index % len(memory)]
            rows = self._normed(hidden, added, layer.attention_norm, layer.qkv)
            query = llama_kernels.rope_write(layer.qkv.product(rows, batch, dtype), *turns, kept, self._heads, first)
            answer = self._attended(query, kept, groups)
            rows = answer if layer.out.scale is None else llama_kernels.quantise_rows(answer)
            added = layer.out.product(rows, batch, dtype)
            rows = self._normed(hidden, added, layer.feed_norm, layer.gate_up)
            both = layer.gate_up.product(rows, batch, dtype)
            gate = llama_kernels.silu_mul if layer.down.scale is None else llama_kernels.silu_mul_fp8
            added = layer.down.product(gate(both), batch, dtype)
        last: Tensor = llama_kernels.add_rms_norm(hidden, added, self._norm.weight, self._eps)
        return last

    def _normed(self, hidden: Tensor, added: Tensor | None, norm: Any, weight: _Weight) -> Rows:
        normed = llama_kernels.add_rms_norm if weight.scale is None else llama_kernels.add_rms_norm_fp8
        rows: Rows = normed(hidden, added, norm.weight, self._eps)
        return rows

    def _attended(self, query_BRHE: Tensor, kept: Tensor, groups: Sequence[Group]) -> Tensor:
        # The option is newer than the rest, and needed only here.
        shared: Any = {} if self._heads == self._kept else {"enable_gqa": True}
        answers = [
            F.scaled_dot_product_attention(
                query_BRHE[:, first:last].transpose(1, 2), kept[0, :, :, :seen], kept[1, :, :, :seen], **shared
            ).transpose(1, 2)
            for first, last, seen in groups
        ]
        return (answers[0] if len(answers) == 1 else torch.cat(answers, dim=1)).flatten(2)


@torch.no_grad()
def _joined(linear: Sequence[nn.Module], name: str) -> Tensor:
    """Tensors of this name as one, which they become views of; once they are, the same one again."""
    parts: list[Tensor] = [getattr(one, name).detach() for one in linear]
    rows = sum(len(one) for one in parts)
    if not _adjacent(parts):
        # Bytes, where there is no way to join eight-bit numbers as such.
        bits = [part.view(torch.uint8) if part.itemsize == 1 else part for part in parts]
        whole = torch.cat(bits).view(parts[0].dtype)
        for one, part in zip(linear, torch.split(whole, [len(part) for part in parts]), strict=True):
            getattr(one, name).data = part
        return whole
    return parts[0].as_strided((rows, parts[0].shape[1]), parts[0].stride(), parts[0].storage_offset())


def _adjacent(parts: Sequence[Tensor]) -> bool:
    """Whether they lie behind each other in one piece of memory."""
    at = parts[0].storage_offset()
    for part in parts:
        if _storage(part) != _storage(parts[0]) or part.storage_offset() != at or not part.is_contiguous():
            return False
        at += part.numel()
    return True


def _storage(tensor: Tensor) -> int:
    pointer: int = tensor.untyped_storage()._cdata
    return pointer
