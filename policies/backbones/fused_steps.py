"""The action decoder's branches one by one, for a decode whose sums, norms and sampler run as row operations.

A branch takes normed slots and writes its output where the decode keeps it. Keys and values of the context lie in one
buffer with a lane for each step that computes branches, since a step's time token is the last of them: filling all
lanes is one copy an observation, and no step copies anything. Where that would take too much memory there is one lane,
and each such step copies its token. Which branches run, and what is added where, is the decode's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from policies.backbones.decoder import ActionDecoder, Context
from policies.backbones.prepared_steps import Linear, Product, laid_out
from vla_runtime.decoding.row_kernels import RowNorm

# Memory that lanes may take, in bytes.
_MOST = 256 * 2**20


class FusedSteps:
    """Branches of `decoder` for a decode of K steps with the K tokens cond_KD as their times, or for single passes
    without a time where that is None. It belongs to one decode.

    norms: of every branch, in the order in which they run; last_norm: the decoder's.
    """

    def __init__(self, decoder: ActionDecoder, cond_KD: Tensor | None):
        self._layers = laid_out(decoder)
        self._times: Tensor | None = None
        if cond_KD is not None:
            self._times = torch.stack([torch.stack(pair) for pair in decoder.remember_times(cond_KD)])
        self.norms = [
            RowNorm(norm.weight, norm.bias, norm.eps)
            for layer in self._layers
            for norm in (layer.self_norm, layer.cross_norm, layer.feed_norm)
        ]
        self.last_norm = RowNorm(decoder.norm.weight, decoder.norm.bias, decoder.norm.eps)
        # Keys and values [lanes, layers, 2, B, H, N + 1, D / H], for every shape and choice of steps.
        self._buffers: dict[tuple[object, ...], Tensor] = {}
        self._memory = torch.empty(0)
        self._lanes: dict[int, int] | None = None

    def twin(self) -> FusedSteps:
        """The same branches with buffers of their own."""
        other = copy(self)
        other._buffers = {}
        return other

    def begin(self, context: Context, steps: Sequence[int]) -> None:
        """Take over an observation's context for a decode whose branches are computed at `steps`."""
        pairs = context.joined
        if pairs is None:
            pairs = torch.stack([torch.stack(pair) for pair in context.pairs])
        if self._times is None:
            self._memory, self._lanes = pairs[None], None
            return
        layers, _, batch, heads, tokens, size = pairs.shape
        lane = layers * 2 * batch * heads * (tokens + 1) * size * pairs.element_size()
        apart = len(steps) * lane <= _MOST
        key = (tuple(steps) if apart else None, *pairs.shape)
        if key not in self._buffers:
            made = pairs.new_empty(len(steps) if apart else 1, layers, 2, batch, heads, tokens + 1, size)
            if apart:
                for index, step in enumerate(steps):
                    made[index, ..., -1:, :] = self._token(step)
            self._buffers[key] = made
        self._memory = self._buffers[key]
        self._lanes = {step: index for index, step in enumerate(steps)} if apart else None
        self._memory[..., :-1, :].copy_(pairs)

    def start(self, step: int) -> None:
        """Go on to a step that computes branches."""
        if self._lanes is None and self._times is not None:
            self._memory[0, ..., -1:, :] = self._token(step)

    def compute(self, branch: int, step: int, normed: Tensor, output: Tensor) -> None:
        """Write the output [B, L, D] of a branch at this step. normed: the slots [B, L, D] behind its norm."""
        layer, kind = self._layers[branch // 3], branch % 3
        batch, length, width = normed.shape
        if kind == 2:
            write(layer.down, F.gelu(layer.up(normed)), output)
            return
        if kind == 0:
            parts = [product(normed) for product in layer.qkv]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
            query, key, value = joined.view(batch, length, 3, layer.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        else:
            query = layer.query(normed).view(batch, length, layer.heads, -1).transpose(1, 2)
            key, value = self._memory[0 if self._lanes is None else self._lanes[step], branch // 3].unbind()
        answer = F.scaled_dot_product_attention(query, key, value)
        product = layer.self_out if kind == 0 else layer.cross_out
        write(product, answer.transpose(1, 2).reshape(batch, length, width), output)

    def _token(self, step: int) -> Tensor:
        """A step's time token in every layer [layers, 2, 1, H, 1, D / H], for all samples alike."""
        assert self._times is not None
        return self._times[:, :, step, None]


def write(product: Product, values: Tensor, output: Tensor) -> None:
    """Write a product of values [B, L, _] to `output` [B, L, D], without another tensor between."""
    if isinstance(product, Linear):
        rows = values.flatten(0, 1)
        torch.addmm(product.bias, rows, product.weight.t(), out=output.view(rows.shape[0], -1))
    else:
        output.copy_(product(values))
