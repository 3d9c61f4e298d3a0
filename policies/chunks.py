"""From a batch of observations to rows in one call, as a session asks: encoding and decoding as one.

A policy that captures graphs has a `chunk_decoder` of its own; of any other its stages are run one after another.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from policies.batch import Batch, Committed
from vla_runtime.decoding.guidance import Guide


class ChunkDecoder(Protocol):
    """Answers one batch after another; `facts` are numbers about the last chunk."""

    @property
    def facts(self) -> dict[str, float]: ...

    def __call__(
        self, batch: Any, committed: Committed | None, noise: dict[str, Tensor], warm: Tensor | None = None,
        first: int = 0, guide: Guide | None = None,
    ) -> Tensor: ...  # fmt: skip


class ByStages:
    """A policy's own context and decoder, one after the other."""

    def __init__(self, policy: Any):
        self._context, self._decoder = policy.context, policy.decoder()

    @property
    def facts(self) -> dict[str, float]:
        """Numbers about the last chunk."""
        facts: dict[str, float] = self._decoder.facts
        return facts

    def __call__(
        self, batch: Batch, committed: Committed | None, noise: dict[str, Tensor], warm: Tensor | None = None,
        first: int = 0, guide: Guide | None = None,
    ) -> Tensor:  # fmt: skip
        """Rows float [B, T, A] in [-1, 1]."""
        context = self._context(batch)
        begun = () if warm is None else (warm, first)
        if guide is not None:
            begun = (warm, first, guide)  # type: ignore[assignment]
        rows: Tensor = self._decoder(context, committed, noise, len(batch), *begun)
        return rows


def chunk_decoder(policy: Any) -> ChunkDecoder:
    """The policy's own, or its stages in order."""
    own = getattr(policy, "chunk_decoder", None)
    made: ChunkDecoder = ByStages(policy) if own is None else own()
    return made
