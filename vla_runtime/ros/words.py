"""Messages as rosbridge says them: plain values in JSON or CBOR, of ROS 1 or of ROS 2.

What the rest of the package has in hand are ROS 2's messages. Protocol: rosbridge v2 (RobotWebTools/rosbridge_suite,
ROSBRIDGE_PROTOCOL.md); typed arrays in CBOR: RFC 8746.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_runtime.ros.messages import decoded, fields_of, types_of
from vla_runtime.types import SpecMismatch

_TIMES = ("builtin_interfaces/msg/Time", "builtin_interfaces/msg/Duration")
# ROS 1's words for the fields of a time.
_ROS1_TIMES = {"sec": "secs", "nanosec": "nsecs"}
# Of RFC 8746, as rosbridge uses them; little-endian.
_TYPED = {64: "u1", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 77: "<i2", 78: "<i4", 79: "<i8", 85: "<f4", 86: "<f8"}
# How base type names of ROS are called in numpy, where that is otherwise.
_DTYPES = {"byte": "uint8", "octet": "uint8", "char": "uint8"}


def to_words(message: Any, ros: int) -> dict[str, Any]:
    """A message as values that JSON knows, bytes in base64. ros: 1 or 2. SpecMismatch for numbers it does not know."""
    kind = message.__msgtype__
    found: dict[str, Any] = {}
    for name, (form, what) in fields_of(kind):
        if name == "structure_needs_at_least_one_member":
            continue
        value = getattr(message, name)
        key = _ROS1_TIMES.get(name, name) if ros == 1 and kind in _TIMES else name
        if form == "name":
            found[key] = to_words(value, ros)
        elif form in ("array", "sequence"):
            found[key] = _listed(value, what[0], ros, f"{kind}.{name}")
        else:
            found[key] = _plain(value, f"{kind}.{name}")
    return found


def from_words(kind: str, words: Any) -> Any:
    """The inverse, for either ROS, and for bytes and tagged arrays as CBOR has them. SpecMismatch for anything else."""
    return decoded(kind, lambda: _message(kind, words))


def type_name(kind: str, ros: int) -> str:
    """What a ROS calls a type."""
    return kind if ros == 2 else kind.replace("/msg/", "/")


def _listed(values: Any, inner: tuple[str, Any], ros: int, where: str) -> Any:
    form, what = inner
    if form == "name":
        return [to_words(one, ros) for one in values]
    if what in ("uint8", *_DTYPES):
        return base64.b64encode(np.asarray(values, np.uint8).tobytes()).decode()
    return [_plain(one, where) for one in values]


def _plain(value: Any, where: str) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        raise SpecMismatch(f"{where}: expected a finite number, since JSON knows no other, got {value}")
    return value


def _message(kind: str, words: Any) -> Any:
    if not isinstance(words, Mapping):
        raise SpecMismatch(f"{kind}: expected its fields, got {type(words).__name__}")
    values = {}
    for name, (form, what) in fields_of(kind):
        if name == "structure_needs_at_least_one_member":
            values[name] = 0
            continue
        key = name if name in words else _ROS1_TIMES.get(name, name)
        if key not in words:
            raise SpecMismatch(f"{kind}: expected the field {name}, got {sorted(map(str, words))}")
        if form == "name":
            values[name] = _message(what, words[key])
        elif form in ("array", "sequence"):
            values[name] = _array(words[key], what[0], f"{kind}.{name}")
        else:
            values[name] = _base(words[key], what, f"{kind}.{name}")
    return types_of().types[kind](**values)


def _array(value: Any, inner: tuple[str, Any], where: str) -> Any:
    form, what = inner
    if form == "name":
        return [_message(what, one) for one in value]
    if what == "string":
        return [_base(one, what, where) for one in value]
    dtype = np.dtype(_DTYPES.get(what, what))
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SpecMismatch(f"{where}: expected bytes in base64, got {error}") from error
    tag = getattr(value, "tag", None)
    if tag in _TYPED and isinstance(value.value, bytes):
        return np.frombuffer(value.value, _TYPED[tag]).astype(dtype)
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8).astype(dtype)
    if isinstance(value, list) and what.startswith("float"):
        value = [math.nan if one is None else one for one in value]
    # Not every list is one of numbers, and numpy would make of some what nobody said.
    if not isinstance(value, list) or any(isinstance(one, bool) or not isinstance(one, int | float) for one in value):
        raise SpecMismatch(f"{where}: expected numbers, got {str(value)[:80]}")
    return np.asarray(value).astype(dtype)


def _base(value: Any, what: str, where: str) -> Any:
    if value is None and what.startswith("float"):
        # JSON knows no NaN, and rosbridge says null.
        return math.nan
    wanted: Any = {"string": str, "bool": bool}.get(what, (int, float))
    if not isinstance(value, wanted) or (what not in ("string", "bool") and isinstance(value, bool)):
        raise SpecMismatch(f"{where}: expected {what}, got {value!r}")
    if what in ("string", "bool"):
        return value
    return float(value) if what.startswith("float") else int(value)
