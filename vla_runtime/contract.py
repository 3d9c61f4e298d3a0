"""The contract, version 1: the document an environment, a data set, a checkpoint and a robot must agree on.

It names cameras, state and action groups with their units, frames and conventions, the control rate, the horizon,
where the instruction comes from and which statistics normalise the values; a robot's also on which topics it speaks.
It knows nothing of who carries it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from vla_runtime.disk import plain, write_text
from vla_runtime.documents import key_faults, kind_of, made, mapping, read_yaml, type_faults
from vla_runtime.robot_faults import require_robot
from vla_runtime.robot_side import RobotSide
from vla_runtime.types import ActionSpec, CameraSpec, EnvSpec, Group, PolicySpec, SpecMismatch, StateSpec

VERSION = 1
# Of a group, what is a robot's own affair and nobody must know.
_OWN = ("speed", "acceleration", "rest")
# What a document's own values must be; its groups, cameras and robot are read apart.
_VALUES = {"rate_hz": "float", "horizon": "int | None", "instruction": "str", "statistics": "str | None"}


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """What both sides must mean by the same numbers. None in horizon, statistics or robot: this side has none to
    state. SpecMismatch with all that cannot be.
    """

    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    action: ActionSpec
    rate_hz: float
    horizon: int | None = None
    instruction: str = "text"
    statistics: str | None = None
    robot: RobotSide | None = None

    def __post_init__(self) -> None:
        found = []
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            found.append(f"cameras: expected every name once, got {names}")
        if not self.action.groups:
            found.append("action: expected one group or more, got none")
        if not 0 < self.rate_hz < math.inf:
            found.append(f"rate_hz: expected a finite number of periods a second above 0, got {self.rate_hz}")
        if self.horizon is not None and self.horizon < 1:
            found.append(f"horizon: expected 1 row or more, or null, got {self.horizon}")
        if not self.instruction:
            found.append("instruction: expected where it comes from (text), got none")
        if found:
            raise SpecMismatch(_listed(found))
        if self.robot is not None:
            require_robot(self.robot, self.cameras, self.state, self.action)

    @classmethod
    def of(cls, spec: EnvSpec | PolicySpec) -> Contract:
        """The contract that an environment or a policy states by its spec."""
        return cls(
            cameras=spec.cameras,
            state=spec.state,
            action=spec.action,
            rate_hz=round(1.0 / spec.period, 9),
            horizon=spec.horizon if isinstance(spec, PolicySpec) else None,
            statistics=spec.statistics if isinstance(spec, PolicySpec) else None,
        )

    def document(self) -> dict[str, Any]:
        """Plain values for YAML or JSON; `read` is its inverse."""
        return {
            "version": VERSION,
            "cameras": [asdict(camera) for camera in self.cameras],
            "state": [_group_document(group) for group in self.state.groups],
            "action": [_group_document(group) for group in self.action.groups],
            "rate_hz": self.rate_hz,
            "horizon": self.horizon,
            "instruction": self.instruction,
            "statistics": self.statistics,
            **({} if self.robot is None else {"robot": self.robot.document()}),
        }

    @classmethod
    def load(cls, path: str | Path) -> Contract:
        """A contract from a YAML file. SpecMismatch, naming the file, for one that is none."""
        document = read_yaml(path, "contract")
        if not isinstance(document, Mapping):
            raise SpecMismatch(f"contract: expected a map in {path}, got {kind_of(document)}")
        try:
            return cls.read(document)
        except SpecMismatch as error:
            raise SpecMismatch(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write a YAML file for `load`, whole or not at all."""
        write_text(Path(path), yaml.safe_dump(plain(self.document()), sort_keys=False))

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Contract:
        """A contract from its document; `robot` may be missing. SpecMismatch for another version, and with all keys
        that are missing or unknown, and all values of another type or out of range, with camera or group.
        """
        version = mapping(document, "contract").get("version")
        if version != VERSION or isinstance(version, bool):
            got = repr(version) if "version" in document else "none"
            remedy = f"write version: {VERSION}, a number"
            if isinstance(version, int) and not isinstance(version, bool):
                remedy = "read it with the version of vla_runtime that wrote it, or write it again for this one"
            raise SpecMismatch(f"contract: expected version {VERSION}, got {got}; {remedy}")
        keys = [field.name for field in fields(cls)]
        found = key_faults(document, [key for key in keys if key != "robot"], ["version", *keys], "")
        found += type_faults(document, _VALUES, "")
        cameras = _read(CameraSpec, document, "cameras", "camera", found)
        state, action = (_read(Group, document, part, f"{part} group", found) for part in ("state", "action"))
        robot = None
        try:
            robot = None if document.get("robot") is None else RobotSide.read(document["robot"])
        except SpecMismatch as error:
            found += str(error).split("\n  ")
        if found:
            raise SpecMismatch(_listed(found))
        try:
            groups = StateSpec(tuple(state)), ActionSpec(tuple(action))
        except ValueError as error:
            raise SpecMismatch(f"contract: {error}") from error
        return cls(tuple(cameras), *groups, robot=robot, **{key: document[key] for key in _VALUES})

    def fingerprint(self) -> str:
        """16 hex digits of the document; equal contracts have equal ones."""
        text = json.dumps(self.document(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(have: Contract, want: Contract) -> list[str]:
    """Every way in which `have` (an environment, a robot) fails what `want` (a policy, a data set) needs.

    Cameras that `want` does not use may be there. Horizon, statistics and
    the robot's side count only where both state one.
    """
    found = []
    cameras = {camera.name: camera for camera in have.cameras}
    for camera in want.cameras:
        if camera.name not in cameras:
            found.append(f"cameras: expected {camera.name!r}, got {sorted(cameras)}")
        elif cameras[camera.name] != camera:
            found.append(f"camera {camera.name!r}: expected {camera.shape}, got {cameras[camera.name].shape}")
    found += _group_differences("state", have.state.groups, want.state.groups)
    found += _group_differences("action", have.action.groups, want.action.groups)
    if have.rate_hz != want.rate_hz:
        found.append(f"rate_hz: expected {want.rate_hz}, got {have.rate_hz}")
    if have.instruction != want.instruction:
        found.append(f"instruction: expected {want.instruction!r}, got {have.instruction!r}")
    for key in ("horizon", "statistics"):
        a, b = getattr(have, key), getattr(want, key)
        if a is not None and b is not None and a != b:
            found.append(f"{key}: expected {b!r}, got {a!r}")
    if have.robot is not None and want.robot is not None:
        found += _document_differences("robot", have.robot.document(), want.robot.document())
    return found


def every_difference(have: Contract, want: Contract) -> list[str]:
    """All in which two contracts differ, whether or not it keeps one from fulfilling the other, and also what only one
    of them states.
    """

    def keyed(contract: Contract) -> dict[str, Any]:
        document = contract.document()
        parts = {part: {one["name"]: one for one in document[part]} for part in ("cameras", "state", "action")}
        orders = {f"order of {part}": list(groups) for part, groups in parts.items() if part != "cameras"}
        return {**document, **parts, **orders}

    return [line.removeprefix("contract.") for line in _document_differences("contract", keyed(have), keyed(want))]


def at_rate(contract: Contract, rate_hz: float) -> Contract:
    """What a policy wants of a robot of that rate: goals can be sent more often than they are made, a whole number of
    times; increments and velocities mean their own period.
    """
    whole = abs(rate_hz / contract.rate_hz - round(rate_hz / contract.rate_hz)) < 1e-6 and rate_hz > contract.rate_hz
    goals = all(group.kind in ("absolute", "binary") for group in contract.action.groups)
    return replace(contract, rate_hz=rate_hz) if whole and goals else contract


def require_match(have: Contract, want: Contract, have_name: str, want_name: str) -> None:
    """SpecMismatch with all differences in one message, unless `have` fulfils `want`."""
    found = differences(have, want)
    if found:
        lines = "\n  ".join(found)
        raise SpecMismatch(
            f"{have_name} does not fulfil the contract of {want_name}, {len(found)} differences "
            f"(expected: {want_name}, got: {have_name}):\n  {lines}"
        )


def _document_differences(what: str, have: Any, want: Any) -> list[str]:
    if isinstance(have, Mapping) and isinstance(want, Mapping):
        found = []
        for key in [*want, *(key for key in have if key not in want)]:
            found += _document_differences(f"{what}.{key}", have.get(key), want.get(key))
        return found
    return [] if have == want else [f"{what}: expected {want!r}, got {have!r}"]


def _group_differences(what: str, have: tuple[Group, ...], want: tuple[Group, ...]) -> list[str]:
    names, wanted = [group.name for group in have], [group.name for group in want]
    if names != wanted:
        return [f"{what}: expected the groups {wanted} in this order, got {names}"]
    found = []
    for a, b in zip(have, want, strict=True):
        # How fast a robot may move is its own affair: whoever commands it is brought inside.
        for field in (one for one in fields(Group) if one.name not in _OWN):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if x != y:
                found.append(f"{what} group {b.name!r}, {field.name}: expected {_plain(y)}, got {_plain(x)}")
    return found


def _group_document(group: Group) -> dict[str, Any]:
    stated = {key: value for key, value in asdict(group).items() if key not in _OWN or value is not None}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in stated.items()}


def _read(kind: Any, document: Mapping[str, Any], part: str, what: str, found: list[str]) -> list[Any]:
    """Cameras or groups of a part of a document; what is wrong with them is added to `found`."""
    listed = document.get(part, [])
    if not isinstance(listed, list | tuple):
        found.append(f"{part}: expected a list, got {kind_of(listed)}; write [] for none")
        return []
    read = []
    for index, values in enumerate(listed):
        name = values.get("name") if isinstance(values, Mapping) else None
        called = f"{what} {name!r}" if isinstance(name, str) and name else f"{what} {index + 1} of {len(listed)}"
        try:
            read.append(made(kind, values, called))
        except SpecMismatch as error:
            found += str(error).split("\n  ")
        except ValueError as error:
            # What the class itself refuses names the object, and not the part.
            found.append(str(error) if kind is CameraSpec else f"{part} {error}")
    return read


def _listed(found: list[str]) -> str:
    return f"contract: {found[0]}" if len(found) == 1 else f"contract: {len(found)} faults:\n  " + "\n  ".join(found)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
