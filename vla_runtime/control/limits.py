"""The last look before a command leaves: finite, inside the range, and no faster than a robot may be asked to move.

Range is always kept. What a robot's side states beside it (speed, acceleration, workspace of a group of dimensions) is
watched at one of three levels: warn lets a command through and says so, clamp brings it inside, stop ends the run.
Grippers are exempt: open and closed have nothing between. It knows specs and commands.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_runtime.control.standing import standing
from vla_runtime.transforms import ROTATIONS
from vla_runtime.types import ActionSpec, Command, EnvSpec, Float, Group, Observation

Array = NDArray[np.float64]

LEVELS = ("warn", "clamp", "stop")
_log = logging.getLogger(__name__)


class LimitExceeded(RuntimeError):
    """A command broke a limit at level stop: which group, which limit, by how much."""


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What a group of dimensions may do. None: no limit.

    speed: of the group as a whole, units (radians for rotations) per second; acceleration: per second squared;
    low, high: a workspace inside the range, one number a dimension. ValueError for a limit that is not above 0.
    """

    speed: float | None = None
    acceleration: float | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("speed", "acceleration"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"limits.{name}: expected more than 0, got {value}")


class Limits:
    """Watches the commands of one run.

    spec: whose range holds. period: seconds between commands. groups: limits by the name of a group. level: warn, clamp
    or stop. `clamped` counts commands that were changed, `events` what was broken, by "group limit"; `broken`: what the
    last command broke. ValueError for a
    group that is not there, is binary, or has no such limit, and for an unknown level.
    """

    def __init__(
        self,
        spec: ActionSpec,
        period: float = 1.0,
        groups: Mapping[str, GroupLimits | Mapping[str, Any]] | None = None,
        level: str = "clamp",
    ):
        if level not in LEVELS:
            raise ValueError(f"limits.level: expected one of {', '.join(LEVELS)}, got {level!r}")
        self._spec, self._period, self._level = spec, period, level
        self._groups = [_Watch(spec, name, limits, period) for name, limits in (groups or {}).items()]
        self.clamped = 0
        self.events: Counter[str] = Counter()
        self.broken: tuple[str, ...] = ()
        self._quiet = False

    def ahead(self, rows_TA: Float) -> Float:
        """Rows [T, A] as they would be sent next, one a period; nothing is counted, and nothing remembered."""
        other = copy.deepcopy(self)
        # What a limit says of them is said when they are sent.
        other._quiet = True
        return np.stack([other.clamp(Command(row, 0.0)).values for row in rows_TA])

    def clamp(self, command: Command) -> Command:
        """The command as it may be sent. SpecMismatch naming the dimension for a value that is not finite,
        LimitExceeded at level stop.
        """
        self._spec.validate(command.values)
        values, moved = self._spec.clamp(command.values)
        self.broken = ("range",) if moved else ()
        if moved and not self._quiet:
            self._beyond(command, values)
        self.events.update(self.broken)
        for watch in self._groups:
            values = self._watched(watch, values, command)
        # Braking within an acceleration may lead beyond the range: a wall is a wall.
        values = self._spec.clamp(values)[0]
        for watch in self._groups:
            watch.sent(values, held_back=self._level != "warn")
        if np.array_equal(values, command.values):
            return command
        self.clamped += 1
        return replace(command, values=values)

    def begin(self, env: EnvSpec, observation: Observation) -> None:
        """Motion begins anew, from rest where the robot is seen. SpecMismatch where the state does not say where."""
        if self._groups:
            self.rest(standing(env, observation))

    def rest(self, still: Float) -> None:
        """Motion begins anew, from rest at an action that moves nothing."""
        for watch in self._groups:
            watch.begin(still)

    def _beyond(self, command: Command, inside: Float) -> None:
        """Say which dimension lies furthest beyond its range, which is kept at every level; stop ends here."""
        apart = np.abs(command.values - inside)
        worst = int(np.argmax(apart))
        message = (
            f"limits: at {command.due:.3f} s {self._spec.names[worst]}: expected {self._spec.low[worst]:.7g} to "
            f"{self._spec.high[worst]:.7g}, got {command.values[worst]:.7g}"
        )
        if self._level == "stop":
            raise LimitExceeded(message)
        if not self.events["range"]:
            # Policies that were taught increments ask for a little more than there is all the time.
            _log.info("%s; brought inside", message)

    def _watched(self, watch: _Watch, values: Float, command: Command) -> Float:
        allowed, broken = watch.allowed(values, self._level != "warn", command.held)
        for limit, asked in broken.items():
            said, most = f"{watch.name} {limit}", watch.bound(limit)
            if self._quiet:
                continue
            message = f"limits: at {command.due:.3f} s {watch.name}: expected {limit} at most {most}, got {asked:.4g}"
            if self._level == "stop":
                raise LimitExceeded(message)
            if not self.events[said]:
                _log.warning("%s; %s", message, "sent all the same" if self._level == "warn" else "brought inside")
            self.events[said] += 1
            self.broken += (said,)
        return values if self._level == "warn" else allowed


