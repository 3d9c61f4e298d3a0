"""What a recorded robot said and heard, by stream and on one time: its own clock's, by its own stamps.

Messages that cannot be used are left out and counted; a clock that was set is a gap in that time, and a stream that
another clock stamps is an error. It knows bags and messages and no episodes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.robot_side import IMAGES
from vla_runtime.ros.bag_files import Bag, Report
from vla_runtime.ros.messages import ours, read_command, read_image, read_state, stamp
from vla_runtime.ros.reports import read_allowed, read_flag, read_outcome, read_text
from vla_runtime.ros.robot import command_topics, gated
from vla_runtime.ros.stamps import Axis, ahead, spans, steps
from vla_runtime.ros.streams import robot_of
from vla_runtime.types import Float, Outcome, SpecMismatch

# Seconds by which stamps of one clock can be ahead of the state's, and behind it: messages may be recorded late, and
# none before it was stamped. From the first on it is worth a note.
_NOTED, _AHEAD, _BEHIND = 0.25, 2.0, 60.0


@dataclass(slots=True)
class Line:
    """Samples of one stream, in the order of their times, none twice."""

    times: list[float] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, samples: list[tuple[float, Any]]) -> Line:
        """The line of (time, value) in any order."""
        line = cls()
        for time, value in sorted(samples, key=lambda one: one[0]):
            if not line.times or time > line.times[-1]:
                line.times.append(time)
                line.values.append(value)
        return line

    def before(self, time: float) -> int:
        """Index of the newest at `time`; -1 for none."""
        return bisect_right(self.times, time + 1e-6) - 1


@dataclass(slots=True)
class RecordedRobot:
    """What a bag holds, on one time: streams by "camera <name>", "state <group>" and "action <topic>", whether a bridge
    says that it may move the robot, instructions, when and how episodes ended (None: what was said cannot be read), and
    from when to when a human moved it.
    """

    streams: dict[str, Line]
    moves: Line
    instructions: Line
    ends: list[tuple[float, Outcome | None]]
    takeovers: list[tuple[float, float]]


@dataclass(slots=True)
class _Sample:
    """stamp: None where nobody stamped it; moment: when it was recorded."""

    stamp: float | None
    moment: float
    value: Any


def read_robot(path: Path, contract: Contract, report: Report) -> RecordedRobot:
    """All that a bag says of the contract's topics. report: what is left out is counted there.

    ValueError for a bag that lacks a topic of the contract or messages of it that can be used, and for a stream that
    another clock stamps than the robot's.
    """
    with Bag(path) as bag:
        for what in bag.missing:
            report.note(what)
        reading = _Reading(path, contract, bag.topics, report)
        for raw in bag.raw(reading.wanted):
            try:
                message = raw.message()
            except SpecMismatch as error:
                report.leave_out(raw.topic, raw.seconds, str(error))
                reading.miss(raw.topic, raw.seconds)
            else:
                reading.take(raw.topic, message, raw.seconds)
    return reading.aligned()


class _Reading:
    """Messages of a bag as samples of streams, in the order in which they were recorded."""

    def __init__(self, path: Path, contract: Contract, there: set[str], report: Report):
        self._path, self._contract, self._report = path, contract, report
        self._side = robot_of(contract)
        desk, self._actions = self._side.desk, command_topics(self._side.action)
        self._samples: dict[str, list[_Sample]] = defaultdict(list)
        # Names of streams and what reads each, by topic.
        self._readers: dict[str, list[tuple[str, Callable[[Any], Any]]]] = defaultdict(list)
        self._topics: dict[str, str] = {}
        self._streams()
        self._heard = {one: topic for topic in self._actions for one in (topic, gated(topic)) if one in there}
        self._both = {topic for topic in self._actions if {topic, gated(topic)} <= there}
        needed = {*self._readers, *(gated(topic) for topic in self._actions if topic not in self._heard.values())}
        if not needed <= there:
            ways = ", or without /gated what the controllers heard" if any(x.endswith("/gated") for x in needed) else ""
            raise ValueError(f"{path}: expected the topics {sorted(needed - there)}{ways}, got {sorted(there)}")
        self._desk: dict[str, Callable[[Any, float], None]] = {}
        for name, take in (
            (desk.takeover, self._taken), (desk.instruction, self._instructed), (desk.outcome, self._ended),
            (desk.status, self._allowed),
        ):  # fmt: skip
            if name is not None and name in there:
                self._desk[name] = take
        self.wanted = {*needed, *self._desk, *self._heard}
        self._ends: list[tuple[float, Outcome | None]] = []
        self._humans: list[tuple[float, float]] = []
        self._since: float | None = None
        self._said: list[tuple[float, str]] = []
        self._moves: list[tuple[float, bool]] = []

    def take(self, topic: str, message: Any, moment: float) -> None:
        """Keep what a message says, or count it."""
        for name, read in self._readers.get(topic, []):
            with self._counted(f"{name} on {topic}", moment):
                self._samples[name].append(_Sample(stamp(message), moment, read(message)))
        if topic in self._heard:
            with self._counted(f"action on {topic}", moment):
                self._commanded(topic, message, moment)
        if topic in self._desk:
            with self._counted(topic, moment):
                self._desk[topic](message, moment)

    def miss(self, topic: str, moment: float) -> None:
        """Something was said there that cannot be read."""
        if topic == self._side.desk.outcome:
            # Whatever it says, an episode ended there.
            self._ends.append((moment, None))

    def aligned(self) -> RecordedRobot:
        """All of it on one time."""
        names = [*self._topics, *(f"action {topic}" for topic in self._actions)]
        if missing := [name for name in names if not self._samples[name]]:
            raise ValueError(
                f"{self._path}: expected messages that can be read of {', '.join(missing)}, got none"
                f"{self._reasons(missing)}"
            )
        # The state's clock is the robot's.
        states = [name for name in names if name.startswith("state ")]
        reference, axis = self._robot_clock((states or names)[0])
        streams = {name: self._line(name, reference, axis) for name in names}
        if self._since is not None:
            self._humans.append((self._since, np.inf))
        return RecordedRobot(
            streams,
            Line.of([(axis.recorded(moment), value) for moment, value in self._moves]),
            Line.of([(axis.recorded(moment), value) for moment, value in self._said]),
            [(axis.recorded(moment), outcome) for moment, outcome in self._ends],
            [(axis.recorded(begun), axis.recorded(over)) for begun, over in self._humans],
        )

    def _streams(self) -> None:
        specs = {camera.name: camera for camera in self._contract.cameras}
        for name, camera in self._side.cameras.items():

            def seen(message: Any, stream: Any = camera, spec: Any = specs[name]) -> Any:
                _require_type(message, IMAGES)
                return read_image(message, stream, spec)

            self._readers[camera.topic].append((f"camera {name}", seen))
            self._topics[f"camera {name}"] = camera.topic
        for group in self._contract.state.groups:
            state = self._side.state[group.name]

            def felt(message: Any, stream: Any = state, spec: Any = group) -> Float:
                _require_type(message, (stream.type,))
                values = read_state(message, stream, spec).astype(np.float32)
                if not np.isfinite(values).all():
                    raise SpecMismatch(f"state {spec.name!r}: expected finite values, got {values.tolist()}")
                return values

            self._readers[state.topic].append((f"state {group.name}", felt))
            self._topics[f"state {group.name}"] = state.topic

    @contextmanager
    def _counted(self, what: str, moment: float) -> Iterator[None]:
        try:
            yield
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            self._report.leave_out(what, moment, str(error))

    def _commanded(self, topic: str, message: Any, moment: float) -> None:
        own = self._heard[topic]
        # What a bridge says is the policy's; a gate passes it on, where nothing else is said but by a human.
        if own in self._both and (topic == own) == (self._since is None):
            return
        names = self._actions[own]
        streams = [self._side.action[name] for name in names]
        groups = [self._contract.action.group(name) for name in names]
        wanted = [one for stream in streams for one in stream.names]
        numbers, when = read_command(message, wanted, groups[0].kind == "velocity")
        values = {
            group.name: ours(numbers, stream, group).astype(np.float32)
            for stream, group in zip(streams, groups, strict=True)
        }
        self._samples[f"action {own}"].append(_Sample(when, moment, values))

    def _taken(self, message: Any, moment: float) -> None:
        if read_flag(message):
            self._since = moment if self._since is None else self._since
        elif self._since is not None:
            self._humans.append((self._since, moment))
            self._since = None

    def _instructed(self, message: Any, moment: float) -> None:
        self._said.append((moment, read_text(message)))

    def _ended(self, message: Any, moment: float) -> None:
        try:
            self._ends.append((moment, read_outcome(message)))
        except SpecMismatch:
            self.miss(str(self._side.desk.outcome), moment)
            raise

    def _allowed(self, message: Any, moment: float) -> None:
        self._moves.append((moment, read_allowed(message)))

    def _robot_clock(self, name: str) -> tuple[tuple[list[float], list[float]], Axis]:
        """(stamps, moments) of a stream without its strays, and the time that its clock makes of them."""
        stamps, moments = _stamped(self._samples[name])
        found = spans(stamps, moments)
        for moment, by in steps(found):
            self._report.note(
                f"the clock that stamps {name} on {self._topic(name)} was set by {by:+.3f} s (recorded at {moment:.3f} "
                "s): an episode in which this happens is used up to there"
            )
        kept = sorted(index for one in found for index in one.members)
        limits = [one.max_age for one in self._side.cameras.values()]
        limits += [one.max_age for one in self._side.state.values()]
        axis = Axis(found, 1.0 + 2.0 * max([self._side.expiry, *limits]))
        return ([stamps[index] for index in kept], [moments[index] for index in kept]), axis

    def _line(self, name: str, reference: tuple[list[float], list[float]], axis: Axis) -> Line:
        samples = self._samples[name]
        stamps, moments = _stamped(samples)
        found = spans(stamps, moments)
        places = {index: place for place, one in enumerate(found) for index in one.members}
        kept = sorted(places)
        if kept:
            off = ahead([stamps[index] for index in kept], [moments[index] for index in kept], reference)
            self._require_one_clock(name, off)
        line, number = [], -1
        for sample in samples:
            if sample.stamp is None:
                line.append((axis.recorded(sample.moment), sample.value))
                continue
            number += 1
            if number not in places:
                near = [one for one in found if one.begins <= sample.moment] or found
                by = near[-1].delay - (sample.moment - sample.stamp)
                self._report.leave_out(
                    f"{name} on {self._topic(name)}", sample.moment, f"stamped {by:+.3f} s off the messages around it"
                )
                continue
            # A stream whose clock was not set with the robot's goes by when it was recorded.
            place = places[number] if len(found) == len(axis) else axis.place(sample.moment)
            line.append((axis.stamped(sample.stamp, place), sample.value))
        return Line.of(line)

    def _require_one_clock(self, name: str, off: float) -> None:
        """ValueError for a stream that is off the robot's clock by more than messages can be late."""
        if -_BEHIND <= off <= _NOTED:
            return
        way = "ahead of" if off > 0 else "behind"
        what = f"the stamps of {name} on {self._topic(name)} are {abs(off):.3f} s {way} those of the robot's state"
        if _NOTED < off <= _AHEAD:
            self._report.note(f"{what}, though recorded at once: two clocks may have stamped them")
            return
        raise ValueError(
            f"{self._path}: expected stamps of one clock, but {what}; let one source of time set the clocks of both "
            "machines (chrony, PTP), or stamp these messages on the robot's machine"
        )

    def _topic(self, name: str) -> str:
        return self._topics.get(name, name.removeprefix("action "))

    def _reasons(self, names: list[str]) -> str:
        """Why nothing of these streams can be used, as far as messages were left out."""
        found = []
        for name in names:
            topic = self._topic(name)
            whats = [f"action on {one}" for one in (topic, gated(topic))] if name.startswith("action") else []
            for what in (topic, gated(topic), f"{name} on {topic}", *whats):
                if what in self._report.first:
                    found.append(f"{what}: {self._report.left_out[what]} left out, {self._report.first[what]}")
        return "".join(f"; {one}" for one in dict.fromkeys(found))


def _stamped(samples: list[_Sample]) -> tuple[list[float], list[float]]:
    """(stamps, moments) of the samples that have a stamp."""
    stamped = [(one.stamp, one.moment) for one in samples if one.stamp is not None]
    return [stamp for stamp, _ in stamped], [moment for _, moment in stamped]


def _require_type(message: Any, kinds: Collection[str]) -> None:
    if message.__msgtype__ not in kinds:
        raise SpecMismatch(f"expected {' or '.join(kinds)}, got {message.__msgtype__}")
