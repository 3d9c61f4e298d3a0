"""The robot's side of safety: a gate in front of its controller that lets no old or doubled command through.

A command counts while it is fresh by the robot's own clock, newer than the one before, and of the newest bridge; when
none has come for too long, a watchdog on a monotonic clock brings the robot to a stand. It trusts nobody's word but
the robot's: it needs no policy, no bridge and no network to do so.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.control.clock import Clock
from vla_runtime.robot_side import CommandStream, Topic
from vla_runtime.ros.messages import command_message, read_trajectory, text, theirs
from vla_runtime.ros.robot import GATED, HASTE, always, command_topics, gate_status, gated, listen, taking
from vla_runtime.ros.streams import robot_of
from vla_runtime.ros.transport import Transport
from vla_runtime.types import SpecMismatch

_log = logging.getLogger(__name__)


class Gate:
    """Judges the commands of one topic. names: what each must say; expiry: seconds for which one counts; moving:
    whether they are velocities.

    `refused` counts those that did not pass, by reason; `detail` says what was wrong with the last of them.
    """

    def __init__(self, names: tuple[str, ...], expiry: float, moving: bool = False):
        self._names, self._expiry, self._moving = names, expiry, moving
        self._origin, self._sequence, self._stamp = "", -1, -float("inf")
        self._superseded: set[str] = set()
        self._not_before = -float("inf")
        self.refused: Counter[str] = Counter()
        self.detail = ""

    def begin(self, now: float) -> None:
        """Only commands that answer something said after `now` count from here on."""
        self._not_before = now

    def shift(self, by: float, now: float) -> None:
        """The robot's time was set by so many seconds, to `now`: what was stamped before belongs to another time."""
        self._stamp += by
        self.begin(now)

    def offer(self, message: Any, now: float) -> dict[str, float] | None:
        """The values of a command that may be executed at `now`, the robot's time; None for one that may not."""
        try:
            values, stamped, frame = read_trajectory(message, self._moving)
            origin, _, number = frame.rpartition(":")
            if not origin or not number.isdecimal():
                raise SpecMismatch(f"frame: expected <bridge>:<number>, got {frame!r}")
        except SpecMismatch as error:
            return self._refused("wrong", str(error))
        sequence = int(number)
        if set(values) != set(self._names):
            return self._refused("wrong", f"expected {sorted(self._names)}, got {sorted(values)}")
        if abs(now - stamped) > self._expiry:
            return self._refused(
                "old", f"expected one of the last {self._expiry} s, got one of {now - stamped:.3f} s ago"
            )
        if stamped < self._not_before:
            return self._refused("old", "expected an answer to what was said since, got an earlier one")
        if origin in self._superseded:
            return self._refused("of another bridge", f"expected commands of {self._origin}, got one of {origin}")
        if origin == self._origin and sequence <= self._sequence:
            return self._refused("out of order", f"expected number {self._sequence + 1} or later, got {sequence}")
        if origin != self._origin:
            if stamped < self._stamp:
                return self._refused("of another bridge", f"expected commands of {self._origin}, got one of {origin}")
            self._superseded |= {self._origin} - {""}
        self._origin, self._sequence, self._stamp = origin, sequence, stamped
        # In our order: some of what controllers hear has no names.
        return {name: values[name] for name in self._names}

    def _refused(self, reason: str, detail: str) -> dict[str, float] | None:
        self.refused[reason] += 1
        self.detail = detail
        if self.refused[reason] == 1:
            _log.warning("refused: %s", detail)
        return None


