"""A small planar arm with rendered cameras, in numpy alone: no simulator, thousands of ticks a second.

Two links reach for a coloured disc on a table seen from above. It is real enough to be looked at (two
cameras, a target that only the images show) and to need a policy that looks, and light enough to try
the whole line on any machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vla_runtime.types import (
    ActionChunk,
    ActionSpec,
    CameraSpec,
    Command,
    EnvSpec,
    Float,
    Group,
    Image,
    Observation,
    Outcome,
    PolicySpec,
    StateSpec,
    UnsupportedTask,
)

_COLOURS = {"red": (200, 40, 40), "blue": (40, 80, 200)}
_LINKS = np.array([0.30, 0.25])
_TABLE = 0.62  # metres from the base to the edge of what the overhead camera sees
_HAND_VIEW = 0.15  # metres from the hand to the edge of what the hand camera sees
_CLOSE_ENOUGH = 0.02
_MAX_SPEED = 2.5  # rad/s

_STATE = StateSpec(
    (
        Group("joints", ("shoulder", "elbow"), "measured", "rad", (-np.pi, -np.pi), (np.pi, np.pi)),
        Group("position", ("x", "y"), "measured", "m", (-0.6, -0.6), (0.6, 0.6), frame="base"),
    )
)
_JOINT_VELOCITY = Group(
    "joints", ("shoulder", "elbow"), "velocity", "rad/s", (-_MAX_SPEED, -_MAX_SPEED), (_MAX_SPEED, _MAX_SPEED)
)
_JOINT_GOAL = Group("joints", ("shoulder", "elbow"), "absolute", "rad", (-np.pi, -np.pi), (np.pi, np.pi))


class Reach:
    """Env: touch the disc of the named colour. control: "velocity" (rad/s) or "absolute" (joint goals, rad)."""

    def __init__(self, control: str = "velocity", size: int = 64, max_steps: int = 100):
        groups = {"velocity": _JOINT_VELOCITY, "absolute": _JOINT_GOAL}
        if control not in groups:
            raise ValueError(f"env.control: expected one of {sorted(groups)}, got {control!r}")
        self._control = control
        self._spec = EnvSpec(
            name="reach",
            cameras=(CameraSpec("overhead", size, size), CameraSpec("hand", size, size)),
            state=_STATE,
            action=ActionSpec((groups[control],)),
            period=0.05,
            tasks=tuple(f"touch the {colour} disc" for colour in _COLOURS),
            max_steps=max_steps,
        )
        self._joints = np.zeros(2)
        self._discs: dict[str, NDArray[np.float64]] = {}
        self._colour = ""
        self._tick = 0
        # Pixel centres in [-1, 1], x to the right and y up, as a person looking down would draw them.
        line = (np.arange(size) + 0.5) / size * 2 - 1
        self._grid = np.stack(np.meshgrid(line, -line), axis=-1)

    @property
    def spec(self) -> EnvSpec:
        return self._spec

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        generator = np.random.default_rng((seed, task, episode))
        self._colour = list(_COLOURS)[task]
        self._joints = generator.uniform((-2.0, 0.4), (2.0, 2.4))
        self._discs = {}
        for colour in _COLOURS:
            while True:
                radius, angle = generator.uniform(0.2, 0.5), generator.uniform(-np.pi, np.pi)
                place = radius * np.array([np.cos(angle), np.sin(angle)])
                others = [self.hand(), *self._discs.values()]
                if min(float(np.linalg.norm(place - other)) for other in others) > 0.12:
                    break
            self._discs[colour] = place
        self._tick = 0
        start = np.concatenate([self._joints, *self._discs.values()])
        return {"initial_state": hashlib.sha256(start.tobytes()).hexdigest()[:16]}

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        time = self._tick * self._spec.period
        images = {name: self._render(name) for name in cameras}
        return Observation(
            state=np.concatenate([self._joints, self.hand()]).astype(np.float32),
            images=images,
            instruction=f"touch the {self._colour} disc",
            time=time,
            image_times=dict.fromkeys(images, time),
        )

    def apply(self, command: Command) -> None:
        self._spec.action.validate(command.values)
        values = command.values.astype(np.float64)
        velocity = values if self._control == "velocity" else (values - self._joints) / self._spec.period
        step = np.clip(velocity, -_MAX_SPEED, _MAX_SPEED) * self._spec.period
        self._joints = np.clip(self._joints + step, -np.pi, np.pi)
        self._tick += 1

    def outcome(self) -> Outcome | None:
        return Outcome(True, "success", 1.0) if self._distance() < _CLOSE_ENOUGH else None

    def progress(self) -> float:
        """1 at the disc, falling to 0 at a table's width."""
        return max(0.0, 1.0 - self._distance() / (2 * _TABLE))

    def expert(self, seed: int, style: str = "uni") -> ReachExpert:
        return ReachExpert(self, style)

    def close(self) -> None: ...

    def hand(self) -> NDArray[np.float64]:
        """Where the hand is, float64 [2], metres from the base."""
        angles = np.cumsum(self._joints)
        return np.array([_LINKS @ np.cos(angles), _LINKS @ np.sin(angles)])

    def goal_joints(self, elbow: float) -> NDArray[np.float64]:
        """The joint angles [2] that touch the disc, with the elbow bent to the side of the sign of `elbow`."""
        x, y = self._discs[self._colour]
        a, b = _LINKS
        bend = np.arccos(np.clip((x * x + y * y - a * a - b * b) / (2 * a * b), -1, 1)) * np.sign(elbow)
        shoulder = np.arctan2(y, x) - np.arctan2(b * np.sin(bend), a + b * np.cos(bend))
        return np.array([(shoulder + np.pi) % (2 * np.pi) - np.pi, bend])

    def _distance(self) -> float:
        return float(np.linalg.norm(self.hand() - self._discs[self._colour]))

    def _render(self, name: str) -> Image:
        views = {"overhead": (np.zeros(2), _TABLE), "hand": (self.hand(), _HAND_VIEW)}
        if name not in views:
            raise ValueError(f"camera: expected one of {sorted(views)}, got {name!r}")
        centre, reach = views[name]
        points = self._grid * reach + centre
        image = np.full(points.shape[:2] + (3,), 225, np.uint8)
        for colour, place in self._discs.items():
            image[np.linalg.norm(points - place, axis=-1) < 0.04] = _COLOURS[colour]
        angles = np.cumsum(self._joints)
        elbow = _LINKS[0] * np.array([np.cos(angles[0]), np.sin(angles[0])])
        for a, b in ((np.zeros(2), elbow), (elbow, self.hand())):
            along = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
            image[np.linalg.norm(points - (a + along[..., None] * (b - a)), axis=-1) < 0.012] = (60, 60, 60)
        return image


