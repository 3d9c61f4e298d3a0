"""Time, as an argument. Nothing else in the project reads a clock or sleeps."""

from __future__ import annotations

import time
from typing import Protocol

# Sleeping overshoots by a fraction of a millisecond; the last stretch is spun instead.
_SPIN = 1e-3


class Clock(Protocol):
    """Monotonic seconds from an arbitrary origin."""

    def now(self) -> float: ...

    def sleep_until(self, deadline: float) -> None:
        """Return at `deadline`, at once if it has passed."""


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.perf_counter()  # noqa: TID251

    def sleep_until(self, deadline: float) -> None:
        remaining = deadline - self.now()
        if remaining > _SPIN:
            time.sleep(remaining - _SPIN)  # noqa: TID251
        while self.now() < deadline:
            pass


class VirtualClock:
    """Time that moves only when told to: exact, instant, and the same in every run."""

    def __init__(self, start: float = 0.0):
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, deadline: float) -> None:
        self._now = max(self._now, deadline)
