"""From an observation to a chunk in one call, one operation after another; `policies.captured` does it as one graph.

What follows from an instruction alone is encoded when it changes, which it does once an episode. Knows neither contract
units nor where noise comes from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from policies.batch import Batch, Committed
from policies.decoders import Decoder, MaskedDecoder
from vla_runtime.decoding.graphs import CapturedBackbone
from vla_runtime.decoding.guidance import Guide

# Instructions whose tokens are kept.
_INSTRUCTIONS = 64


class ChunkDecoder(Protocol):
    """Decodes one chunk after another, from observations on."""

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        ...

    def begin(self, deadline: float | None) -> None:
        """The observation of the next chunk is here. deadline: seconds from now within which it is of use."""
        ...

    def __call__(
        self,
        batch: Batch,
        committed: Committed | None,
        noise: dict[str, Tensor],
        warm: Tensor | None = None,
        first: int = 0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Rows float [B, T, A] in [-1, 1]. warm: a guess of them to begin with at step `first`; guide: what they are
        drawn to.
        """
        ...


class TextCache:
    """A backbone's `encode_text`, kept for the last instructions; its weights must not change meanwhile."""

    def __init__(self, backbone: Any):
        self._backbone = backbone
        self._known: OrderedDict[tuple[str, ...], tuple[Tensor, ...]] = OrderedDict()
        self._lock = Lock()

    @torch.no_grad()
    def __call__(self, instructions: Sequence[str]) -> tuple[Tensor, ...]:
        """Tensors of B instructions. ValueError as the backbone's."""
        key = tuple(instructions)
        with self._lock:
            if key not in self._known:
                self._known[key] = self._backbone.encode_text(instructions)
                while len(self._known) > _INSTRUCTIONS:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]


class EagerChunks:
    """A backbone's passes and a decoder, one operation after another."""

    def __init__(self, backbone: Any, text: TextCache, decoder: Decoder):
        self._backbone, self._text, self._decode = backbone, text, decoder

    @property
    def facts(self) -> dict[str, float]:
        """As the decoder's."""
        return self._decode.facts

    def begin(self, deadline: float | None) -> None:
        """As `ChunkDecoder`."""
        if isinstance(self._decode, MaskedDecoder):
            self._decode.begin(deadline)

    def __call__(
        self,
        batch: Batch,
        committed: Committed | None,
        noise: dict[str, Tensor],
        warm: Tensor | None = None,
        first: int = 0,
        guide: Guide | None = None,
    ) -> Tensor:
        device = next(self._backbone.parameters()).device
        context = context_of(self._backbone, self._text, batch.to(device))
        committed = None if committed is None else committed.to(device)
        noise = {name: value.to(device, non_blocking=True) for name, value in noise.items()}
        if guide is not None:
            return self._decode(context, None, noise, len(batch), None, 0, guide)
        if warm is not None:
            return self._decode(context, committed, noise, len(batch), warm, first)
        return self._decode(context, committed, noise, len(batch))


def context_of(backbone: Any, text: TextCache, batch: Batch) -> Any:
    """What a decoder is given of B samples."""
    encoded = text(batch.instructions)
    if isinstance(backbone, CapturedBackbone):
        return backbone.context(batch.images, batch.state_BS, *encoded)
    return backbone.remember(*backbone.encode_scene(batch.images, batch.state_BS, *encoded))
