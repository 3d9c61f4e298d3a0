"""The LIBERO expert: solves by the goal's words, comes back after a drop, and holds in the raw environment too."""

import numpy as np
import pytest

from vla_runtime.testing import check_policy
from vla_runtime.types import Command, UnsupportedTask

pytestmark = pytest.mark.usefixtures("needs_libero")


@pytest.fixture(scope="module")
def env(needs_libero):
    from envs.libero import Libero

    env = Libero("libero_object")
    yield env
    env.close()


def solve(env, seed, task, episode, style="uni", limit=280, disturb=lambda tick, action: action):
    """The executed actions, [T, A], up to success; fails without it."""
    env.reset(seed, task, episode)
    session = env.expert(seed, style).begin(episode)
    actions = []
    for tick in range(limit):
        action = disturb(tick, session.predict([env.observe()]).actions[0])
        env.apply(Command(action, 0.0))
        actions.append(action)
        if env.outcome() is not None:
            return np.array(actions)
    raise AssertionError(f"task {task}, episode {episode}: no success in {limit} control periods")


def test_a_recorded_run_also_ends_in_success_in_the_raw_environment(env):
    from envs.osc_arm import numpy_seeded

    seed, task, episode = 3, 1, 4
    actions = solve(env, seed, task, episode)
    assert actions.dtype == np.float32
    assert 60 < len(actions) < 160

    from libero.libero.envs import OffScreenRenderEnv

    raw = OffScreenRenderEnv(bddl_file_name=str(env.task_file(task)), use_camera_obs=False)
    with numpy_seeded(seed, task, episode):
        raw.reset()
    raw.set_init_state(env.stored_states(task)[episode])
    for _ in range(10):
        raw.step([0, 0, 0, 0, 0, 0, -1])
    verdicts = [raw.step(action)[2] for action in actions]
    raw.close()
    assert verdicts == [False] * (len(actions) - 1) + [True]


def test_what_was_dropped_is_picked_up_again(env):
    dropped = []

    def open_once(tick, action):
        # Ten periods with open fingers, from the moment the thing is well above the floor.
        name = env.raw.parsed_problem["goal_state"][0][1]
        if not dropped and env.raw.sim.data.body_xpos[env.raw.obj_body_id[name]][2] > 0.08:
            dropped.append(tick)
        if dropped and tick < dropped[0] + 10:
            action = action.copy()
            action[-1] = -1.0
        return action

    actions = solve(env, 0, 1, 0, limit=400, disturb=open_once)
    assert dropped
    assert len(actions) > dropped[0] + 40


def test_multi_does_it_in_another_way_in_absolute_control_and_a_policy_it_is():
    from envs.libero import Libero

    env = Libero("libero_object", control="absolute")
    assert env.expert(0).begin(0) is not env.expert(0).begin(0)
    one, other = (solve(env, 0, 1, 1, style) for style in ("uni", "multi"))
    shared = min(len(one), len(other))
    assert np.abs(one[:shared, :3] - other[:shared, :3]).max() > 0.01
    env.reset(0, 1, 1)
    check_policy(env.expert(0, "multi"), env.spec)
    env.close()


def test_unsupported_tasks_are_refused(env):
    from envs.experts.libero import skill_for
    from envs.libero import Libero

    for suite in ("libero_goal", "libero_90"):
        with pytest.raises(UnsupportedTask, match=suite):
            Libero(suite).expert(0)
    with pytest.raises(UnsupportedTask, match=r"turnon.*flat_stove_1"):
        skill_for(["turnon", "flat_stove_1"])
    with pytest.raises(ValueError, match="uni or multi"):
        env.expert(0, "elegant")


def test_shapes_follow_what_moves(env):
    from envs.experts.libero_surroundings import Surroundings

    env.reset(0, 1, 0)
    surroundings = Surroundings(env)
    surroundings.look()
    name = "cream_cheese_1"
    low, high = surroundings.bounds(name)
    np.testing.assert_allclose(high - low, [0.081, 0.043, 0.018], atol=0.002)
    assert surroundings.thickness(name) == pytest.approx(0.018, abs=0.001)
    region = surroundings.region("basket_1_contain_region")
    assert np.all(region.low < region.high)
    assert surroundings.top_along(low, (low + high) / 2, radius=0.01) == pytest.approx(high[2])
    assert surroundings.highest() == pytest.approx(0.14, abs=0.01)

    env.raw.sim.data.qpos[env.raw.sim.model.get_joint_qpos_addr(f"{name}_joint0")[0] + 2] += 0.1
    env.raw.sim.forward()
    surroundings.look()
    np.testing.assert_allclose(surroundings.bounds(name)[0][2] - low[2], 0.1, atol=1e-6)
