"""Recorded streams on one time: their own stamps, put right where the clock that made them was set.

Strays are left out and counted; a clock that was set is a gap; a stream that another clock stamps is an error. It knows
neither messages nor contracts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_runtime.ros.bag_files import Report
from vla_runtime.ros.stamps import Axis, Span, ahead, spans, steps

# Seconds by which stamps of one clock can be ahead of the state's, and behind it: messages may be recorded late, and
# none before it was stamped. From the first on it is worth a note.
_NOTED, _AHEAD, _BEHIND = 0.25, 2.0, 60.0


@dataclass(slots=True)
class Line:
    """Samples of one stream, in the order of their times, none twice."""

    times: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[tuple[float, Any]]) -> Line:
        """The line of (time, value) in any order."""
        line = cls()
        for time, value in sorted(samples, key=lambda sample: sample[0]):
            if not line.times or time > line.times[-1]:
                line.times.append(time)
                line.values.append(value)
        return line

    def before(self, time: float) -> int:
        """Index of the newest at `time`; -1 for none."""
        return bisect_right(self.times, time + 1e-6) - 1


@dataclass(slots=True)
class Sample:
    """One value of a stream. stamp: None where nobody stamped it; moment: when it was recorded."""

    stamp: float | None
    moment: float
    value: Any


class Alignment:
    """What puts samples on the time of a reference stream's clock. gap: seconds put in where that clock was set.

    path, report: of the bag; what is left out is counted in the report. topics: of the streams, by name.
    """

    def __init__(
        self, path: Path, report: Report, topics: Mapping[str, str], name: str, reference: Sequence[Sample], gap: float
    ):
        self._path, self._report, self._topics = path, report, topics
        stamps, moments = _stamped(reference)
        clocks = spans(stamps, moments)
        for moment, by in steps(clocks):
            report.note(
                f"the clock that stamps {name} on {topics[name]} was set by {by:+.3f} s (recorded at {moment:.3f} s): "
                "an episode in which this happens is used up to there"
            )
        kept = _kept(clocks)
        self._reference = [stamps[index] for index in kept], [moments[index] for index in kept]
        # Without any stamp the recorder's clock is all there is.
        self.axis = Axis(clocks or [Span(0.0, 0.0)], gap)

    def line(self, name: str, samples: Sequence[Sample]) -> Line:
        """A stream on that time. ValueError for a stream that another clock stamped."""
        stamps, moments = _stamped(samples)
        clocks = spans(stamps, moments)
        kept = _kept(clocks)
        if kept and self._reference[0]:
            own = [stamps[index] for index in kept], [moments[index] for index in kept]
            self._require_one_clock(name, ahead(*own, self._reference))
        places = {index: place for place, clock in enumerate(clocks) for index in clock.members}
        line, number = [], -1
        for sample in samples:
            if sample.stamp is None:
                line.append((self.axis.recorded(sample.moment), sample.value))
                continue
            number += 1
            if number not in places:
                near = [clock for clock in clocks if clock.begins <= sample.moment] or clocks
                by = near[-1].delay - (sample.moment - sample.stamp)
                self._report.leave_out(
                    f"{name} on {self._topics[name]}", sample.moment, f"stamped {by:+.3f} s off the messages around it"
                )
                continue
            # A stream whose clock was not set with the reference's goes by when it was recorded.
            together = len(clocks) == len(self.axis)
            place = places[number] if together else self.axis.place(sample.moment)
            line.append((self.axis.stamped(sample.stamp, place), sample.value))
        return Line.of(line)

    def _require_one_clock(self, name: str, off: float) -> None:
        if -_BEHIND <= off <= _NOTED:
            return
        side = "ahead of" if off > 0 else "behind"
        what = f"the stamps of {name} on {self._topics[name]} are {abs(off):.3f} s {side} those of the robot's state"
        if _NOTED < off <= _AHEAD:
            self._report.note(f"{what}, though recorded at once: two clocks may have stamped them")
            return
        raise ValueError(
            f"{self._path}: expected stamps of one clock, but {what}; let one source of time set the clocks of both "
            "machines (chrony, PTP), or stamp these messages on the robot's machine"
        )


def _kept(clocks: Sequence[Span]) -> list[int]:
    return sorted(index for clock in clocks for index in clock.members)


def _stamped(samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """(stamps, moments) of the samples that have a stamp."""
    stamped = [(sample.stamp, sample.moment) for sample in samples if sample.stamp is not None]
    return [stamp for stamp, _ in stamped], [moment for _, moment in stamped]
