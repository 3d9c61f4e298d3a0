"""A scripted expert for LIBERO that reads what to do from the task's own BDDL goal.

It sees the simulator through the environment that made it and acts through actions only. At every call it
takes the first predicate of the goal that does not hold and asks the skill for that predicate where the hand
should be next; so it picks up again what it dropped, and needs neither a clock nor a phase. How the hand
moves is `envs.experts.skills`, where it can take hold is `envs.experts.grasps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from envs.experts.grasps import FINGER_MARGIN, NUM_YAWS, OPENING, candidates, reachable_turn, reachable_yaw
from envs.experts.libero_surroundings import Region, Surroundings
from envs.experts.scripted import ScriptedExpert
from envs.experts.skills import (
    CLOSE,
    OPEN,
    STEP,
    Goal,
    Grasp,
    Hand,
    Manner,
    Target,
    carry,
    pointing_down,
    reach,
    retreat,
    step,
)
from envs.osc_arm import OscArm
from vla_runtime.types import UnsupportedTask

Array = NDArray[np.float64]

# Suites in which the expert was measured to solve at least 80 % of the stored initial states.
SUITES = ("libero_object",)

ELBOW, WRIST = 3, 6  # of the Panda's seven joints
HOME_YAW = np.pi / 2  # the fingers open along the world's y when the arm is at rest
CLEARANCE = 0.015  # what is carried passes this far above what lies below
HOVER = 0.1  # the idle hand stays this far above everything
LET_GO = 0.004  # above a container's region: what is let go there falls in
FITS_WITHIN = 0.2  # radians off the diagonal at which a long thing still goes in
AT_REST = 0.02  # metres per second


class LiberoExpert(ScriptedExpert):
    """A Policy for one LIBERO environment. style: "uni" one way of doing a task, "multi" several, by seed."""

    def __init__(self, env: OscArm, style: str = "uni", seed: int = 0):
        if env.spec.name not in SUITES:
            raise UnsupportedTask(f"expert: expected one of the suites {list(SUITES)}, got {env.spec.name!r}")
        super().__init__(env, GoalReader(), seed=seed, style=style)


class GoalReader:
    """The rule of the expert: from the simulator's state to where the hand should be next.

    Remembers the shapes of the scene it saw last, and nothing of what happened in it.
    """

    def __init__(self) -> None:
        self._surroundings: Surroundings | None = None

    def __call__(self, env: OscArm, manner: Manner) -> Goal:
        """UnsupportedTask when the goal holds a predicate that no skill answers."""
        raw = env.raw
        predicates = raw.parsed_problem["goal_state"]
        skills = [skill_for(predicate) for predicate in predicates]
        if self._surroundings is None or not self._surroundings.describes(raw):
            self._surroundings = Surroundings(env)
        surroundings = self._surroundings
        surroundings.look()
        freeing = free_elbow(surroundings, surroundings.hand(predicates[0][1]), manner)
        if freeing is not None:
            return freeing
        for skill, predicate in zip(skills, predicates, strict=True):
            if not raw._eval_predicate(predicate):
                return skill(surroundings, manner, predicate)
        # Done: leave upwards, away from what was placed.
        return retreat(surroundings.hand(predicates[-1][1]), surroundings.highest() + HOVER, manner)


def place(surroundings: Surroundings, manner: Manner, predicate: Sequence[str]) -> Goal:
    """["in", thing, container region] or ["on", thing, support]: pick the thing up and let it go there."""
    relation, name, destination = predicate
    hand, thing, region = surroundings.hand(name), surroundings.position(name), surroundings.region(destination)
    low, high = surroundings.bounds(name)
    bottom = thing[2] - low[2]
    height = region.high[2] + (LET_GO if relation == "in" else bottom + LET_GO)
    half = (high - low)[:2] / 2
    spare = np.maximum((region.high - region.low)[:2] / 2 - half, 0.0)
    middle = (region.high + region.low)[:2] / 2 + 0.4 * np.asarray(manner.lay) * spare
    where = np.array([middle[0], middle[1], height])
    below = surroundings.top_along(thing, where, radius=float(half.max()) + 0.015, without=(name,))
    clear = max(below + bottom + CLEARANCE, height + 0.02)
    # Once lifted, what is too long for a container is turned into its diagonal.
    turn = 0.0
    if relation == "in" and hand.holding:
        turn = turn_to_fit(surroundings.pieces(name), region, surroundings.joint(WRIST)[0])
    yaw = hand.yaw + turn if abs(turn) > FITS_WITHIN else None
    target = Target(position=where, clear=clear, radius=0.02, drop=0.008, yaw=yaw)
    if target.reached(thing, share=0.6 if hand.holding else 1.0):
        if hand.holding and yaw is not None:
            return step(hand, hand.position, pointing_down(yaw), CLOSE, manner.speed)
        if not hand.holding and surroundings.on_a_finger(name):
            return shake_off(hand, (low + high) / 2, manner)
        # What came to rest without the predicate, on the container's rim say, is taken up once more.
        stuck = surroundings.speed(name) < AT_REST and hand.position[2] > high[2] + 0.03
        if not stuck:
            return retreat(hand, surroundings.highest() + HOVER, manner)
    if hand.holding:
        return carry(hand, thing, target, manner)
    grasp = grasp_of(surroundings, manner, name, hand)
    if grasp is None:
        # It rolls or tips, or stands on an edge: wait above, open, until it lies.
        return retreat(hand, surroundings.highest() + HOVER, manner)
    return reach(hand, grasp, manner)


def turn_to_fit(pieces: Sequence[Array], region: Region, wrist: float) -> float:
    """How far to turn a thing, radians, that is too long for the sides of a region, to lie along a diagonal; else 0."""
    points = np.concatenate(pieces)[:, :2]
    yaws = np.arange(NUM_YAWS) * np.pi / NUM_YAWS
    lengths = np.ptp(points @ np.stack([np.cos(yaws), np.sin(yaws)]), axis=0)
    size = (region.high - region.low)[:2]
    if lengths.max() < size.min():
        return 0.0
    diagonal = float(np.arctan2(size[1], size[0]))
    off = [(way - float(yaws[lengths.argmax()]) + np.pi / 2) % np.pi - np.pi / 2 for way in (diagonal, -diagonal)]
    return reachable_turn([turn + k * np.pi for turn in off for k in (-1, 0, 1)], wrist)


def free_elbow(surroundings: Surroundings, hand: Hand, manner: Manner) -> Goal | None:
    """The way out for an arm that was pushed to full stretch or folded up, None for any other.

    There the joint's limit blocks most motions, turning above all: from full stretch the hand goes straight
    up, from a folded arm up and away from the base.
    """
    angle, low, high = surroundings.joint(ELBOW)
    if angle > high - 0.25:
        way = np.array([0.0, 0.0, 1.0])
    elif angle < low + 0.12:
        way = (hand.position - surroundings.base()) * (1.0, 1.0, 0.0)
        way = way / max(float(np.linalg.norm(way)), 1e-6) + (0.0, 0.0, 0.5)
    else:
        return None
    return step(hand, hand.position + way * STEP, hand.rotation, CLOSE if hand.holding else OPEN, manner.speed)


def shake_off(hand: Hand, middle: Array, manner: Manner) -> Goal:
    """Open fingers, centred over a thing that hangs on one of them, by its rim or the eave of a carton."""
    line = hand.rotation[:, 0] * (1.0, 1.0, 0.0)
    position = hand.position + line * float(line @ (middle - hand.position))
    return step(hand, position, hand.rotation, OPEN, manner.speed)


def grasp_of(surroundings: Surroundings, manner: Manner, name: str, hand: Hand) -> Grasp | None:
    """The best grasp of a thing as it now lies, None when it fits nowhere between the fingers."""
    if surroundings.thickness(name) > OPENING - 2.0 * FINGER_MARGIN:
        raise UnsupportedTask(f"expert: expected a thing that fits between fingers {OPENING} m apart, got {name!r}")
    options = candidates(
        surroundings.pieces(name),
        surroundings.neighbours(name, radius=0.25),
        preferred=HOME_YAW + manner.turn,
        current=hand.yaw,
        slide=manner.slide,
    )
    if not options:
        return None
    best = options[0]
    return Grasp(
        position=best.position,
        yaw=reachable_yaw(best.yaw, hand.yaw, surroundings.joint(WRIST)[0]),
        top=surroundings.top_along(hand.position, best.position, radius=0.12),
        opening=min(best.width + 0.012, OPENING - 0.006),
        slack=float(np.clip((OPENING - best.width) / 2 - 0.002, 0.004, 0.010)),
    )


Skill = Callable[[Surroundings, Manner, Sequence[str]], Goal]

# What the expert can bring about. A new predicate is a new row: drawers ("open", "close"), knobs ("turnon").
SKILLS: Mapping[str, Skill] = {"in": place, "on": place}


def skill_for(predicate: Sequence[str]) -> Skill:
    """The skill that makes a goal predicate true; UnsupportedTask when there is none."""
    skill = SKILLS.get(predicate[0])
    if skill is None:
        raise UnsupportedTask(f"expert: expected a predicate among {sorted(SKILLS)}, got {list(predicate)}")
    return skill
