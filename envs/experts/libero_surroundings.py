"""What an expert sees of a LIBERO scene: shapes and places of things, the hand, and what stands in the way.

Reads MuJoCo's collision geometry through the raw environment; changes nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.experts.grasps import Shape, bounds
from envs.experts.scripted import geom_ids, measured_hand
from envs.experts.skills import Hand
from envs.osc_arm import OscArm

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """An upright box, low and high corner [3] in metres, that a thing's own point should come to lie in or above."""

    low: Array
    high: Array


class Surroundings:
    """One LIBERO scene as an expert sees it; `look` takes the state now, the rest answers from it."""

    def __init__(self, env: OscArm):
        self._env, raw = env, env.raw
        self._raw = raw
        self._model, self._data = raw.sim.model._model, raw.sim.data._data
        names = [*raw.objects_dict, *raw.fixtures_dict]
        shapes = {name: Shape(self._model, raw.obj_body_id[name]) for name in names}
        self._shapes = {name: shape for name, shape in shapes.items() if shape.geoms}
        geoms = {geom for part in raw.robots[0].gripper.important_geoms.values() for geom in part}
        self._gripper = geom_ids(raw, geoms)
        self._pieces: dict[str, list[Array]] = {}
        self._bounds: dict[str, tuple[Array, Array]] = {}

    def describes(self, raw: Any) -> bool:
        """Whether this was made from `raw` and from the model that it has now."""
        return raw is self._raw and raw.sim.model._model is self._model

    def look(self) -> None:
        """Take the geometry as it is now."""
        self._pieces = {name: shape.pieces(self._data) for name, shape in self._shapes.items()}
        self._bounds = {name: bounds(pieces) for name, pieces in self._pieces.items()}

    def pieces(self, name: str) -> list[Array]:
        return self._pieces[name]

    def bounds(self, name: str) -> tuple[Array, Array]:
        return self._bounds[name]

    def thickness(self, name: str) -> float:
        """The thing's least extent along its own axes, metres."""
        return self._shapes[name].thickness(self._model, self._data)

    def position(self, name: str) -> Array:
        """The thing's own point [3], by which LIBERO judges where it is."""
        return np.array(self._data.xpos[self._raw.obj_body_id[name]])

    def hand(self, name: str) -> Hand:
        """The hand, and whether both of its fingers touch the thing `name`."""
        return measured_hand(self._env, self._shapes[name].geoms)

    def speed(self, name: str) -> float:
        """How fast the thing moves, m/s."""
        return float(np.linalg.norm(self._data.cvel[self._raw.obj_body_id[name]][3:]))

    def joint(self, index: int) -> tuple[float, float, float]:
        """Angle, lower and upper limit of one of the arm's joints, radians."""
        robot = self._raw.robots[0]
        low, high = self._model.jnt_range[robot._ref_joint_indexes[index]]
        return float(self._data.qpos[robot._ref_joint_pos_indexes[index]]), float(low), float(high)

    def base(self) -> Array:
        """Where the arm stands, [3] in metres."""
        return np.asarray(self._raw.robots[0].base_pos, np.float64)

    def on_a_finger(self, name: str) -> bool:
        """Whether the thing touches any part of the gripper."""
        thing, gripper = set(self._shapes[name].geoms), self._gripper
        pairs = self._data.contact.geom.tolist()
        return any((a in thing and b in gripper) or (b in thing and a in gripper) for a, b in pairs)

    def region(self, name: str) -> Region:
        """The box of a site such as "basket_1_contain_region", or of a whole object or fixture."""
        site = self._raw.object_sites_dict.get(name)
        if site is None:
            return Region(*self._bounds[name])
        centre = np.array(self._raw.sim.data.get_site_xpos(name))
        # LIBERO turns the half sizes with the site and takes magnitudes; the same box is used here.
        half = np.abs(self._raw.sim.data.get_site_xmat(name) @ np.asarray(site.size, np.float64))
        return Region(centre - half, centre + half)

    def neighbours(self, name: str, radius: float) -> list[list[Array]]:
        """The pieces of every other thing within `radius` of the thing's own point, in the plane."""
        here = self.position(name)[:2]
        return [
            pieces
            for other, pieces in self._pieces.items()
            if other != name and _gap(here, here, *self._bounds[other]) < radius
        ]

    def top_along(self, start: Array, end: Array, radius: float, without: Sequence[str] = ()) -> float:
        """Height of the highest thing within `radius` of the straight way from start to end, in the plane."""
        tops = [
            high[2]
            for name, (low, high) in self._bounds.items()
            if name not in without and _gap(start[:2], end[:2], low, high) < radius
        ]
        return float(max(tops, default=0.0))

    def highest(self) -> float:
        """Height of the highest thing."""
        return float(max(high[2] for _, high in self._bounds.values()))


def _gap(start: Array, end: Array, low: Array, high: Array) -> float:
    """Distance in the plane between a segment and an upright box, to within a few millimetres."""
    points = start + np.linspace(0.0, 1.0, 33)[:, None] * (end - start)
    outside = np.maximum(np.maximum(low[:2] - points, points - high[:2]), 0.0)
    return float(np.sqrt((outside**2).sum(axis=1).min()))
