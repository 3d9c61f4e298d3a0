"""What is known about robosuite's tasks beyond robosuite itself: instructions, progress and wider placement.

It reads and prepares a raw robosuite environment and never steps it.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import numpy as np

INSTRUCTIONS = {
    "Lift": "lift the red cube",
    "Stack": "stack the red cube on the green cube",
    "PickPlace": "put every object into its bin",
    "PickPlaceMilk": "put the milk carton into its bin",
    "PickPlaceBread": "put the bread into its bin",
    "PickPlaceCereal": "put the cereal box into its bin",
    "PickPlaceCan": "put the can into its bin",
    "NutAssembly": "put each nut on its peg",
    "NutAssemblySquare": "put the square nut on the square peg",
    "NutAssemblyRound": "put the round nut on the round peg",
    "Door": "open the door",
}

_REFUSED = {
    "PickPlaceSingle": "it picks its object from a set whose order changes with every process; use PickPlaceCan, "
    "PickPlaceMilk, PickPlaceBread or PickPlaceCereal",
    "NutAssemblySingle": "it picks its nut from a set whose order changes with every process; use NutAssemblySquare "
    "or NutAssemblyRound",
    "Wipe": "it has no gripper, which the state and action of this environment describe",
    "TwoArmLift": "it has two arms",
    "TwoArmPegInHole": "it has two arms",
    "TwoArmHandover": "it has two arms",
}

# Arms of robosuite 1.4 that its own code offers and that cannot be built.
_REFUSED_ARMS = {
    "Sawyer": "the supported MuJoCo does not compile its model (the volume of the mesh robot0_head_1 is too small)",
}


def check_robot(robot: str) -> None:
    """ValueError, with the nearest names, unless `robot` is a single arm that can be built."""
    from robosuite.robots import ROBOT_CLASS_MAPPING

    if robot in _REFUSED_ARMS:
        raise ValueError(f"env.robot: {robot} cannot be used here: {_REFUSED_ARMS[robot]}; take one of {arms()}")
    if robot not in arms():
        nearest = get_close_matches(robot, arms(), cutoff=0.3) or arms()
        why = ": it has two arms" if robot in ROBOT_CLASS_MAPPING else ""
        raise ValueError(f"env.robot: expected one of {arms()}, got {robot!r}{why}; nearest: {', '.join(nearest)}")


def arms() -> list[str]:
    """The single arms that a task can be built with."""
    from robosuite.robots import ROBOT_CLASS_MAPPING

    single = [name for name, kind in ROBOT_CLASS_MAPPING.items() if kind.__name__ == "SingleArm"]
    return sorted(set(single) - set(_REFUSED_ARMS))


def check_task(task_class: str) -> None:
    """ValueError, with the nearest names, unless `task_class` is a task this environment can offer."""
    if task_class in _REFUSED:
        raise ValueError(f"env.task_class: {task_class} cannot be used here: {_REFUSED[task_class]}")
    if task_class not in INSTRUCTIONS:
        nearest = get_close_matches(task_class, INSTRUCTIONS, cutoff=0.3) or sorted(INSTRUCTIONS)
        raise ValueError(
            f"env.task_class: expected one of {sorted(INSTRUCTIONS)}, got {task_class!r}; nearest: {', '.join(nearest)}"
        )


def widen_placement(raw: Any, metres: float) -> None:
    """Let objects start `metres` further out on every side; ValueError for a task whose region cannot grow."""
    from robosuite.utils.placement_samplers import UniformRandomSampler

    if metres < 0.0:
        raise ValueError(f"env.widen: expected metres >= 0, got {metres}")
    if metres == 0.0:
        return
    name = type(raw).__name__
    if hasattr(raw, "_get_placement_initializer"):
        raise ValueError(f"env.widen: expected 0 for {name}, got {metres}: its objects already use the whole bin")
    initializer = getattr(raw, "placement_initializer", None)
    samplers = list(getattr(initializer, "samplers", {"": initializer}).values())
    if not all(isinstance(sampler, UniformRandomSampler) for sampler in samplers):
        raise ValueError(f"env.widen: expected 0 for {name}, got {metres}: its placement is not a uniform region")
    for sampler in samplers:
        sampler.x_range = (min(sampler.x_range) - metres, max(sampler.x_range) + metres)
        sampler.y_range = (min(sampler.y_range) - metres, max(sampler.y_range) + metres)


def progress(raw: Any) -> float | None:
    """How far the task is, in [0, 1], 1 only on success; None for a task without a measure."""
    if raw._check_success():
        return 1.0
    name = type(raw).__name__
    if name == "Lift":
        return _lifted(raw)
    if name == "Stack":
        return float(np.clip(max(raw.staged_rewards()) / 2.0, 0.0, 0.99))
    if name == "Door":
        return float(np.clip(raw.sim.data.qpos[raw.hinge_qpos_addr] / 0.3, 0.0, 0.99))
    if name.startswith("PickPlace") and raw.single_object_mode == 2:
        return _carried(raw, raw.objects[raw.object_id], raw.target_bin_placements[raw.object_id])
    if name.startswith("NutAssembly") and raw.single_object_mode == 2:
        peg = (raw.peg1_body_id, raw.peg2_body_id)[raw.nut_id]
        return _carried(raw, raw.nuts[raw.nut_id], raw.sim.data.body_xpos[peg])
    return None


def _lifted(raw: Any) -> float:
    """Reaching to 0.3, held 0.5, and from there by height: a cube that still falls into place counts for nothing."""
    position = raw.sim.data.body_xpos[raw.cube_body_id]
    hand = raw.sim.data.site_xpos[raw.robots[0].eef_site_id]
    if not raw._check_grasp(gripper=raw.robots[0].gripper, object_geoms=raw.cube):
        return float(0.3 * (1.0 - np.tanh(10.0 * np.linalg.norm(hand - position))))
    rest = raw.cube.size[2]
    height = position[2] - raw.model.mujoco_arena.table_offset[2]
    return float(0.5 + 0.49 * np.clip((height - rest) / (0.04 - rest), 0.0, 1.0))


def _carried(raw: Any, thing: Any, target: Any) -> float:
    """For one thing: reaching to 0.1, held 0.35, lifted by 20 cm to 0.5, brought over the target to 0.9."""
    data = raw.sim.data
    position = data.body_xpos[raw.obj_body_id[thing.name]]
    hand = data.site_xpos[raw.robots[0].eef_site_id]
    if not raw._check_grasp(gripper=raw.robots[0].gripper, object_geoms=thing.contact_geoms):
        return float(0.1 * (1.0 - np.tanh(10.0 * np.linalg.norm(hand - position))))
    lifted = 0.15 * np.clip((position[2] - target[2]) / 0.2, 0.0, 1.0)
    brought = 0.4 * (1.0 - np.clip(np.linalg.norm(target[:2] - position[:2]) / 0.8, 0.0, 1.0))
    return float(0.35 + lifted + brought)
