"""The values that travel along the line, and the specs that check them.

One type stands between each pair of verbs: observe -> Observation, predict -> ActionChunk,
command_at -> Command, outcome -> Outcome. Arrays are numpy, units are SI, time is monotonic seconds.
This module knows no environment, no policy and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_runtime.groups import ACTION_KINDS, group_faults
from vla_runtime.spline import SplineCurve

Float = NDArray[np.float32]
Image = NDArray[np.uint8]


class SpecMismatch(ValueError):
    """A value, or a whole contract, is not what the other side declared."""


class InvalidAnswer(SpecMismatch):
    """A policy answered with values that are not finite: nothing can execute them."""


class UnsupportedTask(ValueError):
    """The environment has no scripted expert for this task."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What the robot senses at one instant.

    state float32 [S]: proprioception only. images: {camera: uint8 [H, W, 3] RGB, upright}, only those
    asked for. time: seconds, of the state; image_times: seconds, of each image.
    """

    state: Float
    images: Mapping[str, Image]
    instruction: str
    time: float
    image_times: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ActionChunk:
    """A function of time: row k of `actions` is in force during [start + k*period, start + (k+1)*period).

    actions float32 [T, A] in the units of the ActionSpec it was made for. observed: time of the
    observation it answers. curve: the spline behind the rows, if there is one, with u = 0 at `start`: it says the
    dimensions `curved` at any time; at a row's own time, and beyond its end, the rows do. facts: numbers that say how
    it was decoded.
    """

    actions: Float
    start: float
    period: float
    observed: float
    curve: SplineCurve | None = None
    curved: tuple[int, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict)

    @property
    def end(self) -> float:
        return self.start + len(self.actions) * self.period

    def row(self, time: float) -> int:
        """Index of the row in force at `time`; outside [0, T) when none is."""
        # A tick may be computed as start + n*period in another order: a thousandth of a period is
        # far above float rounding and far below anything a controller can resolve.
        return int(np.floor((time - self.start) / self.period + 1e-3))

    def at(self, time: float) -> Float | None:
        """The action float32 [A] in force at `time`, or None outside [start, end)."""
        row = self.row(time)
        if not 0 <= row < len(self.actions):
            return None
        found: Float = self.actions[row]
        since = time - self.start
        if self.curve is None or since - row * self.period < 1e-3 * self.period or since >= self.curve.duration:
            return found
        found = found.copy()
        found[list(self.curved)] = self.curve.at(since)[0]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Command:
    """One action, float32 [A], due at `due`; `held` when no plan covered that instant."""

    values: Float
    due: float
    held: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """How an episode ended.

    reason: success, time, error, stopped, or terminated (by the policy's own word). progress: 0 to 1, None if unknown.
    """

    success: bool
    reason: str
    progress: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """A run of dimensions that share one meaning.

    kind: for actions one of absolute, delta, velocity, binary; for state groups "measured".
    rotation: None, or one of rot6d (the first two columns of the matrix, column after column),
    axis_angle, quaternion_xyzw. low, high: the range, inclusive; an infinite bound is none, of a binary group both are
    finite. full_scale: SI value that 1.0 stands for, when units are normalised.
    dead_band: magnitudes below it mean exactly "leave alone". open, close: gripper values, two different ones in the
    range, or None both. speed, acceleration: how
    fast the robot may move the group as a whole, in units (radians for rotations) per second and per second squared;
    None: nobody says. rest: values of an absolute group that no group of the state tells, which leave it alone before
    it has been told any; None for groups that have no need of it.
    """

    name: str
    dims: tuple[str, ...]
    kind: str
    units: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    frame: str = ""
    rotation: str | None = None
    full_scale: float | None = None
    dead_band: float = 0.0
    open: float | None = None
    close: float | None = None
    speed: float | None = None
    acceleration: float | None = None
    rest: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if found := group_faults(self):
            raise ValueError(f"group {self.name!r}: {'; '.join(found)}")

    @property
    def size(self) -> int:
        return len(self.dims)


@dataclass(frozen=True, slots=True)
class CameraSpec:
    """A camera: uint8 [height, width, 3] RGB, upright as a person would see it."""

    name: str
    height: int
    width: int

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("camera: expected a name, got none")
        for side, pixels in (("height", self.height), ("width", self.width)):
            if not pixels >= 1 or int(pixels) != pixels:
                raise ValueError(f"camera {self.name!r}: {side}: expected a whole number of pixels, got {pixels}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, 3)

    def validate(self, image: object) -> None:
        """Raise SpecMismatch unless `image` is what this camera delivers."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != self.shape:
            raise SpecMismatch(
                f"camera {self.name!r}: expected uint8 {list(self.shape)}, got {_describe(image)}; "
                "pass images as captured"
            )

    def example(self) -> Image:
        """A valid image, for warm-up and tests."""
        return np.full(self.shape, 127, np.uint8)


class _VectorSpec:
    """Shared by StateSpec and ActionSpec: an ordered list of groups laid out one after another."""

    __slots__ = ("groups", "high", "low", "names", "size", "slices")
    _what = "vector"

    def __init__(self, groups: tuple[Group, ...]):
        names = [group.name for group in groups]
        if len(set(names)) != len(names):
            raise ValueError(f"{self._what}: group names must differ: expected each once, got {names}")
        self.groups = tuple(groups)
        self.names = tuple(f"{group.name}.{dim}" for group in groups for dim in group.dims)
        self.size = len(self.names)
        self.low = np.array([x for group in groups for x in group.low], np.float32)
        self.high = np.array([x for group in groups for x in group.high], np.float32)
        slices, start = {}, 0
        for group in groups:
            slices[group.name] = slice(start, start + group.size)
            start += group.size
        self.slices: dict[str, slice] = slices

    def validate(self, values: object) -> None:
        """Raise SpecMismatch, naming the dimension, unless `values` is a finite float32 [size]."""
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.shape != (self.size,):
            raise SpecMismatch(
                f"{self._what}: expected float32 [{self.size}] ({', '.join(self.names)}), got {_describe(values)}"
            )
        finite = np.isfinite(values)
        if not finite.all():
            i = int(np.argmin(finite))
            raise SpecMismatch(
                f"{self._what}: expected finite values, got {values[i]} in dimension {i} ({self.names[i]})"
            )

    def example(self) -> Float:
        """A valid vector: the middle of every finite range, else zero."""
        low = np.where(np.isfinite(self.low), self.low, np.minimum(0, self.high))
        high = np.where(np.isfinite(self.high), self.high, np.maximum(0, self.low))
        return ((low + high) / 2).astype(np.float32)

    def group(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise ValueError(f"{self._what}: expected one of {list(self.slices)}, got {name!r}")


class StateSpec(_VectorSpec):
    """Proprioception: what `Observation.state` holds. ValueError for groups of another kind than measured."""

    __slots__ = ()
    _what = "state"

    def __init__(self, groups: tuple[Group, ...]):
        super().__init__(groups)
        for group in groups:
            if group.kind != "measured":
                raise ValueError(f"state group {group.name!r}: kind: expected measured, got {group.kind!r}")


class ActionSpec(_VectorSpec):
    """What one row of an ActionChunk and one Command hold."""

    __slots__ = ("_keeps", "controls")
    _what = "action"

    def __init__(self, groups: tuple[Group, ...]):
        super().__init__(groups)
        for group in groups:
            if group.kind not in ACTION_KINDS:
                raise ValueError(
                    f"action group {group.name!r}: kind: expected one of {', '.join(ACTION_KINDS)}, got {group.kind!r}"
                )
        keeps = [group.kind in ("absolute", "binary") for group in groups for _ in group.dims]
        self._keeps = np.array(keeps, bool)
        self.controls = frozenset(group.kind for group in groups) - {"binary"}

    def hold(self, last: Float) -> Float:
        """The action float32 [A] that keeps the robot still: 0 for delta and velocity, `last` otherwise."""
        return np.where(self._keeps, last, np.float32(0))

    def clamp(self, values: Float) -> tuple[Float, int]:
        """`values` inside the range, and how many dimensions had to be moved."""
        inside = np.minimum(np.maximum(values, self.low), self.high)
        return inside, int(np.count_nonzero(inside != values))


@dataclass(frozen=True, slots=True, eq=False)
class EnvSpec:
    """What an environment offers. tasks: one instruction a task. max_steps: control periods an episode may take."""

    name: str
    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    action: ActionSpec
    period: float
    tasks: tuple[str, ...]
    max_steps: int
    versions: Mapping[str, str] = field(default_factory=dict)

    def validate(self, observation: Observation) -> None:
        """Raise SpecMismatch unless `observation` is what this environment promised."""
        self.state.validate(observation.state)
        for camera in self.cameras:
            if camera.name in observation.images:
                camera.validate(observation.images[camera.name])


@dataclass(frozen=True, slots=True, eq=False)
class PolicySpec:
    """What a policy needs and gives.

    observation_offsets: periods before now that it sees, oldest first, ending in 0. horizon: rows of a
    chunk. max_committed: most leading rows it accepts as given. statistics: id of its normalisation
    statistics, None when it has none. seen: hashes of the initial states it was trained on. executed: rows of
    a chunk that are meant to be played before the next is asked for; None: all. weights: a hash of what was
    learned, None where nothing was. decode: how it decodes, as plain values for a row. curves: whether its chunks
    have curves, where no rows were given. pins: whether rows that are given are fixed, exactly, while it decodes.
    """

    name: str
    cameras: tuple[CameraSpec, ...]
    state: StateSpec
    action: ActionSpec
    period: float
    horizon: int
    observation_offsets: tuple[int, ...] = (0,)
    max_committed: int = 0
    statistics: str | None = None
    seen: frozenset[str] = frozenset()
    executed: int | None = None
    weights: str | None = None
    decode: Mapping[str, Any] = field(default_factory=dict)
    curves: bool = False
    pins: bool = False

    def __post_init__(self) -> None:
        offsets = self.observation_offsets
        if not offsets or offsets[-1] != 0 or list(offsets) != sorted(set(offsets)):
            raise ValueError(
                f"observation_offsets: expected ascending periods ending in 0, e.g. (-1, 0), got {offsets}"
            )
        if self.horizon < 1:
            raise ValueError(f"horizon: expected at least 1, got {self.horizon}")
        if self.executed is not None and not 1 <= self.executed <= self.horizon:
            raise ValueError(f"executed: expected 1 to {self.horizon} (the horizon), got {self.executed}")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__}"
