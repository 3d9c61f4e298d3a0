"""The action that leaves a robot where it is, or where it was told to be."""

from __future__ import annotations

import numpy as np

from vla_runtime.groups import different_meaning
from vla_runtime.types import ActionSpec, EnvSpec, Float, Observation, SpecMismatch


def standing(env: EnvSpec, observation: Observation, last: Float | None = None) -> Float:
    """The action float32 [A] that leaves a robot where it was just seen: its own pose, no motion.

    last: the action before, whose grippers, and groups that no state tells, stay as they were told; without one they
    are open, and at rest. SpecMismatch for an absolute group without a group of the same name, dims, units and rotation
    in the state, and without a rest.
    """
    action = np.zeros(env.action.size, np.float32)
    for group in env.action.groups:
        part = env.action.slices[group.name]
        if group.kind == "absolute":
            same = [one for one in env.state.groups if one.name == group.name]
            if same and not different_meaning(same[0], group):
                action[part] = observation.state[env.state.slices[group.name]]
            elif group.rest is not None:
                action[part] = group.rest if last is None else last[part]
            else:
                raise SpecMismatch(
                    f"hold: expected the state to have the absolute action group {group.name!r}, with the same dims, "
                    f"units and rotation, or the group to state its rest, got {list(env.state.slices)} and none"
                    + "".join(f"; {one}" for state in same for one in different_meaning(state, group))
                )
        elif group.kind == "binary" and last is not None:
            action[part] = last[part]
        elif group.kind == "binary" and group.open is not None:
            action[part] = group.open
    return action


def held(action: ActionSpec, last: Float) -> Float:
    """The action float32 [A] that goes on meaning what the last one did: its places and grippers, no motion."""
    values = np.array(last, np.float32)
    for group in action.groups:
        if group.kind in ("delta", "velocity"):
            values[action.slices[group.name]] = 0.0
    return values
