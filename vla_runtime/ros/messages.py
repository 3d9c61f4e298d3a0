"""ROS messages as bytes, and the values of a contract in them, converted as the robot's side declares.

Types and their encoding are those of the `rosbags` library (ROS 2 Jazzy), so that no ROS is needed to speak. It knows
neither topics nor transports.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Pictures
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore

from vla_runtime.pictures import decode_picture
from vla_runtime.robot_side import (
    ARRAY,
    COMMANDS,
    TRAJECTORY,
    TWIST,
    TWIST_STAMPED,
    CameraStream,
    CommandStream,
    StateStream,
)
from vla_runtime.ros.conversion import converted, said, spoken
from vla_runtime.types import CameraSpec, Group, Image, SpecMismatch

Array = NDArray[np.float64]
_store = get_typestore(Stores.ROS2_JAZZY)
_types: Mapping[str, Any] = _store.types

# Channels of raw images, as places of red, green and blue among them.
_CHANNELS = {"rgb8": (3, (0, 1, 2)), "bgr8": (3, (2, 1, 0)), "rgba8": (4, (0, 1, 2)), "bgra8": (4, (2, 1, 0)),
             "mono8": (1, (0, 0, 0))}  # fmt: skip
_JPEG_QUALITY = 90
_PARTS = ("linear", "angular")
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"


def encode(message: Any) -> bytes:
    """A message as ROS 2 sends it (CDR)."""
    return bytes(_store.serialize_cdr(message, message.__msgtype__))


def decode(kind: str, data: bytes) -> Any:
    """The inverse of `encode`. SpecMismatch for bytes that are no message of this type."""
    return decoded(kind, lambda: _store.deserialize_cdr(data, kind))


def types_of() -> Any:
    """The store of all types, of which every message here is one."""
    return _store


def decoded(kind: str, read: Callable[[], Any]) -> Any:
    """What `read` makes of somebody's bytes. SpecMismatch, whatever goes wrong with them."""
    try:
        return read()
    except (SerdeError, ValueError, IndexError, AssertionError, KeyError, OverflowError, MemoryError) as error:
        raise SpecMismatch(f"{kind}: expected a message of this type, got {type(error).__name__}: {error}") from error
    except Exception as error:
        # struct.error, and whatever else bytes of strangers may cause in there.
        raise SpecMismatch(f"{kind}: expected a message, got {type(error).__name__}: {error}") from error


def fields_of(kind: str) -> list[tuple[str, tuple[str, Any]]]:
    """The fields of a type in their order, each as a name and what it is: ("base", "uint8"), ("name", another type's),
    ("array" or "sequence", (what its values are, their number or 0)).
    """
    return [(name, _described(described)) for name, described in _store.fielddefs[kind][1]]


def _described(described: Any) -> tuple[str, Any]:
    form, what = described[0].name.lower(), described[1]
    if form == "base":
        return form, what[0]
    return (form, what) if form == "name" else (form, (_described(what[0]), what[1]))


def empty() -> Any:
    """A std_msgs/msg/Empty."""
    return _types["std_msgs/msg/Empty"]()


def text(value: str) -> Any:
    """A std_msgs/msg/String."""
    return _types["std_msgs/msg/String"](data=value)


def diagnostics(name: str, problems: Sequence[str], stopped: str | None, values: Mapping[str, Any], time: float) -> Any:
    """A DiagnosticArray with one status: an error while `stopped` (why), a warning where there are problems."""
    level, said = (2, stopped) if stopped is not None else (1, problems[0]) if problems else (0, "moving, or ready to")
    pairs = [_types["diagnostic_msgs/msg/KeyValue"](key, str(value)) for key, value in values.items()]
    pairs += [_types["diagnostic_msgs/msg/KeyValue"]("problem", one) for one in problems]
    status = _types["diagnostic_msgs/msg/DiagnosticStatus"](level, name, said, name, pairs)
    return _types[DIAGNOSTICS](_header(time, ""), [status])


def flag(value: bool) -> Any:
    """A std_msgs/msg/Bool."""
    return _types["std_msgs/msg/Bool"](data=value)


