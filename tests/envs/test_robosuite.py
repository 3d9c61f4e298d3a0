"""robosuite tasks against robosuite itself: the same bits; and the promises of Env."""

import numpy as np
import pytest

from vla_runtime.testing import check_env
from vla_runtime.types import Command, SpecMismatch, UnsupportedTask

pytestmark = pytest.mark.usefixtures("needs_sim")

CAMERAS = ("agentview", "robot0_eye_in_hand")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (100, 7)).astype(np.float32)
ACTIONS[:, 6] = np.sign(ACTIONS[:, 6])


def physics(raw):
    """All that the physics goes on from: time, qpos, qvel and the poses of the model's bodies."""
    model = raw.sim.model
    return np.concatenate([raw.sim.get_state().flatten(), model.body_pos.ravel(), model.body_quat.ravel()])


def run(env, actions):
    states = [physics(env.raw)]
    for action in actions:
        env.apply(Command(action, 0.0))
        states.append(physics(env.raw))
    return np.array(states)


@pytest.fixture(scope="module")
def lift(needs_sim):
    from envs.robosuite import Robosuite

    env = Robosuite(task_class="Lift", name="lift")
    yield env
    env.close()


def test_keeps_the_promises_of_env(lift):
    check_env(lift, steps=2)


@pytest.mark.parametrize(("task_class", "options"), [("Lift", {"widen": 0.05}), ("PickPlaceCan", {}), ("Door", {})])
def test_reset_of_a_reused_environment_equals_a_fresh_one(task_class, options):
    from envs.robosuite import Robosuite

    reused = Robosuite(task_class=task_class, **options)
    for episode in (0, 1):
        reused.reset(5, 0, episode)
        if task_class == "Lift" and episode == 0:
            reused.observe(CAMERAS[:1])
        run(reused, ACTIONS[50:53])
    fresh = Robosuite(task_class=task_class, **options)
    assert reused.reset(3, 0, 7) == fresh.reset(3, 0, 7)
    np.testing.assert_array_equal(run(reused, ACTIONS[:4]), run(fresh, ACTIONS[:4]))
    assert fresh.reset(3, 0, 8)["initial_state"] != fresh.reset(3, 0, 7)["initial_state"]
    reused.close()
    fresh.close()


def test_physics_equals_robosuite_bit_for_bit(lift):
    import robosuite

    from envs.osc_arm import numpy_seeded

    raw = robosuite.make(
        "Lift",
        robots="Panda",
        controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
        use_camera_obs=False,
        has_offscreen_renderer=False,
        control_freq=20,
        ignore_done=True,
    )
    with numpy_seeded(3, 0, 7):
        raw.reset()
    expected = [physics(raw)]
    for action in ACTIONS:
        raw.step(action)
        expected.append(physics(raw))
    lift.reset(3, 0, 7)
    np.testing.assert_array_equal(run(lift, ACTIONS), np.array(expected))
    assert lift.outcome() is None
    assert not raw._check_success()
    raw.close()


def test_reset_leaves_the_global_generator_alone(lift):
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    lift.reset(0, 0, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_images_on_demand_equal_images_of_every_tick(lift):
    lift.reset(3, 0, 7)
    for action in ACTIONS[:4]:
        eager = lift.observe(CAMERAS)
        assert set(eager.images) == set(CAMERAS)
        lift.apply(Command(action, 0.0))
    eager, watched = lift.observe(CAMERAS), physics(lift.raw)
    lift.reset(3, 0, 7)
    run(lift, ACTIONS[:4])
    late = lift.observe(CAMERAS)
    np.testing.assert_array_equal(physics(lift.raw), watched)
    for camera in CAMERAS:
        np.testing.assert_array_equal(late.images[camera], eager.images[camera])
    # Upright: in the third-person view the grey wall is above and the white table below.
    view = late.images["agentview"]
    assert view[-10:].mean() > view[:10].mean() + 50


def test_progress_grows_towards_success(lift):
    lift.reset(0, 0, 0)
    assert lift.progress() < 0.1
    raw = lift.raw
    joint = raw.sim.model.get_joint_qpos_addr(raw.cube.joints[0])[0]
    seen = []
    for height in (0.82, 0.83, 0.835, 0.9):
        raw.sim.data.qpos[joint + 2] = height
        raw.sim.forward()
        seen.append(lift.progress())
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert lift.outcome().success


def test_absolute_control_holds_a_pose(needs_sim):
    from envs.robosuite import Robosuite

    env = Robosuite(task_class="Lift", control="absolute")
    env.reset(0, 0, 0)
    start = env.observe().state
    goal = np.concatenate([start[:9], [-1.0]]).astype(np.float32)
    for _ in range(10):
        env.apply(Command(goal, 0.0))
    np.testing.assert_allclose(env.observe().state[:3], start[:3], atol=0.01)
    env.close()


def test_wrong_actions_name_the_dimension(lift):
    bad = ACTIONS[0].copy()
    bad[4] = np.nan
    with pytest.raises(SpecMismatch, match=r"dimension 4 \(rotation\.y\)"):
        lift.apply(Command(bad, 0.0))
    with pytest.raises(SpecMismatch, match=r"expected float32 \[7\]"):
        lift.apply(Command(bad[:6], 0.0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"task_class": "Lfit"}, "nearest: Lift"),
        ({"task_class": "TwoArmLift"}, "two arms"),
        ({"task_class": "Wipe"}, "no gripper"),
        ({"task_class": "PickPlaceSingle"}, "PickPlaceCan"),
        ({"task_class": "Lift", "robot": "Pando"}, "nearest: Panda"),
        ({"task_class": "Lift", "robot": "Sawyer"}, r"Sawyer cannot be used here: .*; take one of \['IIWA'"),
        ({"task_class": "Lift", "robot": "Baxter"}, r"expected one of \['IIWA', [^]]*'UR5e'\], got 'Baxter': it"),
        ({"task_class": "Lift", "cameras": {"agentview": 64}}, r"expected \[height, width\] in pixels, got 64"),
        ({"task_class": "Lift", "cameras": {"agentview": [64, 0]}}, r"cameras.agentview: expected .* got \[64, 0\]"),
        ({"task_class": "Lift", "control": "velocity"}, "delta or absolute"),
        ({"task_class": "Lift", "cameras": {"agentveiw": [64, 64]}}, "nearest: agentview"),
        ({"task_class": "PickPlaceCan", "widen": 0.02}, "whole bin"),
        ({"task_class": "Lift", "widen": -0.02}, "widen"),
    ],
)
def test_bad_options_say_what_was_expected(options, told):
    from envs.robosuite import Robosuite

    with pytest.raises(ValueError, match=told):
        Robosuite(**options)


@pytest.mark.parametrize("robot", ["IIWA", "Jaco", "Kinova3", "UR5e"])
def test_every_arm_that_is_offered_can_be_built(robot):
    """The Panda is what all others here are tested with."""
    from envs.robosuite import Robosuite
    from envs.robosuite_tasks import arms

    assert set(arms()) == {"IIWA", "Jaco", "Kinova3", "Panda", "UR5e"}
    env = Robosuite(task_class="Lift", robot=robot, cameras={})
    env.reset(0, 0, 0)
    assert env.observe().images == {}
    env.close()


def test_tasks_without_an_expert_list_those_that_have_one(needs_sim):
    from envs.robosuite import Robosuite

    env = Robosuite(task_class="NutAssemblySquare", name="square")
    assert env.progress() < 0.2
    with pytest.raises(UnsupportedTask, match="lift, lift_moving, stack, can"):
        env.expert(0)
    env.close()
