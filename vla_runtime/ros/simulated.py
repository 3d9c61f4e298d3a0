"""A simulated robot behind a transport: it says what its cameras and joints see, in real time, and does what it is
told.

The gate stands inside it. The world goes on whether commands come or not: without a fresh one the robot stands. It
knows any Env and no transport in particular.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vla_runtime.contract import Contract, require_match
from vla_runtime.control.clock import Clock
from vla_runtime.control.standing import standing
from vla_runtime.interfaces import Env
from vla_runtime.robot_side import CameraStream, StateStream, Topic
from vla_runtime.ros.gate import Gate
from vla_runtime.ros.messages import image_message, ours, state_message, text, theirs
from vla_runtime.ros.robot import GATED, command_topics, gated
from vla_runtime.ros.streams import robot_of
from vla_runtime.ros.transport import Transport
from vla_runtime.types import Command, Float, Observation, Outcome, SpecMismatch

_log = logging.getLogger(__name__)


class SimulatedRobot:
    """Plays episodes of `env` for whoever commands it. clock: monotonic; stamps: the robot's own, for its messages.

    pause: seconds of silence between episodes. cameras: how many of them say something in a period, in turn; None: all.
    SpecMismatch for an environment that is not what the contract says.
    """

    def __init__(
        self, env: Env, contract: Contract, transport: Transport, clock: Clock, stamps: Clock, pause: float = 0.5,
        cameras: int | None = None,
    ):  # fmt: skip
        require_match(Contract.of(env.spec), contract, env.spec.name, "the robot's contract")
        self._env, self._contract, self._side = env, contract, robot_of(contract)
        if self._side.ends is not None:
            raise SpecMismatch(f"ends: expected none of a simulated robot, whose episodes end, got {self._side.ends!r}")
        self._transport, self._clock, self._stamps, self._pause = transport, clock, stamps, pause
        names = [camera.name for camera in contract.cameras]
        if cameras is not None and not 1 <= cameras <= len(names):
            raise ValueError(f"cameras: expected 1 to {len(names)} in a period, got {cameras}")
        self._waiting, self._at_once = deque(names), len(names) if cameras is None else cameras
        self._lock = threading.Lock()
        for group in contract.state.groups:
            stream = self._side.state[group.name]
            if stream.field != "position":
                raise SpecMismatch(
                    f"state {group.name!r}: expected field position of a simulated robot, got {stream.field!r}"
                )
        self._newest: dict[str, tuple[dict[str, float], float]] = {}
        self._topics = command_topics(self._side.action)
        self._gates: dict[str, Gate] = {}
        self.faults: Counter[str] = Counter()
        transport.open(self._publishes())
        for topic, names in self._topics.items():
            wanted = tuple(one for name in names for one in self._side.action[name].names)
            moving = contract.action.group(names[0]).kind == "velocity"
            self._gates[topic] = Gate(wanted, self._side.expiry, moving)

            def on_message(message: Any, topic: str = topic) -> None:
                with self._lock:
                    values = self._gates[topic].offer(message, self._stamps.now())
                    if values is not None:
                        self._newest[topic] = values, self._clock.now()

            transport.subscribe(Topic(gated(topic), GATED), on_message)

    @property
    def refused(self) -> Counter[str]:
        """Commands that did not pass the gate, by reason."""
        return sum((gate.refused for gate in self._gates.values()), Counter())

    def play(
        self, seed: int, task: int, episode: int, patience: float, told_to_end: Callable[[], bool] = lambda: False
    ) -> tuple[Outcome, Mapping[str, object]]:
        """One episode, from its first command on; how it ended, and the facts of its beginning.

        patience: seconds to wait for that command. told_to_end: asked every period. RuntimeError when none comes.
        """
        facts = self._env.reset(seed, task, episode)
        spec = self._env.spec
        with self._lock:
            self._newest.clear()
            for gate in self._gates.values():
                gate.begin(self._stamps.now())
        last: Float | None = None
        steps, held = 0, 0
        began = deadline = self._clock.now()
        while True:
            looking = [self._waiting[index] for index in range(self._at_once)]
            self._waiting.rotate(-self._at_once)
            observation = self._env.observe(looking)
            self._say(observation)
            if told_to_end():
                return Outcome(False, "stopped"), facts
            command = self._commanded()
            if command is None and last is None:
                if self._clock.now() - began > patience:
                    raise RuntimeError(f"robot: expected a command within {patience:g} s, got {self._instead()}")
            else:
                values = standing(spec, observation, last) if command is None else command
                held += command is None
                self._env.apply(Command(values, observation.time, held=command is None))
                last, steps = values, steps + 1
                outcome = self._env.outcome()
                if outcome is None and steps >= spec.max_steps:
                    outcome = Outcome(False, "time")
                if outcome is not None:
                    self.faults["periods without a fresh command"] += held
                    self._tell(outcome)
                    self._clock.sleep_until(self._clock.now() + self._pause)
                    return outcome, facts
            deadline += spec.period
            if self._clock.now() > deadline + spec.period:
                self.faults["periods that came late"] += 1
                deadline = self._clock.now()
            self._clock.sleep_until(deadline)

    def _instead(self) -> str:
        """What came where no command could be executed, by topic."""
        with self._lock:
            found = [
                f"{sum(gate.refused.values())} on {gated(topic)} that were refused, the last because: {gate.detail}"
                if gate.refused
                else f"none on {gated(topic)}"
                for topic, gate in self._gates.items()
                if topic not in self._newest
            ]
        return "; ".join(found) or "none on all topics at once"

    def _commanded(self) -> Float | None:
        """What is due now, float32 [A]; None without a fresh command on every topic."""
        action = self._contract.action
        values = np.zeros(action.size, np.float32)
        with self._lock:
            now = self._clock.now()
            for topic, names in self._topics.items():
                newest = self._newest.get(topic)
                if newest is None or now - newest[1] > self._side.expiry:
                    return None
                for name in names:
                    values[action.slices[name]] = ours(newest[0], self._side.action[name], action.group(name))
        return action.clamp(values)[0]

    def _say(self, observation: Observation) -> None:
        now, frame = self._stamps.now(), self._side.name
        by_topic: dict[str, dict[str, float]] = {}
        streams: dict[str, Any] = {}
        for group in self._contract.state.groups:
            stream = self._side.state[group.name]
            part = observation.state[self._contract.state.slices[group.name]]
            by_topic.setdefault(stream.topic, {}).update(theirs(part, stream, group))
            streams[stream.topic] = stream
        for topic, values in by_topic.items():
            stream = streams[topic]
            self._publish(stream, state_message(values, stream, now, frame))
        for name, image in observation.images.items():
            camera = self._side.cameras[name]
            self._publish(camera, image_message(image, camera, now, frame))

    def _tell(self, outcome: Outcome) -> None:
        if self._side.desk.outcome is not None:
            said = json.dumps({"success": outcome.success, "reason": outcome.reason})
            self._transport.publish(Topic(self._side.desk.outcome, "std_msgs/msg/String"), text(said))

    def _publish(self, stream: Any, message: Any) -> None:
        try:
            self._transport.publish(Topic(stream.topic, stream.type, stream.reliable, stream.depth), message)
        except RuntimeError:
            self.faults["messages that could not be sent"] += 1

    def _publishes(self) -> list[Topic]:
        said: list[CameraStream | StateStream] = [*self._side.cameras.values(), *self._side.state.values()]
        streams = {one.topic: one for one in said}
        found = [Topic(one.topic, one.type, one.reliable, one.depth) for one in streams.values()]
        if self._side.desk.outcome is not None:
            found.append(Topic(self._side.desk.outcome, "std_msgs/msg/String"))
        return found
