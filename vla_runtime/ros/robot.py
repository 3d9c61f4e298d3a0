"""A robot over a transport, worn as an Env: what it says are observations, what it is told are commands.

Every command carries the robot's own time of the newest it had said, and which command of which bridge it is: whoever
executes it can tell an old one. Nothing is kept for later: what cannot be sent now is not sent. It knows no ROS.
"""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vla_runtime.contract import Contract
from vla_runtime.control.clock import Clock
from vla_runtime.control.safety import Safety
from vla_runtime.interfaces import Policy
from vla_runtime.robot_side import CommandStream, Desk, Topic
from vla_runtime.ros.conversion import Array, said, said_rotation
from vla_runtime.ros.messages import DIAGNOSTICS, diagnostics, text, theirs, trajectory
from vla_runtime.ros.reports import read_outcome
from vla_runtime.ros.streams import Streams, robot_of
from vla_runtime.ros.transport import Transport
from vla_runtime.types import Command, EnvSpec, Group, Observation, Outcome, SpecMismatch, UnsupportedTask

# What a bridge publishes for a gate, which turns it into what the robot's controller hears.
GATED = "trajectory_msgs/msg/JointTrajectory"
_log = logging.getLogger(__name__)


def gated(topic: str) -> str:
    """Where commands for a topic of the robot go first."""
    return f"{topic}/gated"


def gate_status(desk: Desk) -> Topic | None:
    """Where a gate says how it is; None where nobody is told."""
    return None if desk.status is None else Topic(f"{desk.status}/gate", "std_msgs/msg/String")


def command_topics(actions: Mapping[str, CommandStream]) -> dict[str, list[str]]:
    """Groups of the action by the topic on which they go."""
    found: dict[str, list[str]] = {}
    for name, stream in actions.items():
        found.setdefault(stream.topic, []).append(name)
    return found


def listen(
    transport: Transport, name: str, kind: str, on_message: Callable[[Any], None],
    urgent: Callable[[Any], bool] | None = None,
) -> None:  # fmt: skip
    """Hear what people say on a desk's topic.

    urgent: which messages are also heard of a publisher of best effort, whom a reliable subscription never hears. They
    may come twice, and the second time late: they must mean the same then, or be on the safe side.
    """
    if urgent is not None:

        def heed(message: Any) -> None:
            if urgent(message):
                on_message(message)

        transport.subscribe(Topic(name, kind, reliable=False), heed)
    transport.subscribe(Topic(name, kind), on_message)


def spec_of(contract: Contract, instruction: str, steps: int) -> EnvSpec:
    """A robot as an environment of one task. steps: control periods an episode may take at most."""
    return EnvSpec(
        robot_of(contract).name, contract.cameras, contract.state, contract.action, 1.0 / contract.rate_hz,
        (instruction,), steps,
    )  # fmt: skip


# Seconds after a stop within which a reset is none: said before it, it may be heard after it.
HASTE = 0.2


def always(message: Any) -> bool:
    """Every message: a stop is a stop."""
    return True


def taking(message: Any) -> bool:
    """That a human takes over, not that one gives back."""
    return bool(message.data)


