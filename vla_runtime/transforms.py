"""Normalisation, rotation conventions, and the conversion between delta and absolute control, in numpy.

Everything here is a pure function of its arguments; nothing knows an environment. Rotations are active,
right-handed; `rot6d` is the first two columns of the matrix, column after column (Zhou et al. 2019,
"On the Continuity of Rotation Representations in Neural Networks", section B).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vla_runtime.types import ActionSpec, Float, SpecMismatch, StateSpec

Array = NDArray[np.float64]

# How many times as far as its quantiles a delta or velocity goes that is rare motion, which quantiles would cut away.
FAR = 5.0
# Share of a dimension's range, or of one unit, below which its values are taken as one.
CONSTANT = 1e-4
# How many roundings of float32 apart values are still taken as one.
_ROUNDINGS = 8


def matrix_from_rot6d(rot6d: ArrayLike) -> Array:
    """[6] -> [3, 3] by Gram-Schmidt; ValueError when the two columns are parallel or zero."""
    values = np.asarray(rot6d, np.float64)
    a, b = values[:3], values[3:]
    x = a / _length(a)
    b = b - np.dot(x, b) * x
    y = b / _length(b)
    return np.stack([x, y, np.cross(x, y)], axis=1)


def rot6d_from_matrix(matrix: ArrayLike) -> Array:
    """[3, 3] -> [6]."""
    return np.asarray(matrix, np.float64)[:, :2].T.reshape(6)


def axis_angle_from_matrix(matrix: ArrayLike) -> Array:
    """[3, 3] -> [3], axis times angle in radians, angle in [0, pi]; exact at 0 and stable near pi."""
    quaternion: Array = quaternion_from_matrix(matrix)
    if quaternion[3] < 0:
        quaternion = -quaternion
    vector = quaternion[:3]
    length = float(np.sqrt(vector @ vector))
    scale = 2.0 if length < 1e-12 else 2.0 * float(np.arctan2(length, quaternion[3])) / length
    return np.multiply(vector, scale)


def matrix_from_axis_angle(axis_angle: ArrayLike) -> Array:
    """[3] in radians -> [3, 3] (Rodrigues)."""
    vector = np.asarray(axis_angle, np.float64)
    angle = float(np.sqrt(vector @ vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn: Array = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return turn


def quaternion_from_matrix(matrix: ArrayLike) -> Array:
    """[3, 3] -> [4], x y z w, unit length (Shepperd 1978: the largest component is computed first)."""
    m = np.asarray(matrix, np.float64)
    diagonal = m[0, 0], m[1, 1], m[2, 2]
    trace = sum(diagonal)
    quaternion = np.empty(4)
    if trace > max(diagonal):
        quaternion[3] = 1.0 + trace
        quaternion[0] = m[2, 1] - m[1, 2]
        quaternion[1] = m[0, 2] - m[2, 0]
        quaternion[2] = m[1, 0] - m[0, 1]
    else:
        i = int(np.argmax(diagonal))
        j, k = (i + 1) % 3, (i + 2) % 3
        quaternion[i] = 1.0 - trace + 2.0 * m[i, i]
        quaternion[j] = m[j, i] + m[i, j]
        quaternion[k] = m[k, i] + m[i, k]
        quaternion[3] = m[k, j] - m[j, k]
    return quaternion / np.sqrt(quaternion @ quaternion)


def matrix_from_quaternion(quaternion: ArrayLike) -> Array:
    """[4], x y z w -> [3, 3]; ValueError for a zero quaternion."""
    values = np.asarray(quaternion, np.float64)
    x, y, z, w = values / _length(values)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


# To a matrix [3, 3] and back, by the name of the convention.
ROTATIONS = {
    "rot6d": (matrix_from_rot6d, rot6d_from_matrix),
    "axis_angle": (matrix_from_axis_angle, axis_angle_from_matrix),
    "quaternion_xyzw": (matrix_from_quaternion, quaternion_from_matrix),
}


def nearest_rotation(values: ArrayLike, near: ArrayLike, rotation: str) -> Array:
    """Of all values that mean the same rotation as `values`, those nearest to `near`, in the convention `rotation`.

    A quaternion [4] and its negative are one rotation; an axis-angle [3] is the same whole turns further, in either
    direction about its axis, so that its length may exceed pi. Whoever interpolates commands by component would sweep
    from one such value to another. rot6d has one value a rotation.
    """
    values, near = np.asarray(values, np.float64), np.asarray(near, np.float64)
    if rotation == "quaternion_xyzw":
        return -values if values @ near < 0 else values
    if rotation == "axis_angle":
        angle, before = float(np.sqrt(values @ values)), float(np.sqrt(near @ near))
        # No rotation at all has no axis: of whole turns those about the axis of before are the nearest. A float32 can
        # say no smaller angle of a rot6d than this.
        axis = values / angle if angle > 1e-6 else near / max(before, 1e-6)
        turns = round((float(near @ axis) - angle) / (2 * np.pi))
        return values if turns == 0 else axis * (angle + 2 * np.pi * turns)
    return values


def delta_from_absolute(goal: Float, position: ArrayLike, matrix: ArrayLike, delta: ActionSpec) -> Float:
    """The delta action float32 [7] that asks for the absolute goal [10] from the measured pose.

    goal: position, rot6d, gripper. position [3] in metres and matrix [3, 3]: the measured pose. What lies
    beyond the full scale of `delta` is cut to its range: several periods are then needed.
    """
    rotation = matrix_from_rot6d(goal[3:9]) @ np.asarray(matrix, np.float64).T
    values = np.concatenate(
        [
            (goal[:3] - np.asarray(position, np.float64)) / _scale(delta, "position"),
            axis_angle_from_matrix(rotation) / _scale(delta, "rotation"),
            goal[9:],
        ]
    )
    return delta.clamp(values.astype(np.float32))[0]


def absolute_from_delta(action: Float, position: ArrayLike, matrix: ArrayLike, delta: ActionSpec) -> Float:
    """The absolute goal float32 [10] that a delta action [7] sets when applied at the measured pose."""
    action = delta.clamp(action)[0]
    goal = np.asarray(position, np.float64) + action[:3] * _scale(delta, "position")
    turn = matrix_from_axis_angle(action[3:6] * np.float64(_scale(delta, "rotation")))
    rotation = rot6d_from_matrix(turn @ np.asarray(matrix, np.float64))
    return np.concatenate([goal, rotation, action[6:]]).astype(np.float32)


def _scale(spec: ActionSpec, group: str) -> float:
    scale = spec.group(group).full_scale
    if scale is None:
        raise SpecMismatch(f"action group {group!r}: expected a full_scale to convert deltas, got none")
    return scale


def _length(vector: Array) -> float:
    length = float(np.sqrt(vector @ vector))
    if not length > 1e-9:
        raise ValueError(f"expected a rotation, got a vector of length {length} where a direction is needed")
    return length


class Normalise:
    """A paired map between contract units and [-1, 1], one range a dimension.

    low, high: float32 [D], the values that -1 and 1 stand for; what lies outside is cut. A dimension that
    never varied (low = high) maps to 0 and comes back as that value.
    """

    def __init__(self, low: ArrayLike, high: ArrayLike):
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        bad = self.low.ndim != 1 or self.low.shape != self.high.shape
        if bad or not np.all(np.isfinite(self.low) & np.isfinite(self.high)) or np.any(self.low > self.high):
            raise ValueError(f"statistics: expected finite low <= high of equal length, got {self.low} and {self.high}")
        self._flat = self.high <= self.low
        self._width = np.where(self._flat, np.float32(1), self.high - self.low)

    @classmethod
    def of(cls, spec: ActionSpec | StateSpec, statistics: Mapping[str, ArrayLike]) -> Normalise:
        """The map for a spec from a data set's statistics (min, max, q01, q99, each [D]).

        Quantiles for deltas and velocities, whose outliers would stretch the range; extremes for absolute goals,
        where the lowest point of a reach is what matters and not an outlier, and for states, whose rarest values
        say most: fingers that closed on nothing are beyond the quantiles of those that hold. Extremes, too, for deltas
        and velocities that go FAR times as far from the middle of the quantiles as these do, or where these are equal:
        that is rare motion, and the quantiles are those of noise. What varies less than CONSTANT of its range (of one
        unit, where that is less) or than float32 tells apart is taken as constant. Binary dimensions pass through.
        SpecMismatch when statistics are missing or of another size.
        """
        found = {}
        for key in ("min", "max", "q01", "q99"):
            if key not in statistics:
                raise SpecMismatch(
                    f"statistics: expected {key!r}, got {sorted(statistics)}; collect the data set again"
                )
            found[key] = np.asarray(statistics[key], np.float32).reshape(-1)
            if found[key].shape != (spec.size,):
                raise SpecMismatch(f"statistics {key!r}: expected {spec.size} numbers, got {found[key].shape[0]}")
        low, high = found["q01"].copy(), found["q99"].copy()
        middle, half = (low + high) / 2, (high - low) / 2
        rare = np.maximum(found["max"] - middle, middle - found["min"]) > FAR * half
        low[rare], high[rare] = found["min"][rare], found["max"][rare]
        for group in spec.groups:
            part = spec.slices[group.name]
            if group.kind in ("absolute", "measured"):
                low[part], high[part] = found["min"][part], found["max"][part]
            elif group.kind == "binary":
                low[part], high[part] = spec.low[part], spec.high[part]
        least = CONSTANT * np.minimum(spec.high - spec.low, 1)
        least = np.maximum(least, _ROUNDINGS * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high)))
        constant = high - low < least
        low[constant] = high[constant] = ((low + high) / 2)[constant]
        return cls(low, high)

    def forward(self, values: Float) -> Float:
        """Contract units [..., D] to [-1, 1]."""
        unit = np.clip((values - self.low) / self._width * 2 - 1, -1, 1)
        return np.where(self._flat, np.float32(0), unit).astype(np.float32)

    def backward(self, unit: Float) -> Float:
        """[-1, 1] [..., D] to contract units."""
        return ((unit + 1) / 2 * (self.high - self.low) + self.low).astype(np.float32)
