"""The robot's part of a contract: on which topics it says and hears what, and in which terms.

What a robot speaks of otherwise than the contract does (degrees, a gripper the other way round, quaternions, a camera
on its side) is declared here and converted; nothing is guessed. It knows neither ROS nor any transport.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from vla_runtime.types import ROTATIONS, ActionSpec, CameraSpec, Group, SpecMismatch, StateSpec

IMAGES = ("sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/Image")
STATES = ("sensor_msgs/msg/JointState",)
TRAJECTORY, ARRAY = "trajectory_msgs/msg/JointTrajectory", "std_msgs/msg/Float64MultiArray"
TWIST, TWIST_STAMPED = "geometry_msgs/msg/Twist", "geometry_msgs/msg/TwistStamped"
COMMANDS = (TRAJECTORY, ARRAY, TWIST, TWIST_STAMPED)
TURNS = (0, 90, 180, 270)
FIELDS = ("position", "velocity", "effort")
# What becomes of a group of the action when the robot is to stand.
STOPS = ("hold", "zero", "cease")
_TWIST_NAMES = tuple(f"{part}.{axis}" for part in ("linear", "angular") for axis in "xyz")


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic and how it is sent. reliable, depth: ROS 2's quality of service; ROS 1 knows depth alone."""

    name: str
    type: str
    reliable: bool = True
    depth: int = 1

    def __post_init__(self) -> None:
        if not self.name.startswith("/") or self.name.endswith("/"):
            raise SpecMismatch(f"topic: expected an absolute name such as /camera/image, got {self.name!r}")
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
        given = dict(_mapping(document, "robot"))
        for one, kind in (("name", "str"), ("skew", "float"), ("expiry", "float"), ("ends", "str | None")):
            if one in given and not _fits(given[one], kind):
                raise SpecMismatch(f"robot, {one}: expected {kind}, got {given[one]!r}")
        kinds = {"cameras": CameraStream, "state": StateStream, "action": CommandStream}
        known = {one.name for one in fields(cls)}
        if not {"name", *kinds} <= set(given) <= known:
            raise SpecMismatch(f"robot: expected the keys {sorted(known)}, got {sorted(given)}")
        streams: dict[str, Any] = {
            part: {
                name: _made(kind, one, f"robot {part} {name!r}") for name, one in _mapping(given[part], part).items()
            }
            for part, kind in kinds.items()
        }
        if "desk" in given:
            given["desk"] = _made(Desk, given["desk"], "robot desk")
        return cls(**{**given, **streams})

    def require(self, cameras: tuple[CameraSpec, ...], state: StateSpec, action: ActionSpec) -> None:
        """SpecMismatch, with all of them, for streams that do not carry what the contract says."""
        found = _missing("cameras", self.cameras, [camera.name for camera in cameras])
        found += _missing("state", self.state, list(state.slices))
        found += _missing("action", self.action, [name for name in action.slices if name != self.ends])
        ending = action.group(self.ends) if self.ends in action.slices else None
        if self.ends is not None and (ending is None or ending.size != 1 or None in (ending.open, ending.close)):
            found.append(f"ends: expected a binary group of one dimension, with open and close, got {self.ends!r}")
        for name, camera in self.cameras.items():
            found += _expect(f"camera {name!r}, type", camera.type, IMAGES)
            found += _expect(f"camera {name!r}, turn", camera.turn, TURNS)
        for group in state.groups:
            stream = self.state.get(group.name)
            if stream is not None:
                found += _expect(f"state {group.name!r}, type", stream.type, STATES)
                found += _expect(f"state {group.name!r}, field", stream.field, FIELDS)
                found += _conversion(f"state {group.name!r}", group, stream)
        for group in action.groups:
            command = self.action.get(group.name)
            if command is not None:
                found += _expect(f"action {group.name!r}, type", command.type, COMMANDS)
                found += _conversion(f"action {group.name!r}", group, command)
                found += _stopping(group, command)
        found += _one_way_a_topic(self.action, action)
        ages = {name: one.max_age for name, one in self.cameras.items()}
        ages |= {name: one.max_age for name, one in self.state.items()}
        found += [
            f"{name!r}, max_age: expected more than 0 seconds, got {age}" for name, age in ages.items() if not age > 0
        ]
        for name in ("heartbeat", "stop", "reset", "takeover", "instruction", "outcome", "status", "diagnostics"):
            topic = getattr(self.desk, name)
            if topic is not None and not topic.startswith("/"):
                found.append(f"desk {name}: expected an absolute name such as /vla/stop, got {topic!r}")
        for name in ("skew", "expiry"):
            if not getattr(self, name) > 0:
                found.append(f"{name}: expected more than 0 seconds, got {getattr(self, name)}")
        if found:
            raise SpecMismatch(f"robot {self.name!r}: {len(found)} faults:\n  " + "\n  ".join(found))


