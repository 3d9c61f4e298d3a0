"""What a recorded robot said and heard, by stream and on one time: its own clock's, by its own stamps.

Messages that cannot be used are left out and counted. It knows bags and messages and no episodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.robot_side import IMAGES
from vla_runtime.ros.aligned import Alignment, Line, Sample
from vla_runtime.ros.bag_files import Bag, Report
from vla_runtime.ros.messages import ours, read_command, read_image, read_state, stamp
from vla_runtime.ros.reports import read_allowed, read_flag, read_outcome, read_text
from vla_runtime.ros.robot import command_topics, gated
from vla_runtime.ros.streams import robot_of
from vla_runtime.types import Float, Outcome, SpecMismatch


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
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        # Names of streams and what reads each, by topic.
        self._readers: dict[str, list[tuple[str, Callable[[Any], Any]]]] = defaultdict(list)
        self._topics: dict[str, str] = {}
        self._streams()
        self._heard = {one: topic for topic in self._actions for one in (topic, gated(topic)) if one in there}
        self._both = {topic for topic in self._actions if {topic, gated(topic)} <= there}
        needed = {*self._readers, *(gated(topic) for topic in self._actions if topic not in self._heard.values())}
        if not needed <= there:
            also = ", or without /gated what the controllers heard" if any(x.endswith("/gated") for x in needed) else ""
            raise ValueError(f"{path}: expected the topics {sorted(needed - there)}{also}, got {sorted(there)}")
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
                self._samples[name].append(Sample(stamp(message), moment, read(message)))
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
        own = next((name for name in names if name.startswith("state ")), names[0])
        limits = [one.max_age for one in self._side.cameras.values()]
        limits += [one.max_age for one in self._side.state.values()]
        gap = 1.0 + 2.0 * max([self._side.expiry, *limits])
        topics = {name: self._topic(name) for name in names}
        alignment = Alignment(self._path, self._report, topics, own, self._samples[own], gap)
        streams = {name: alignment.line(name, self._samples[name]) for name in names}
        axis = alignment.axis
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
        self._samples[f"action {own}"].append(Sample(when, moment, values))

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


def _require_type(message: Any, kinds: Collection[str]) -> None:
    if message.__msgtype__ not in kinds:
        raise SpecMismatch(f"expected {' or '.join(kinds)}, got {message.__msgtype__}")