class ReachExpert:
    """Turns both joints straight to the angles that touch the disc."""

    def __init__(self, env: Reach, style: str):
        if style not in ("uni", "multi"):
            raise UnsupportedTask(f"style: expected uni or multi, got {style!r}")
        self._env = env
        self._style = style
        spec = env.spec
        self._spec = PolicySpec("expert", (), spec.state, spec.action, spec.period, horizon=1)

    @property
    def spec(self) -> PolicySpec:
        return self._spec

    def begin(self, seed: int) -> ReachSession:
        """style "multi": the elbow's side and the speed are drawn from `seed`."""
        if self._style == "uni":
            return ReachSession(self._env, 1.0, 1.0)
        generator = np.random.default_rng(seed)
        return ReachSession(self._env, float(generator.choice((-1.0, 1.0))), float(generator.uniform(0.5, 1.0)))

    def close(self) -> None: ...


class ReachSession:
    """One episode of the reach expert."""

    def __init__(self, env: Reach, elbow: float, speed: float):
        self._env, self._elbow, self._speed = env, elbow, speed

    def predict(
        self, observations: Sequence[Observation], committed: Float | None = None, deadline: float | None = None
    ) -> ActionChunk:
        observation = observations[-1]
        spec = self._env.spec
        goal = self._env.goal_joints(self._elbow)
        limit = _MAX_SPEED * self._speed * spec.period
        joints = observation.state[:2].astype(np.float64)
        step = np.clip(goal - joints, -limit, limit)
        velocity = "velocity" in spec.action.controls
        values = step / spec.period if velocity else joints + step
        return ActionChunk(values[None].astype(np.float32), observation.time, spec.period, observation.time)