def _stopping(group: Group, command: CommandStream) -> list[str]:
    if group.kind == "delta":
        return [
            f"action {group.name!r}: expected goals or velocities, got increments, which a lost command would change"
        ]
    moving = group.kind == "velocity"
    if command.type in (TWIST, TWIST_STAMPED) and not moving:
        return [
            f"action {group.name!r}, type: expected velocities in a {command.type}, got a group of kind {group.kind}"
        ]
    if command.stop not in STOPS:
        return _expect(f"action {group.name!r}, stop", command.stop, STOPS)
    if command.stop == "zero" and not moving:
        return [
            f"action {group.name!r}, stop: expected hold or cease, zeros of an absolute group are a place, got zero"
        ]
    if command.stop != "zero" and moving:
        # A controller that hears nothing more may go on with the last velocity it heard.
        return [f"action {group.name!r}, stop: expected zero for a group of kind {group.kind}, got {command.stop}"]
    return []


def _conversion(what: str, group: Group, stream: StateStream | CommandStream) -> list[str]:
    found = []
    size = group.size
    if stream.rotation is not None:
        if group.rotation is None:
            found.append(f"{what}, rotation: expected none for a group that is no rotation, got {stream.rotation!r}")
        found += _expect(f"{what}, rotation", stream.rotation, tuple(ROTATIONS))
        size = ROTATIONS.get(stream.rotation, size)
        if (stream.scale, stream.offset) != (1.0, 0.0):
            found.append(f"{what}: expected scale 1 and offset 0 where a rotation is converted")
    if len(stream.names) != size or len(set(stream.names)) != len(stream.names):
        found.append(f"{what}, names: expected {size} different ones, got {list(stream.names)}")
    for key in ("scale", "offset"):
        value = getattr(stream, key)
        if isinstance(value, tuple) and len(value) != len(stream.names):
            found.append(f"{what}, {key}: expected one number or {len(stream.names)}, got {list(value)}")
    if not np.all(stream.scale):
        found.append(f"{what}, scale: expected other numbers than 0, got {stream.scale}")
    if stream.type in (TWIST, TWIST_STAMPED) and not set(stream.names) <= set(_TWIST_NAMES):
        found.append(f"{what}, names: expected among {', '.join(_TWIST_NAMES)}, got {list(stream.names)}")
    return found


def _one_way_a_topic(action: Mapping[str, CommandStream], spec: ActionSpec) -> list[str]:
    found: list[str] = []
    names: dict[str, set[str]] = {}
    moving: dict[str, set[bool]] = {}
    kinds: dict[str, CommandStream] = {}
    for name, stream in action.items():
        first = kinds.setdefault(stream.topic, stream)
        same = ("type", "stop", "reliable", "depth")
        if any(getattr(first, one) != getattr(stream, one) for one in same):
            found.append(f"action {name!r}: expected the same {', '.join(same)} as others on {stream.topic}")
        there = names.setdefault(stream.topic, set())
        if twice := sorted(there & set(stream.names)):
            found.append(f"action {name!r}, names: expected others than those of another group, got {twice}")
        there |= set(stream.names)
        if name in spec.slices:
            moving.setdefault(stream.topic, set()).add(spec.group(name).kind == "velocity")
    for topic, both in moving.items():
        if len(both) > 1:
            found.append(f"action on {topic}: expected velocities or goals, got both; give them topics of their own")
    return found


def _missing(what: str, streams: Mapping[str, Any], names: list[str]) -> list[str]:
    return [] if set(streams) == set(names) else [f"{what}: expected streams for {names}, got {sorted(streams)}"]


def _expect(what: str, value: object, known: tuple[Any, ...]) -> list[str]:
    return [] if value in known else [f"{what}: expected one of {', '.join(map(str, known))}, got {value!r}"]


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecMismatch(f"{what}: expected a map, got {type(value).__name__}")
    return value


def _made(kind: Any, values: Any, what: str) -> Any:
    given = {key: tuple(one) if isinstance(one, list) else one for key, one in _mapping(values, what).items()}
    for one in fields(kind):
        if one.name in given and not _fits(given[one.name], str(one.type)):
            raise SpecMismatch(f"{what}, {one.name}: expected {one.type}, got {given[one.name]!r}")
    try:
        return kind(**given)
    except TypeError as error:
        known = [one.name for one in fields(kind)]
        raise SpecMismatch(f"{what}: expected keys among {known}, got {sorted(given)}: {error}") from error


def _fits(value: Any, kind: str) -> bool:
    if kind.endswith(" | None"):
        return value is None or _fits(value, kind.removesuffix(" | None"))
    if kind == "float | tuple[float, ...]":
        return _fits(value, "float") or (isinstance(value, tuple) and all(_fits(one, "float") for one in value))
    if kind == "tuple[str, ...]":
        return isinstance(value, tuple) and all(isinstance(one, str) for one in value)
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    known: dict[str, type] = {"str": str, "bool": bool, "int": int}
    return isinstance(value, known[kind]) and (kind != "int" or not isinstance(value, bool))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(one) if isinstance(one, tuple) else one for key, one in values.items()}
