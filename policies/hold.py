"""A policy without weights that keeps the robot still: the floor every other policy is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_runtime.control.standing import standing
from vla_runtime.types import ActionChunk, EnvSpec, Float, Observation, PolicySpec


class Hold:
    """Policy: no motion, gripper open. horizon: rows a chunk.

    SpecMismatch for an action with an absolute group that has no group of the same name and size in the
    state: what keeps such a robot still is its own pose.
    """

    def __init__(self, env: EnvSpec, horizon: int = 8):
        standing(env, Observation(env.state.example(), {}, "", 0.0))  # that it can
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
        rows = np.repeat(standing(self._env, observation)[None], self._spec.horizon, axis=0)
        return ActionChunk(rows, observation.time, self._spec.period, observation.time)

    def close(self) -> None: ...
