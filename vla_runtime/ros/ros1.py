"""Messages as ROS 1 sends them; what the rest of the package has in hand are ROS 2's.

The two differ in the header, which counts messages in ROS 1, and in how bytes are laid out. Types and encoding are
those of the `rosbags` library, so that no ROS is needed to convert.
"""

from __future__ import annotations

from typing import Any

from rosbags.typesys import Stores, get_typestore

from vla_runtime.ros.messages import decoded, types_of

_store = get_typestore(Stores.ROS1_NOETIC)


def encode_ros1(message: Any) -> bytes:
    """A message as ROS 1 sends it."""
    kind = message.__msgtype__
    return bytes(_store.serialize_ros1(_carried(message, kind, _store), kind))


def decode_ros1(kind: str, data: bytes) -> Any:
    """The inverse of `encode_ros1`. SpecMismatch for bytes that are no message of this type."""
    return decoded(kind, lambda: _carried(_store.deserialize_ros1(data, kind), kind, types_of()))


def _carried(message: Any, kind: str, store: Any) -> Any:
    """The same message in the types of another generation."""
    values = {}
    for name, (form, what) in store.fielddefs[kind][1]:
        # What the other generation does not know counts from 0: ROS 1's headers count, ROS 2's Empty holds one byte.
        value: Any = getattr(message, name, 0)
        if form.name == "NAME":
            value = _carried(value, what, store)
        elif form.name in ("ARRAY", "SEQUENCE") and what[0][0].name == "NAME":
            value = [_carried(one, what[0][1], store) for one in value]
        values[name] = value
    return store.types[kind](**values)
