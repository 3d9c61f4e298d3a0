"""One client: its messages read, checked and answered, our own protocol's and openpi's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from vla_runtime.control.clock import Clock
from vla_runtime.control.planner import forget
from vla_runtime.interfaces import Policy, Session
from vla_runtime.messages import chunk_document, read_observation
from vla_runtime.question import check_committed, check_observations
from vla_runtime.serving.protocol import OURS, VERSION, Keys, check_kind, read_openpi
from vla_runtime.serving.questions import Questions
from vla_runtime.wire import pack, unpack

_KINDS = ("begin", "forget", "predict")
# Bytes of a message that is read at once.
_BRIEF = 2**22


class Conversation:
    """What one client says and is told: at most one session of ours; seed: of those that answer openpi's clients, a
    fresh one a question.
    """

    def __init__(self, policy: Policy, questions: Questions, keys: Keys, seed: int, clock: Clock):
        self._policy, self._questions, self._keys, self._seed, self._clock = policy, questions, keys, seed, clock
        self._session: Session | None = None

    async def answer(self, frame: str | bytes, began: float) -> bytes:
        """The frame to send for one that came at `began`. ValueError, to be sent as text, for one that is wrong."""
        if isinstance(frame, str):
            raise ValueError("message: expected a binary frame, got text")
        # What takes its time is done beside the loop that listens to everybody.
        message = unpack(frame) if len(frame) < _BRIEF else await asyncio.to_thread(unpack, frame)
        kind = check_kind(message, _KINDS)
        if kind is None:
            return await self._openpi(message, began)
        if kind == "begin":
            seed = message.get("seed")
            if type(seed) is not int or seed < 0:
                raise ValueError(f"begin: expected a seed from 0 on, got {seed!r}")
            self._session, _ = await self._questions.think(self._policy.begin, seed)
            return pack({OURS: VERSION, "kind": "begun"})
        if kind == "forget":
            if self._session is None:
                raise ValueError("forget: expected a session, got none; send begin first")
            await self._questions.think(forget, self._session)
            return pack({OURS: VERSION, "kind": "forgotten"})
        return await self._predict(message, began)

    async def _predict(self, message: Mapping[str, Any], began: float) -> bytes:
        session = self._session
        if session is None:
            raise ValueError("predict: expected a session, got none; send begin first")
        seen = message.get("observations")
        if not isinstance(seen, list) or not seen:
            raise ValueError("predict: expected a list of observations, oldest first, got none")
        cameras = self._policy.spec.cameras
        observations = await asyncio.to_thread(lambda: [read_observation(one, cameras) for one in seen])
        committed, deadline = message.get("committed"), message.get("deadline")
        # Here, too: not every policy checks what it is asked, and what breaks inside one tells its client nothing.
        check_observations(self._policy.spec, observations)
        check_committed(self._policy.spec, committed)
        if deadline is not None and (isinstance(deadline, bool) or not isinstance(deadline, int | float)):
            raise ValueError(f"predict: expected a deadline in seconds or none, got {type(deadline).__name__}")
        if deadline is not None and not math.isfinite(deadline):
            raise ValueError(f"predict: expected a deadline in seconds or none, got {deadline}")
        chunk, seconds = await self._questions.predict(lambda: session, observations, committed, deadline)
        answer = {OURS: VERSION, "kind": "chunk", "chunk": chunk_document(chunk)}
        return pack({**answer, "server_timing": self._timing(seconds, began)})

    async def _openpi(self, message: Mapping[str, Any], began: float) -> bytes:
        observation = await asyncio.to_thread(read_openpi, message, self._policy.spec, self._keys, 0.0)
        chunk, seconds = await self._questions.predict(
            lambda: self._policy.begin(self._seed), [observation], None, None
        )
        facts = {name: float(value) for name, value in chunk.facts.items()}
        # Every array with the rows first: chunk brokers cut all of them alike.
        return pack({"actions": chunk.actions, "facts": facts, "server_timing": self._timing(seconds, began)})

    def _timing(self, seconds: float, began: float) -> dict[str, float]:
        whole = self._clock.now() - began
        return {"infer_ms": 1e3 * seconds, "server_ms": 1e3 * whole}
