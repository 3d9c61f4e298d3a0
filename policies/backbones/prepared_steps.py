"""The action decoder's steps with all that can be known beforehand laid out: what a prepared decode runs.

The same sums as `ActionDecoder.step`, up to rounding: a step's time token has its keys and values already, query, key
and value of self-attention are one product, weights lie as the processor multiplies them fastest, and no module is
called. Which branches run is a cache's to say. Weights are laid out once for every decoder that uses them, as they are
when it is made; layers of a kind of their own (adapters, eight bits) are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from policies.backbones.decoder import ActionDecoder, Context, KeyValue, Layer
from vla_runtime.decoding.feature_cache import FeatureCache

Branch = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer without its module."""

    weight: Tensor
    bias: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return F.linear(values, self.weight, self.bias)


class Norm(NamedTuple):
    """A layer norm without its module."""

    shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.LayerNorm) -> Norm:
        """Of a module."""
        return cls(norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def __call__(self, values: Tensor) -> Tensor:
        return F.layer_norm(values, *self)


class LaidOut(NamedTuple):
    """A layer's parts in the order in which they run. qkv: one product, or several where weights cannot be joined."""

    heads: int
    self_norm: Norm
    qkv: tuple[Product, ...]
    self_out: Product
    cross_norm: Norm
    query: Product
    cross_out: Product
    feed_norm: Norm
    up: Product
    down: Product

    @classmethod
    def of(cls, layer: Layer) -> LaidOut:
        """Of a module."""
        mine, other = layer.self_attention, layer.cross_attention
        up, _, down = layer.feed_forward
        return cls(
            mine.heads, Norm.of(layer.self_norm), joined(mine.query, mine.key_value), laid(mine.out),
            Norm.of(layer.cross_norm), laid(other.query), laid(other.out), Norm.of(layer.feed_norm),
            laid(up), laid(down),
        )  # fmt: skip

    def attend_self(self, slots: Tensor) -> Tensor:
        """Self-attention among the slots, its norm included."""
        batch, length, width = slots.shape
        normed = self.self_norm(slots)
        parts = [product(normed) for product in self.qkv]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        query, key, value = joined.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        return self.self_out(_attended(query, key, value, width))

    def attend_context(self, memory: Callable[[], KeyValue], slots: Tensor) -> Tensor:
        """Cross-attention to the memory, its norm included."""
        batch, length, width = slots.shape
        query = self.query(self.cross_norm(slots)).view(batch, length, self.heads, -1).transpose(1, 2)
        return self.cross_out(_attended(query, *memory(), width))

    def feed(self, slots: Tensor) -> Tensor:
        """The feed-forward network, its norm included."""
        return self.down(F.gelu(self.up(self.feed_norm(slots))))


class PreparedSteps:
    """Steps of one decode after another, each with its own time as one more memory token. It belongs to one session.

    cond_KD: the K tokens that `step` of the decoder would be given as cond. cache: which branches run, None for all.
    """

    def __init__(self, decoder: ActionDecoder, cond_KD: Tensor, cache: FeatureCache | None = None):
        self._shared = laid_out(decoder), decoder.remember_times(cond_KD), Norm.of(decoder.norm)
        self._prepare(cache)

    def _prepare(self, cache: FeatureCache | None) -> None:
        layers, times, self._norm = self._shared
        self.cache, self._memory = cache, _Memory(times)
        self._branches: list[Branch] = []
        for index, layer in enumerate(layers):
            memory = partial(self._memory.layer, index)
            self._branches += [layer.attend_self, partial(layer.attend_context, memory), layer.feed]

    def twin(self, cache: FeatureCache | None) -> PreparedSteps:
        """Steps of the same weights and times for another session, without laying anything out anew."""
        other = copy(self)
        other._prepare(cache)
        return other

    def begin(self, context: Context, first: int = 0, full: bool = False) -> None:
        """Take over an observation's context; the next step is step `first`. full: reuse nothing, whatever the plan."""
        self._memory.fill(context.pairs)
        if self.cache is not None:
            self.cache.reset(first, full)

    def step(self, k: int, slots_BLD: Tensor, rows: int) -> Tensor:
        """Hidden states [B, rows, D] of the last `rows` slots, at step k."""
        self._memory.step = k
        cache, slots = self.cache, slots_BLD
        if cache is None:
            for branch in self._branches:
                slots = slots + branch(slots)
            return self._norm(slots[:, -rows:])
        cache.advance()
        if cache.idle:
            return self._norm((slots + cache.total())[:, -rows:])
        for index, branch in enumerate(self._branches):
            kept = cache.kept(index) if cache.reuses(index) else cache.branch(index, partial(branch, slots))
            slots = slots + kept
        return self._norm(slots[:, -rows:])


class _Memory:
    """Keys and values of all layers, the last of each of another token at every step. times: those of the K tokens,
    [K, H, 1, D / H], one pair a layer. A layer's is written when it is asked for: one that is not run costs nothing.
    """

    def __init__(self, times: Sequence[KeyValue]):
        # Taken apart: an index into a tensor costs more than the copy.
        self._times = [tuple(zip(key.unbind(), value.unbind(), strict=True)) for key, value in times]
        self._kept: list[KeyValue] = []
        # Where the last token of each buffer lies.
        self._last: list[KeyValue] = []
        self.step = 0

    def layer(self, index: int) -> KeyValue:
        for last, token in zip(self._last[index], self._times[index][self.step], strict=True):
            last.copy_(token)
        return self._kept[index]

    def fill(self, memory: Sequence[KeyValue]) -> None:
        """Take over an observation's keys and values. Buffers are made once for every shape."""
        old = self._kept[0][0].shape if self._kept else ()
        new = memory[0][0].shape
        if old != (*new[:2], new[2] + 1, new[3]):
            # Filled with the token of the first step, so that shape, type and device are right.
            self._kept = [
                (torch.cat([one[0], key.expand(new[0], -1, -1, -1)], 2),
                 torch.cat([one[1], value.expand(new[0], -1, -1, -1)], 2))
                for one, ((key, value), *_) in zip(memory, self._times, strict=True)
            ]  # fmt: skip
            self._last = [(key[:, :, -1:], value[:, :, -1:]) for key, value in self._kept]
            return
        for mine, theirs in zip(self._kept, memory, strict=True):
            for buffer, values in zip(mine, theirs, strict=True):
                buffer[:, :, :-1] = values


def _attended(query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
    answer = F.scaled_dot_product_attention(query, key, value)
    return answer.transpose(1, 2).reshape(len(answer), -1, width)


# The layers of a decoder as they were laid out, and of which weights.
_known: WeakKeyDictionary[ActionDecoder, tuple[list[float], list[LaidOut]]] = WeakKeyDictionary()


@torch.no_grad()
def laid_out(decoder: ActionDecoder) -> list[LaidOut]:
    """The layers, laid out once for as long as their weights are the same."""
    layers = [layer for layer in decoder.layers if isinstance(layer, Layer)]
    if not all(_plain(one) for one in decoder.modules() if isinstance(one, nn.Linear) or hasattr(one, "base_layer")):
        return [LaidOut.of(layer) for layer in layers]
    # By their values: not all that changes a tensor counts its version. Read at once, since a GPU is waited for.
    sums = [total for one in decoder.parameters() for total in (one.double().sum(), one.double().square().sum())]
    weights: list[float] = torch.stack(sums).tolist()
    known = _known.get(decoder)
    if known is None or known[0] != weights:
        known = _known[decoder] = weights, [LaidOut.of(layer) for layer in layers]
    return known[1]


def _plain(linear: nn.Module) -> bool:
    return type(linear) is nn.Linear and not is_traceable_wrapper_subclass(linear.weight)


def joined(*linear: nn.Linear) -> tuple[Product, ...]:
    """Linear layers of the same input as one, where they can be."""
    if not all(_plain(one) for one in linear):
        return tuple(linear)
    weight, bias = (torch.cat([getattr(one, name) for one in linear]) for name in ("weight", "bias"))
    return (Linear(_as_multiplied(weight), bias),)


def laid(linear: nn.Module) -> Product:
    """A linear layer without its module, where its weight is a plain tensor."""
    if not _plain(linear):
        return linear
    assert isinstance(linear, nn.Linear)
    return Linear(_as_multiplied(linear.weight.data), linear.bias)


def _as_multiplied(weight: Tensor) -> Tensor:
    """The same weight [out, in], with columns next to each other in memory where a processor multiplies by it in fp32:
    a few rows times it are up to a third faster.
    """
    apart = weight.device.type == "cpu" and weight.dtype == torch.float32
    return weight.t().contiguous().t() if apart else weight
