"""What is executed where chunks overlap: the newest alone, a cross-fade, or a mean of all that speak of an instant.

Means are taken by kind: positions and velocities component by component, rotations on SO(3), grippers not at all (the
newest decides). Increments to a measured pose have no mean: their references differ. It knows chunks and time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vla_runtime.transforms import (
    axis_angle_from_matrix,
    matrix_from_axis_angle,
    matrix_from_quaternion,
    matrix_from_rot6d,
    quaternion_from_matrix,
    rot6d_from_matrix,
)
from vla_runtime.types import ActionChunk, ActionSpec, Float

Array = NDArray[np.float64]

# To a matrix [3, 3] and back, by the name of the convention.
ROTATIONS = {
    "rot6d": (matrix_from_rot6d, rot6d_from_matrix),
    "axis_angle": (matrix_from_axis_angle, axis_angle_from_matrix),
    "quaternion_xyzw": (matrix_from_quaternion, quaternion_from_matrix),
}


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A chunk that has taken over at `begins` and whose rows may still be wanted."""

    chunk: ActionChunk
    begins: float


class Join(Protocol):
    """Answers the action float32 [A] at a time from live chunks, oldest first; None where the newest says nothing."""

    def __call__(self, live: Sequence[Live], time: float) -> Float | None: ...


class Newest:
    """The newest chunk alone."""

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        return live[-1].chunk.at(time)


class Blend:
    """A cross-fade from the chunk before over the first `rows` rows that a chunk executes."""

    def __init__(self, spec: ActionSpec, rows: int = 4):
        if rows < 1:
            raise ValueError(f"loop.blend: expected at least 1 row, got {rows}")
        self._mean, self._rows = Mean(spec, "blend"), rows

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        new = live[-1].chunk.at(time)
        old = live[-2].chunk.at(time) if len(live) > 1 else None
        passed = round((time - live[-1].begins) / live[-1].chunk.period)
        if new is None or old is None or passed >= self._rows:
            return new
        share = (passed + 1) / (self._rows + 1)
        return self._mean(np.stack([old, new]), np.array([1 - share, share]))


class Ensemble:
    """ACT's temporal ensemble (arXiv 2304.13705, section 4): w = exp(-decay * i), i periods after the oldest chunk.

    Age counts, not the order of arrival, so that how often chunks are asked for does not matter.
    """

    def __init__(self, spec: ActionSpec, decay: float = 0.01):
        self._mean, self._decay = Mean(spec, "ensemble"), decay

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        rows, said = _said(live, time)
        if rows is None:
            return None
        seen = np.array([one.chunk.observed for one in said])
        return self._mean(rows, np.exp(-self._decay * (seen - seen[0]) / said[-1].chunk.period))


class Adaptive:
    """CogACT's adaptive ensemble (arXiv 2411.19650, section 3.4): chunks count as much as they agree with the newest.

    w = exp(sharpness * cosine to the newest row), over dimensions scaled by their range, grippers left out. Near zero,
    where directions mean nothing, a Gaussian of the distance stands in for the cosine.
    """

    def __init__(self, spec: ActionSpec, sharpness: float = 0.1):
        self._mean, self._sharpness = Mean(spec, "adaptive"), sharpness
        low, high = np.asarray(spec.low, np.float64), np.asarray(spec.high, np.float64)
        bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
        width = np.where(bounded, high - low, 2.0)
        self._middle, self._half = np.where(bounded, (low + high) / 2, 0.0), width / 2
        self._counted = np.ones(spec.size, bool)
        for group in spec.groups:
            if group.kind == "binary":
                self._counted[spec.slices[group.name]] = False

    def __call__(self, live: Sequence[Live], time: float) -> Float | None:
        rows, _ = _said(live, time)
        if rows is None:
            return None
        unit = ((rows - self._middle) / self._half)[:, self._counted]
        lengths = np.linalg.norm(unit, axis=1)
        near = 0.05 * np.sqrt(unit.shape[1])
        if lengths[-1] < near:
            alike = np.exp(-(((unit - unit[-1]) ** 2).sum(1)) / (2 * near**2))
        else:
            alike = unit @ unit[-1] / (lengths * lengths[-1] + 1e-7)
        return self._mean(rows, np.exp(self._sharpness * alike))


class Mean:
    """A weighted mean of rows of a spec, by kind. what: the join it serves, for the message.

    ValueError for a spec with delta groups.
    """

    def __init__(self, spec: ActionSpec, what: str):
        if "delta" in spec.controls:
            raise ValueError(
                f"loop.join={what}: expected absolute or velocity actions, got increments to the measured pose, which "
                "have no mean; take env.control=absolute, or join=newest or prefix"
            )
        self._spec = spec

    def __call__(self, rows_NA: Array, weights_N: Array) -> Float:
        """Rows oldest first, weights above 0 -> float32 [A]."""
        weights = np.asarray(weights_N, np.float64) / np.sum(weights_N)
        found = np.array(rows_NA[-1], np.float64)
        for group in self._spec.groups:
            part = self._spec.slices[group.name]
            if group.kind == "binary":
                continue
            if group.rotation is None or group.kind != "absolute":
                found[part] = weights @ rows_NA[:, part]
                continue
            decode, encode = ROTATIONS[group.rotation]
            mean = mean_rotation(np.stack([decode(row) for row in rows_NA[:, part]]), weights)
            if mean is not None:
                found[part] = encode(mean)
        return found.astype(np.float32)


def mean_rotation(matrices_N33: Array, weights_N: Array) -> Array | None:
    """The rotation [3, 3] nearest to all in the chordal sense; None where they are so far apart that none is.

    Source: Moakher 2002, "Means and averaging in the group of rotations", SIAM J. Matrix Anal. Appl. 24, 1-16.
    """
    left, sizes, right = np.linalg.svd(np.einsum("n,nij->ij", weights_N, matrices_N33))
    turn = np.sign(np.linalg.det(left @ right))
    if sizes[1] + turn * sizes[2] <= 1e-3 * np.sum(weights_N):
        return None
    return np.asarray(left @ np.diag([1.0, 1.0, turn]) @ right)


def _said(live: Sequence[Live], time: float) -> tuple[Array | None, list[Live]]:
    """What each live chunk says of a time, oldest first; None where the newest says nothing."""
    pairs = [(row, one) for one in live if (row := one.chunk.at(time)) is not None]
    if not pairs or pairs[-1][1] is not live[-1]:
        return None, []
    return np.stack([row for row, _ in pairs]).astype(np.float64), [one for _, one in pairs]
