"""Scripted experts for robosuite's lift, lift_moving, stack and can, composed of `envs.experts.skills`.

Each rule reads the simulator's state and says what to aim for now; it keeps nothing from one tick to the next.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs.experts.scripted import Rule, ScriptedExpert, geom_ids, measured_hand
from envs.experts.skills import (
    Array,
    Goal,
    Grasp,
    Manner,
    Target,
    choose_yaw,
    lift,
    pick_and_place,
    reach,
    shifted,
)
from envs.osc_arm import OscArm
from vla_runtime.types import UnsupportedTask

# The Panda's finger line at rest points along the world's y.
HOME_YAW = np.pi / 2


def expert_for(env: OscArm, seed: int, style: str) -> ScriptedExpert:
    """The expert for the environment's task; UnsupportedTask, with the tasks that have one, otherwise."""
    rule = _RULES.get(type(env.raw).__name__)
    if rule is None:
        raise UnsupportedTask(
            f"env={env.spec.name}: robosuite's {type(env.raw).__name__} has no scripted expert; "
            f"expected one of {', '.join(_RULES)} (env=lift, lift_moving, stack, can)"
        )
    return ScriptedExpert(env, rule, seed=seed, style=style)


def lift_cube(env: OscArm, manner: Manner) -> Goal:
    """Grasp the cube, wherever and however fast it goes, and raise it."""
    raw = env.raw
    cube = raw.cube
    hand = measured_hand(env, geom_ids(raw, cube.contact_geoms))
    if hand.holding:
        return lift(hand, hand.position[2] + 0.1, manner)
    grasp = _grasp_box(raw, cube, raw.cube_body_id, hand.yaw, manner)
    return reach(hand, grasp, manner)


def stack_cubes(env: OscArm, manner: Manner) -> Goal:
    """Put the red cube on the green one."""
    raw = env.raw
    position, below = _position(raw, raw.cubeA_body_id), _position(raw, raw.cubeB_body_id)
    hand = measured_hand(env, geom_ids(raw, raw.cubeA.contact_geoms))
    grasp = _grasp_box(raw, raw.cubeA, raw.cubeA_body_id, hand.yaw, manner, below[:2] - position[:2])
    place = below + [0.0, 0.0, raw.cubeB.size[2] + raw.cubeA.size[2]]
    target = Target(place, clear=place[2] + 0.025, radius=0.012, drop=0.004)
    return pick_and_place(hand, position, grasp, target, manner)


def put_can(env: OscArm, manner: Manner) -> Goal:
    """Put the can into its bin."""
    raw = env.raw
    can = raw.objects[raw.object_id]
    position = _position(raw, raw.obj_body_id[can.name])
    hand = measured_hand(env, geom_ids(raw, can.contact_geoms))
    axis = _rotation(raw, raw.obj_body_id[can.name])[:, 2]
    preferred = HOME_YAW + manner.turn
    if abs(axis[2]) > 0.8:
        # Round and upright: any yaw will do. The hand closes near the top, where its palm clears the bin's walls.
        yaws, height, top = [preferred, preferred + np.pi / 2], 0.02, 0.04
    else:
        yaws, height, top = [float(np.arctan2(axis[1], axis[0])) + np.pi / 2], 0.0, 0.025
    yaw = choose_yaw(yaws, hand.yaw, preferred, HOME_YAW, avoid=_nearest_wall(raw, position))
    grasp = Grasp(position + [0.0, 0.0, height], yaw, top=position[2] + top, opening=0.07)
    # The middle of the bin is at the end of the arm's reach; its near corner is not.
    middle, size = raw.target_bin_placements[raw.object_id], raw.bin_size
    near = middle[:2] - [0.12 * size[0], 0.12 * size[1]]
    floor = raw.bin2_pos[2] + 0.02
    place = np.array([*near, floor - can.bottom_offset[2]])
    target = Target(place, clear=floor + 0.09 - can.bottom_offset[2], radius=0.03, drop=0.03, yaw=HOME_YAW)
    return pick_and_place(hand, position, grasp, target, manner)


def _grasp_box(raw: Any, box: Any, body: int, present: float, manner: Manner, avoid: Array | None = None) -> Grasp:
    """Fingers on two opposite upright faces of a box with equal sides."""
    position, rotation = _position(raw, body), _rotation(raw, body)
    # Any of the box's axes may point up after a fall: the yaw is that of the most horizontal one.
    axis = rotation[:, int(np.argmin(np.abs(rotation[2])))]
    yaw = float(np.arctan2(axis[1], axis[0]))
    chosen = choose_yaw([yaw, yaw + np.pi / 2], present, HOME_YAW + manner.turn, HOME_YAW, avoid)
    velocity = np.array(raw.sim.data.get_body_xvelp(box.root_body))
    velocity[2] = 0.0
    grasp = Grasp(position, chosen, top=position[2] + box.size[2], velocity=velocity)
    return shifted(grasp, 0.006 * manner.slide)


def _nearest_wall(raw: Any, position: Array) -> Array:
    """From a place in PickPlace's bins to the nearest wall [2]; the second bin is divided in four."""
    half = raw.bin_size[:2] / 2
    second = position[1] > (raw.bin1_pos[1] + raw.bin2_pos[1]) / 2
    offset = position[:2] - (raw.bin2_pos if second else raw.bin1_pos)[:2]
    ways = []
    for axis in (0, 1):
        for edge in (-half[axis], 0.0, half[axis]) if second else (-half[axis], half[axis]):
            way = np.zeros(2)
            way[axis] = edge - offset[axis]
            ways.append(way)
    return min(ways, key=lambda way: float(np.abs(way).max()))


def _position(raw: Any, body: int) -> Array:
    return np.array(raw.sim.data.body_xpos[body])


def _rotation(raw: Any, body: int) -> Array:
    return np.array(raw.sim.data.body_xmat[body]).reshape(3, 3)


_RULES: dict[str, Rule] = {"Lift": lift_cube, "Stack": stack_cubes, "PickPlaceCan": put_can}
