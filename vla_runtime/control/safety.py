"""Whether the policy may move the robot: a stop that latches, a heartbeat, a human's hand, and what has grown stale.

Everything is asked on the loop's clock. A stop lasts until somebody resets it; after a stop or a takeover nothing of
before is used: no plan, no answer to an older question, no memory of what was sent. It knows neither policies nor
robots.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds after which something is stale; None: never.

    plan: without a plan that covers the present; observation: since the newest one was made; heartbeat: since the last
    beat. ValueError for one that is not above 0.
    """

    plan: float | None = None
    observation: float | None = None
    heartbeat: float | None = None

    def __post_init__(self) -> None:
        for name in ("plan", "observation", "heartbeat"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"safety.{name}: expected more than 0 seconds, got {value}")


@dataclass(frozen=True, slots=True)
class Event:
    """What happened when: "stopped", "reset", "taken over" or "given back", and why."""

    time: float
    what: str
    reason: str = ""


@dataclass(slots=True, eq=False)
class Safety:
    """Asked at every tick by `check`; told by anybody, from any thread.

    `since`: when motion was last allowed anew; what was observed before is not to be acted upon.
    """

    timeouts: Timeouts = field(default_factory=Timeouts)
    events: list[Event] = field(default_factory=list)
    since: float = -float("inf")
    _stopped: str | None = None
    _human: bool = False
    _beat: float | None = None
    _began: float | None = None
    _covered: float | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def human(self) -> bool:
        """Whether a human moves the robot."""
        return self._human

    def begin(self, now: float) -> None:
        """A run begins, on its own time: a stop and a human's hand last, what was heard and seen before does not."""
        with self._lock:
            self.since, self._beat, self._began, self._covered = -float("inf"), None, None, None

    @property
    def stopped(self) -> str | None:
        """Why the robot is stopped, None while it is not."""
        return self._stopped

    def beat(self, now: float) -> None:
        """Somebody who matters is alive."""
        with self._lock:
            self._beat = now

    def stop(self, now: float, reason: str) -> None:
        """Stop, and stay so. A second reason does not replace the first."""
        with self._lock:
            if self._stopped is None:
                self._stopped = reason
                self.events.append(Event(now, "stopped", reason))

    def reset(self, now: float) -> None:
        """Let it move again. RuntimeError where there is nothing to reset or the heartbeat is still missing."""
        with self._lock:
            if self._stopped is None:
                raise RuntimeError("reset: expected a stopped robot, got one that is not")
            if self._late(self._beat, now, self.timeouts.heartbeat):
                raise RuntimeError(f"reset: expected a heartbeat within {self.timeouts.heartbeat} s, got none")
            self._stopped = None
            self._anew(now, "reset")

    def take_over(self, now: float) -> None:
        """A human moves the robot from now on."""
        with self._lock:
            if not self._human:
                self._human = True
                self.events.append(Event(now, "taken over"))

    def give_back(self, now: float) -> None:
        """The policy may move it again. RuntimeError where nobody has taken over."""
        with self._lock:
            if not self._human:
                raise RuntimeError("give back: expected a robot that was taken over, got one that was not")
            self._human = False
            self._anew(now, "given back")

    def check(self, now: float, observed: float, covered: bool) -> bool:
        """Whether the policy may move the robot in this tick; stops it where something is stale.

        observed: time of the newest observation; covered: whether a plan says what is due now.
        """
        with self._lock:
            silent = self.timeouts.heartbeat is not None and self._beat is None
            if self._covered is None or covered or self._human or self._stopped is not None or silent:
                self._covered = now
            if self._began is None:
                self._began = now
            # The first beat may take as long as any other; until it has been heard nothing moves.
            late = {
                "heartbeat": (self._began if self._beat is None else self._beat, self.timeouts.heartbeat),
                "observation": (observed, self.timeouts.observation),
                "plan": (self._covered, self.timeouts.plan),
            }
            for name, (last, most) in late.items():
                if self._late(last, now, most):
                    self.stop(now, f"{name}: expected one within {most} s, got none for {now - (last or 0.0):.3f} s")
            return self._stopped is None and not self._human and not silent

    def _anew(self, now: float, what: str) -> None:
        self.since, self._covered = now, now
        self.events.append(Event(now, what))

    @staticmethod
    def _late(last: float | None, now: float, most: float | None) -> bool:
        # A thousandth of a second forgives sums of periods.
        return most is not None and (last is None or now - last > most + 1e-3)
