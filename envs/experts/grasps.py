"""Where a parallel gripper can take hold of an object, from the object's collision geometry alone.

Pure geometry: convex pieces in the world frame go in, ranked grasps from above come out. It knows no task,
no arm and no motion; `Shape` is the only part that reads a simulator. Yaw is the direction in which the
fingers open, an angle in the horizontal plane that repeats every pi.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The Panda hand as the simulator collides it, measured from the point between its finger pads.
OPENING = 0.08
FINGER_MARGIN = 0.005  # free space wanted on each side while the open fingers go down
PALM_HEIGHT = 0.031  # the palm begins this far above the pads
PALM = (0.105, 0.034)  # half its length along the fingers' axis, half its thickness across
FINGERS = (0.062, 0.013)  # half the span of the open fingers, outside to outside, and half their thickness
PAD = (0.004, 0.012)  # the pads reach this far below and above

DEPTH = 0.025  # how far below the top of an object the pads go, just less than the palm allows
FLOOR = 0.010  # least height of the pads above what the object stands on

WRIST_REACH = 2.6  # radians either way, short of the joint's limit
SLIDE = 0.025  # how far off the middle of a long object it may be taken

NUM_YAWS = 36
_AROUND = 3  # yaws to either side
_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
_BOX, _SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _MESH = 6, 2, 3, 4, 5, 7
_DIRECTIONS = 64  # a mesh is thinned to its extreme points along this many directions, and their opposites


# The cost of a candidate that puts the hand this far into a neighbour, metres: above all other costs.
BLOCKED, BLOCKED_AT = 10.0, 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A way to take hold. position [3]: of the point between the pads, metres, world. yaw: of the opening fingers.

    width: of the object between them, metres. cost: smaller is better.
    """

    position: Array
    yaw: float
    width: float
    cost: float


class Shape:
    """The collision geometry of a body and all that hangs on it, as convex pieces that move with it."""

    def __init__(self, model: Any, body: int):
        """model: mujoco.MjModel, read once. body: id of the root body, not the world."""
        self.geoms: list[int] = []
        self._local: list[Array] = []
        for geom in range(model.ngeom):
            owner = int(model.geom_bodyid[geom])
            while owner not in (0, body):
                owner = int(model.body_parentid[owner])
            collides = model.geom_contype[geom] or model.geom_conaffinity[geom]
            if owner == 0 or not collides:
                continue
            corners = _local_corners(model, geom)
            if corners is not None:
                self.geoms.append(geom)
                self._local.append(corners)

    def pieces(self, data: Any) -> list[Array]:
        """One [N, 3] array of world-frame corner points per geom, as `data` (mujoco.MjData) has them now."""
        return [
            corners @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
            for geom, corners in zip(self.geoms, self._local, strict=True)
        ]

    def thickness(self, model: Any, data: Any) -> float:
        """The least extent, metres, along the axes of the body that owns the first geom."""
        frame = data.xmat[model.geom_bodyid[self.geoms[0]]].reshape(3, 3)
        return float(np.ptp(np.concatenate(self.pieces(data)) @ frame, axis=0).min())


def _local_corners(model: Any, geom: int) -> Array | None:
    kind, size = int(model.geom_type[geom]), np.asarray(model.geom_size[geom], np.float64)
    if kind == _MESH:
        mesh = int(model.geom_dataid[geom])
        start = int(model.mesh_vertadr[mesh])
        vertices = np.asarray(model.mesh_vert[start : start + int(model.mesh_vertnum[mesh])], np.float64)
        return np.asarray(vertices[extreme_points(vertices)])
    if kind in (_BOX, _ELLIPSOID):
        return np.asarray(_CORNERS * size)
    if kind == _SPHERE:
        return np.asarray(_CORNERS * size[0])
    if kind in (_CAPSULE, _CYLINDER):
        half = size[1] + (size[0] if kind == _CAPSULE else 0.0)
        angles = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
        ring = np.stack([size[0] * np.cos(angles), size[0] * np.sin(angles), np.full(16, half)], axis=1)
        return np.concatenate([ring, ring * np.array([1.0, 1.0, -1.0])])
    return None  # planes and height fields bound nothing


def extreme_points(points: Array) -> NDArray[np.intp]:
    """Indices of those points [N, 3] that lie farthest out, a thinned convex hull."""
    steps = np.arange(_DIRECTIONS) + 0.5
    polar, azimuth = np.arccos(1.0 - 2.0 * steps / _DIRECTIONS), np.pi * (1.0 + 5.0**0.5) * steps
    spiral = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)])
    axes = np.concatenate([spiral, np.eye(3)], axis=1)
    along = points @ axes
    return np.unique(np.concatenate([along.argmax(axis=0), along.argmin(axis=0)]))


def bounds(pieces: Sequence[Array]) -> tuple[Array, Array]:
    """Lowest and highest world coordinates [3] of all pieces."""
    points = np.concatenate(pieces)
    return points.min(axis=0), points.max(axis=0)


def turns(yaws: Array, yaw: float) -> Array:
    """How far a gripper turns from each of `yaws` to `yaw`, radians in [0, pi/2]: it looks the same after pi."""
    return np.abs((yaws - yaw + np.pi / 2) % np.pi - np.pi / 2)


def reachable_yaw(yaw: float, current: float, wrist: float) -> float:
    """`yaw` or its opposite, which is the same grasp, as an angle the hand reaches from `current` by the shorter turn.

    wrist: the last joint's angle; seen from above it turns against the hand. The smaller turn is taken unless it
    ends beyond the wrist's reach.
    """
    turn = float((yaw - current + np.pi / 2) % np.pi - np.pi / 2)
    other = turn - float(np.copysign(np.pi, turn))
    return current + reachable_turn((turn, other), wrist)


