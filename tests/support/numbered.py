"""A policy whose rows say which plan they are of, and an environment that remembers what it was told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.reach import Reach
from vla_runtime.types import ActionChunk, PolicySpec

PERIOD = 0.05


class Recording(Reach):
    """Remembers what was asked of it. period: seconds between its commands."""

    def __init__(self, period=PERIOD, **options):
        super().__init__(**options)
        self._spec = replace(self._spec, period=period)

    def reset(self, seed, task, episode):
        self.applied = []
        return super().reset(seed, task, episode)

    def apply(self, command):
        self.applied.append(command)
        super().apply(command)

    def outcome(self):
        return None


class Numbered:
    """Answers with rows that say which plan they are of and which row: (plan / 100, row / 100)."""

    def __init__(self, env, horizon=16, max_committed=8):
        spec = env.spec
        self.spec = PolicySpec(
            "numbered", spec.cameras, spec.state, spec.action, PERIOD, horizon, max_committed=max_committed
        )
        self.asked = []

    def predict(self, observations, committed=None, deadline=None):
        time = observations[-1].time
        rows = np.empty((self.spec.horizon, 2), np.float32)
        rows[:, 0], rows[:, 1] = len(self.asked) / 100, np.arange(self.spec.horizon) / 100
        if committed is not None:
            rows[: len(committed)] = committed
        self.asked.append((time, committed))
        return ActionChunk(rows, time, PERIOD, time)
