"""The robot's part of a contract: on which topics it says and hears what, and in which terms.

What a robot speaks of otherwise than the contract does (degrees, a gripper the other way round, quaternions, a camera
on its side) is declared here and converted; nothing is guessed. It knows neither ROS nor any transport.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from vla_runtime.documents import key_faults, made, mapping, type_faults
from vla_runtime.types import SpecMismatch

IMAGES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")
STATES = ("sensor_msgs/msg/JointState",)
TRAJECTORY, ARRAY = "trajectory_msgs/msg/JointTrajectory", "std_msgs/msg/Float64MultiArray"
TWIST, TWIST_STAMPED = "geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"
COMMANDS = (TRAJECTORY, ARRAY, TWIST, TWIST_STAMPED)
# ROS 1 and ROS 2 agree on these: parts of letters, digits and underscores, of which none begins with a digit.
_TOPIC = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")


def topic_fault(name: str) -> str | None:
    """What is wrong with the name of a topic; None for an absolute one that every ROS takes."""
    if _TOPIC.fullmatch(name):
        return None
    return (
        "expected an absolute name such as /camera/image, each part of letters, digits and underscores and not "
        f"beginning with a digit, got {name!r}"
    )


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic and how it is sent. reliable, depth: ROS 2's quality of service; ROS 1 knows depth alone."""

    name: str
    type: str
    reliable: bool = True
    depth: int = 1

    def __post_init__(self) -> None:
        if fault := topic_fault(self.name):
            raise SpecMismatch(f"topic: {fault}")
        if self.depth < 1:
            raise SpecMismatch(f"topic {self.name}: expected a depth from 1 on, got {self.depth}")


@dataclass(frozen=True, slots=True)
class CameraStream:
    """Images of one camera. turn: degrees, clockwise, that make them upright; resize: they may be of another size, of
    the same proportions. max_age: seconds after which an image is stale.
    """

    topic: str
    type: str = IMAGES[0]
    turn: int = 0
    resize: bool = False
    max_age: float = 0.5
    reliable: bool = False
    depth: int = 1


@dataclass(frozen=True, slots=True)
class StateStream:
    """One group of the state, from a message that names its values.

    names: those of the group's dimensions in the message, in the order of `dims`, wherever they stand in it. field:
    which of the message's lists. scale, offset: contract value = scale * theirs + offset, one number for all or one for
    each name. rotation: how the robot says a rotation, None for as the contract does. max_age: seconds after which it
    is stale.
    """

    topic: str
    names: tuple[str, ...]
    type: str = STATES[0]
    field: str = "position"
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    rotation: str | None = None
    max_age: float = 0.2
    reliable: bool = False
    depth: int = 1


@dataclass(frozen=True, slots=True)
class CommandStream:
    """One group of the action; groups with the same topic go in one message.

    names, scale, offset, rotation: as for a state (contract value = scale * theirs + offset). stop: what it gets when
    the robot is to stand: the place it holds, a velocity of zero, or nothing.
    """

    topic: str
    names: tuple[str, ...]
    stop: str
    type: str = TRAJECTORY
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    rotation: str | None = None
    reliable: bool = True
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Desk:
    """Topics on which people and machines speak with a bridge; None: nobody does.

    heartbeat, stop, reset: std_msgs/msg/Empty; takeover: std_msgs/msg/Bool; instruction, outcome: std_msgs/msg/String
    (outcome is a simulated robot's word on its episode); status: std_msgs/msg/String with JSON, from the bridge;
    diagnostics: diagnostic_msgs/msg/DiagnosticArray, the same for ROS's tools.
    """

    heartbeat: str | None = None
    stop: str | None = "/vla/stop"
    reset: str | None = "/vla/reset"
    takeover: str | None = "/vla/takeover"
    instruction: str | None = None
    outcome: str | None = None
    status: str | None = "/vla/status"
    diagnostics: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RobotSide:
    """Streams by the name of a camera or a group. skew: seconds by which stamps of one observation may differ. expiry:
    seconds after which a command is too old to be executed. ends: a binary group of the action with which a policy says
    that it has finished (its `close`); it goes to no controller and has no stream.
    """

    name: str
    cameras: Mapping[str, CameraStream]
    state: Mapping[str, StateStream]
    action: Mapping[str, CommandStream]
    skew: float = 0.05
    expiry: float = 0.2
    desk: Desk = field(default_factory=Desk)
    ends: str | None = None

    def document(self) -> dict[str, Any]:
        """Plain values; `read` is the inverse."""
        streams = {
            part: {name: _plain(asdict(one)) for name, one in getattr(self, part).items()}
            for part in ("cameras", "state", "action")
        }
        rest = {"skew": self.skew, "expiry": self.expiry, "desk": asdict(self.desk), "ends": self.ends}
        return {"name": self.name, **streams, **rest}

    @classmethod
    def read(cls, document: Any) -> RobotSide:
        """The inverse of `document`; what has a default may be missing. SpecMismatch for anything else."""
        given = dict(mapping(document, "robot"))
        kinds = {"cameras": CameraStream, "state": StateStream, "action": CommandStream}
        found = key_faults(given, ("name", *kinds), [one.name for one in fields(cls)], "robot")
        found += type_faults(given, {"name": "str", "skew": "float", "expiry": "float", "ends": "str | None"}, "robot")
        for part, kind in kinds.items():
            try:
                streams = mapping(given.get(part, {}), f"robot {part}")
            except SpecMismatch as error:
                found.append(str(error))
                continue
            read = {}
            for name, values in streams.items():
                try:
                    read[name] = made(kind, values, f"robot {part} {name!r}")
                except SpecMismatch as error:
                    found.append(str(error))
            given[part] = read
        if "desk" in given:
            try:
                given["desk"] = made(Desk, given["desk"], "robot desk")
            except SpecMismatch as error:
                found.append(str(error))
        if found:
            raise SpecMismatch("\n  ".join(found))
        return cls(**given)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(one) if isinstance(one, tuple) else one for key, one in values.items()}
