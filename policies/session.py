"""A session of a VLAPolicy: one episode's noise, buffers, and memory of the chunk before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from policies.batch import Committed
from policies.captured import GraphChunks
from vla_runtime.decoding.guidance import Guide, soft_weights
from vla_runtime.types import ActionChunk, Float, Observation

if TYPE_CHECKING:
    from policies.vla import VLAPolicy


class VLASession:
    """One episode: a stream of noise, a decoder whose buffers are its own, and the chunk before for a warm start."""

    def __init__(self, policy: VLAPolicy, seed: int):
        self._policy = policy
        self._decode = policy.chunk_decoder()
        # Used instead where a question has a deadline that the one graph would miss: rounds that end early.
        self._timed = policy.timed_decoder()
        self._warm, self._before = policy.warm_start(), policy.before()
        self._generator = torch.Generator().manual_seed(seed)
        policy.make_ready()

    @torch.no_grad()
    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        policy: Any = self._policy
        observation = observations[-1]
        decode = self._decode
        late = deadline is not None and isinstance(decode, GraphChunks) and not decode.in_time(deadline)
        if late and self._timed is not None:
            decode = self._timed
        decode.begin(deadline)
        # Noise last: a question that is refused draws none.
        batch, given, noise = policy.batch([observations]), policy.committed(committed), self.noise()
        facts: dict[str, float] = {}
        if self._before is not None:
            guide = self._guide(observation, given)
            unit = decode(batch, None, noise, guide=guide)
            self._before.keep(unit, observation.time, observation.instruction)
            facts["guided"] = float(guide is not None)
        elif self._warm is None:
            unit = decode(batch, given, noise)
        else:
            guess = self._warm.guess(observation.time, observation.instruction, _rows(given))
            first = 0 if guess is None else self._warm.first
            unit = decode(batch, given, noise, guess, first)
            self._warm.keep(unit, observation.time, observation.instruction)
            facts["warm"] = float(guess is not None)
        facts |= decode.facts
        chunk: ActionChunk = policy.chunk(unit[0], observation.time, committed, facts)
        return chunk

    def noise(self) -> dict[str, Tensor]:
        """The noise of the next chunk."""
        policy: Any = self._policy
        drawn = policy.head.draw(1, self._generator)
        return {name: value.to(policy.input_device) for name, value in drawn.items()}

    def forget(self) -> None:
        """Motion begins anew: no chunk is drawn to, or begun with, one of before."""
        for memory in (self._warm, self._before):
            if memory is not None:
                memory.forget()

    def _guide(self, observation: Observation, given: Committed | None) -> Guide | None:
        """The given rows and the rest of the chunk before, where it says something of now; None without either."""
        assert self._before is not None
        rows = _rows(given)
        passed = self._before.passed(observation.time, observation.instruction, rows)
        if passed is None and rows is None:
            return None
        count = 0 if rows is None else rows.shape[1]
        if passed is None:
            spec = self._policy.spec
            target = torch.zeros(1, spec.horizon, spec.action.size, device=self._policy.input_device)
            passed = spec.horizon - count
        else:
            target = self._before.rest(passed)
        if rows is not None:
            target = torch.cat([rows.to(target), target[:, count:]], dim=1)
        return Guide(target, soft_weights(target.shape[1], count, passed).to(target))


def _rows(given: Committed | None) -> Tensor | None:
    """The rows [1, c, A] that one sample is given."""
    return None if given is None else given.rows_BPA[:, : int(given.counts_B[0])]
