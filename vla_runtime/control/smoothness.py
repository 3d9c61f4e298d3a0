"""How smooth the commands of an episode were where chunks join, and how far the robot lagged behind them.

The figures belong together: a low-pass makes seams and jerk small and pays with lag. A seam is a tick whose command
comes from another chunk than the one before. It knows specs and rows of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vla_runtime.transforms import ROTATIONS
from vla_runtime.types import ActionSpec, Float, Group, StateSpec

Array = NDArray[np.float64]
Figures = dict[str, dict[str, float | None]]

# A robot that lags more than this many periods follows nothing.
_LONGEST_LAG = 20


def smoothness(
    action: ActionSpec,
    state: StateSpec,
    commands: Sequence[Float],
    states: Sequence[Float],
    seams: Sequence[int],
    period: float,
) -> Figures:
    """Figures by action group, grippers left out, in the group's units (rotations in radians) and seconds.

    commands [T][A] as applied, states [T][S] before each; seams: indices of ticks. step: median distance from one
    command to the next where nothing joins (of velocities and increments, which are steps, their size); seam_jump:
    95th percentile of the distance at seams; seam_velocity_jump: of the change of velocity there, of positions there or
    a period later, whichever is larger, since a curve that begins where the last one is departs from it only then;
    jerk: root mean square of the third difference over all ticks; lag: by which the state of the same name follows an
    absolute group best. None where there is nothing to measure.
    """
    values, seen = np.asarray(commands, np.float64), np.asarray(states, np.float64)
    found: Figures = {}
    for group in action.groups:
        if group.kind == "binary":
            continue
        # Increments and velocities are steps already; a position's steps are its differences.
        goes = group.kind == "absolute"
        rows = values[:, action.slices[group.name]] if len(values) else np.zeros((0, group.size))
        steps = _steps(rows, group) if goes else rows[1:]
        joined = np.array([one for one in seams if 0 < one < len(values)], int)
        smooth = np.setdiff1d(np.arange(1, len(values)), joined)
        lengths = np.linalg.norm(steps, axis=1)
        changes = np.linalg.norm(np.diff(steps, axis=0), axis=1) / (period if goes else 1.0)
        later = joined[joined > 1]
        after = np.append(changes, 0.0)[later - 1] if goes else 0.0
        curve = np.diff(steps, n=2, axis=0) / (period**3 if goes else period**2)
        found[group.name] = {
            "step": _middle(lengths[smooth - 1], 50),
            "seam_jump": _middle(lengths[joined - 1] if goes else _jumps(rows, joined), 95),
            "seam_velocity_jump": _middle(np.maximum(changes[later - 2], after), 95),
            "jerk": float(np.sqrt((curve**2).sum(1).mean())) if len(curve) else None,
            "lag": _lag(rows, group, state, seen, period) if goes else None,
        }
    return found


def _steps(rows: Array, group: Group) -> Array:
    """From one row to the next: differences, or rotation vectors."""
    if group.rotation is None:
        return np.diff(rows, axis=0)
    matrices = [ROTATIONS[group.rotation][0](row) for row in rows]
    to_vector = ROTATIONS["axis_angle"][1]
    turns = [to_vector(after @ before.T) for before, after in pairwise(matrices)]
    return np.array(turns, np.float64).reshape(len(turns), 3)


def _jumps(rows: Array, at: NDArray[np.int_]) -> Array:
    return np.asarray(np.linalg.norm(rows[at] - rows[at - 1], axis=1))


def _lag(rows: Array, group: Group, state: StateSpec, seen: Array, period: float) -> float | None:
    """The shift in seconds at which states follow commands best; None where none is measured or nothing moved."""
    same = [one for one in state.groups if (one.name, one.rotation) == (group.name, group.rotation)]
    if not same or len(rows) < 2 * _LONGEST_LAG or np.ptp(rows, axis=0).max() < 1e-6:
        return None
    measured = seen[:, state.slices[group.name]]
    # The state of a tick is the answer to the commands before it; a common stretch makes shifts comparable.
    end = len(rows) - _LONGEST_LAG
    errors = [
        float(((measured[shift : shift + end] - rows[:end]) ** 2).sum(1).mean()) for shift in range(1, _LONGEST_LAG + 1)
    ]
    return round((int(np.argmin(errors)) + 1) * period, 6)


def _middle(values: Array, share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None
