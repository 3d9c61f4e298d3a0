"""Who thinks while the robot moves, and how long it takes: chunks are asked for in one tick and taken in a later one.

A planner has one question at a time, the newest. What it is asked with is fixed when it is asked; an exception of
the policy comes out where the chunk would have been taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import count, repeat
from pathlib import Path
from typing import Protocol

import numpy as np

from vla_runtime.control.clock import Clock
from vla_runtime.interfaces import Session
from vla_runtime.types import ActionChunk, Float, Observation

# A chunk that is due at a tick is there at that tick: times are sums of periods.
_ROUNDING = 1e-6


def latencies(latency: float | str, seed: int) -> Iterator[float]:
    """Seconds for one question after another: a number every time, or drawn from a recorded profile.

    latency: at least 0, or a file with a JSON list of seconds. ValueError for anything else.
    """
    if isinstance(latency, int | float) and not isinstance(latency, bool) and latency >= 0:
        return repeat(float(latency))
    if not isinstance(latency, str):
        raise ValueError(f"loop.latency: expected seconds from 0 on or a file with a list of them, got {latency!r}")
    try:
        values = np.array(json.loads(Path(latency).read_text()), np.float64)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"loop.latency: expected a file with a JSON list of seconds, got {latency}: {error}"
        ) from error
    if values.ndim != 1 or not len(values) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"loop.latency: expected a list of seconds from 0 on in {latency}, got {values[:3]}")
    rng = np.random.default_rng(seed)
    return (float(rng.choice(values)) for _ in count())


class Planner(Protocol):
    """Answers one question at a time. seconds: how long the last answer took to compute, on the machine's clock."""

    seconds: float

    @property
    def busy(self) -> bool:
        """Whether an answer is still to be taken."""

    def ask(self, observations: Sequence[Observation], committed: Float | None) -> None:
        """Begin to think about observations, oldest first. committed: rows [c, A] that will be executed anyhow."""

    def take(self, now: float) -> ActionChunk | None:
        """The answer if it is there at `now`, once."""

    def close(self) -> None: ...


class InStep:
    """Time stands still while the policy thinks: the answer is there in the tick that asks. wall: measures it."""

    def __init__(self, session: Session, wall: Clock):
        self._session, self._wall = session, wall
        self._chunk: ActionChunk | None = None
        self.seconds = 0.0

    @property
    def busy(self) -> bool:
        return self._chunk is not None

    def ask(self, observations: Sequence[Observation], committed: Float | None) -> None:
        began = self._wall.now()
        self._chunk = self._session.predict(observations, committed)
        self.seconds = self._wall.now() - began

    def take(self, now: float) -> ActionChunk | None:
        chunk, self._chunk = self._chunk, None
        return chunk

    def close(self) -> None: ...


class Delayed(InStep):
    """As a policy that takes its time, on a clock that does not: each answer is there `delays` after its observation.

    delays: seconds, one for every question; an iterator that ends ends the run.
    """

    def __init__(self, session: Session, wall: Clock, delays: Iterator[float]):
        super().__init__(session, wall)
        self._delays = delays
        self._ready = 0.0

    def ask(self, observations: Sequence[Observation], committed: Float | None) -> None:
        super().ask(observations, committed)
        self._ready = observations[-1].time + next(self._delays)

    def take(self, now: float) -> ActionChunk | None:
        return super().take(now) if now >= self._ready - _ROUNDING else None
