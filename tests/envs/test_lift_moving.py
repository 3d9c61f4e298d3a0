"""The moving cube: driven as drawn, inside the physics, and lost by a policy that is late."""

from collections import deque

import numpy as np
import pytest

from vla_runtime.types import Command

pytestmark = pytest.mark.usefixtures("needs_sim")


@pytest.fixture(scope="module")
def env(needs_sim):
    from envs.lift_moving import LiftMoving

    env = LiftMoving(control="absolute")
    yield env
    env.close()


def cube(env):
    return np.array(env.raw.sim.data.body_xpos[env.raw.cube_body_id])


def still(env):
    return Command(np.concatenate([env.observe().state[:9], [-1.0]]).astype(np.float32), 0.0)


def path(env, episode, steps):
    env.reset(0, 0, episode)
    goal, places = still(env), []
    for _ in range(steps):
        env.apply(goal)
        places.append(cube(env))
    return np.array(places)


@pytest.mark.parametrize("episode", [0, 1])
def test_the_cube_keeps_its_speed_and_its_area(env, episode):
    places = path(env, episode, 40)
    steps = np.linalg.norm(np.diff(places[5:, :2], axis=0), axis=1) / env.spec.period
    assert 0.02 <= env.drive.speed <= 0.10
    # A tick in which it turns back at an edge covers less ground.
    assert np.median(steps) == pytest.approx(env.drive.speed, rel=0.05)
    assert (np.abs(places[:, :2]) < np.array([0.10, 0.14]) + 0.04).all()


def test_equal_resets_move_equally(env):
    first = path(env, 4, 10)
    facts = dict(env.reset(0, 0, 5))
    np.testing.assert_array_equal(path(env, 4, 10), first)
    assert dict(env.reset(0, 0, 5)) == facts
    assert {"cube_speed", "cube_turn", "initial_state"} <= set(facts)


def test_a_finger_stops_the_cube(env):
    """The hand stands in the way with closed fingers: the cube must not pass through it."""
    from envs.experts.scripted import spoken
    from envs.experts.skills import CLOSE, pointing_down, step

    env.reset(0, 0, 0)
    env._drive = env._drive.__class__(0.1, 0.0, 0.0)
    env._heading = 0.0
    raw = env.raw
    address = raw.sim.model.get_joint_qpos_addr(raw.cube.joints[0])[0]
    raw.sim.data.qpos[address : address + 7] = [-0.09, 0.0, 0.9, 1.0, 0.0, 0.0, 0.0]
    goal = np.array([0.0, 0.0, 0.822])
    for _ in range(70):
        # Lifted out of the way until the hand is down, then dropped in front of it.
        env.apply(Command(spoken(env, step(hand(env), goal, pointing_down(np.pi / 2), CLOSE)), 0.0))
        if env.pose()[0][2] > 0.835:
            raw.sim.data.qpos[address : address + 3] = [-0.09, 0.0, 0.9]
    assert cube(env)[0] < 0.0
    assert cube(env)[2] < 0.85


def hand(env):
    from envs.experts.scripted import measured_hand

    return measured_hand(env, ())


def test_a_late_policy_loses_where_a_prompt_one_wins(env):
    def lifts(delay):
        env.reset(0, 0, 1)
        session, late = env.expert(0).begin(0), deque([still(env).values] * delay)
        for _ in range(80):
            late.append(session.predict([env.observe()]).actions[0])
            env.apply(Command(late.popleft(), 0.0))
            if env.outcome():
                return True
        return False

    assert lifts(delay=0)
    assert not lifts(delay=10)