class _Watch:
    """One group: where it was told to go last, and how fast."""

    def __init__(self, spec: ActionSpec, name: str, limits: GroupLimits | Mapping[str, Any], period: float):
        self.name, self._period = name, period
        self._group: Group = spec.group(name)
        self._part = spec.slices[name]
        self._limits = limits if isinstance(limits, GroupLimits) else GroupLimits(**limits)
        if self._group.kind == "binary":
            raise ValueError(f"limits of {name!r}: expected a group that moves, got a binary one, which is exempt")
        if self._group.kind == "delta" and self._limits.acceleration is not None:
            raise ValueError(f"limits of {name!r}: expected no acceleration, got one for increments to a measured pose")
        for bound in (self._limits.low, self._limits.high):
            if bound is not None and (len(bound) != self._group.size or self._group.rotation is not None):
                raise ValueError(
                    f"limits of {name!r}: expected a workspace of {self._group.size} numbers for a group that is no "
                    f"rotation, got {bound}"
                )
        self._goes_to_places = self._group.kind == "absolute" and self._group.rotation is None
        self._last: Array | None = None
        self.speed: Array | None = None
        # The newest goal inside the workspace, and the one that has been sent only in part.
        self._goal: Array | None = None
        self._behind: Array | None = None

    def begin(self, still: Float) -> None:
        """From rest, at an action that moves nothing."""
        self._last = self.speed = self._goal = self._behind = None
        self.sent(still)
        self.sent(still)

    def bound(self, limit: str) -> Any:
        if limit == "workspace":
            return (self._limits.low, self._limits.high)
        return getattr(self._limits, limit)

    def allowed(self, values: Float, bring_inside: bool, held: bool) -> tuple[Float, dict[str, float]]:
        """The nearest that is allowed, and which limits were broken, with what was asked for.

        bring_inside: what is outside the workspace goes to its wall, and how fast is judged from there. held: it is to
        stay where it is, which may be outside: whoever led it there may not want to see it come back by itself.
        """
        broken: dict[str, float] = {}
        goal = np.array(values[self._part], np.float64)
        low = -np.inf if self._limits.low is None else np.array(self._limits.low)
        high = np.inf if self._limits.high is None else np.array(self._limits.high)
        if held and self._goes_to_places and self._last is not None:
            low, high = np.minimum(low, self._last), np.maximum(high, self._last)
        inside = np.clip(goal, low, high)
        if not np.array_equal(inside, goal):
            broken["workspace"] = float(np.abs(goal - inside).max())
            goal = inside if bring_inside else goal
        speed = self._speed_to(goal)
        if speed is None:
            return _with(values, self._part, goal), broken
        # What a limit held back is made up for no faster than it can be braked again where it ends.
        wanted = speed if self._behind is None else self._braked(goal, self._behind)
        self._goal = goal
        if self._limits.acceleration is not None and self.speed is not None:
            change = wanted - self.speed
            most = self._limits.acceleration * self._period
            if (asked := float(np.linalg.norm(change))) > most * (1 + 1e-9):
                broken["acceleration"] = asked / self._period
                wanted = self.speed + change * (most / asked)
        fastest = self._limits.speed
        if fastest is not None and (asked := float(np.linalg.norm(wanted))) > fastest * (1 + 1e-9):
            broken["speed"] = asked
            wanted = wanted * (fastest / asked)
        if wanted is speed:
            return _with(values, self._part, goal), broken
        # Braking within the acceleration may lead out of the workspace: a wall is a wall. Whoever begins outside comes
        # back as fast as the limits let it, and goes no further out.
        if self._goes_to_places and self._last is not None:
            low, high = np.minimum(low, self._last), np.maximum(high, self._last)
        return _with(values, self._part, np.clip(self._towards(wanted), low, high)), broken

    def sent(self, values: Float, held_back: bool = False) -> None:
        """Remember what was sent. held_back: what is not its goal is not there yet, and will be."""
        value = np.array(values[self._part], np.float64)
        self.speed, self._last = self._speed_to(value), value
        goal, self._behind = self._goal, None
        if held_back and goal is not None and self._limits.acceleration and self._group.kind == "absolute":
            self._behind = None if np.allclose(value, goal, rtol=0.0, atol=1e-6) else goal

    def _braked(self, goal: Array, before: Array) -> Array:
        """The speed with which to follow a goal that was at `before` a period ago and has not been reached.

        The goal's own speed, and towards it no more than what can be braked on the way that is left: at v, braking by a
        times the period T in every period takes v^2 / 2a + vT / 2.
        """
        acceleration, period = self._limits.acceleration, self._period
        assert acceleration is not None
        assert self._last is not None
        left = self._apart(self._last, before)
        distance = float(np.linalg.norm(left))
        step = acceleration * period
        most = float(np.sqrt(step**2 / 4 + 2 * acceleration * distance) - step / 2)
        towards = left / period if distance <= most * period else left * (most / distance)
        return self._apart(before, goal) / period + towards

    def _speed_to(self, goal: Array) -> Array | None:
        """Units per second that a value asks for; None before anything was sent."""
        if self._group.kind == "velocity":
            return goal
        if self._group.kind == "delta":
            return goal / self._period
        return None if self._last is None else self._apart(self._last, goal) / self._period

    def _apart(self, here: Array, there: Array) -> Array:
        """From one value to another: a difference, of rotations the axis times the angle."""
        if self._group.rotation is None:
            return there - here
        decode, _ = ROTATIONS[self._group.rotation]
        return np.asarray(ROTATIONS["axis_angle"][1](decode(there) @ decode(here).T))

    def _towards(self, speed: Array) -> Array:
        """The value that asks for a speed."""
        if self._group.kind == "velocity":
            return speed
        if self._group.kind == "delta":
            return speed * self._period
        assert self._last is not None
        if self._group.rotation is None:
            return self._last + speed * self._period
        decode, encode = ROTATIONS[self._group.rotation]
        return np.asarray(encode(ROTATIONS["axis_angle"][0](speed * self._period) @ decode(self._last)))


def motion(
    spec: ActionSpec, name: str, rows_TA: Float, period: float, still: Float | None = None
) -> tuple[Array, Array]:
    """Speeds [T or T - 1] and accelerations (one fewer) of a group of rows, as `Limits` counts them.

    still: the action that moves nothing where they begin from rest, which counts as a row before them.
    """
    watch = _Watch(spec, name, GroupLimits(), period)
    speeds = []
    if still is not None:
        watch.begin(still)
        if watch.speed is not None:
            speeds.append(watch.speed)
    for row in rows_TA:
        watch.sent(row)
        if watch.speed is not None:
            speeds.append(watch.speed)
    if not speeds:
        return np.zeros(0), np.zeros(0)
    found = np.array(speeds, np.float64)
    return np.linalg.norm(found, axis=1), np.linalg.norm(np.diff(found, axis=0), axis=1) / period


def _with(values: Float, part: slice, goal: Array) -> Float:
    found = values.copy()
    found[part] = goal
    return found
