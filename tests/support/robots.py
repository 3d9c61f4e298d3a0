"""Contracts with a robot's side for the reach arm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.reach import Reach
from vla_runtime.contract import Contract
from vla_runtime.robot_side import CameraStream, CommandStream, Desk, RobotSide, StateStream
from vla_runtime.types import ActionChunk, PolicySpec


def reach_robot(control="absolute", size=16, **changes):
    """A contract for Reach, on topics of its own, patient enough for a busy machine. changes: of the RobotSide."""
    spec = Reach(control=control, size=size).spec
    stop = "hold" if control == "absolute" else "zero"
    side = RobotSide(
        "reach_arm",
        {name: CameraStream(f"/cameras/{name}", "sensor_msgs/msg/Image", max_age=1.0) for name in ("overhead", "hand")},
        {
            "joints": StateStream("/joint_states", ("j1", "j2"), max_age=1.0),
            "position": StateStream("/joint_states", ("hand.x", "hand.y"), max_age=1.0),
        },
        {"joints": CommandStream("/arm/command", ("j1", "j2"), stop)},
        desk=Desk(outcome="/vla/outcome", instruction="/vla/instruction"),
    )
    return replace(Contract.of(spec), robot=replace(side, **changes))


class Aiming:
    """A policy that looks at what it is shown and turns the joints to where the disc of `env` is."""

    def __init__(self, env, rows=8, speed=2.0):
        self._env, self._speed = env, speed
        spec = env.spec
        self.spec = PolicySpec("aiming", spec.cameras, spec.state, spec.action, spec.period, rows, executed=4)
        self.seen = []

    def begin(self, seed):
        return self

    def predict(self, observations, committed=None, deadline=None):
        newest = observations[-1]
        for camera in self.spec.cameras:
            camera.validate(newest.images[camera.name])
        self.seen.append(newest)
        joints, period = newest.state[:2].astype(np.float64), self.spec.period
        way = self._env.goal_joints(1.0) - joints
        steps = np.arange(1, self.spec.horizon + 1)[:, None] * self._speed * period
        rows = joints + np.clip(way, -steps, steps)
        return ActionChunk(rows.astype(np.float32), newest.time, period, newest.time)

    def close(self): ...


# What a command builds by its name in a test: `share` says what.
_shared = {}


def share(**what):
    _shared.clear()
    _shared.update(what)


def shared_transport():
    return _shared["transport"]


def shared_policy(env):
    return _shared["policy"]