class GateNode:
    """Gates between a transport's commands and the robot's controllers.

    clock: monotonic, for the watchdog; stamps: the robot's own, which its messages are stamped by; follow: asked at
    every tick by how much that was set meanwhile; passing: whether commands do before a reset. `tick` is to be called
    several times within the contract's expiry.
    """

    def __init__(
        self, contract: Contract, transport: Transport, clock: Clock, stamps: Clock,
        follow: Callable[[], float] = lambda: 0.0, passing: bool = True,
    ):  # fmt: skip
        self._contract, self._side = contract, robot_of(contract)
        self._transport, self._clock, self._stamps, self._follow = transport, clock, stamps, follow
        self._lock = threading.Lock()
        self._passed: dict[str, tuple[dict[str, float], float]] = {}
        self._standing: set[str] = set()
        self._stopped, self._human = not passing, False
        self._stopped_at = -float("inf")
        self.gates: dict[str, Gate] = {}
        self.faults: Counter[str] = Counter()
        topics = command_topics(self._side.action)
        streams = {topic: self._side.action[names[0]] for topic, names in topics.items()}
        says = [Topic(topic, one.type, one.reliable, one.depth) for topic, one in streams.items()]
        self._status = gate_status(self._side.desk)
        transport.open([*says, *([] if self._status is None else [self._status])])
        self._streams, self._zeros = streams, dict[str, dict[str, float]]()
        self._moving = {topic: contract.action.group(names[0]).kind == "velocity" for topic, names in topics.items()}
        for topic, names in topics.items():
            wanted = tuple(one for name in names for one in self._side.action[name].names)
            self.gates[topic] = Gate(wanted, self._side.expiry, self._moving[topic])
            self._zeros[topic] = {}
            # Of places zero is one, and of rotations none.
            for name in names if self._moving[topic] else ():
                group = contract.action.group(name)
                self._zeros[topic] |= theirs(np.zeros(group.size), self._side.action[name], group)

            def on_message(message: Any, topic: str = topic) -> None:
                self._offered(topic, message)

            transport.subscribe(Topic(gated(topic), GATED), on_message)
        desk = self._side.desk
        for told, stopped in ((desk.stop, True), (desk.reset, False)):
            if told is not None:
                urgent = always if stopped else None
                listen(transport, told, "std_msgs/msg/Empty", partial(self._told, stopped), urgent)
        if desk.takeover is not None:
            listen(transport, desk.takeover, "std_msgs/msg/Bool", self._taken, taking)

    @property
    def refused(self) -> Counter[str]:
        """What did not pass, by reason, of all topics."""
        return sum((gate.refused for gate in self.gates.values()), Counter())

    def say(self) -> None:
        """Publish how things are, where the desk has a topic for it: whether commands pass, and which have not."""
        if self._status is None:
            return
        with self._lock:
            said = {
                "open": not (self._stopped or self._human), "stopped": self._stopped, "human": self._human,
                "standing": sorted(self._standing), "refused": dict(self.refused), "faults": dict(self.faults),
            }  # fmt: skip
        with suppress(RuntimeError):
            self._transport.publish(self._status, text(json.dumps(said)))

    def stand(self) -> None:
        """Nobody watches from here on: bring to a stand all that has been commanded, as each topic's stop says."""
        with self._lock:
            for topic, (values, _) in self._passed.items():
                stream = self._streams[topic]
                if stream.stop != "cease" and not self._human:
                    self._send(topic, stream, values if stream.stop == "hold" else self._zeros[topic])

    def tick(self) -> None:
        """The watchdog: bring to a stand what nobody has commanded for too long."""
        with self._lock:
            if by := self._follow():
                self.faults["time of day set"] += 1
                _log.warning("the time of day was set by %+.3f s; commands of before do not count", by)
                for gate in self.gates.values():
                    gate.shift(by, self._stamps.now())
            if self._human:
                return
            now = self._clock.now()
            late = [
                topic for topic, (_, since) in self._passed.items() if self._stopped or now - since > self._side.expiry
            ]
            for topic in late:
                stream, (values, _) = self._streams[topic], self._passed[topic]
                if topic not in self._standing:
                    self._standing.add(topic)
                    self.faults["watchdog"] += 1
                    _log.warning("%s: no command for %.3f s; %s", topic, self._side.expiry, stream.stop)
                    if stream.stop == "hold":
                        # Once: whoever moves the robot by other means is not fought.
                        self._send(topic, stream, values)
                if stream.stop == "zero":
                    self._send(topic, stream, self._zeros[topic])

    def _told(self, stopped: bool, message: Any) -> None:
        with self._lock:
            now = self._clock.now()
            if not stopped and now - self._stopped_at < HASTE:
                self.faults["resets together with a stop"] += 1
                return
            self._stopped, self._stopped_at = stopped, now if stopped else self._stopped_at

    def _taken(self, message: Any) -> None:
        with self._lock:
            self._human = bool(message.data)
            # Where the robot was told to be before is not where the human leaves it.
            self._passed.clear()
            self._standing.clear()

    def _offered(self, topic: str, message: Any) -> None:
        with self._lock:
            if self._stopped or self._human:
                self.faults["commands while stopped or taken over"] += 1
                return
            values = self.gates[topic].offer(message, self._stamps.now())
            if values is not None:
                self._passed[topic] = values, self._clock.now()
                self._standing.discard(topic)
                self._send(topic, self._streams[topic], values)

    def _send(self, topic: str, stream: CommandStream, values: dict[str, float]) -> None:
        message = command_message(values, stream, self._moving[topic], self._stamps.now(), 1.0 / self._contract.rate_hz)
        try:
            self._transport.publish(Topic(topic, stream.type, stream.reliable, stream.depth), message)
        except RuntimeError:
            self.faults["commands that could not be sent"] += 1
