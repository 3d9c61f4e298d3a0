"""Skills of a two-finger arm: from the state now to the pose to aim for now.

Pure functions of measured state. Nothing here remembers anything, counts steps or knows a simulator or a
task: an expert that was pushed, or that dropped what it held, simply finds itself in another state. What
would be a phase in a script is geometry here. The hand goes down only where it is aligned, in a funnel
whose walls are wider for a hand that is already low, so that no decision flips back and forth.

Lengths are metres in the world frame, z up; the hand points straight down while it works. A hand's frame
lies between its finger tips: x along the line from finger to finger, z the way the hand points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vla_runtime.transforms import axis_angle_from_matrix, matrix_from_axis_angle

Array = NDArray[np.float64]

OPEN, CLOSE = -1.0, 1.0

# What one delta action of robosuite's OSC can say, and so the longest step that looks the same in both controls.
STEP = 0.05
TURN = 0.5
# Close to a pose the controller stalls a centimetre short of it (its null space pulls), so errors are overstated.
GAIN = 1.6
# How far the hand lags behind a goal that moves with constant velocity: kd / kp of the controller, in seconds.
LAG = 0.16
# The Panda's finger tips reach this far below the point between its pads.
TIP = 0.012


@dataclass(frozen=True, slots=True, eq=False)
class Hand:
    """The hand as measured. opening: between the fingers; rate: its change, m/s; touching: both touch the thing."""

    position: Array
    rotation: Array
    opening: float
    rate: float
    touching: bool

    @property
    def holding(self) -> bool:
        """The thing is between the fingers and they have come to rest on it."""
        return self.touching and abs(self.rate) < 0.02

    @property
    def yaw(self) -> float:
        """Direction of the line from finger to finger, radians about the world's z."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """Where the hand should be next. gripper: OPEN or CLOSE."""

    position: Array
    rotation: Array
    gripper: float


@dataclass(frozen=True, slots=True, eq=False)
class Grasp:
    """Where to close the fingers.

    position [3]: of the hand, moving at velocity [3] m/s. yaw: of the finger line, any multiple of pi is
    the same. top: height of the highest thing the finger tips must pass over on the way in. opening: needed
    before going in. slack: tolerated error across the fingers' motion.
    """

    position: Array
    yaw: float
    top: float
    opening: float = 0.06
    slack: float = 0.010
    velocity: Array = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where a thing should be let go.

    position [3]: of the thing's own point; radius: how far off in the plane it may be; drop: how far above
    it may be. clear: height of the thing's point at which it passes over everything. yaw: of the finger
    line at release, None for whatever it is.
    """

    position: Array
    clear: float
    radius: float = 0.01
    drop: float = 0.01
    yaw: float | None = None

    def reached(self, thing: Array, share: float = 1.0) -> bool:
        """Whether the thing is there, within `share` of the radius."""
        offset = thing - self.position
        return bool(np.hypot(offset[0], offset[1]) <= share * self.radius and offset[2] <= self.drop)


@dataclass(frozen=True, slots=True)
class Manner:
    """How to move: what style=multi varies.

    speed: share of the longest step. rise: how much higher than needed to travel. turn: preferred yaw,
    radians from the hand's home yaw. slide: where along a long side to grasp, in [-1, 1]. sway: how far the
    way there bends aside, as a share of the distance left. lay: where in a roomy target to let go, [-1, 1] twice.
    """

    speed: float = 1.0
    rise: float = 0.0
    turn: float = 0.0
    slide: float = 0.0
    sway: float = 0.0
    lay: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def drawn(cls, seed: int, style: str) -> Manner:
        """uni: always the same manner; multi: one of many, by seed."""
        if style == "uni":
            return cls()
        if style != "multi":
            raise ValueError(f"style: expected uni or multi, got {style!r}")
        rng = np.random.default_rng(seed)
        return cls(
            speed=float(rng.uniform(0.65, 1.0)),
            rise=float(rng.uniform(0.0, 0.06)),
            turn=float(rng.choice([-np.pi / 2, 0.0, np.pi / 2])),
            slide=float(rng.uniform(-1.0, 1.0)),
            sway=float(rng.uniform(-0.35, 0.35)),
            lay=(float(rng.uniform(-1.0, 1.0)), float(rng.uniform(-1.0, 1.0))),
        )


def pointing_down(yaw: float) -> Array:
    """The rotation [3, 3] of a hand that points down with its finger line at `yaw`."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def choose_yaw(
    options: Sequence[float], present: float, preferred: float, home: float, avoid: Array | None = None
) -> float:
    """The best of `options`, each taken modulo pi, that the wrist can reach: within a right angle of home and a bit.

    Near the preferred yaw, then near the present one: an object that turns a little while it is squeezed
    does not change the choice. avoid [2]: from the object to a neighbour that the fingers should not hit.
    """
    turns = [yaw + k * np.pi for yaw in options for k in range(-3, 4)]
    turns = [yaw for yaw in turns if abs(yaw - home) <= np.pi / 2 + 0.35]
    towards = home + float(np.arctan2(np.sin(present - home), np.cos(present - home)))

    def cost(yaw: float) -> float:
        cost = 1.5 * abs(yaw - preferred) + abs(yaw - towards)
        if avoid is not None:
            length = float(np.hypot(avoid[0], avoid[1]))
            along = abs(avoid[0] * np.cos(yaw) + avoid[1] * np.sin(yaw)) / max(length, 1e-6)
            cost += 10.0 * along * max(0.0, 1.0 - length / 0.14)
        return cost

    return min(turns, key=cost)


