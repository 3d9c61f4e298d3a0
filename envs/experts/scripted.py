"""A policy made of a rule: from an OSC arm's simulator state to the pose to aim for, said in the arm's own control.

It knows how to read a hand, and how a goal becomes an action; which goal is the rule's business
(`envs.experts.robosuite`, `envs.experts.libero`). It remembers nothing between two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from envs.experts.skills import Goal, Hand, Manner
from envs.osc_arm import OscArm
from vla_runtime.transforms import delta_from_absolute, rot6d_from_matrix
from vla_runtime.types import ActionChunk, Float, Observation, PolicySpec

Rule = Callable[[OscArm, Manner], Goal]


class ScriptedExpert:
    """A Policy that applies `rule` to the environment that made it.

    seed: mixed into the seed of every episode, which draws the Manner when style is "multi".
    """

    def __init__(self, env: OscArm, rule: Rule, *, seed: int, style: str):
        Manner.drawn(0, style)
        self._env, self._rule, self._seed, self._style = env, rule, seed, style
        self._spec = PolicySpec(
            name=f"expert_{style}",
            cameras=(),
            state=env.spec.state,
            action=env.spec.action,
            period=env.spec.period,
            horizon=1,
        )

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def begin(self, seed: int) -> ScriptedSession:
        entropy = int(np.random.SeedSequence([self._seed, seed]).generate_state(1)[0])
        return ScriptedSession(self._env, self._rule, Manner.drawn(entropy, self._style))

    def close(self) -> None:
        """Nothing: the environment belongs to whoever made it."""


class ScriptedSession:
    """One episode of a ScriptedExpert; manner: how it moves in this episode."""

    def __init__(self, env: OscArm, rule: Rule, manner: Manner):
        self._env, self._rule, self.manner = env, rule, manner

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        time = observations[-1].time
        action = spoken(self._env, self._rule(self._env, self.manner))
        return ActionChunk(action[None], start=time, period=self._env.spec.period, observed=time)


def spoken(env: OscArm, goal: Goal) -> Float:
    """A goal as one action float32 [A] in the environment's own control; deltas from the measured pose."""
    values = np.concatenate([goal.position, rot6d_from_matrix(goal.rotation), [goal.gripper]]).astype(np.float32)
    if "absolute" in env.spec.action.controls:
        return values
    return delta_from_absolute(values, *env.pose(), env.control_specs["delta"])


def measured_hand(env: OscArm, thing_geoms: Iterable[int]) -> Hand:
    """The hand now; `touching` says whether both fingers touch one of the geoms."""
    raw = env.raw
    robot, data = raw.robots[0], raw.sim.data._data
    position, rotation = env.pose()
    left, right = data.qpos[robot._ref_gripper_joint_pos_indexes]
    left_rate, right_rate = data.qvel[robot._ref_gripper_joint_vel_indexes]
    sides = (geom_ids(raw, robot.gripper.important_geoms[side]) for side in ("left_finger", "right_finger"))
    thing = set(thing_geoms)
    pairs = data.contact.geom.tolist()
    touching = all(any((a in side and b in thing) or (b in side and a in thing) for a, b in pairs) for side in sides)
    return Hand(position, rotation, float(left - right), float(left_rate - right_rate), touching)


def geom_ids(raw: Any, names: Iterable[str]) -> set[int]:
    """The ids of named geoms in the present model (a hard reset may change them)."""
    return {raw.sim.model.geom_name2id(name) for name in names}