class RosRobot:
    """Env for a real or simulated robot that speaks as `contract` says.

    instruction: what to do, until somebody says otherwise on the desk's topic. safety: told of heartbeats, stops,
    resets and takeovers. patience: seconds to wait for all streams. steps: control periods an episode may take at
    most. told_to_end: asked while it waits.
    """

    def __init__(
        self,
        contract: Contract,
        transport: Transport,
        clock: Clock,
        safety: Safety,
        instruction: str,
        patience: float = 10.0,
        steps: int = 10**9,
        told_to_end: Callable[[], bool] = lambda: False,
    ):
        self._contract, self._side, self._transport = contract, robot_of(contract), transport
        self._clock, self._safety, self._patience = clock, safety, patience
        self._told_to_end = told_to_end
        self._spec = spec_of(contract, instruction, steps)
        self._origin, self._sequence = uuid.uuid4().hex[:8], 0
        self._outcome: Outcome | None = None
        self._topics = command_topics(self._side.action)
        # Rotations as they were last sent, by group: of equal values the nearest to these is next.
        self._sent: dict[str, Array] = {}
        self.faults: Counter[str] = Counter()
        desk = self._side.desk
        said = [Topic(desk.status, "std_msgs/msg/String")] if desk.status else []
        said += [Topic(desk.diagnostics, DIAGNOSTICS)] if desk.diagnostics else []
        transport.open([*(Topic(gated(name), GATED) for name in self._topics), *said])
        self.streams = Streams(contract, transport, clock)
        self.streams.instruction = instruction
        self._stopped_at = -math.inf
        # What the gate said last of itself, None where it has said nothing.
        self.gate: Mapping[str, Any] | None = None
        gate = gate_status(desk)
        if gate is not None:
            transport.subscribe(gate, self._told_by_gate)
        self._listen(desk)

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        """Wait until everything has been seen; the robot is where it is. RuntimeError for streams that do not come."""
        self._outcome = None
        self._sent.clear()
        self.streams.begin()
        deadline = self._clock.now() + self._patience
        cameras = [camera.name for camera in self._spec.cameras]
        while True:
            missing, problem = self.streams.missing(), ""
            if not missing:
                try:
                    self.streams.observation(cameras)
                    break
                except RuntimeError as error:
                    problem = str(error)
            if self._clock.now() > deadline:
                none = ", ".join(f"{name} ({self.streams.instead(name)})" for name in missing)
                health = "; ".join(self._transport.health()) or "the transport reports no problem"
                raise RuntimeError(
                    problem
                    or f"robot {self._spec.name}: expected all streams within {self._patience:g} s, got none of "
                    f"{none}; {health}"
                )
            if self._told_to_end():
                raise RuntimeError(f"robot {self._spec.name}: told to stop before everything was seen")
            self._clock.sleep_until(self._clock.now() + 0.01)
        # One that comes meanwhile is that of the episode before.
        self._outcome = None
        return {"initial_state": f"{self._spec.name} at {self._origin}"}

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        return self.streams.observation(cameras)

    def apply(self, command: Command) -> None:
        """Send a command to the gate; one that cannot be sent is counted and lost. Nothing while a human moves it.

        One that says that the policy has finished ends the episode. Of the values that mean the same rotation the one
        nearest to the last that was sent goes out, or at first, and after a human, nearest to where the robot is.
        """
        if self._safety.human:
            self._sent.clear()
            return
        if not command.held and self._finished(command):
            # Whether it did what it should nobody has said.
            self._outcome = Outcome(False, "terminated")
            # It stands then: nothing else would take a velocity back.
            command = replace(command, held=True)
        moment = self.streams.newest()
        frame = f"{self._origin}:{self._sequence}"
        self._sequence += 1
        for topic, names in self._topics.items():
            streams = [self._side.action[name] for name in names]
            if command.held and streams[0].stop == "cease":
                for name in names:
                    self._sent.pop(name, None)
                continue
            groups = [self._contract.action.group(name) for name in names]
            values: dict[str, float] = {}
            for stream, group in zip(streams, groups, strict=True):
                part = command.values[self._contract.action.slices[group.name]]
                if command.held and stream.stop == "zero":
                    part = np.zeros_like(part)
                values |= theirs(part, stream, group, self._near(stream, group))
            moving = groups[0].kind == "velocity"
            try:
                self._transport.publish(
                    Topic(gated(topic), GATED), trajectory(values, moving, moment, frame, self._spec.period)
                )
            except RuntimeError as error:
                self.faults["commands that could not be sent"] += 1
                _log.debug("%s", error)
                continue
            for stream, group in zip(streams, groups, strict=True):
                if group.rotation is not None:
                    self._sent[group.name] = said(list(values), list(values.values()), stream)

    def _near(self, stream: CommandStream, group: Group) -> Array | None:
        """What the next value of a rotation is to be nearest to; None for other groups, and where nobody knows."""
        rotation = said_rotation(stream, group)
        if rotation is None or group.kind != "absolute":
            return None
        return self._sent[group.name] if group.name in self._sent else self.streams.rotation(group.name, rotation)

    def _finished(self, command: Command) -> bool:
        if self._side.ends is None:
            return False
        group = self._contract.action.group(self._side.ends)
        value = float(command.values[self._contract.action.slices[group.name]][0])
        assert group.open is not None
        assert group.close is not None
        return abs(value - group.close) < abs(value - group.open)

    def outcome(self) -> Outcome | None:
        """What a simulated robot says of its episode, or that the policy has finished; a real robot says nothing."""
        return self._outcome

    def say(self, status: Mapping[str, Any]) -> None:
        """Publish how things are."""
        desk, words = self._side.desk, []
        if desk.status is not None:
            words.append((Topic(desk.status, "std_msgs/msg/String"), text(json.dumps(status))))
        if desk.diagnostics is not None:
            problems = [*status["health"], *(f"{what} ({count} times)" for what, count in status["faults"].items())]
            plain = {key: value for key, value in status.items() if key not in ("health", "faults", "stopped")}
            name = f"vla_bridge: {self._spec.name}"
            told = diagnostics(name, problems, status["stopped"], plain, self.streams.newest())
            words.append((Topic(desk.diagnostics, DIAGNOSTICS), told))
        for topic, message in words:
            try:
                self._transport.publish(topic, message)
            except RuntimeError:
                self.faults["words that could not be sent"] += 1

    def expert(self, seed: int, style: str = "uni") -> Policy:
        raise UnsupportedTask(f"robot {self._spec.name}: expected a policy, robots have no expert")

    def close(self) -> None:
        self._transport.close()

    def _listen(self, desk: Desk) -> None:
        safety, now = self._safety, self._clock.now
        heard: list[tuple[str | None, str, Callable[[Any], None], Callable[[Any], bool] | None]] = [
            (desk.heartbeat, "Empty", lambda message: safety.beat(now()), always),
            (desk.stop, "Empty", lambda message: self._stop(), always),
            (desk.reset, "Empty", lambda message: self._reset(), None),
            (desk.takeover, "Bool", lambda message: self._taken(bool(message.data)), taking),
            (desk.instruction, "String", self._instructed, None),
            (desk.outcome, "String", self._ended, None),
        ]
        for name, kind, on_message, urgent in heard:
            if name is not None:
                listen(self._transport, name, f"std_msgs/msg/{kind}", on_message, urgent)

    def _stop(self) -> None:
        self._stopped_at = self._clock.now()
        self._safety.stop(self._stopped_at, "told to stop")

    def _reset(self) -> None:
        if self._clock.now() - self._stopped_at < HASTE:
            self.faults["resets together with a stop"] += 1
        else:
            self._told(self._safety.reset)

    def _told(self, what: Callable[[float], None]) -> None:
        try:
            what(self._clock.now())
        except RuntimeError as error:
            # Whoever asked reads the status; a robot that may not move does not.
            _log.warning("%s", error)

    def _taken(self, human: bool) -> None:
        if human:
            self._safety.take_over(self._clock.now())
        elif self._safety.human:
            self._told(self._safety.give_back)

    def _told_by_gate(self, message: Any) -> None:
        try:
            self.gate = dict(json.loads(message.data))
        except (ValueError, TypeError):
            self.faults["words of a gate that say nothing"] += 1

    def _instructed(self, message: Any) -> None:
        self.streams.instruction = str(message.data)

    def _ended(self, message: Any) -> None:
        try:
            self._outcome = read_outcome(message)
        except SpecMismatch as error:
            self.faults["outcomes that cannot be read"] += 1
            _log.warning("%s", error)