def reachable_turn(options: Sequence[float], wrist: float) -> float:
    """The smallest of several turns of the hand, radians, that does not end beyond the wrist's reach."""
    return min(options, key=lambda turn: abs(turn) + 30.0 * max(0.0, abs(wrist - turn) - WRIST_REACH))


def grasp_height(low: float, high: float) -> float:
    """Height of the pads, metres, for an object from `low` to `high`: near the top, never scraping the floor."""
    return max(high - DEPTH, min(low + FLOOR, high))


def candidates(
    pieces: Sequence[Array],
    neighbours: Sequence[Sequence[Array]] = (),
    preferred: float = np.pi / 2,
    current: float | None = None,
    slide: float = 0.0,
) -> list[Candidate]:
    """Grasps from above that fit between the open fingers, best first; empty when the object is too wide everywhere.

    neighbours: the pieces of each other object that the hand must not touch. preferred: the yaw to choose when
    the object does not care. current: the hand's yaw, a weak preference that keeps a choice once it is made.
    slide: where along a long thing, -1 to 1.
    """
    low, high = bounds(pieces)
    height = grasp_height(low[2], high[2])
    section = _section(pieces, height - PAD[0], height + PAD[1])
    yaws = np.arange(NUM_YAWS) * np.pi / NUM_YAWS
    axes = np.stack([np.cos(yaws), np.sin(yaws)], axis=1)
    across = np.stack([-axes[:, 1], axes[:, 0]], axis=1)
    along, side = section @ axes.T, section @ across.T
    widths, lengths = np.ptp(along, axis=0), np.ptp(side, axis=0)
    # Fingers that close across a corner turn the object: a yaw is judged against the narrowest one around it.
    narrowest = np.min([np.roll(widths, shift) for shift in range(-_AROUND, _AROUND + 1)], axis=0)
    middles = (along.max(axis=0) + along.min(axis=0))[:, None] / 2 * axes
    middles += (side.max(axis=0) + side.min(axis=0))[:, None] / 2 * across
    costs = 0.5 * turns(yaws, preferred) + (widths - narrowest) / 0.01 + widths / 0.1
    if current is not None:
        costs += 0.1 * turns(yaws, current)
    # A long thing may be taken off its middle, as far as the pads still lie on it.
    room = np.where(lengths > 1.3 * widths, np.clip(lengths / 2 - 0.015, 0.0, SLIDE), 0.0)
    found: list[Candidate] = []
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        offsets = share * room
        places = middles + offsets[:, None] * across
        total = costs + np.abs(offsets - 0.4 * slide * room) / 0.02
        total += BLOCKED * np.minimum(intrusions(places, height, axes, neighbours) / BLOCKED_AT, 5.0)
        found += [
            Candidate(np.array([*places[i], height]), float(yaws[i]), float(widths[i]), float(total[i]))
            for i in np.flatnonzero(widths <= OPENING - 2.0 * FINGER_MARGIN)
            if share == 0.0 or room[i] > 0.0
        ]
    return sorted(found, key=lambda candidate: candidate.cost)


def _section(pieces: Sequence[Array], bottom: float, top: float) -> Array:
    """The part of convex pieces that lies between two heights, as points [N, 2] whose hulls bound it."""
    parts: list[Array] = []
    for piece in pieces:
        heights = piece[:, 2]
        inside = (heights >= bottom) & (heights <= top)
        if inside.all():
            parts.append(piece[:, :2])
        elif heights.max() > bottom and heights.min() < top:
            parts.append(piece[inside, :2])
            first, second = np.triu_indices(len(piece), 1)
            # A chord between two corners never leaves a convex piece, so all pairs may stand in for its edges.
            for level in (bottom, top):
                crossing = (heights[first] - level) * (heights[second] - level) < 0.0
                a, b = piece[first[crossing]], piece[second[crossing]]
                share = (level - a[:, 2]) / (b[:, 2] - a[:, 2])
                parts.append((a + share[:, None] * (b - a))[:, :2])
    return np.concatenate(parts)


def intrusions(middles: Array, height: float, axes: Array, neighbours: Sequence[Sequence[Array]]) -> Array:
    """How deep, metres, open hands with pads at `height` reach into neighbours: [N], for hands at middles [N, 2].

    axes [N, 2]: unit vectors along the line of the fingers.
    """
    deepest = np.zeros(len(middles))
    for bottom, half in ((height - 0.01, FINGERS), (height + PALM_HEIGHT, PALM)):
        for pieces in neighbours:
            above = [piece[:, :2] for piece in pieces if piece[:, 2].max() > bottom]
            if above:
                deepest = np.maximum(deepest, _overlaps(np.concatenate(above), middles, axes, half))
    return deepest


def _overlaps(points: Array, middles: Array, axes: Array, half: tuple[float, float]) -> Array:
    """Depth to which N rectangles and the hull of `points` [P, 2] overlap (separating axes), 0 when apart: [N]."""
    across = np.stack([-axes[:, 1], axes[:, 0]], axis=1)
    toward = points.mean(axis=0) - middles
    toward = toward / np.maximum(np.hypot(toward[:, 0], toward[:, 1]), 1e-9)[:, None]
    depth = np.full(len(middles), np.inf)
    for direction in (axes, across, toward):
        reach = np.abs((direction * axes).sum(axis=1)) * half[0] + np.abs((direction * across).sum(axis=1)) * half[1]
        along = direction @ points.T - (direction * middles).sum(axis=1)[:, None]
        depth = np.minimum(depth, np.minimum(reach - along.min(axis=1), along.max(axis=1) + reach))
    return np.asarray(np.maximum(depth, 0.0))
