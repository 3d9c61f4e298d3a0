"""What a group of dimensions may state.

A specification is checked when it is made, in code or from a file, so that a wrong value is reported where it was
written. The module knows no file and no topic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vla_runtime.types import Group

ACTION_KINDS = ("absolute", "delta", "velocity", "binary")
KINDS = (*ACTION_KINDS, "measured")
# Dimensions by the name of a rotation's convention.
ROTATIONS = {"rot6d": 6, "axis_angle": 3, "quaternion_xyzw": 4}


def group_faults(group: Group) -> list[str]:
    """What is wrong with a group: of each fault the field, what was expected, and what came."""
    found = []
    size = len(group.dims)
    if not group.name:
        found.append("name: expected text, got none")
    if not size or len(set(group.dims)) != size:
        found.append(f"dims: expected one or more different names, got {list(group.dims)}")
    if group.kind not in KINDS:
        found.append(f"kind: expected one of {', '.join(KINDS)}, got {group.kind!r}")
    for name in ("low", "high", "rest"):
        values = getattr(group, name)
        if values is not None and len(values) != size:
            found.append(f"{name}: expected as many numbers as dims ({size}), got {len(values)}")
    if group.rotation is not None and group.rotation not in ROTATIONS:
        found.append(f"rotation: expected one of {', '.join(ROTATIONS)} or none, got {group.rotation!r}")
    elif group.rotation is not None and ROTATIONS[group.rotation] != size:
        found.append(f"rotation: expected {ROTATIONS[group.rotation]} dims for {group.rotation}, got {size}")
    for name in ("full_scale", "speed", "acceleration"):
        value = getattr(group, name)
        if value is not None and not 0 < value < math.inf:
            found.append(f"{name}: expected a finite number above 0, got {value}")
    if not 0 <= group.dead_band < math.inf:
        found.append(f"dead_band: expected 0 or a finite number above it, got {group.dead_band}")
    # Only of a group whose size agrees do the values mean something.
    return found or [*_range_faults(group), *_gripper_faults(group)]


def different_meaning(state: Group, action: Group) -> list[str]:
    """In which fields a group of the state does not say where an absolute group of the action of its name is."""
    return [
        f"{field}: expected {_plain(there)} as in the action, got {_plain(here)}"
        for field in ("dims", "units", "rotation")
        if (here := getattr(state, field)) != (there := getattr(action, field))
    ]


def _range_faults(group: Group) -> list[str]:
    found = []
    for dim, low, high in zip(group.dims, group.low, group.high, strict=True):
        # An infinite bound is none; a range that holds no number is a mistake.
        if not (low <= high and low < math.inf and high > -math.inf):
            found.append(f"low, high: expected low <= high in dimension {dim!r}, got {low} and {high}")
        elif group.kind == "binary" and not (math.isfinite(low) and low < high < math.inf):
            found.append(f"low, high: expected finite low < high of a binary group, got {low} and {high}")
    if group.rest is not None and not all(map(math.isfinite, group.rest)):
        found.append(f"rest: expected finite numbers, got {list(group.rest)}")
    elif group.rest is not None and not found and not _inside(group, group.rest):
        found.append(f"rest: expected values from low to high, got {list(group.rest)}")
    return found


def _gripper_faults(group: Group) -> list[str]:
    ends = (group.open, group.close)
    if ends == (None, None):
        return []
    if group.open is None or group.close is None:
        return [f"open, close: expected both or neither, got {group.open} and {group.close}"]
    if not (math.isfinite(group.open) and math.isfinite(group.close)) or group.open == group.close:
        return [f"open, close: expected two different finite numbers, got {group.open} and {group.close}"]
    if not all(_inside(group, [end] * len(group.dims)) for end in (group.open, group.close)):
        return [f"open, close: expected values from low to high, got {group.open} and {group.close}"]
    return []


def _inside(group: Group, values: Sequence[float]) -> bool:
    return all(low <= value <= high for low, value, high in zip(group.low, values, group.high, strict=True))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
