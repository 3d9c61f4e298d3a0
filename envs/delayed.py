"""An environment behind a bad line: camera frames that come late, get lost or freeze, and commands that come late.

It wears the Env protocol around another environment; the world itself goes on as ever. Frames keep the time they were
taken at, so that whoever reads it can tell. What is drawn follows from (seed, task, episode). It knows no policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_runtime.control.standing import standing
from vla_runtime.interfaces import Env, Policy
from vla_runtime.types import Command, EnvSpec, Image, Observation, Outcome

# Sums of periods are compared with sums of periods.
_ROUNDING = 1e-6
_STREAM = 0xFA017


@dataclass(frozen=True, slots=True)
class Faults:
    """late: seconds from a frame to the moment it can be seen; lost: chance of a frame never to be; freeze: chance that
    a camera stands still from a frame on, for `freeze_s` seconds; action_late: control periods by which commands are
    late. ValueError for a negative number or a chance above 1.
    """

    late: float = 0.0
    lost: float = 0.0
    freeze: float = 0.0
    freeze_s: float = 0.5
    action_late: int = 0

    def __post_init__(self) -> None:
        for name in ("lost", "freeze"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"faults.{name}: expected a chance from 0 to 1, got {getattr(self, name)}")
        for name in ("late", "freeze_s", "action_late"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"faults.{name}: expected at least 0, got {getattr(self, name)}")
        if not isinstance(self.action_late, int):
            raise ValueError(f"faults.action_late: expected whole control periods, got {self.action_late!r}")

    @property
    def none(self) -> bool:
        """Whether nothing is wrong."""
        return self == Faults(freeze_s=self.freeze_s)


class DelayedEnv:
    """Env around `env`, with `faults`. Every camera takes a frame in every control period, which costs rendering.

    Before the first frame of an episode can be seen, it is: a camera is on before the robot moves.
    """

    def __init__(self, env: Env, faults: Faults):
        self._env, self._faults = env, faults
        self._cameras = tuple(camera.name for camera in env.spec.cameras)

    def __getattr__(self, name: str) -> Any:
        # What else the environment offers (progress, control_specs) shows through.
        if name == "_env":
            raise AttributeError(name)
        return getattr(self._env, name)

    @property
    def spec(self) -> EnvSpec:
        return self._env.spec

    def reset(self, seed: int, task: int, episode: int) -> Mapping[str, object]:
        facts = self._env.reset(seed, task, episode)
        # Not what the world itself is drawn from, or what gets lost would hang on where things are.
        self._generator = np.random.default_rng((_STREAM, seed, task, episode))
        self._observation: Observation | None = None
        self._coming: dict[str, deque[tuple[float, Image]]] = {name: deque() for name in self._cameras}
        self._seen: dict[str, tuple[float, Image]] = {}
        self._frozen_until = dict.fromkeys(self._cameras, -np.inf)
        self._commands: deque[Command] = deque()
        return facts

    def observe(self, cameras: Sequence[str] = ()) -> Observation:
        """The state now, and of the named cameras the newest frame that has come."""
        if self._observation is None:
            self._observation = self._env.observe(self._cameras)
            self._take(self._observation)
        seen = {name: self._seen[name] for name in cameras}
        return replace(
            self._observation,
            images={name: image for name, (_, image) in seen.items()},
            image_times={name: time for name, (time, _) in seen.items()},
        )

    def apply(self, command: Command) -> None:
        """Carry out the command of `action_late` periods ago; before the first has come the robot stands."""
        self.spec.action.validate(command.values)
        if not self._commands and self._faults.action_late:
            still = Command(standing(self.spec, self.observe()), command.due)
            self._commands.extend([still] * self._faults.action_late)
        elif self._observation is None:
            self.observe()  # Frames are taken whether anybody looks or not.
        self._commands.append(command)
        self._env.apply(self._commands.popleft())
        self._observation = None

    def outcome(self) -> Outcome | None:
        return self._env.outcome()

    def expert(self, seed: int, style: str = "uni") -> Policy:
        return self._env.expert(seed, style)

    def close(self) -> None:
        self._env.close()

    def _take(self, observation: Observation) -> None:
        """Every camera takes a frame; what has come by now is seen."""
        faults = self._faults
        for name in self._cameras:
            lost, freezes = self._generator.random(2)
            taken = observation.image_times[name]
            frame = (taken, observation.images[name])
            first = name not in self._seen
            if first:
                self._seen[name] = frame
            elif freezes < faults.freeze and taken > self._frozen_until[name]:
                self._frozen_until[name] = taken + faults.freeze_s
            if not first and lost >= faults.lost and taken > self._frozen_until[name] - _ROUNDING:
                self._coming[name].append(frame)
            while self._coming[name] and self._coming[name][0][0] + faults.late <= observation.time + _ROUNDING:
                self._seen[name] = self._coming[name].popleft()


def delayed(env: Env, **faults: Any) -> Env:
    """`env` behind `Faults(**faults)`; `env` itself where there are none."""
    found = Faults(**faults)
    return env if found.none else DelayedEnv(env, found)
