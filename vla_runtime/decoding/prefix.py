"""A prefix that sees the slots, kept over rounds all the same: an approximation with refreshes.

Where the prefix of a sequence sees the slots behind it (OpenVLA-OFT's weights), its keys and values change with
every round, and each round costs the whole sequence. Between two refreshes they are taken as they were
(Fast-dLLM, arXiv 2505.22618, keeps its prompt so), and a round costs its slots alone. A backbone
whose prefix never sees slots needs none of this: `encode` keeps it exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor


class RefreshedPrefix:
    """A backbone whose steps refresh the prefix only in some rounds; in all else it is the backbone.

    refresh: rounds, from 0 on, that compute everything; the first of every decode always does. The backbone must
    offer `step_keeping`. A context that is not the one of the step before begins a decode, as does `begin`.
    """

    def __init__(self, backbone: Any, refresh: Collection[int]):
        if any(one < 0 for one in refresh):
            raise ValueError(f"decode.refresh: expected rounds from 0 on, got {sorted(refresh)}")
        self._backbone, self._refresh = backbone, frozenset(refresh) | {0}
        self._kept: Any = ()
        self._context: Any = None
        self._round = 0
        self.refreshed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def begin(self) -> None:
        """Forget the decode before; the next step is round 0."""
        self._kept, self._round, self._context = (), 0, None

    def step(
        self, context: Any, slots_BLD: Tensor, mask_LL: Tensor | None = None, cond_BD: Tensor | None = None
    ) -> Tensor:
        """As the backbone's own, in the next round."""
        if context is not self._context:
            self._context, self._round = context, 0
        fresh = self._round in self._refresh
        kept = () if fresh else self._kept
        hidden, now = self._backbone.step_keeping(context, slots_BLD, mask_LL, cond_BD, kept)
        if fresh:
            self._kept = now
            self.refreshed += 1
        self._round += 1
        return hidden  # type: ignore[no-any-return]
