"""What the loop itself costs a tick: specs, limits, schedule and trace on, environment and policy taken out.

    python benchmarks/tick_overhead.py

The loop times every tick and leaves out what `observe`, `apply`, `outcome` and `predict` took. A real arm's
specs (state 11, action 10, two cameras) with an environment and a policy that do nothing.
"""

from __future__ import annotations

import json
import platform

import numpy as np

from envs.osc_arm import ABSOLUTE, STATE
from vla_runtime.control.clock import VirtualClock
from vla_runtime.control.loop import run
from vla_runtime.control.trace import percentiles
from vla_runtime.types import ActionChunk, CameraSpec, EnvSpec, Observation, PolicySpec

TICKS = 100_000
CAMERAS = (CameraSpec("agentview", 256, 256), CameraSpec("robot0_eye_in_hand", 256, 256))


class Nothing:
    """An environment and a policy that only answer."""

    def __init__(self):
        self.spec = EnvSpec("nothing", CAMERAS, STATE, ABSOLUTE, 0.05, ("nothing",), TICKS)
        self.policy = PolicySpec("nothing", CAMERAS, STATE, ABSOLUTE, 0.05, horizon=16)
        self._images = {camera.name: camera.example() for camera in CAMERAS}
        self._state = STATE.example()
        self._rows = np.tile(ABSOLUTE.example(), (16, 1))
        self._tick = 0

    def observe(self, cameras=()):
        time = self._tick * 0.05
        images = {name: self._images[name] for name in cameras}
        return Observation(self._state, images, "nothing", time, dict.fromkeys(images, time))

    def apply(self, command):
        self._tick += 1

    def outcome(self):
        return None

    def predict(self, observations, committed=None, deadline=None):
        time = observations[-1].time
        return ActionChunk(self._rows, time, 0.05, time)


def main() -> None:
    nothing = Nothing()
    result = run(nothing, nothing, nothing.policy, VirtualClock(), replan=8)
    figures = {"ticks": TICKS, "replan": 8, "tick_us": percentiles(result.trace.ticks, 1e6)}
    print(
        json.dumps(
            {**figures, "machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        )
    )


if __name__ == "__main__":
    main()
