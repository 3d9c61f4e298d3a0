"""A block on a rail: the smallest environment that keeps every promise."""

import numpy as np

from vla_runtime import ActionSpec, CameraSpec, EnvSpec, Group, Observation, Outcome, StateSpec, UnsupportedTask


class Slider:
    """Env: push a block along a rail to `goal` metres."""

    def __init__(self, goal: float = 0.5):
        self._goal = goal
        self.spec = EnvSpec(
            name="slider",
            cameras=(CameraSpec("side", 16, 64),),
            state=StateSpec((Group("rail", ("x",), "measured", "m", (-1.0,), (1.0,)),)),
            action=ActionSpec((Group("rail", ("x",), "velocity", "m/s", (-1.0,), (1.0,)),)),
            period=0.05,
            tasks=("push the block to the mark",),
            max_steps=100,
        )

    def reset(self, seed, task, episode):
        self._x = float(np.random.default_rng((seed, task, episode)).uniform(-0.5, 0.0))
        self._tick = 0
        return {"initial_state": self._x.hex()}

    def observe(self, cameras=()):
        time = self._tick * self.spec.period
        images = {name: self._picture() for name in cameras}
        state = np.array([self._x], np.float32)
        return Observation(state, images, self.spec.tasks[0], time, dict.fromkeys(images, time))

    def apply(self, command):
        self.spec.action.validate(command.values)
        self._x = float(np.clip(self._x + command.values[0] * self.spec.period, -1, 1))
        self._tick += 1

    def outcome(self):
        return Outcome(True, "success", 1.0) if abs(self._x - self._goal) < 0.02 else None

    def expert(self, seed, style="uni"):
        raise UnsupportedTask("slider: expected a learned policy, there is no scripted expert")

    def close(self): ...

    def _picture(self):
        picture = np.full((16, 64, 3), 230, np.uint8)
        for x, colour in ((self._goal, (40, 160, 60)), (self._x, (200, 40, 40))):
            column = int((x + 1) / 2 * 61)
            picture[4:12, column : column + 3] = colour
        return picture
