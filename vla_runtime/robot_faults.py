"""What a robot's side may not state: streams that do not carry what the contract says, or that exclude each other.

All faults are collected, so that one message says everything that is to be changed. The module knows no transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_runtime.groups import ROTATIONS, different_meaning
from vla_runtime.robot_side import (
    COMMANDS,
    IMAGES,
    STATES,
    TWIST,
    TWIST_STAMPED,
    CommandStream,
    Desk,
    RobotSide,
    StateStream,
    topic_fault,
)
from vla_runtime.types import ActionSpec, CameraSpec, Group, SpecMismatch, StateSpec

TURNS = (0, 90, 180, 270)
FIELDS = ("position", "velocity", "effort")
# What becomes of a group of the action when the robot is to stand.
STOPS = ("hold", "zero", "cease")
DESK = ("heartbeat", "stop", "reset", "takeover", "instruction", "outcome", "status", "diagnostics")
_TWIST_NAMES = tuple(f"{part}.{axis}" for part in ("linear", "angular") for axis in "xyz")


def require_robot(side: RobotSide, cameras: tuple[CameraSpec, ...], state: StateSpec, action: ActionSpec) -> None:
    """SpecMismatch, with all of them, for streams that do not carry what the contract says."""
    found = _missing("cameras", side.cameras, [camera.name for camera in cameras])
    found += _missing("state", side.state, list(state.slices))
    found += _missing("action", side.action, [name for name in action.slices if name != side.ends])
    found += _values(side)
    found += _ending(side, action)
    if not state.groups:
        found.append("state: expected one group or more, since commands answer a state, got none")
    for name, camera in side.cameras.items():
        found += _expect(f"camera {name!r}, type", camera.type, IMAGES)
        found += _expect(f"camera {name!r}, turn", camera.turn, TURNS)
    for group in state.groups:
        stream = side.state.get(group.name)
        if stream is not None:
            found += _expect(f"state {group.name!r}, type", stream.type, STATES)
            found += _expect(f"state {group.name!r}, field", stream.field, FIELDS)
            found += _conversion(f"state {group.name!r}", group, stream)
    for group in action.groups:
        command = side.action.get(group.name)
        if command is not None:
            found += _expect(f"action {group.name!r}, type", command.type, COMMANDS)
            found += _conversion(f"action {group.name!r}", group, command)
            found += _stopping(group, command)
        # A robot that is to stand is told to be where the state says that it is.
        if group.kind == "absolute" and group.name in state.slices:
            told = different_meaning(state.group(group.name), group)
            found += [f"state {group.name!r}, {one}; or give one of the two groups another name" for one in told]
    found += _states_of_a_topic(side.state)
    found += _commands_of_a_topic(side.action, action)
    found += _topics(side)
    if found:
        count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
        raise SpecMismatch(f"robot {side.name!r}: {count}:\n  " + "\n  ".join(found))


def _values(side: RobotSide) -> list[str]:
    found = [] if side.name else ["name: expected text, got none"]
    for what, streams in (("camera", side.cameras), ("state", side.state), ("action", side.action)):
        for name, stream in streams.items():
            age = getattr(stream, "max_age", 1.0)
            if not age > 0:
                found.append(f"{what} {name!r}, max_age: expected more than 0 seconds, got {age}")
            if stream.depth < 1:
                found.append(f"{what} {name!r}, depth: expected 1 or more, got {stream.depth}")
    for name in ("skew", "expiry"):
        if not getattr(side, name) > 0:
            found.append(f"{name}: expected more than 0 seconds, got {getattr(side, name)}")
    return found


def _ending(side: RobotSide, action: ActionSpec) -> list[str]:
    if side.ends is None:
        return []
    group = action.group(side.ends) if side.ends in action.slices else None
    if group is None or group.kind != "binary" or group.size != 1 or None in (group.open, group.close):
        return [f"ends: expected a binary group of one dimension, with open and close, got {side.ends!r}"]
    return []


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
        elif group.kind not in ("absolute", "measured") and stream.rotation != group.rotation:
            found.append(f"{what}, rotation: expected none for a group of kind {group.kind}, got {stream.rotation!r}")
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


def _states_of_a_topic(state: Mapping[str, StateStream]) -> list[str]:
    found: list[str] = []
    firsts: dict[str, StateStream] = {}
    carried: dict[tuple[str, str], dict[str, str]] = {}
    for name, stream in state.items():
        first = firsts.setdefault(stream.topic, stream)
        found += _same(f"state {name!r}", first, stream, ("type", "reliable", "depth"))
        there = carried.setdefault((stream.topic, stream.field), {})
        for value in dict.fromkeys(stream.names):
            if value in there:
                found.append(
                    f"state {name!r}, names: expected values that no other group reads from {stream.topic}, got "
                    f"{value!r}, which {there[value]!r} reads"
                )
            there.setdefault(value, name)
    return found


def _commands_of_a_topic(action: Mapping[str, CommandStream], spec: ActionSpec) -> list[str]:
    found: list[str] = []
    names: dict[str, set[str]] = {}
    moving: dict[str, set[bool]] = {}
    firsts: dict[str, CommandStream] = {}
    for name, stream in action.items():
        first = firsts.setdefault(stream.topic, stream)
        found += _same(f"action {name!r}", first, stream, ("type", "stop", "reliable", "depth"))
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


def _same(what: str, first: Any, stream: Any, keys: tuple[str, ...]) -> list[str]:
    return [
        f"{what}, {key}: expected {getattr(first, key)!r} as of the others on {stream.topic}, got "
        f"{getattr(stream, key)!r}; or take another topic"
        for key in keys
        if getattr(first, key) != getattr(stream, key)
    ]


def _topics(side: RobotSide) -> list[str]:
    """Names that are none, and topics that would carry two different things."""
    states = {stream.topic for stream in side.state.values()}
    commands = {stream.topic for stream in side.action.values()}
    uses = [(stream.topic, f"camera {name!r}") for name, stream in side.cameras.items()]
    uses += [(topic, "the state") for topic in sorted(states)]
    uses += [(topic, "commands") for topic in sorted(commands)]
    uses += _desk_topics(side.desk)
    found = [f"{user}: {fault}" for topic, user in uses if (fault := topic_fault(topic))]
    # Topics that bridge and gate name themselves, after the contract's.
    uses += [(f"{topic}/gated", "commands on their way to the gate") for topic in sorted(commands)]
    uses += [] if side.desk.status is None else [(f"{side.desk.status}/gate", "the gate's status")]
    users: dict[str, list[str]] = {}
    for topic, user in uses:
        users.setdefault(topic, []).append(user)
    for topic, several in users.items():
        if len(several) > 1:
            found.append(f"topic {topic}: expected one use, got {' and '.join(several)}; give each a topic of its own")
    return found


def _desk_topics(desk: Desk) -> list[tuple[str, str]]:
    named = ((name, getattr(desk, name)) for name in DESK)
    return [(topic, f"desk {name}") for name, topic in named if topic is not None]


def _missing(what: str, streams: Mapping[str, Any], names: list[str]) -> list[str]:
    return [] if set(streams) == set(names) else [f"{what}: expected streams for {names}, got {sorted(streams)}"]


def _expect(what: str, value: object, known: tuple[Any, ...]) -> list[str]:
    return [] if value in known else [f"{what}: expected one of {', '.join(map(str, known))}, got {value!r}"]
