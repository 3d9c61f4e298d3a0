"""robosuite's Lift with a cube that drives about the table until it is grasped: a slow policy misses it.

The cube is driven by setting its velocity in the plane before each substep, never its position, so the
physics still decides what happens when it meets a finger: it is stopped or turned, not passed through.
Once both fingers hold it, it is free for the rest of the episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.robosuite import Robosuite

# Sliding friction takes up to this much speed away in a substep, m/s: g times 2 ms, with a coefficient of 1.
_FRICTION_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class Drive:
    """speed in m/s; heading at the start in radians; turn in rad/s, 0 for straight lines."""

    speed: float
    heading: float
    turn: float


class LiftMoving(Robosuite):
    """Lift with a moving cube.

    speeds: slowest and fastest, m/s, one is drawn per episode. circling: share of the episodes in which the
    cube goes round in circles instead of straight on. area: half extents in metres of the rectangle about
    the table's middle at whose edges it turns back. Everything else is `Robosuite`'s.
    """

    def __init__(
        self,
        *,
        task_class: str = "Lift",
        speeds: tuple[float, float] = (0.02, 0.10),
        circling: float = 0.5,
        area: tuple[float, float] = (0.10, 0.14),
        **options: Any,
    ):
        if task_class != "Lift":
            raise ValueError(f"env.task_class: expected Lift, the task whose cube moves, got {task_class!r}")
        if not 0.0 < speeds[0] <= speeds[1] <= 0.3:
            raise ValueError(f"env.speeds: expected 0 < slowest <= fastest <= 0.3 m/s, got {list(speeds)}")
        self._speeds, self._circling, self._area = speeds, circling, np.array(area)
        self._drive = Drive(0.0, 0.0, 0.0)
        self._heading = 0.0
        self._boost = 0.0
        self._free = True
        super().__init__(task_class=task_class, **{"name": "lift_moving", **options})

    @property
    def drive(self) -> Drive:
        """How the cube moves in this episode."""
        return self._drive

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        # A stream of its own: the cube stands where Lift with the same seed puts it.
        rng = np.random.default_rng([seed, task, episode, 1])
        speed = float(rng.uniform(self._speeds[0], self._speeds[1]))
        heading = float(rng.uniform(-np.pi, np.pi))
        circles = rng.uniform() < self._circling
        turn = float(rng.choice([-1.0, 1.0]) * speed / rng.uniform(0.05, 0.10)) if circles else 0.0
        self._drive, self._heading, self._boost, self._free = Drive(speed, heading, turn), heading, 0.0, False
        facts = super().reset(seed, task, episode)
        raw = self._raw
        model = raw.sim.model
        joint = raw.cube.joints[0]
        self._qpos, self._qvel = model.get_joint_qpos_addr(joint)[0], model.get_joint_qvel_addr(joint)[0]
        ids = model.geom_name2id
        self._cube_geoms = [ids(name) for name in raw.cube.contact_geoms]
        pads = raw.robots[0].gripper.important_geoms
        self._pads = [[ids(name) for name in pads[side]] for side in ("left_fingerpad", "right_fingerpad")]
        self._table = raw.model.mujoco_arena.table_offset
        self._rest = self._table[2] + raw.cube.size[2]
        return {**facts, "cube_speed": round(speed, 4), "cube_turn": round(turn, 4)}

    def state_hash(self) -> str:
        moving = np.array([self._drive.speed, self._heading, self._drive.turn, self._free], np.float64)
        return hashlib.sha256(super().state_hash().encode() + moving.tobytes()).hexdigest()[:16]

    def _before_substep(self) -> None:
        if self._free:
            return
        data = self._raw.sim.data._data
        if self._grasped(data):
            self._free = True
            return
        position = data.qpos[self._qpos : self._qpos + 3]
        # Only a cube that stands on the table can drive; one that is falling or tipped is left to the physics.
        if abs(position[2] - self._rest) > 0.004:
            return
        self._heading += self._drive.turn * self._raw.model_timestep
        direction = np.array([np.cos(self._heading), np.sin(self._heading)])
        offset = position[:2] - self._table[:2]
        beyond = (np.abs(offset) > self._area) & (direction * offset > 0.0)
        if beyond.any():
            direction[beyond] *= -1.0
            self._heading = float(np.arctan2(direction[1], direction[0]))
        velocity = data.qvel[self._qvel : self._qvel + 6]
        # What friction took in the last substep is added in this one, and no more: a cube that a finger
        # stops pushes with bounded force.
        lost = self._drive.speed - float(velocity[:2] @ direction)
        self._boost = min(max(self._boost + 0.5 * lost, 0.0), _FRICTION_LOSS)
        velocity[:2] = (self._drive.speed + self._boost) * direction
        velocity[5] = 0.0

    def _grasped(self, data: Any) -> bool:
        pairs = data.contact.geom.tolist()
        return all(
            any((a in pad and b in self._cube_geoms) or (b in pad and a in self._cube_geoms) for a, b in pairs)
            for pad in self._pads
        )
