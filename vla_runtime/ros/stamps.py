"""Which stamps of a recorded stream belong together: strays, and clocks that were set while it was recorded.

Nobody recorded the clocks themselves. What is there is when each message was stamped and when it was recorded; the
difference hardly changes from one message to the next, unless one of the clocks was set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

# Seconds by which a clock must be off before it counts as another one; more than messages overtake one another by.
SET = 1.0
# As many messages at least are of a clock that was set; fewer are strays.
_FEW = 3
# Of so many clocks the last are compared with a message: stamps may be noise.
_LOOKED_BACK = 8


@dataclass(slots=True)
class Span:
    """Messages that one clock stamped: from when they were recorded, and by how much at least after their stamps."""

    begins: float
    delay: float
    members: list[int] = field(default_factory=list)


def spans(stamps: Sequence[float], moments: Sequence[float]) -> list[Span]:
    """The clocks that stamped a stream's messages, in order; messages of no span are strays.

    stamps, moments: seconds at which each was stamped and recorded, in the order in which they were recorded. What is
    recorded late, as messages that queue up are, is no stray.
    """
    runs: list[_Run] = []
    # Those that messages were of last, the latest first.
    recent: list[_Run] = []
    for index, (stamp, moment) in enumerate(zip(stamps, moments, strict=True)):
        for place, run in enumerate(recent):
            if run.fits(stamp, moment, going_on=place == 0):
                del recent[place]
                break
        else:
            run = _Run()
            runs.append(run)
        run.add(index, stamp, moment)
        recent = [run, *recent[: _LOOKED_BACK - 1]]
    few = min(_FEW, max((len(run.members) for run in runs), default=0))
    kept: list[_Run] = []
    last = -1
    for run in runs:
        # One from which the clock returned to what it was before is stray, however long it was.
        if len(run.members) >= few and run.members[-1] > last:
            kept.append(run)
            last = run.members[-1]
    return [Span(moments[run.members[0]], run.least, run.members) for run in kept]


def steps(clocks: Sequence[Span]) -> list[tuple[float, float]]:
    """When the clock was set, by when that was recorded, and by how many seconds."""
    return [(after.begins, before.delay - after.delay) for before, after in pairwise(clocks)]


class Axis:
    """One time for all that a robot says: that of its first clock, carried on where the clock was set.

    gap: seconds that are put in between there, so that nothing of before is taken for anything of after.
    """

    def __init__(self, clocks: Sequence[Span], gap: float):
        self._spans, self._gap = list(clocks), gap

    def stamped(self, stamp: float, place: int) -> float:
        """The time of a stamp of the clock at `place`."""
        return stamp + self._spans[place].delay - self._spans[0].delay + place * self._gap

    def recorded(self, moment: float) -> float:
        """The time of what was recorded then and carries no stamp: as if it had come as fast as the fastest."""
        place = self.place(moment)
        return self.stamped(moment - self._spans[place].delay, place)

    def place(self, moment: float) -> int:
        """Which clock it was at a moment of the recorder's."""
        return max(0, sum(span.begins <= moment for span in self._spans) - 1)

    def __len__(self) -> int:
        return len(self._spans)


def ahead(
    stamps: Sequence[float], moments: Sequence[float], reference: tuple[Sequence[float], Sequence[float]]
) -> float:
    """By how many seconds a stream's stamps are ahead of a reference's (stamps, moments): half of them by less."""
    theirs = np.asarray(reference[1]) - np.asarray(reference[0])
    places = np.searchsorted(np.asarray(reference[1]), np.asarray(moments), side="right") - 1
    delays = np.asarray(moments) - np.asarray(stamps)
    return float(np.median(theirs[np.maximum(places, 0)] - delays))


@dataclass(slots=True)
class _Run:
    members: list[int] = field(default_factory=list)
    least: float = float("inf")
    last_stamp: float = -float("inf")
    last_delay: float = 0.0

    def fits(self, stamp: float, moment: float, going_on: bool) -> bool:
        delay = moment - stamp
        # Set forward, delays become less than they can be; set back, stamps do not go on.
        same = stamp > self.last_stamp - SET and delay > self.least - SET
        return same and (going_on or abs(delay - self.last_delay) <= SET)

    def add(self, index: int, stamp: float, moment: float) -> None:
        self.members.append(index)
        self.last_stamp, self.last_delay = max(stamp, self.last_stamp), moment - stamp
        self.least = min(self.least, self.last_delay)
