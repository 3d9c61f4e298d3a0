"""Values as a robot's side declares them: found by their names, scaled, rotations in another convention.

Rotations have several values that mean the same in some conventions. Controllers interpolate commands by component, so
that of equal values the one nearest to the last command is sent. The module knows streams and groups, and no message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_runtime.robot_side import CommandStream, StateStream
from vla_runtime.transforms import ROTATIONS, nearest_rotation
from vla_runtime.types import Group, SpecMismatch

Array = NDArray[np.float64]


def said_rotation(stream: StateStream | CommandStream, group: Group) -> str | None:
    """The convention in which a stream carries a group's rotation; None for a group that is no rotation."""
    return stream.rotation or group.rotation


def said(names: Sequence[str], numbers: Any, stream: StateStream | CommandStream) -> Array:
    """A stream's values among named numbers, in the contract's units; a rotation is still in the convention of
    `said_rotation`. SpecMismatch for names that are missing.
    """
    places = {name: index for index, name in enumerate(names)}
    missing = [name for name in stream.names if places.get(name, len(numbers)) >= len(numbers)]
    if missing:
        there = set(missing) <= set(names)
        remedy = "send a value for every name" if there else "name them in the contract as the robot does"
        raise SpecMismatch(
            f"{stream.topic}: expected values named {missing}, got {len(numbers)} values for {list(names)}; {remedy}"
        )
    values = np.array([numbers[places[name]] for name in stream.names], np.float64)
    found: Array = values * np.asarray(stream.scale) + np.asarray(stream.offset)
    return found


def converted(values: Array, stream: StateStream | CommandStream, group: Group) -> Array:
    """A group's values [D] of what `said` returned. SpecMismatch for values that are no rotation where one is
    converted.
    """
    rotation = said_rotation(stream, group)
    return values if rotation is None else turned(values, rotation, str(group.rotation))


def turned(values: Array, have: str, want: str) -> Array:
    """A rotation in another convention. SpecMismatch for values that are none."""
    if have == want:
        return values
    try:
        return np.asarray(ROTATIONS[want][1](ROTATIONS[have][0](values)), np.float64)
    except ValueError as error:
        raise SpecMismatch(f"rotation in {have}: {error}") from error


def spoken(
    values: ArrayLike, stream: StateStream | CommandStream, group: Group, near: ArrayLike | None = None
) -> Array:
    """A group's values as `said` returns them. near: values of that kind which a rotation is to be nearest to, where
    several mean the same; an angular velocity has one value alone.
    """
    found, rotation = np.asarray(values, np.float64), said_rotation(stream, group)
    if rotation is not None:
        found = turned(found, str(group.rotation), rotation)
        if near is not None and group.kind in ("absolute", "measured"):
            found = nearest_rotation(found, near, rotation)
    return found