def stamp(message: Any) -> float:
    """Seconds in a message's header. SpecMismatch for one without, or one that nobody stamped."""
    header = getattr(message, "header", None)
    if header is None:
        raise SpecMismatch(f"{message.__msgtype__}: expected a header with a stamp, got none")
    seconds = float(header.stamp.sec) + header.stamp.nanosec * 1e-9
    if seconds <= 0:
        raise SpecMismatch(f"{message.__msgtype__}: expected a stamp, got {seconds}; stamp messages at their source")
    return float(seconds)


def read_image(message: Any, stream: CameraStream, camera: CameraSpec) -> Image:
    """The image uint8 [H, W, 3] of a message, upright and of the camera's size. SpecMismatch for one that is none."""
    if message.__msgtype__ == "sensor_msgs/msg/CompressedImage":
        try:
            image = decode_picture(message.data.tobytes())
        except ValueError as error:
            raise SpecMismatch(f"camera {camera.name!r}: {error}") from error
    else:
        image = _raw_image(message, camera.name)
    if not image.size:
        raise SpecMismatch(f"camera {camera.name!r}: expected {camera.shape}, got an empty image")
    image = np.rot90(image, -(stream.turn // 90))
    if image.shape != camera.shape:
        same = image.shape[0] * camera.width == image.shape[1] * camera.height
        if not (stream.resize and same):
            remedy = "crop it at its source" if stream.resize else "declare resize: true"
            raise SpecMismatch(f"camera {camera.name!r}: expected {camera.shape}, got {image.shape}; {remedy}")
        whole = Pictures.fromarray(np.ascontiguousarray(image))
        image = np.array(whole.resize((camera.width, camera.height), Pictures.Resampling.BOX), np.uint8)
    return np.ascontiguousarray(image)


def image_message(image: Image, stream: CameraStream, time: float, frame: str) -> Any:
    """An image as the stream carries it; `read_image` is the inverse, but for what JPEG loses."""
    image = np.ascontiguousarray(np.rot90(image, stream.turn // 90))
    kind = _types[stream.type]
    if stream.type == "sensor_msgs/msg/CompressedImage":
        buffer = io.BytesIO()
        Pictures.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return kind(_header(time, frame), "jpeg", np.frombuffer(buffer.getvalue(), np.uint8))
    height, width, _ = image.shape
    return kind(_header(time, frame), height, width, "rgb8", 0, 3 * width, image.reshape(-1))


def read_state(message: Any, stream: StateStream, group: Group) -> Array:
    """A group's values [D] from a message that names its own. SpecMismatch for one that lacks them, and for values that
    are no rotation where one is converted.
    """
    return converted(said(message.name, getattr(message, stream.field), stream), stream, group)


def state_message(values: Mapping[str, float], stream: StateStream, time: float, frame: str) -> Any:
    """Named values as the stream carries them."""
    lists = {name: np.zeros(0) for name in ("position", "velocity", "effort")}
    lists[stream.field] = np.array(list(values.values()), np.float64)
    return _types[stream.type](_header(time, frame), list(values), **lists)


def theirs(
    values: ArrayLike, stream: StateStream | CommandStream, group: Group, near: ArrayLike | None = None
) -> dict[str, float]:
    """A group's values as the robot says them, by its names. near: as for `conversion.spoken`."""
    found = (spoken(values, stream, group, near) - np.asarray(stream.offset)) / np.asarray(stream.scale)
    return dict(zip(stream.names, found.tolist(), strict=True))


def trajectory(values: Mapping[str, float], moving: bool, time: float, frame: str, ahead: float) -> Any:
    """A trajectory_msgs/msg/JointTrajectory of one point, due `ahead` seconds after `time`. moving: they are
    velocities.
    """
    duration = _types["builtin_interfaces/msg/Duration"](int(ahead), int((ahead % 1) * 1e9))
    numbers, none = np.array(list(values.values()), np.float64), np.zeros(0)
    point = _types["trajectory_msgs/msg/JointTrajectoryPoint"](
        none if moving else numbers, numbers if moving else none, none, none, duration
    )
    return _types[TRAJECTORY](_header(time, frame), list(values), [point])


def command_message(values: Mapping[str, float], stream: CommandStream, moving: bool, time: float, ahead: float) -> Any:
    """Named values as the robot's controller hears them."""
    if stream.type == TRAJECTORY:
        return trajectory(values, moving, time, "", ahead)
    if stream.type == ARRAY:
        layout = _types["std_msgs/msg/MultiArrayLayout"]([], 0)
        return _types[ARRAY](layout, np.array(list(values.values()), np.float64))
    parts = [
        _types["geometry_msgs/msg/Vector3"](*(float(values.get(f"{part}.{axis}", 0.0)) for axis in "xyz"))
        for part in _PARTS
    ]
    twist = _types[TWIST](*parts)
    return twist if stream.type == TWIST else _types[TWIST_STAMPED](_header(time, ""), twist)


def read_trajectory(message: Any, moving: bool) -> tuple[dict[str, float], float, str]:
    """(values by name, stamp, frame) of a JointTrajectory of one point: velocities if `moving`, else positions.

    SpecMismatch for another, for the other of the two, and for what is no number.
    """
    if any(len(point.positions if moving else point.velocities) for point in message.points):
        raise SpecMismatch(
            f"{TRAJECTORY}: expected {'velocities' if moving else 'positions'} alone, got the others, too"
        )
    return _point(message, moving), stamp(message), str(message.header.frame_id)


def read_command(message: Any, names: Sequence[str], moving: bool) -> tuple[dict[str, float], float | None]:
    """What a controller was told, by name, and the stamp, None without one: the inverse of `command_message`.

    names: of an array's numbers, which have none. SpecMismatch for another type, a trajectory of several points, too
    few or too many numbers, and for what is no number.
    """
    kind, header = message.__msgtype__, getattr(message, "header", None)
    if kind == TRAJECTORY:
        values = _point(message, moving)
    elif kind == ARRAY:
        if len(message.data) != len(names):
            raise SpecMismatch(f"{kind}: expected {len(names)} numbers, got {len(message.data)}")
        values = dict(zip(names, map(float, message.data), strict=True))
    elif kind in (TWIST, TWIST_STAMPED):
        twist = message if kind == TWIST else message.twist
        values = {f"{part}.{axis}": float(getattr(getattr(twist, part), axis)) for part in _PARTS for axis in "xyz"}
    else:
        raise SpecMismatch(f"command: expected one of {', '.join(COMMANDS)}, got {kind}")
    if not np.isfinite(list(values.values())).all():
        raise SpecMismatch(f"{kind}: expected finite numbers, got {list(values.values())}")
    # "Now", as controllers understand a header that nobody stamped.
    unstamped = header is None or (header.stamp.sec, header.stamp.nanosec) == (0, 0)
    return values, None if unstamped else stamp(message)


def _point(message: Any, moving: bool) -> dict[str, float]:
    if len(message.points) != 1:
        raise SpecMismatch(f"{TRAJECTORY}: expected one point, got {len(message.points)}")
    numbers = message.points[0].velocities if moving else message.points[0].positions
    if len(numbers) != len(message.joint_names) or len(set(message.joint_names)) != len(message.joint_names):
        raise SpecMismatch(f"{TRAJECTORY}: expected a number for each of {message.joint_names}, got {len(numbers)}")
    if not np.isfinite(numbers).all():
        raise SpecMismatch(f"{TRAJECTORY}: expected finite numbers, got {list(numbers)}")
    return dict(zip(message.joint_names, map(float, numbers), strict=True))


def ours(values: Mapping[str, float], stream: CommandStream, group: Group) -> Array:
    """The inverse of `theirs`. SpecMismatch for names that are missing, and for values that are no rotation."""
    return converted(said(list(values), list(values.values()), stream), stream, group)


def _raw_image(message: Any, camera: str) -> Image:
    if message.encoding not in _CHANNELS:
        raise SpecMismatch(
            f"camera {camera!r}: expected an encoding among {', '.join(_CHANNELS)}, got {message.encoding!r}"
        )
    channels, places = _CHANNELS[message.encoding]
    if message.step < message.width * channels or len(message.data) != message.height * message.step:
        raise SpecMismatch(
            f"camera {camera!r}: expected {message.height} rows of {message.step} bytes for {message.width} pixels, "
            f"got {len(message.data)} bytes"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    return pixels[..., list(places)]


def _header(time: float, frame: str) -> Any:
    seconds = int(time)
    moment = _types["builtin_interfaces/msg/Time"](seconds, min(round((time - seconds) * 1e9), 999_999_999))
    return _types["std_msgs/msg/Header"](moment, frame)
