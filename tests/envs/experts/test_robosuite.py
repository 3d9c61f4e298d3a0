"""Experts that solve what they say they solve, in both controls, and come back from a push."""

import numpy as np
import pytest

from vla_runtime.testing import check_policy
from vla_runtime.types import Command

pytestmark = pytest.mark.usefixtures("needs_sim")


@pytest.fixture(scope="module")
def build(needs_sim):
    from envs.lift_moving import LiftMoving
    from envs.robosuite import Robosuite

    built = {}

    def get(task_class, control="delta"):
        if (task_class, control) not in built:
            kind = {"control": control}
            env = LiftMoving(**kind) if task_class == "LiftMoving" else Robosuite(task_class=task_class, **kind)
            built[task_class, control] = env
        return built[task_class, control]

    yield get
    for env in built.values():
        env.close()


def solve(env, episode, style="uni", limit=None, disturb=lambda tick, action: action):
    """Ticks until success, None without it."""
    env.reset(11, 0, episode)
    session = env.expert(0, style).begin(episode)
    for tick in range(limit or env.spec.max_steps):
        action = session.predict([env.observe()]).actions[0]
        env.apply(Command(disturb(tick, action), 0.0))
        if env.outcome() is not None:
            return tick + 1
    return None


@pytest.mark.parametrize(
    ("episode", "control", "style"), [(0, "delta", "uni"), (1, "absolute", "uni"), (2, "delta", "multi")]
)
def test_lift(build, episode, control, style):
    assert solve(build("Lift", control), episode, style) is not None


@pytest.mark.parametrize(
    ("task_class", "control", "style"),
    [("LiftMoving", "delta", "multi"), ("Stack", "absolute", "uni"), ("PickPlaceCan", "delta", "multi")],
)
def test_others(build, task_class, control, style):
    assert solve(build(task_class, control), 0, style) is not None


def test_a_dropped_cube_is_picked_up_again(build):
    """The fingers are forced open as soon as they have closed, and the hand is pushed aside."""
    env = build("Lift")
    push = np.array([1, -1, 0.5, 0, 0, 0, -1], np.float32)

    def disturb(tick, action):
        return push if 25 <= tick < 33 else action

    plain, disturbed = solve(env, 0), solve(env, 0, disturb=disturb, limit=120)
    assert plain is not None
    assert disturbed is not None
    assert disturbed > plain


def test_the_expert_keeps_the_promises_of_policy(build):
    env = build("Lift")
    env.reset(0, 0, 0)
    policy = env.expert(0, "multi")
    check_policy(policy, env.spec)
    assert policy.spec.cameras == ()
    with pytest.raises(ValueError, match="uni or multi"):
        env.expert(0, "solo")


def test_styles_differ_and_are_drawn_from_the_seed(build):
    policy = build("Lift").expert(0, "multi")
    assert policy.begin(1).manner == policy.begin(1).manner != policy.begin(2).manner
    assert build("Lift").expert(0).begin(1).manner == build("Lift").expert(1).begin(2).manner