def step(hand: Hand, position: Array, rotation: Array, gripper: float, speed: float = 1.0) -> Goal:
    """The goal on the way to a pose, no further off than one delta action can say."""
    move = GAIN * (position - hand.position)
    move = move * min(1.0, speed * STEP / max(float(np.linalg.norm(move)), 1e-9))
    turn = GAIN * axis_angle_from_matrix(rotation @ hand.rotation.T)
    turn = turn * min(1.0, speed * TURN / max(float(np.linalg.norm(turn)), 1e-9))
    return Goal(hand.position + move, matrix_from_axis_angle(turn) @ hand.rotation, gripper)


def reach(hand: Hand, grasp: Grasp, manner: Manner) -> Goal:
    """Go above the grasp, down to it where aligned, and close the fingers there."""
    rotation = pointing_down(grasp.yaw)
    # A hand that touches already moves with the thing: leading it further would push it along.
    lead = np.zeros(3) if hand.touching else grasp.velocity * LAG
    error = grasp.position - hand.position
    distance = float(np.hypot(error[0], error[1]))
    turn = float(np.linalg.norm(axis_angle_from_matrix(rotation @ hand.rotation.T)))
    clear = grasp.top + TIP + 0.008
    inside = hand.position[2] < grasp.top + TIP
    narrow = grasp.opening - hand.opening

    share = 2.0 if inside else 1.0
    aligned = distance < share * grasp.slack and turn < share * 0.12 and (inside or narrow < 0.0)
    low = abs(error[2]) < 0.010 and aligned
    if low:
        return step(hand, grasp.position + lead, rotation, CLOSE, manner.speed)
    if aligned:
        return step(hand, grasp.position + lead, rotation, OPEN, manner.speed)
    # Still outside the funnel: its height grows with the distance, and the hand moves sideways only above it.
    height = clear + min(0.04 + manner.rise, 0.6 * max(0.0, distance - grasp.slack))
    position, rotation = _over(hand, grasp.position + lead, height, clear - 0.006, rotation, manner)
    return step(hand, position, rotation, OPEN, manner.speed)


def carry(hand: Hand, thing: Array, target: Target, manner: Manner) -> Goal:
    """Lift what is held, take it over the target, lower it; fingers stay closed. thing [3]: its own point."""
    offset = thing - hand.position
    rotation = pointing_down(hand.yaw if target.yaw is None else target.yaw)
    error = target.position - thing
    distance = float(np.hypot(error[0], error[1]))
    share = 1.0 if thing[2] < target.clear - 0.02 else 0.5
    if distance < share * target.radius:
        return step(hand, target.position - offset, rotation, CLOSE, manner.speed)
    goal = target.position - offset
    height = target.clear + min(manner.rise, 0.6 * max(0.0, distance - target.radius)) - offset[2]
    position, rotation = _over(hand, goal, height, target.clear - 0.01 - offset[2], rotation, manner)
    return step(hand, position, rotation, CLOSE, manner.speed)


def lift(hand: Hand, height: float, manner: Manner) -> Goal:
    """Straight up to `height` with closed fingers."""
    goal = np.array([hand.position[0], hand.position[1], height])
    return step(hand, goal, pointing_down(hand.yaw), CLOSE, manner.speed)


def retreat(hand: Hand, height: float, manner: Manner, width: float = 0.07) -> Goal:
    """Open the fingers where the hand is; when they are wide and free, go straight up to `height`."""
    free = not hand.touching and hand.opening >= width
    goal = np.array([hand.position[0], hand.position[1], height if free else hand.position[2]])
    return step(hand, goal, pointing_down(hand.yaw), OPEN, manner.speed)


def pick_and_place(hand: Hand, thing: Array, grasp: Grasp, target: Target, manner: Manner) -> Goal:
    """Bring a thing to a target from any state, the end included: there the hand lets go and leaves upwards."""
    if target.reached(thing, share=0.6 if hand.holding else 1.0):
        return retreat(hand, max(target.clear, hand.position[2]) + 0.05, manner)
    if hand.holding:
        return carry(hand, thing, target, manner)
    return reach(hand, grasp, manner)


def shifted(grasp: Grasp, along: float) -> Grasp:
    """The same grasp moved across the finger line by `along` metres, for a choice of places on a long thing."""
    across = np.array([-np.sin(grasp.yaw), np.cos(grasp.yaw), 0.0])
    return replace(grasp, position=grasp.position + along * across)


def _over(hand: Hand, goal: Array, height: float, floor: float, rotation: Array, manner: Manner) -> tuple[Array, Array]:
    """The pose on the way over `goal` at `height`; below `floor` only upwards."""
    free = float(np.clip((hand.position[2] - floor) / 0.02 + 1.0, 0.0, 1.0))
    plane = goal[:2] - hand.position[:2]
    # The bend is a share of the way left, so that it vanishes on arrival.
    plane = plane + manner.sway * np.array([-plane[1], plane[0]]) * min(1.0, float(np.hypot(*plane)) / 0.05)
    position = np.array([*(hand.position[:2] + free * plane), height])
    return position, (rotation if free > 0.0 else hand.rotation)
