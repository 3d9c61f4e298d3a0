"""A policy without weights that keeps the robot still: the floor every other policy is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_runtime.types import ActionChunk, EnvSpec, Float, Observation, PolicySpec, SpecMismatch


class Hold:
    """Policy: no motion, gripper open. horizon: rows a chunk.

    SpecMismatch for an action with an absolute group that has no group of the same name and size in the
    state: what keeps such a robot still is its own pose.
    """

    def __init__(self, env: EnvSpec, horizon: int = 8):
        for group in env.action.groups:
            if group.kind == "absolute":
                same = [
                    other for other in env.state.groups if other.name == group.name and other.rotation == group.rotation
                ]
                if not same:
                    raise SpecMismatch(
                        f"hold: expected the state to have the absolute action group {group.name!r}, "
                        f"got {list(env.state.slices)}"
                    )
        self._env = env
        self._spec = PolicySpec("hold", (), env.state, env.action, env.period, horizon)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def begin(self, seed: int) -> Hold:
        """The policy itself: it keeps no state."""
        return self

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        observation = observations[-1]
        action = np.zeros(self._env.action.size, np.float32)
        for group in self._env.action.groups:
            if group.kind == "absolute":
                action[self._env.action.slices[group.name]] = observation.state[self._env.state.slices[group.name]]
            elif group.kind == "binary" and group.open is not None:
                action[self._env.action.slices[group.name]] = group.open
        rows = np.repeat(action[None], self._spec.horizon, axis=0)
        return ActionChunk(rows, observation.time, self._spec.period, observation.time)

    def close(self) -> None: ...
