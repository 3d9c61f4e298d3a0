"""Who thinks while the robot moves, and how long it takes: chunks are asked for in one tick and taken in a later one.

A planner has one question at a time, the newest. What it is asked with is fixed when it is asked; an exception of
the policy comes out where the chunk would have been taken.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from itertools import count, repeat
from pathlib import Path
from typing import Protocol

import numpy as np

from vla_runtime.control.clock import Clock
from vla_runtime.interfaces import Policy, Session
from vla_runtime.types import ActionChunk, Float, Observation, SpecMismatch

_log = logging.getLogger(__name__)

# A chunk that is due at a tick is there at that tick: times are sums of periods.
_ROUNDING = 1e-6


MEASURED = "measured"


def latencies(latency: float | str, seed: int) -> Iterator[float | None]:
    """Seconds for one question after another: a number every time, a recorded profile's, or None: as measured.

    latency: at least 0, a file with a JSON list of seconds, or "measured". A profile is played in its order, since slow
    answers come in rows, from a place that `seed` says on, and again from its beginning. ValueError for anything else.
    """
    if latency == MEASURED:
        return repeat(None)
    if isinstance(latency, int | float) and not isinstance(latency, bool) and latency >= 0:
        return repeat(float(latency))
    if not isinstance(latency, str):
        raise ValueError(
            f"loop.latency: expected seconds from 0 on, a file with a list of them, or measured, got {latency!r}"
        )
    try:
        values = np.array(json.loads(Path(latency).read_text()), np.float64)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"loop.latency: expected a file with a JSON list of seconds, got {latency}: {error}"
        ) from error
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"loop.latency: expected a list of seconds from 0 on in {latency}, got {values[:3]}")
    first = int(np.random.default_rng(seed).integers(len(values)))
    return (float(values[(first + index) % len(values)]) for index in count())


class Planner(Protocol):
    """Answers one question at a time. seconds: how long the last answer took to compute, on the machine's clock."""

    seconds: float

    @property
    def busy(self) -> bool:
        """Whether an answer is still to be taken."""

    @property
    def ready(self) -> float | None:
        """The time, on the loop's clock, at which that answer will be there; None where nobody knows."""

    def ask(self, observations: Sequence[Observation], committed: Float | None, deadline: float | None = None) -> None:
        """Begin to think about observations, oldest first.

        committed: rows [c, A] that will be executed anyhow; deadline: seconds from now until an answer is late.
        """

    def take(self, now: float) -> ActionChunk | None:
        """The answer if it is there at `now`, once."""

    def forget(self) -> None:
        """Motion begins anew: the session is to use nothing of what it said before."""

    def close(self) -> None: ...


class InStep:
    """Time stands still while the policy thinks: the answer is there in the tick that asks. wall: measures it.

    So no answer is late, and the policy is not told of a deadline.
    """

    def __init__(self, session: Session, wall: Clock):
        self._session, self._wall = session, wall
        self._chunk: ActionChunk | None = None
        self.seconds = 0.0

    @property
    def busy(self) -> bool:
        return self._chunk is not None

    @property
    def ready(self) -> float | None:
        return None

    def ask(self, observations: Sequence[Observation], committed: Float | None, deadline: float | None = None) -> None:
        began = self._wall.now()
        self._chunk = _chunk(self._session.predict(observations, committed))
        self.seconds = self._wall.now() - began

    def take(self, now: float) -> ActionChunk | None:
        chunk, self._chunk = self._chunk, None
        return chunk

    def forget(self) -> None:
        forget(self._session)

    def close(self) -> None: ...


class Delayed(InStep):
    """As a policy that takes its time, on a clock that does not: each answer is there `delays` after its observation.

    delays: seconds, one for every question, None: as long as it did take; an iterator that ends ends the run.
    """

    def __init__(self, session: Session, wall: Clock, delays: Iterator[float | None]):
        super().__init__(session, wall)
        self._delays = delays
        self._ready = 0.0

    @property
    def ready(self) -> float | None:
        return self._ready

    def ask(self, observations: Sequence[Observation], committed: Float | None, deadline: float | None = None) -> None:
        super().ask(observations, committed)
        delay = next(self._delays)
        self._ready = observations[-1].time + (self.seconds if delay is None else delay)

    def take(self, now: float) -> ActionChunk | None:
        return super().take(now) if now >= self._ready - _ROUNDING else None


class Beside:
    """A thread that thinks while the loop goes on. wall: measures it. What the policy raises, SystemExit included, is
    raised where its answer would be taken.

    A policy that hangs cannot be stopped from outside: `close` waits `patience` seconds and then leaves the thread,
    which ends with the process.
    """

    def __init__(self, session: Session, wall: Clock, patience: float = 2.0):
        self._session, self._wall, self._patience = session, wall, patience
        self._question: tuple[tuple[Sequence[Observation], Float | None, float | None], bool] | None = None
        self._answer: ActionChunk | BaseException | None = None
        self._busy = self._closed = self._anew = False
        self._changed = threading.Condition()
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._think, name="planner", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._busy

    @property
    def ready(self) -> float | None:
        return None

    def ask(self, observations: Sequence[Observation], committed: Float | None, deadline: float | None = None) -> None:
        with self._changed:
            # What was asked before motion began anew may still be thought about, with what was said before.
            self._question, self._busy = ((observations, committed, deadline), self._anew), True
            self._anew = False
            self._changed.notify_all()

    def take(self, now: float) -> ActionChunk | None:
        with self._changed:
            answer, self._answer = self._answer, None
            if answer is None:
                return None
            self._busy = False
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def forget(self) -> None:
        # In the thread that asks the session: it may be thinking.
        with self._changed:
            self._anew = True

    def close(self) -> None:
        """Let the thread end; one that hangs is left, with a warning."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(self._patience)
        if self._thread.is_alive():
            _log.warning("the policy has not answered for %.1f s after the end; its thread is left", self._patience)

    def _think(self) -> None:
        while True:
            with self._changed:
                while self._question is None and not self._closed:
                    self._changed.wait()
                if self._question is None:
                    return
                (question, anew), self._question = self._question, None
            began = self._wall.now()
            answer: ActionChunk | BaseException
            try:
                if anew:
                    forget(self._session)
                answer = _chunk(self._session.predict(*question))
            except BaseException as problem:
                answer = problem
            with self._changed:
                self.seconds = self._wall.now() - began
                self._answer = answer


def _chunk(answer: object) -> ActionChunk:
    """What a policy said; SpecMismatch for anything else, which would count as an answer that has not come yet."""
    if not isinstance(answer, ActionChunk):
        raise SpecMismatch(f"predict: expected an ActionChunk, got {type(answer).__name__}")
    return answer


def warm_up(policy: Policy, seed: int, instruction: str = "nothing") -> None:
    """Let a policy answer once, in a session of its own and whatever it says: its first takes longer than others."""
    spec = policy.spec
    images = {camera.name: camera.example() for camera in spec.cameras}
    seen = Observation(spec.state.example(), images, instruction, 0.0)
    policy.begin(seed).predict([seen] * len(spec.observation_offsets))


def forget(session: Session) -> None:
    """Motion begins anew: sessions that remember what they said are told to forget it; others need not."""
    told = getattr(session, "forget", None)
    if told is not None:
        told()
