"""Questions of several sessions answered in one pass: the answers they would get alone, up to rounding, in less time.

A session's noise stays its own. It knows neither sockets nor whose sessions they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from policies.batch import Committed
from vla_runtime.types import ActionChunk, Float, Observation

if TYPE_CHECKING:
    from policies.session import VLASession
    from policies.vla import VLAPolicy

# Of what a policy says of its decoding: ways that keep something between the chunks of a session, or that end when
# every sample of a batch has.
_ALONE = frozenset({"warm_start", "graphs", "refresh", "confident", "deadline", "guide", "calibration"})


def can_answer_together(decode: dict[str, Any]) -> str | None:
    """Why a policy that decodes so cannot answer several sessions in one pass; None where it can."""
    found = sorted(_ALONE & set(decode))
    return f"decode.{found[0]}, which sessions use one by one" if found else None


class Together:
    """One pass over the questions of several sessions of one policy."""

    def __init__(self, policy: VLAPolicy):
        self._policy: Any = policy
        self._decode = policy.decoder()
        one, two = (policy.head.draw(count, torch.Generator()) for count in (1, 2))
        # Along which dimension the noise of several samples lies.
        self._along = {
            name: next(axis for axis, size in enumerate(one[name].shape) if size != two[name].shape[axis])
            for name in one
        }

    @torch.no_grad()
    def __call__(
        self, sessions: Sequence[VLASession], seen: Sequence[Sequence[Observation]], committed: Sequence[Float | None]
    ) -> list[ActionChunk]:
        """A chunk for each. SpecMismatch and ValueError, before any noise is drawn, for a wrong question."""
        policy = self._policy
        context, given = policy.context(policy.batch(seen)), self._given(committed)
        drawn = [session.noise() for session in sessions]
        noise = {name: torch.cat([one[name] for one in drawn], axis) for name, axis in self._along.items()}
        unit = self._decode(context, given, noise, len(sessions))
        # Rounds and their like are the pass's, which all share.
        facts = {"together": float(len(sessions)), **self._decode.facts}
        return [
            policy.chunk(unit[index], observations[-1].time, rows, facts)
            for index, (observations, rows) in enumerate(zip(seen, committed, strict=True))
        ]

    def _given(self, committed: Sequence[Float | None]) -> Committed | None:
        each = [self._policy.committed(rows) for rows in committed]
        known = next((one for one in each if one is not None), None)
        if known is None:
            return None
        none = Committed(torch.zeros_like(known.rows_BPA), torch.zeros_like(known.counts_B))
        parts = [none if one is None else one for one in each]
        return Committed(torch.cat([one.rows_BPA for one in parts]), torch.cat([one.counts_B for one in parts]))
