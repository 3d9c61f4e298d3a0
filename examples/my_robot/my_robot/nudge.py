"""A policy that looks for the green mark in the image and drives towards it."""

import numpy as np

from vla_runtime import ActionChunk, PolicySpec


class Nudge:
    """Policy. `env` is the EnvSpec of the environment it will run in; the rest comes from its YAML."""

    def __init__(self, env, speed: float = 0.3):
        self._speed = speed
        self.spec = PolicySpec("nudge", env.cameras, env.state, env.action, env.period, horizon=4)

    def begin(self, seed):
        return self  # it keeps no state from one observation to the next

    def predict(self, observations, committed=None, deadline=None):
        now = observations[-1]
        image = now.images["side"].astype(int)
        green = np.flatnonzero((image[8, :, 1] > 120) & (image[8, :, 0] < 120))
        mark = (green.mean() - 1) / 61 * 2 - 1 if green.size else float(now.state[0])
        # Each row as fast as allowed, but never past the mark.
        x, rows = float(now.state[0]), []
        for _ in range(self.spec.horizon):
            step = float(np.clip(mark - x, -self._speed * 0.05, self._speed * 0.05))
            x += step
            rows.append([step / 0.05])
        return ActionChunk(np.array(rows, np.float32), now.time, self.spec.period, now.time)

    def close(self): ...
