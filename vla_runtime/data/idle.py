"""Which rows of a demonstration do nothing: the arm is told to stay, and the gripper neither told nor seen to move.

A policy trained on many such rows learns to wait. Pure functions of one episode's columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vla_runtime.data.episode import Columns
from vla_runtime.types import ActionSpec, Group, StateSpec

# Of the range of a dimension: below this a normalised delta of 0.05 m stands for less than 0.05 mm.
_STILL = 1e-3
# Metres or radians of a finger between two ticks.
_STILL_FINGER = 1e-4


def idle_rows(columns: Columns, state: StateSpec, actions: Mapping[str, ActionSpec]) -> NDArray[np.bool_]:
    """bool [T]: rows whose tick changes nothing.

    columns: float32 [T, D] of one episode by feature. The recorded delta is judged where there is one, since a
    goal said again is a small delta too. An episode's first row is never idle.
    """
    feature = "action.delta" if "action.delta" in actions else "action"
    spec, values = actions[feature], columns[feature].astype(np.float64)
    idle = np.ones(len(values), bool)
    idle[0] = False
    for group in spec.groups:
        idle &= _arm_still(group, values[:, spec.slices[group.name]])
    return idle & _fingers_still(state, columns["observation.state"].astype(np.float64))


def stretches(idle: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of true values as (first row, length)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]]).astype(np.int8)))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _arm_still(group: Group, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    unchanged = np.concatenate([[False], np.all(values[1:] == values[:-1], axis=1)])
    if group.kind == "binary":
        return unchanged
    tolerance = np.array([_tolerance(low, high) for low, high in zip(group.low, group.high, strict=True)])
    tolerance = np.maximum(tolerance, group.dead_band)
    if group.kind == "absolute":
        steps = np.abs(np.diff(values, axis=0))
        return np.concatenate([[False], np.all(steps <= tolerance * 1e-3, axis=1)])
    still: NDArray[np.bool_] = np.all(np.abs(values) <= tolerance, axis=1)
    return still


def _tolerance(low: float, high: float) -> float:
    return _STILL * (high - low) / 2 if np.isfinite(high - low) else 0.0


def _fingers_still(state: StateSpec, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True where the fingers moved neither in the period before the row nor in the one after it."""
    still = np.ones(len(values), bool)
    for group in state.groups:
        if "finger" not in group.name and "gripper" not in group.name:
            continue
        moved = np.any(np.abs(np.diff(values[:, state.slices[group.name]], axis=0)) > _STILL_FINGER, axis=1)
        still[1:] &= ~moved
        still[:-1] &= ~moved
    return still
