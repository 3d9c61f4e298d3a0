"""Questions to one policy from many sessions: one thread answers them, several in one pass where that is allowed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vla_runtime.control.clock import Clock
from vla_runtime.control.planner import warm_up
from vla_runtime.interfaces import Policy, Session
from vla_runtime.types import ActionChunk, Float, Observation

_log = logging.getLogger(__name__)


class Questions:
    """Answered by `policy` in a thread of its own, in the order in which they came; one that is cancelled while it
    waits is never asked. batch: how many may be answered in one pass; took: told the seconds of each. ValueError for a
    batch below 1, and for more than one where the policy cannot.
    """

    def __init__(self, policy: Policy, clock: Clock, batch: int, took: Callable[[float], None]):
        if batch < 1:
            raise ValueError(f"batch: expected at least 1, got {batch}")
        self._together: Any = None
        if batch > 1:
            together = getattr(policy, "together", None)
            if together is None:
                raise ValueError(
                    f"batch: expected a policy that answers several sessions in one pass, got {policy.spec.name}; "
                    "take batch=1"
                )
            self._together = together()
        self._policy, self._clock, self._batch, self._took = policy, clock, batch, took
        # Whoever can be brief is asked alone where there is a deadline: a pass of several takes as long as its slowest.
        self._brief = "rounds" in policy.spec.decode
        self._asked: list[_Asked] = []
        self._answering: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")

    def end(self, wait: bool = True) -> None:
        """No more questions; what is thought about is waited for, or left."""
        self._thread.shutdown(wait=wait, cancel_futures=not wait)

    async def idle(self) -> None:
        """Wait until the policy's thread has done all that it was given before."""
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: None)

    async def warm_up(self, seed: int) -> None:
        """Let the policy answer once; what its first takes is told to nobody."""
        await asyncio.get_running_loop().run_in_executor(self._thread, warm_up, self._policy, seed)

    async def think(self, call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        """The result of a call in the policy's thread, and the seconds it took there."""

        def timed() -> tuple[Any, float]:
            began = self._clock.now()
            result = call(*arguments)
            return result, self._clock.now() - began

        found, seconds = await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        self._took(seconds)
        return found, seconds

    async def predict(
        self, session: Callable[[], Session], seen: list[Observation], committed: Float | None, deadline: float | None
    ) -> tuple[ActionChunk, float]:
        """A session's chunk and the seconds it took, alone or with those that wait, too."""
        latest = None if deadline is None else self._clock.now() + deadline
        asked = _Asked(session, seen, committed, latest, asyncio.get_running_loop().create_future())
        if self._together is None or (latest is not None and self._brief):
            found: tuple[ActionChunk, float] = await self.think(asked.alone, self._clock)
            return found
        self._asked.append(asked)
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer())
        answer: tuple[ActionChunk, float] = await asked.answer
        return answer

    async def _answer(self) -> None:
        """Answer all that wait, as many at a time as are allowed."""
        try:
            while self._asked:
                # Whoever has gone while waiting is not asked about.
                waiting = [one for one in self._asked if not one.answer.done()]
                some, self._asked = waiting[: self._batch], waiting[self._batch :]
                if not some:
                    continue
                for one, found in zip(some, await self._answers(some), strict=True):
                    # Whoever has gone meanwhile needs none.
                    if not one.answer.done():
                        one.answer.set_exception(found) if isinstance(found, Exception) else one.answer.set_result(
                            found
                        )
        finally:
            self._answering = None

    async def _answers(self, some: list[_Asked]) -> list[Any]:
        if len(some) > 1:
            try:
                chunks, seconds = await self.think(self._in_one_pass, some)
                return [(chunk, seconds) for chunk in chunks]
            except Exception as error:
                # Somebody's question is wrong: each is asked alone, so that it spoils nobody's answer.
                _log.info("%d questions are answered one by one: %s", len(some), error)
        answers: list[Any] = []
        for one in some:
            try:
                answers.append(await self.think(one.alone, self._clock))
            except Exception as error:
                answers.append(error)
        return answers

    def _in_one_pass(self, some: list[_Asked]) -> list[ActionChunk]:
        for one in some:
            one.begin()
        sessions, seen = [one.begun for one in some], [one.seen for one in some]
        found: list[ActionChunk] = self._together(sessions, seen, [one.committed for one in some])
        if len(found) != len(some):
            raise RuntimeError(f"together: expected {len(some)} chunks, got {len(found)}")
        return found


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that waits. session: makes or gives the session that is asked; latest: when an answer is late."""

    session: Callable[[], Session]
    seen: list[Observation]
    committed: Float | None
    latest: float | None
    answer: asyncio.Future[tuple[ActionChunk, float]]
    begun: Session | None = None

    def begin(self) -> Session:
        """The session; made once, in the policy's thread."""
        self.begun = self.begun or self.session()
        return self.begun

    def alone(self, clock: Clock) -> ActionChunk:
        """Its own answer. What it waited for others is part of its time."""
        left = None if self.latest is None else self.latest - clock.now()
        return self.begin().predict(self.seen, self.committed, left)
